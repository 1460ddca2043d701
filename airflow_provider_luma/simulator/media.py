# SPDX-License-Identifier: Apache-2.0
"""Video processing with PyAV: sample clips, validation of inputs, and transcoding with a visible change of style."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import av.error
import av.filter
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

SAMPLES = ("sample.mp4", "sample-2.mp4", "sample-3.mp4", "sample-4.mp4")
SAMPLE_SIZE = (640, 360)
SAMPLE_RATE = 25
SAMPLE_SECONDS = 3
TONE_RATE = 48000
#: Only the demuxers for MP4, MOV and AVI, because ffmpeg would open every file or URL that a playlist names.
_INPUT_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi", "protocol_whitelist": "file"}
#: Seconds. A clip cut to the limit is often a frame or an audio packet longer.
DURATION_TOLERANCE = 0.5

_OUTPUT_OPTIONS = {"movflags": "+faststart"}
# Filters by the rotation in a frame's display matrix, in degrees counterclockwise.
_ROTATION_FILTERS = {
    90: [("transpose", "cclock")],
    -90: [("transpose", "clock")],
    180: [("hflip", ""), ("vflip", "")],
    -180: [("hflip", ""), ("vflip", "")],
}
_VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20"}
# Colours of each sample clip: upper sky, horizon, ground, sun.
_PALETTES = (
    ((38, 84, 160), (250, 190, 120), (40, 110, 60), (255, 236, 130)),
    ((64, 28, 96), (240, 110, 140), (70, 50, 90), (255, 250, 235)),
    ((10, 60, 70), (130, 220, 200), (190, 160, 90), (255, 120, 80)),
    ((20, 20, 40), (90, 110, 190), (60, 60, 70), (220, 230, 255)),
)
_samples_lock = threading.Lock()


class UnusableVideo(ValueError):
    """The file is not a video that the service accepts; the message gives the reason."""


class RenderCancelled(Exception):
    """The render was cancelled, because the simulator is shutting down."""


@dataclass(frozen=True)
class Clip:
    """Properties of an input video; size in pixels."""

    width: int
    height: int
    seconds: float
    frames: int


def probe(path: Path, max_seconds: float) -> Clip:
    """Decode a whole file and return its properties; UnusableVideo if the service would refuse it."""
    try:
        with av.open(str(path), options=_INPUT_OPTIONS) as container:
            if not container.streams.video:
                raise UnusableVideo("the file contains no video")
            if container.duration and container.duration / av.time_base > max_seconds + DURATION_TOLERANCE:
                raise UnusableVideo(_too_long(container.duration / av.time_base, max_seconds))
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            return Clip(stream.width, stream.height, *_decode(stream, max_seconds))
    except av.error.FFmpegError as error:
        raise UnusableVideo(_undecodable(error)) from error


def reason_not_to_open(path: Path) -> str | None:
    """Return why the first frame of a video cannot be decoded; None if it can."""
    try:
        with av.open(str(path), options=_INPUT_OPTIONS) as container:
            frame = next(container.decode(video=0), None) if container.streams.video else None
            return None if frame else "the file contains no video frame"
    except av.error.FFmpegError as error:
        return _undecodable(error)


def _undecodable(error: av.error.FFmpegError) -> str:
    return f"the file cannot be decoded as an MP4, MOV or AVI video ({error.strerror})"


def _decode(stream: VideoStream, max_seconds: float) -> tuple[float, int]:
    """Return the duration and number of the decoded frames; the duration in the header may be missing or wrong."""
    frame_seconds = float(1 / (stream.average_rate or Fraction(25)))
    first: float | None = None
    seconds, frames = 0.0, 0
    for frame in stream.container.decode(stream):  # type: ignore[attr-defined]
        at = frame.time if frame.time is not None else seconds
        first = at if first is None else first
        frames += 1
        seconds = max(seconds, at - first + frame_seconds)
        if seconds > max_seconds + DURATION_TOLERANCE:
            raise UnusableVideo(_too_long(seconds, max_seconds))
    if first is None:
        raise UnusableVideo("the file contains no frame that can be decoded")
    return seconds, frames


def _too_long(seconds: float, max_seconds: float) -> str:
    return f"the video lasts {seconds:.1f} seconds, at most {max_seconds:g} are allowed"


def render(source: Path, target: Path, prompt: str, cancelled: Callable[[], bool], *, is_silent: bool = False) -> None:
    """
    Transcode a video to an MP4 of the same length and size, with other colours and a border.

    A hash of the prompt selects the style. It combines several filters because each leaves some inputs unchanged: a hue
    shift does not affect grey, and an inversion does not affect middle grey.

    :param cancelled: polled between packets
    :param is_silent: drop the sound instead of keeping it
    :raises RenderCancelled: if ``cancelled`` returns true
    """
    with (
        av.open(str(source), options=_INPUT_OPTIONS) as inp,
        av.open(str(target), "w", format="mp4", options=_OUTPUT_OPTIONS) as out,
    ):
        video = inp.streams.video[0]
        video.thread_type = "AUTO"
        audio = inp.streams.audio[0] if inp.streams.audio and not is_silent else None
        video_out = _VideoTranscoder(video, _rotation_filters(source), out, prompt)
        audio_out = _AudioTranscoder(audio, out) if audio else None
        for packet in inp.demux([stream for stream in (video, audio) if stream]):
            if cancelled():
                raise RenderCancelled
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    video_out.add(frame)
                elif audio_out and isinstance(frame, av.AudioFrame):
                    audio_out.add(frame)
        video_out.close()
        if audio_out:
            audio_out.close()


def _rotation_filters(source: Path) -> list[tuple[str, str]]:
    """Return the filters that apply the rotation in the video's metadata, as phones store it for portrait videos."""
    with av.open(str(source), options=_INPUT_OPTIONS) as container:
        return _ROTATION_FILTERS.get(next(container.decode(video=0)).rotation, [])


class _VideoTranscoder:
    """Filters video frames and encodes them as H.264 with their original timestamps."""

    def __init__(self, source: VideoStream, rotation: list[tuple[str, str]], out: OutputContainer, prompt: str) -> None:
        self._out = out
        # H.264 in 4:2:0 has even sizes only, so an odd input loses one row or column of pixels.
        width, height = max(source.width // 2 * 2, 2), max(source.height // 2 * 2, 2)
        self._size = (height, width) if ("transpose" in dict(rotation)) else (width, height)
        self._stream = out.add_stream("libx264", rate=source.average_rate or 25, options=_VIDEO_OPTIONS)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        if source.time_base:
            self._stream.codec_context.time_base = source.time_base
        self._graph = av.filter.Graph()
        nodes = [self._graph.add_buffer(template=source)]
        nodes += [self._graph.add(name, arguments) for name, arguments in rotation + self._style_filters(prompt)]
        nodes.append(self._graph.add("buffersink"))
        self._graph.link_nodes(*nodes).configure()

    def _style_filters(self, prompt: str) -> list[tuple[str, str]]:
        digest = hashlib.sha256(prompt.encode()).digest()
        width, height = self._size
        colour = "0x" + bytes(128 + byte // 2 for byte in digest[2:5]).hex()
        return [
            ("negate", ""),
            ("hue", f"h={20 + digest[0] * 320 // 255}:s={1.2 + digest[1] / 255:.2f}"),
            ("scale", f"{width}:{height}"),
            ("drawbox", f"color={colour}:t={max(2, min(width, height) // 30)}"),
            ("format", "pix_fmts=yuv420p"),
        ]

    def add(self, frame: av.VideoFrame | None) -> None:
        self._graph.vpush(frame)
        for filtered in self._filtered_frames():
            filtered.pict_type = av.video.frame.PictureType.NONE
            self._out.mux(self._stream.encode(filtered))

    def _filtered_frames(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                yield self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    def close(self) -> None:
        self.add(None)
        self._out.mux(self._stream.encode(None))


class _AudioTranscoder:
    """Encodes audio frames as AAC."""

    def __init__(self, source: AudioStream, out: OutputContainer) -> None:
        self._out = out
        layout = "stereo" if source.codec_context.channels > 1 else "mono"
        self._stream = out.add_stream("aac", rate=TONE_RATE, layout=layout)

    def add(self, frame: av.AudioFrame | None) -> None:
        self._out.mux(self._stream.encode(frame))

    def close(self) -> None:
        self.add(None)


def sample(name: str) -> bytes:
    """Return the content of a sample clip, drawn on first request and cached."""
    with _samples_lock:
        return _draw_sample(SAMPLES.index(name))


@cache
def _draw_sample(variant: int) -> bytes:
    # Written to a file, because ffmpeg reopens the output by its name to move the index to its start (faststart).
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        _write_sample(path, variant)
        return path.read_bytes()


def _write_sample(path: Path, variant: int) -> None:
    with av.open(str(path), "w", format="mp4", options=_OUTPUT_OPTIONS) as out:
        video = out.add_stream("libx264", rate=SAMPLE_RATE, options=_VIDEO_OPTIONS)
        video.width, video.height = SAMPLE_SIZE
        video.pix_fmt = "yuv420p"
        tone = out.add_stream("aac", rate=TONE_RATE, layout="mono")
        audio_frames = _audio_frames(variant)
        for video_frame in _video_frames(variant):
            out.mux(video.encode(video_frame))
            out.mux(tone.encode(next(audio_frames)))
        out.mux(video.encode(None))
        out.mux(tone.encode(None))


def _video_frames(variant: int) -> Iterator[av.VideoFrame]:
    """Yield frames of a sun that crosses a sky, in colours that differ from clip to clip."""
    above, horizon, ground, sun = (np.array(colour, dtype=np.float32) for colour in _PALETTES[variant])
    width, height = SAMPLE_SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    depth = np.clip(y / (height * 0.75), 0, 1)[..., None]
    hilly = y > height * 0.75 - 18 * np.sin(x / 70 + variant) - 8 * np.sin(x / 23)
    scene = np.where(hilly[..., None], ground, above * (1 - depth) + horizon * depth)
    frames = SAMPLE_RATE * SAMPLE_SECONDS
    for index in range(frames):
        progress = index / (frames - 1)
        sun_x, sun_y = int(60 + progress * (width - 120)), int(height * (0.62 - 0.42 * np.sin(np.pi * progress)))
        box = np.s_[sun_y - 46 : sun_y + 46, sun_x - 46 : sun_x + 46]
        shine = np.clip((46 - np.hypot(x[box] - sun_x, y[box] - sun_y)) / 8, 0, 1) * ~hilly[box]
        picture = scene.astype(np.uint8)
        picture[box] = scene[box] + (sun - scene[box]) * shine[..., None]
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, SAMPLE_RATE)
        yield frame


def _audio_frames(variant: int) -> Iterator[av.AudioFrame]:
    """Yield a quiet sine tone in frames of the same duration as a video frame."""
    length = TONE_RATE // SAMPLE_RATE
    pitch = 220 * (1 + variant / 4)
    for index in range(SAMPLE_RATE * SAMPLE_SECONDS):
        at = np.arange(index * length, (index + 1) * length) / TONE_RATE
        wave = (0.05 * np.sin(2 * np.pi * pitch * at)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = TONE_RATE, index * length, Fraction(1, TONE_RATE)
        yield frame

# SPDX-License-Identifier: Apache-2.0
"""Video work with PyAV: drawing the sample clips, judging an input, and rendering a result that visibly differs."""

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
#: The demuxers for MP4, MOV and AVI and no other: a playlist, for one, would have ffmpeg open whatever it names.
_READING = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi", "protocol_whitelist": "file"}
#: A ten-second clip is often a frame or a packet of sound longer than ten seconds.
TOLERANCE = 0.5

_WRITING = {"movflags": "+faststart"}
# by the angle a frame is to be turned against the clock
_TURNS = {
    90: [("transpose", "cclock")],
    -90: [("transpose", "clock")],
    180: [("hflip", ""), ("vflip", "")],
    -180: [("hflip", ""), ("vflip", "")],
}
_VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20"}
# sky above, sky at the horizon, ground, sun
_PALETTES = (
    ((38, 84, 160), (250, 190, 120), (40, 110, 60), (255, 236, 130)),
    ((64, 28, 96), (240, 110, 140), (70, 50, 90), (255, 250, 235)),
    ((10, 60, 70), (130, 220, 200), (190, 160, 90), (255, 120, 80)),
    ((20, 20, 40), (90, 110, 190), (60, 60, 70), (220, 230, 255)),
)
_samples_lock = threading.Lock()


class UnusableVideo(ValueError):
    """The file is not a video the service takes; the message says why."""


class Stopped(Exception):
    """The simulator is shutting down and does not want this render any more."""


@dataclass(frozen=True)
class Clip:
    """What an input turned out to be."""

    width: int
    height: int
    seconds: float


def inspect(path: Path, max_seconds: float) -> Clip:
    """Decode a file from end to end, and refuse what the service would refuse."""
    try:
        with av.open(str(path), options=_READING) as container:
            if not container.streams.video:
                raise UnusableVideo("the file holds no video")
            if container.duration and container.duration / av.time_base > max_seconds + TOLERANCE:
                raise UnusableVideo(_too_long(container.duration / av.time_base, max_seconds))
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            return Clip(stream.width, stream.height, _decoded_seconds(stream, max_seconds))
    except av.error.FFmpegError as error:
        raise UnusableVideo(f"the file cannot be decoded as an MP4, MOV or AVI video ({error.strerror})") from error


def _decoded_seconds(stream: VideoStream, max_seconds: float) -> float:
    """Measure what is really there: the duration in a header may be missing or wrong."""
    frame_seconds = float(1 / (stream.average_rate or Fraction(25)))
    first: float | None = None
    seconds = 0.0
    for frame in stream.container.decode(stream):  # type: ignore[attr-defined]
        at = frame.time if frame.time is not None else seconds
        first = at if first is None else first
        seconds = max(seconds, at - first + frame_seconds)
        if seconds > max_seconds + TOLERANCE:
            raise UnusableVideo(_too_long(seconds, max_seconds))
    if first is None:
        raise UnusableVideo("the file holds no frame that can be decoded")
    return seconds


def _too_long(seconds: float, max_seconds: float) -> str:
    return f"the video lasts {seconds:.1f} seconds, at most {max_seconds:g} are allowed"


def render(source: Path, target: Path, look: str, stopped: Callable[[], bool]) -> None:
    """
    Write a changed copy of the video: same length and size, other colours, sound kept.

    The look follows from the text given. Each of its steps changes what another may leave alone (a hue does nothing to
    grey, an inversion nothing to middle grey), so that the result differs from any input.
    """
    with (
        av.open(str(source), options=_READING) as inp,
        av.open(str(target), "w", format="mp4", options=_WRITING) as out,
    ):
        video = inp.streams.video[0]
        video.thread_type = "AUTO"
        audio = inp.streams.audio[0] if inp.streams.audio else None
        painter = _Painter(video, _upright(source), out, look)
        speaker = _Speaker(audio, out) if audio else None
        for packet in inp.demux([stream for stream in (video, audio) if stream]):
            if stopped():
                raise Stopped
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    painter.add(frame)
                elif speaker and isinstance(frame, av.AudioFrame):
                    speaker.add(frame)
        painter.close()
        if speaker:
            speaker.close()


def _upright(source: Path) -> list[tuple[str, str]]:
    """Return the filters that turn a film the way it is meant to be seen: phones film lying down and note the angle."""
    with av.open(str(source), options=_READING) as container:
        return _TURNS.get(next(container.decode(video=0)).rotation, [])


class _Painter:
    """Video frames through the filters into H.264, at the times they had."""

    def __init__(self, source: VideoStream, turns: list[tuple[str, str]], out: OutputContainer, look: str) -> None:
        self._out = out
        # H.264 in 4:2:0 has even sizes only: an odd input loses one line or column.
        width, height = max(source.width // 2 * 2, 2), max(source.height // 2 * 2, 2)
        self._size = (height, width) if ("transpose" in dict(turns)) else (width, height)
        self._stream = out.add_stream("libx264", rate=source.average_rate or 25, options=_VIDEO_OPTIONS)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        if source.time_base:
            self._stream.codec_context.time_base = source.time_base
        self._graph = av.filter.Graph()
        nodes = [self._graph.add_buffer(template=source)]
        nodes += [self._graph.add(name, arguments) for name, arguments in turns + self._filters(look)]
        nodes.append(self._graph.add("buffersink"))
        self._graph.link_nodes(*nodes).configure()

    def _filters(self, look: str) -> list[tuple[str, str]]:
        digest = hashlib.sha256(look.encode()).digest()
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
        for painted in self._painted():
            painted.pict_type = av.video.frame.PictureType.NONE
            self._out.mux(self._stream.encode(painted))

    def _painted(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                yield self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    def close(self) -> None:
        self.add(None)
        self._out.mux(self._stream.encode(None))


class _Speaker:
    """Sound of any kind into AAC."""

    def __init__(self, source: AudioStream, out: OutputContainer) -> None:
        self._out = out
        layout = "stereo" if source.codec_context.channels > 1 else "mono"
        self._stream = out.add_stream("aac", rate=TONE_RATE, layout=layout)

    def add(self, frame: av.AudioFrame | None) -> None:
        self._out.mux(self._stream.encode(frame))

    def close(self) -> None:
        self.add(None)


def sample(name: str) -> bytes:
    """Return one of the sample clips, drawn when it is first asked for and the same ever after."""
    with _samples_lock:
        return _draw_sample(SAMPLES.index(name))


@cache
def _draw_sample(variant: int) -> bytes:
    # Not into memory: putting the index first means reading the file again, which ffmpeg does by its name.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        _write_sample(path, variant)
        return path.read_bytes()


def _write_sample(path: Path, variant: int) -> None:
    with av.open(str(path), "w", format="mp4", options=_WRITING) as out:
        video = out.add_stream("libx264", rate=SAMPLE_RATE, options=_VIDEO_OPTIONS)
        video.width, video.height = SAMPLE_SIZE
        video.pix_fmt = "yuv420p"
        tone = out.add_stream("aac", rate=TONE_RATE, layout="mono")
        pictures, sounds = _pictures(variant), _sounds(variant)
        for picture in pictures:
            out.mux(video.encode(picture))
            out.mux(tone.encode(next(sounds)))
        out.mux(video.encode(None))
        out.mux(tone.encode(None))


def _pictures(variant: int) -> Iterator[av.VideoFrame]:
    """Let a sun cross a sky, in colours that tell the clips apart."""
    above, horizon, ground, sun = (np.array(colour, dtype=np.float32) for colour in _PALETTES[variant])
    width, height = SAMPLE_SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    depth = np.clip(y / (height * 0.75), 0, 1)[..., None]
    hilly = y > height * 0.75 - 18 * np.sin(x / 70 + variant) - 8 * np.sin(x / 23)
    scene = np.where(hilly[..., None], ground, above * (1 - depth) + horizon * depth)
    frames = SAMPLE_RATE * SAMPLE_SECONDS
    for index in range(frames):
        way = index / (frames - 1)
        sun_x, sun_y = int(60 + way * (width - 120)), int(height * (0.62 - 0.42 * np.sin(np.pi * way)))
        box = np.s_[sun_y - 46 : sun_y + 46, sun_x - 46 : sun_x + 46]
        shine = np.clip((46 - np.hypot(x[box] - sun_x, y[box] - sun_y)) / 8, 0, 1) * ~hilly[box]
        picture = scene.astype(np.uint8)
        picture[box] = scene[box] + (sun - scene[box]) * shine[..., None]
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, SAMPLE_RATE)
        yield frame


def _sounds(variant: int) -> Iterator[av.AudioFrame]:
    """Hum a quiet tone, in pieces as long as a picture."""
    length = TONE_RATE // SAMPLE_RATE
    pitch = 220 * (1 + variant / 4)
    for index in range(SAMPLE_RATE * SAMPLE_SECONDS):
        at = np.arange(index * length, (index + 1) * length) / TONE_RATE
        wave = (0.05 * np.sin(2 * np.pi * pitch * at)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = TONE_RATE, index * length, Fraction(1, TONE_RATE)
        yield frame

# SPDX-License-Identifier: Apache-2.0
"""Films whose pictures carry their number and whose sound clicks every second, and what reads both back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from airflow_provider_luma.media.film_types import JoinedFilm
from airflow_provider_luma.media.join import join
from airflow_provider_luma.media.split import plan_split, split

NTSC = Fraction(30000, 1001)
SAMPLE_RATE = 48000

#: Seconds of the first click, by the film's clock, and how many samples it lasts.
FIRST_CLICK = 0.5
_CLICK = 0.9 * np.sin(2 * np.pi * 3000 / SAMPLE_RATE * np.arange(240))

_OPTIONS = {"preset": "ultrafast", "bf": "2", "g": "50", "threads": "1"}

#: Fourteen bits, and each once more inverted, in blocks.
_COLUMNS, _ROWS = 7, 4
_BITS = _COLUMNS * _ROWS // 2

#: The matrix of an MP4's track that turns its pictures by so many degrees counterclockwise.
_MATRICES = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}


@cache
def film(
    kind: str = "mp4",
    *,
    frames: int = 0,
    rate: Fraction | int = 30,
    ticks: tuple[int, ...] = (),
    first: int = 0,
    size: tuple[int, int] = (96, 54),
    codec: str = "libx264",
    options: tuple[tuple[str, str], ...] = (),
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    mirrored: bool = False,
    aspect: int = 1,
    colour: tuple[int, int, int] | None = None,
    sound: str | None = None,
    sound_span: tuple[float, float] | None = None,
) -> bytes:
    """
    Encode a film.

    :param frames: how many, at a constant ``rate``; or else:
    :param ticks: the milliseconds of each frame, and at last of the film's end
    :param first: frames, or milliseconds, before the first one
    :param size: of the pictures as they are shown
    :param options: of the codec, in place of the usual ones
    :param rotation: degrees counterclockwise by which the container asks to turn the pictures
    :param mirrored: it asks to mirror them left to right after that
    :param aspect: the width of a pixel in heights, as the codec tells it
    :param colour: red, green and blue of all pictures, in place of their numbers
    :param sound: a codec
    :param sound_span: seconds of the sound's beginning and end, by the film's clock
    """
    time_base = Fraction(1, 1000) if ticks else 1 / Fraction(rate)
    ticks = ticks or tuple(range(frames + 1))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"film.{kind}"
        with av.open(str(path), "w") as out:
            usual = _OPTIONS if codec in ("libx264", "libx265") else {}
            video: Any = out.add_stream(codec, rate=rate, options=dict(options) or usual)
            across = rotation in (90, 270)
            video.width, video.height = size[::-1] if across else size
            video.pix_fmt, video.codec_context.time_base = pix_fmt, time_base
            video.codec_context.sample_aspect_ratio = aspect
            audio: Any = out.add_stream(sound, rate=SAMPLE_RATE, layout="mono") if sound else None
            for number, tick in enumerate(ticks[:-1]):
                frame = _picture(number, size, rotation, mirrored) if colour is None else _plain(colour, size)
                frame.pts, frame.time_base, frame.duration = tick + first, time_base, ticks[number + 1] - tick
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
            if audio:
                origin = float(first * time_base)
                for frame in _samples(*(sound_span or (origin, origin + float(ticks[-1] * time_base)))):
                    out.mux(audio.encode(frame))
                out.mux(audio.encode(None))
        content = path.read_bytes()
    return _turned(content, rotation, mirrored) if rotation or mirrored else content


def _picture(number: int, size: tuple[int, int], rotation: int = 0, mirrored: bool = False) -> av.VideoFrame:
    upright = pixels_of(number, size)
    pixels = np.rot90(np.fliplr(upright) if mirrored else upright, -rotation // 90)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="gray")


def _plain(colour: tuple[int, int, int], size: tuple[int, int]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), colour, dtype=np.uint8), format="rgb24")


def pixels_of(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return a picture that carries a number."""
    bits = [number >> bit & 1 for bit in range(_BITS)]
    blocks = np.array(bits + [1 - bit for bit in bits], dtype=np.uint8).reshape(_ROWS, _COLUMNS) * 255
    rows = np.arange(size[1]) * _ROWS // size[1]
    columns = np.arange(size[0]) * _COLUMNS // size[0]
    return blocks[rows][:, columns]


@dataclass(frozen=True)
class Track:
    """
    A sound track, which clicks as those of :func:`film` do.

    :param span: seconds of its beginning and end
    """

    codec: str
    span: tuple[float, float]
    rate: int = SAMPLE_RATE
    layout: str = "mono"
    language: str = ""
    is_default: bool = True
    bit_rate: int = 0


def with_tracks(video: bytes, *tracks: Track, kind: str = "mp4", is_interleaved: bool = True) -> bytes:
    """
    Return a film with sound tracks in place of its own.

    :param is_interleaved: or the sound lies in front of the video
    """
    with TemporaryDirectory() as folder, av.open(io.BytesIO(video)) as source:
        path = Path(folder) / f"film.{kind}"
        options = {} if is_interleaved else {"max_interleave_delta": "1"}
        with av.open(str(path), "w", options=options) as out:
            pictures = out.add_stream_from_template(source.streams.video[0])
            sounds: list[Any] = [out.add_stream(t.codec, rate=t.rate, layout=t.layout) for t in tracks]
            for track, sound in zip(tracks, sounds, strict=True):
                sound.metadata["language"] = track.language
                sound.disposition = Disposition.default if track.is_default else 0
                if track.bit_rate:
                    sound.bit_rate = track.bit_rate
            for track, sound in zip(tracks, sounds, strict=True):
                for frame in (*_samples(*track.span), None):
                    out.mux(sound.encode(frame))
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = pictures
                    out.mux(packet)
        return path.read_bytes()


def rejoined(source: bytes, change: Callable[[bytes], bytes] = bytes) -> tuple[bytes, JoinedFilm]:
    """Split a film and join its clips, as they are or changed."""
    plan, clips = plan_split(io.BytesIO(source), 10), list[bytes]()
    split(io.BytesIO(source), plan, lambda _: kept_file(clips))
    with TemporaryDirectory() as folder:
        output = Path(folder) / "film.mp4"
        info = join(openers([change(clip) for clip in clips]), io.BytesIO(source), plan, output)
        return output.read_bytes(), info


def _samples(begin: float, end: float) -> Iterator[av.AudioFrame]:
    first, last = round(begin * SAMPLE_RATE), round(end * SAMPLE_RATE)
    wave = np.zeros(last - min(first, 0) + len(_CLICK), dtype=np.float32)
    for click in np.arange(FIRST_CLICK, end, 1.0):
        at = round(click * SAMPLE_RATE) - min(first, 0)
        wave[at : at + len(_CLICK)] = _CLICK
    for at in range(first, last, 1024):
        piece = wave[at - min(first, 0) : min(at + 1024, last) - min(first, 0)]
        frame = av.AudioFrame.from_ndarray((piece[None, :] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
        yield frame


def _turned(content: bytes, rotation: int, mirrored: bool) -> bytes:
    across = -1 if mirrored else 1
    matrix = [value * factor << 16 for value, factor in zip(_MATRICES[rotation], (across, 1, across, 1), strict=True)]
    a, b, c, d = (value.to_bytes(4, "big", signed=True) for value in matrix)
    before, _, after = content.partition(b"tkhd")
    matrix_box = a + b + bytes(4) + c + d + after[56:76]
    return before + b"tkhd" + after[:40] + matrix_box[:20] + after[60:]


def broken(source: bytes, *which: int) -> bytes:
    """Overwrite packets of a film, in the order of decoding, so that nothing in them can be decoded."""
    with av.open(io.BytesIO(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(source)
    for index in which:
        position, size = packets[index]
        content[position : position + size] = b"\xff" * size
    return bytes(content)


def pictures(video: bytes) -> list[tuple[float, int]]:
    """Return the time of each picture of a video, and its number."""
    with av.open(io.BytesIO(video)) as container:
        return [(float(frame.time or 0), number_of(frame)) for frame in container.decode(video=0)]


def number_of(frame: av.VideoFrame) -> int:
    """Read the number that a picture carries; it must stand upright, and be one of YUV with eight bits."""
    luma = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1)
    rows, columns = _middles(frame.height, _ROWS), _middles(frame.width, _COLUMNS)
    bits = luma[np.ix_(rows, columns)].reshape(_ROWS, 5, _COLUMNS, 5).mean(axis=(1, 3)).ravel() > 128
    assert not np.any(bits[:_BITS] == bits[_BITS:]), "the picture does not stand upright, or is no picture"
    return int(bits[:_BITS] @ (1 << np.arange(_BITS)))


def _middles(length: int, blocks: int) -> np.ndarray:
    """Return the five pixels in the middle of each block along one side of a picture."""
    middles = (2 * np.arange(blocks) + 1) * length // (2 * blocks)
    return (middles[:, None] + np.arange(-2, 3)).ravel()


def clicks(video: bytes, track: int = 0, threshold: float = 0.4) -> list[float]:
    """Return when a sound track of a video clicks, in seconds."""
    pieces, begin = [], None
    with av.open(io.BytesIO(video)) as container:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        for frame in container.decode(audio=track):
            begin = float(frame.time or 0) if begin is None else begin
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    loud = np.flatnonzero(np.abs(np.concatenate(pieces)) > threshold)
    onsets = loud[np.flatnonzero(np.diff(loud, prepend=-SAMPLE_RATE) > SAMPLE_RATE // 4)]
    return [(begin or 0.0) + onset / SAMPLE_RATE for onset in onsets]


def size_of(video: bytes) -> tuple[int, int]:
    """Return width and height of a video."""
    with av.open(io.BytesIO(video)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def rate_of(video: bytes) -> Fraction:
    """Return the frames a second of a video."""
    with av.open(io.BytesIO(video)) as container:
        rate = container.streams.video[0].average_rate
        return Fraction(rate.numerator, rate.denominator)


def stream_seconds(video: bytes) -> tuple[float, float]:
    """Return the length of a file's video, and of its container."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        return float((stream.duration or 0) * (stream.time_base or 0)), (container.duration or 0) / av.time_base


def modified(
    clip: bytes, *, rate: Fraction | int = 24, size: tuple[int, int] = (96, 54), seconds: float = 0.0
) -> bytes:
    """
    Return a clip as a service may give it back: at another rate, of another size, and without sound.

    Each picture is the one that the clip shows nearest to its time: the service itself adds no lag.

    :param seconds: by how much it is longer than the clip
    """
    with av.open(io.BytesIO(clip)) as container:
        frames = [(Fraction(frame.pts or 0) * frame.time_base, frame) for frame in container.decode(video=0)]
    length = frames[-1][0] + frames[1][0] - frames[0][0] if len(frames) > 1 else Fraction(1, 24)
    upcoming = iter(frames[1:])
    shown, following = frames[0], next(upcoming, None)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as out:
            video = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "threads": "1"})
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            for index in range(max(1, round((length + Fraction(seconds)) * rate))):
                at = index / Fraction(rate)
                while following and abs(following[0] - at) < abs(shown[0] - at):
                    shown, following = following, next(upcoming, None)
                picture = shown[1].reformat(*size)
                picture.pts, picture.time_base, picture.pict_type = index, 1 / Fraction(rate), 0
                out.mux(video.encode(picture))
            out.mux(video.encode(None))
        return path.read_bytes()


@contextmanager
def kept_file(kept: list[bytes]) -> Iterator[Path]:
    """Make a file, and keep what it holds at the end."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        yield path
        kept.append(path.read_bytes())


def openers(clips: Sequence[bytes]) -> list[Callable[[], io.BytesIO]]:
    """Return what opens each of some files."""
    return [lambda clip=clip: io.BytesIO(clip) for clip in clips]  # type: ignore[misc]

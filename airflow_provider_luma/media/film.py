# SPDX-License-Identifier: Apache-2.0
"""Reading a film, or a clip of one: the times of its frames, its frames, and its pictures as they are meant to look."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, TYPE_CHECKING

import av
import av.error
import av.filter

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.inspector import (
    Unusable,
    check_boxes,
    check_size,
    cut_off,
    open_video,
    undecodable,
    video_stream,
)
from airflow_provider_luma.media.probe import other_kind
from airflow_provider_luma.media.timeline import FrameTimes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

#: Each thread of FFmpeg holds pictures in memory.
THREADS = min(4, os.cpu_count() or 1)

#: Pictures in RGB say of no way to become YUV that it was theirs.
_RGB = 0
_MATRIX = ":out_color_matrix=bt709"

#: Pictures of a high dynamic range (PQ, HLG) look grey wherever that is not heeded: they become those of television.
_HIGH_DYNAMIC_RANGE = (16, 18)
_STANDARD_RANGE = _MATRIX + ":out_primaries=bt709:out_transfer=bt709"

#: What turns a picture, by the degrees counterclockwise that the file asks for.
_ROTATIONS = {
    90: [("transpose", "cclock")],
    180: [("hflip", ""), ("vflip", "")],
    270: [("transpose", "clock")],
}


@contextmanager
def refusing(parameter: str, shown: str) -> Iterator[None]:
    """
    Turn what is wrong with a video into an error that names it.

    :param parameter: the parameter that names the video
    :param shown: its address as messages may show it
    :raises LumaValidationError: the video cannot be taken
    """
    try:
        yield
    except Unusable as unusable:
        found, remedy = unusable.args
        name = f"{parameter} ({shown})" if shown else parameter
        raise LumaValidationError(None, f"{name} {found}: {remedy}") from unusable


@contextmanager
def opened(file: IO[bytes]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """
    Open a film, and return it and its video.

    :param file: can be read at any position
    :raises Unusable: it cannot be taken
    """
    file.seek(0)
    if kind := other_kind(file.read(1024)):
        raise Unusable(f"is {kind}, not MP4, MOV or AVI", "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4")
    check_boxes(file)
    with open_video(file) as container:
        video = video_stream(container)
        check_size(video)
        video.codec_context.thread_count = THREADS
        video.thread_type = "AUTO"
        yield container, video


def frame_times(container: InputContainer, video: VideoStream) -> FrameTimes:
    """
    Return when the frames are shown. Nothing is decoded.

    :raises Unusable: there are none, or the file is cut off
    """
    durations = {}
    try:
        for packet in container.demux(video):
            if packet.is_corrupt:
                raise cut_off()
            at = packet.dts if _lacks_pts(container) else packet.pts
            if packet.size and at is not None and not packet.is_discard:  # an edit list can hide some
                durations[at] = packet.duration or 0
    except (av.error.FFmpegError, MemoryError) as error:
        raise undecodable(error) from error
    if not durations or not video.time_base:
        raise undecodable("it holds no frame")
    ticks = sorted(durations)
    time_base = Fraction(video.time_base.numerator, video.time_base.denominator)  # since PyAV 19 a type of its own
    return FrameTimes(ticks, time_base, durations[ticks[-1]])


def decoded(container: InputContainer, video: VideoStream) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """
    Yield the frames, each with its time in seconds.

    :raises Unusable: one cannot be decoded, or there is none
    """
    time_base = video.time_base or Fraction(1)
    sent: deque[int] = deque()
    at = None
    try:
        for packet in container.demux(video):
            if packet.size and packet.dts is not None:
                sent.append(packet.dts)
            for frame in packet.decode():
                dts = sent.popleft() if sent else None
                at = dts if _lacks_pts(container) else frame.pts
                if at is not None:
                    yield at * time_base, frame
    except (av.error.FFmpegError, MemoryError) as error:
        raise undecodable(error) from error
    if at is None:
        raise undecodable("it holds no frame")


def _lacks_pts(container: InputContainer) -> bool:
    """Tell whether a file has no times of showing: then the frames are shown at the times of sending, in order."""
    return container.format.name == "avi"


class Pictures:
    """
    Makes pictures of one size and kind of a film's frames: turned upright, with square pixels, in 4:2:0.

    :param size: width and height; without it, that of the first frame, made even
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size
        self._kind: tuple[object, ...] = ()
        self._graph = av.filter.Graph()
        self._last: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def make(self, frame: av.VideoFrame, video: VideoStream) -> av.VideoFrame:
        """Return a frame's picture; of the same frame again, the same."""
        if self._last and self._last[0] is frame:
            return self._last[1]
        # One graph for all clips that are alike: a graph that is dropped may keep its memory for long.
        shape = (frame.width, frame.height, video.codec_context.sample_aspect_ratio, frame.rotation, frame.time_base)
        kind = (*shape, frame.format.name, frame.colorspace, frame.color_range, frame.color_trc)
        if kind != self._kind:
            self._kind, self._graph = kind, self._new_graph(frame, video)
        self._graph.vpush(frame)
        self._last = frame, self._graph.vpull()
        return self._last[1]

    def _new_graph(self, frame: av.VideoFrame, video: VideoStream) -> av.filter.Graph:
        aspect = video.codec_context.sample_aspect_ratio or Fraction(1)
        rotation = round(frame.rotation / 90) * 90 % 360
        width, height = round(frame.width * aspect), frame.height
        self.size = self.size or _even(*((height, width) if rotation in (90, 270) else (width, height)))
        graph = av.filter.Graph()
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        colours = _MATRIX if frame.colorspace == _RGB else ""
        if frame.color_trc in _HIGH_DYNAMIC_RANGE:
            colours = _STANDARD_RANGE
        filters = [
            ("buffer", source),
            *_ROTATIONS.get(rotation, []),
            ("scale", f"w={self.size[0]}:h={self.size[1]}:out_range=tv{colours}"),
            ("setsar", "1"),
            ("format", "pix_fmts=yuv420p"),
            ("buffersink", ""),
        ]
        graph.link_nodes(*(graph.add(name, arguments) for name, arguments in filters)).configure()
        return graph


def _even(width: int, height: int) -> tuple[int, int]:
    """Return the size that H.264 in 4:2:0 takes; an odd one loses a column or a row."""
    return max(2, width // 2 * 2), max(2, height // 2 * 2)

# SPDX-License-Identifier: Apache-2.0
"""
A film's pictures on their way from the decoder into an MP4.

They are deinterlaced, turned upright, given square pixels and one size, and encoded as H.264 that every service and
player reads the same way.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
import av.filter
from av.video.frame import PictureType

from airflow_provider_luma.media.film_reader import check_pixels
from airflow_provider_luma.media.memory import MAX_PIXELS, THREADS, allow_pictures
from airflow_provider_luma.media.opening import MAX_SIDE, Unusable

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from airflow_provider_luma.media.film_reader import Repairs

#: RGB pictures do not say which matrix converts them to YUV, so BT.709 is used.
_RGB = 0
_MATRIX = ":out_color_matrix=bt709"

#: Transfer functions of HDR (PQ, HLG). Players that ignore them show grey pictures, so these become BT.709.
_HIGH_DYNAMIC_RANGE = (16, 18)
_STANDARD_RANGE = _MATRIX + ":out_primaries=bt709:out_transfer=bt709"

#: Relative difference in aspect ratio above which a picture gets black bars. Below it, the picture is stretched.
_SAME_ASPECT = 0.02

#: How a picture is transposed, by whether the result is mirrored left to right, and top to bottom.
_TRANSPOSED = {
    (False, False): "cclock_flip",
    (True, False): "clock",
    (False, True): "cclock",
    (True, True): "clock_flip",
}

#: The index comes first, for reading over a network.
MP4_OPTIONS = {"movflags": "+faststart"}

#: Without frames that refer to later ones, the video begins at 0 and needs no edit list, which some players ignore.
_X264_OPTIONS = {"preset": "veryfast", "crf": "18", "bf": "0", "threads": str(THREADS)}


def deinterlaced(
    frames: Iterable[tuple[Fraction, av.VideoFrame]], repairs: Repairs
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """
    Yield a film's frames, each with its time, with interlaced ones deinterlaced.

    From the first interlaced frame on, the output lags one frame behind. Progressive frames pass unchanged.
    """
    graph: av.filter.Graph | None = None
    shape: tuple[object, ...] = ()
    times = deque[Fraction]()
    for at, frame in frames:
        repairs.deinterlaced += frame.interlaced_frame
        if graph is None and not frame.interlaced_frame:
            yield at, frame
            continue
        if graph is None or shape != _shape(frame):
            yield from _through(graph, None, times)
            graph, shape = _linked(frame, [("bwdif", "mode=send_frame:deint=interlaced")]), _shape(frame)
        times.append(at)
        yield from _through(graph, frame, times)
    yield from _through(graph, None, times)


def _through(
    graph: av.filter.Graph | None, frame: av.VideoFrame | None, times: deque[Fraction]
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Push a frame, or the end, through a graph, and yield what comes out, with the times of what went in."""
    if graph is None:
        return
    try:
        graph.vpush(frame)
        while True:
            picture = graph.vpull()
            yield times.popleft(), picture
    except (av.error.BlockingIOError, av.error.EOFError):
        return


class Pictures:
    """
    Turns a film's frames into pictures of one size and format: upright, with square pixels, in 4:2:0.

    :param size: width and height to which all pictures are stretched. Without it, they get the size of the first frame,
        made even; later ones of another aspect ratio get black bars
    :param max_pixels: pixels that a picture may have once they are square
    """

    def __init__(self, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.size = size
        self._max_pixels = max_pixels
        self._is_stretched = size is not None
        self._video: VideoStream | None = None
        self._announced_size = (0, 0)
        self._orientation: tuple[int, tuple[bool, bool, bool]] = (0, (False, False, False))
        self._kind: tuple[object, ...] = ()
        self._graph = av.filter.Graph()
        self._last: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def make(self, frame: av.VideoFrame, video: VideoStream) -> av.VideoFrame:
        """
        Return a frame's picture; for the same frame again, the same picture.

        :raises Unusable: the picture would be too large
        """
        if self._last and self._last[0] is frame:
            return self._last[1]
        self._look_at(frame, video)
        # One graph for all clips of the same kind: a graph that is dropped may keep its memory for a long time.
        kind = (*_shape(frame), frame.color_trc, self._aspect(frame, video), self._orientation)
        if kind != self._kind:
            self._kind, self._graph = kind, self._new_graph(frame, video)
        self._graph.vpush(frame)
        self._last = frame, self._graph.vpull()
        return self._last[1]

    def _look_at(self, frame: av.VideoFrame, video: VideoStream) -> None:
        """Read the orientation of the pictures at the start of a film, and when their rotation changes."""
        if self._video is not video:
            self._video, self._announced_size = video, (frame.width, frame.height)
        elif self._orientation[0] == frame.rotation:
            return  # reading side data makes a reference cycle, which delays freeing the frame
        self._orientation = frame.rotation, _orientation(frame)

    def _aspect(self, frame: av.VideoFrame, video: VideoStream) -> Fraction:
        """Return the pixel aspect ratio. After a change of size, the container's no longer applies."""
        is_announced = self._announced_size == (frame.width, frame.height)
        aspect = video.sample_aspect_ratio if is_announced else video.codec_context.sample_aspect_ratio
        return Fraction(aspect.numerator, aspect.denominator) if aspect else Fraction(1)

    def _new_graph(self, frame: av.VideoFrame, video: VideoStream) -> av.filter.Graph:
        transposed, mirrored, flipped = self._orientation[1]
        width, height = round(frame.width * self._aspect(frame, video)), frame.height
        width, height = (height, width) if transposed else (width, height)
        if max(width, height) > MAX_SIDE or not width:
            raise Unusable(
                f"needs pictures of {width} by {height} pixels", "scale it first, with ffmpeg -vf scale=1280:720"
            )
        check_pixels(width, height, self._max_pixels)
        allow_pictures(width * height)
        self.size = self.size or _even(width, height)
        inner = self.size if self._is_stretched else _fitting(width, height, *self.size)
        colours = _MATRIX if frame.colorspace == _RGB else ""
        if frame.color_trc in _HIGH_DYNAMIC_RANGE:
            colours = _STANDARD_RANGE
        turns = [("transpose", _TRANSPOSED[mirrored, flipped])] if transposed else []
        if not transposed:
            turns = [("hflip", "")] * mirrored + [("vflip", "")] * flipped
        filters = [
            *turns,
            ("scale", f"w={inner[0]}:h={inner[1]}:out_range=tv{colours}"),
            ("setsar", "1"),
            ("format", "pix_fmts=yuv420p"),
        ]
        if inner != self.size:
            filters.append(("pad", f"w={self.size[0]}:h={self.size[1]}:x=(ow-iw)/2:y=(oh-ih)/2"))
        return _linked(frame, filters)


def _shape(frame: av.VideoFrame) -> tuple[object, ...]:
    """Return the properties of frames that a graph depends on."""
    shape = (frame.width, frame.height, frame.format.name, frame.time_base)
    return (*shape, int(frame.colorspace), int(frame.color_range))


def _linked(frame: av.VideoFrame, filters: list[tuple[str, str]]) -> av.filter.Graph:
    """Return a graph of filters for frames like this one."""
    graph = av.filter.Graph()
    graph.threads = THREADS
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    nodes = [("buffer", source), *filters, ("buffersink", "")]
    graph.link_nodes(*(graph.add(name, arguments) for name, arguments in nodes)).configure()
    return graph


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return how to turn a frame upright: whether to transpose it, then mirror it left to right, and top to bottom."""
    side_data = cast("Mapping[str, Buffer]", frame.side_data)
    if "DISPLAYMATRIX" not in side_data:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data["DISPLAYMATRIX"]))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _fitting(width: int, height: int, into_width: int, into_height: int) -> tuple[int, int]:
    """Return the size at which a picture keeps its aspect ratio and fits into another size."""
    if abs(width * into_height / (height * into_width) - 1) <= _SAME_ASPECT:
        return into_width, into_height
    factor = min(Fraction(into_width, width), Fraction(into_height, height))
    return _even(round(width * factor), round(height * factor))


def _even(width: int, height: int) -> tuple[int, int]:
    """Return a size that H.264 in 4:2:0 takes; an odd one loses a column or a row."""
    return max(2, width // 2 * 2), max(2, height // 2 * 2)


class VideoEncoder:
    """
    Encodes pictures at a constant rate.

    :param rate: frames per second
    :param picture: one of them; all others have the same format
    """

    def __init__(self, out: OutputContainer, rate: Fraction, picture: av.VideoFrame) -> None:
        self._stream = out.add_stream("libx264", rate=rate, options=_X264_OPTIONS)
        self._stream.width, self._stream.height = picture.width, picture.height
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.color_range, context.colorspace = picture.color_range, picture.colorspace
        context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
        self._time_base = 1 / rate
        self.frames = 0

    def encode(self, picture: av.VideoFrame) -> list[Packet[VideoStream]]:
        """Encode the next picture."""
        picture.pts, picture.time_base, picture.pict_type = self.frames, self._time_base, PictureType.NONE
        self.frames += 1
        return self._stream.encode(picture)

    def finish(self) -> list[Packet[VideoStream]]:
        """Return the remaining packets."""
        return self._stream.encode(None)

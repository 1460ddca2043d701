# SPDX-License-Identifier: Apache-2.0
"""
Reads the frames of a film or of a modified clip, each with its time.

Some frames of real films cannot be decoded. A few in a row are replaced, and counted for the log; more are an error
that names the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from heapq import heappop, heappush
from typing import IO, TYPE_CHECKING

import av
import av.error

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.memory import MAX_PIXELS, allow_pictures, decoder_threads
from airflow_provider_luma.media.opening import (
    Unusable,
    check_container,
    check_size,
    encrypted,
    open_video,
    undecodable,
    video_stream,
)
from airflow_provider_luma.media.signatures import HEAD_LENGTH, no_video_kind
from airflow_provider_luma.media.time_stamps import exact, lacks_pts

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

#: FFmpeg's demuxers for films: MP4, MOV, M4V and 3GP; AVI; MKV and WebM; TS and M2TS; MPEG and VOB; MXF; FLV; WMV; OGV.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,mxf,flv,asf,ogg"

#: The longest run of broken frames, in seconds, that is replaced by the frame before it.
MAX_BRIDGED_SECONDS = 1


@dataclass
class Repairs:
    """
    How many frames had to be repaired or deinterlaced.

    :param bridged: frames that could not be decoded, replaced by the frame before
    :param concealed: damaged frames, shown as FFmpeg repaired them
    :param deinterlaced: interlaced frames
    """

    bridged: int = 0
    concealed: int = 0
    deinterlaced: int = 0

    def warnings(self) -> list[str]:
        """Return lines for the log."""
        lines = {
            "broken frames, replaced by the frame before": self.bridged,
            "damaged frames, kept as FFmpeg repaired them": self.concealed,
            "interlaced frames, deinterlaced": self.deinterlaced,
        }
        return [f"{line}: {count}" for line, count in lines.items() if count]


@contextmanager
def refusing(parameter: str, shown: str) -> Iterator[None]:
    """
    Turn :class:`.Unusable` into an error that names the video.

    :param parameter: the parameter that names the video
    :param shown: its address as messages may show it
    :raises LumaValidationError: the video cannot be used
    """
    try:
        yield
    except Unusable as unusable:
        found, remedy = unusable.args
        name = f"{parameter} ({shown})" if shown else parameter
        raise LumaValidationError(None, f"{name} {found}: {remedy}") from unusable


@contextmanager
def opened(file: IO[bytes], max_pixels: int = MAX_PIXELS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """
    Open a film, and yield it and its video track.

    :param file: can be read at any position
    :param max_pixels: pixels that its pictures may have
    :raises Unusable: it cannot be used
    """
    file.seek(0)
    if kind := no_video_kind(file.read(HEAD_LENGTH)):
        raise Unusable(f"is {kind}", "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4")
    check_container(file)
    with open_video(file, _DEMUXERS) as container:
        if any("enc_key_id" in stream.metadata for stream in container.streams):  # Matroska
            raise encrypted()
        video = video_stream(container)
        check_size(video)
        check_pixels(video.width, video.height, max_pixels)
        allow_pictures(video.width * video.height)
        context = video.codec_context
        context.options = {"max_pixels": str(max_pixels)}  # the size may change midway
        bits_per_pixel = context.format.padded_bits_per_pixel if context.format else 32
        context.thread_count = decoder_threads(video.width * video.height, bits_per_pixel)
        video.thread_type = "AUTO"
        yield container, video


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """
    Check the size of pictures.

    :param max_pixels: pixels that they may have: those of 8K for a film, fewer for a clip of one
    :raises Unusable: they have more
    """
    if width * height > max_pixels:
        limit = "an 8K film" if max_pixels == MAX_PIXELS else "its film, or one in 4K,"
        raise Unusable(
            f"has pictures of {width} by {height} pixels, more than {limit} has",
            "scale it down first, e.g. with ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4",
        )


def decoded(
    container: InputContainer, video: VideoStream, repairs: Repairs
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """
    Yield the frames, each with its time in seconds. Broken ones are left out.

    :param repairs: counts them
    :raises Unusable: no frame could be decoded, or too many in a row are broken
    """
    time_base = exact(video.time_base or Fraction(1))
    expected = _Expected(video, lacks_pts(container), repairs)
    try:
        for packet in container.demux(video):
            expected.sent(packet)
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                expected.failed(error)
                continue
            for frame in frames:
                if (at := expected.returned(frame)) is not None:
                    yield at * time_base, frame
    except (av.error.FFmpegError, MemoryError) as error:
        raise undecodable(error) from error
    expected.ended()


class _Expected:
    """
    Tracks the frames that a decoder has received but not returned, to find those that it could not decode.

    A decoder with several threads does not say which frame an error is about.
    """

    def __init__(self, video: VideoStream, by_dts: bool, repairs: Repairs) -> None:
        self._video, self._by_dts, self._repairs = video, by_dts, repairs
        #: Presentation and decoding time stamps, as a heap.
        self._sent: list[tuple[int, int]] = []
        self._error: Exception | None = None
        self._shown: int | None = None
        self._gap: int | None = None
        self._needs_key_frame = False
        self._end = 0

    def sent(self, packet: Packet[VideoStream]) -> None:
        """Record a packet that the decoder is given."""
        at = packet.dts if self._by_dts else packet.pts
        if packet.size and at is not None and not packet.is_discard:
            heappush(self._sent, (at, at if packet.dts is None else packet.dts))
            self._end = max(self._end, at + (packet.duration or 0))

    def failed(self, error: av.error.FFmpegError) -> None:
        """Record an error of the decoder."""
        if isinstance(error, MemoryError):
            raise error
        self._error = error
        if self._by_dts and self._sent:
            self._lose([heappop(self._sent)])

    def returned(self, frame: av.VideoFrame) -> int | None:
        """Record a decoded frame. Return its time stamp, or None if it must not be shown."""
        at = frame.pts
        if self._by_dts:
            at = self._sent[0][0] if self._sent else None
        if at is None:
            return None
        passed = []
        while self._sent and self._sent[0][0] <= at:
            passed.append(heappop(self._sent))
        if self._error:
            self._lose([sent for sent in passed if sent[0] < at])
        if self._needs_key_frame and not frame.key_frame:
            # It was predicted from a frame that is missing.
            self._lose([(at, at)])
            return None
        self._repairs.concealed += frame.is_corrupt
        self._needs_key_frame = False
        self._close_gap(at)
        self._shown = at
        return at

    def ended(self) -> None:
        """Record the end of the film."""
        if self._shown is None:
            raise undecodable(self._error or "it holds no frame")
        # PyAV hides an error in the last few frames, and drops the frames after it.
        if self._error or not self._by_dts:
            self._lose([sent for sent in self._sent if sent[0] > self._shown])
        self._close_gap(self._end)

    def _lose(self, frames: list[tuple[int, int]]) -> None:
        for at, dts in frames:
            self._repairs.bridged += 1
            self._gap = at if self._gap is None else self._gap
            self._needs_key_frame |= dts in self._key_frames

    @cached_property
    def _key_frames(self) -> frozenset[int]:
        """Decoding time stamps of key frames, from the index: a broken packet has lost its key flag."""
        return frozenset(entry.timestamp for entry in self._video.index_entries if entry.is_keyframe)

    def _close_gap(self, at: int) -> None:
        if self._gap is not None:
            time_base = exact(self._video.time_base or Fraction(1))
            seconds = (at - self._gap) * time_base
            if seconds > MAX_BRIDGED_SECONDS:
                raise Unusable(
                    f"has no picture that can be decoded for {float(seconds):.1f} seconds, from second "
                    f"{float(self._gap * time_base):.1f} on ({self._error})",
                    "copy it again, or repair it, e.g. with ffmpeg -i INPUT OUTPUT.mp4",
                )
        self._gap = None

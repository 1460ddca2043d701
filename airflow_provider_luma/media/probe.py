# SPDX-License-Identifier: Apache-2.0
"""Checks an input video's length, beginning and end with FFmpeg, in the child process that :mod:`.input_check` runs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import av
import av.error

from airflow_provider_luma.media.opening import (
    Unusable,
    check_container,
    check_size,
    cut_off,
    has_packets,
    open_video,
    undecodable,
    video_stream,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

#: Seconds; a position beyond the end of any video.
_BEHIND_END = 86_400


def probe(file: Any, demuxers: str, max_seconds: float, tolerance: float) -> float:
    """
    Check a video's length, its first frame, and that its end is not missing; return its length in seconds.

    Only the index and the packets at both ends are read: about 5 MB of a file of 100 MB.

    :param demuxers: FFmpeg's demuxers for the containers that are accepted
    :param max_seconds: the longest that a video may be
    :param tolerance: seconds by which it may be longer
    :returns: its length in seconds; 0 if that is unknown
    :raises Unusable: it is refused
    """
    check_container(file)
    with open_video(file, demuxers) as container:
        try:
            return _probe(container, max_seconds, tolerance)
        except (av.error.FFmpegError, MemoryError) as error:
            raise undecodable(error) from error


def _probe(container: InputContainer, max_seconds: float, tolerance: float) -> float:
    video = video_stream(container)
    check_size(video)
    with_sound = (container.duration or 0) / av.time_base
    _check_length(with_sound, max_seconds, tolerance)
    first, last = _first_packet(container, video), _last_packet(container, video)
    pictures = _seconds_between(first, last)
    _check_length(pictures, max_seconds, tolerance)
    for sound in container.streams.audio:
        if sound.duration and has_packets(sound):
            _last_packet(container, sound)
    return pictures or with_sound


def _check_length(seconds: float, max_seconds: float, tolerance: float) -> None:
    if seconds > max_seconds + tolerance:
        raise Unusable(
            f"lasts {seconds:.1f} s",
            f"cut it to at most {max_seconds:g} s first, e.g. with ffmpeg -i INPUT -t {max_seconds:g} OUTPUT.mp4",
        )


def _first_packet(container: InputContainer, video: VideoStream) -> Packet[VideoStream]:
    """Decode the first frame, and return the first packet that is shown: an edit list can hide earlier ones."""
    first = None
    for packet in container.demux(video):
        if first is None and not packet.is_discard:
            first = packet
            if first.is_corrupt or not first.size:
                raise cut_off() if has_packets(video) else undecodable("it holds no frame")
        if first is not None and packet.decode():
            return first
    raise undecodable("it holds no frame")


def _last_packet(container: InputContainer, stream: Stream) -> Packet[Stream]:
    # If a container has no timestamps to seek by, all of it is read.
    with suppress(OSError, ValueError):
        container.seek(int(_BEHIND_END / (stream.time_base or 1)), stream=stream, any_frame=True)
    last = None
    for packet in container.demux(stream):
        if packet.size:  # an empty one stands for the end
            last = packet
    if last is None or last.is_corrupt:
        raise cut_off()
    return last


def _seconds_between(first: Packet[VideoStream], last: Packet[Stream]) -> float:
    """Return the time from one packet's beginning to the other's end; 0 if it is unknown, or the last is hidden."""
    if first.dts is None or last.dts is None or last.is_discard:
        return 0.0
    return float((last.dts + (last.duration or 0) - first.dts) * first.time_base)

# SPDX-License-Identifier: Apache-2.0
"""
The child process that looks into an input video with FFmpeg for its parent, :mod:`.input_check`.

A file may be made to crash FFmpeg, or to let it allocate or compute without end; here that ends no task. The process
needs nothing but PyAV and modules beside this one, and says first that it has them. It asks for the file's bytes with
lines of an offset and a length on its standard output, and gets each answer as a length and so many bytes on its
standard input. Its last line is JSON: ``found`` and ``remedy`` if the video cannot be taken, and otherwise neither.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.media.child_process import RemoteFile
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

#: The first line.
READY = b"ready\n"

#: Bytes of address space, and seconds of computing.
_MEMORY = 1 << 30
_CPU_SECONDS = 10

#: Seconds from the beginning that lie behind the end of any video.
_BEHIND_END = 86_400


def examine(file: Any, demuxers: str, max_seconds: float, tolerance: float) -> None:
    """
    Examine a video: its length, its first frame, and whether its end is there.

    Only the index and the packets at both ends are read: some 5 MB of a file of 100 MB.

    :param demuxers: FFmpeg's for the containers that are taken
    :param max_seconds: seconds that a video may last
    :param tolerance: seconds more that are let pass
    :raises Unusable: it cannot be taken
    """
    import av
    import av.error

    check_container(file)
    with open_video(file, demuxers) as container:
        try:
            _examine(container, max_seconds, tolerance)
        except (av.error.FFmpegError, MemoryError) as error:
            raise undecodable(error) from error


def _examine(container: InputContainer, max_seconds: float, tolerance: float) -> None:
    import av

    video = video_stream(container)
    check_size(video)
    _check_length((container.duration or 0) / av.time_base, max_seconds, tolerance)
    first, last = _first_packet(container, video), _last_packet(container, video)
    _check_length(_seconds_between(first, last), max_seconds, tolerance)
    for sound in container.streams.audio:
        if sound.duration and has_packets(sound):
            _last_packet(container, sound)


def _check_length(seconds: float, max_seconds: float, tolerance: float) -> None:
    if seconds > max_seconds + tolerance:
        raise Unusable(
            f"lasts {seconds:.1f} s",
            f"cut it to at most {max_seconds:g} s first, e.g. with ffmpeg -i INPUT -t {max_seconds:g} OUTPUT.mp4",
        )


def _first_packet(container: InputContainer, video: VideoStream) -> Packet[VideoStream]:
    """Decode the first frame, and return the first packet that is shown: an edit list can hide some before it."""
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
    # A container without timestamps to seek is read to its end.
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
    """Return the time from one packet's beginning to the other's end; 0 if they do not tell, or are not shown."""
    if first.dts is None or last.dts is None or last.is_discard:
        return 0.0
    return float((last.dts + (last.duration or 0) - first.dts) * first.time_base)


def _ask(offset: int, length: int) -> bytes:
    sys.stdout.buffer.write(b"%d %d\n" % (offset, length))
    sys.stdout.buffer.flush()
    return sys.stdin.buffer.read(min(int(sys.stdin.buffer.readline()), length))


def _limit_resources() -> None:
    # Not every system can limit all of these.
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main(size: str, demuxers: str, max_seconds: str, tolerance: str) -> None:
    """Examine the video of the parent process."""
    _limit_resources()
    # A PyAV that is missing, or has changed, fails here, and is not held against a file. All else is due to the file.
    with suppress(Unusable):
        open_video(io.BytesIO(), demuxers)

    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    verdict = {}
    try:
        file = RemoteFile(int(size), _ask)
        examine(file, demuxers, float(max_seconds), float(tolerance))
    except Unusable as unusable:
        verdict = dict(zip(("found", "remedy"), unusable.args, strict=True))
    except Exception as error:
        # PyAV has errors of its own for what FFmpeg only half understands.
        verdict = dict(zip(("found", "remedy"), undecodable(type(error).__name__).args, strict=True))
    sys.stdout.buffer.write(json.dumps(verdict).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""
A process that examines one video with FFmpeg, and reads it through its parent.

A file may be made to crash FFmpeg, or to let it allocate or compute without end; here that ends no task. The process
needs nothing but PyAV and the modules beside it, and says first that it has them. It asks for the file's bytes with
lines of an offset and a length on its standard output, and gets each answer as a length and so many bytes on its
standard input. Its last line is JSON: ``found`` and ``remedy`` if the video cannot be taken, and otherwise neither.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.media.containers import is_cut_off, is_encrypted

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

#: Pixels of a side. FFmpeg holds whole pictures in memory, several of them.
MAX_SIDE = 8192

#: FFmpeg's demuxers for MP4, MOV and AVI, which the service takes.
CLIP_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi"

_OPTIONS = {
    # Playlists, and references within a file, make FFmpeg open whatever file or address they name. So each use has a
    # list of demuxers that read nothing but the file itself.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "max_pixels": str(MAX_SIDE**2),
    "threads": "1",
}
_BLOCK = 1 << 18

#: Seconds from the beginning that lie behind the end of any video.
_BEHIND_END = 86_400

TOO_MUCH_MEMORY_REMEDY = "convert it to 4:2:0 first, e.g. with ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4"

_COMPLETE = "export or copy it again, all of it"


class Unusable(Exception):
    """The video cannot be taken; the arguments are what was found, and the remedy."""


class RemoteFile(io.RawIOBase):
    """
    The file, read through the parent process.

    :param ask: asks the parent for so many bytes, at most, from an offset on
    """

    def __init__(self, size: int, ask: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._ask = ask
        self._position = 0

    def read(self, length: int = -1) -> bytes:
        """Read at most so many bytes."""
        content = self._ask(self._position, length)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError("a position before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Tell that it can be read at any position."""
        return True

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True


def examine(file: Any, max_seconds: float, tolerance: float) -> None:
    """
    Examine a video: its length, its first frame, and whether its end is there.

    Only the index and the packets at both ends are read: some 5 MB of a file of 100 MB.

    :param max_seconds: seconds that a video may last
    :param tolerance: seconds more that are let pass
    :raises Unusable: it cannot be taken
    """
    import av
    import av.error

    check_container(file)
    with open_video(file) as container:
        try:
            _examine(container, max_seconds, tolerance)
        except (av.error.FFmpegError, MemoryError) as error:
            raise undecodable(error) from error


def check_container(file: Any) -> None:
    """
    Check what the structure of a file shows.

    :raises Unusable: its end is missing, or it is encrypted
    """
    if is_cut_off(file):
        raise cut_off()
    if is_encrypted(file):
        raise encrypted()
    file.seek(0)


def open_video(file: Any, formats: str = CLIP_FORMATS) -> InputContainer:
    """
    Open a video, of the kinds and sizes that are taken.

    :param formats: FFmpeg's demuxers that may read it
    :raises Unusable: it is none
    """
    import av
    import av.error

    try:
        options = {**_OPTIONS, "format_whitelist": formats}
        container: InputContainer = av.open(file, options=options, buffer_size=_BLOCK, **_any_metadata())
    except MemoryError as error:
        raise undecodable(error) from error
    except av.error.FFmpegError as error:
        raise Unusable(f"is cut off, or no video: FFmpeg finds no index ({_reason(error)})", _COMPLETE) from error
    return container


def _any_metadata() -> dict[str, Any]:
    """Return the option that takes metadata in whatever encoding; from 19 on PyAV does so by itself and has none."""
    import av

    return {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


def _examine(container: InputContainer, max_seconds: float, tolerance: float) -> None:
    import av

    video = video_stream(container)
    check_size(video)
    _check_length((container.duration or 0) / av.time_base, max_seconds, tolerance)
    first, last = _first_packet(container, video), _last_packet(container, video)
    _check_length(_seconds_between(first, last), max_seconds, tolerance)
    for sound in container.streams.audio:
        if sound.duration and _has_packets(sound):
            _last_packet(container, sound)


def video_stream(container: InputContainer) -> VideoStream:
    """
    Return the video, and no cover picture.

    :raises Unusable: there is none
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
    if streams:
        return next(filter(_has_packets, streams), streams[0])
    found = "holds sound and no video" if container.streams.audio else "holds no video"
    raise Unusable(found, "give a file that holds one")


def check_size(video: VideoStream) -> None:
    """
    Check the size of a video's pictures.

    :raises Unusable: they are too large, or of an unknown kind
    """
    if video.codec_context is None:
        raise undecodable("FFmpeg knows no decoder for it")
    # FFmpeg puts 0x0 in place of a size beyond max_pixels.
    if not 0 < max(video.width, video.height) <= MAX_SIDE:
        raise Unusable(
            f"has more than {MAX_SIDE} pixels a side, or tells no size",
            "scale it down first, e.g. with ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4",
        )


def _check_length(seconds: float, max_seconds: float, tolerance: float) -> None:
    if seconds > max_seconds + tolerance:
        raise Unusable(
            f"lasts {seconds:.1f} seconds",
            f"cut it to at most {max_seconds:g} seconds first, e.g. with ffmpeg -i INPUT -t {max_seconds:g} OUTPUT.mp4",
        )


def _first_packet(container: InputContainer, video: VideoStream) -> Packet[VideoStream]:
    """Decode the first frame, and return the first packet that is shown: an edit list can hide some before it."""
    first = None
    for packet in container.demux(video):
        if first is None and not packet.is_discard:
            first = packet
            if first.is_corrupt or not first.size:
                raise cut_off() if _has_packets(video) else undecodable("it holds no frame")
        if first is not None and packet.decode():
            return first
    raise undecodable("it holds no frame")


def _has_packets(stream: Stream) -> bool:
    """Tell whether there are packets of a track by its index; cameras write a sound track even without a microphone."""
    return bool(stream.frames or len(stream.index_entries))


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


def cut_off() -> Unusable:
    """Return the error for a file that is not all there."""
    return Unusable("is cut off: the file ends too soon", _COMPLETE)


def encrypted() -> Unusable:
    """Return the error for a file whose tracks are encrypted."""
    return Unusable("is encrypted (DRM)", "give a copy without copy protection")


def undecodable(reason: object) -> Unusable:
    """Return the error for a file that FFmpeg makes nothing of."""
    if isinstance(reason, MemoryError):
        return Unusable("takes more memory than films of its size may", TOO_MUCH_MEMORY_REMEDY)
    return Unusable(
        f"cannot be decoded ({_reason(reason)})",
        "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4",
    )


def _reason(error: object) -> object:
    return getattr(error, "strerror", None) or error


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


def main(size: str, max_seconds: str, tolerance: str) -> None:
    """Examine the video of the parent process."""
    _limit_resources()
    # A PyAV that is missing, or has changed, fails here, and is not held against a file. All else is due to the file.
    with suppress(Unusable):
        open_video(io.BytesIO())

    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    verdict = {}
    try:
        file = RemoteFile(int(size), _ask)
        examine(file, float(max_seconds), float(tolerance))
    except Unusable as unusable:
        verdict = dict(zip(("found", "remedy"), unusable.args, strict=True))
    except Exception as error:
        # PyAV has errors of its own for what FFmpeg only half understands.
        verdict = dict(zip(("found", "remedy"), undecodable(type(error).__name__).args, strict=True))
    sys.stdout.buffer.write(json.dumps(verdict).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

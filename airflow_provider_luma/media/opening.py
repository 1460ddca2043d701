# SPDX-License-Identifier: Apache-2.0
"""
Opens a video with FFmpeg so that FFmpeg reads this one file and nothing else, and finds its video track.

Whatever is wrong with a file is raised as :class:`Unusable`, with a remedy. Both the check of input videos and the
reader of films start here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_luma.media.file_structure import is_cut_off, is_encrypted

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

#: Pixels per side. FFmpeg holds several whole pictures in memory.
MAX_SIDE = 8192

_OPTIONS = {
    # Playlists, and references within a file, make FFmpeg open any file or address that they name. So each use allows
    # only demuxers that read nothing but the file itself.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "max_pixels": str(MAX_SIDE**2),
    "threads": "1",
}
_BLOCK = 1 << 18

TOO_MUCH_MEMORY_REMEDY = "convert it to 4:2:0 first, e.g. with ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4"

_COMPLETE = "export or copy all of it again"


class Unusable(Exception):
    """The video cannot be used; the arguments are what was found, and the remedy."""


def check_container(file: Any) -> None:
    """
    Check the structure of a file.

    :raises Unusable: its end is missing, or it is encrypted
    """
    if is_cut_off(file):
        raise cut_off()
    if is_encrypted(file):
        raise encrypted()
    file.seek(0)


def open_video(file: Any, demuxers: str) -> InputContainer:
    """
    Open a video.

    :param demuxers: FFmpeg's demuxers that may read it, separated by commas
    :raises Unusable: none of them can
    """
    import av
    import av.error

    try:
        options = {**_OPTIONS, "format_whitelist": demuxers}
        container: InputContainer = av.open(file, options=options, buffer_size=_BLOCK, **_any_metadata())
    except MemoryError as error:
        raise undecodable(error) from error
    except av.error.FFmpegError as error:
        raise Unusable(f"is cut off, or not a video: FFmpeg finds no index ({_reason(error)})", _COMPLETE) from error
    return container


def _any_metadata() -> dict[str, Any]:
    """Return the option to accept metadata in any encoding; PyAV 19 does so by default, without an option."""
    import av

    return {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


def video_stream(container: InputContainer) -> VideoStream:
    """
    Return the video track, not a cover picture.

    :raises Unusable: there is none
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
    if streams:
        return next(filter(has_packets, streams), streams[0])
    found = "contains sound but no video" if container.streams.audio else "contains no video"
    raise Unusable(found, "give a file that contains one")


def check_size(video: VideoStream) -> None:
    """
    Check the size of a video's pictures.

    :raises Unusable: they are too large, or of an unknown kind
    """
    if video.codec_context is None:
        raise undecodable("FFmpeg has no decoder for it")
    # FFmpeg puts 0x0 in place of a size beyond max_pixels.
    if not 0 < max(video.width, video.height) <= MAX_SIDE:
        raise Unusable(
            f"has more than {MAX_SIDE} pixels per side, or does not give its size",
            "scale it down first, e.g. with ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4",
        )


def has_packets(stream: Stream) -> bool:
    """Return whether a track has packets, by its index: cameras write a sound track even without a microphone."""
    return bool(stream.frames or len(stream.index_entries))


def cut_off() -> Unusable:
    """Return the error for a file that lacks its end."""
    return Unusable("is cut off: the file ends too soon", _COMPLETE)


def encrypted() -> Unusable:
    """Return the error for a file whose tracks are encrypted."""
    return Unusable("is encrypted (DRM)", "give a copy without copy protection")


def undecodable(reason: object) -> Unusable:
    """Return the error for a file that FFmpeg cannot decode."""
    if isinstance(reason, MemoryError):
        return Unusable("needs more memory than a film of its size is allowed", TOO_MUCH_MEMORY_REMEDY)
    return Unusable(
        f"cannot be decoded ({_reason(reason)})",
        "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4",
    )


def _reason(error: object) -> object:
    return getattr(error, "strerror", None) or error

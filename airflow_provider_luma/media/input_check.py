# SPDX-License-Identifier: Apache-2.0
"""
Checks an input video before it costs anything: its size, container and length, and that it can be decoded.

What the service takes is passed in, as :class:`.Limits`. With PyAV (the extra ``media``), a child process opens the
file: :mod:`.probe`. Without it, only the size and the first bytes are checked.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.child_process import ChildFailed, ChildProcess
from airflow_provider_luma.media.opening import Unusable, undecodable
from airflow_provider_luma.media.signatures import HEAD_LENGTH, container_of, demuxers_of, no_video_kind

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.services.base import Limits

#: Seconds. A clip cut to the limit is often a frame or an audio packet longer. If the service refuses it, that costs
#: nothing, so borderline clips pass.
SECONDS_TOLERANCE = 0.5

#: Maximum bytes of a file to read, and seconds that FFmpeg may take for them, not counting the time spent in the
#: storage. FFmpeg gets only ten seconds of CPU time; the rest allows for a busy machine.
MAX_BYTES_READ = 64 << 20
MAX_SECONDS = 60.0

#: Seconds that PyAV may take to start.
START_SECONDS = 60.0

_CONVERT = "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4"

#: The beginning of a file that is certainly a video, whatever its server calls it.
_SURE_VIDEO = re.compile(rb"....ftyp|RIFF....AVI", re.DOTALL)

#: Content types that videos never have. Some servers send videos as text/plain or application/octet-stream.
_OTHER_CONTENT_TYPE = re.compile(r"(audio|image|font)/|text/(html|css|xml)|application/(json|xml|pdf|problem)", re.I)

_absence_logged = False


def check_video_head(
    head: bytes, limits: Limits, *, content_type: str | None, size: int | None, parameter: str, shown: str
) -> None:
    """
    Check a video at a public address by its headers and first bytes. Borderline cases pass.

    :param head: the first bytes, about a thousand
    :param limits: what the service takes
    :param content_type: the header, or None
    :param size: bytes, or None if unknown
    :param parameter: the parameter that holds the address
    :param shown: the address as messages may show it
    :raises LumaValidationError: it is certainly not a video that the service takes
    """
    refusals = _Refusals(limits, limits.bytes_by_url, parameter, shown)
    if size is not None:
        refusals.check_size(size)
    if content_type and _OTHER_CONTENT_TYPE.match(content_type.strip()) and not _SURE_VIDEO.match(head):
        raise refusals.make(f"is of content type {content_type!r}", "give the address of the video itself")
    refusals.check_kind(head)


def check_video_file(
    file: IO[bytes], limits: Limits, *, parameter: str, shown: str, size: int, log: Logger
) -> float | None:
    """
    Check a video: its size, container and length, that its first frame decodes, and that its end is not missing.

    Errors of the storage pass unchanged.

    :param file: can be read at any position
    :param limits: what the service takes
    :param parameter: the parameter that names the file
    :param shown: its address as messages may show it
    :param size: bytes
    :param log: gets a line, once per process, if PyAV does not work, so only the size and the first bytes are checked
    :returns: its length in seconds, if known
    :raises LumaValidationError: the service would refuse it
    """
    refusals = _Refusals(limits, limits.bytes_as_file, parameter, shown)
    refusals.check_size(size)
    file.seek(0)
    refusals.check_kind(file.read(HEAD_LENGTH))
    try:
        seconds = _look_into(file, limits) if _has_pyav() else None
    except Unusable as unusable:
        raise refusals.make(*unusable.args) from None
    if seconds is None:
        _log_absence(log)
    return seconds or None


@dataclass(frozen=True)
class _Refusals:
    """
    Checks the size and the first bytes, and makes the errors of all checks.

    :param max_bytes: bytes that a video may have if it is sent in the same way as this one
    """

    limits: Limits
    max_bytes: int
    parameter: str
    shown: str

    def make(self, found: str, remedy: str) -> LumaValidationError:
        """Return an error that says what the service takes."""
        most = f"at most {self.limits.seconds:g} s and {self.max_bytes // 1024**2} MB"
        return LumaValidationError(
            None,
            f"{self.parameter} ({self.shown}) {found}; the service takes {_listed(self.limits, 'and')} videos of "
            f"{most}: {remedy}",
        )

    def check_size(self, size: int) -> None:
        """Check the number of bytes."""
        if size <= 0:
            raise self.make("is empty", "check what wrote it")
        if size > self.max_bytes:
            remedy = "compress it first, e.g. with ffmpeg -i INPUT -crf 23 OUTPUT.mp4"
            raise self.make(f"has {size / 1024**2:.1f} MB", remedy)

    def check_kind(self, head: bytes) -> None:
        """Check the first bytes."""
        if kind := no_video_kind(head):
            raise self.make(f"is {kind}", _CONVERT)
        container = container_of(head)
        if container and container.names.isdisjoint(self.limits.containers):
            raise self.make(f"is {container.shown}", _CONVERT)
        if len(head) >= 12 and container is None:
            raise self.make(f"is not an {_listed(self.limits, 'or')} (unknown signature)", _CONVERT)


def _listed(limits: Limits, word: str) -> str:
    *others, last = (name.upper() for name in limits.containers)
    return f"{', '.join(others)} {word} {last}" if others else last


def _has_pyav() -> bool:
    try:
        return find_spec("av") is not None
    except (ImportError, ValueError):
        return False


def _log_absence(log: Logger) -> None:
    global _absence_logged
    if not _absence_logged:
        _absence_logged = True
        log.info(
            "Checking only the size and the first bytes of input videos, since PyAV is not installed or does not work "
            "here; to check more, install the extra media of airflow-provider-luma"
        )


def _look_into(file: IO[bytes], limits: Limits) -> float | None:
    """
    Return the length of a video in seconds, 0 if that is unknown; None if PyAV does not work.

    :raises Unusable: something is wrong with it
    """
    demuxers = demuxers_of(limits.containers)
    arguments = {"demuxers": demuxers, "max_seconds": limits.seconds, "tolerance": SECONDS_TOLERANCE}
    child = ChildProcess([lambda: nullcontext(file)])
    has_begun = False
    try:
        with child.running("probe", arguments):
            child.seconds_left = START_SECONDS
            child.serve("ready")
            has_begun = True
            child.seconds_left, child.bytes_left = MAX_SECONDS, MAX_BYTES_READ
            seconds = child.serve("done")
    except ChildFailed as failure:
        if has_begun:
            raise _verdict(failure) from failure
        return None
    # The video may have made the process say anything.
    return float(seconds) if isinstance(seconds, (int, float)) and 0 < seconds <= limits.seconds + 1 else 0.0


def _verdict(failure: ChildFailed) -> Unusable:
    match failure.args:
        case "unusable", found, remedy:
            return Unusable(found, remedy)
        case "failed", name, *_:  # PyAV raises its own errors for files that FFmpeg reads in part
            return undecodable(name)
        case ("greedy",):
            return Unusable(f"has no index in the first {MAX_BYTES_READ >> 20} MB", _CONVERT)
        case _:
            return Unusable("makes FFmpeg fail, or run without end", _CONVERT)

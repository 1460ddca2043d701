# SPDX-License-Identifier: Apache-2.0
"""
Checks an input video before it costs anything: its size, its kind, its length, and that it can be decoded.

PyAV, in the extra ``media``, sees into a file; without it, the size and the first bytes are all there is to tell.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING

from airflow_provider_luma.core.validation import MAX_VIDEO_BYTES, MAX_VIDEO_SECONDS, VIDEO_SECONDS_TOLERANCE
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.inspector import READY

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

#: Bytes of a file that are read at most, and seconds that FFmpeg may take for them. It computes for ten of these at
#: most; a busy machine lets it wait for the others. What the storage takes is not counted.
MAX_BYTES_READ = 64 << 20
MAX_SECONDS = 60.0

#: Seconds that it may take PyAV to start.
START_SECONDS = 60.0

#: Bytes that tell the kind of a file.
HEAD_LENGTH = 1024

_MAX_LINE = 4096
_INSPECTOR = Path(__file__).with_name("inspector.py")
_PACKAGE_FOLDER = str(Path(__file__).parents[2])  # an editable install may not have it in sys.path

_CONVERT = "convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4"

#: What files begin with that are no videos.
_NO_VIDEOS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind)
    for pattern, kind in (
        (rb"RIFF....WEBP|\x89PNG|\xff\xd8\xff|GIF8|....ftyp(avi[fo]|avci|hei[cxms]|jpeg|mif[12]|miaf)", "a picture"),
        (rb"....ftyp(avis|avcs|hev[cxms]|jpgs|msf1)", "an animated picture (AVIF or HEIF)"),
        (rb"RIFF....WAVE|....ftypM4[AB] |ID3|\xff[\xf2-\xfb]|fLaC", "sound without a video"),
        (rb"%PDF|PK\x03\x04|\x1f\x8b", "a document or an archive"),
        (rb"\s*<(!doctype|html)", "an HTML page"),
        (rb"[\t\n\f\r -\xff]+\Z", "a text"),
    )
)

#: What files begin with that can hold a video, but not one that the service takes.
_OTHER_VIDEOS = (
    (re.compile(rb"\x1aE\xdf\xa3"), "a Matroska or WebM file"),
    (re.compile(rb"OggS"), "an Ogg file"),
)

#: An MP4 or MOV begins with the length of a box, which fits into 29 bits here, and its type; an AVI is a RIFF file.
_VIDEO = re.compile(rb"RIFF....AVI|[\x00-\x1f]...[ -~\xa9][ -~]{3}", re.DOTALL)

#: What a video surely begins with, whatever its server calls it.
_SURE_VIDEO = re.compile(rb"....ftyp|RIFF....AVI", re.DOTALL)

#: Content types of no video. Others are said of videos, too: text/plain, application/octet-stream.
_OTHER_CONTENT_TYPE = re.compile(r"(audio|image|font)/|text/(html|css|xml)|application/(json|xml|pdf|problem)", re.I)

_absence_logged = False


def check_video_head(head: bytes, *, content_type: str | None, size: int | None, parameter: str, shown: str) -> None:
    """
    Check what a public address tells of a video; what is in doubt passes.

    :param head: the first bytes, about a thousand
    :param content_type: the header, or None
    :param size: bytes, or None if that is not known
    :param parameter: the parameter that holds the address
    :param shown: the address as messages may show it
    :raises LumaValidationError: it is surely no video that the service takes
    """
    if size is not None:
        _check_size(size, parameter, shown)
    if content_type and _OTHER_CONTENT_TYPE.match(content_type.strip()) and not _SURE_VIDEO.match(head):
        raise _refusal(parameter, shown, f"is of content type {content_type!r}", "give the address of the video itself")
    _check_kind(head, parameter, shown)


def check_video_file(file: IO[bytes], *, parameter: str, shown: str, size: int, log: Logger) -> None:
    """
    Check a video: its size, its kind, its length, and that its first frame decodes and its end is there.

    What the storage raises passes unchanged.

    :param file: can be read at any position
    :param parameter: the parameter that names the file
    :param shown: its address as messages may show it
    :param size: bytes
    :param log: told once in a process if there is no PyAV that works, and kind and size are all that is checked
    :raises LumaValidationError: the service would refuse it
    """
    _check_size(size, parameter, shown)
    file.seek(0)
    _check_kind(file.read(HEAD_LENGTH), parameter, shown)
    verdict = _inspect(file, size) if _has_pyav() else None
    if verdict is None:
        _log_absence(log)
    elif verdict:
        raise _refusal(parameter, shown, verdict["found"], verdict["remedy"])


def no_video_kind(head: bytes) -> str | None:
    """Return what a file is by its first bytes, if it is certainly no video."""
    return _kind(head, _NO_VIDEOS)


def _kind(head: bytes, signatures: Iterable[tuple[re.Pattern[bytes], str]]) -> str | None:
    return next((kind for signature, kind in signatures if signature.match(head)), None)


def _check_size(size: int, parameter: str, shown: str) -> None:
    if size <= 0:
        raise _refusal(parameter, shown, "is empty", "check what wrote it")
    if size > MAX_VIDEO_BYTES:
        found = f"has {size / 1024**2:.1f} MB"
        raise _refusal(parameter, shown, found, "compress it first, e.g. with ffmpeg -i INPUT -crf 23 OUTPUT.mp4")


def _check_kind(head: bytes, parameter: str, shown: str) -> None:
    if kind := _kind(head, (*_OTHER_VIDEOS, *_NO_VIDEOS)):
        raise _refusal(parameter, shown, f"is {kind}", _CONVERT)
    if len(head) >= 12 and not _VIDEO.match(head):
        raise _refusal(parameter, shown, "is none of them by its first bytes", _CONVERT)


def _refusal(parameter: str, shown: str, found: str, remedy: str) -> LumaValidationError:
    limits = f"{MAX_VIDEO_SECONDS:g} seconds and {MAX_VIDEO_BYTES // 1024**2} MB"
    return LumaValidationError(
        None, f"{parameter} ({shown}) {found}; Luma takes MP4, MOV and AVI videos of at most {limits}: {remedy}"
    )


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
            "Of input videos only the size and the first bytes are checked, since PyAV is not installed, or does "
            "not work here; to check more, install the extra media of airflow-provider-luma"
        )


def _inspect(file: IO[bytes], size: int) -> dict[str, str] | None:
    """Return what is wrong with a video, ``found`` and ``remedy``; empty if nothing is, None if PyAV does not work."""
    limits = (size, MAX_VIDEO_SECONDS, VIDEO_SECONDS_TOLERANCE)
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-S", "-P", str(_INSPECTOR), *map(str, limits)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=environment(),
    ) as inspector:
        try:
            return _serve(file, size, inspector) if _next_line(inspector, START_SECONDS) == READY else None
        finally:
            inspector.kill()


def environment() -> dict[str, str]:
    """Return what a process needs to find PyAV. It gets no secret: what it reads may have been made to harm it."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), _PACKAGE_FOLDER])}


def _serve(file: IO[bytes], size: int, inspector: subprocess.Popen[bytes]) -> dict[str, str]:
    """Give the inspector what it asks for, within limits, and return its verdict."""
    bytes_left, seconds_left = MAX_BYTES_READ, MAX_SECONDS
    while True:
        asked_at = time.monotonic()
        line = _next_line(inspector, seconds_left)
        seconds_left -= time.monotonic() - asked_at
        try:
            if line.startswith(b"{"):
                return {str(key): str(value) for key, value in json.loads(line).items()}
            offset, length = map(int, line.split())
        except ValueError:
            return _verdict("makes FFmpeg fail, or run without end")
        length = max(0, min(length, size - offset))
        bytes_left -= length
        if bytes_left < 0 or offset < 0:
            return _verdict(f"tells nothing of itself within {MAX_BYTES_READ >> 20} MB")
        content = b""
        if length:
            file.seek(offset)
            content = file.read(length)[:length]
        _answer(inspector, content)


def _verdict(found: str) -> dict[str, str]:
    return {"found": found, "remedy": _CONVERT}


def _next_line(inspector: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the next line; an empty one if the inspector ends or takes too long."""
    assert inspector.stdout
    ready = wait([inspector.stdout.fileno()], max(0.0, seconds))
    return inspector.stdout.readline(_MAX_LINE) if ready else b""


def _answer(inspector: subprocess.Popen[bytes], content: bytes) -> None:
    assert inspector.stdin
    rest = b"%d\n%b" % (len(content), content)
    try:
        while rest:
            rest = rest[inspector.stdin.write(rest) :]
    except BrokenPipeError:
        return  # it has ended, which the next line tells

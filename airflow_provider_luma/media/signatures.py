# SPDX-License-Identifier: Apache-2.0
"""
Recognises a file by its first bytes: a container for videos, or something else.

A service names the containers that it takes (:attr:`.Limits.containers`). This module knows how each begins, and which
of FFmpeg's demuxers reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

#: Bytes needed to recognise a file.
HEAD_LENGTH = 1024

#: How files that are not videos begin.
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


class Container(NamedTuple):
    """
    A container for videos.

    :param names: what services call it, in lower case
    :param shown: what messages call it
    :param demuxers: FFmpeg's demuxers for it
    """

    names: frozenset[str]
    shown: str
    demuxers: str
    signature: re.Pattern[bytes]


#: Containers that a service accepts, and others, so that errors can name them.
#:
#: An MP4 or MOV begins with the length of a box, which fits into 29 bits here, and its type; an AVI is a RIFF file.
_CONTAINERS = tuple(
    Container(frozenset(names.split()), shown, demuxers, re.compile(signature, re.DOTALL))
    for names, shown, demuxers, signature in (
        ("avi", "an AVI file", "avi", rb"RIFF....AVI"),
        ("mkv webm", "a Matroska or WebM file", "matroska,webm", rb"\x1aE\xdf\xa3"),
        ("ogg", "an Ogg file", "ogg", rb"OggS"),
        ("mp4 mov", "an MP4 or MOV file", "mov,mp4,m4a,3gp,3g2,mj2", rb"[\x00-\x1f]...[ -~\xa9][ -~]{3}"),
    )
)


def no_video_kind(head: bytes) -> str | None:
    """Return what a file is by its first bytes, if it is certainly not a video."""
    return next((kind for signature, kind in _NO_VIDEOS if signature.match(head)), None)


def container_of(head: bytes) -> Container | None:
    """Return the container that a file is by its first bytes; None if it is not a known one."""
    return next((container for container in _CONTAINERS if container.signature.match(head)), None)


def demuxers_of(names: Collection[str]) -> str:
    """Return FFmpeg's demuxers for containers, in the format of its options."""
    return ",".join(container.demuxers for container in _CONTAINERS if not container.names.isdisjoint(names))

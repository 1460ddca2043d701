# SPDX-License-Identifier: Apache-2.0
"""
Reads the structure of a file before FFmpeg opens it: whether the file is complete, and whether it is encrypted.

FFmpeg plays what is left of a file that was cut off, and treats an encrypted track as damaged. A download is followed
box by box as its bytes arrive; a file that can be read at any position is checked at once.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from typing import Any

#: Types of boxes at the top level of a file, and the most boxes to read.
_TYPES = frozenset(
    (
        *(b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"styp"),
        *(b"free", b"skip", b"wide", b"uuid", b"udta", b"pnot"),
    )
)
_MAX_BOXES = 10_000

#: Bytes of a box's length and type. A length of 64 bits follows the type.
_SHORT_HEADER, HEADER_LENGTH = 8, 16
_IS_LONG = b"\0\0\0\1"

#: The most chunks or boxes to read.
_MAX_PARTS = 10_000

#: Chunks of an AVI that are followed from one to the next, and lengths of a file that was written as a stream.
_CHUNKS = (b"RIFF", b"LIST", b"JUNK", b"idx1")
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)

#: Some writers count the eight bytes of the header in the length of an AVI as well.
_RIFF_HEADER = 8

#: The key at the start of an MXF, without its last bytes; and where, after the key, the last partition's offset is.
_MXF, _FOOTER = b"\x06\x0e+4\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", 24

#: Packets of a transport stream to check, and their length; an M2TS has a time in front of each.
_TS_PACKETS, _TS_LENGTH, _M2TS_TIME = 2000, 188, 4

_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"

#: Boxes that contain the boxes of a track's description, with the bytes in front of those.
_PARENTS = {b"moov": 8, b"trak": 8, b"mdia": 8, b"minf": 8, b"stbl": 8, b"stsd": 16}

#: Types of encrypted tracks: Common Encryption (ISO/IEC 23001-7) and FairPlay.
_ENCRYPTED = (b"encv", b"enca", b"drmi", b"drms")


class Extent(Enum):
    """How much of a file is there, by its boxes."""

    WHOLE = "whole"
    CUT_OFF = "cut off"
    UNKNOWN = "unknown"


class Boxes:
    """
    Walks from box to box: over a file, with :meth:`take`, or over bytes as they arrive, with :meth:`feed`.

    :ivar next: offset of the next box; None once something is not a box of known type and length
    """

    def __init__(self) -> None:
        self.next: int | None = 0
        self._types: list[bytes] = []
        self._fed = 0
        self._header = b""

    def take(self, header: bytes) -> None:
        """
        Read the next box.

        :param header: its first :data:`HEADER_LENGTH` bytes, or all up to the end of the file
        """
        is_long = header.startswith(_IS_LONG)
        length = int.from_bytes(header[8:16] if is_long else header[:4])
        is_known = header[4:8] in _TYPES and length >= (HEADER_LENGTH if is_long else _SHORT_HEADER)
        if self.next is None or not is_known or len(self._types) == _MAX_BOXES:
            self.next = None
            return
        self._types.append(header[4:8])
        self.next += length

    def feed(self, data: bytes) -> None:
        """Walk over the next bytes of a file."""
        begin, self._fed = self._fed, self._fed + len(data)
        while self.next is not None and self.next < self._fed:
            wanted = HEADER_LENGTH if self._header.startswith(_IS_LONG) else _SHORT_HEADER
            rest = self.next + len(self._header) - begin
            self._header += data[rest : rest + wanted - len(self._header)]
            if len(self._header) < wanted:
                return
            if wanted == HEADER_LENGTH or not self._header.startswith(_IS_LONG):
                self.take(self._header)
                self._header = b""

    def extent(self) -> Extent:
        """
        Return whether the bytes that were fed are a complete file, with an index and media.

        A file in fragments can be cut off between two of them without a trace, unless it ends with an index of them.
        """
        if self.next is None or not self._types:
            return Extent.UNKNOWN
        has_all = {b"moov", b"mdat"} <= set(self._types)
        if has_all and self.next < self._fed:
            return Extent.UNKNOWN  # a few bytes are left, too few for a box or its header
        if self.next != self._fed or not has_all:
            return Extent.CUT_OFF
        return Extent.UNKNOWN if b"moof" in self._types and self._types[-1] != b"mfra" else Extent.WHOLE


def is_cut_off(file: Any) -> bool:
    """
    Return whether an MP4, MOV, AVI, MKV, WebM or MXF visibly lacks its end. A file written as a stream never does.

    :param file: can be read at any position
    """
    size, head = file.seek(0, os.SEEK_END), _read(file, 0, 16)
    if re.match(rb"RIFF....AVI", head, re.DOTALL):
        return _avi_is_cut_off(file, size)
    if head.startswith(_EBML):
        return _matroska_is_cut_off(file, size)
    if head.startswith(_MXF):
        return _mxf_is_cut_off(file, size)
    boxes = Boxes()
    while boxes.next is not None and boxes.next < size:
        boxes.take(_read(file, boxes.next, HEADER_LENGTH))
    return boxes.next is not None and boxes.next > size


def is_encrypted(file: Any) -> bool:
    """
    Return whether a track of an MP4 or MOV, or most of a transport stream, is encrypted.

    :param file: can be read at any position
    """
    if (first := next((at for at in (0, _M2TS_TIME) if _is_ts(file, at)), None)) is not None:
        return _is_scrambled(file, first)
    at, end = 0, None
    for _ in range(_MAX_PARTS):
        header = _read(file, at, HEADER_LENGTH)
        is_long = header[:4] == b"\0\0\0\1"
        length, kind = int.from_bytes(header[8:16] if is_long else header[:4]), header[4:8]
        if kind in _ENCRYPTED:
            return True
        if kind == b"moov":
            end = at + length
        if length < _PARENTS.get(kind, 8) or (end is not None and at >= end):
            return False
        at += _PARENTS[kind] + 8 * is_long if kind in _PARENTS else length
    return False


def _avi_is_cut_off(file: Any, size: int) -> bool:
    """Walk from chunk to chunk, through each RIFF: an AVI of more than a gigabyte has several (OpenDML)."""
    at = 0
    for _ in range(_MAX_PARTS):
        header = _read(file, at, 8)
        kind, length = header[:4], int.from_bytes(header[4:8], "little")
        if kind not in _CHUNKS or (length in _UNKNOWN_LENGTHS and kind in (b"RIFF", b"LIST")):
            return False
        end = at + 8 + length
        if end > size + (_RIFF_HEADER if kind == b"RIFF" else 0):
            return True
        at = at + 12 if kind == b"RIFF" else end + end % 2
    return False


def _matroska_is_cut_off(file: Any, size: int) -> bool:
    length, digits = _ebml_length(_read(file, 4, 8))
    at = 4 + digits + (length or 0)
    if _read(file, at, 4) != _SEGMENT:
        return False
    length, digits = _ebml_length(_read(file, at + 4, 8))
    return length is not None and at + 4 + digits + length > size


def _ebml_length(data: bytes) -> tuple[int | None, int]:
    """Read a length as Matroska writes it. Return it, or None if it is unknown, and how many bytes it takes."""
    digits = 9 - data[0].bit_length() if data else 1
    bits = 7 * digits
    value = int.from_bytes(data[:digits]) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value, digits


def _mxf_is_cut_off(file: Any, size: int) -> bool:
    head = _read(file, len(_MXF) + 2, 64)
    value = 1 + (head[0] & 0x7F if head[:1] >= b"\x80" else 0)
    footer = int.from_bytes(head[value + _FOOTER :][:8])  # 0 if it was not known when this was written
    return footer >= size


def _is_ts(file: Any, first: int) -> bool:
    return all(_read(file, first + index * (_TS_LENGTH + first), 1) == b"G" for index in range(3))


def _is_scrambled(file: Any, first: int) -> bool:
    """Return whether most packets are scrambled. A few may be, in another channel or for a moment."""
    step = _TS_LENGTH + first
    flags = _read(file, first, _TS_PACKETS * step)[3::step]
    return sum(flag >= 0x40 for flag in flags) > len(flags) / 2


def _read(file: Any, at: int, length: int) -> bytes:
    file.seek(at)
    data: bytes = file.read(length)
    return data

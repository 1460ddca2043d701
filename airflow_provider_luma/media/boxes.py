# SPDX-License-Identifier: Apache-2.0
"""
The boxes of an MP4 or MOV (ISO/IEC 14496-12): whether they are all there shows whether the file is whole.

Pure: no PyAV, no I/O.
"""

from __future__ import annotations

from enum import Enum

#: Types of boxes at the top level of a file, and how many boxes are read.
_TYPES = frozenset(
    (
        *(b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"styp"),
        *(b"free", b"skip", b"wide", b"uuid", b"udta", b"pnot"),
    )
)
_MAX_BOXES = 10_000

#: Bytes that hold a box's length and type. One whose length needs 64 bits has it behind its type.
_SHORT_HEADER, HEADER_LENGTH = 8, 16
_IS_LONG = b"\0\0\0\1"


class Extent(Enum):
    """How much of a file is there, by its boxes."""

    WHOLE = "whole"
    CUT_OFF = "cut off"
    UNKNOWN = "unknown"


class Boxes:
    """
    Walks from box to box: over a file, with :meth:`take`, or over bytes as they arrive, with :meth:`feed`.

    :ivar next: offset of the next box; None once there is something that is not a box of known type and length
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
        Tell whether the bytes that were fed are a whole file, with an index and media.

        A file in fragments can be cut off between two of them without a trace, unless it ends with an index of them.
        """
        if self.next is None or not self._types:
            return Extent.UNKNOWN
        has_all = {b"moov", b"mdat"} <= set(self._types)
        if has_all and self.next < self._fed:
            return Extent.UNKNOWN  # a few bytes are left: too few for a box, or not all of its header
        if self.next != self._fed or not has_all:
            return Extent.CUT_OFF
        return Extent.UNKNOWN if b"moof" in self._types and self._types[-1] != b"mfra" else Extent.WHOLE

# SPDX-License-Identifier: Apache-2.0
"""The boxes of a file show how much of it is there, however its bytes arrive."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from airflow_provider_luma.media.boxes import HEADER_LENGTH, Boxes, Extent
from tests.support.clips import FRAGMENTED, MOOV_IN_FRONT, clip


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def long_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content


MP4 = box(b"ftyp", b"isom") + long_box(b"mdat", bytes(100)) + box(b"moov", bytes(50)) + box(b"free")


def extent(content: bytes, piece: int = 1 << 20) -> Extent:
    boxes = Boxes()
    for begin, end in pairwise([*range(0, len(content), piece), len(content)]):
        boxes.feed(content[begin:end])
    return boxes.extent()


@pytest.mark.parametrize("piece", [1, 3, 7, 8, 9, 15, 16, 17, 1000])
@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_file_is_whole_in_whatever_pieces_it_arrives(piece: int, kind: str) -> None:
    assert extent(MP4, piece) is Extent.WHOLE
    assert extent(clip(kind, movflags=MOOV_IN_FRONT), piece) is Extent.WHOLE


@pytest.mark.parametrize("piece", [1, 1000])
def test_file_that_is_cut_off_anywhere_is_not_whole(piece: int) -> None:
    behind_index = len(MP4) - len(box(b"free"))
    for end in range(behind_index):
        assert extent(MP4[:end], piece) is (Extent.CUT_OFF if end >= 8 else Extent.UNKNOWN), end


@pytest.mark.parametrize("movflags", ["", MOOV_IN_FRONT])
def test_video_that_lacks_its_last_byte_is_cut_off(movflags: str) -> None:
    assert extent(clip(movflags=movflags)[:-1]) is Extent.CUT_OFF


def test_fragments_show_their_end_only_by_their_index() -> None:
    whole = clip(movflags=FRAGMENTED, seconds=3)
    last_fragment, index = whole.rindex(b"moof") - 4, whole.rindex(b"mfra") - 4
    assert extent(whole) is Extent.WHOLE
    assert extent(whole[:index]) is Extent.UNKNOWN
    assert extent(whole[: last_fragment + 20]) is Extent.CUT_OFF


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        clip("avi"),
        b"\x1aE\xdf\xa3" + bytes(100),
        box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"mdat") + bytes(100),
        box(b"ftyp", b"avif") + box(b"meta", bytes(20)) + box(b"mdat", bytes(20)),
        MP4 + bytes(100),
        MP4 + bytes(3),
        box(b"free") * 20_000,
    ],
    ids=[
        "empty",
        "three bytes",
        "AVI",
        "WebM",
        "up to the end",
        "picture",
        "more behind it",
        "padding",
        "very many boxes",
    ],
)
def test_what_the_boxes_do_not_show_is_unknown(content: bytes) -> None:
    assert extent(content) is Extent.UNKNOWN


def test_walk_over_a_file_needs_the_headers_alone() -> None:
    boxes, found = Boxes(), []
    while boxes.next is not None and boxes.next < len(MP4):
        found.append(MP4[boxes.next :][4:8])
        boxes.take(MP4[boxes.next :][:HEADER_LENGTH])
    assert found == [b"ftyp", b"mdat", b"moov", b"free"]
    assert boxes.next == len(MP4)

# SPDX-License-Identifier: Apache-2.0
"""The structure of a file shows whether it is whole, however its bytes arrive, and whether it is encrypted."""

from __future__ import annotations

import io
import struct
from itertools import pairwise

import pytest

from airflow_provider_luma.media.file_structure import HEADER_LENGTH, Boxes, Extent, is_cut_off, is_encrypted
from airflow_provider_luma.media.split import plan_split
from tests.support.clips import FRAGMENTED, MOOV_IN_FRONT, clip, encrypted
from tests.support.films import film


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


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(content) if length is None else length) + content + bytes(len(content) % 2)


def riff(kind: bytes, *chunks: bytes, length: int | None = None) -> bytes:
    return chunk(b"RIFF", kind + b"".join(chunks), length)


MOVI = chunk(b"LIST", b"movi" + bytes(1001))
INDEX = chunk(b"idx1", bytes(64))
AVI = riff(b"AVI ", chunk(b"LIST", b"hdrl" + bytes(60)), chunk(b"JUNK", bytes(9)), MOVI, INDEX)
OPEN_DML = AVI + riff(b"AVIX", MOVI) + riff(b"AVIX", MOVI)


@pytest.mark.parametrize(
    "content",
    [
        AVI,
        OPEN_DML,
        AVI + b"what another program has added",
        riff(b"AVI ", MOVI),
        riff(b"AVI ", MOVI, INDEX, length=len(MOVI) + len(INDEX) + 12),
        riff(b"AVI ", MOVI, length=0),
        riff(b"AVI ", MOVI, length=0xFFFFFFFF),
        riff(b"AVI ", chunk(b"LIST", b"movi" + bytes(100), 0xFFFFFFFF)),
        riff(b"AVI ", chunk(b"LIST", b"movi" + bytes(100), 0)),
        riff(b"AVI ", length=1 << 20)[:8],
        b"RIFF",
        b"",
    ],
    ids=[
        *("whole", "OpenDML", "with an appendix", "without an index", "header counted", "streamed", "streamed, new"),
        *("list of a stream, new", "list of a stream", "no AVI", "beginning", "empty"),
    ],
)
def test_whole_avi_and_one_written_as_a_stream_are_not_cut_off(content):
    assert not is_cut_off(io.BytesIO(content))


@pytest.mark.parametrize("content", [AVI, OPEN_DML], ids=["AVI", "OpenDML"])
def test_avi_is_cut_off_wherever_it_ends(content):
    first, second = len(AVI), len(AVI) + len(riff(b"AVIX", MOVI))
    unseen = {*range(first, first + 8), *range(second - 1, second + 8), len(content) - 1}  # between two, or padding
    whole = {end for end in range(12, len(content)) if not is_cut_off(io.BytesIO(content[:end]))}
    assert whole <= unseen


def test_webm_and_mkv_are_cut_off_wherever_they_end():
    for kind, codec in (("mkv", "libx264"), ("webm", "libvpx")):
        content = film(kind, frames=20, codec=codec)
        assert not is_cut_off(io.BytesIO(content))
        for length in range(100, len(content), 97):
            assert is_cut_off(io.BytesIO(content[:length]))


def test_mxf_is_cut_off_wherever_it_ends():
    content = film("mxf", frames=20, codec="mpeg2video")
    assert not is_cut_off(io.BytesIO(content))
    footer = content.rindex(b"\x06\x0e+4\x02\x05\x01\x01\r\x01\x02\x01\x01\x04")
    for length in range(100, footer, 997):
        assert is_cut_off(io.BytesIO(content[:length]))
    assert not is_cut_off(io.BytesIO(content[:44] + bytes(8) + content[52:footer])), "of one that is still written"


def test_mkv_of_unknown_length_is_not_cut_off():
    """As a browser records it, and as what is left of a recording that broke off."""
    content = film("mkv", frames=20)
    segment = content.index(b"\x18S\x80g") + 4
    live = content[:segment] + b"\x01" + b"\xff" * 7 + content[segment + 8 :]
    assert not is_cut_off(io.BytesIO(live))
    assert not is_cut_off(io.BytesIO(live[: len(live) // 2]))
    assert plan_split(io.BytesIO(live), 10).frames == 20


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("movflags", ["", MOOV_IN_FRONT, FRAGMENTED])
def test_encrypted_tracks_are_found_wherever_the_index_is(kind, movflags):
    assert is_encrypted(io.BytesIO(encrypted(clip(kind, sound="aac"), kind, movflags)))
    assert not is_encrypted(io.BytesIO(clip(kind, sound="aac", movflags=movflags)))


@pytest.mark.parametrize("track", [b"encv", b"enca", b"drmi", b"drms"])
def test_each_kind_of_encrypted_track_is_found(track):
    content = clip(sound="aac")
    entry = b"mp4a" if track in (b"enca", b"drms") else b"avc1"
    at = content.index(entry, content.index(b"moov"))
    assert is_encrypted(io.BytesIO(content[:at] + track + content[at + 4 :]))


@pytest.mark.parametrize("length", [0, 7, 8, 15, 0x7FFFFFFF, 0xFFFFFFFF])
def test_broken_boxes_are_not_taken_for_encrypted_ones(length):
    content = clip()
    for kind in (b"ftyp", b"moov", b"trak", b"stsd"):
        at = content.index(kind) - 4
        assert not is_encrypted(io.BytesIO(content[:at] + struct.pack(">I", length) + content[at + 4 :]))

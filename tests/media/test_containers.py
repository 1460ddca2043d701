# SPDX-License-Identifier: Apache-2.0
"""What a file's structure shows: whether it is whole, whether it is encrypted, and whether it is a film at all."""

from __future__ import annotations

import io
import struct

import av
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.containers import is_cut_off, is_encrypted
from airflow_provider_luma.media.split import plan_split
from tests.support.clips import FRAGMENTED, MOOV_IN_FRONT, clip, encrypted, with_empty_video_in_front, without_samples
from tests.support.films import clicks, film, pictures, rejoined


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
    assert plan_split(io.BytesIO(live)).frames == 20


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


FILMS = [
    ("mkv", "libx264", "aac"),
    ("mkv", "mpeg4", "pcm_s16le"),
    ("webm", "libvpx", "libopus"),
    ("ts", "libx264", "aac"),
    ("m2ts", "mpeg2video", "ac3"),
    ("mpg", "mpeg2video", "mp2"),
    ("mxf", "mpeg2video", "pcm_s16le"),
    ("3gp", "libx264", "aac"),
    ("m4v", "libx264", "aac"),
    ("flv", "libx264", "aac"),
]


@pytest.mark.parametrize(("kind", "codec", "sound"), FILMS)
def test_film_of_any_container_loses_no_frame_and_keeps_its_sound(kind, codec, sound):
    made, info = rejoined(film(kind, frames=60, rate=25, codec=codec, sound=sound))
    assert [number for _, number in pictures(made)] == list(range(60))
    assert clicks(made) == pytest.approx([0.5, 1.5], abs=0.002)
    assert info.warnings == ()


def test_wmv_loses_no_frame():
    made, _ = rejoined(film("wmv", frames=60, rate=25, codec="wmv2"))
    assert [number for _, number in pictures(made)] == list(range(60))


def test_stream_that_lost_packets_is_a_film():
    source = film("ts", frames=100, rate=25, sound="aac")
    packets = [source[at : at + 188] for at in range(0, len(source), 188)]
    plan = plan_split(io.BytesIO(b"".join(packets[: len(packets) // 3] + packets[len(packets) // 2 :])))
    assert plan.seconds == pytest.approx(4, abs=0.1)


def refusal(content: bytes) -> str:
    with pytest.raises(LumaValidationError) as refused:
        plan_split(io.BytesIO(content), shown="/f")
    return str(refused.value)


@pytest.mark.parametrize(
    "playlist",
    [
        b"ffconcat version 1.0\n#\x01\nfile '%s'\n",
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#\x01\n#EXTINF:9,\n%s\n#EXT-X-ENDLIST\n",
        b"<?xml version='1.0'?><!--\x01--><MPD xmlns='urn:mpeg:DASH:schema:MPD:2011'><BaseURL>%s</BaseURL></MPD>",
    ],
    ids=["concat", "HLS", "DASH"],
)
def test_playlist_is_never_opened(playlist, tmp_path):
    """A byte that no text holds gets it past the first check, as far as FFmpeg."""
    other = tmp_path / "other.mkv"
    other.write_bytes(film("mkv", frames=10))
    content = playlist % str(other).encode()
    if b"concat" in playlist:
        with av.open(io.BytesIO(content), options={"safe": "0", "protocol_whitelist": "file"}) as container:
            assert next(container.decode(video=0)), "FFmpeg would open the other file"
    assert "FFmpeg finds no index" in refusal(content)


@pytest.mark.parametrize(
    "content",
    [
        b"1\n00:00:00,000 --> 00:00:09,000\nHello\x01\n",
        b"[Script Info]\n\x01\n[Events]\n",
        b"YUV4MPEG2 W2 H2 F25:1\n" + (b"FRAME\n" + bytes(6)) * 10,
        b"GIF89a" + bytes(99),
        b"\x89PNG\r\n\x1a\n" + bytes(99),
    ],
    ids=["SRT", "ASS", "Y4M", "GIF", "APNG"],
)
def test_what_is_no_container_of_videos_is_refused(content):
    refusal(content)


def test_encrypted_film_is_refused_as_such():
    assert "is encrypted (DRM): give a copy without copy protection" in refusal(encrypted(film(frames=20, sound="aac")))


@pytest.mark.parametrize(("kind", "first", "streams"), [("ts", 0, (0x100, 0x101)), ("m2ts", 4, (0x1011, 0x1100))])
def test_scrambled_stream_is_refused_as_encrypted(kind, first, streams):
    clear = film(kind, frames=60, rate=25, codec="mpeg2video", sound="ac3")
    scrambled = bytearray(clear)
    for at in range(first, len(clear), 188 + first):
        if int.from_bytes(clear[at + 1 : at + 3]) & 0x1FFF in streams:
            scrambled[at + 3] |= 0x80
    assert not is_encrypted(io.BytesIO(clear))
    assert "is encrypted (DRM)" in refusal(bytes(scrambled))


def test_empty_tracks_of_a_film_are_passed_over():
    source = film(frames=60, rate=25, sound="aac")
    for content in (without_samples(source, b"soun"), with_empty_video_in_front(source)):
        made, _ = rejoined(content)
        assert [number for _, number in pictures(made)] == list(range(60))


def test_encrypted_mkv_is_refused_as_such():
    content = film("mkv", frames=20)
    track = content.rindex(b"\x16T\xaek")  # Tracks, and in it the first TrackEntry
    entry = content.index(b"\xae", track + 4)
    key = b"\x47\xe2\x84abcd"
    encryption = b"\x50\x35" + bytes([0x80 | (len(key) + 4)]) + b"\x47\xe1\x81\x05" + key
    encoding = b"\x62\x40" + bytes([0x80 | (len(encryption) + 4)]) + b"\x50\x33\x81\x01" + encryption
    encodings = b"\x6d\x80" + bytes([0x80 | len(encoding)]) + encoding
    grown = longer(longer(content, track + 4, len(encodings)), entry + 1, len(encodings))
    grown = longer(grown, content.index(b"\x18S\x80g") + 4, len(encodings))
    end = entry + 1 + length_of(content, entry + 1)[1] + length_of(content, entry + 1)[0]
    assert "is encrypted (DRM)" in refusal(grown[:end] + encodings + grown[end:])


def length_of(content: bytes, at: int) -> tuple[int, int]:
    digits = 9 - content[at].bit_length()
    return int.from_bytes(content[at : at + digits]) & ((1 << 7 * digits) - 1), digits


def longer(content: bytes, at: int, count: int) -> bytes:
    """Add to a length in an MKV, which must have room for it."""
    length, digits = length_of(content, at)
    return content[:at] + (1 << 7 * digits | length + count).to_bytes(digits) + content[at + digits :]


@pytest.mark.parametrize("brand", [b"avis", b"hevc", b"msf1"])
def test_animated_picture_is_no_film(brand):
    assert "is an animated picture" in refusal(film(frames=20).replace(b"ftypisom", b"ftyp" + brand))

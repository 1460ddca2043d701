# SPDX-License-Identifier: Apache-2.0
"""Films of many containers are read; what is no film, or cut off, or encrypted, is refused and never opened."""

from __future__ import annotations

import io

import av
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.file_structure import is_encrypted
from airflow_provider_luma.media.split import plan_split
from tests.support.clips import encrypted, with_empty_video_in_front, without_samples
from tests.support.films import clicks, film, pictures, rejoined

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
    plan = plan_split(io.BytesIO(b"".join(packets[: len(packets) // 3] + packets[len(packets) // 2 :])), 10)
    assert plan.seconds == pytest.approx(4, abs=0.1)


def refusal(content: bytes) -> str:
    with pytest.raises(LumaValidationError) as refused:
        plan_split(io.BytesIO(content), 10, shown="/f")
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
def test_file_that_is_not_a_video_container_is_refused(content):
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
def test_animated_picture_is_not_a_film(brand):
    assert "is an animated picture" in refusal(film(frames=20).replace(b"ftypisom", b"ftyp" + brand))

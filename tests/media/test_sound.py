# SPDX-License-Identifier: Apache-2.0
"""A film's sound tracks: which are copied, which are encoded, and what the log says of those that are not kept."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import av
import pytest
from av.stream import Disposition

from tests.support.clips import with_fields
from tests.support.films import Track, clicks, film, rejoined, with_tracks

SECONDS = 3
EVERY_CLICK = [0.5, 1.5, 2.5]
SPAN = (0.0, float(SECONDS))


def with_sound(*tracks: Track, kind: str = "mp4", **options: Any) -> bytes:
    codec = "mpeg4" if kind == "avi" else "libx264"
    return with_tracks(film(frames=SECONDS * 10, rate=10, codec=codec), *tracks, kind=kind, **options)


def tracks_of(content: bytes) -> list[tuple[str, str | None, bool]]:
    """Return the codec of each sound track, its language, and whether it is a default one."""
    with av.open(io.BytesIO(content)) as container:
        return [
            (sound.codec_context.codec.canonical_name, sound.language, Disposition.default in sound.disposition)
            for sound in container.streams.audio
        ]


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("kind", ["3gp", "mov"])
def test_every_frame_of_a_packet_is_heard(frames, kind):
    """Phones put five frames of AMR into a packet, and only the first has a time."""
    track = Track("libopencore_amrnb", SPAN, rate=8000, bit_rate=12200)
    source = with_packets_of(frames, with_sound(track, kind=kind, is_interleaved=False))
    content, info = rejoined(source)
    assert info.sound == "encoded"
    assert len(clicks(content, threshold=0.1)) == len(EVERY_CLICK)
    assert clicks(content, threshold=0.1) == pytest.approx(clicks(source, threshold=0.1), abs=0.005)


def with_packets_of(frames: int, source: bytes) -> bytes:
    """Rewrite the tables of a film whose AMR is one chunk, of 32 bytes each 20 ms: so many of these are a packet."""
    *before, sound = source.partition(b"smhd")
    count = round(SECONDS / 0.02) // frames
    sound = with_fields(sound, b"stts", 4, 1, count, 160 * frames)
    sound = with_fields(sound, b"stsz", 4, 32 * frames, count)
    sound = with_fields(sound, b"stsc", 4, 1, 1, count)
    source = b"".join((*before, with_fields(sound, b"stco", 4, 1)))
    with av.open(io.BytesIO(source)) as container:
        assert {packet.size for packet in container.demux(audio=0) if packet.size} == {32 * frames}
    return source


@pytest.mark.parametrize("kind", ["avi", "mov"])
@pytest.mark.parametrize(("rate", "kept"), [(8000, "aac"), (11025, "aac"), (12000, "aac"), (16000, "mp3")])
def test_sound_that_an_mp4_does_not_take_is_encoded(kind, rate, kept):
    source = with_sound(Track("libmp3lame", SPAN, rate=rate), kind=kind)
    content, info = rejoined(source)
    assert info.sound == ("copied" if kept == "mp3" else "encoded")
    assert [codec for codec, _, _ in tracks_of(content)] == [kept]
    assert clicks(content) == pytest.approx(clicks(source), abs=0.03)


@pytest.mark.parametrize("codecs", [("aac", "aac"), ("aac", "pcm_s16le"), ("pcm_s16le", "ac3")])
@pytest.mark.parametrize("begin", [0.0, 1.2])
def test_every_track_is_kept_with_its_language_and_flag(codecs, begin):
    """A screen recorder writes the microphone as a second track; it may be switched on later."""
    first = Track(codecs[0], SPAN, language="eng")
    second = Track(codecs[1], (begin, SPAN[1]), language="ger", is_default=False)
    content, info = rejoined(with_sound(first, second, kind="mov"))
    kept = ["aac" if codec == "pcm_s16le" else codec for codec in codecs]
    assert tracks_of(content) == [(kept[0], "eng", True), (kept[1], "ger", False)]
    assert info.sound == ", ".join("encoded" if codec == "pcm_s16le" else "copied" for codec in codecs)
    assert clicks(content, 0) == pytest.approx(EVERY_CLICK, abs=0.005)
    assert clicks(content, 1) == pytest.approx([at for at in EVERY_CLICK if at > begin], abs=0.005)
    assert info.warnings == ()


def test_default_flag_may_be_that_of_the_second_track():
    first, second = Track("aac", SPAN, is_default=False), Track("aac", SPAN, language="jpn")
    content, _ = rejoined(with_sound(first, second))
    assert [is_default for _, _, is_default in tracks_of(content)] == [False, True]


@pytest.mark.parametrize("unknown", [0, 1])
def test_track_of_unknown_codec_is_dropped_alone(unknown):
    tracks = [Track("aac", SPAN, language="eng")]
    tracks.insert(unknown, Track("ac3", SPAN, language="fra", is_default=not unknown))
    source = with_sound(*tracks).replace(b"ac-3", b"zzzz")
    content, info = rejoined(source)
    assert [codec for codec, _, _ in tracks_of(content)] == ["aac"]
    assert clicks(content) == pytest.approx(EVERY_CLICK, abs=0.005)
    assert info.warnings == (f"audio track {1 + unknown} (fra) is not kept: FFmpeg has no decoder for it",)


def test_film_whose_only_track_is_of_unknown_codec_is_silent_and_the_log_says_so():
    content, info = rejoined(with_sound(Track("ac3", SPAN)).replace(b"ac-3", b"zzzz"))
    assert (tracks_of(content), info.sound) == ([], "none")
    assert info.warnings == ("audio track 1 (und) is not kept: FFmpeg has no decoder for it",)


@pytest.mark.parametrize(
    ("layout", "kept"),
    [("mono", "mono"), ("stereo", "stereo"), ("5.1", "5.1"), ("quad", "4.0"), ("6.1", "5.1"), ("7.1", "7.1")],
)
def test_channels_are_kept_where_aac_takes_them(layout, kept):
    """PyAV 18 crashes on the layouts that a MOV gives PCM of 6.1 and 7.1."""
    content, info = rejoined(with_sound(Track("pcm_s16le", SPAN, layout=layout), kind="mov"))
    assert info.sound == "encoded"
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.audio[0].codec_context.layout.name == kept
    assert clicks(content) == pytest.approx(EVERY_CLICK, abs=0.005)


def test_two_of_more_than_eight_channels_are_kept():
    content, _ = rejoined(with_sound(Track("pcm_s16le", SPAN, layout="hexadecagonal"), kind="mov"))
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.audio[0].codec_context.layout.name == "stereo"


def with_damaged_packet(source: bytes, kind: str, content: bytes) -> bytes:
    """Return a film with other content in one packet of its sound, between two clicks."""
    target = io.BytesIO()
    options = {"mpegts_m2ts_mode": "1"} if kind == "mpegts" else {}
    with av.open(io.BytesIO(source)) as given, av.open(target, "w", format=kind, options=options) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        packets = [packet for packet in given.demux() if packet.size]
        sound = [packet for packet in packets if packet.stream.type == "audio"]
        for packet in packets:
            written: Any = packet
            if packet is sound[len(sound) // 3]:
                written = av.Packet(content)
                written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
            written.stream = streams[packet.stream.index]
            out.mux(written)
    return target.getvalue()


@pytest.mark.parametrize("content", [b"\xff\xff\x31\x40", b"\xff" * 400], ids=["head of Blu-ray PCM", "nonsense"])
@pytest.mark.parametrize(
    ("codec", "kind", "written_as"),
    [("pcm_bluray", "m2ts", "mpegts"), ("mp2", "ts", "mpegts"), ("flac", "mkv", "matroska")],
)
def test_damaged_packet_of_sound_becomes_silence_with_any_decoder(codec, kind, written_as, content):
    source = with_damaged_packet(with_sound(Track(codec, SPAN), kind=kind), written_as, content)
    made, info = rejoined(source)
    assert info.sound == "encoded"
    assert clicks(made) == pytest.approx(EVERY_CLICK, abs=0.045)


def test_other_parts_of_a_film_that_are_not_kept_are_in_the_warnings():
    content, info = rejoined(with_subtitles_and_chapters(with_sound(Track("aac", SPAN))))
    assert info.warnings == ("subtitle track 2 (eng, mov_text) is not kept", "2 chapter marks are not kept")
    with av.open(io.BytesIO(content)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def with_subtitles_and_chapters(source: bytes) -> bytes:
    target = io.BytesIO()
    with av.open(io.BytesIO(source)) as container, av.open(target, "w", format="mp4") as out:
        streams: list[Any] = [out.add_stream_from_template(stream) for stream in container.streams]
        words = out.add_stream("mov_text")
        words.codec_context.subtitle_header = b"[Script Info]"
        words.metadata["language"] = "eng"
        chapter = {"time_base": Fraction(1), "metadata": {}}
        out.set_chapters([{"id": n, "start": n, "end": n + 1, **chapter} for n in range(2)])
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
        said = b"said"
        packet = av.Packet(struct.pack(">H", len(said)) + said)
        packet.stream, packet.pts, packet.dts, packet.duration = words, 0, 0, 1
        out.mux(packet)
    return target.getvalue()

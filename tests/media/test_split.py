# SPDX-License-Identifier: Apache-2.0
"""Splitting a film into clips."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.split import move_cuts_to_scenes, plan_split, split
from airflow_provider_luma.media.split_plan import SplitPlan
from tests.support import fresh_python
from tests.support.clips import clip, with_fields
from tests.support.films import NTSC, film, kept_file, pictures, size_of, stream_seconds

pytestmark = pytest.mark.slow

#: Transfer functions of a high dynamic range, by their numbers in H.273.
PQ, HLG = 16, 18


def split_all(
    source: bytes, plan: SplitPlan | None = None, on_progress=None, *, clip_seconds: float = 10
) -> list[bytes]:
    clips: list[bytes] = []
    plan = plan or plan_split(io.BytesIO(source), clip_seconds)

    def clip_file(index: int) -> AbstractContextManager[Path]:
        assert index == len(clips), "the clip before is whole"
        return kept_file(clips)

    split(io.BytesIO(source), plan, clip_file, on_progress)
    return clips


def numbers(clips: list[bytes]) -> list[int]:
    return [number for content in clips for _, number in pictures(content)]


def test_film_becomes_equal_clips_that_hold_each_frame_once():
    source = film(frames=284, rate=NTSC, sound="aac")
    clips = split_all(source, clip_seconds=2)
    assert numbers(clips) == list(range(284))
    frames = [len(pictures(content)) for content in clips]
    assert sorted(frames) == [56, 57, 57, 57, 57]
    for content, count in zip(clips, frames, strict=True):
        assert stream_seconds(content) == (pytest.approx(count / NTSC), pytest.approx(count / NTSC, abs=0.001))
        assert size_of(content) == (96, 54)


def test_clip_is_h264_without_sound_with_its_index_in_front_and_begins_at_0():
    (content,) = split_all(film(frames=20, sound="aac"))
    with av.open(io.BytesIO(content)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.format.name) == ("h264", "yuv420p")
        assert next(container.decode(stream)).pts == stream.start_time == 0
    assert content.index(b"moov") < content.index(b"mdat")
    assert b"ctts" not in content


@pytest.mark.parametrize(
    ("frames", "rate", "limit", "clips"),
    [
        (100, 10, 10, 1),
        (101, 10, 10, 2),
        (299, NTSC, 10, 1),
        (300, NTSC, 10, 2),
        (121, 60, 2, 2),
        (49, 24, 2, 2),
    ],
)
def test_neither_video_nor_container_of_a_clip_lasts_longer_than_allowed(frames, rate, limit, clips):
    contents = split_all(film(frames=frames, rate=rate), clip_seconds=limit)
    assert len(contents) == clips
    assert numbers(contents) == list(range(frames))
    for content in contents:
        assert max(stream_seconds(content)) <= limit
        assert min(stream_seconds(content)) > 0.49 * limit


def test_ten_minutes_and_a_tenth_of_a_second_are_61_clips():
    plan = plan_split(io.BytesIO(film(frames=3001, rate=5, size=(16, 16))), 10)
    assert (plan.clips, plan.seconds) == (61, pytest.approx(600.2))
    assert max(end - start for start, end in pairwise(plan.cuts)) <= 50


def test_film_of_too_many_clips_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("airflow_provider_luma.media.split.MAX_CLIPS", 1)
    with pytest.raises(
        LumaValidationError, match=r"source \(s3://b/f.mp4\) lasts 20.0 s.* 2 clips of 10 s.*more than 1: "
    ):
        plan_split(io.BytesIO(film(frames=100, rate=5)), 10, shown="s3://b/f.mp4")


@pytest.mark.parametrize("clip_seconds", [0, -1, 0.5, float("nan"), float("inf")])
def test_clip_seconds_too_small_for_a_clip_are_refused(clip_seconds):
    with pytest.raises(LumaValidationError, match="clip_seconds"):
        plan_split(io.BytesIO(film(frames=20)), clip_seconds)


def test_variable_rate_becomes_a_constant_one_that_shows_each_frame_at_its_time():
    ticks = tuple(int(at) for at in np.cumsum([0, *([33] * 40), 700, *([33, 34, 50] * 20), 2000, *([40] * 30)]))
    plan = plan_split(io.BytesIO(source := film("mov", ticks=ticks)), 4)
    clips = split_all(source, plan)
    assert len(clips) == 2
    shown = [
        (start + at, number)
        for start, content in zip(map(plan.start, range(plan.clips)), clips, strict=True)
        for at, number in pictures(content)
    ]
    assert plan.rate == NTSC
    assert abs(len(shown) / NTSC - ticks[-1] / 1000) <= 1 / 30
    for at, number in shown:
        assert ticks[number] / 1000 - 1 / 60 - 0.001 <= at <= ticks[number + 1] / 1000 + 0.001


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_turned_upright(rotation):
    (content,) = split_all(film(frames=20, size=(54, 96), rotation=rotation))
    assert size_of(content) == (54, 96)
    assert numbers([content]) == list(range(20))
    with av.open(io.BytesIO(content)) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_odd_size_loses_a_column_and_a_row():
    clips = split_all(film(frames=20, size=(97, 55), pix_fmt="yuv444p"))
    assert size_of(clips[0]) == (96, 54)
    assert numbers(clips) == list(range(20))


def test_pixels_become_square():
    clips = split_all(film(frames=20, aspect=2))
    assert size_of(clips[0]) == (192, 54)
    assert numbers(clips) == list(range(20))


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [("mov", "libx265", {}), ("avi", "mpeg4", {}), ("avi", "libx264", {}), ("mp4", "libx264", {"first": 90})],
)
def test_other_codecs_containers_and_beginnings_lose_no_frame(kind, codec, options):
    clips = split_all(film(kind, frames=130, codec=codec, **options), clip_seconds=4)
    assert len(clips) == 2
    assert numbers(clips) == list(range(130))


def test_frames_that_an_edit_list_hides_are_left_out():
    with av.open(io.BytesIO(source := film(frames=60, rate=30))) as container:
        ticks = int(Fraction(1, 30) / container.streams.video[0].time_base)
    source = with_fields(source, b"elst", 8, int(1000 * 50 / 30), 12 * ticks)
    clips = split_all(source)
    shown = numbers(clips)
    assert shown == list(range(shown[0], shown[0] + 50))
    assert shown[0] in (10, 11, 12)


def test_full_range_becomes_limited_range():
    (content,) = split_all(film(frames=10, codec="mjpeg", kind="avi", pix_fmt="yuvj420p"))
    with av.open(io.BytesIO(content)) as container:
        luma = next(container.decode(video=0)).to_ndarray(format="yuv420p")[:54]
        assert container.streams.video[0].codec_context.color_range == 1
    assert 10 <= luma.min() <= 22
    assert 229 <= luma.max() <= 240


@pytest.mark.parametrize(
    ("kind", "codec", "pix_fmt"),
    [("mov", "png", "rgb24"), ("mp4", "libx264", "yuv420p"), ("mp4", "libx265", "yuv420p10le")],
)
def test_colours_stay_as_they_are(kind, codec, pix_fmt):
    source = film(kind, frames=5, codec=codec, pix_fmt=pix_fmt, colour=(250, 60, 30))
    (content,) = split_all(source)
    assert shown_colour(content) == pytest.approx((250, 60, 30), abs=9)


def shown_colour(content: bytes, number: int = 0) -> tuple[float, ...]:
    """Return the colour in the middle of a picture, as a player shows it that follows the file's metadata."""
    with av.open(io.BytesIO(content)) as container:
        frame = next(islice(container.decode(video=0), number, None))
    red, blue = (0.2126, 0.0722) if frame.colorspace == 1 else (0.299, 0.114)
    planes = [np.frombuffer(plane, np.uint8)[10 * plane.line_size + 20] for plane in frame.planes]
    y, cb, cr = (planes[0] - 16.0) / 219, (planes[1] - 128.0) / 224, (planes[2] - 128.0) / 224
    shown = y + 2 * (1 - red) * cr, 0.0, y + 2 * (1 - blue) * cb
    green = (y - red * shown[0] - blue * shown[2]) / (1 - red - blue)
    return tuple(255 * value for value in (shown[0], green, shown[2]))


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_high_dynamic_range_becomes_standard_range(transfer):
    """White at the brightness of paper stays white, and grey stays grey."""
    white, grey = {PQ: (0.58, 0.45), HLG: (0.75, 0.4)}[transfer]
    (content,) = split_all(with_high_dynamic_range([white] * 5 + [grey] * 5, transfer))
    with av.open(io.BytesIO(content)) as container:
        frame = next(container.decode(video=0))
    assert (frame.color_trc, frame.color_primaries, frame.colorspace, frame.format.name) == (1, 1, 1, "yuv420p")
    assert shown_colour(content, 2) == pytest.approx((255, 255, 255), abs=12)
    assert 90 < min(shown_colour(content, 7)) <= max(shown_colour(content, 7)) < 150


def with_high_dynamic_range(levels: list[float], transfer: int) -> bytes:
    """Return a film of such shades of grey, as a phone writes it: ten bits, BT.2020."""
    target = io.BytesIO()
    with av.open(target, "w", format="mov") as out:
        video = out.add_stream(
            "libx265",
            rate=30,
            options={"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
        )
        video.width, video.height, video.pix_fmt = 64, 36, "yuv420p10le"
        context = video.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for index, level in enumerate(levels):
            frame = av.VideoFrame(64, 36, "yuv420p10le")
            for plane, value in zip(frame.planes, (round(64 + 876 * level), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            frame.pts, frame.time_base = index, Fraction(1, 30)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_film_cut_out_of_another_at_an_open_group_of_pictures_begins_with_what_can_be_decoded(codec):
    """Its first frames refer to what was cut off and cannot be shown; those behind them keep their times."""
    source = from_second_key_frame(codec)
    clips = split_all(source)
    shown = numbers(clips)
    whole = shown[shown.count(shown[0]) - 1 :]
    assert whole == list(range(whole[0], 100))
    assert len(shown) - len(whole) <= 4, "the first picture stands in for those that cannot be shown"


def from_second_key_frame(codec: str) -> bytes:
    options = {"libx264": {"x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"}}
    options["libx265"] = {"x265-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:log-level=none"}
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(film(frames=100, codec=codec, options=tuple(options[codec].items())))) as whole,
        av.open(target, "w", format="mp4") as out,
    ):
        stream = out.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.dts is not None]
        second = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        key = packets[second]
        assert any(packet.pts < key.pts for packet in packets[second:]), "the group is open"
        for packet in packets[second:]:
            packet.stream = stream
            out.mux(packet)
    return target.getvalue()


def test_progress_counts_frames_and_can_end_it():
    seen = []
    split_all(film(frames=30), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 30) for done in range(1, 31)]
    with pytest.raises(ZeroDivisionError):
        split_all(film(frames=30), on_progress=lambda done, total: 1 / 0)


def scenes(*lengths: int) -> bytes:
    """Return a film at 30 frames a second whose scenes have so many frames each."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 36, "yuv420p"
        for scene, length in enumerate(lengths):
            pixels = np.random.default_rng(scene).integers(0, 255, (36, 64), dtype=np.uint8) // 2 + 127 * (scene % 2)
            for _ in range(length):
                out.mux(video.encode(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="gray")))
        out.mux(video.encode(None))
    return target.getvalue()


def test_cuts_move_to_changes_of_scene():
    source = io.BytesIO(scenes(52, 48, 72))
    plan = plan_split(source, 4)
    assert plan.cuts == (0, 86, 172)
    assert move_cuts_to_scenes(source, plan, 4).cuts == (0, 100, 172)


def test_film_of_one_clip_is_not_searched_for_changes_of_scene():
    plan = SplitPlan(Fraction(0), Fraction(30), (0, 250))
    assert move_cuts_to_scenes(io.BytesIO(b""), plan, 10) is plan


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (lambda: bytes(500), "not a video"),
        (lambda: b"no film" * 100, "is a text"),
        (lambda: film("mkv", frames=10)[:-1], "cut off"),
        (lambda: film(frames=60)[:-2000], "cut off"),
        (lambda: clip(codec=None, sound="aac"), "sound but no video"),
        (lambda: film(frames=60).replace(b"avc1", b"zzzz"), "no decoder"),
    ],
)
def test_film_that_cannot_be_read_is_refused_with_its_name_and_a_remedy(source, found):
    with pytest.raises(LumaValidationError, match=rf"^source \(/f.mp4\) .*{found}.*: .*\w+"):
        plan_split(io.BytesIO(source()), 10, shown="/f.mp4")


def test_film_that_cannot_be_decoded_is_refused_with_its_name_and_a_remedy():
    source = film(frames=60)
    at = source.index(b"mdat") + 4
    source = source[:at] + b"\xff" * (len(source) - at) if source.index(b"moov") < at else source
    plan = SplitPlan(Fraction(0), Fraction(30), (0, 60))
    with pytest.raises(LumaValidationError, match=r"^source cannot be decoded.*: convert it first"):
        split_all(with_damaged_pictures(source), plan)


def with_damaged_pictures(source: bytes) -> bytes:
    begin = source.index(b"mdat") + 4
    end = source.index(b"moov") - 4
    return source[:begin] + b"\xff" * (end - begin) + source[end:]


class Unreadable(io.BytesIO):
    """A file whose storage fails after a while."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 5000:
            raise ConnectionError("storage is gone")
        return super().read(min(size or 0, 2000) if size != -1 else 2000)


def test_failure_of_the_storage_passes_unchanged():
    with pytest.raises(ConnectionError, match="storage is gone"):
        plan_split(Unreadable(film(frames=400)), 10)


def long_film(frames: int) -> bytes:
    """Return a film of so many frames, all of them the same packet."""
    target = io.BytesIO()
    with av.open(io.BytesIO(film(frames=1))) as source, av.open(target, "w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        first = next(source.demux(video=0))
        content = bytes(first)
        for index in range(frames):
            packet = av.Packet(content)
            packet.pts = packet.dts = index
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 30), True, stream
            out.mux(packet)
    return target.getvalue()


PEAK = """
import sys, tracemalloc
from pathlib import Path
from airflow_provider_luma.media.split import plan_split
with Path({film!r}).open("rb") as source:
    plan_split(source, 10)
    tracemalloc.start()
    result = [plan_split(source, 10).frames, tracemalloc.get_traced_memory()[1]]
"""


@pytest.mark.xdist_group("fresh Python")
def test_plan_of_a_long_film_takes_little_memory_for_each_frame(tmp_path):
    frames, file = 20_000, tmp_path / "film.mp4"
    file.write_bytes(long_film(frames))
    # Other threads of this process, such as a simulator's, may allocate memory at the same time.
    planned, peak = fresh_python.run(PEAK.replace("{film!r}", repr(str(file))))
    assert planned == frames
    assert peak < 80 * frames

# SPDX-License-Identifier: Apache-2.0
"""Joining modified clips: the film's length, which picture is shown when, and its sound."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.film_types import JoinedFilm
from airflow_provider_luma.media.join import join
from airflow_provider_luma.media.split import plan_split, split
from airflow_provider_luma.media.split_plan import SplitPlan
from tests.support.films import (
    FIRST_CLICK,
    NTSC,
    Track,
    clicks,
    film,
    kept_file,
    modified,
    openers,
    pictures,
    rate_of,
    size_of,
    stream_seconds,
    with_tracks,
)

pytestmark = pytest.mark.slow

#: Seconds that a clip of these tests may last, and frames, 30 a second, that make a second one.
CLIP_SECONDS, TWO_CLIPS = 4, 121

#: Seconds by which an encoder lengthens the sound at most, and says nothing of it.
PADDING = {"libmp3lame": 0.05}


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "film.mp4"


def split_all(source: bytes, clip_seconds: float) -> tuple[SplitPlan, list[bytes]]:
    plan, clips = plan_split(io.BytesIO(source), clip_seconds), list[bytes]()
    split(io.BytesIO(source), plan, lambda _: kept_file(clips))
    return plan, clips


def through_service(
    source: bytes,
    output: Path,
    service: Callable[[bytes, int], bytes] = lambda clip, _: modified(clip),
    *,
    clip_seconds: float = CLIP_SECONDS,
    **options: Any,
) -> tuple[bytes, JoinedFilm]:
    """Split a film, let the service modify each clip, and join them."""
    plan, clips = split_all(source, clip_seconds)
    returned = [service(clip, index) for index, clip in enumerate(clips)]
    info = join(openers(returned), io.BytesIO(source), plan, output, **options)
    return output.read_bytes(), info


def check_length(content: bytes, info: JoinedFilm, seconds: float, *, padding: float = 0.0) -> None:
    """Check that video and container are as long as the film, within half a frame, and no more than padding longer."""
    video, container = stream_seconds(content)
    half_a_frame = 0.5 / rate_of(content)
    assert seconds - half_a_frame - 0.001 <= video <= seconds + padding + half_a_frame + 0.001
    assert container == pytest.approx(video, abs=0.001)
    assert info.seconds == pytest.approx(video, abs=0.001)


def lags(content: bytes, rate: Fraction | int) -> list[float]:
    """Return the seconds by which each picture is shown too late."""
    return [at - number / float(rate) for at, number in pictures(content)]


def check_clicks(content: bytes, seconds: float, begin: float = 0.0, end: float = 1e9, origin: float = 0.0) -> None:
    """Check that each click is heard within 5 ms, from the sound's beginning to its end, or the film's."""
    expected = [
        at for at in FIRST_CLICK + np.arange(200) - origin if begin <= at + 0.01 and at < min(end, seconds) - 0.01
    ]
    assert clicks(content) == pytest.approx(expected, abs=0.005)


def test_film_of_five_clips_keeps_length_pictures_and_sound_to_its_end(output):
    source = film(frames=284, rate=NTSC, sound="aac")
    content, info = through_service(
        source, output, lambda clip, _: modified(clip, rate=24, size=(128, 72), seconds=1 / 48), clip_seconds=2
    )
    assert (len(info.lacking), info.sound, rate_of(content), size_of(content)) == (5, "copied", 24, (128, 72))
    check_length(content, info, 284 / NTSC)
    off = [abs(lag) for lag in lags(content, NTSC)]
    assert len(off) == round(info.seconds * 24)
    assert max(off) <= 1 / 48 + 1 / 60
    check_clicks(content, 284 / NTSC)
    assert len(clicks(content)) == 9


def test_clips_that_are_rounded_off_are_held_for_a_frame_at_most(output):
    content, info = through_service(film(frames=284, rate=NTSC), output, clip_seconds=2)
    check_length(content, info, 284 / NTSC)
    assert max(map(abs, lags(content, NTSC))) <= 1 / 24 + 1 / 60
    assert max(info.lacking) <= 1 / 24


def test_clips_at_the_films_own_rate_give_each_frame_back_once(output):
    content, info = through_service(film(frames=TWO_CLIPS), output, lambda clip, _: clip)
    assert [number for _, number in pictures(content)] == list(range(TWO_CLIPS))
    check_length(content, info, TWO_CLIPS / 30)


@pytest.mark.parametrize(
    ("frames", "rate", "clip_seconds", "clips"),
    [
        (100, 10, 10, 1),
        (101, 10, 10, 2),
        (60, 30, 2, 1),
        (61, 30, 2, 2),
        (122, 60, 2, 2),
        (48, 24, 2, 1),
        (101, 50, 2, 2),
        (20, 25, 2, 1),
        (450, 25, 1, 18),
    ],
)
def test_films_of_other_rates_and_lengths(frames, rate, clip_seconds, clips, output):
    source = film(frames=frames, rate=rate, sound="aac")
    content, info = through_service(source, output, clip_seconds=clip_seconds)
    assert (len(info.lacking), rate_of(content)) == (clips, 24)
    check_length(content, info, frames / rate)
    assert max(map(abs, lags(content, rate))) <= 1 / 24 + 0.5 / rate
    check_clicks(content, frames / rate)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_variable_rate(rotation, output):
    gaps = [0, *([33, 34, 50] * 25), 1500, *([40] * 50)]
    ticks = tuple(int(at) for at in np.cumsum(gaps))
    source = film("mov", ticks=ticks, rotation=rotation, size=(54, 96), sound="aac")
    content, info = through_service(source, output, lambda clip, _: modified(clip, size=(54, 96)))
    check_length(content, info, ticks[-1] / 1000)
    for at, number in pictures(content):
        assert ticks[number] / 1000 - 0.045 <= at <= ticks[number + 1] / 1000 + 0.045
    check_clicks(content, ticks[-1] / 1000)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_film_is_joined_upright_and_not_turned_again(rotation, output):
    source = film(frames=60, size=(54, 96), rotation=rotation, sound="aac")
    content, _ = through_service(source, output, lambda clip, _: modified(clip, size=(54, 96)))
    assert size_of(content) == (54, 96)
    assert max(map(abs, lags(content, 30))) <= 1 / 24 + 1 / 60
    with av.open(io.BytesIO(content)) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_film_without_sound_has_none_afterwards(output):
    content, info = through_service(film(frames=30), output)
    assert info.sound == "none"
    with av.open(io.BytesIO(content)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize(
    "sound", ["aac", *(pytest.param(sound, marks=pytest.mark.long) for sound in ("libmp3lame", "pcm_s16le"))]
)
@pytest.mark.parametrize("span", [(0.0, 2.2), (0.0, 4.1), (0.0, 4.3), (0.0, 6.0), (1.2, 4.0), (1.2, 6.0)])
def test_sound_that_begins_late_or_ends_early_or_late(sound, span, output):
    """The film ends when both pictures and sound have ended. Sound as short as an encoder's padding does not count."""
    source = film("mov", frames=TWO_CLIPS, sound=sound, sound_span=span)
    content, info = through_service(source, output)
    assert info.sound == ("encoded" if sound == "pcm_s16le" else "copied")
    length = max(TWO_CLIPS / 30, span[1] if span[1] > 4.2 else 0)
    check_length(content, info, length, padding=PADDING.get(sound, 0) if length > TWO_CLIPS / 30 else 0)
    check_clicks(content, length, *span)
    shown = pictures(content)
    assert {number for at, number in shown if at > TWO_CLIPS / 30} <= {TWO_CLIPS - 1}, "the last picture is held"
    assert all(abs(at - number / 30) <= 1 / 24 + 1 / 60 for at, number in shown if at < TWO_CLIPS / 30)


@pytest.mark.parametrize("sound", ["aac", "libmp3lame", "pcm_s16le"])
@pytest.mark.parametrize("first", [20, 41])
def test_film_begins_with_sound_that_begins_before_the_video(sound, first, output):
    """The first picture stands in for those that are not there yet."""
    source = film("mov", frames=120, first=first, sound=sound, sound_span=(0.0, (120 + first) / 30))
    content, info = through_service(source, output)
    origin = float(plan_split(io.BytesIO(source), 10).origin)
    assert -PADDING.get(sound, 0.001) <= origin <= 0
    length = (120 + first) / 30 - origin
    check_length(content, info, length, padding=PADDING.get(sound, 0))
    for at, number in pictures(content):
        assert max(0, at + origin - first / 30) == pytest.approx(number / 30, abs=1 / 24 + 1 / 60)
    check_clicks(content, length, origin=origin)


def test_sound_before_and_behind_the_pictures_that_is_no_longer_than_padding_is_cut_off(output):
    source = film(frames=120, first=2, sound="aac", sound_span=(0.0, 4.1))
    content, info = through_service(source, output)
    check_length(content, info, 4)
    assert max(map(abs, lags(content, 30))) <= 1 / 24 + 1 / 60
    check_clicks(content, 4, origin=2 / 30)


@pytest.mark.parametrize(("end", "frames"), [(4.3, 121), (4.5, 121), (4.6, 138), (9.0, 270)])
def test_clips_are_made_for_sound_that_goes_on_for_more_than_half_a_second(end, frames):
    source = film(frames=TWO_CLIPS, sound="aac", sound_span=(0.0, end))
    plan, clips = split_all(source, CLIP_SECONDS)
    assert plan.frames == frames == sum(len(pictures(clip)) for clip in clips)
    assert plan.seconds == pytest.approx(end, abs=0.03)


def test_later_of_two_tracks_ends_the_film(output):
    tracks = (Track("aac", (0.0, 3.0)), Track("pcm_s16le", (1.0, 6.0)))
    content, info = through_service(with_tracks(film(frames=90), *tracks, kind="mov"), output)
    check_length(content, info, 6)
    assert len(clicks(content, 1)) == 5


def test_sound_that_cannot_be_decoded_does_not_make_the_film_longer(output):
    source = film(frames=60, sound="ac3", sound_span=(0.0, 6.0)).replace(b"ac-3", b"zzzz")
    content, info = through_service(source, output)
    check_length(content, info, 2)


def test_film_that_was_split_by_1_1_0_is_joined_as_that_did(output):
    source = film(frames=TWO_CLIPS, sound="aac", sound_span=(0.0, 6.0))
    plan = SplitPlan.load({"origin": "0", "rate": "30", "cuts": [0, 60, 121]})
    clips: list[bytes] = []
    split(io.BytesIO(source), plan, lambda _: kept_file(clips))
    info = join(openers(clips), io.BytesIO(source), plan, output)
    check_length(output.read_bytes(), info, TWO_CLIPS / 30)


def test_variable_rate_is_rounded_once(output):
    """The length of the film is not first rounded to the rate of its grid, and then to that of its clips."""
    ticks = (*(33 * n for n in range(61)), 2380, 2785, 3210, 6385, 6425)
    source = film("mov", ticks=ticks, options=(("preset", "ultrafast"), ("bf", "0")))
    content, info = through_service(source, output)
    check_length(content, info, 6.425)


@pytest.mark.parametrize(
    ("kind", "sound", "kept"),
    [
        ("mp4", "aac", "aac"),
        ("mp4", "libmp3lame", "mp3"),
        ("mp4", "ac3", "ac3"),
        ("mov", "pcm_s16le", "aac"),
        ("mp4", "libopus", "aac"),
        ("avi", "libmp3lame", "mp3"),
        ("avi", "pcm_s16le", "aac"),
        ("avi", "aac", "aac"),
    ],
)
def test_sound_is_copied_where_players_of_mp4_take_it(kind, sound, kept, output):
    content, info = through_service(source := film(kind, frames=90, sound=sound), output)
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == kept
    assert info.sound == ("copied" if kept in sound else "encoded")
    assert clicks(content) == pytest.approx(clicks(source), abs=0.001 if kind != "avi" else 0.005)
    assert len(clicks(content)) == 3
    check_length(content, info, 3)


def test_copied_sound_is_the_very_same(output):
    source = film(frames=90, sound="aac")
    content, _ = through_service(source, output)
    assert packets(content)[:100] == packets(source)[:100]


def packets(video: bytes) -> list[tuple[int | None, bytes]]:
    with av.open(io.BytesIO(video)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def test_sound_and_video_lie_beside_each_other_in_the_file(output):
    # For ten seconds the container's own writer would wait for the sound.
    source = film(frames=250, rate=10, sound="aac")
    content, _ = through_service(source, output, lambda clip, _: clip, clip_seconds=10)
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(io.BytesIO(content)) as container:
        order = [(packet.pos, packet.dts * packet.time_base) for packet in container.demux() if packet.size]
    times = [time for _, time in sorted(order)]
    assert max(np.maximum.accumulate(times) - times) < 0.6


def test_odd_size_and_hevc(output):
    content, _ = through_service(film(frames=60, size=(97, 55), pix_fmt="yuv444p"), output, lambda clip, _: clip)
    assert size_of(content) == (96, 54)
    assert [number for _, number in pictures(content)] == list(range(60))
    content, _ = through_service(film("mov", frames=60, codec="libx265"), output, lambda clip, _: clip)
    assert [number for _, number in pictures(content)] == list(range(60))


def test_clips_of_different_rates_get_the_films_own(output):
    content, info = through_service(
        film(frames=300), output, lambda clip, index: modified(clip, rate=(24, 25, 30)[index], seconds=0.04)
    )
    assert rate_of(content) == 30
    check_length(content, info, 300 / 30)
    assert max(map(abs, lags(content, 30))) <= 1 / 48 + 1 / 60


def test_clips_of_different_sizes_get_that_of_the_first(output):
    content, _ = through_service(
        film(frames=TWO_CLIPS), output, lambda clip, index: modified(clip, size=((128, 72), (96, 54))[index])
    )
    assert size_of(content) == (128, 72)
    assert max(map(abs, lags(content, 30))) <= 1 / 24 + 1 / 60


@pytest.mark.parametrize("seconds", [-0.3, 0.5, 3.0])
def test_clip_of_another_length_moves_nothing_behind_it(seconds, output):
    source = film(frames=TWO_CLIPS, sound="aac")
    content, info = through_service(
        source, output, lambda clip, index: modified(clip, seconds=0.0 if index else seconds)
    )
    check_length(content, info, TWO_CLIPS / 30)
    assert info.lacking[0] == pytest.approx(-seconds, abs=0.05)
    for at, number in pictures(content):
        if at < 1.6 or at > 2.05 or seconds > 0:
            assert at == pytest.approx(number / 30, abs=1 / 24 + 1 / 60)
    check_clicks(content, TWO_CLIPS / 30)


def test_clip_that_begins_late_by_its_own_clock_is_not_shown_late(output):
    source = film(frames=60)
    content, _ = through_service(source, output, lambda clip, _: film(frames=60, first=30))
    assert [number for _, number in pictures(content)] == list(range(60))


def test_clip_that_is_far_too_short_is_an_error_that_names_it(output, monkeypatch):
    service = lambda clip, index: modified(clip, seconds=-1.0 if index else 0.0)  # noqa: E731
    with pytest.raises(
        LumaValidationError, match=r"clips\[1\] \(s3://b/2.mp4\) lasts 1\.\d+ .* piece of the film lasts 2\.\d+"
    ):
        through_service(film(frames=TWO_CLIPS), output, service, names=["s3://b/1.mp4", "s3://b/2.mp4"])
    monkeypatch.setattr("airflow_provider_luma.media.join.MAX_HOLD_SECONDS", 1.1)
    content, _ = through_service(film(frames=TWO_CLIPS), output, service)
    assert stream_seconds(content)[0] == pytest.approx(TWO_CLIPS / 30, abs=0.03)


def test_clip_that_cannot_be_read_is_an_error_that_names_it(output):
    with pytest.raises(LumaValidationError, match=r"^clips\[1\] is cut off"):
        through_service(film(frames=TWO_CLIPS), output, lambda clip, index: clip[:-500] if index else clip)


def test_clip_that_cannot_be_decoded_is_an_error_that_names_it(output):
    def service(clip: bytes, index: int) -> bytes:
        begin = clip.index(b"mdat") + 4
        return clip[:begin] + b"\xff" * (len(clip) - begin) if index else clip

    with pytest.raises(LumaValidationError, match=r"^clips\[1\] cannot be decoded"):
        through_service(film(frames=TWO_CLIPS), output, service)


def test_progress_counts_frames_and_can_end_it(output):
    seen = []
    through_service(film(frames=30), output, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(1, 25)]
    with pytest.raises(ZeroDivisionError):
        through_service(film(frames=30), output, on_progress=lambda done, total: 1 / 0)

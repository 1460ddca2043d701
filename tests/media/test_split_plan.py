# SPDX-License-Identifier: Apache-2.0
"""The grid of a film, and its cuts."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_luma.media.split_plan import SplitPlan, cuts_at_scenes, even_cuts, frames_per_clip, plan_uncut
from airflow_provider_luma.media.time_stamps import FrameTimes

NTSC = Fraction(30000, 1001)


def count_frames(times: FrameTimes) -> tuple[Fraction, int]:
    """Return the rate and the number of frames of a silent film's grid."""
    plan = plan_uncut(times, None)
    return plan.rate, plan.frames


RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), NTSC, Fraction(30), Fraction(50), Fraction(60)]


def constant(rate: Fraction, count: int, time_base: Fraction, first: int = 0) -> FrameTimes:
    ticks = [first + round(index / rate / time_base) for index in range(count)]
    return FrameTimes(ticks, time_base, round(1 / rate / time_base))


@settings(max_examples=25)
@given(st.sampled_from(RATES), st.integers(40, 2000), st.integers(-5000, 5000))
def test_constant_rate_is_found_even_when_times_are_rounded_to_milliseconds(rate, count, first):
    count = max(count, 1500) if rate.denominator > 1 or rate in (24, 30, 60) else count
    times = constant(rate, count, Fraction(1, 1000), first)
    assert times.rate() == (rate, True)
    assert count_frames(times) == (rate, count)
    assert times.origin == Fraction(first, 1000)


@given(st.sampled_from([*RATES, Fraction(25, 2), Fraction(18), Fraction(5)]), st.integers(2, 500))
def test_constant_rate_of_exact_times_is_found_however_few_they_are(rate, count):
    assert count_frames(constant(rate, count, 1 / rate / 512)) == (rate, count)


@pytest.mark.parametrize(("rate", "grid"), [(120, 60), (240, 60), (100, 50), (Fraction(120000, 1001), NTSC * 2)])
def test_more_than_60_frames_a_second_become_a_whole_part_of_them(rate, grid):
    assert count_frames(constant(Fraction(rate), 1000, Fraction(1, 120000)))[0] == grid


def test_variable_rate_gets_the_usual_rate_and_keeps_the_length():
    ticks = [0, 33, 67, 100, 160, 193, 227, 260, 1260, 1293, 1327, 1360]
    rate, frames = count_frames(FrameTimes(ticks, Fraction(1, 1000), 140))
    assert (rate, frames) == (30, 45)


def test_slide_show_gets_a_grid_on_which_its_changes_are_shown_in_time():
    assert count_frames(FrameTimes([0, 2000, 7000], Fraction(1, 1000), 1000)) == (Fraction(24000, 1001), 192)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20, unique=True), st.integers(0, 2**62))
def test_no_times_are_too_odd_for_a_grid(ticks, last):
    rate, frames = count_frames(FrameTimes(sorted(ticks), Fraction(1, 1000), last))
    assert 5 <= rate <= 60
    assert frames >= 1


@pytest.mark.parametrize("gap", [500, 1000, 1_000_000])
def test_long_still_pictures_make_no_clip_longer_than_allowed(gap):
    rate, frames = count_frames(FrameTimes([0, gap, 2 * gap], Fraction(1, 1000), gap))
    assert rate > 23
    assert frames == round(3 * gap * rate / 1000)


def test_single_frame_is_a_film():
    assert count_frames(FrameTimes([7], Fraction(1, 1000))) == (25, 1)


@pytest.mark.parametrize(
    ("rate", "frames", "clips"),
    [
        (NTSC, 1418, 5),
        (Fraction(30), 300, 1),
        (Fraction(30), 301, 2),
        (NTSC, 299, 1),
        (NTSC, 300, 2),
        (Fraction(30), 18003, 61),
        (Fraction(24), 1, 1),
    ],
)
def test_clips_are_as_few_as_ten_seconds_allow(rate, frames, clips):
    assert len(even_cuts(frames, frames_per_clip(rate, 10))) == clips + 1


@given(st.integers(1, 20_000), st.integers(1, 700))
def test_even_clips_are_no_longer_than_the_limit_and_differ_by_one_frame(frames, limit):
    cuts = even_cuts(frames, limit)
    lengths = [end - start for start, end in pairwise(cuts)]
    assert (cuts[0], cuts[-1]) == (0, frames)
    assert max(lengths) <= limit
    assert max(lengths) - min(lengths) <= 1


@given(st.sampled_from(RATES), st.integers(1, 5000), st.floats(1, 10))
def test_no_clip_is_longer_than_allowed(rate, frames, clip_seconds):
    for start, end in pairwise(even_cuts(frames, frames_per_clip(rate, clip_seconds))):
        assert (end - start) / rate <= clip_seconds + 0.0005


@given(st.integers(1, 5000), st.integers(30, 400), st.lists(st.integers(-10, 5010), max_size=60))
def test_cuts_at_scenes_keep_the_number_of_clips_and_their_limits(frames, limit, changes):
    even, cuts = even_cuts(frames, limit), cuts_at_scenes(frames, limit, 24, changes)
    lengths = [end - start for start, end in pairwise(cuts)]
    assert (len(cuts), cuts[0], cuts[-1]) == (len(even), 0, frames)
    assert max(lengths) <= limit
    assert min(lengths) >= min(24, frames // len(lengths))
    assert len(set(cuts[1:-1]) & set(changes)) >= len(set(even[1:-1]) & set(changes))


def test_cut_moves_to_a_change_of_scene_within_reach_and_others_make_room():
    assert cuts_at_scenes(450, 240, 24, [100, 230]) == (0, 230, 450)
    assert cuts_at_scenes(450, 240, 24, [100]) == (0, 225, 450)
    assert cuts_at_scenes(1200, 300, 24, [290]) == (0, 300, 600, 900, 1200)
    assert cuts_at_scenes(1150, 300, 24, [262, 560]) == (0, 262, 560, 856, 1150)


def test_plan_survives_json():
    plan = SplitPlan(Fraction(-1001, 30000), NTSC, (0, 284, 567))
    assert SplitPlan.load(json.loads(json.dumps(plan.as_dict()))) == plan
    assert (plan.clips, plan.frames, plan.start(1)) == (2, 567, 284 / NTSC)
    assert plan.seconds == pytest.approx(18.9189)


def test_plan_of_1_1_0_is_as_long_as_its_clips():
    plan = SplitPlan.load({"origin": "0", "rate": "30", "cuts": [0, 300, 597]})
    assert (plan.exact_seconds, plan.length) == (Fraction("19.9"), None)
    assert SplitPlan.load(plan.as_dict()) == plan


@settings(max_examples=50)
@given(st.sampled_from(RATES), st.integers(30, 2000), st.integers(-400, 400), st.integers(-400, 400))
def test_film_is_as_long_as_pictures_and_sound_together(rate, count, begin, end):
    """Each number of hundredths of a second that the sound begins before the pictures, or ends behind them."""
    times = constant(rate, count, 1 / rate / 512, 7)
    pictures = (times.origin, times.origin + count / rate)
    heard = (pictures[0] - Fraction(begin, 100), pictures[1] + Fraction(end, 100))
    plan = plan_uncut(times, heard)
    expected = count / rate + sum(Fraction(excess, 100) for excess in (begin, end) if excess > 10)
    if heard[0] >= heard[1]:
        expected = count / rate
    assert abs(plan.exact_seconds - expected) <= 1 / rate / 2
    assert 0 <= (times.origin - plan.origin) * rate == round((times.origin - plan.origin) * rate)
    assert -1 / rate / 2 <= plan.exact_seconds - plan.frames / plan.rate <= Fraction(1, 2) + 1 / rate / 2
    assert SplitPlan.load(json.loads(json.dumps(plan.as_dict()))) == plan


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"origin": "x", "rate": "24", "cuts": [0, 24]},
        {"origin": "0", "rate": "24", "cuts": [0, 24], "length": "x"},
        {"origin": "0", "rate": "24", "cuts": [0, 24], "length": "3"},
        {"origin": "0", "rate": "0", "cuts": [0, 1]},
        {"origin": "0", "rate": "1/0", "cuts": [0, 1]},
        {"origin": "0", "rate": "24", "cuts": [0]},
        {"origin": "0", "rate": "24", "cuts": [0, 5, 5]},
        {"origin": "0", "rate": "24", "cuts": [1, 5]},
        {"origin": "0", "rate": "24", "cuts": None},
    ],
)
def test_invalid_plan_is_refused(values):
    with pytest.raises(ValueError, match="not the plan of a split"):
        SplitPlan.load(values)

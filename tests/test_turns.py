# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is, and when: by a clock that nobody has to wait for."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import statistics
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_luma.turns import (
    ENOUGH,
    EXPECTED_DELAY,
    GRAIN,
    LONGEST_DELAY,
    MEMORY,
    RECOVERY_STEP,
    SLOWEST,
    Durations,
    Pace,
    Turns,
)
from airflow_provider_luma.waiting import LONGEST_RETRY_AFTER
from benchmarks import order
from benchmarks.simulated_clock import run

rates = st.floats(0.2, 50)


def at_once() -> tuple[float, float, float]:
    return 0.0, 0.0, 0.0


def calls(
    pace: Pace, seconds: float, *, start: float = 1000.0, ways: Callable[[], tuple[float, float, float]] = at_once
) -> tuple[list[float], list[float]]:
    """
    Return when calls leave and arrive if there is always one to make, by a clock that nobody has to wait for.

    :param ways: returns how much too late a call leaves, and how long it is on its way, and its answer
    """
    now, left, arrived = start, list[float](), list[float]()
    under_way: list[tuple[float, float]] = []
    while now < start + seconds:
        at = now + pace.wait(now)
        if under_way and under_way[0][0] <= at:
            now, departure = heapq.heappop(under_way)
            pace.back(now, left=departure)
            continue
        late, there, home = ways()
        now = at + late
        while under_way and under_way[0][0] <= now:
            back, departure = heapq.heappop(under_way)
            pace.back(back, left=departure)
        pace.left(now)
        left.append(now)
        arrived.append(now + there)
        heapq.heappush(under_way, (now + there + home, now))
    return left, arrived


def departures(pace: Pace, seconds: float, *, start: float = 1000.0) -> list[float]:
    """Return when calls leave if there is always one to make, and each is answered at once."""
    return calls(pace, seconds, start=start)[0]


def uneven(distance: float, jitter: float, most: float) -> Callable[[], tuple[float, float, float]]:
    """Return ways that take a time of their own each; few of them much longer than the others."""
    chance = random.Random(f"{distance} {jitter}")

    def delay() -> float:
        return min(chance.expovariate(1 / jitter), most) if jitter else 0.0

    return lambda: (delay(), distance / 2 + delay(), distance / 2 + delay())


def most_in_a_second(times: list[float]) -> int:
    """Return how many lie within a second at most; what lies a rounding error less than a second apart, does not."""
    times = sorted(times)
    return max(bisect_left(times, first + 1 - 1e-6) - i for i, first in enumerate(times))


class TestPace:
    @given(rates)
    def test_no_second_sees_more_than_the_rate(self, rate):
        assert most_in_a_second(departures(Pace(rate), 20)) <= math.ceil(rate)

    @pytest.mark.parametrize("jitter", [0.0, 0.003, 0.01, 0.02])
    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.3])
    @pytest.mark.parametrize("rate", [0.7, 2.9, 10, 50])
    def test_no_second_sees_more_arrive_however_uneven_the_way(self, rate, distance, jitter):
        left, arrived = calls(Pace(rate), 10_000 / rate, ways=uneven(distance, jitter, LONGEST_DELAY / 2))
        assert most_in_a_second(left) <= math.ceil(rate)
        assert most_in_a_second(arrived) <= math.ceil(rate)
        assert len(left) > 10_000 * (0.98 - 10 * jitter)

    def test_connections_that_have_to_be_made_do_not_let_more_arrive(self):
        to_connect = itertools.chain([0.4] * 5, itertools.repeat(0.0))
        _, arrived = calls(Pace(10), 60, ways=lambda: (0.0, 0.1 + next(to_connect), 0.1))
        assert most_in_a_second(arrived) <= 10

    @given(rates, st.lists(st.floats(0, 40), min_size=1, max_size=5), st.lists(st.floats(0, 1), min_size=1, max_size=5))
    def test_no_second_sees_more_leave_however_late_they_are_and_the_answers(self, rate, answers, timers):
        late, home = itertools.cycle(timers), itertools.cycle(answers)
        left, _ = calls(Pace(rate), 60, ways=lambda: (next(late), 0.0, next(home)))
        assert most_in_a_second(left) <= math.ceil(rate)

    def test_what_is_given_up_may_have_arrived_all_the_same_and_tells_nothing_of_the_way(self):
        pace = Pace(1)
        for i in range(200):
            pace.left(1000.0 + 10 * i)
            pace.back(1000.3 + 10 * i, left=1000.0 + 10 * i)
        pace.left(5000.0)
        given_up = pace.back(5000.01, left=5000.0, is_answered=False)
        assert given_up == 5001 + LONGEST_DELAY
        pace.left(6000.0)
        assert pace.back(6000.3, left=6000.0) == pytest.approx(6001, abs=GRAIN + 1e-6)

    def test_an_answer_that_never_comes_does_not_take_the_turn_of_others(self):
        pace = Pace(10)
        pace.left(1000.0)
        assert len(departures(pace, 60)) > 0.85 * 600

    @given(rates)
    def test_nearly_all_of_the_rate_is_used(self, rate):
        assert len(departures(Pace(rate), 100)) >= 0.98 * rate * 100 - 1

    def test_a_share_can_be_kept_in_reserve(self):
        assert len(departures(Pace(10, 0.9), 100)) == pytest.approx(900, abs=2)

    def test_what_a_late_timer_has_lost_is_made_up_for(self):
        pace, now, number = Pace(10), 1000.0, 0
        while now < 1100:
            now += pace.wait(now) + 0.02
            pace.left(now)
            pace.back(now, left=now)
            number += 1
        assert number >= 0.97 * 1000

    def test_the_first_call_does_not_wait(self):
        assert Pace(10).wait(1000.0) == 0

    def test_a_pause_is_not_saved_up_for_a_burst(self):
        pace = Pace(10)
        pace.left(1000.0)
        assert pace.wait(2000.0) == 0
        pace.left(2000.0)
        assert pace.wait(2000.0) == pytest.approx(0.1)

    def test_a_refusal_halves_the_pace(self):
        pace = Pace(10)
        pace.refused(1000.0, left=1000.0)
        gaps = [later - earlier for earlier, later in pairwise(departures(pace, 3))]
        assert gaps == pytest.approx([2 / pace.full] * len(gaps))

    def test_calls_that_were_under_way_together_are_refused_as_one(self):
        pace = Pace(10)
        for i in range(10):
            pace.refused(1000.0 + i / 20, left=999.5 + i / 20)
        assert pace.rate == pace.full / 2

    @pytest.mark.parametrize("allowed", [0.5, 1, 3, 7])
    def test_it_finds_the_pace_that_the_service_allows(self, allowed):
        pace, now, accepted, refused = Pace(10), 1000.0, [], 0
        while now < 1600:
            now += pace.wait(now)
            pace.left(now)
            pace.back(now, left=now)
            if sum(now - 1 / min(allowed, 1) < other for other in accepted) < max(1, allowed):
                accepted.append(now)
            else:
                refused += 1
                pace.refused(now, left=now)
        assert len(accepted) > 0.5 * allowed * 600
        assert refused < len(accepted)

    def test_no_pause_is_endless(self):
        pace = Pace(10)
        pace.refused(1000.0, 86_400, left=1000.0)
        assert pace.wait(1000.0) == LONGEST_RETRY_AFTER

    def test_another_rate_is_taken_up(self):
        pace = Pace(10)
        pace.allow(2)
        assert len(departures(pace, 100)) == pytest.approx(200, abs=3)

    def test_it_recovers_step_by_step(self):
        pace = Pace(10)
        pace.refused(1000.0, left=1000.0)
        departures(pace, RECOVERY_STEP * 1.5)
        assert pace.full / 2 < pace.rate < pace.full
        departures(pace, RECOVERY_STEP * 10, start=1000 + RECOVERY_STEP * 1.5)
        assert pace.rate == pace.full

    @given(st.floats(0, LONGEST_RETRY_AFTER))
    def test_the_pause_that_the_service_asks_for_is_honoured(self, retry_after):
        pace = Pace(10)
        pace.refused(1000.0, retry_after, left=1000.0)
        assert pace.wait(1000.0) >= retry_after - 1e-6

    @given(rates, st.lists(st.floats(0, 5), max_size=50))
    def test_it_never_stands_still(self, rate, gaps):
        pace, now = Pace(rate), 1000.0
        for gap in gaps:
            now += gap
            pace.refused(now, left=now)
        assert pace.rate >= min(SLOWEST, pace.full)
        assert pace.wait(now) <= 1 / pace.rate + 1e-6


class TestDurations:
    def test_too_few_say_nothing(self):
        durations = Durations()
        for _ in range(ENOUGH - 1):
            durations.add(100)
        assert durations.worth_a_look(0) is None
        durations.add(100)
        assert durations.worth_a_look(0) == 100 + EXPECTED_DELAY

    def test_who_runs_longer_than_nearly_all_is_looked_at_as_ever(self):
        durations = Durations()
        for seconds in range(100, 200):
            durations.add(seconds)
        assert durations.worth_a_look(190) is None
        assert durations.patience(190, 5) == 0

    def test_a_young_job_gives_way(self):
        durations = Durations()
        for _ in range(50):
            durations.add(100)
        assert durations.patience(10, 5) == 85 + EXPECTED_DELAY

    def test_what_is_long_past_is_forgotten(self):
        durations = Durations()
        for _ in range(MEMORY):
            durations.add(100)
        for _ in range(MEMORY):
            durations.add(300)
        assert durations.worth_a_look(0) == 300 + EXPECTED_DELAY

    @given(st.lists(st.floats(0, 1000), min_size=ENOUGH, max_size=60), st.floats(0, 1000))
    def test_by_then_a_second_of_delay_is_to_be_expected(self, past, age):
        durations = Durations()
        for seconds in past:
            durations.add(seconds)
        longer = [seconds for seconds in past if seconds > age]
        worth = durations.worth_a_look(age)
        if worth is None:
            assert len(longer) < ENOUGH
        else:
            delays = [max(0.0, worth - seconds) for seconds in longer]
            assert sum(delays) / len(longer) == pytest.approx(EXPECTED_DELAY, rel=1e-6)
            assert durations.patience(age, 0) >= 0


class TestOrder:
    """Scenes of the benchmark, in simulated time."""

    @pytest.mark.parametrize(
        ("scene", "at_most"), [(order.at_once, 1.01), (order.steady, 0.6), (order.three_kinds, 0.8)]
    )
    def test_ends_are_seen_sooner_than_by_turns_where_that_is_possible(self, scene, at_most):
        jobs = scene(random.Random(1))
        by_turns, by_likelihood = (
            statistics.mean(run(order.lateness(jobs, by_turns=by_turns))) for by_turns in (True, False)
        )
        assert by_likelihood <= at_most * by_turns


def turns_at(rate: float) -> Turns:
    async def _rate() -> float:
        return rate

    return Turns(_rate)


def simulate(turns: Turns, work: Callable[[Turns], Awaitable[None]], *more: Callable[[Turns], Awaitable[None]]) -> None:
    """Let these take turns in simulated time."""

    async def main() -> None:
        try:
            await asyncio.gather(*(one(turns) for one in (work, *more)))
        finally:
            turns.close()

    run(main())


class Caller:
    """Takes one turn, and notes when."""

    def __init__(self, start: float, due: float, claim: float | None = None, *, notes: list[tuple[float, Caller]]):
        self.start, self.due, self.claim, self.notes = start, due, claim, notes

    async def __call__(self, turns: Turns) -> None:
        await asyncio.sleep(self.start)
        async with turns.turn(self.due, self.claim):
            self.notes.append((asyncio.get_running_loop().time(), self))


times = st.floats(0, 20)


class TestTurns:
    @settings(deadline=None)
    @given(st.floats(0.5, 2000), st.lists(st.tuples(times, times), min_size=1, max_size=100))
    def test_no_second_sees_more_than_the_rate_and_nobody_is_forgotten(self, rate, callers):
        notes: list[tuple[float, Caller]] = []
        simulate(turns_at(rate), *(Caller(start, due, notes=notes) for start, due in callers))
        given_at = [at for at, _ in notes]
        assert len(notes) == len(callers)
        for i, first in enumerate(given_at):
            assert sum(first <= at < first + 1 for at in given_at[i:]) <= math.ceil(rate)
        for at, caller in notes:
            assert at >= max(caller.start, caller.due) - GRAIN

    @given(st.permutations(range(20)))
    def test_of_those_who_are_due_the_earliest_claim_is_first(self, claims):
        notes: list[tuple[float, Caller]] = []
        simulate(turns_at(10), *(Caller(0, 1, 1 + claim, notes=notes) for claim in claims))
        assert [caller.claim for _, caller in notes] == [1 + claim for claim in range(20)]

    def test_nobody_has_to_wait_for_its_claim_if_there_is_room(self):
        notes: list[tuple[float, Caller]] = []
        simulate(turns_at(10), Caller(0, 1, 1000, notes=notes))
        assert notes[0][0] == pytest.approx(1, abs=GRAIN)

    def test_without_claims_the_one_that_was_due_first_is_first(self):
        notes: list[tuple[float, Caller]] = []
        dues = [random.Random(i).uniform(0, 1) for i in range(30)]
        simulate(turns_at(1), Caller(0, 1.5, notes=notes), *(Caller(1, due, notes=notes) for due in dues))
        assert [caller.due for _, caller in notes] == [*sorted(dues), 1.5]

    def test_a_thousand_that_start_at_once_are_spread(self):
        notes: list[tuple[float, Caller]] = []
        simulate(turns_at(10), *(Caller(0, 0, notes=notes) for _ in range(1000)))
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(notes)]
        assert gaps == pytest.approx([1 / 10] * 999)

    def test_many_calls_leave_together_where_each_would_cost_a_waking(self):
        chance, left = random.Random(1), list[float]()

        async def call(turns: Turns) -> None:
            async with turns.turn(0):
                left.append(asyncio.get_running_loop().time())
                await asyncio.sleep(chance.uniform(0.001, 0.02))

        simulate(turns_at(1000), *[call] * 3000)
        assert len(set(left)) < 600

    @pytest.mark.parametrize("retry_after", [None, 30])
    def test_a_refusal_slows_everybody_down(self, retry_after):
        notes: list[tuple[float, Caller]] = []

        async def refused(turns: Turns) -> None:
            async with turns.turn(0):
                turns.refused(retry_after, left=asyncio.get_running_loop().time())

        simulate(turns_at(10), refused, *(Caller(0, 0, notes=notes) for _ in range(10)))
        assert notes[0][0] >= (retry_after or 0.2)
        assert notes[1][0] - notes[0][0] > 1.5 / 10

    def test_those_that_are_cancelled_leave_no_trace(self):
        notes: list[tuple[float, Caller]] = []
        gone: list[tuple[float, Caller]] = []

        async def cancelled(turns: Turns) -> None:
            one = asyncio.create_task(Caller(0, 0, notes=gone)(turns))
            await asyncio.sleep(0.5)
            one.cancel()

        last = Caller(0, 0.3, notes=notes)
        simulate(turns_at(1), Caller(0, 0, notes=notes), *[cancelled] * 50, last)
        assert gone == []
        assert notes[-1][0] == pytest.approx(1)

    @pytest.mark.parametrize("steps", range(8))
    def test_one_that_is_stopped_as_it_gets_its_turn_gives_it_back(self, steps):
        notes: list[tuple[float, Caller]] = []

        async def stopped(turns: Turns) -> None:
            one = asyncio.create_task(Caller(0, 1, notes=[])(turns))
            await asyncio.sleep(1)
            for _ in range(steps):
                await asyncio.sleep(0)
            one.cancel()

        async def last(turns: Turns) -> None:
            async with asyncio.timeout(20):
                await Caller(5, 5, notes=notes)(turns)

        simulate(turns_at(1), stopped, last)
        assert notes[0][0] == pytest.approx(5, abs=GRAIN)

    def test_one_that_is_given_up_counts_as_if_it_had_arrived_late(self):
        notes: list[tuple[float, Caller]] = []

        async def given_up(turns: Turns) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01), turns.turn(0):
                    await asyncio.sleep(100)

        simulate(turns_at(1), given_up, Caller(0, 0, notes=notes))
        assert notes[0][0] == pytest.approx(1 + LONGEST_DELAY, abs=GRAIN)

    def test_one_that_keeps_its_turn_holds_up_as_many_as_are_allowed_at_a_time(self):
        order = []

        async def slow(turns: Turns) -> None:
            async with turns.turn(0):
                order.append(asyncio.get_running_loop().time())
                await asyncio.sleep(100)

        simulate(turns_at(3), *[slow] * 4)
        assert order[2] < 1.1
        assert order[3] == pytest.approx(100, abs=GRAIN)

    def test_another_rate_is_taken_up_at_once(self):
        rates, notes = [1.0], list[tuple[float, Caller]]()

        async def rate() -> float:
            return rates[0]

        async def change(turns: Turns) -> None:
            await asyncio.sleep(5)
            rates[0] = 10.0

        simulate(Turns(rate), change, *(Caller(0, 0, notes=notes) for _ in range(50)))
        assert notes[-1][0] < 11

    def test_what_stops_the_handing_out_is_told_to_all_and_does_not_last(self):
        broken = [True]

        async def rate() -> float:
            await asyncio.sleep(1)
            if broken[0]:
                raise OSError("out of reach")
            return 10.0

        async def main() -> None:
            turns, notes = Turns(rate), list[tuple[float, Caller]]()
            for _ in range(20):  # more often than calls are allowed at a time
                waiting = (Caller(0, 0, notes=notes)(turns) for _ in range(5))
                told = await asyncio.gather(*waiting, return_exceptions=True)
                assert [str(error) for error in told] == ["out of reach"] * 5
                broken[0] = False
                await Caller(0, 0, notes=notes)(turns)
                notes.clear()
                broken[0] = True
            broken[0] = False
            await Caller(0, 0, notes=notes)(turns)
            assert len(notes) == 1
            turns.close()

        run(main())

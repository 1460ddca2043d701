# SPDX-License-Identifier: Apache-2.0
"""When a request may be sent, and which of those that wait is next, in simulated time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_luma.core.backoff import MAX_RETRY_AFTER
from airflow_provider_luma.core.rate_limit import (
    MAX_TRANSIT_DELAY,
    MAX_UNANSWERED,
    MIN_RATE,
    RAISE_AFTER,
    RAISE_INTERVAL,
    TIMER_RESOLUTION,
    RateLimiter,
    RequestRate,
)
from harness.simulated_clock import run

limits = st.floats(0.2, 50)

#: By how much a request is sent too late, how long it takes to arrive, and how long its answer takes; in seconds.
Transit = tuple[float, float, float]


def instantly() -> Transit:
    return 0.0, 0.0, 0.0


def send_all(
    rate: RequestRate, seconds: float, *, start: float = 1000.0, transit: Callable[[], Transit] = instantly
) -> tuple[list[float], list[float]]:
    """Return when requests are sent and arrive if there is always one to send, by a simulated clock."""
    now, sent, arrived = start, list[float](), list[float]()
    unanswered: list[tuple[float, float]] = []
    while now < start + seconds:
        at = now + rate.delay(now)
        if unanswered and unanswered[0][0] <= at:
            now, sent_at = heapq.heappop(unanswered)
            rate.on_response(now, sent_at=sent_at)
            continue
        late, there, home = transit()
        now = at + late
        while unanswered and unanswered[0][0] <= now:
            answered_at, sent_at = heapq.heappop(unanswered)
            rate.on_response(answered_at, sent_at=sent_at)
        rate.on_request_sent(now)
        sent.append(now)
        arrived.append(now + there)
        heapq.heappush(unanswered, (now + there + home, now))
    return sent, arrived


def send_times(rate: RequestRate, seconds: float, *, start: float = 1000.0) -> list[float]:
    """Return when requests are sent if there is always one to send, and each is answered at once."""
    return send_all(rate, seconds, start=start)[0]


def uneven(distance: float, jitter: float, most: float) -> Callable[[], Transit]:
    """Return transits, each with a random time; few take much longer than the others."""
    rng = random.Random(f"{distance} {jitter}")

    def delay() -> float:
        return min(rng.expovariate(1 / jitter), most) if jitter else 0.0

    return lambda: (delay(), distance / 2 + delay(), distance / 2 + delay())


def most_in_a_second(times: list[float]) -> int:
    """Return how many lie within a second at most; what lies a rounding error less than a second apart, does not."""
    times = sorted(times)
    return max(bisect_left(times, first + 1 - 1e-6) - i for i, first in enumerate(times))


def reduced_twice() -> RequestRate:
    """Return a rate of four requests a second, of ten."""
    rate = RequestRate(10)
    rate.on_rate_limited(990.0, sent_at=990.0)
    for i in range(5):
        rate.on_request_sent(999.0 + i / 5)
        rate.on_response(999.0 + i / 5, sent_at=999.0 + i / 5)
    rate.on_request_sent(999.9)
    rate.on_rate_limited(1000.0, sent_at=999.9)
    rate.on_response(1000.0, sent_at=999.9)
    assert rate.rate == 4
    return rate


class TestRequestRate:
    @given(limits)
    def test_no_more_requests_than_the_limit_are_sent_in_any_second(self, limit):
        assert most_in_a_second(send_times(RequestRate(limit), 20)) <= math.ceil(limit)

    @pytest.mark.parametrize("jitter", [0.0, 0.003, 0.01, 0.02])
    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.3])
    @pytest.mark.parametrize("limit", [0.7, 2.9, 10, 50])
    def test_no_more_requests_than_the_limit_arrive_in_any_second_however_uneven_the_transit(
        self, limit, distance, jitter
    ):
        transit = uneven(distance, jitter, MAX_TRANSIT_DELAY / 2)
        sent, arrived = send_all(RequestRate(limit), 4000 / limit, transit=transit)
        assert most_in_a_second(sent) <= math.ceil(limit)
        assert most_in_a_second(arrived) <= math.ceil(limit)
        assert len(sent) > 4000 * (0.98 - 10 * jitter)

    def test_no_more_requests_than_the_limit_arrive_though_some_have_to_connect_first(self):
        connecting = itertools.chain([0.4] * 5, itertools.repeat(0.0))
        _, arrived = send_all(RequestRate(10), 60, transit=lambda: (0.0, 0.1 + next(connecting), 0.1))
        assert most_in_a_second(arrived) <= 10

    @settings(max_examples=50)
    @given(
        limits, st.lists(st.floats(0, 40), min_size=1, max_size=5), st.lists(st.floats(0, 1), min_size=1, max_size=5)
    )
    def test_no_more_requests_than_the_limit_are_sent_however_late_timers_and_answers_are(self, limit, answers, timers):
        late, home = itertools.cycle(timers), itertools.cycle(answers)
        sent, _ = send_all(RequestRate(limit), 60, transit=lambda: (next(late), 0.0, next(home)))
        assert most_in_a_second(sent) <= math.ceil(limit)

    def test_a_cancelled_request_counts_as_arrived_late_and_does_not_change_the_known_round_trip(self):
        rate = RequestRate(1)
        for i in range(200):
            rate.on_request_sent(1000.0 + 10 * i)
            rate.on_response(1000.3 + 10 * i, sent_at=1000.0 + 10 * i)
        rate.on_request_sent(5000.0)
        cancelled = rate.on_response(5000.01, sent_at=5000.0, is_answered=False)
        assert cancelled == 5001 + MAX_TRANSIT_DELAY
        rate.on_request_sent(6000.0)
        assert rate.on_response(6000.3, sent_at=6000.0) == pytest.approx(6001, abs=TIMER_RESOLUTION + 1e-6)

    def test_a_request_that_is_never_answered_does_not_stop_the_others(self):
        rate = RequestRate(10)
        rate.on_request_sent(1000.0)
        assert len(send_times(rate, 60)) > 0.85 * 600

    @settings(max_examples=30)
    @given(limits)
    def test_nearly_all_of_the_limit_is_used(self, limit):
        assert len(send_times(RequestRate(limit), 100)) >= 0.98 * limit * 100 - 1

    def test_no_more_than_the_given_share_of_the_limit_is_used(self):
        assert len(send_times(RequestRate(10, 0.9), 100)) == pytest.approx(900, abs=2)

    def test_the_lateness_of_a_timer_is_made_up_for(self):
        rate, now, number = RequestRate(10), 1000.0, 0
        while now < 1100:
            now += rate.delay(now) + 0.02
            rate.on_request_sent(now)
            rate.on_response(now, sent_at=now)
            number += 1
        assert number >= 0.97 * 1000

    def test_the_first_request_is_not_delayed(self):
        assert RequestRate(10).delay(1000.0) == 0

    def test_idle_time_is_not_saved_up_for_a_burst(self):
        rate = RequestRate(10)
        rate.on_request_sent(1000.0)
        assert rate.delay(2000.0) == 0
        rate.on_request_sent(2000.0)
        assert rate.delay(2000.0) == pytest.approx(0.1)

    def test_a_429_halves_the_rate(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        gaps = [later - earlier for earlier, later in pairwise(send_times(rate, 3))]
        assert gaps == pytest.approx([2 / rate.full_rate] * len(gaps))

    def test_429s_of_requests_sent_before_the_rate_was_halved_do_not_halve_it_again(self):
        rate = RequestRate(10)
        for i in range(10):
            rate.on_rate_limited(1000.0 + i / 20, sent_at=999.5 + i / 20)
        assert rate.rate == rate.full_rate / 2

    @pytest.mark.parametrize("allowed", [0.5, 1, 3, 7])
    def test_the_rate_adapts_to_what_the_service_allows(self, allowed):
        rate, now, accepted, refused = RequestRate(10), 1000.0, [], 0
        while now < 1600:
            now += rate.delay(now)
            rate.on_request_sent(now)
            rate.on_response(now, sent_at=now)
            if sum(now - 1 / min(allowed, 1) < other for other in accepted[-10:]) < max(1, allowed):
                accepted.append(now)
            else:
                refused += 1
                rate.on_rate_limited(now, sent_at=now)
        assert len(accepted) > 0.5 * allowed * 600
        assert refused < len(accepted)

    def test_retry_after_is_honoured_for_five_minutes_at_most(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, 86_400, sent_at=1000.0)
        assert rate.delay(1000.0) == MAX_RETRY_AFTER

    def test_set_limit_changes_the_rate(self):
        rate = RequestRate(10)
        rate.set_limit(2)
        assert len(send_times(rate, 100)) == pytest.approx(200, abs=3)

    def test_set_limit_keeps_a_reduced_rate_reduced_in_proportion(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        rate.set_limit(4)
        assert (rate.rate, rate.full_rate) == (2, 4)

    def test_the_rate_recovers_step_by_step(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        send_times(rate, 0.7 * RAISE_AFTER - 1)
        assert rate.rate == 5
        send_times(rate, 0.3 * RAISE_AFTER + 2, start=999 + 0.7 * RAISE_AFTER)
        assert rate.rate > 5
        send_times(rate, 5 * RAISE_INTERVAL, start=1001 + RAISE_AFTER)
        assert rate.rate == rate.full_rate

    @settings(max_examples=50)
    @given(limits, st.integers(0, 1000))
    def test_no_more_requests_than_the_limit_are_sent_in_any_second_whatever_is_refused(self, limit, seed):
        rate, now, sent, chance = RequestRate(limit, raise_after=1), 1000.0, list[float](), random.Random(seed)
        for _ in range(500):
            now += rate.delay(now)
            rate.on_request_sent(now)
            sent.append(now)
            if chance.random() < 0.05:
                rate.on_rate_limited(now, sent_at=now)
            rate.on_response(now, sent_at=now)
        assert most_in_a_second(sent) <= math.ceil(limit)

    def test_after_a_429_a_share_of_at_most_half_keeps_what_the_service_has_accepted_in_the_last_second(self):
        rate = RequestRate(20)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        assert rate.rate == 10
        for i in range(7):
            rate.on_request_sent(1002.0 + i / 10)
            rate.on_response(1002.0 + i / 10, sent_at=1002.0 + i / 10)
        rate.on_request_sent(1002.7)
        rate.on_rate_limited(1002.7, sent_at=1002.7)
        assert rate.rate == 7

    def test_requests_that_hang_since_seconds_do_not_count_as_accepted_in_the_last_second(self):
        rate = RequestRate(20)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        for i in range(9):
            rate.on_request_sent(1001.0 + i / 10)
        for i in range(7):
            assert rate.delay(1010.0 + i / 10) == pytest.approx(0, abs=1e-6)
            rate.on_request_sent(1010.0 + i / 10)
            rate.on_response(1010.0 + i / 10, sent_at=1010.0 + i / 10)
        rate.on_request_sent(1010.7)
        rate.on_rate_limited(1010.7, sent_at=1010.7)
        assert rate.rate == 7

    def test_a_rate_below_one_request_a_second_doubles_up_to_one_and_then_takes_whole_numbers(self):
        rate, now, rates = RequestRate(10), 1000.0, list[float]()
        for _ in range(10):
            now += 10
            rate.on_rate_limited(now, sent_at=now)
        while rate.rate < 10:
            if rate.rate not in rates:
                rates.append(rate.rate)
            send_times(rate, 1, start=now)
            now += 1
        assert rates == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    def test_nothing_is_sent_for_a_second_after_a_429(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        assert rate.delay(1000.0) == pytest.approx(1)

    def test_a_raised_rate_is_tried_with_a_request_right_behind_another(self):
        rate = reduced_twice()
        sent = send_times(rate, RAISE_AFTER + 1)
        behind = [later for earlier, later in pairwise(sent) if later - earlier < 1e-6]
        assert behind
        assert 0.7 * RAISE_AFTER - 3 <= behind[0] - 1000 <= RAISE_AFTER + 1

    @pytest.mark.parametrize(("chance", "share"), [(0.2, 4), (0.1, 3)])
    def test_a_429_right_after_a_raise_takes_it_back_and_at_times_one_request_more(self, monkeypatch, chance, share):
        monkeypatch.setattr(random, "random", lambda: chance)
        rate = reduced_twice()
        now = 1000.0 + RAISE_AFTER
        rate.on_request_sent(now)
        assert rate.rate == 5
        assert rate.delay(now) == 0
        rate.on_request_sent(now)
        rate.on_rate_limited(now + 0.1, sent_at=now)
        assert rate.rate == share
        assert rate.delay(now + 0.1) <= 1 / share

    def test_a_raise_that_is_refused_with_more_than_half_of_the_limit_costs_one_request_more(self):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, sent_at=1000.0)
        for now in (1045.0, 1048.0, 1051.0):
            rate.on_request_sent(now)
        assert rate.rate == 8
        rate.on_rate_limited(1051.1, sent_at=1051.0)
        assert rate.rate == 6

    @given(st.floats(0, MAX_RETRY_AFTER))
    def test_retry_after_is_honoured(self, retry_after):
        rate = RequestRate(10)
        rate.on_rate_limited(1000.0, retry_after, sent_at=1000.0)
        assert rate.delay(1000.0) >= retry_after - 1e-6

    @given(limits, st.lists(st.floats(0, 5), max_size=50))
    def test_429s_never_stop_the_requests_altogether(self, limit, gaps):
        rate, now = RequestRate(limit), 1000.0
        for gap in gaps:
            now += gap
            rate.on_rate_limited(now, sent_at=now)
        assert rate.rate >= min(MIN_RATE, rate.full_rate) - 1e-9
        assert rate.delay(now) <= max(1 / rate.rate, math.ceil(limit) / limit) + 1e-6


Client = Callable[[RateLimiter], Awaitable[None]]


def simulate(limit: float, *clients: Client) -> None:
    """Let these clients use one rate limiter in simulated time."""

    async def main() -> None:
        limiter = RateLimiter(limit)
        try:
            await asyncio.gather(*(client(limiter) for client in clients))
        finally:
            limiter.close()

    run(main())


class Sender:
    """Sends one request, and appends when to a list that it shares with others."""

    def __init__(self, start: float, due: float, priority: float | None = None, *, sent: list[tuple[float, Sender]]):
        self.start, self.due, self.priority, self.sent = start, due, priority, sent

    async def __call__(self, limiter: RateLimiter) -> None:
        await asyncio.sleep(self.start)
        async with limiter.request(self.due, self.priority):
            self.sent.append((asyncio.get_running_loop().time(), self))


times = st.floats(0, 20)


class TestRateLimiter:
    @settings(max_examples=50)
    @given(st.floats(0.5, 2000), st.lists(st.tuples(times, times), min_size=1, max_size=100))
    def test_every_request_is_sent_when_due_or_later_and_no_more_than_the_limit_in_any_second(self, limit, requests):
        sent: list[tuple[float, Sender]] = []
        simulate(limit, *(Sender(start, due, sent=sent) for start, due in requests))
        sent_at = [at for at, _ in sent]
        assert len(sent) == len(requests)
        for i, first in enumerate(sent_at):
            assert sum(first <= at < first + 1 for at in sent_at[i:]) <= math.ceil(limit)
        for at, sender in sent:
            assert at >= max(sender.start, sender.due) - TIMER_RESOLUTION

    @settings(max_examples=30)
    @given(st.permutations(range(20)))
    def test_of_the_requests_that_are_due_the_one_with_the_earliest_priority_is_sent_first(self, priorities):
        sent: list[tuple[float, Sender]] = []
        simulate(10, *(Sender(0, 1, 1 + priority, sent=sent) for priority in priorities))
        assert [sender.priority for _, sender in sent] == [1 + priority for priority in range(20)]

    def test_a_request_is_sent_when_due_whatever_its_priority_if_no_other_is(self):
        sent: list[tuple[float, Sender]] = []
        simulate(10, Sender(0, 1, 1000, sent=sent))
        assert sent[0][0] == pytest.approx(1, abs=TIMER_RESOLUTION)

    def test_without_priorities_the_request_that_was_due_first_is_sent_first(self):
        sent: list[tuple[float, Sender]] = []
        dues = [random.Random(i).uniform(0, 1) for i in range(30)]
        simulate(1, Sender(0, 1.5, sent=sent), *(Sender(1, due, sent=sent) for due in dues))
        assert [sender.due for _, sender in sent] == [*sorted(dues), 1.5]

    def test_a_thousand_requests_that_are_due_at_once_are_spaced_evenly(self):
        sent: list[tuple[float, Sender]] = []
        simulate(10, *(Sender(0, 0, sent=sent) for _ in range(1000)))
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(sent)]
        assert gaps == pytest.approx([1 / 10] * 999)

    def test_at_high_rates_requests_are_sent_in_batches_rather_than_with_a_timer_each(self):
        rng, sent = random.Random(1), list[float]()

        async def send(limiter: RateLimiter) -> None:
            async with limiter.request(0):
                sent.append(asyncio.get_running_loop().time())
                await asyncio.sleep(rng.uniform(0.001, 0.02))

        simulate(1000, *[send] * 3000)
        assert len(set(sent)) < 600

    @pytest.mark.parametrize("retry_after", [None, 30])
    def test_a_429_slows_down_all_requests(self, retry_after):
        sent: list[tuple[float, Sender]] = []

        async def refused(limiter: RateLimiter) -> None:
            async with limiter.request(0):
                limiter.on_rate_limited(retry_after, sent_at=asyncio.get_running_loop().time())

        simulate(10, refused, *(Sender(0, 0, sent=sent) for _ in range(10)))
        assert sent[0][0] >= (retry_after or 0.2)
        assert sent[1][0] - sent[0][0] > 1.5 / 10

    def test_block_delays_all_requests(self):
        sent: list[tuple[float, Sender]] = []

        async def block(limiter: RateLimiter) -> None:
            limiter.block(10)

        simulate(10, block, *(Sender(0, 0, sent=sent) for _ in range(3)))
        assert [at for at, _ in sent] == pytest.approx([10, 10.1, 10.2], abs=TIMER_RESOLUTION)

    def test_requests_that_are_cancelled_in_the_queue_use_nothing_of_the_limit(self):
        sent: list[tuple[float, Sender]] = []
        sent_though_cancelled: list[tuple[float, Sender]] = []

        async def cancelled(limiter: RateLimiter) -> None:
            request = asyncio.create_task(Sender(0, 0, sent=sent_though_cancelled)(limiter))
            await asyncio.sleep(0.5)
            request.cancel()

        last = Sender(0, 0.3, sent=sent)
        simulate(1, Sender(0, 0, sent=sent), *[cancelled] * 50, last)
        assert sent_though_cancelled == []
        assert sent[-1][0] == pytest.approx(1)

    def test_a_request_that_may_not_be_sent_until_its_latest_time_says_so_then_and_uses_nothing_of_the_limit(self):
        sent: list[tuple[float, Sender]] = []
        too_late: list[float] = []

        async def impatient(limiter: RateLimiter) -> None:
            async with limiter.request(0, until=1.5) as is_permitted:
                assert not is_permitted
                too_late.append(asyncio.get_running_loop().time())

        simulate(1, *(Sender(0, -1, sent=sent) for _ in range(2)), *[impatient] * 20, Sender(1.7, 1.7, sent=sent))
        assert too_late == pytest.approx([1.5] * 20, abs=TIMER_RESOLUTION)
        assert [at for at, _ in sent] == pytest.approx([0, 1, 2], abs=3 * TIMER_RESOLUTION)

    def test_a_request_that_is_permitted_at_its_latest_time_is_sent(self):
        permitted: list[bool] = []

        async def just_in_time(limiter: RateLimiter) -> None:
            async with limiter.request(1, until=1 + TIMER_RESOLUTION / 2) as is_permitted:
                permitted.append(is_permitted)

        simulate(1, just_in_time)
        assert permitted == [True]

    def test_queue_length_counts_the_requests_that_wait_and_were_not_cancelled(self):
        lengths: list[int] = []

        async def count(limiter: RateLimiter) -> None:
            requests = [asyncio.create_task(Sender(0, due, sent=[])(limiter)) for due in (0, 0, 0, 5, 5)]
            for at, cancelled in ((0.5, [1, 3]), (1, []), (3, []), (10, [])):
                await asyncio.sleep(at - asyncio.get_running_loop().time())
                for i in cancelled:
                    requests[i].cancel()
                await asyncio.sleep(0)
                lengths.append(limiter.queue_length)

        simulate(1, count)
        assert lengths == [2, 1, 1, 0]

    @pytest.mark.parametrize("steps", range(8))
    def test_a_request_that_is_cancelled_as_it_is_permitted_does_not_hold_up_later_ones(self, steps):
        sent: list[tuple[float, Sender]] = []

        async def cancelled(limiter: RateLimiter) -> None:
            request = asyncio.create_task(Sender(0, 1, sent=[])(limiter))
            await asyncio.sleep(1)
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()

        async def last(limiter: RateLimiter) -> None:
            async with asyncio.timeout(20):
                await Sender(5, 5, sent=sent)(limiter)

        simulate(1, cancelled, last)
        assert sent[0][0] == pytest.approx(5, abs=TIMER_RESOLUTION)

    def test_a_request_that_is_cancelled_before_its_answer_counts_as_arrived_late(self):
        sent: list[tuple[float, Sender]] = []

        async def cancelled(limiter: RateLimiter) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01), limiter.request(0):
                    await asyncio.sleep(100)

        simulate(1, cancelled, Sender(0, 0, sent=sent))
        assert sent[0][0] == pytest.approx(1 + MAX_TRANSIT_DELAY, abs=TIMER_RESOLUTION)

    @pytest.mark.parametrize("limit", [3, 0.5])
    def test_an_unanswered_request_counts_until_a_second_after_it_has_surely_arrived(self, limit):
        sent = []

        async def slow(limiter: RateLimiter) -> None:
            async with limiter.request(0):
                sent.append(asyncio.get_running_loop().time())
                await asyncio.sleep(100)

        share = math.ceil(limit)
        simulate(limit, *[slow] * 2 * share)
        counts = share / limit + MAX_TRANSIT_DELAY
        gaps = [later - first for first, later in zip(sent[:share], sent[share:], strict=True)]
        assert gaps == pytest.approx([counts] * share, abs=TIMER_RESOLUTION)

    def test_requests_that_hang_while_they_connect_or_are_answered_slowly_do_not_stop_others(self):
        sent: list[tuple[float, Sender]] = []

        async def slow(limiter: RateLimiter) -> None:
            async with limiter.request(0):
                await asyncio.sleep(100)

        simulate(10, *[slow] * 40, *(Sender(i, i, sent=sent) for i in range(1, 60)))
        assert max(at - sender.due for at, sender in sent[10:]) < 0.3

    def test_a_bounded_number_of_requests_is_unanswered_at_a_time_and_an_answer_lets_the_next_go(self):
        sent: list[float] = []

        async def slow(limiter: RateLimiter) -> None:
            async with limiter.request(0):
                sent.append(asyncio.get_running_loop().time())
                await asyncio.sleep(100)

        simulate(20, *[slow] * (MAX_UNANSWERED + 3))
        assert sent[MAX_UNANSWERED - 1] < 20
        expected = [100 + at for at in sent[:3]]
        assert sent[MAX_UNANSWERED:] == pytest.approx(expected, abs=1 / 20 + TIMER_RESOLUTION)

    @pytest.mark.parametrize(("limit", "end"), [(10, 9.4), (0.5, 93)])
    def test_set_limit_takes_effect_at_once_for_requests_that_are_queued(self, limit, end):
        sent: list[tuple[float, Sender]] = []

        async def change(limiter: RateLimiter) -> None:
            await asyncio.sleep(4.5)
            limiter.set_limit(limit)

        simulate(1, change, *(Sender(0, 0, sent=sent) for _ in range(50)))
        assert sent[-1][0] == pytest.approx(end, abs=2 * TIMER_RESOLUTION)

    def test_nothing_is_sent_after_close(self):
        sent: list[tuple[float, Sender]] = []

        async def main() -> None:
            limiter = RateLimiter(1)
            requests = [asyncio.create_task(Sender(0, 0, sent=sent)(limiter)) for _ in range(5)]
            await asyncio.sleep(1.5)
            limiter.close()
            await asyncio.sleep(100)
            for request in requests:
                request.cancel()

        run(main())
        assert len(sent) == 2

# SPDX-License-Identifier: Apache-2.0
"""Many triggers, one event loop, one rate limit."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma import poller as pollers
from airflow_provider_luma.exceptions import LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.poller import RECOVERY_STEP, SLOWEST, Pace, shared_poller
from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.waiting import LONGEST_RETRY_AFTER, Watch

rates = st.floats(0.2, 50)


def departures(pace: Pace, seconds: float, *, start: float = 1000.0) -> list[float]:
    """Return when calls leave if there is always one to make, by a clock that nobody has to wait for."""
    now, left = start, []
    while now < start + seconds:
        now += pace.wait(now)
        pace.left(now)
        left.append(now)
    return left


class TestPace:
    @given(rates)
    def test_no_second_sees_more_than_the_rate(self, rate):
        times = departures(Pace(rate), 20)
        for i, first in enumerate(times):
            assert sum(first <= other < first + 1 for other in times[i:]) <= math.ceil(rate)

    @given(rates)
    def test_nearly_all_of_the_rate_is_used(self, rate):
        assert len(departures(Pace(rate), 100)) >= 0.97 * rate * 100 - 1

    def test_the_first_call_does_not_wait(self):
        assert Pace(10).wait(1000.0) == 0

    def test_a_pause_is_not_saved_up_for_a_burst(self):
        pace = Pace(10)
        pace.left(1000.0)
        assert pace.wait(2000.0) == 0
        pace.left(2000.0)
        assert pace.wait(2000.0) > 0.1

    def test_a_refusal_halves_the_pace(self):
        pace = Pace(10)
        pace.refused(1000.0, None)
        gaps = [later - earlier for earlier, later in pairwise(departures(pace, 3))]
        assert gaps == pytest.approx([2 / pace.full] * len(gaps))

    def test_calls_that_were_under_way_together_are_refused_as_one(self):
        pace = Pace(10)
        for i in range(10):
            pace.refused(1000.0 + i / 20, None)
        assert pace.rate == pace.full / 2

    @pytest.mark.parametrize("allowed", [0.5, 1, 3, 7])
    def test_it_finds_the_pace_that_the_service_allows(self, allowed):
        pace, now, accepted, refused = Pace(10), 1000.0, [], 0
        while now < 1600:
            now += pace.wait(now)
            pace.left(now)
            if sum(now - 1 / min(allowed, 1) < other for other in accepted) < max(1, allowed):
                accepted.append(now)
            else:
                refused += 1
                pace.refused(now, None)
        assert len(accepted) > 0.5 * allowed * 600
        assert refused < len(accepted)

    def test_no_pause_is_endless(self):
        pace = Pace(10)
        pace.refused(1000.0, 86_400)
        assert pace.wait(1000.0) == LONGEST_RETRY_AFTER

    def test_another_rate_is_taken_up(self):
        pace = Pace(10)
        pace.allow(2)
        assert len(departures(pace, 100)) == pytest.approx(200, abs=6)

    def test_it_recovers_step_by_step(self):
        pace = Pace(10)
        pace.refused(1000.0, None)
        departures(pace, RECOVERY_STEP * 1.5)
        assert pace.full / 2 < pace.rate < pace.full
        departures(pace, RECOVERY_STEP * 10, start=1000 + RECOVERY_STEP * 1.5)
        assert pace.rate == pace.full

    @given(st.floats(0, LONGEST_RETRY_AFTER))
    def test_the_pause_that_the_service_asks_for_is_honoured(self, retry_after):
        pace = Pace(10)
        pace.refused(1000.0, retry_after)
        assert pace.wait(1000.0) >= retry_after - 1e-6

    @given(rates, st.lists(st.floats(0, 5), max_size=50))
    def test_it_never_stands_still(self, rate, gaps):
        pace, now = Pace(rate), 1000.0
        for gap in gaps:
            now += gap
            pace.refused(now, None)
        assert pace.rate >= min(SLOWEST, pace.full)
        assert pace.wait(now) <= 1 / pace.rate + 1e-6


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert [poller for of_loop in pollers._pollers.values() for poller in of_loop.values()] == []


def looks(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "status"]


async def wait(luma_task_id: str, *, poll_interval: float = 0.05, seconds: float = 60) -> Any:
    async with shared_poller("luma_default") as poller:
        return await poller.wait_for(Watch(luma_task_id, poll_interval=poll_interval, end_time=time.time() + seconds))


class TestPoller:
    async def test_all_jobs_end_and_each_with_its_own_result(self, submit):
        ids = [submit(processing_seconds=0.2) for _ in range(20)]
        tasks = await asyncio.gather(*(wait(one) for one in ids))
        assert [task.luma_task_id for task in tasks] == ids

    async def test_a_hundred_at_once_stay_below_the_limit(self, luma, submit, set_connection):
        ids = [submit(processing_seconds=1, max_running=200) for _ in range(100)]
        luma.configure(status_calls_per_second=50)
        set_connection(luma.base_url, requests_per_second=50)
        before = luma.connections
        tasks = await asyncio.gather(*(wait(one, poll_interval=0.5) for one in ids))
        assert all(task.is_successful for task in tasks)
        refused = [call for call in looks(luma) if call.code == 429]
        assert len(refused) <= len(looks(luma)) / 100
        assert luma.connections - before <= 50

    async def test_one_that_fails_does_not_touch_the_others(self, luma, submit):
        good = submit(processing_seconds=0.5)
        bad = submit(outcome="generate_failed", processing_seconds=0.1)
        ended = await asyncio.gather(wait(good), wait(bad), return_exceptions=True)
        assert ended[0].luma_task_id == good
        assert isinstance(ended[1], LumaGenerationError)

    async def test_one_that_is_cancelled_gives_its_turn_back(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=1)
        stuck, good = submit(processing_seconds=60), submit(processing_seconds=0)
        luma.configure(faults=["status:hang,seconds=30,times=1"])
        first = asyncio.create_task(wait(stuck))
        while not looks(luma):
            await asyncio.sleep(0.01)
        second = asyncio.create_task(wait(good))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).luma_task_id == good

    async def test_those_that_are_cancelled_while_they_queue_are_passed_over(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=2)
        ids = [submit(processing_seconds=0) for _ in range(30)]
        waiting = [asyncio.create_task(wait(one)) for one in ids]
        while not looks(luma):
            await asyncio.sleep(0.01)
        for one in waiting[:-1]:
            one.cancel()
        await asyncio.gather(*waiting[:-1], return_exceptions=True)
        assert (await waiting[-1]).luma_task_id == ids[-1]
        assert len(looks(luma)) < 10

    async def test_nobody_is_left_behind(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=100)
        ids = [submit(processing_seconds=60) for _ in range(20)]
        ended = await asyncio.gather(*(wait(one, poll_interval=0.01, seconds=2) for one in ids), return_exceptions=True)
        assert all(isinstance(one, LumaTimeoutError) for one in ended)
        counts = [len([call for call in looks(luma) if call.task_id == one]) for one in ids]
        assert max(counts) - min(counts) <= 2

    async def test_a_refusal_slows_everybody_down(self, luma, submit):
        ids = [submit(processing_seconds=0.1) for _ in range(10)]
        luma.configure(faults=["status:refuse,code=429,retry_after=1,style=status,times=1"])
        started = time.monotonic()
        await asyncio.gather(*(wait(one) for one in ids))
        assert time.monotonic() - started > 1
        assert len([call for call in looks(luma) if call.code == 429]) == 1

    async def test_a_key_that_is_replaced_while_many_wait(self, luma, submit, set_connection):
        ids = [submit(processing_seconds=1.5) for _ in range(10)]
        waiting = [asyncio.create_task(wait(one)) for one in ids]
        while len(looks(luma)) < 10:
            await asyncio.sleep(0.01)
        set_connection(luma.base_url, key="the-next-key")
        luma.configure(api_key="the-next-key")
        try:
            assert all(task.is_successful for task in await asyncio.gather(*waiting))
        finally:
            luma.reset()

    async def test_a_connection_that_is_changed_while_others_wait(self, luma, submit, set_connection, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.hooks.luma.CONNECTION_TTL", 0.3)
        old = submit(processing_seconds=60)
        waiting = asyncio.create_task(wait(old))
        while not looks(luma):
            await asyncio.sleep(0.01)
        with Simulator(Settings(processing_seconds=0, api_key="of-another-account")) as other:
            set_connection(other.base_url, key="of-another-account")
            new = LumaHook().modify_video("make it snow", other.sample_url)
            assert (await wait(new)).luma_task_id == new
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    def test_every_event_loop_has_its_own(self, submit):
        ids = [submit(processing_seconds=0) for _ in range(2)]
        assert [asyncio.run(wait(one)).luma_task_id for one in ids] == ids

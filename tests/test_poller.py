# SPDX-License-Identifier: Apache-2.0
"""Many triggers, one event loop, one rate limit."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_luma import poller as pollers
from airflow_provider_luma.exceptions import LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.poller import Poller, shared
from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.turns import ENOUGH
from airflow_provider_luma.waiting import Watch


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert [users for of_loop in pollers._users.values() for users in of_loop.values()] == []


def looks(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "status"]


async def wait(luma_task_id: str, *, poll_interval: float = 0.05, seconds: float = 60) -> Any:
    async with shared(Poller, "luma_default") as poller:
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

    async def test_a_refusal_is_counted_once(self, luma, submit):
        job = submit(faults=["status:refuse,code=429,times=1", "status:hang,seconds=30,times=1"])
        async with shared(Poller, "luma_default") as poller:
            waiting = asyncio.create_task(poller.wait_for(Watch(job, poll_interval=0.05)))
            while len(looks(luma)) < 2:
                await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            pace = poller._turns._pace
            assert pace.rate == pytest.approx(pace.full / 2)

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

    async def test_what_it_measures(self, submit, monkeypatch):
        measured: dict[str, list[float]] = defaultdict(list)

        class Stats:
            @staticmethod
            def incr(name: str) -> None:
                measured[name].append(1)

            @staticmethod
            def timing(name: str, value: float) -> None:
                measured[name].append(value)

            @staticmethod
            def gauge(name: str, value: float, *, tags: dict[str, str]) -> None:
                assert tags == {"conn_id": "luma_default"}
                measured[name].append(value)

        monkeypatch.setattr(pollers, "Stats", Stats)
        good, bad = submit(processing_seconds=0.3), submit(processing_seconds=0.3, outcome="generate_failed")
        submit(faults=["status:refuse,code=429,times=1"])
        await asyncio.gather(wait(good), wait(bad), return_exceptions=True)
        assert measured["luma.waiting"] == [1, 2, 1, 0]
        assert len(measured["luma.look"]) == len(measured["luma.look.lateness"]) > 2
        assert len(measured["luma.look.refused"]) == 1
        assert [300 <= milliseconds < 2000 for milliseconds in measured["luma.job.duration"]] == [True, True]
        assert [0 <= milliseconds < 5000 for milliseconds in measured["luma.job.lateness"]] == [True, True]

    async def test_where_looks_are_scarce_jobs_that_are_too_young_give_way(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=20)
        past = [submit(processing_seconds=1) for _ in range(ENOUGH)]
        async with shared(Poller, "luma_default") as poller:
            await asyncio.gather(*(poller.wait_for(Watch(one, poll_interval=0.1)) for one in past))
            young = submit(processing_seconds=0)
            before, now = len(looks(luma)), time.time()
            watches = [Watch(young, poll_interval=0.1, made=now), *(Watch(one, poll_interval=0.1) for one in past[:5])]
            await asyncio.gather(*(poller.wait_for(watch) for watch in watches))
        assert [call.task_id for call in looks(luma)[before:]] == [*past[:5], young]

    def test_every_event_loop_has_its_own(self, submit):
        ids = [submit(processing_seconds=0) for _ in range(2)]
        assert [asyncio.run(wait(one)).luma_task_id for one in ids] == ids

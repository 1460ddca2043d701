# SPDX-License-Identifier: Apache-2.0
"""One poller for all triggers of an event loop: each gets its own outcome, all share one rate limit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from airflow_provider_luma import metrics
from airflow_provider_luma.core.durations import MIN_SAMPLES
from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.core.poll_state import Failed, Finished, PollState
from airflow_provider_luma.exceptions import LumaError, LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.waiting import per_loop as shared_module
from airflow_provider_luma.waiting import poller as poller_module
from airflow_provider_luma.waiting.per_loop import shared
from airflow_provider_luma.waiting.poller import WAITING_GAUGE, Poller
from tests.support.calls import status_checks

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_stays_shared() -> Iterator[None]:
    """Fail a test that leaves a poller behind."""
    yield
    assert [users for of_loop in shared_module._users.values() for users in of_loop.values()] == []


async def until_checked(luma, times: int = 1) -> None:
    while len(status_checks(luma)) < times:
        await asyncio.sleep(0.01)


def shared_poller() -> AbstractAsyncContextManager[Poller]:
    return shared(lambda: Poller(LumaAsyncHook("luma_default").client), WAITING_GAUGE, "luma_default")


async def wait(luma_task_id: str, *, poll_interval: float = 0.05, seconds: float = 60) -> Finished | Failed:
    state = PollState(luma_task_id, poll_interval=poll_interval, end_time=time.time() + seconds)
    async with shared_poller() as poller:
        return await poller.wait_for(state)


class TestPoller:
    async def test_each_trigger_gets_the_result_of_its_own_job(self, submit):
        ids = [submit(processing_seconds=0.2) for _ in range(8)]
        outcomes = await asyncio.gather(*(wait(luma_task_id) for luma_task_id in ids))
        assert all(isinstance(outcome, Finished) for outcome in outcomes)
        assert [outcome.task.luma_task_id for outcome in outcomes] == ids

    async def test_many_triggers_keep_one_rate_limit_on_few_connections(self, luma, submit, set_connection):
        ids = [submit(processing_seconds=0.5) for _ in range(40)]
        set_connection(luma.base_url, requests_per_second=20)
        before, started = luma.connections, time.monotonic()
        outcomes = await asyncio.gather(*(wait(luma_task_id, poll_interval=0.01) for luma_task_id in ids))
        assert all(isinstance(outcome, Finished) for outcome in outcomes)
        # A slow machine makes it longer, and the checks no more.
        assert len(status_checks(luma)) <= 20 * (time.monotonic() - started + 1)
        assert luma.connections - before <= 20

    async def test_a_failed_job_does_not_affect_the_wait_for_another(self, luma, submit):
        good = submit(processing_seconds=0.5)
        bad = submit(outcome="generate_failed", processing_seconds=0.1)
        finished, failed = await asyncio.gather(wait(good), wait(bad))
        assert isinstance(finished, Finished)
        assert finished.task.luma_task_id == good
        assert isinstance(failed, Failed)
        assert isinstance(failed.reason, LumaGenerationError)

    async def test_a_cancelled_status_check_does_not_hold_up_the_others(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=2)
        stuck, good = submit(processing_seconds=60), submit(processing_seconds=0)
        luma.configure(faults=["status:hang,seconds=600,times=1"])
        first = asyncio.create_task(wait(stuck))
        await until_checked(luma)
        second = asyncio.create_task(wait(good))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).task.luma_task_id == good

    @pytest.mark.parametrize(
        "answer",
        [
            {"hang": True},
            {"raw": b"HTTP/1.1 200 OK\r\nX-Long: ", "drip": b"x"},
            {"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "drip": b" "},
        ],
        ids=["no answer", "head drips", "body drips"],
    )
    async def test_jobs_whose_answers_hang_do_not_hold_up_the_others(self, wires, set_connection, answer):
        hanging, healthy = 25, 5
        wire = wires.start(*[wires.answer(**answer)] * hanging, wires.running_job())
        set_connection(wire.base_url, requests_per_second=20, timeout=600)
        async with asyncio.timeout(60):  # ten times less than those that hang
            waiting = [asyncio.create_task(wait(f"hanging-{i}", seconds=3600)) for i in range(hanging)]
            while len(wire.received) < hanging:
                await asyncio.sleep(0.01)
            waiting += [asyncio.create_task(wait(f"healthy-{i}", seconds=3600)) for i in range(healthy)]
            while len(wire.received) < hanging + 3 * healthy:
                await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        asked = Counter(call.path.split("=")[1].split("-")[0] for call in wire.received)
        assert asked["hanging"] == hanging
        assert asked["healthy"] >= 3 * healthy

    async def test_triggers_that_are_cancelled_in_the_queue_send_nothing(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=4)
        ids = [submit(processing_seconds=0) for _ in range(30)]
        waiting = [asyncio.create_task(wait(luma_task_id)) for luma_task_id in ids]
        await until_checked(luma)
        for task in waiting[:-1]:
            task.cancel()
        await asyncio.gather(*waiting[:-1], return_exceptions=True)
        assert (await waiting[-1]).task.luma_task_id == ids[-1]
        assert len(status_checks(luma)) < 10

    async def test_all_jobs_are_checked_equally_often(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=200)
        ids = [submit(processing_seconds=60) for _ in range(20)]
        outcomes = await asyncio.gather(*(wait(luma_task_id, poll_interval=0.01, seconds=1) for luma_task_id in ids))
        assert all(isinstance(outcome.reason, LumaTimeoutError) for outcome in outcomes)
        counts = [len([call for call in status_checks(luma) if call.task_id == luma_task_id]) for luma_task_id in ids]
        assert max(counts) - min(counts) <= 2

    async def test_the_retry_after_of_one_refusal_delays_all_triggers(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=8)
        ids = [submit(processing_seconds=60) for _ in range(12)]
        luma.configure(faults=["status:refuse,code=429,retry_after=1,style=status,times=1"])
        waiting = [asyncio.create_task(wait(luma_task_id)) for luma_task_id in ids]
        await until_checked(luma, 9)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # Eight may be on their way before the first is answered.
        [refused] = [call for call in status_checks(luma) if call.code == 429]
        assert status_checks(luma)[8].at - refused.at >= 1

    async def test_a_wait_ends_soon_after_its_deadline_though_the_rate_limiter_holds_the_last_status_check_back(
        self, luma, submit, monkeypatch
    ):
        monkeypatch.setattr(poller_module, "LAST_CHECK_TIMEOUT", 0.3)
        luma_task_id = submit(faults=["status:refuse,code=429,retry_after=60,style=status"])
        outcome = await wait(luma_task_id, seconds=3)
        assert isinstance(outcome.reason, LumaTimeoutError)
        assert outcome.reason.luma_task_id == luma_task_id
        assert "delayed the last status check past the deadline" in str(outcome.reason)
        assert len(status_checks(luma)) == 1

    async def test_a_wait_that_begins_after_its_deadline_ends_soon_though_its_status_check_is_held_back(
        self, luma, submit, monkeypatch
    ):
        monkeypatch.setattr(poller_module, "LAST_CHECK_TIMEOUT", 0.3)
        ids = [submit(faults=["status:refuse,code=429,retry_after=60,style=status"]) for _ in range(2)]
        async with shared_poller() as poller:
            first = asyncio.create_task(wait(ids[0]))
            rate = poller._limiter._rate
            while rate.rate == rate.full_rate:  # the refusal has not arrived
                await asyncio.sleep(0.01)
            outcome = await wait(ids[1], seconds=-86_400)
            assert isinstance(outcome.reason, LumaTimeoutError)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        assert [call.task_id for call in status_checks(luma)] == [ids[0]]

    async def test_the_last_status_check_is_sent_though_it_is_held_back_for_a_moment(self, luma, submit):
        luma_task_id = submit(
            processing_seconds=0.1, faults=["status:refuse,code=429,retry_after=2,style=status,times=1"]
        )
        outcome = await wait(luma_task_id, seconds=1.5)
        assert isinstance(outcome, Finished)
        assert len(status_checks(luma)) == 2

    async def test_one_refusal_halves_the_rate_once(self, luma, submit):
        luma_task_id = submit(faults=["status:refuse,code=429,times=1", "status:hang,seconds=30,times=1"])
        async with shared_poller() as poller:
            waiting = asyncio.create_task(poller.wait_for(PollState(luma_task_id, poll_interval=0.05)))
            await until_checked(luma, 2)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            rate = poller._limiter._rate
            assert rate.rate == pytest.approx(rate.full_rate / 2)

    async def test_a_refusal_at_the_deadline_of_one_job_halves_the_rate_too(self, submit):
        luma_task_id = submit(processing_seconds=60, faults=["status:refuse,code=429"])
        async with shared_poller() as poller:
            state = PollState(luma_task_id, poll_interval=0.05, end_time=time.time() - 1)
            outcome = await poller.wait_for(state)
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.reason, LumaTimeoutError)
            rate = poller._limiter._rate
            assert rate.rate == pytest.approx(rate.full_rate / 2)

    async def test_an_api_key_that_is_replaced_during_the_wait_is_used(self, luma, submit, set_connection):
        ids = [submit(processing_seconds=1.5) for _ in range(10)]
        waiting = [asyncio.create_task(wait(luma_task_id)) for luma_task_id in ids]
        await until_checked(luma, 10)
        set_connection(luma.base_url, key="the-next-key")
        luma.configure(api_key="the-next-key")
        try:
            assert all(isinstance(outcome, Finished) for outcome in await asyncio.gather(*waiting))
        finally:
            luma.reset()

    async def test_a_connection_that_is_changed_while_others_wait_is_used(
        self, luma, submit, set_connection, monkeypatch
    ):
        monkeypatch.setattr("airflow_provider_luma.async_client.CONNECTION_TTL", 0.3)
        old = submit(processing_seconds=60)
        waiting = asyncio.create_task(wait(old))
        await until_checked(luma)
        with Simulator(Settings(processing_seconds=0, api_key="of-another-account")) as other:
            set_connection(other.base_url, key="of-another-account")
            new = LumaHook().modify_video("make it snow", other.sample_url)
            assert (await wait(new)).task.luma_task_id == new
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    @pytest.mark.parametrize(
        "outcome", [Finished(LumaTask("abc", LumaTaskStatus.SUCCESS)), Failed(LumaError(501, "x"))]
    )
    async def test_an_outcome_is_returned_though_the_connection_cannot_be_read_again(self, outcome):
        class Client:
            reads = 0

            async def poll(self, _state: PollState) -> Any:
                return outcome

            async def get_requests_per_second(self) -> float:
                self.reads += 1
                if self.reads > 1:
                    raise RuntimeError("the secrets backend is broken")
                return 10.0

            async def close(self) -> None:
                pass

        poller = Poller(Client())
        assert await poller.wait_for(PollState("abc", poll_interval=1)) is outcome
        await poller.close()

    async def test_metrics_count_status_checks_refusals_and_waiting_triggers_and_time_jobs(
        self, luma, submit, monkeypatch
    ):
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

        monkeypatch.setattr(poller_module, "Stats", Stats)
        monkeypatch.setattr(metrics, "Stats", Stats)
        monkeypatch.setattr(shared_module, "Stats", Stats)
        started = time.monotonic()
        good, bad = submit(processing_seconds=0.3), submit(processing_seconds=0.3, outcome="generate_failed")
        submit(faults=["status:refuse,code=429,times=1"])
        await asyncio.gather(wait(good), wait(bad))
        assert measured["luma.waiting"] == [1, 2, 1, 0]
        assert len(measured["luma.poll"]) == len(measured["luma.poll.lateness"]) > 2
        assert len(measured["luma.poll.refused"]) == 1
        jobs = [job for job in luma.jobs if job.task_id in (good, bad)]
        durations = [job.complete_time - job.create_time for job in jobs]
        assert sorted(measured["luma.job.duration"]) == pytest.approx(sorted(durations), abs=2)
        assert len(measured["luma.job.failed"]) == 1
        elapsed = 1000 * (time.monotonic() - started)
        assert [0 <= milliseconds <= elapsed for milliseconds in measured["luma.job.lateness"]] == [True, True]

    async def test_jobs_that_have_likely_ended_are_checked_before_younger_ones(self, luma, submit, set_connection):
        set_connection(luma.base_url, requests_per_second=20)
        past = [submit(processing_seconds=1) for _ in range(MIN_SAMPLES)]
        async with shared_poller() as poller:
            await asyncio.gather(*(poller.wait_for(PollState(one, poll_interval=0.1)) for one in past))
            young = submit(processing_seconds=0)
            before = len(status_checks(luma))
            states = [
                PollState(young, poll_interval=0.1, created_at=time.time()),
                *(PollState(one, poll_interval=0.1) for one in past[:5]),
            ]
            await asyncio.gather(*(poller.wait_for(state) for state in states))
        assert [call.task_id for call in status_checks(luma)[before:]] == [*past[:5], young]

    def test_each_event_loop_has_a_poller_of_its_own(self, submit):
        ids = [submit(processing_seconds=0) for _ in range(2)]
        assert [asyncio.run(wait(luma_task_id)).task.luma_task_id for luma_task_id in ids] == ids

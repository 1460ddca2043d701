# SPDX-License-Identifier: Apache-2.0
"""The trigger: one event for every way a wait can end, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import time
import warnings
from typing import Any

import pytest

from airflow_provider_luma import callbacks, poller, waiting
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.poller import SUBMISSIONS_PER_SECOND
from airflow_provider_luma.submission import new_reference
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger, LumaTaskTrigger

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]


def trigger(luma_task_id: str, *, seconds: float | None = 20, poll_interval: float = 0.05) -> LumaTaskTrigger:
    end_time = None if seconds is None else time.time() + seconds
    return LumaTaskTrigger(luma_task_id, "luma_default", poll_interval, end_time)


async def only_event(one: LumaTaskTrigger) -> dict[str, Any]:
    events = [event.payload async for event in one.run()]
    assert len(events) == 1
    assert json.loads(json.dumps(events[0])) == events[0]
    return events[0]


def looks(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "status"]


class TestSerialize:
    def test_round_trip(self):
        one = LumaTaskTrigger("abc", "my_luma", 12.5, 1_800_000_000.0)
        path, arguments = one.serialize()
        assert path == "airflow_provider_luma.triggers.luma.LumaTaskTrigger"
        assert arguments == {
            "luma_task_id": "abc",
            "luma_conn_id": "my_luma",
            "poll_interval": 12.5,
            "end_time": 1_800_000_000.0,
        }
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name)(**arguments).serialize() == (path, arguments)

    def test_when_the_job_was_made_if_that_is_known(self):
        one = LumaTaskTrigger("abc", made=1_800_000_000.0)
        assert LumaTaskTrigger(**one.serialize()[1]).made == 1_800_000_000.0

    def test_defaults(self):
        assert LumaTaskTrigger("abc").serialize()[1] == {
            "luma_task_id": "abc",
            "luma_conn_id": "luma_default",
            "poll_interval": 30.0,
            "end_time": None,
        }

    def test_the_arguments_are_json(self):
        _, arguments = trigger("abc").serialize()
        assert json.loads(json.dumps(arguments)) == arguments

    def test_making_it_reads_no_connection(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT", raising=False)
        assert trigger("abc").luma_task_id == "abc"


class TestRun:
    async def test_it_leaves_the_scheduler_time_to_take_note_of_the_deferral(self, luma, submit, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_WAIT", 0.5)
        luma_task_id = submit(processing_seconds=0)
        started = time.monotonic()
        assert "task" in await only_event(trigger(luma_task_id))
        assert time.monotonic() - started >= 0.5

    @pytest.mark.parametrize("outcome", ["success", "callback_failed"])
    async def test_a_success(self, submit, outcome):
        luma_task_id = submit(outcome=outcome)
        event = await only_event(trigger(luma_task_id))
        assert list(event) == ["task", "request"]
        assert list(event["task"]) == KEYS
        assert (event["task"]["luma_task_id"], event["task"]["status"]) == (luma_task_id, "SUCCESS")
        assert len(event["task"]["result_urls"]) == 1

    @pytest.mark.parametrize(
        ("changes", "kind", "code"),
        [
            ({"outcome": "create_failed"}, "LumaGenerationError", 500),
            ({"outcome": "generate_failed"}, "LumaGenerationError", 501),
            ({"outcome": "no_urls"}, "LumaGenerationError", None),
            ({"faults": ["status:refuse,code=401"]}, "LumaAuthError", 401),
            ({"faults": ["status:refuse,code=404"]}, "LumaNotFoundError", 404),
            ({"faults": ["status:refuse,code=422"]}, "LumaValidationError", 422),
            ({"faults": ["status:refuse,code=505"]}, "LumaFeatureDisabledError", 505),
        ],
        ids=str,
    )
    async def test_each_failure(self, submit, short_pauses, monkeypatch, changes, kind, code):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0.2)
        luma_task_id = submit(**changes)
        error = (await only_event(trigger(luma_task_id)))["error"]
        assert (error["type"], error["code"], error["luma_task_id"]) == (kind, code, luma_task_id)
        assert error["msg"]

    async def test_a_time_out(self, submit):
        luma_task_id = submit(processing_seconds=60)
        error = (await only_event(trigger(luma_task_id, seconds=0.3)))["error"]
        assert (error["type"], error["luma_task_id"]) == ("LumaTimeoutError", luma_task_id)
        assert "still running" in error["msg"]

    async def test_a_time_out_while_luma_is_down(self, submit, short_pauses):
        luma_task_id = submit(faults=["status:html"])
        error = (await only_event(trigger(luma_task_id, seconds=0.3)))["error"]
        assert (error["type"], error["luma_task_id"]) == ("LumaTimeoutError", luma_task_id)

    @pytest.mark.parametrize(
        "extra", [{"cert": "/nowhere/client.pem"}, {"timeout": "soon"}, {"proxies": {"http": "nonsense://x"}}], ids=str
    )
    async def test_a_connection_that_makes_no_sense_is_an_event_too(self, submit, luma, set_connection, extra):
        luma_task_id = submit()
        set_connection(luma.base_url, **extra)
        event = await only_event(trigger(luma_task_id, seconds=1))
        assert event["error"]["luma_task_id"] == luma_task_id

    async def test_a_deadline_long_past_is_one_last_look(self, luma, submit, until):
        luma_task_id = submit(processing_seconds=0)
        until(lambda: luma.jobs[0].flag)
        event = await only_event(trigger(luma_task_id, seconds=-86_400))
        assert event["task"]["status"] == "SUCCESS"
        assert len(looks(luma)) == 1

    async def test_a_deadline_long_past_of_a_job_that_runs(self, luma, submit):
        luma_task_id = submit(processing_seconds=60)
        event = await only_event(trigger(luma_task_id, seconds=-86_400))
        assert event["error"]["type"] == "LumaTimeoutError"
        assert len(looks(luma)) == 1

    async def test_the_deadline_is_a_time_of_day_and_survives_a_restart(self, luma, submit):
        luma_task_id = submit(processing_seconds=60)
        one = trigger(luma_task_id, seconds=0.6, poll_interval=10)
        first = asyncio.create_task(only_event(one))
        while not looks(luma):
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.sleep(one.end_time - time.time())  # a deadline of "seconds from now" would begin anew
        seen = len(looks(luma))
        event = await only_event(LumaTaskTrigger(**one.serialize()[1]))
        assert event["error"]["type"] == "LumaTimeoutError"
        assert len(looks(luma)) == seen + 1

    async def test_a_restarted_trigger_goes_on(self, luma, submit):
        luma_task_id = submit(processing_seconds=0.5)
        one = trigger(luma_task_id)
        first = asyncio.create_task(only_event(one))
        while not looks(luma):
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        event = await only_event(LumaTaskTrigger(**one.serialize()[1]))
        assert event["task"]["luma_task_id"] == luma_task_id

    async def test_without_a_deadline(self, submit):
        assert (await only_event(trigger(submit(), seconds=None)))["task"]["status"] == "SUCCESS"

    async def test_looks_share_one_connection(self, luma, submit):
        luma_task_id = submit(processing_seconds=0.5)
        before = luma.connections
        await only_event(trigger(luma_task_id))
        assert len(looks(luma)) > 3
        assert luma.connections == before + 1

    async def test_many_at_once(self, luma, submit):
        ids = [submit(processing_seconds=0.3) for _ in range(10)]
        events = await asyncio.gather(*(only_event(trigger(one)) for one in ids))
        assert [event["task"]["luma_task_id"] for event in events] == ids

    async def test_it_does_not_block_the_loop(self, submit):
        luma_task_id = submit(processing_seconds=0.3)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        counting = asyncio.create_task(count())
        await only_event(trigger(luma_task_id))
        counting.cancel()
        assert turns > 20


class TestCalledBack:
    """A job whose callback is ours is looked at once, and then only in case the callback is lost."""

    INTERVAL = 0.05

    @pytest.fixture
    def submit_with(self, luma, luma_conn):
        """Submit a job that is long in the making, and calls somebody back."""

        def _submit_with(callback_url: str | None, processing_seconds: float = 60) -> str:
            luma.configure(processing_seconds=processing_seconds, callback_copies=0)
            return LumaHook().modify_video("make it snow", luma.sample_url, callback_url=callback_url)

        return _submit_with

    @staticmethod
    def url_with(api_key: str) -> str | None:
        connection = LumaConnection("http://127.0.0.1:9", api_key, callback_base_url="http://127.0.0.1:9")
        return callbacks.callback_url(connection, "luma_default", new_reference())

    async def pauses(self, luma, luma_task_id: str, count: int) -> list[float]:
        """The seconds between looks, until there were so many looks."""
        waits = asyncio.create_task(only_event(trigger(luma_task_id, poll_interval=self.INTERVAL)))
        while len(looks(luma)) < count:
            await asyncio.sleep(0.01)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        times = [call.at for call in looks(luma)]
        return [after - before for before, after in itertools.pairwise(times)]

    async def test_ours_is_looked_at_every_ten_intervals(self, luma, submit_with, api_key):
        pauses = await self.pauses(luma, submit_with(self.url_with(api_key)), 3)
        assert min(pauses) > 9 * self.INTERVAL

    async def test_which_leaves_the_first_look_and_the_one_at_the_deadline(self, luma, submit_with, api_key):
        luma_task_id = submit_with(self.url_with(api_key))
        event = await only_event(trigger(luma_task_id, seconds=0.9, poll_interval=0.1))
        assert event["error"]["type"] == "LumaTimeoutError"
        assert len(looks(luma)) == 2

    @pytest.mark.parametrize("whose", ["a user's own", "another account's", "nobody's"])
    async def test_others_are_looked_at_at_every_interval(self, luma, submit_with, whose):
        url = {
            "a user's own": "http://127.0.0.1:9/luma/callback?token=abc",
            "another account's": self.url_with("another-key"),
            "nobody's": None,
        }[whose]
        pauses = await self.pauses(luma, submit_with(url), 6)
        assert min(pauses) < 9 * self.INTERVAL

    async def test_a_callback_that_is_lost_costs_only_time(self, luma, submit_with, api_key):
        luma_task_id = submit_with(self.url_with(api_key), processing_seconds=0.1)
        event = await only_event(trigger(luma_task_id, poll_interval=self.INTERVAL))
        assert event["task"]["status"] == "SUCCESS"


class TestWaitingForACallback:
    def test_round_trip(self):
        path, arguments = LumaCallbackTrigger("a-reference", 1_800_000_000.0).serialize()
        assert path == "airflow_provider_luma.triggers.luma.LumaCallbackTrigger"
        assert arguments == {"reference": "a-reference", "until": 1_800_000_000.0}
        assert LumaCallbackTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)

    async def test_it_fires_at_its_time_and_says_nothing(self, luma):
        until = time.time() + 0.2
        assert await only_event(LumaCallbackTrigger("a-reference", until)) == {}
        assert time.time() >= until - 0.01
        assert luma.calls == []

    async def test_a_time_that_is_past_is_now(self):
        async with asyncio.timeout(10):
            assert await only_event(LumaCallbackTrigger("a-reference", time.time() - 86_400)) == {}

    async def test_though_it_leaves_the_scheduler_time(self, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_WAIT", 0.3)
        started = time.monotonic()
        await only_event(LumaCallbackTrigger("a-reference", 0.0))
        assert time.monotonic() - started >= 0.29

    async def test_it_can_be_stopped(self):
        waits = asyncio.create_task(only_event(LumaCallbackTrigger("a-reference", time.time() + 60)))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits


class TestEnding:
    @pytest.mark.parametrize("moment", ["asleep", "asking"])
    async def test_cancelling_leaves_nothing_open(self, luma, submit, moment, task_log):
        luma_task_id = submit(processing_seconds=60)
        if moment == "asking":
            luma.configure(faults=["status:hang,seconds=10"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            waits = asyncio.create_task(only_event(trigger(luma_task_id, poll_interval=10)))
            while not looks(luma):
                await asyncio.sleep(0.01)
            if moment == "asleep":
                while not any("is GENERATING" in entry["event"] for entry in task_log):
                    await asyncio.sleep(0.01)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            del waits
            gc.collect()
            await asyncio.sleep(0)
        assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    async def test_on_kill_says_that_the_job_goes_on(self, task_log):
        await trigger("abc").on_kill()
        (entry,) = task_log
        assert entry["log_level"] == "info", "also a callback that resumes the task brings it about"
        assert "abc" in entry["event"]

    async def test_on_kill_does_not_end_the_wait(self, luma, submit):
        one = trigger(submit())
        waits = asyncio.create_task(only_event(one))
        while not looks(luma):
            await asyncio.sleep(0.01)
        await one.on_kill()
        assert (await waits)["task"]["status"] == "SUCCESS"


async def in_line(one: LumaSubmissionTrigger, order: list[Any]) -> None:
    async for event in one.run():
        order.append((one, event.payload["turn"]))


def submission_trigger(since: float = 0.0, seconds: float = 60, **arguments: Any) -> LumaSubmissionTrigger:
    return LumaSubmissionTrigger("luma_default", time.time() + since, time.time() + seconds, **arguments)


class TestLine:
    """A task that was refused waits for its turn to submit."""

    def test_round_trip(self):
        one = LumaSubmissionTrigger("my_luma", 1.5, 2.5, 3.5, 4.5)
        path, arguments = one.serialize()
        assert path == "airflow_provider_luma.triggers.luma.LumaSubmissionTrigger"
        assert list(arguments.values()) == ["my_luma", 1.5, 2.5, 3.5, 4.5]
        assert LumaSubmissionTrigger(**arguments).serialize() == (path, arguments)

    async def test_turns_come_one_after_the_other_who_waits_longest_first(self):
        order: list[Any] = []
        waiting = [submission_trigger(since) for since in (-3, -1, -4, -2)]
        await asyncio.gather(*(in_line(one, order) for one in waiting))
        assert [one for one, _ in order] == [waiting[2], waiting[0], waiting[3], waiting[1]]
        gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(order)]
        assert min(gaps) > 0.9 / SUBMISSIONS_PER_SECOND

    async def test_who_had_a_turn_and_was_refused_slows_down_the_line(self):
        order: list[Any] = []
        await asyncio.gather(*(in_line(submission_trigger(turn=time.time()), order) for _ in range(3)))
        gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(order)]
        assert min(gaps) > 1.9 / SUBMISSIONS_PER_SECOND

    async def test_who_had_tried_without_a_turn_does_not(self):
        order: list[Any] = []
        await asyncio.gather(*(in_line(submission_trigger(), order) for _ in range(3)))
        assert order[-1][1] - order[0][1] < 2.5 / SUBMISSIONS_PER_SECOND

    async def test_the_pause_that_luma_asks_for_is_for_all(self):
        order: list[Any] = []
        started = time.time()
        await asyncio.gather(
            in_line(submission_trigger(not_before=time.time() + 1.5), order), in_line(submission_trigger(), order)
        )
        assert min(turn for _, turn in order) >= started + 1.5

    async def test_a_pause_that_is_over_is_not_made_again(self):
        order: list[Any] = []
        started = time.time()
        await in_line(submission_trigger(not_before=started - 1), order)
        assert order[0][1] - started < 1

    async def test_at_the_end_it_fires_in_any_case(self):
        order: list[Any] = []
        started = time.time()
        await in_line(submission_trigger(seconds=0.2, not_before=time.time() + 60), order)
        assert 0.2 <= order[0][1] - started < 5

    async def test_it_leaves_the_scheduler_time_to_take_note_of_the_deferral(self, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_WAIT", 0.5)
        order: list[Any] = []
        started = time.time()
        await in_line(submission_trigger(), order)
        assert order[0][1] - started >= 0.5

    async def test_one_that_is_stopped_gives_way(self):
        order: list[Any] = []
        first = asyncio.create_task(in_line(submission_trigger(-9, not_before=time.time() + 0.3), []))
        others = asyncio.create_task(in_line(submission_trigger(), order))
        of_loop = poller._users.setdefault(asyncio.get_running_loop(), {})
        while sum(users.number for users in of_loop.values()) < 2:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, others, return_exceptions=True)
        assert len(order) == 1
        assert poller._users[asyncio.get_running_loop()] == {}

    async def test_it_tells_how_long_it_waits(self, monkeypatch, task_log):
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.PROGRESS_INTERVAL", 0.2)
        await in_line(submission_trigger(-90, not_before=time.time() + 0.5), [])
        said = [entry["event"] % entry.get("positional_args", ()) for entry in task_log]
        assert any("0:01:30" in line and "1 task" in line for line in said)

# SPDX-License-Identifier: Apache-2.0
"""LumaTaskTrigger yields one event for every way in which a wait can end, and leaves nothing open."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_luma.async_client import LumaAsyncClient
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import callback_token, poll_state
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.triggers import luma as triggers
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from tests.support.calls import status_checks

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]


def trigger(luma_task_id: str, *, seconds: float | None = 20, poll_interval: float = 0.02) -> LumaTaskTrigger:
    end_time = None if seconds is None else time.time() + seconds
    return LumaTaskTrigger(luma_task_id, "luma_default", poll_interval, end_time)


async def until_checked(luma, times: int = 1) -> None:
    while len(status_checks(luma)) < times:
        await asyncio.sleep(0.01)


async def cancel(waiting: asyncio.Task[Any]) -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


class TestSerialize:
    def test_a_stored_trigger_is_created_anew_with_the_same_arguments(self):
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

    def test_the_time_of_creation_is_stored_if_it_is_known(self):
        one = LumaTaskTrigger("abc", created_at=1_800_000_000.0)
        assert LumaTaskTrigger(**one.serialize()[1]).created_at == 1_800_000_000.0

    def test_an_id_alone_is_polled_every_30_seconds_without_a_deadline(self):
        assert LumaTaskTrigger("abc").serialize()[1] == {
            "luma_task_id": "abc",
            "luma_conn_id": "luma_default",
            "poll_interval": 30.0,
            "end_time": None,
        }

    def test_the_stored_arguments_are_json(self):
        _, arguments = trigger("abc").serialize()
        assert json.loads(json.dumps(arguments)) == arguments

    def test_creating_a_trigger_reads_no_connection(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT", raising=False)
        assert trigger("abc").luma_task_id == "abc"


class TestEvent:
    async def test_a_trigger_fires_no_sooner_than_the_shortest_deferral(self, submit, only_event, monkeypatch):
        slept = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_DEFERRAL", 600.0)
        monkeypatch.setattr(triggers, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
        luma_task_id = submit(processing_seconds=0)
        started = time.monotonic()
        assert "task" in await only_event(trigger(luma_task_id))
        (seconds,) = slept
        assert 600 - (time.monotonic() - started) <= seconds < 600

    @pytest.mark.parametrize("outcome", ["success", "callback_failed"])
    async def test_a_success_is_an_event_with_the_job_and_the_request(self, submit, only_event, outcome):
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
            ({"outcome": "no_urls"}, "LumaResultMissingError", None),
            ({"faults": ["status:refuse,code=401"]}, "LumaAuthError", 401),
            ({"faults": ["status:refuse,code=404"]}, "LumaNotFoundError", 404),
            ({"faults": ["status:refuse,code=422"]}, "LumaNotFoundError", 422),
        ],
        ids=str,
    )
    async def test_a_failure_is_an_event_with_type_code_and_job(
        self, submit, only_event, short_backoff, monkeypatch, changes, kind, code
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.2)
        luma_task_id = submit(**changes)
        error = (await only_event(trigger(luma_task_id)))["error"]
        assert (error["type"], error["code"], error["luma_task_id"]) == (kind, code, luma_task_id)
        assert error["msg"]

    async def test_a_job_running_at_the_deadline_is_a_timeout_event(self, submit, only_event):
        luma_task_id = submit(processing_seconds=60)
        error = (await only_event(trigger(luma_task_id, seconds=0.3)))["error"]
        assert (error["type"], error["luma_task_id"]) == ("LumaTimeoutError", luma_task_id)
        assert "still running" in error["msg"]

    async def test_an_outage_that_lasts_until_the_deadline_is_a_timeout_event(self, submit, only_event, short_backoff):
        luma_task_id = submit(faults=["status:html"])
        error = (await only_event(trigger(luma_task_id, seconds=0.3)))["error"]
        assert (error["type"], error["luma_task_id"]) == ("LumaTimeoutError", luma_task_id)

    @pytest.mark.parametrize(
        "extra", [{"cert": "/nowhere/client.pem"}, {"timeout": "soon"}, {"proxies": {"http": "nonsense://x"}}], ids=str
    )
    async def test_an_invalid_connection_is_an_error_event_that_names_the_job(
        self, submit, luma, set_connection, only_event, extra
    ):
        luma_task_id = submit()
        set_connection(luma.base_url, **extra)
        event = await only_event(trigger(luma_task_id, seconds=0.2))
        assert event["error"]["luma_task_id"] == luma_task_id

    async def test_a_finished_job_is_checked_once_after_its_deadline_has_passed(self, luma, submit, only_event, until):
        luma_task_id = submit(processing_seconds=0)
        until(lambda: luma.jobs[0].flag)
        event = await only_event(trigger(luma_task_id, seconds=-86_400))
        assert event["task"]["status"] == "SUCCESS"
        assert len(status_checks(luma)) == 1

    async def test_a_running_job_is_checked_once_after_its_deadline_has_passed(self, luma, submit, only_event):
        luma_task_id = submit(processing_seconds=60)
        event = await only_event(trigger(luma_task_id, seconds=-86_400))
        assert event["error"]["type"] == "LumaTimeoutError"
        assert len(status_checks(luma)) == 1

    async def test_a_restart_does_not_extend_the_deadline(self, luma, submit, only_event):
        luma_task_id = submit(processing_seconds=60)
        one = trigger(luma_task_id, seconds=600, poll_interval=10)
        stored = one.serialize()
        first = asyncio.create_task(only_event(one))
        await until_checked(luma)
        await cancel(first)
        assert LumaTaskTrigger(**stored[1]).serialize() == one.serialize() == stored
        stored[1]["end_time"] -= 600
        event = await only_event(LumaTaskTrigger(**stored[1]))
        assert event["error"]["type"] == "LumaTimeoutError"
        assert len(status_checks(luma)) == 2

    async def test_a_restarted_trigger_continues_the_wait(self, luma, submit, only_event):
        luma_task_id = submit(processing_seconds=0, faults=["status:unknown_flag,flag=0,times=1"])
        one = trigger(luma_task_id, poll_interval=15)
        first = asyncio.create_task(only_event(one))
        await until_checked(luma)
        await cancel(first)
        event = await only_event(LumaTaskTrigger(**one.serialize()[1]))
        assert event["task"]["luma_task_id"] == luma_task_id

    async def test_a_trigger_without_a_deadline_waits_for_the_job(self, submit, only_event):
        assert (await only_event(trigger(submit(), seconds=None)))["task"]["status"] == "SUCCESS"

    async def test_all_status_checks_use_one_kept_connection(self, luma, submit, only_event):
        luma_task_id = submit(faults=["status:unknown_flag,flag=0,times=4"])
        before = luma.connections
        await only_event(trigger(luma_task_id))
        assert len(status_checks(luma)) > 3
        assert luma.connections == before + 1

    async def test_each_of_many_triggers_yields_the_event_of_its_own_job(self, submit, only_event):
        ids = [submit() for _ in range(10)]
        events = await asyncio.gather(*(only_event(trigger(one)) for one in ids))
        assert [event["task"]["luma_task_id"] for event in events] == ids

    async def test_waiting_does_not_block_the_event_loop(self, submit, only_event):
        luma_task_id = submit(processing_seconds=0.3)
        iterations = 0

        async def count() -> None:
            nonlocal iterations
            while True:
                await asyncio.sleep(0)
                iterations += 1

        counting = asyncio.create_task(count())
        await only_event(trigger(luma_task_id))
        counting.cancel()
        assert iterations > 100


class TestExpectedCallback:
    """A job whose callback address is this Airflow's is checked once, and then only in case the callback is lost."""

    @pytest.fixture
    def submit_with(self, luma, luma_conn):
        """Submits a job with a callback address, at which no callback ever arrives."""

        def _submit_with(callback_url: str | None, processing_seconds: float = 60) -> str:
            luma.configure(processing_seconds=processing_seconds, callback_copies=0)
            return LumaHook().modify_video("make it snow", luma.sample_url, callback_url=callback_url)

        return _submit_with

    @pytest.fixture
    def delay(self, only_event, monkeypatch):
        """Lets a trigger check a job once; returns after how many seconds it will check it again."""
        outcomes, poll = [], LumaAsyncClient.poll

        async def recorded(client: LumaAsyncClient, state: poll_state.PollState) -> Any:
            outcomes.append(await poll(client, state))
            return outcomes[-1]

        async def _delay(luma_task_id: str, *, seconds: float = 3600) -> float:
            waiting = asyncio.create_task(only_event(trigger(luma_task_id, seconds=seconds, poll_interval=20)))
            while not outcomes:
                await asyncio.sleep(0.01)
            await cancel(waiting)
            return outcomes[0].delay

        monkeypatch.setattr(LumaAsyncClient, "poll", recorded)
        return _delay

    @staticmethod
    def callback_url(api_key: str, conn_id: str = "luma_default") -> str | None:
        connection = LumaConnection("http://127.0.0.1:9", api_key, callback_base_url="http://127.0.0.1:9")
        return callback_token.callback_url(connection, conn_id, new_reference())

    async def test_a_job_with_our_callback_address_is_checked_every_ten_intervals(self, submit_with, delay, api_key):
        luma_task_id = submit_with(self.callback_url(api_key))
        assert await delay(luma_task_id) == 10 * 20

    async def test_a_job_with_our_callback_address_is_checked_first_and_at_the_deadline(
        self, luma, submit_with, delay, api_key
    ):
        luma_task_id = submit_with(self.callback_url(api_key))
        before = time.time()
        seconds = await delay(luma_task_id, seconds=100)
        assert 100 - (time.time() - before) <= seconds <= 100
        assert len(status_checks(luma)) == 1

    @pytest.mark.parametrize("whose", ["a user's own", "another account's", "another connection's", "nobody's"])
    async def test_a_job_with_another_callback_address_is_checked_at_every_interval(
        self, submit_with, delay, api_key, whose
    ):
        callback_url = {
            "a user's own": "http://127.0.0.1:9/luma/callback?token=abc",
            "another account's": self.callback_url("another-key"),
            "another connection's": self.callback_url(api_key, "luma_other"),  # whose callback resumes no task of this
            "nobody's": None,
        }[whose]
        luma_task_id = submit_with(callback_url)
        assert await delay(luma_task_id) == 20

    async def test_polling_makes_up_for_a_lost_callback(self, submit_with, only_event, api_key):
        luma_task_id = submit_with(self.callback_url(api_key), processing_seconds=0.1)
        event = await only_event(trigger(luma_task_id, poll_interval=0.02))
        assert event["task"]["status"] == "SUCCESS"


class TestEnd:
    @pytest.mark.parametrize("moment", ["between two status checks", "during a status check"])
    async def test_a_cancelled_trigger_leaves_nothing_open(self, luma, submit, only_event, moment, task_log):
        luma_task_id = submit(processing_seconds=60)
        if moment == "during a status check":
            luma.configure(faults=["status:hang,seconds=10"])
        gc.collect()  # what other tests have left
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            waiting = asyncio.create_task(only_event(trigger(luma_task_id, poll_interval=10)))
            await until_checked(luma)
            if moment == "between two status checks":
                while not any("is GENERATING" in entry["event"] for entry in task_log):
                    await asyncio.sleep(0.01)
            await cancel(waiting)
            del waiting
            gc.collect()
            await asyncio.sleep(0)
        assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    async def test_on_kill_logs_that_the_job_is_unaffected(self, task_log):
        await trigger("abc").on_kill()
        (entry,) = task_log
        assert entry["log_level"] == "info", "Airflow also calls it when a callback has resumed the task"
        assert entry["event"] == "Trigger ended (callback received, or task cleared). Luma task abc is unaffected"

    async def test_on_kill_does_not_end_the_wait(self, luma, submit, only_event):
        one = trigger(submit())
        waiting = asyncio.create_task(only_event(one))
        await until_checked(luma)
        await one.on_kill()
        assert (await waiting)["task"]["status"] == "SUCCESS"

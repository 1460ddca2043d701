# SPDX-License-Identifier: Apache-2.0
"""Waiting for a job to end follows the same rules in the worker (LumaHook) and in the triggerer (LumaAsyncHook)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from airflow_provider_luma import client
from airflow_provider_luma.core import poll_state
from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.core.poll_state import Failed, Finished, PollState
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaGenerationError,
    LumaNotFoundError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from tests.support.calls import status_checks
from tests.support.task_logs import messages


async def wait_in_worker(luma_task_id: str, *, timeout: float = 20, poll_interval: float = 0.02) -> LumaTask:
    wait = LumaHook().wait_for_completion
    return await asyncio.to_thread(wait, luma_task_id, timeout=timeout, poll_interval=poll_interval)


sleep_in_triggerer = asyncio.sleep


async def wait_in_triggerer(luma_task_id: str, *, timeout: float = 20, poll_interval: float = 0.02) -> LumaTask:
    state = PollState(luma_task_id, poll_interval=poll_interval, end_time=time.time() + timeout)
    async with LumaAsyncHook() as hook:
        while True:
            outcome = await hook.client.poll(state)
            if isinstance(outcome, Finished):
                return outcome.task
            if isinstance(outcome, Failed):
                raise outcome.reason
            await sleep_in_triggerer(outcome.delay)


@pytest.fixture(params=[wait_in_worker, wait_in_triggerer], ids=["worker", "triggerer"])
def wait(request, luma_conn) -> Callable[..., Awaitable[LumaTask]]:
    return request.param


async def first_status_check(luma) -> None:
    async with asyncio.timeout(60):
        while not status_checks(luma):
            await asyncio.sleep(0.01)


#: Every status check says that the job is running, whether it has ended or not.
STILL_RUNNING = ["status:unknown_flag,flag=0"]


class TestOutcomes:
    async def test_finished_job_is_returned_with_its_video(self, luma, submit, wait):
        luma_task_id = submit(faults=["status:unknown_flag,flag=0,times=2"])
        task = await wait(luma_task_id)
        assert task.luma_task_id == luma_task_id
        assert task.status is LumaTaskStatus.SUCCESS
        assert len(task.result_urls) == 1
        assert len(status_checks(luma)) > 2

    async def test_job_whose_callback_failed_is_a_success(self, submit, wait):
        task = await wait(submit(outcome="callback_failed"))
        assert task.status is LumaTaskStatus.CALLBACK_FAILED
        assert task.as_dict()["status"] == "SUCCESS"

    @pytest.mark.parametrize(
        ("outcome", "code", "name"),
        [("create_failed", 500, "CREATE_TASK_FAILED"), ("generate_failed", 501, "GENERATE_FAILED")],
    )
    async def test_failed_job_raises_lumas_code_and_message(self, submit, wait, outcome, code, name):
        luma_task_id = submit(outcome=outcome, error_message="100 % no people")
        with pytest.raises(LumaGenerationError, match="100 % no people") as caught:
            await wait(luma_task_id)
        assert (caught.value.code, caught.value.luma_task_id) == (code, luma_task_id)
        assert name in str(caught.value)

    async def test_success_that_never_lists_a_video_is_an_error(self, luma, submit, wait, short_backoff):
        luma_task_id = submit(outcome="no_urls", processing_seconds=0)
        with pytest.raises(LumaResultMissingError, match="no video") as caught:
            await wait(luma_task_id)
        assert luma_task_id in str(caught.value)
        assert len(status_checks(luma)) >= 2

    async def test_unknown_id_is_an_error_after_the_grace_period(self, luma, wait, monkeypatch, short_backoff):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.3)
        with pytest.raises(LumaNotFoundError, match="nobody-knows") as caught:
            await wait("nobody-knows")
        assert "luma_conn_id" in str(caught.value)
        assert len(status_checks(luma)) > 1

    async def test_refused_api_key_ends_the_wait_for_a_job_that_was_never_seen(self, submit, wait):
        luma_task_id = submit(faults=["status:refuse,code=401"], processing_seconds=60)
        with pytest.raises(LumaAuthError, match="connection 'luma_default'") as caught:
            await wait(luma_task_id)
        assert (caught.value.code, caught.value.luma_task_id) == (401, luma_task_id)

    async def test_refused_api_key_is_waited_out_for_a_job_that_was_seen(self, submit, wait, short_backoff):
        luma_task_id = submit(faults=["status:refuse,code=401,skip=1,times=3"], processing_seconds=0.3)
        assert (await wait(luma_task_id)).luma_task_id == luma_task_id

    @pytest.mark.parametrize("fault", ["refuse,code=402", "refuse,code=422", "refuse,code=505", "refuse,code=501",
                                       "html,code=401", "html,code=404"])  # fmt: skip
    async def test_trouble_in_passing_does_not_end_the_wait(self, submit, wait, short_backoff, fault):
        """Nothing but the service's own word on this job does."""
        luma_task_id = submit(faults=[f"status:{fault},times=2"])
        assert (await wait(luma_task_id)).luma_task_id == luma_task_id

    @pytest.mark.parametrize("extra", [{"verify": "/no/such/bundle.pem"}, {"timeout": -1}, {"proxies": 7}])
    async def test_connection_that_is_unusable_for_a_while_does_not_end_the_wait(
        self, luma, submit, set_connection, short_backoff, task_log, until, extra
    ):
        luma_task_id = submit()
        set_connection(luma.base_url, **extra)
        waiting = asyncio.create_task(wait_in_triggerer(luma_task_id))
        await asyncio.to_thread(until, lambda: messages(task_log, "could not be checked"))
        set_connection(luma.base_url)
        assert (await waiting).luma_task_id == luma_task_id

    async def test_certificates_that_vanish_for_a_while_do_not_end_a_wait_in_the_worker(
        self, luma, submit, set_connection, short_backoff, task_log, until
    ):
        luma_task_id = submit(faults=STILL_RUNNING)
        waiting = asyncio.create_task(wait_in_worker(luma_task_id))
        await first_status_check(luma)
        set_connection(luma.base_url, verify="/no/such/bundle.pem")
        await asyncio.to_thread(until, lambda: messages(task_log, "could not be checked"))
        set_connection(luma.base_url)
        luma.configure(faults=[])
        assert (await waiting).luma_task_id == luma_task_id

    async def test_certificates_that_cannot_be_read_end_a_wait_before_it_begins(self, luma, submit, set_connection):
        luma_task_id = submit()
        set_connection(luma.base_url, verify="/no/such/bundle.pem")
        with pytest.raises(LumaValidationError, match="verify or cert .*/no/such/bundle.pem"):
            await wait_in_worker(luma_task_id)


class TestDeadline:
    async def test_job_that_runs_beyond_the_timeout_is_an_error_that_names_it(self, submit, wait):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(LumaTimeoutError, match="still running") as caught:
            await wait(luma_task_id, timeout=0.3)
        assert luma_task_id in str(caught.value)

    async def test_last_status_check_is_at_the_deadline_even_with_a_long_poll_interval(
        self, luma, submit, wait, monkeypatch, until
    ):
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr(client, "time", SimpleNamespace(**{**vars(time), "sleep": slept.append}))
        monkeypatch.setattr(sys.modules[__name__], "sleep_in_triggerer", sleep)
        luma_task_id = submit(faults=["status:unknown_flag,flag=0,times=1"], processing_seconds=0)
        until(lambda: luma.jobs[0].complete_time)  # the first result takes a moment to render
        before = time.time()
        assert (await wait(luma_task_id, timeout=600, poll_interval=3600)).is_successful
        assert len(status_checks(luma)) == 2
        (seconds,) = slept
        assert 600 - (time.time() - before) <= seconds <= 600


class TestDisturbances:
    """Nothing that may pass ends the wait for a job that is paid for."""

    @pytest.mark.parametrize(
        "faults",
        [
            ["status:html,every=5"],
            ["status:refuse,code=429,style=status,every=2", "status:refuse,code=455,style=body,every=3"],
            ["status:refuse,code=429,style=body,times=3"],
            ["status:refuse,code=500,times=2"],
            ["status:cut,every=3"],
            ["status:cut_body,every=3"],
            ["status:empty,every=3", "status:truncated,every=2"],
            ["status:null_data,every=2"],
            ["status:wrong_data,every=2"],
            ["status:response_string"],
            ["status:refuse,code=404,times=2"],
        ],
        ids=lambda faults: " ".join(faults),
    )
    async def test_transient_error_of_the_service_does_not_end_the_wait(self, submit, wait, short_backoff, faults):
        luma_task_id = submit(faults=[*faults, "status:unknown_flag,flag=0,times=6"])
        task = await wait(luma_task_id)
        assert task.is_successful
        assert task.result_urls

    async def test_undocumented_flag_counts_as_running_and_is_warned_about_once(self, submit, wait, task_log):
        task = await wait(submit(faults=["status:unknown_flag,times=4"]))
        assert task.is_successful
        warnings = [entry for entry in task_log if entry["log_level"] == "warning"]
        assert len(warnings) == 1
        assert "UNDOCUMENTED_9" in warnings[0]["event"]

    async def test_connection_that_cannot_be_read_for_a_while_does_not_end_the_wait(
        self, luma, submit, wait, monkeypatch, task_log
    ):
        luma_task_id = submit(faults=STILL_RUNNING)
        waiting = asyncio.create_task(wait(luma_task_id))
        await first_status_check(luma)
        uri = LumaHook.get_connection("luma_default").get_uri()
        if wait is wait_in_triggerer:  # which keeps the connection until the key is refused
            luma.configure(faults=["status:refuse,code=401,style=status,times=1", *STILL_RUNNING])
        with monkeypatch.context() as without_connection:
            without_connection.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
            async with asyncio.timeout(60):
                while not any("the connection could not be read" in entry["event"] for entry in task_log):
                    await asyncio.sleep(0.01)
        assert LumaHook.get_connection("luma_default").get_uri() == uri
        luma.configure(faults=[])
        assert (await waiting).is_successful

    async def test_api_key_that_is_replaced_during_the_wait_does_not_end_it(self, luma, submit, wait, set_connection):
        luma_task_id = submit(faults=STILL_RUNNING)
        waiting = asyncio.create_task(wait(luma_task_id))
        await first_status_check(luma)
        set_connection(luma.base_url, key="the-next-key")
        luma.configure(api_key="the-next-key", faults=["status:unknown_flag,flag=0,times=1"])
        assert (await waiting).is_successful


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"luma_task_id": ""}, "luma_task_id"),
        ({"luma_task_id": "x", "timeout": 0}, "timeout"),
        ({"luma_task_id": "x", "poll_interval": -1}, "poll_interval"),
    ],
)
def test_invalid_argument_is_refused_before_anything_is_sent(luma, luma_conn, arguments, names):
    with pytest.raises(LumaValidationError, match=names):
        LumaHook().wait_for_completion(**arguments)
    assert luma.calls == []

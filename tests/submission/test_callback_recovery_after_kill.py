# SPDX-License-Identifier: Apache-2.0
"""A try that was killed before Luma's answer leaves an intent; the callback tells later tries which job it became."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_luma.exceptions import LumaTimeoutError, LumaUnavailableError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger
from harness.deferrals import awaited_job, callback_event, deferral_of, expiry_event, resume
from tests.support.calls import submissions
from tests.support.submission_fixtures import MODES
from tests.support.task_instance import Killed, TaskInstance
from tests.support.task_logs import messages


@pytest.fixture
def kill_first_try(luma, modify, context, callbacks_on) -> Callable[..., dict[str, Any]]:
    """Kills the first try before it can record the id, with the simulator configured; returns a retry's context."""

    def _kill_first_try(**settings: Any) -> dict[str, Any]:
        luma.configure(**settings)
        store = context["task_state_store"]
        store.crash_at((2, False))
        with pytest.raises(Killed):
            modify().execute(context)
        store.crash_at(None)
        assert (luma.accepted, store.record["luma_task_id"]) == (1, None)
        context["ti"] = TaskInstance(2)
        return context

    return _kill_first_try


@pytest.fixture
def killed(kill_first_try) -> dict[str, Any]:
    """The context of a retry, after the first try was killed; its job is running."""
    return kill_first_try()


class TestRetryBeforeTheCallback:
    def test_retry_waits_for_the_callback_and_continues_the_job_it_names(self, luma, modify, killed, task_log):
        deferred = deferral_of(modify().execute, killed)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        assert deferred.kwargs["reference"] == killed["task_state_store"].record["reference"]
        assert len(messages(task_log, "Try 1 ", "callback", "nothing new is billed")) == 1
        job = luma.jobs[0].task_id
        assert awaited_job(deferral_of(resume, modify(), deferred, killed, callback_event(job))) == job
        assert killed["task_state_store"].record["luma_task_id"] == job
        assert luma.accepted == len(submissions(luma)) == 1

    def test_no_number_of_retries_submits_again_while_no_callback_comes(self, luma, modify, killed):
        for number in range(2, 6):
            killed["ti"] = TaskInstance(number)
            deferred = deferral_of(modify().execute, killed)
            deferred.kwargs["end_time"] = time.time() - 1
            with pytest.raises(AirflowFailException):
                resume(modify(), deferred, killed, expiry_event(deferred))
        assert luma.accepted == len(submissions(luma)) == 1

    def test_cleared_task_waits_for_the_callback_as_nobody_was_told_of_the_unknown_outcome(self, luma, modify, killed):
        killed["ti"] = TaskInstance(2, max_tries=3)
        deferred = deferral_of(modify().execute, killed)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        assert luma.accepted == 1

    def test_task_that_is_cleared_after_the_unknown_outcome_was_reported_submits_another_job(
        self, luma, modify, killed
    ):
        deferred = deferral_of(modify().execute, killed)
        deferred.kwargs["end_time"] = time.time() - 1
        with pytest.raises(AirflowFailException):
            resume(modify(), deferred, killed, expiry_event(deferred))
        killed["ti"] = TaskInstance(2, max_tries=3)
        assert awaited_job(deferral_of(modify().execute, killed)) == luma.jobs[1].task_id
        assert luma.accepted == 2


class TestRetryAfterTheCallback:
    def test_retry_continues_the_job_that_the_recorded_callback_names(self, luma, modify, killed, task_log):
        job = luma.jobs[0].task_id
        killed["task_state_store"].record_callback(job)
        assert awaited_job(deferral_of(modify().execute, killed)) == job
        assert killed["task_state_store"].record["luma_task_id"] == killed["ti"].pushed["luma_task_id"] == job
        assert len(messages(task_log, "Continuing", job, "nothing new is billed")) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    def test_retry_continues_the_named_job_in_every_mode(self, luma, modify, killed, mode):
        killed["task_state_store"].record_callback(luma.jobs[0].task_id)
        with suppress(LumaTimeoutError, TaskDeferred):
            modify(timeout=0.05, **mode).execute(killed)
        assert killed["ti"].pushed["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == len(submissions(luma)) == 1

    def test_retry_takes_the_result_of_a_named_job_that_has_succeeded(
        self, luma, modify, kill_first_try, await_job_ends
    ):
        killed = kill_first_try(processing_seconds=0)
        await_job_ends()
        killed["task_state_store"].record_callback(luma.jobs[0].task_id)
        result = modify().execute(killed)
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert luma.accepted == 1

    def test_cleared_task_returns_the_video_of_the_named_job_as_nobody_has_seen_it(
        self, luma, modify, kill_first_try, await_job_ends
    ):
        killed = kill_first_try(processing_seconds=0)
        killed["task_state_store"].record_callback(luma.jobs[0].task_id)
        await_job_ends()
        killed["ti"] = TaskInstance(2, max_tries=5)
        assert modify().execute(killed)["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    @pytest.mark.parametrize("named", ["nobody-knows", "another client's job"])
    def test_recorded_callback_that_names_a_job_of_others_is_ignored(self, luma, modify, killed, named):
        if named == "another client's job":
            named = LumaHook().modify_video("make it rain", luma.sample_url)
        killed["task_state_store"].record_callback(named)
        deferred = deferral_of(modify().execute, killed)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        assert killed["task_state_store"].record["luma_task_id"] is None

    def test_retry_submits_nothing_while_luma_cannot_be_asked_about_the_named_job(self, luma, modify, killed):
        killed["task_state_store"].record_callback(luma.jobs[0].task_id)
        luma.configure(faults=["status:refuse,code=500"])
        with pytest.raises(LumaUnavailableError):
            modify().execute(killed)
        luma.configure(faults=[])
        killed["ti"] = TaskInstance(3)
        assert awaited_job(deferral_of(modify().execute, killed)) == luma.jobs[0].task_id
        assert luma.accepted == len(submissions(luma)) == 1

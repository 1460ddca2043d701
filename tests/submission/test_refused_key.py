# SPDX-License-Identifier: Apache-2.0
"""A refused API key while a job runs: the wait goes on, the job is paid for once, and the log names the remedy."""

from __future__ import annotations

import pytest

from airflow_provider_luma.compat import CLEAR_DISCARDS_TASK_STATE
from airflow_provider_luma.core import backoff
from airflow_provider_luma.exceptions import NO_RECORD_HINT, LumaTimeoutError, LumaUnavailableError
from airflow_provider_luma.links.luma import ERROR_KEY, REQUEST_KEY
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from harness.deferrals import deferral_of
from tests.support.submission_fixtures import ENDLESS
from tests.support.task_instance import TaskInstance, TaskRun, TaskStateStore
from tests.support.task_logs import messages

REFUSED = "status:refuse,code=401"


@pytest.fixture(autouse=True)
def quick(monkeypatch, short_backoff):
    monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.05)


@pytest.fixture(params=[True, False], ids=["deferred", "in the worker"])
def waiting_task(request, modify) -> TaskRun:
    return TaskRun(lambda **changes: modify(deferrable=request.param, **changes), TaskStateStore())


def test_wait_goes_on_until_the_key_is_replaced(luma, waiting_task, task_log):
    luma.configure(faults=[f"{REFUSED},times=4"], processing_seconds=0)
    assert waiting_task.run_try()["luma_task_id"] == luma.jobs[0].task_id
    warned = messages(task_log, luma.jobs[0].task_id, "connection 'luma_default' was refused", "paid for", "API key")
    assert len(warned) == 4, "at each check"
    assert luma.accepted == 1


def test_task_fails_at_its_timeout_and_tells_the_job_and_the_step_that_costs_nothing(luma, waiting_task):
    luma.configure(faults=[REFUSED], processing_seconds=0)
    for _ in range(2):
        with pytest.raises(LumaTimeoutError, match="was refused") as caught:
            waiting_task.run_try(timeout=0.2)
        job = luma.jobs[0].task_id
        assert waiting_task.ti.pushed["luma_task_id"] == job
        shown = waiting_task.ti.pushed[ERROR_KEY]
        assert (shown["luma_task_id"], shown["remedy"]) == (job, caught.value.remedy)
        for words in (job, "paid for", "Clear this task", "nothing new is billed"):
            assert words in str(caught.value)
    assert luma.accepted == 1
    luma.configure(faults=[])
    assert waiting_task.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id


def test_clear_while_the_key_is_refused_names_the_key_and_submits_nothing(luma, waiting_task):
    luma.configure(faults=[REFUSED], processing_seconds=0)
    with pytest.raises(LumaTimeoutError):
        waiting_task.run_try(timeout=0.1)
    with pytest.raises(
        LumaUnavailableError, match="nothing is submitted until Luma responds .*connection 'luma_default'"
    ):
        waiting_task.clear_and_run(timeout=0.1)
    assert waiting_task.ti.pushed["luma_task_id"] == luma.jobs[0].task_id
    assert luma.accepted == 1


def test_callback_does_not_cut_the_wait_short(luma, modify, context):
    luma.configure(processing_seconds=ENDLESS)
    deferred = deferral_of(modify().execute, context)
    luma.configure(faults=[REFUSED])
    for _ in range(3):
        event = {"callback": {"luma_task_id": luma.jobs[0].task_id}}
        deferred = deferral_of(
            modify().resume_execution, "execute_complete", {**deferred.kwargs, "event": event}, context
        )
        assert deferred.trigger.created_at is not None, "so that the trigger waits, too"


def test_callback_of_a_lost_submission_does_not_cut_the_wait_short(luma, modify, callbacks_on):
    luma.configure(faults=["submit:cut,after_accept,times=1"])
    context = {"ti": TaskInstance(), "task_state_store": TaskStateStore()}
    deferred = deferral_of(modify().execute, context)
    luma.configure(faults=[REFUSED])
    for _ in range(3):
        event = {"callback": {"luma_task_id": luma.jobs[0].task_id}}
        deferred = deferral_of(
            modify().resume_execution, "execute_with_callback", {**deferred.kwargs, "event": event}, context
        )
    luma.configure(faults=[], processing_seconds=0)
    deferred = deferral_of(
        modify().resume_execution, "execute_with_callback", {**deferred.kwargs, "event": event}, context
    )
    assert deferred.trigger.luma_task_id == luma.jobs[0].task_id
    assert luma.accepted == 1


class TestWayOn:
    @pytest.mark.parametrize("has_store", [True, False])
    def test_page_learns_it_before_anything_fails(self, luma, modify, has_store):
        """A worker that is killed says nothing any more."""
        store = TaskStateStore() if has_store else None
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), store)
        task.run_try()
        hint = TaskStateSubmissionStore.recovery_hint if has_store else NO_RECORD_HINT
        assert task.ti.pushed[REQUEST_KEY]["recovery"] == hint

    def test_without_any_store_a_clear_is_advised_against(self):
        recovery_hint = TaskStateSubmissionStore(None).recovery_hint
        assert "submits another, separately billed, job" in recovery_hint
        assert "LumaTaskSensor" in recovery_hint

    def test_task_state_is_kept_over_a_clear_below_airflow_3_4_only(self):
        recovery_hint = TaskStateSubmissionStore(TaskStateStore()).recovery_hint
        assert ("'Keep task state and resume'" in recovery_hint) == CLEAR_DISCARDS_TASK_STATE

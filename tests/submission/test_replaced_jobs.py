# SPDX-License-Identifier: Apache-2.0
"""A paid job, another request that was not accepted, and back: the paid job's record is still there."""

from __future__ import annotations

from contextlib import suppress

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.exceptions import LumaError, LumaSubmissionUnknownError, LumaTimeoutError
from tests.support.submission_fixtures import ENDLESS
from tests.support.task_instance import Killed, TaskRun, TaskStateStore
from tests.support.task_logs import messages

pytestmark = [pytest.mark.slow, pytest.mark.versions]

OTHER = {"prompt": "make it rain"}


@pytest.fixture(params=["task state store", "folder"])
def task(request, luma, modify, set_connection, tmp_path) -> TaskRun:
    """A task on each store, which waits in the worker."""
    if request.param == "folder":
        set_connection(luma.base_url, submission_store=str(tmp_path))
    state = TaskStateStore() if request.param == "task state store" else None
    return TaskRun(lambda **changes: modify(deferrable=False, **changes), state)


@pytest.fixture
def paid(luma, task, leave_running, until) -> str:
    """A job that was still running when its task had timed out, and has ended since."""
    job = leave_running(task)
    luma.end_jobs()
    until(lambda: luma.jobs[0].complete_time)
    return job


@pytest.mark.parametrize("code", [401, 402, 422, 429])
@pytest.mark.parametrize("times", [1, 2])
def test_clear_back_to_the_first_request_returns_the_video_that_is_paid_for(luma, task, paid, code, times):
    luma.configure(faults=[f"submit:refuse,code={code}"])
    for _ in range(times):
        with pytest.raises((LumaError, AirflowFailException)):
            task.clear_and_run(**OTHER, timeout=0.05)
    luma.configure(faults=[])
    assert task.clear_and_run()["luma_task_id"] == paid
    assert luma.accepted == 1


def test_retry_back_to_the_first_request_returns_the_video_that_is_paid_for(luma, task, paid):
    luma.configure(faults=["submit:refuse,code=402"])
    with pytest.raises(LumaError):
        task.clear_and_run(**OTHER)
    luma.configure(faults=[])
    assert task.run_try()["luma_task_id"] == paid


def test_kill_between_the_intent_and_the_refusal_loses_nothing(luma, task, paid, monkeypatch, task_log):
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr("airflow_provider_luma.client.LumaClient.submit", die)
        with pytest.raises(Killed):
            task.clear_and_run(**OTHER)
    with pytest.raises(AirflowFailException, match="log page"):  # the other request may have been accepted
        task.clear_and_run()
    result = task.clear_and_run()
    assert result["luma_task_id"] == paid
    assert luma.accepted == 1
    assert len(messages(task_log, "a different request", "log page")) == 1
    assert task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id, "the first was returned now"


def test_unknown_submission_of_the_second_request_is_still_reported_to_who_asks_for_it_again(
    luma, task, paid, monkeypatch
):
    luma.configure(faults=["submit:cut,after_accept,times=1"])
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="log page"):
            task.run_try(**OTHER)
    assert luma.accepted == 2


def test_several_unknown_submissions_of_other_requests_do_not_hide_the_paid_job(luma, task, paid):
    luma.configure(faults=["submit:cut"])
    for prompt in ("make it rain", "make it dark"):
        with pytest.raises(AirflowFailException, match="log page"):
            task.clear_and_run(prompt=prompt)
    luma.configure(faults=[])
    assert task.clear_and_run()["luma_task_id"] == paid
    assert luma.accepted == 1


def test_intent_in_the_store_before_the_connection_named_a_folder_does_not_hide_the_paid_job(
    luma, modify, leave_running, set_connection, tmp_path
):
    task = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
    job = leave_running(task)
    luma.configure(faults=["submit:cut"])
    with pytest.raises(AirflowFailException, match="log page"):
        task.clear_and_run(**OTHER)
    luma.configure(faults=[])
    luma.end_jobs()
    set_connection(luma.base_url, submission_store=str(tmp_path))
    assert task.clear_and_run()["luma_task_id"] == job
    assert luma.accepted == 1


def test_who_wants_not_to_be_asked_gets_the_paid_video_at_once(luma, task, paid, monkeypatch):
    luma.configure(faults=["submit:cut,times=1"])
    with pytest.raises(LumaSubmissionUnknownError):
        task.clear_and_run(**OTHER, resubmit_on_unknown=True)
    assert task.run_try(resubmit_on_unknown=True)["luma_task_id"] == paid
    assert luma.accepted == 1


def test_late_answer_to_a_forgotten_submission_does_not_hide_the_paid_job(luma, task, paid, monkeypatch):
    send, later = LumaClient.submit, TaskRun(task._modify, task.store)

    def slow(client, *arguments, **options):
        answer = send(client, *arguments, **options)
        monkeypatch.setattr(LumaClient, "submit", send)
        later.ti.try_number, later.ti.max_tries = task.ti.try_number, task.ti.max_tries
        with pytest.raises(AirflowFailException, match="log page"):
            later.clear_and_run()
        later.clear_and_run()
        return answer

    monkeypatch.setattr(LumaClient, "submit", slow)
    luma.configure(processing_seconds=ENDLESS)
    with suppress(LumaError):
        task.run_try(**OTHER, timeout=0.05)
    assert luma.accepted == 2
    assert later.run_try()["luma_task_id"] == paid


def test_accepted_second_request_takes_the_place_of_the_first_whose_id_the_log_names(luma, task, paid, task_log):
    luma.configure(processing_seconds=0)
    second = task.clear_and_run(**OTHER)
    assert second["luma_task_id"] == luma.jobs[1].task_id
    assert len(messages(task_log, "its request has changed", paid, "LumaTaskSensor")) == 1
    third = task.clear_and_run()
    assert third["luma_task_id"] == luma.jobs[2].task_id


def test_job_that_has_timed_out_again_after_a_refusal_stays_the_one_that_is_waited_for(luma, task, leave_running):
    job = leave_running(task)
    luma.configure(faults=["submit:refuse,code=402"])
    with pytest.raises(LumaError):
        task.run_try(**OTHER)
    luma.configure(faults=[])
    with pytest.raises(LumaTimeoutError, match=job):
        task.run_try(timeout=0.05)
    assert luma.accepted == 1

# SPDX-License-Identifier: Apache-2.0
"""Jobs belong to a service: a connection that is switched to another one asks nothing of it, and pays it nothing."""

from __future__ import annotations

import time

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.core.poll_state import PollAgain, PollState
from airflow_provider_luma.exceptions import LumaGenerationError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.submission.store import STORE_KEY
from tests.support.task_instance import TaskRun, TaskStateStore

pytestmark = [pytest.mark.slow, pytest.mark.versions]

BOTH = pytest.mark.parametrize(("before", "after"), [("kie", "luma"), ("luma", "kie")])


@pytest.fixture
def switch_to(luma, set_connection):
    """Lets the connection lead to another service, with the same key, at the same address."""

    def _switch_to(service: str) -> None:
        set_connection(luma.base_url, requests_per_second=1000, service=service)

    return _switch_to


@pytest.fixture
def task(modify, switch_to):
    """A task that waits in the worker."""
    return TaskRun(lambda **changes: modify(**{"deferrable": False, **changes}), TaskStateStore())


def names_both(error: BaseException) -> bool:
    return "'kie'" in str(error) and "'luma'" in str(error)


def test_job_of_lumas_own_api_ends_as_a_result(task, switch_to, luma):
    switch_to("luma")
    result = task.run_try()
    assert luma.accepted == 1
    assert (result["status"], result["service"], len(result["result_urls"])) == ("SUCCESS", "luma", 1)
    assert result["completed_at"] is not None


@BOTH
def test_record_of_another_service_is_neither_asked_nor_replaced(task, switch_to, luma, before, after, leave_running):
    switch_to(before)
    leave_running(task)
    calls = len(luma.calls)
    switch_to(after)
    for run in (task.run_try, task.clear_and_run):
        with pytest.raises(AirflowFailException) as caught:
            run()
        assert names_both(caught.value)
    assert len(luma.calls) == calls
    switch_to(before)
    luma.end_jobs()
    assert task.run_try()["status"] == "SUCCESS"
    assert luma.accepted == 1


@BOTH
def test_wait_asks_nothing_while_the_connection_leads_elsewhere(submit, switch_to, luma, before, after):
    switch_to(before)
    luma_task_id = LumaHook().modify_video("make it snow", luma.sample_url)
    calls = len(luma.calls)
    switch_to(after)
    hook, state = LumaHook(), PollState(luma_task_id, poll_interval=0.01, service=before)
    outcome = hook.poll(state)
    assert isinstance(outcome, PollAgain)
    assert isinstance(outcome.error, LumaUnavailableError)
    assert names_both(outcome.error)
    assert len(luma.calls) == calls
    switch_to(before)
    assert hook.wait_for_completion(luma_task_id, poll_interval=0.01, service=before).is_successful


@BOTH
def test_queued_submission_is_not_sent_to_another_service(modify, switch_to, context, luma, before, after):
    switch_to(before)
    luma.configure(max_running=0, jobs_at_a_time=0)
    with pytest.raises(TaskDeferred) as deferred:
        modify().execute(context)
    assert deferred.value.method_name == "execute_from_queue"
    luma.reset()
    switch_to(after)
    event = {"state": deferred.value.kwargs, "at": 0.0}
    with pytest.raises(AirflowFailException) as caught:
        modify().execute_from_queue(context, event, **deferred.value.kwargs)
    assert names_both(caught.value)
    assert luma.calls == []


def test_without_its_record_a_task_submits_to_the_other_service(task, switch_to, luma, leave_running):
    leave_running(task)
    switch_to("luma")
    task.store.delete(STORE_KEY)
    assert task.run_try()["service"] == "luma"
    assert luma.accepted == 2


def test_record_names_the_service(task, switch_to):
    switch_to("luma")
    task.run_try()
    record = SubmissionRecord.load(task.store.get(STORE_KEY))
    assert record is not None
    assert record.service == "luma"


def test_deferral_and_trigger_name_the_service(modify, switch_to, context):
    switch_to("luma")
    with pytest.raises(TaskDeferred) as deferred:
        modify().execute(context)
    assert deferred.value.kwargs["service"] == "luma"
    assert deferred.value.trigger.serialize()[1]["service"] == "luma"


def test_hook_does_not_submit_to_another_service_after_a_refusal(switch_to, luma, monkeypatch, short_backoff):
    switch_to("kie")
    luma.configure(max_running=0)
    monkeypatch.setattr("airflow_provider_luma.client.tenacity.nap.time.sleep", lambda _: switch_to("luma"))
    with pytest.raises(LumaValidationError) as caught:
        LumaHook().modify_video("make it snow", luma.sample_url)
    assert names_both(caught.value)
    assert luma.accepted == 0


def test_failure_that_the_request_causes_uses_no_retries(task, switch_to, luma):
    switch_to("luma")
    luma.configure(outcome="generate_failed", failure_code="content_moderated")
    with pytest.raises(AirflowFailException, match="content_moderated"):
        task.run_try()
    luma.configure(outcome="success")
    with pytest.raises(AirflowFailException, match="content_moderated"):
        task.run_try()  # a retry, should Airflow make one
    assert luma.accepted == 1


def test_failure_that_may_pass_is_submitted_again(task, switch_to, luma):
    switch_to("luma")
    luma.configure(outcome="generate_failed", failure_code="generation_failed")
    with pytest.raises(LumaGenerationError, match="generation_failed"):
        task.run_try()
    luma.configure(outcome="success")
    assert task.run_try()["status"] == "SUCCESS"
    assert luma.accepted == 2


@pytest.mark.parametrize("parameter", ["watermark", "callback_url"])
def test_parameter_that_the_service_lacks_is_refused_before_anything_is_sent(task, switch_to, luma, parameter):
    switch_to("luma")
    with pytest.raises(AirflowFailException, match=parameter):
        task.run_try(**{parameter: "https://example.com/mine"})
    assert luma.calls == []


def test_options_reach_the_service_and_change_the_job(task, switch_to, luma):
    switch_to("luma")
    task.run_try(options={"video": {"resolution": "360p"}})
    assert luma.jobs[0].request["video"]["resolution"] == "360p"
    task.run_try(options={"video": {"resolution": "540p"}})
    assert luma.accepted == 2


def test_one_edit_follows_another_without_a_download(task, modify, switch_to, luma):
    switch_to("luma")
    first = task.run_try()["luma_task_id"]
    second = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
    assert second.run_try(video_url=f"luma-job:{first}")["status"] == "SUCCESS"
    assert luma.jobs[1].request["source"] == {"generation_id": first}


def test_recovery_of_a_lost_submission_asks_nothing_of_another_service_however_often(modify, switch_to, context, luma):
    switch_to("luma")
    state = {"reference": "f" * 32, "end_time": time.time() + 600}
    for event in ({"callback": {"luma_task_id": "0" * 32}}, {"state": state, "at": 0.0}):
        with pytest.raises(TaskDeferred) as deferred:
            modify().execute_with_callback(context, event, **state)
        assert deferred.value.method_name == "execute_with_callback"
        state = deferred.value.kwargs
        assert "service" not in state, "the job is kie.ai's still"
    assert luma.calls == []

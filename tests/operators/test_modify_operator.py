# SPDX-License-Identifier: Apache-2.0
"""LumaModifyOperator: what it sends, how it waits, and how it ends."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, TaskDeferred

from airflow_provider_luma.core.job import LumaTaskStatus
from airflow_provider_luma.exceptions import LumaError, LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from harness.deferrals import deferral_of
from tests.support.calls import status_checks
from tests.support.operator_fixtures import RESULT_KEYS, VALID_PARAMETERS, new_context
from tests.support.task_logs import messages

RESULT = {
    **dict.fromkeys(RESULT_KEYS),
    "luma_task_id": "abc",
    "status": "SUCCESS",
    "result_urls": ["https://e.com/r"],
}


class TestExecute:
    def test_task_submits_and_defers_to_the_trigger_that_waits_for_its_job(self, luma, modify, context):
        operator = modify(poll_interval=12, timeout=600)
        before = time.time()
        deferred = deferral_of(operator.execute, context)
        (job,) = luma.jobs
        assert context["ti"].pushed["luma_task_id"] == job.task_id
        assert isinstance(deferred.trigger, LumaTaskTrigger)
        arguments = dict(deferred.trigger.serialize()[1])
        end_time, created_at = arguments.pop("end_time"), arguments.pop("created_at")
        assert before + 600 <= end_time <= time.time() + 600
        assert before <= created_at <= time.time()
        assert arguments == {"luma_task_id": job.task_id, "luma_conn_id": "luma_default", "poll_interval": 12}
        assert deferred.kwargs == {
            "luma_task_id": job.task_id,
            "luma_conn_id": "luma_default",
            "end_time": end_time,
            "created_at": created_at,
            "reference": context["task_state_store"].record["reference"],
        }
        assert deferred.method_name == "execute_complete"
        assert deferred.timeout is None
        assert callable(getattr(operator, deferred.method_name))

    def test_log_names_the_video_without_the_query_that_may_be_a_signature(self, luma, modify, context, task_log):
        deferral_of(modify(video_url=f"{luma.sample_url}?signature=secret").execute, context)
        assert luma.jobs[0].video_url.endswith("?signature=secret")
        assert messages(task_log, f"Submitting {luma.sample_url} ")
        assert not messages(task_log, "signature=secret")

    def test_deferral_ends_with_execution_timeout(self, modify, context):
        deferred = deferral_of(modify(execution_timeout=timedelta(minutes=5)).execute, context)
        assert deferred.timeout == timedelta(minutes=5)

    def test_task_that_is_not_deferrable_waits_in_the_worker_and_returns_the_result(self, luma, modify, context):
        result = modify(deferrable=False).execute(context)
        assert list(result) == RESULT_KEYS
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert len(result["result_urls"]) == 1
        assert context["ti"].pushed["luma_task_id"] == luma.jobs[0].task_id

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_task_without_wait_for_completion_returns_once_luma_has_accepted_the_job(
        self, luma, modify, context, deferrable
    ):
        result = modify(wait_for_completion=False, deferrable=deferrable).execute(context)
        assert result == {
            "luma_task_id": luma.jobs[0].task_id,
            "status": "GENERATING",
            "result_urls": [],
            "origin_urls": [],
            "created_at": None,
            "completed_at": None,
        }
        assert list(result) == RESULT_KEYS
        assert status_checks(luma) == []

    def test_result_has_the_same_keys_whether_the_job_was_waited_for_or_not(self, modify, context):
        waited = modify(deferrable=False).execute(context)
        not_waited = modify(wait_for_completion=False).execute(new_context())
        assert list(waited) == list(not_waited) == RESULT_KEYS
        assert LumaTaskStatus[waited["status"]].name == "SUCCESS"

    def test_optional_parameters_are_sent_only_if_they_are_set(self, luma, modify, context):
        modify(wait_for_completion=False, watermark="mine", callback_url="http://127.0.0.1:9/cb").execute(context)
        modify(wait_for_completion=False, watermark="", callback_url="").execute(new_context())
        assert luma.jobs[0].request["watermark"] == "mine"
        assert luma.jobs[0].request["callBackUrl"] == "http://127.0.0.1:9/cb"
        assert sorted(luma.jobs[1].request) == ["prompt", "videoUrl"]

    @pytest.mark.parametrize("outcome", ["generate_failed", "create_failed"])
    def test_task_in_the_worker_fails_with_lumas_words_if_its_job_failed(self, luma, modify, context, outcome):
        luma.configure(outcome=outcome, error_message="no people, please")
        with pytest.raises(LumaGenerationError, match="no people, please") as caught:
            modify(deferrable=False).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_task_in_the_worker_names_its_job_when_its_timeout_ends(self, luma, modify, context):
        luma.configure(processing_seconds=60)
        with pytest.raises(LumaTimeoutError) as caught:
            modify(deferrable=False, timeout=0.2).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_missing_connection_is_named(self, context):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
            LumaModifyOperator(task_id="modify", luma_conn_id="nowhere", **VALID_PARAMETERS).execute(context)

    def test_connection_whose_key_is_not_percent_encoded_is_explained_without_quoting_it(self, context, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_PASTED", "luma://:s3cret/k9y@")
        with pytest.raises(AirflowNotFoundException, match="AIRFLOW_CONN_PASTED.* percent-encode") as caught:
            LumaModifyOperator(task_id="modify", luma_conn_id="pasted", **VALID_PARAMETERS).execute(context)
        assert [part for part in ("s3cret", "k9y") if part in str(caught.value)] == []


class TestExecuteComplete:
    def test_result_of_the_event_is_returned(self, modify, context):
        assert modify().execute_complete(context, {"task": RESULT}) == RESULT

    @pytest.mark.parametrize("kind", ["LumaGenerationError", "LumaTimeoutError", "LumaAuthError", "LumaError"])
    def test_error_of_the_event_is_raised_with_its_type(self, modify, context, kind):
        event = {"error": {"type": kind, "code": 501, "msg": "no people, please", "luma_task_id": "abc"}}
        with pytest.raises(LumaError, match="no people, please") as caught:
            modify().execute_complete(context, event)
        assert type(caught.value).__name__ == kind
        assert "abc" in str(caught.value)

    def test_resumed_task_runs_execute_complete(self, modify, context):
        event = {"task": RESULT}
        assert modify().resume_execution("execute_complete", {"event": event}, context) == RESULT

    def test_execution_timeout_of_a_deferred_task_names_its_job(self, luma, modify, context):
        operator = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        resumed = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(LumaTimeoutError, match="execution_timeout") as caught:
            resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert caught.value.luma_task_id == luma.jobs[0].task_id
        assert "0:00:07" in str(caught.value)
        assert "still running" in str(caught.value)

    def test_execution_timeout_names_the_job_also_while_the_connection_cannot_be_read(
        self, luma, modify, context, monkeypatch
    ):
        deferral_of(modify(execution_timeout=timedelta(seconds=7)).execute, context)
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        resumed = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(LumaTimeoutError) as caught:
            resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert caught.value.luma_task_id == luma.jobs[0].task_id


class TestOnKill:
    def test_kill_before_the_submission_refers_to_the_account(self, modify, task_log):
        modify().on_kill()
        (entry,) = task_log
        assert entry["log_level"] == "warning"
        assert "log page of the account" in entry["event"]

    def test_kill_while_a_job_runs_names_the_job_and_says_that_it_is_billed(self, luma, modify, context, task_log):
        operator = modify()
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        logged = messages(task_log)[-1]
        for hint in (luma.jobs[0].task_id, "cannot cancel", "billed", "LumaTaskSensor"):
            assert hint in logged

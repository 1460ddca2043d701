# SPDX-License-Identifier: Apache-2.0
"""The callback of a submission whose answer was lost tells its task which job was accepted."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.exceptions import LumaGenerationError, LumaSubmissionUnknownError, LumaUnavailableError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.submission.store import STORE_KEY
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger
from harness.deferrals import awaited_job, callback_event, deferral_of, expiry_event, resume
from tests.support.calls import submissions
from tests.support.operator_fixtures import RESULT_KEYS, new_context
from tests.support.task_instance import TaskInstance, TaskRun, TaskStateStore
from tests.support.task_logs import messages


@pytest.fixture(autouse=True)
def _answer_is_lost(luma, callbacks_on) -> None:
    luma.configure(faults=["submit:cut,after_accept,times=1"])


@pytest.fixture
def lost(luma, modify, context) -> TaskDeferred:
    """The deferral of a task that waits for the callback."""
    deferred = deferral_of(modify().execute, context)
    assert luma.accepted == 1
    return deferred


class TestDeferral:
    def test_task_that_loses_the_answer_defers_until_the_callback(self, luma, modify, context, task_log):
        before = time.time()
        deferred = deferral_of(modify(poll_interval=3, timeout=600).execute, context)
        record = context["task_state_store"].record
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        _, arguments = deferred.trigger.serialize()
        state = {**arguments["state"], "luma_conn_id": "luma_default"}
        assert state == deferred.kwargs, "its event repeats the state"
        assert deferred.kwargs["reference"] == record["reference"]
        assert before + 30 <= arguments["until"] <= time.time() + 30, "the store is checked every ten intervals"
        assert before + 600 <= deferred.kwargs["end_time"] <= time.time() + 600
        assert deferred.method_name == "execute_with_callback"
        assert (record["luma_task_id"], record["expects_callback"]) == (None, True)
        assert len(messages(task_log, "may have been accepted", "Waiting for Luma's callback")) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    def test_deferral_for_a_callback_is_no_longer_than_the_timeout(self, modify, context):
        deferred = deferral_of(modify(poll_interval=30, timeout=10).execute, context)
        assert deferred.trigger.serialize()[1]["until"] == deferred.kwargs["end_time"]

    def test_execution_timeout_counts_from_the_first_deferral_for_a_callback(self, modify, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        deferred = deferral_of(modify(**options).execute, context)
        assert deferred.timeout == timedelta(minutes=5)
        deferred.kwargs["execution_deadline"] -= 200
        again = deferral_of(resume, modify(**options), deferred, context, expiry_event(deferred))
        assert timedelta(seconds=90) < again.timeout <= timedelta(seconds=100)
        assert again.kwargs == deferred.kwargs

    def test_task_is_deferred_again_while_no_callback_comes(self, modify, context, lost):
        again = deferral_of(resume, modify(), lost, context, expiry_event(lost))
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == lost.kwargs
        assert again.trigger.until >= lost.trigger.until

    @pytest.mark.parametrize("wait_for_completion", [True, False])
    def test_task_that_loses_the_answer_and_may_not_be_deferred_fails(self, luma, modify, context, wait_for_completion):
        options = {"deferrable": False, "wait_for_completion": wait_for_completion}
        for number in (1, 2):
            context["ti"] = TaskInstance(number)
            with pytest.raises(AirflowFailException, match="log page"):
                modify(**options).execute(context)
        assert luma.accepted == len(submissions(luma)) == 1

    def test_task_that_loses_the_answer_and_has_a_callback_url_of_the_user_fails(self, luma, modify, context):
        with pytest.raises(AirflowFailException, match="log page"):
            modify(callback_url="http://127.0.0.1:9/hook").execute(context)
        assert luma.accepted == 1


class TestCallbackNamesTheJob:
    def test_task_returns_the_result_of_a_job_that_has_ended(self, luma, modify, context, await_job_ends, task_log):
        luma.configure(processing_seconds=0)
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        job = luma.jobs[0].task_id
        result = resume(modify(), deferred, context, callback_event(job))
        assert (result["luma_task_id"], result["status"], len(result["result_urls"])) == (job, "SUCCESS", 1)
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert len(messages(task_log, "from a callback", job)) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    def test_task_waits_for_a_running_job_within_its_execution_timeout(self, luma, modify, context, lost):
        job = luma.jobs[0].task_id
        lost.kwargs["execution_deadline"] = deadline = time.time() + 100
        options = {"execution_timeout": timedelta(minutes=5)}
        again = deferral_of(resume, modify(**options), lost, context, callback_event(job))
        assert awaited_job(again) == job
        assert again.method_name == "execute_complete"
        assert again.kwargs["execution_deadline"] == deadline
        assert timedelta(seconds=90) < again.timeout <= timedelta(seconds=100)
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert luma.accepted == 1

    def test_task_fails_with_lumas_words_if_the_job_failed(self, luma, modify, context, await_job_ends):
        luma.configure(processing_seconds=0, outcome="generate_failed", error_message="no people, please")
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        with pytest.raises(LumaGenerationError, match="no people, please"):
            resume(modify(), deferred, context, callback_event(luma.jobs[0].task_id))
        assert luma.accepted == 1

    def test_retry_replaces_a_job_that_failed(self, luma, modify, context, await_job_ends):
        luma.configure(processing_seconds=0, outcome="generate_failed")
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        job = luma.jobs[0].task_id
        context["task_state_store"].record_callback(job)
        with pytest.raises(LumaGenerationError):
            resume(modify(), deferred, context, callback_event(job))
        luma.configure(outcome="success")
        context["ti"] = TaskInstance(2)
        again = deferral_of(modify().execute, context)
        assert awaited_job(again) == luma.jobs[1].task_id
        assert luma.accepted == 2

    def test_task_continues_a_job_that_only_the_first_of_two_status_checks_has_shown(self, luma, modify, context, lost):
        """The first already shows whose job it is."""
        job = luma.jobs[0].task_id
        luma.configure(faults=["status:refuse,code=500,every=2"])
        assert awaited_job(deferral_of(resume, modify(), lost, context, callback_event(job))) == job
        assert luma.accepted == 1

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_named_job_is_verified_later_if_luma_cannot_be_asked(self, luma, modify, context, lost, fault):
        job = luma.jobs[0].task_id
        luma.configure(faults=[f"status:{fault}"])
        again = deferral_of(resume, modify(), lost, context, callback_event(job))
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == {**lost.kwargs, "callback_task_id": job}
        luma.configure(faults=[])
        assert awaited_job(deferral_of(resume, modify(), again, context, expiry_event(again))) == job
        assert luma.accepted == 1

    def test_recorded_callback_that_came_before_the_deferral_names_the_job_too(self, luma, modify, context, lost):
        job = luma.jobs[0].task_id
        context["task_state_store"].record_callback(job)
        assert awaited_job(deferral_of(resume, modify(), lost, context, expiry_event(lost))) == job
        assert context["task_state_store"].record["luma_task_id"] == job
        assert luma.accepted == 1

    def test_record_of_a_later_submission_is_left_unchanged(self, luma, modify, context, lost):
        """A person has cleared the task while an earlier try of it was being resumed."""
        store, job = context["task_state_store"], luma.jobs[0].task_id
        other = {**store.record, "reference": new_reference()}
        store.set(STORE_KEY, other)
        assert awaited_job(deferral_of(resume, modify(), lost, context, callback_event(job))) == job
        assert store.record == other


class TestCallbackOfOthers:
    def test_callback_that_names_the_job_of_another_client_is_ignored(self, luma, modify, context, lost, task_log):
        stranger = LumaHook().modify_video("make it rain", luma.sample_url)
        again = deferral_of(resume, modify(), lost, context, callback_event(stranger))
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == lost.kwargs
        assert len(messages(task_log, stranger, "Ignored")) == 1
        assert context["task_state_store"].record["luma_task_id"] is None
        assert "luma_task_id" not in context["ti"].pushed
        own = callback_event(luma.jobs[0].task_id)
        assert awaited_job(deferral_of(resume, modify(), again, context, own)) is not None
        assert luma.accepted == 2, "its own, and the other client's"

    def test_callback_that_names_the_job_of_another_task_is_ignored(self, luma, modify, context, lost):
        deferral_of(modify().execute, new_context())
        own, other = (job.task_id for job in luma.jobs)
        again = deferral_of(resume, modify(), lost, context, callback_event(other))
        assert awaited_job(again) is None
        assert awaited_job(deferral_of(resume, modify(), again, context, callback_event(own))) == own

    def test_callback_that_names_an_unknown_job_is_remembered_as_luma_may_not_know_it_yet(
        self, luma, modify, context, lost, task_log
    ):
        again = deferral_of(resume, modify(), lost, context, callback_event("nobody-knows"))
        assert (awaited_job(again), again.kwargs) == (None, {**lost.kwargs, "callback_task_id": "nobody-knows"})
        assert len(messages(task_log, "nobody-knows", "does not know (yet)")) == 1
        assert luma.accepted == 1

    def test_recorded_callback_of_another_submission_is_ignored(self, luma, modify, context, lost):
        context["task_state_store"].record_callback(luma.jobs[0].task_id, new_reference())
        assert awaited_job(deferral_of(resume, modify(), lost, context, expiry_event(lost))) is None


class TestTimeout:
    def test_task_fails_without_using_its_retries_if_no_callback_comes_in_time(self, luma, modify, context, lost):
        lost.kwargs["end_time"] = time.time() - 1
        with pytest.raises(AirflowFailException, match="no callback arrived.*log page") as caught:
            resume(modify(), lost, context, expiry_event(lost))
        assert isinstance(caught.value.__cause__, LumaSubmissionUnknownError)
        assert context["ti"].pushed["luma_error"]["type"] == "LumaSubmissionUnknownError"
        assert context["task_state_store"].record["luma_task_id"] is None, "the intent stays, for a person to see"
        assert luma.accepted == 1

    def test_callback_that_comes_at_the_very_end_counts(self, luma, modify, context, lost):
        lost.kwargs["end_time"] = time.time() - 1
        job = luma.jobs[0].task_id
        assert awaited_job(deferral_of(resume, modify(), lost, context, callback_event(job))) == job

    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_record_is_kept_if_luma_cannot_be_asked_about_the_named_job_at_the_end(
        self, luma, modify, context, lost, resubmit_on_unknown
    ):
        lost.kwargs["end_time"] = time.time() - 1
        job = luma.jobs[0].task_id
        luma.configure(faults=["status:refuse,code=500"])
        with pytest.raises(LumaUnavailableError):
            resume(modify(resubmit_on_unknown=resubmit_on_unknown), lost, context, callback_event(job))
        assert context["task_state_store"].record is not None
        assert luma.accepted == 1

    def test_retry_submits_again_with_resubmit_on_unknown_once_no_callback_has_come_in_time(
        self, luma, modify, context
    ):
        options = {"resubmit_on_unknown": True}
        lost = deferral_of(modify(**options).execute, context)
        assert isinstance(lost.trigger, LumaCallbackTrigger), "the callback is waited for all the same"
        lost.kwargs["end_time"] = time.time() - 1
        with pytest.raises(LumaSubmissionUnknownError):
            resume(modify(**options), lost, context, expiry_event(lost))
        assert luma.accepted == 1
        context["ti"] = TaskInstance(2)
        again = deferral_of(modify(**options).execute, context)
        assert awaited_job(again) == luma.jobs[1].task_id
        assert luma.accepted == 2


class TestWithoutWaitingForCompletion:
    def test_task_waits_for_the_callback_and_returns_the_id_of_the_named_job(self, luma, modify, context):
        options = {"wait_for_completion": False}
        deferred = deferral_of(modify(**options).execute, context)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        job = luma.jobs[0].task_id
        result = resume(modify(**options), deferred, context, callback_event(job))
        assert (list(result), result["luma_task_id"], result["status"]) == (RESULT_KEYS, job, "GENERATING")
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert luma.accepted == 1

    def test_task_returns_the_id_of_a_named_job_that_failed(self, luma, modify, context, await_job_ends):
        options = {"wait_for_completion": False}
        luma.configure(processing_seconds=0, outcome="generate_failed")
        deferred = deferral_of(modify(**options).execute, context)
        await_job_ends()
        event = callback_event(luma.jobs[0].task_id)
        assert resume(modify(**options), deferred, context, event)["status"] == "GENERATING"


class TestWithoutTaskStateStore:
    """Airflow below 3.3."""

    def test_task_waits_for_the_callback_and_then_for_the_named_job(self, luma, modify):
        context = {"ti": TaskInstance()}
        deferred = deferral_of(modify().execute, context)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        again = deferral_of(resume, modify(), deferred, context, expiry_event(deferred))
        assert (awaited_job(again), again.kwargs) == (None, deferred.kwargs)
        job = luma.jobs[0].task_id
        assert awaited_job(deferral_of(resume, modify(), again, context, callback_event(job))) == job
        assert context["ti"].pushed["luma_task_id"] == job
        again.kwargs["end_time"] = time.time() - 1
        with pytest.raises(AirflowFailException, match="no callback arrived"):
            resume(modify(), again, context, expiry_event(again))
        assert luma.accepted == 1


class TestWithoutKwargs:
    """``dag.test()`` of Airflow 3.1 to 3.3 resumes a task with the event alone."""

    def test_task_that_no_callback_reaches_fails_after_its_timeout(self, luma, modify):
        task = TaskRun(modify, TaskStateStore(), passes_kwargs=False)
        with pytest.raises(AirflowFailException, match="no callback arrived"):
            task.run_try(timeout=0.2, poll_interval=0.005)  # is deferred several times
        assert luma.accepted == 1

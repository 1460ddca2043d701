# SPDX-License-Identifier: Apache-2.0
"""Submit once, each row of the decision table end to end: from a task's tries to the jobs in the account at Luma."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_provider_luma.core import backoff, poll_state
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaResultMissingError,
    LumaTimeoutError,
)
from tests.support.operator_fixtures import VALID_PARAMETERS
from tests.support.submission_fixtures import MODES
from tests.support.task_instance import Killed, TaskRun, TaskStateStore, assert_result_is_of
from tests.support.task_logs import messages


class TestFirstTry:
    def test_first_try_records_an_intent_submits_and_records_the_id(self, luma, task, task_log):
        result = task.run_try()
        assert luma.accepted == 1
        assert_result_is_of(luma.jobs[0].task_id, task, result)
        assert task.store.operations == [("set", None), ("set", luma.jobs[0].task_id), ("set", "delivered")]
        assert len(messages(task_log, "No earlier submission recorded")) == 1

    def test_mapped_task_instances_do_not_share_a_record(self, luma, modify):
        mapped = [TaskRun(modify, TaskStateStore()) for _ in range(2)]
        ids = [one.run_try()["luma_task_id"] for one in mapped]
        assert ids == [job.task_id for job in luma.jobs]
        assert [one.run_try()["luma_task_id"] for one in mapped] == ids
        assert luma.accepted == 2

    def test_record_holds_neither_the_key_nor_the_request_nor_the_connection_id(self, luma, task, api_key):
        task.run_try(watermark="a mark")
        written = json.dumps(task.store.record)
        for text in (api_key, VALID_PARAMETERS["prompt"], luma.sample_url, "a mark", "luma_default"):
            assert text not in written


class TestRetry:
    def test_retry_waits_for_the_running_job_that_an_earlier_try_submitted(self, luma, task, leave_running, task_log):
        job = leave_running(task)
        with suppress(LumaTimeoutError):
            assert_result_is_of(job, task, task.run_try(timeout=0.05))
        assert task.ti.pushed["luma_task_id"] == job
        assert luma.accepted == 1
        assert len(messages(task_log, "Continuing", job, "try 1")) == 1

    def test_retry_returns_the_video_of_the_job_that_an_earlier_try_submitted(self, luma, modify):
        task = TaskRun(modify, TaskStateStore())
        luma.configure(faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            task.run_try(timeout=0.05)
        luma.configure(faults=["status:unknown_flag,flag=0,times=3"])
        result = task.run_try()
        assert_result_is_of(luma.jobs[0].task_id, task, result)
        assert (result["status"], len(result["result_urls"]), luma.accepted) == ("SUCCESS", 1, 1)

    def test_retry_waits_for_a_job_with_an_undocumented_flag(self, luma, task, leave_running):
        job = leave_running(task)
        luma.configure(faults=["status:unknown_flag"])
        with suppress(LumaTimeoutError):
            task.run_try(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)

    @pytest.mark.parametrize("outcome", ["success", "callback_failed"])
    def test_retry_takes_the_result_of_a_job_that_has_succeeded(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.run_try()
        assert_result_is_of(job, task, result)
        assert luma.accepted == 1
        assert result["status"] == ("SUCCESS" if result["result_urls"] else "GENERATING")
        assert len(messages(task_log, "Returning the result", job, "try 1")) == 1

    def test_retry_returns_an_available_result_after_one_status_check(self, luma, modify, leave_ended):
        task = TaskRun(modify, TaskStateStore())
        leave_ended(task)
        calls = len(luma.calls)
        assert task.run_try()["status"] == "SUCCESS"
        assert len(luma.calls) == calls + 1

    @pytest.mark.parametrize("outcome", ["generate_failed", "create_failed"])
    def test_retry_replaces_a_job_that_failed(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.run_try()
        assert luma.accepted == 2
        assert_result_is_of(luma.jobs[1].task_id, task, result)
        assert task.store.record["luma_task_id"] == luma.jobs[1].task_id
        assert task.store.record["try_number"] == 2
        assert len(messages(task_log, "failed; submitting a new job", job, "try 1")) == 1

    @pytest.mark.parametrize("run", ["run_try", "clear_and_run"])
    def test_job_that_luma_does_not_find_within_two_months_is_not_paid_for_again(
        self, luma, task, leave_ended, monkeypatch, run
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0)
        job = leave_ended(task)
        luma.configure(faults=["status:refuse,code=404"])
        with pytest.raises(LumaNotFoundError, match="although it may exist.*delete this task's submission"):
            getattr(task, run)()
        assert luma.accepted == 1
        luma.configure(faults=[])
        if run == "run_try":
            assert task.run_try()["luma_task_id"] == job

    def test_retry_replaces_a_job_that_luma_no_longer_knows_after_two_months(
        self, luma, task, leave_ended, monkeypatch, task_log
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0)
        job = leave_ended(task)
        task.store.change(submitted_at=time.time() - 63 * 86_400)
        luma.reset()
        result = task.run_try()
        assert luma.accepted == 1
        assert result["luma_task_id"] != job
        assert_result_is_of(luma.jobs[0].task_id, task, result)
        assert len(messages(task_log, "no longer knows", job, "try 1")) == 1

    def test_raised_retries_alone_do_not_turn_a_retry_into_a_clear(self, luma, sync_task, leave_ended):
        leave_ended(sync_task)
        sync_task.retries = 9  # Airflow goes by max_tries, which only Clear sets
        sync_task.run_try()
        assert luma.accepted == 1


@pytest.mark.parametrize("run", ["run_try", "clear_and_run"])
def test_changed_request_is_submitted_without_a_status_check_of_the_recorded_job(
    luma, task, leave_running, run, task_log
):
    job = leave_running(task)
    calls = len(luma.calls)
    result = getattr(task, run)(prompt="make it a sunny day")
    assert luma.accepted == 2
    assert_result_is_of(luma.jobs[1].task_id, task, result)
    asked = [call.on for call in luma.calls[calls:] if call.on in ("submit", "status")]
    assert asked[0] == "submit", "nothing is asked of a job that is not wanted"
    assert len(messages(task_log, "changed", job, "try 1")) == 1


class TestClearedTask:
    def test_cleared_task_waits_for_its_running_job(self, luma, task, leave_running, task_log):
        job = leave_running(task)
        with suppress(LumaTimeoutError):
            task.clear_and_run(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)
        assert len(messages(task_log, "cleared", "still running", job, "try 1")) == 1

    @pytest.mark.parametrize("outcome", ["success", "callback_failed", "generate_failed"])
    def test_cleared_task_submits_a_new_job_after_its_job_has_ended(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.clear_and_run()
        assert luma.accepted == 2
        assert_result_is_of(luma.jobs[1].task_id, task, result)
        assert len(messages(task_log, "cleared", job, "try 1")) == 1

    def test_cleared_task_returns_the_result_that_nobody_has_got(self, luma, task, leave_running, until, task_log):
        """It has timed out, and the job has ended since: the video is paid for."""
        luma.configure(faults=["status:unknown_flag,flag=0"])
        with suppress(LumaTimeoutError):
            task.run_try(timeout=0.05)
        task.store.change(delivered=False)
        luma.configure(faults=[])
        until(lambda: luma.jobs[0].complete_time)
        result = task.clear_and_run()
        assert (result["luma_task_id"], luma.accepted) == (luma.jobs[0].task_id, 1)
        assert len(messages(task_log, "cleared", "no record that Airflow stored the result")) == 1
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id, "now it was returned"

    def test_retry_returns_the_result_that_a_lost_worker_did_not_hand_over(self, luma, task):
        def lose_worker() -> None:
            raise Killed

        task.on_return = lose_worker
        with suppress(Killed):
            task.run_try()
        task.on_return = lambda: None
        result = task.run_try()
        assert (result["luma_task_id"], luma.accepted) == (luma.jobs[0].task_id, 1)

    def test_each_clear_submits_another_job(self, luma, sync_task):
        for accepted in (1, 2, 3):
            sync_task.clear_and_run()
            assert luma.accepted == accepted

    def test_clear_is_recognised_after_retries_were_lowered(self, luma, modify, leave_ended):
        task = TaskRun(modify, TaskStateStore(), retries=5)
        leave_ended(task)
        task.retries = 1
        task.clear_and_run()
        assert luma.accepted == 2

    def test_clear_is_recognised_on_a_task_without_retries(self, luma, modify, leave_ended):
        task = TaskRun(modify, TaskStateStore(), retries=0)
        leave_ended(task)
        task.clear_and_run()
        assert luma.accepted == 2


class TestResubmitOnFailure:
    def test_failed_job_fails_the_task_without_using_its_retries_if_off(self, luma, sync_task):
        luma.configure(processing_seconds=0, outcome="generate_failed", error_message="Refused by moderation.")
        for _ in range(2):
            with pytest.raises(AirflowFailException, match="Refused by moderation"):
                sync_task.run_try(resubmit_on_failure=False)
        assert luma.accepted == 1

    def test_deferred_task_fails_without_using_its_retries_if_off(self, luma, modify):
        luma.configure(processing_seconds=0, outcome="generate_failed")
        task = TaskRun(modify, TaskStateStore())
        with pytest.raises(AirflowFailException, match="GENERATE_FAILED"):
            task.run_try(resubmit_on_failure=False)
        assert task.store.record["delivered"]

    def test_failed_job_is_replaced_by_a_retry_by_default(self, luma, sync_task):
        luma.configure(processing_seconds=0, outcome="generate_failed")
        with pytest.raises(LumaGenerationError):
            sync_task.run_try()
        luma.configure(outcome="success")
        assert sync_task.run_try()["luma_task_id"] == luma.jobs[1].task_id

    def test_person_who_has_seen_the_failure_and_clears_the_task_gets_a_new_job(self, luma, sync_task):
        luma.configure(processing_seconds=0, outcome="generate_failed")
        with pytest.raises(AirflowFailException):
            sync_task.run_try(resubmit_on_failure=False)
        luma.configure(outcome="success")
        assert sync_task.clear_and_run(resubmit_on_failure=False)["luma_task_id"] == luma.jobs[1].task_id


class TestMissingVideo:
    """The job has ended well, and is paid for, but Luma lists no video."""

    @pytest.fixture(autouse=True)
    def no_video(self, luma, short_backoff):
        luma.configure(processing_seconds=0, outcome="no_urls")

    def test_retry_submits_no_second_job(self, luma, sync_task):
        for _ in range(3):
            with pytest.raises(LumaResultMissingError, match="Ask the support"):
                sync_task.run_try()
        assert luma.accepted == 1

    def test_person_who_was_told_and_clears_the_task_gets_a_new_job(self, luma, sync_task):
        with pytest.raises(LumaResultMissingError):
            sync_task.run_try()
        luma.configure(outcome="success")
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    def test_video_that_is_listed_after_all_is_returned_after_a_clear(self, luma, sync_task):
        with pytest.raises(LumaResultMissingError):
            sync_task.run_try()
        luma.jobs[0].result_urls.append(luma.sample_url)
        luma.configure(outcome="success")
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    def test_result_that_was_returned_and_is_no_longer_listed_is_replaced_after_a_clear(self, luma, sync_task):
        luma.configure(outcome="success")
        sync_task.run_try()
        luma.jobs[0].result_urls.clear()
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    def test_person_who_was_only_told_of_a_lost_answer_gets_no_second_job(self, luma, sync_task, callbacks_on, until):
        faults = ["submit:cut,after_accept,times=1", "status:unknown_flag,flag=0"]
        luma.configure(processing_seconds=0.3, faults=faults)
        with pytest.raises(AirflowFailException, match="log page"):
            sync_task.run_try()
        sync_task.store.record_callback(luma.jobs[0].task_id)
        with pytest.raises(LumaTimeoutError):
            sync_task.clear_and_run(timeout=0.05)
        until(lambda: luma.jobs[0].complete_time)
        luma.configure(faults=[])
        with pytest.raises(LumaResultMissingError):
            sync_task.clear_and_run()
        assert luma.accepted == 1


class TestRetryAfterAClear:
    def test_retry_takes_the_result_of_the_job_that_the_cleared_try_submitted(self, luma, task, leave_ended):
        leave_ended(task)
        task.clear_and_run()
        assert luma.accepted == 2
        assert_result_is_of(luma.jobs[1].task_id, task, task.run_try())
        assert luma.accepted == 2

    def test_retry_takes_the_result_of_the_job_that_the_cleared_try_waited_for(self, luma, sync_task):
        luma.configure(processing_seconds=0, faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            sync_task.run_try(timeout=0.05)
        with pytest.raises(LumaTimeoutError):
            sync_task.clear_and_run(timeout=0.05)
        assert sync_task.store.record["max_tries"] == sync_task.ti.max_tries == 3
        assert sync_task.store.record["try_number"] == 1, "it is still the first try that submitted"
        luma.configure(faults=[])
        assert_result_is_of(luma.jobs[0].task_id, sync_task, sync_task.run_try())
        assert luma.accepted == 1

    def test_retry_submits_if_the_submission_of_the_cleared_try_was_refused(self, luma, sync_task, leave_ended):
        """The new video, which the person wanted, is still missing."""
        leave_ended(sync_task)
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            sync_task.clear_and_run()
        assert_result_is_of(sync_task.run_try()["luma_task_id"], sync_task, sync_task.ti.pushed)
        assert luma.accepted == 2

    def test_retry_submits_if_the_cleared_try_was_killed_before_it_recorded_an_intent(
        self, luma, sync_task, leave_ended
    ):
        leave_ended(sync_task)
        sync_task.store.crash_at((1, False))
        with pytest.raises(Killed):
            sync_task.clear_and_run()
        sync_task.store.crash_at(None)
        sync_task.run_try()
        assert luma.accepted == 2


class TestWhileLumaCannotBeAsked:
    """What a proxy in front of the service says, or does not say, tells nothing about the job."""

    @pytest.mark.parametrize("fault", ["refuse,code=429", "refuse,code=500", "refuse,code=455", "html", "cut", "empty"])
    def test_retry_waits_for_the_recorded_job_and_submits_nothing(
        self, luma, task, leave_running, monkeypatch, short_backoff, fault
    ):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        job = leave_running(task)
        luma.configure(faults=[f"status:{fault}"])
        with suppress(LumaTimeoutError):
            task.run_try(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)

    @pytest.mark.parametrize("code", [403, 404, 501, 502])
    def test_error_page_of_a_proxy_is_not_taken_for_lumas_answer(
        self, luma, sync_task, leave_running, monkeypatch, short_backoff, code
    ):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0)
        leave_running(sync_task)
        luma.configure(faults=[f"status:html,code={code}"])
        with suppress(LumaError, AirflowFailException):
            sync_task.run_try(timeout=0.05)
        assert luma.accepted == 1

    def test_cleared_task_submits_a_new_job_although_one_status_check_was_refused(
        self, luma, sync_task, leave_ended, short_backoff
    ):
        leave_ended(sync_task)
        luma.configure(faults=["status:refuse,code=429,times=1"])
        sync_task.clear_and_run()
        assert luma.accepted == 2

    def test_retry_replaces_a_failed_job_although_one_status_check_was_refused(
        self, luma, sync_task, leave_ended, short_backoff
    ):
        leave_ended(sync_task, outcome="generate_failed")
        luma.configure(faults=["status:refuse,code=429,times=1"])
        assert sync_task.run_try()["luma_task_id"] == luma.jobs[1].task_id

    def test_wrong_key_submits_nothing_and_keeps_the_record(self, luma, sync_task, leave_running, set_connection):
        leave_running(sync_task)
        set_connection(luma.base_url, key="another")
        with pytest.raises(LumaTimeoutError, match="is refused"):
            sync_task.run_try(timeout=0.05)
        assert luma.accepted == 1
        assert sync_task.store.record["luma_task_id"] == luma.jobs[0].task_id

    def test_missing_connection_fails_a_retry_before_it_waits(self, modify, leave_running, monkeypatch):
        task = TaskRun(modify, TaskStateStore())
        leave_running(task)
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='luma_default'"):
            task.run_try(timeout=0.05)


class TestWithoutTaskStateStore:
    """Airflow below 3.3."""

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    def test_every_try_submits_and_logs_once_that_airflow_keeps_no_task_state(self, luma, modify, mode, task_log):
        task = TaskRun(lambda **changes: modify(**mode, **changes), None)
        for number in (1, 2):
            task_log.clear()
            assert_result_is_of(task.run_try()["luma_task_id"], task, task.ti.pushed)
            assert luma.accepted == number
            assert len(messages(task_log, "3.3")) == 1
            assert messages(task_log, "No earlier submission") == []

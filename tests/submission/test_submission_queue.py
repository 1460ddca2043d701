# SPDX-License-Identifier: Apache-2.0
"""A task that Luma refuses for now queues in the triggerer, or backs off in the worker, until it may submit again."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.core import backoff
from airflow_provider_luma.exceptions import LumaRateLimitError, LumaTimeoutError, LumaUnavailableError
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger
from harness.deferrals import awaited_job, deferral_of, expiry_event, resume
from tests.support.calls import submissions
from tests.support.operator_fixtures import new_context
from tests.support.task_instance import TaskRun, TaskStateStore


@pytest.fixture
def defer(modify, context):
    """Runs a task until it is deferred: at its start, or resumed from a deferral; returns the new deferral."""

    def _defer(deferred: TaskDeferred | None = None, **changes: object) -> TaskDeferred:
        if deferred is None:
            return deferral_of(modify(**changes).execute, context)
        return deferral_of(resume, modify(**changes), deferred, context, expiry_event(deferred))

    return _defer


class TestQueued:
    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize("code", [429, 455])
    def test_refused_task_queues_in_the_triggerer_at_once_and_without_a_record(self, luma, defer, context, code, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=1"])
        started = time.time()
        deferred = defer()
        assert isinstance(deferred.trigger, LumaSubmissionTrigger)
        assert (len(submissions(luma)), luma.accepted) == (1, 0)
        assert context["task_state_store"].record is None, "a kill while it waits costs nothing"
        assert started <= deferred.kwargs["first_attempt_at"] <= time.time()
        state = {**deferred.trigger.serialize()[1]["state"], "luma_conn_id": "luma_default"}
        assert state == deferred.kwargs, "its event repeats the state"

    def test_permitted_task_submits_and_waits_for_the_job(self, luma, defer):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        assert awaited_job(defer(defer())) == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_permitted_task_that_is_refused_again_keeps_its_priority_and_its_deadline(self, luma, defer):
        luma.configure(faults=["submit:refuse,code=429,retry_after=7,style=status,times=2"])
        first = defer()
        permitted_at = time.time()
        assert first.kwargs["first_attempt_at"] + 7 <= first.trigger.not_before <= permitted_at + 7
        again = defer(first)
        _, before = first.trigger.serialize()
        _, after = again.trigger.serialize()
        assert before["permitted_at"] is None
        assert permitted_at <= after["permitted_at"] <= time.time()
        assert after["state"]["first_attempt_at"] == before["state"]["first_attempt_at"]
        assert after["until"] == before["until"]
        assert awaited_job(defer(again)) == luma.jobs[0].task_id

    @pytest.mark.parametrize("wait_for_completion", [True, False])
    @pytest.mark.parametrize("passes_kwargs", [True, False], ids=["with kwargs", "with the event alone"])
    def test_queued_task_submits_when_its_trigger_has_fired(self, luma, modify, wait_for_completion, passes_kwargs):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        task = TaskRun(
            lambda **changes: modify(wait_for_completion=wait_for_completion, **changes),
            TaskStateStore(),
            passes_kwargs=passes_kwargs,
        )
        result = task.run_try()
        assert result["luma_task_id"] == luma.jobs[0].task_id
        refused = [("set", None), "delete"]
        job = luma.jobs[0].task_id
        assert task.store.operations == [*refused, *refused, ("set", None), ("set", job), ("set", "delivered")]

    def test_each_refused_mapped_task_submits_once_it_is_permitted(self, luma, modify):
        luma.configure(faults=["submit:refuse,code=429,times=3"])
        contexts = [new_context() for _ in range(3)]
        for map_index, context in enumerate(contexts):
            context["ti"].map_index = map_index
        queued = [deferral_of(modify().execute, context) for context in contexts]
        for context, deferred in zip(contexts, queued, strict=True):
            assert awaited_job(deferral_of(resume, modify(), deferred, context, expiry_event(deferred)))
        assert luma.accepted == 3

    @pytest.mark.parametrize("code", [429, 455])
    def test_refusal_of_one_mapped_task_does_not_keep_another_from_submitting(self, luma, modify, code):
        contexts = [new_context() for _ in range(2)]
        for map_index, context in enumerate(contexts):
            context["ti"].map_index = map_index
        luma.configure(faults=[f"submit:refuse,code={code},times=1"])
        assert isinstance(deferral_of(modify().execute, contexts[0]).trigger, LumaSubmissionTrigger)
        assert awaited_job(deferral_of(modify().execute, contexts[1])) == luma.jobs[0].task_id


class TestLimitsOfAPlan:
    """Luma's own API refuses by one of two limits, and the queue is told which."""

    @pytest.fixture
    def defer(self, luma, defer, set_connection):
        set_connection(luma.base_url, service="luma")
        return defer

    @pytest.mark.parametrize(
        ("limit", "trigger", "logged"),
        [
            ("jobs", {"has_too_many_jobs": True}, "Too many jobs are running at Luma; queued in the triggerer"),
            ("requests", {"requests_per_minute": 1000}, "Rate limited by Luma; queued in the triggerer"),
        ],
    )
    def test_limit_is_logged_and_passed_to_the_queue(self, luma, defer, task_log, limit, trigger, logged):
        luma.configure(faults=[f"submit:refuse,code=429,limit={limit},times=1"])
        before = time.time()
        _, arguments = defer().trigger.serialize()
        told = {name: arguments[name] for name in ("has_too_many_jobs", "requests_per_minute") if name in arguments}
        assert told == trigger
        assert 59 <= arguments["not_before"] - before <= 70, "Retry-After"
        lines = [entry["event"] % entry.get("positional_args", ()) for entry in task_log]
        assert logged in lines
        assert any(
            f"limit of {'jobs at a time' if limit == 'jobs' else '1000 requests a minute'}" in one for one in lines
        )


class TestDeadlines:
    def test_rate_limited_task_gives_up_after_its_timeout(self, luma, defer, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        deferred = defer(timeout=0.2)
        assert deferred.trigger.until == pytest.approx(deferred.kwargs["first_attempt_at"] + 0.2)
        deferred.kwargs["first_attempt_at"] -= 0.2
        with pytest.raises(LumaRateLimitError):
            resume(modify(timeout=0.2), deferred, context, expiry_event(deferred))
        assert context["task_state_store"].record is None

    def test_queue_timeout_limits_the_queue_and_timeout_the_wait_for_the_video(self, luma, defer, modify, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        deferred = defer(timeout=60, queue_timeout=3600)
        assert deferred.trigger.until == pytest.approx(deferred.kwargs["first_attempt_at"] + 3600)
        before = time.time()
        waiting = defer(deferred, timeout=60, queue_timeout=3600)
        assert before + 60 <= waiting.trigger.end_time <= time.time() + 60

    def test_rate_limited_task_gives_up_after_its_queue_timeout(self, luma, defer, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        deferred = defer(queue_timeout=0.2)
        deferred.kwargs["first_attempt_at"] -= 0.2
        with pytest.raises(LumaRateLimitError):
            resume(modify(queue_timeout=0.2), deferred, context, expiry_event(deferred))

    def test_task_waits_two_minutes_for_a_service_that_is_unavailable(self, defer, set_connection, free_port):
        set_connection(f"http://127.0.0.1:{free_port}")
        deferred = defer(timeout=3600)
        assert deferred.trigger.until == pytest.approx(deferred.kwargs["first_attempt_at"] + backoff.OUTAGE_TIMEOUT)

    def test_wait_for_an_unavailable_service_counts_from_the_start_of_the_outage(self, luma, defer, modify, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        busy = defer(timeout=3600)
        busy.kwargs["first_attempt_at"] -= 600
        luma.configure(faults=["submit:refuse,code=455"])
        before = time.time()
        unavailable = defer(busy, timeout=3600)
        assert before <= unavailable.trigger.until - backoff.OUTAGE_TIMEOUT <= time.time()
        unavailable.kwargs["outage_since"] -= backoff.OUTAGE_TIMEOUT
        with pytest.raises(LumaUnavailableError):
            resume(modify(timeout=3600), unavailable, context, expiry_event(unavailable))

    def test_execution_timeout_counts_from_the_first_deferral(self, luma, defer):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        first = defer(execution_timeout=timedelta(seconds=100))
        deadline = first.kwargs["execution_deadline"]
        first.kwargs["execution_deadline"] = deadline - 40
        before = time.time()
        again = defer(first, execution_timeout=timedelta(seconds=100))
        assert deadline - 40 - time.time() <= again.timeout.total_seconds() <= deadline - 40 - before
        waiting_for_job = defer(again, execution_timeout=timedelta(seconds=100))
        assert waiting_for_job.kwargs["execution_deadline"] == deadline - 40

    def test_execution_timeout_of_a_queued_task_says_that_nothing_was_billed(self, luma, defer, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        defer(execution_timeout=timedelta(seconds=1))
        with pytest.raises(LumaTimeoutError, match="nothing was billed"):
            modify(execution_timeout=timedelta(seconds=1)).resume_execution(
                "__fail__", {"error": "Trigger timeout"}, context
            )

    def test_task_that_loses_the_answer_after_queueing_keeps_its_execution_deadline(self, luma, defer, set_connection):
        set_connection(luma.base_url, callback_base_url="http://127.0.0.1:9")
        luma.configure(faults=["submit:refuse,code=429,times=1", "submit:cut,after_accept,times=1"])
        hour = timedelta(hours=1)
        first = defer(execution_timeout=hour)
        first.kwargs["execution_deadline"] -= 3000
        deadline, before = first.kwargs["execution_deadline"], time.time()
        lost = defer(first, execution_timeout=hour)
        assert isinstance(lost.trigger, LumaCallbackTrigger)
        assert deadline - time.time() <= lost.timeout.total_seconds() <= deadline - before


class TestInTheWorker:
    def test_task_in_the_worker_counts_the_outage_timeout_from_the_start_of_the_outage(
        self, luma, modify, context, monkeypatch, short_backoff
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.3)
        busy = ["submit:refuse,code=429,retry_after=0.5,style=status,times=1"]
        luma.configure(faults=[*busy, "submit:refuse,code=455,times=1"])
        assert modify(deferrable=False, timeout=120).execute(context)["status"] == "SUCCESS"

    def test_rate_limited_task_in_the_worker_gives_up_after_its_queue_timeout(self, luma, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        with pytest.raises(LumaRateLimitError):
            modify(deferrable=False, timeout=3600, queue_timeout=0.01).execute(context)
        assert len(submissions(luma)) == 1

    def test_rate_limited_task_in_the_worker_backs_off_for_longer_than_an_outage_may_last(
        self, luma, modify, context, short_backoff, monkeypatch
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.0)
        luma.configure(faults=["submit:refuse,code=429,times=3"])
        assert modify(deferrable=False, timeout=120).execute(context)["status"] == "SUCCESS"
        assert (len(submissions(luma)), luma.accepted) == (4, 1)

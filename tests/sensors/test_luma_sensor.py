# SPDX-License-Identifier: Apache-2.0
"""LumaTaskSensor without a running Airflow: polling in the worker, rescheduled, and deferred."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException

from airflow_provider_luma.core import backoff, poll_state
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from tests.support.calls import status_checks
from tests.support.task_instance import TaskInstance

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]

#: The three ways to wait.
MODES = {
    "poke": {"deferrable": False, "mode": "poke"},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
    "deferred": {"deferrable": True},
}


class RescheduledTaskInstance(TaskInstance):
    """The part of Airflow's task instance that a sensor uses."""

    first_rescheduled_to: Any = None

    def get_first_reschedule_date(self, context: Any) -> Any:
        return self.first_rescheduled_to


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": RescheduledTaskInstance()}


def sensor(luma_task_id: Any, **options: Any) -> LumaTaskSensor:
    options = {"poke_interval": 0.02, "timeout": 20, **options}
    return LumaTaskSensor(task_id="wait", luma_task_id=luma_task_id, **options)


async def run(one: LumaTaskSensor, context: Any) -> Any:
    """Run a sensor as Airflow would, through reschedules and deferrals, and return what it returns."""
    while True:
        try:
            return one.execute(context)
        except AirflowRescheduleException as again:
            ti = context["ti"]
            ti.first_rescheduled_to = ti.first_rescheduled_to or again.reschedule_date
            time.sleep(one.poke_interval)
        except TaskDeferred as deferred:
            events = [event.payload async for event in deferred.trigger.run()]
            assert len(events) == 1
            kwargs = {**(deferred.kwargs or {}), "event": events[0]}
            return one.resume_execution(deferred.method_name, kwargs, context)


def test_switched_connection_does_not_end_a_wait_in_a_worker(
    luma, submit, set_connection, context, monkeypatch, task_log
):
    """The other service would not know the job."""
    monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.0)
    one = sensor(submit(processing_seconds=60), deferrable=False)
    seen: list[bool] = []

    def switch_back_and_forth(_seconds: float) -> None:
        seen.append(True)
        if len(seen) == 1:
            set_connection(luma.base_url, service="luma", requests_per_second=1000)
            luma.end_jobs()
        elif len(seen) == 3:
            set_connection(luma.base_url, requests_per_second=1000)

    # Not time.sleep itself: others sleep in this process, too.
    clock = SimpleNamespace(**{**vars(time), "sleep": switch_back_and_forth})
    monkeypatch.setattr("airflow.sdk.bases.sensor.time", clock)
    assert one.execute(context)["status"] == "SUCCESS"
    assert any("leads to the service 'luma' now" in str(entry) for entry in task_log)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
class TestEveryMode:
    async def test_a_finished_job_is_returned_as_the_result(self, submit, context, mode):
        luma_task_id = submit()
        result = await run(sensor(luma_task_id, **mode), context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma_task_id, "SUCCESS")
        assert len(result["result_urls"]) == 1

    async def test_a_job_whose_callback_failed_is_a_success(self, submit, context, mode):
        result = await run(sensor(submit(outcome="callback_failed"), **mode), context)
        assert result["status"] == "SUCCESS"

    async def test_transient_errors_are_waited_out(self, submit, context, mode, short_backoff):
        luma_task_id = submit(faults=["status:html,every=2", "status:refuse,code=429,every=3"])
        assert (await run(sensor(luma_task_id, **mode), context))["status"] == "SUCCESS"

    @pytest.mark.parametrize("outcome", ["create_failed", "generate_failed", "no_urls"])
    async def test_a_failed_job_fails_the_task_without_its_retries(self, submit, context, mode, outcome, short_backoff):
        luma_task_id = submit(outcome=outcome)
        with pytest.raises(AirflowFailException, match=luma_task_id):
            await run(sensor(luma_task_id, **mode), context)

    async def test_the_error_has_lumas_code_and_message(self, submit, context, mode):
        luma_task_id = submit(outcome="generate_failed", error_message="no people, please", error_code=4711)
        with pytest.raises(AirflowFailException, match="no people, please") as caught:
            await run(sensor(luma_task_id, **mode), context)
        assert "4711" in str(caught.value)

    @pytest.mark.parametrize("softly", [{"soft_fail": True}, {"never_fail": True}], ids=str)
    async def test_a_failed_job_skips_the_task_with_soft_fail_or_never_fail(self, submit, context, mode, softly):
        luma_task_id = submit(outcome="generate_failed")
        with pytest.raises(AirflowSkipException):
            await run(sensor(luma_task_id, **mode, **softly), context)

    async def test_an_unknown_id_fails_the_task_after_the_grace_period(
        self, luma, luma_conn, context, mode, monkeypatch, short_backoff
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.2)
        with pytest.raises(AirflowFailException, match="nobody-knows"):
            await run(sensor("nobody-knows", **mode), context)
        assert len(status_checks(luma)) > 1

    async def test_an_unknown_id_skips_the_task_with_soft_fail(
        self, luma, luma_conn, context, mode, monkeypatch, short_backoff
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.2)
        with pytest.raises(AirflowSkipException):
            await run(sensor("nobody-knows", soft_fail=True, **mode), context)

    async def test_a_wrong_api_key_fails_the_task(self, luma, submit, set_connection, context, mode):
        luma_task_id = submit()
        set_connection(luma.base_url, key="another-key")
        with pytest.raises(AirflowFailException, match="401"):
            await run(sensor(luma_task_id, **mode), context)

    async def test_a_job_that_runs_longer_than_the_timeout_is_a_sensor_timeout(self, submit, context, mode):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(AirflowSensorTimeout):
            await run(sensor(luma_task_id, timeout=0.2, **mode), context)

    async def test_a_timeout_skips_the_task_with_soft_fail(self, submit, context, mode):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(AirflowSkipException):
            await run(sensor(luma_task_id, timeout=0.2, soft_fail=True, **mode), context)

    async def test_a_missing_connection_is_named(self, context, mode):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
            await run(sensor("abc", luma_conn_id="nowhere", **mode), context)

    @pytest.mark.parametrize("rendered", ["", "  ", None])
    async def test_an_id_that_renders_to_nothing_fails_the_task_before_anything_is_sent(
        self, luma, luma_conn, context, mode, rendered
    ):
        one = sensor("{{ x }}", **mode)
        one.luma_task_id = rendered
        with pytest.raises(AirflowFailException, match="luma_task_id"):
            await run(one, context)
        assert luma.calls == []


class TestOutage:
    @pytest.mark.parametrize("first", ["refuse,code=404", "null_data"])
    async def test_the_timeout_ends_the_wait_though_luma_is_down(self, submit, context, short_backoff, first):
        luma_task_id = submit(processing_seconds=60, faults=[f"status:{first},times=1", "status:html"])
        with pytest.raises(AirflowSensorTimeout):
            await run(sensor(luma_task_id, timeout=0.3, deferrable=False), context)


class TestDeferring:
    def test_the_sensor_defers_to_the_trigger_until_its_timeout(self, submit, context):
        luma_task_id = submit()
        before = time.time()
        with pytest.raises(TaskDeferred) as deferred:
            sensor(luma_task_id, poke_interval=timedelta(seconds=12), timeout=600).execute(context)
        assert isinstance(deferred.value.trigger, LumaTaskTrigger)
        _, arguments = deferred.value.trigger.serialize()
        end_time = arguments.pop("end_time")
        assert before + 600 <= end_time <= time.time() + 600
        assert arguments == {"luma_task_id": luma_task_id, "luma_conn_id": "luma_default", "poll_interval": 12.0}
        assert deferred.value.method_name == "execute_complete"
        state = {"luma_task_id": luma_task_id, "luma_conn_id": "luma_default", "end_time": end_time}
        assert deferred.value.kwargs == state

    async def test_a_sensor_that_is_resumed_with_nothing_but_the_event_returns_the_result(self, submit, context):
        """As ``dag.test()`` of Airflow 3.1 to 3.3 resumes it."""
        luma_task_id = submit()
        with pytest.raises(TaskDeferred) as deferred:
            sensor(luma_task_id).execute(context)
        (event,) = [event.payload async for event in deferred.value.trigger.run()]
        result = sensor(luma_task_id).resume_execution(deferred.value.method_name, {"event": event}, context)
        assert (result["luma_task_id"], result["status"]) == (luma_task_id, "SUCCESS")

    def test_the_sensor_is_deferrable_and_polls_every_30_seconds_by_default(self):
        one = LumaTaskSensor(task_id="wait", luma_task_id="abc")
        assert one.deferrable is True
        assert one.poke_interval == 30

    def test_execution_timeout_ends_the_deferral_as_a_sensor_timeout(self, submit, context):
        one = sensor(submit(), execution_timeout=timedelta(seconds=7))
        with pytest.raises(TaskDeferred) as deferred:
            one.execute(context)
        assert deferred.value.timeout == timedelta(seconds=7)
        with pytest.raises(AirflowSensorTimeout):
            one.resume_execution("__fail__", {"error": "Trigger timeout"}, context)


class TestCallback:
    """A deferred sensor that a callback resumes checks the job, and is deferred again if that has not ended."""

    @pytest.fixture
    def defer(self, submit, context) -> Callable[..., TaskDeferred]:
        """Runs a sensor for a new job until it is deferred."""

        def _defer(options: dict[str, Any], **changes: Any) -> TaskDeferred:
            with pytest.raises(TaskDeferred) as deferred:
                sensor(submit(**changes), **options).execute(context)
            return deferred.value

        return _defer

    @staticmethod
    def resume(deferred: TaskDeferred, context: Any, **options: Any) -> Any:
        """Resume a sensor in another process by a callback."""
        luma_task_id = deferred.kwargs["luma_task_id"]
        kwargs = {**deferred.kwargs, "event": {"callback": {"luma_task_id": luma_task_id}}}
        return sensor(luma_task_id, **options).resume_execution(deferred.method_name, kwargs, context)

    def test_a_callback_for_a_finished_job_returns_the_result(self, luma, defer, context, until):
        deferred = defer({}, processing_seconds=0)
        until(lambda: luma.jobs[0].complete_time)
        result = self.resume(deferred, context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert context["ti"].pushed["luma_request"]["prompt"] == "make it snow"
        assert luma.accepted == 1

    def test_page_learns_how_to_fetch_the_video_should_the_wait_fail(self, defer, context):
        defer({}, processing_seconds=60)
        assert "nothing new is billed" in context["ti"].pushed["luma_request"]["recovery"]

    def test_a_callback_for_a_running_job_defers_again_and_polls_at_the_usual_interval(self, defer, context):
        options = {"timeout": 600, "poke_interval": 12}
        deferred = defer(options, processing_seconds=60)
        with pytest.raises(TaskDeferred) as again:
            self.resume(deferred, context, **options)
        before, after = (one.trigger.serialize()[1] for one in (deferred, again.value))
        created_at = after.pop("created_at")
        assert after == before, "no callback of this job comes here"
        learnt = {"created_at": created_at, "reference": again.value.kwargs["reference"]}
        assert (again.value.method_name, again.value.kwargs) == (deferred.method_name, {**deferred.kwargs, **learnt})

    def test_a_callback_does_not_restart_execution_timeout(self, defer, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        deferred = defer(options, processing_seconds=60)
        deferred.kwargs["execution_deadline"] -= 200  # as if it had waited that long
        deadline, before = deferred.kwargs["execution_deadline"], time.time()
        with pytest.raises(TaskDeferred) as again:
            self.resume(deferred, context, **options)
        assert deadline - time.time() <= again.value.timeout.total_seconds() <= deadline - before
        assert again.value.kwargs["execution_deadline"] == deadline

    def test_a_callback_for_a_failed_job_fails_or_skips_the_task(self, luma, defer, context, until):
        deferred = defer({}, processing_seconds=0, outcome="generate_failed", error_message="no people, please")
        until(lambda: luma.jobs[0].complete_time)
        with pytest.raises(AirflowFailException, match="no people, please"):
            self.resume(deferred, context)
        with pytest.raises(AirflowSkipException):
            self.resume(deferred, context, soft_fail=True)

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_a_callback_while_luma_is_unavailable_defers_again_with_the_same_deadline(
        self, luma, defer, context, monkeypatch, fault
    ):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.05)
        deferred = defer({}, processing_seconds=60)
        luma.configure(faults=[f"status:{fault}"])
        with pytest.raises(TaskDeferred) as again:
            self.resume(deferred, context)
        assert (again.value.trigger.end_time, again.value.kwargs) == (deferred.trigger.end_time, deferred.kwargs)


class TestReschedule:
    def test_reschedule_mode_frees_the_worker_while_the_job_runs(self, luma, submit, context):
        one = sensor(submit(processing_seconds=60), deferrable=False, mode="reschedule", poke_interval=60)
        before = time.time()
        with pytest.raises(AirflowRescheduleException) as again:
            one.execute(context)
        assert before + 60 <= again.value.reschedule_date.timestamp() <= time.time() + 60
        assert len(status_checks(luma)) == 1

    def test_job_that_was_found_before_is_waited_for_where_the_connection_leads_to_another_service(
        self, luma, submit, set_connection, context, monkeypatch, task_log
    ):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.0)
        luma_task_id = submit(processing_seconds=60)
        set_connection(luma.base_url, service="luma", requests_per_second=1000)
        one = sensor(luma_task_id, deferrable=False, mode="reschedule", poke_interval=60)
        with pytest.raises(AirflowRescheduleException):
            one.execute({**context, "task_reschedule_count": 1})
        assert any("Still waiting" in str(entry) for entry in task_log)
        with pytest.raises(AirflowFailException):
            one.execute({**context, "task_reschedule_count": 0})


class TestParseTime:
    @pytest.mark.parametrize(
        ("luma_task_id", "options"),
        [("", {}), ("  ", {}), ("abc", {"poke_interval": 0}), ("abc", {"timeout": 0})],
        ids=["empty", "blank", "poke_interval", "timeout"],
    )
    def test_invalid_literals_are_refused_when_the_dag_is_parsed(self, luma_task_id, options):
        with pytest.raises(LumaValidationError):
            sensor(luma_task_id, **options)

    @pytest.mark.parametrize("luma_task_id", ["abc", "{{ x }}", "{% if x %}{% endif %}"])
    def test_ids_and_templates_are_accepted_when_the_dag_is_parsed(self, luma_task_id):
        assert sensor(luma_task_id).luma_task_id == luma_task_id

    def test_the_output_of_another_task_as_id_makes_that_task_upstream(self):
        with DAG("d", schedule=None):
            one = sensor(BaseOperator(task_id="submit").output["luma_task_id"])
        assert one.upstream_task_ids == {"submit"}

    def test_id_and_connection_are_template_fields(self):
        assert set(LumaTaskSensor.template_fields) == {"luma_task_id", "luma_conn_id"}

    def test_multiple_outputs_is_on_by_default(self):
        assert sensor("abc").multiple_outputs is True

    def test_the_sensor_can_be_mapped_over_ids(self):
        with DAG("d", schedule=None):
            task = LumaTaskSensor.partial(task_id="mapped").expand(luma_task_id=["a", "b"])
        assert isinstance(task, MappedOperator)
        assert task.unmap({"luma_task_id": "a"}).luma_task_id == "a"

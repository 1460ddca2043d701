# SPDX-License-Identifier: Apache-2.0
"""The sensor, without a running Airflow: in the worker, by rescheduling, and deferred."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
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

from airflow_provider_luma import waiting
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.triggers.luma import LumaTaskTrigger

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]

#: The three ways to wait; deferred, the trigger's event is what ends the task.
MODES = {
    "poke": {"deferrable": False, "mode": "poke"},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
    "deferred": {"deferrable": True},
}


class TaskInstance:
    """What of Airflow's task instance a sensor uses."""

    dag_id = "films"
    run_id = "manual__1"
    task_id = "wait"
    map_index = -1
    started: Any = None

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_first_reschedule_date(self, context: Any) -> Any:
        return self.started


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance()}


def sensor(luma_task_id: Any, **options: Any) -> LumaTaskSensor:
    options = {"poke_interval": 0.05, "timeout": 20, **options}
    return LumaTaskSensor(task_id="wait", luma_task_id=luma_task_id, **options)


async def ends(one: LumaTaskSensor, context: Any) -> Any:
    """Run a sensor as Airflow would, through reschedules and deferrals, and return what it returns."""
    while True:
        try:
            return one.execute(context)
        except AirflowRescheduleException as again:
            context["ti"].started = context["ti"].started or again.reschedule_date
            time.sleep(one.poke_interval)
        except TaskDeferred as deferred:
            events = [event.payload async for event in deferred.trigger.run()]
            assert len(events) == 1
            kwargs = {**(deferred.kwargs or {}), "event": events[0]}
            return one.resume_execution(deferred.method_name, kwargs, context)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
class TestEveryMode:
    async def test_a_success(self, submit, context, mode):
        luma_task_id = submit()
        result = await ends(sensor(luma_task_id, **mode), context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma_task_id, "SUCCESS")
        assert len(result["result_urls"]) == 1

    async def test_a_callback_that_failed_is_a_success(self, submit, context, mode):
        result = await ends(sensor(submit(outcome="callback_failed"), **mode), context)
        assert result["status"] == "SUCCESS"

    async def test_blips(self, submit, context, mode, short_pauses):
        luma_task_id = submit(faults=["status:html,every=2", "status:refuse,code=429,every=3"])
        assert (await ends(sensor(luma_task_id, **mode), context))["status"] == "SUCCESS"

    @pytest.mark.parametrize("outcome", ["create_failed", "generate_failed", "no_urls"])
    async def test_a_failed_job_uses_no_retries(self, submit, context, mode, outcome, short_pauses):
        luma_task_id = submit(outcome=outcome)
        with pytest.raises(AirflowFailException, match=luma_task_id):
            await ends(sensor(luma_task_id, **mode), context)

    async def test_the_words_of_luma(self, submit, context, mode):
        luma_task_id = submit(outcome="generate_failed", error_message="no people, please", error_code=4711)
        with pytest.raises(AirflowFailException, match="no people, please") as caught:
            await ends(sensor(luma_task_id, **mode), context)
        assert "4711" in str(caught.value)

    @pytest.mark.parametrize("softly", [{"soft_fail": True}, {"never_fail": True}], ids=str)
    async def test_a_failed_job_may_be_skipped(self, submit, context, mode, softly):
        luma_task_id = submit(outcome="generate_failed")
        with pytest.raises(AirflowSkipException):
            await ends(sensor(luma_task_id, **mode, **softly), context)

    async def test_an_unknown_id_fails_after_the_grace(self, luma, luma_conn, context, mode, monkeypatch, short_pauses):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0.2)
        with pytest.raises(AirflowFailException, match="nobody-knows"):
            await ends(sensor("nobody-knows", **mode), context)
        assert len([call for call in luma.calls if call.on == "status"]) > 1

    async def test_an_unknown_id_may_be_skipped(self, luma, luma_conn, context, mode, monkeypatch, short_pauses):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0.2)
        with pytest.raises(AirflowSkipException):
            await ends(sensor("nobody-knows", soft_fail=True, **mode), context)

    async def test_a_wrong_key_fails(self, luma, submit, set_connection, context, mode):
        luma_task_id = submit()
        set_connection(luma.base_url, key="another-key")
        with pytest.raises(AirflowFailException, match="401"):
            await ends(sensor(luma_task_id, **mode), context)

    async def test_a_time_out(self, submit, context, mode):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(AirflowSensorTimeout):
            await ends(sensor(luma_task_id, timeout=0.2, **mode), context)

    async def test_a_time_out_may_be_skipped(self, submit, context, mode):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(AirflowSkipException):
            await ends(sensor(luma_task_id, timeout=0.2, soft_fail=True, **mode), context)

    async def test_a_missing_connection(self, context, mode):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
            await ends(sensor("abc", luma_conn_id="nowhere", **mode), context)

    @pytest.mark.parametrize("rendered", ["", "  ", None])
    async def test_an_id_that_renders_to_nothing(self, luma, luma_conn, context, mode, rendered):
        one = sensor("{{ x }}", **mode)
        one.luma_task_id = rendered
        with pytest.raises(AirflowFailException, match="luma_task_id"):
            await ends(one, context)
        assert luma.calls == []


class TestOutage:
    @pytest.mark.timeout(8)
    @pytest.mark.parametrize("first", ["refuse,code=404", "null_data"])
    async def test_the_timeout_holds_while_luma_is_down(self, submit, context, short_pauses, first):
        luma_task_id = submit(processing_seconds=60, faults=[f"status:{first},times=1", "status:html"])
        started = time.monotonic()
        with pytest.raises(AirflowSensorTimeout):
            await ends(sensor(luma_task_id, timeout=0.5, deferrable=False), context)
        assert time.monotonic() - started < 10


class TestDeferring:
    def test_it_defers_to_the_trigger(self, submit, context):
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

    def test_it_is_the_default(self):
        one = LumaTaskSensor(task_id="wait", luma_task_id="abc")
        assert one.deferrable is True
        assert one.poke_interval == 30

    def test_execution_timeout(self, submit, context):
        one = sensor(submit(), execution_timeout=timedelta(seconds=7))
        with pytest.raises(TaskDeferred) as deferred:
            one.execute(context)
        assert deferred.value.timeout == timedelta(seconds=7)
        with pytest.raises(AirflowSensorTimeout):
            one.resume_execution("__fail__", {"error": "Trigger timeout"}, context)


class TestCallback:
    """A deferred sensor is woken by a callback: it asks Luma, and lies down again if that came too soon."""

    @pytest.fixture
    def asleep(self, submit, context) -> Callable[..., TaskDeferred]:
        """Let a sensor be deferred for a new job."""

        def _asleep(options: dict[str, Any], **changes: Any) -> TaskDeferred:
            with pytest.raises(TaskDeferred) as deferred:
                sensor(submit(**changes), **options).execute(context)
            return deferred.value

        return _asleep

    @staticmethod
    def wake(deferred: TaskDeferred, context: Any, **options: Any) -> Any:
        """Go on in another process."""
        luma_task_id = deferred.kwargs["luma_task_id"]
        kwargs = {**deferred.kwargs, "event": {"callback": {"luma_task_id": luma_task_id}}}
        return sensor(luma_task_id, **options).resume_execution(deferred.method_name, kwargs, context)

    def test_the_job_has_ended(self, luma, asleep, context, until):
        deferred = asleep({}, processing_seconds=0)
        until(lambda: luma.jobs[0].complete_time)
        result = self.wake(deferred, context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert context["ti"].pushed["luma_request"]["prompt"] == "make it snow"
        assert luma.accepted == 1

    def test_it_is_still_running(self, asleep, context):
        options = {"timeout": 600, "poke_interval": 12}
        deferred = asleep(options, processing_seconds=60)
        with pytest.raises(TaskDeferred) as again:
            self.wake(deferred, context, **options)
        before, after = (one.trigger.serialize()[1] for one in (deferred, again.value))
        assert after == {**before, "poll_interval": 1.2}, "Luma has called, and will not again: look at the usual pace"
        assert (again.value.method_name, again.value.kwargs) == (deferred.method_name, deferred.kwargs)

    def test_execution_timeout_does_not_begin_anew(self, asleep, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        deferred = asleep(options, processing_seconds=60)
        deferred.kwargs["execution_deadline"] -= 200  # as if it had waited that long
        with pytest.raises(TaskDeferred) as again:
            self.wake(deferred, context, **options)
        assert timedelta(seconds=90) < again.value.timeout <= timedelta(seconds=100)
        assert again.value.kwargs == deferred.kwargs

    def test_the_job_failed(self, luma, asleep, context, until):
        deferred = asleep({}, processing_seconds=0, outcome="generate_failed", error_message="no people, please")
        until(lambda: luma.jobs[0].complete_time)
        with pytest.raises(AirflowFailException, match="no people, please"):
            self.wake(deferred, context)
        with pytest.raises(AirflowSkipException):
            self.wake(deferred, context, soft_fail=True)

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_luma_cannot_be_asked(self, luma, asleep, context, monkeypatch, fault):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.05)
        deferred = asleep({}, processing_seconds=60)
        luma.configure(faults=[f"status:{fault}"])
        with pytest.raises(TaskDeferred) as again:
            self.wake(deferred, context)
        assert (again.value.trigger.end_time, again.value.kwargs) == (deferred.trigger.end_time, deferred.kwargs)


class TestReschedule:
    def test_a_running_job_frees_the_worker(self, luma, submit, context):
        one = sensor(submit(processing_seconds=60), deferrable=False, mode="reschedule", poke_interval=60)
        with pytest.raises(AirflowRescheduleException) as again:
            one.execute(context)
        assert 50 < again.value.reschedule_date.timestamp() - time.time() < 70
        assert len([call for call in luma.calls if call.on == "status"]) == 1


class TestParseTime:
    @pytest.mark.parametrize(
        ("luma_task_id", "options"),
        [("", {}), ("  ", {}), ("abc", {"poke_interval": 0}), ("abc", {"timeout": 0})],
        ids=["empty", "blank", "poke_interval", "timeout"],
    )
    def test_literal_mistakes(self, luma_task_id, options):
        with pytest.raises(LumaValidationError):
            sensor(luma_task_id, **options)

    @pytest.mark.parametrize("luma_task_id", ["abc", "{{ x }}", "{% if x %}{% endif %}"])
    def test_ids_and_templates(self, luma_task_id):
        assert sensor(luma_task_id).luma_task_id == luma_task_id

    def test_the_output_of_another_task(self):
        with DAG("d", schedule=None):
            one = sensor(BaseOperator(task_id="submit").output["luma_task_id"])
        assert one.upstream_task_ids == {"submit"}

    def test_template_fields(self):
        assert set(LumaTaskSensor.template_fields) == {"luma_task_id", "luma_conn_id"}

    def test_multiple_outputs(self):
        assert sensor("abc").multiple_outputs is True

    def test_mapping(self):
        with DAG("d", schedule=None):
            task = LumaTaskSensor.partial(task_id="mapped").expand(luma_task_id=["a", "b"])
        assert isinstance(task, MappedOperator)
        assert task.unmap({"luma_task_id": "a"}).luma_task_id == "a"

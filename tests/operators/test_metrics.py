# SPDX-License-Identifier: Apache-2.0
"""What tasks report to Airflow's metrics: every job once, however the task has learnt of its end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma import metrics
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.exceptions import LumaError, LumaGenerationError
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from tests.support.operator_fixtures import new_context


@pytest.fixture
def ended(luma, modify, until):
    """Submits a job and waits for its end; returns the job."""

    def _ended(**settings):
        luma.configure(processing_seconds=0, **settings)
        modify(wait_for_completion=False).execute(new_context())
        until(lambda: luma.jobs[-1].complete_time)
        return luma.jobs[-1]

    return _ended


def assert_one_job(recorder, job, *, failed: bool = False) -> None:
    assert recorder.values["luma.job.duration"] == pytest.approx([job.complete_time - job.create_time], abs=2)
    assert recorder.count("luma.job.lateness") == 1
    assert recorder.count("luma.job.failed") == failed


@pytest.mark.parametrize("outcome", ["success", "generate_failed"])
def test_job_that_a_callback_ended(luma, modify, ended, recorder, outcome):
    job = ended(outcome=outcome)
    with suppress(LumaGenerationError):
        modify().execute_complete(
            new_context(),
            {"callback": {"luma_task_id": job.task_id, "reference": "r"}},
            **DeferralState(job.task_id, "r").as_kwargs(),
        )
    assert_one_job(recorder, job, failed=outcome != "success")


@pytest.mark.parametrize("outcome", ["success", "create_failed"])
def test_job_that_was_waited_for_in_the_worker(luma, modify, recorder, outcome):
    luma.configure(outcome=outcome)
    with suppress(LumaGenerationError):
        modify(deferrable=False).execute(new_context())
    assert_one_job(recorder, luma.jobs[0], failed=outcome != "success")


def test_job_that_a_sensor_found_in_the_worker(luma, ended, recorder):
    job = ended()
    sensor = LumaTaskSensor(task_id="wait", luma_task_id=job.task_id, deferrable=False)
    sensor.poke(new_context())
    assert_one_job(recorder, job)


def test_job_of_an_earlier_try_is_not_counted_again(luma, sync_task, recorder):
    sync_task.run_try()
    sync_task.run_try()
    assert luma.accepted == 1
    assert_one_job(recorder, luma.jobs[0])


def test_accepted_submissions_and_credits(luma, luma_conn, set_connection, modify, recorder):
    set_connection(luma.base_url, min_credits=1)
    modify(wait_for_completion=False).execute(new_context())
    assert recorder.count("luma.submission.accepted") == luma.accepted == 1
    before, after = recorder.values["luma.credits"]
    assert before > after > 1
    assert recorder.tags["luma.credits"] == {"conn_id": "luma_default"}


def test_credits_that_forbid_a_submission_are_reported(luma, luma_conn, set_connection, modify, recorder):
    set_connection(luma.base_url, min_credits=1e9)
    with pytest.raises(LumaError, match="min_credits"):
        modify(deferrable=False).execute(new_context())
    assert recorder.count("luma.credits") == 1
    assert recorder.count("luma.submission.accepted") == luma.accepted == 0


class TestBrokenBackend:
    """Airflow's metrics go wherever an administrator sends them; what fails there costs no job."""

    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch):
        class Broken:
            def __getattr__(self, name: str) -> Any:
                raise OSError("statsd_custom_client_path cannot be imported")

        monkeypatch.setattr(metrics, "AirflowStats", Broken())

    def test_accepted_job_is_waited_for_and_returned(self, luma, modify):
        result = modify(deferrable=False).execute(new_context())
        assert (result["luma_task_id"], luma.accepted) == (luma.jobs[0].task_id, 1)

    def test_failed_job_is_told_as_such(self, luma, modify):
        luma.configure(outcome="create_failed")
        with pytest.raises(LumaGenerationError):
            modify(deferrable=False).execute(new_context())

    def test_refused_submission_is_queued(self, luma, modify):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        with pytest.raises(TaskDeferred):
            modify().execute(new_context())

    def test_trigger_waits_for_the_end(self, luma, ended):
        job = ended()
        trigger = LumaTaskTrigger(job.task_id, poll_interval=0.02)

        async def events() -> list[Any]:
            return [event.payload async for event in trigger.run()]

        [event] = asyncio.run(events())
        assert event["task"]["luma_task_id"] == job.task_id

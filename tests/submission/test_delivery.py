# SPDX-License-Identifier: Apache-2.0
"""A result counts as delivered once Airflow has stored it, and a failure is no result: what a Clear then pays for."""

from __future__ import annotations

import pytest

from airflow_provider_luma.exceptions import LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.plugins import listener
from airflow_provider_luma.plugins.luma import LumaPlugin
from tests.support.submission_fixtures import ENDLESS
from tests.support.task_instance import TaskInstance, TaskRun, TaskStateStore


class TestResult:
    @pytest.fixture
    def failing_once(self, task: TaskRun) -> TaskRun:
        """A task whose ``post_execute`` fails, or whose XCom backend is down, after its operator has returned."""

        def fail() -> None:
            raise RuntimeError("the bucket's credentials have expired")

        task.on_return = fail
        return task

    def test_clear_returns_the_result_that_airflow_could_not_store(self, luma, failing_once):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                failing_once.run_try()
        failing_once.on_return = lambda: None
        assert failing_once.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_clear_after_airflow_has_stored_the_result_submits_anew(self, luma, failing_once, await_job_ends):
        with pytest.raises(RuntimeError):
            failing_once.run_try()
        failing_once.on_return = lambda: None
        failing_once.run_try()
        await_job_ends()
        assert failing_once.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    def test_id_that_was_delivered_is_no_result_for_who_waits_for_the_video_now(self, luma, modify, until):
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
        luma.configure(processing_seconds=ENDLESS)
        task.run_try(wait_for_completion=False)
        with pytest.raises(LumaTimeoutError):
            task.clear_and_run(timeout=0.05)
        luma.end_jobs()
        until(lambda: luma.jobs[0].complete_time)
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id

    def test_listener_of_others_that_fails_does_not_come_first(self):
        assert listener.on_task_instance_success.airflow_impl["tryfirst"]

    def test_airflow_loads_the_listener_with_the_plugin(self):
        assert listener in LumaPlugin.listeners

    @pytest.mark.parametrize("task", [None, object(), "a serialized task"])
    def test_task_of_others_is_left_alone(self, task):
        """A context is not even made: this runs after every task of the deployment."""
        ti = TaskInstance()
        ti.task = task
        ti.get_template_context = None
        listener.on_task_instance_success(task_instance=ti)

    def test_task_that_has_returned_nothing_marks_nothing(self, luma_conn, context):
        operator = LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="https://example.com/v.mp4")
        operator.on_result_stored(context)
        assert context["task_state_store"].operations == []


class TestFailure:
    def test_clear_returns_the_video_of_a_job_of_which_luma_had_said_that_it_failed(
        self, luma, sync_task, await_job_ends
    ):
        luma.configure(processing_seconds=0.2, faults=["status:unknown_flag,flag=3,times=1"])
        with pytest.raises(LumaGenerationError):
            sync_task.run_try()
        await_job_ends()
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id
        assert sync_task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    @pytest.mark.parametrize("accepted", [1, 2], ids=["once more", "after it was returned once more"])
    def test_result_that_version_1_1_0_has_delivered_is_returned_once_more(
        self, luma, sync_task, await_job_ends, accepted
    ):
        sync_task.run_try()
        await_job_ends()
        sync_task.store.change(delivered=True)
        for _ in range(accepted):
            result = sync_task.clear_and_run()
        assert result["luma_task_id"] == luma.jobs[accepted - 1].task_id
        assert luma.accepted == accepted

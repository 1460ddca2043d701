# SPDX-License-Identifier: Apache-2.0
"""A worker that was frozen before it sent, for longer than Airflow waits, and thaws when others have moved on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from tests.support.task_instance import TaskRun, TaskStateStore
from tests.support.task_logs import messages

Freeze = Callable[[Callable[[], None]], None]


@pytest.fixture(params=["task state store", "folder"])
def tasks(request, luma, modify, set_connection, tmp_path) -> list[TaskRun]:
    """The frozen worker's view of a task instance, and that of the worker which comes after it."""
    luma.configure(processing_seconds=0)
    if request.param == "folder":
        set_connection(luma.base_url, submission_store=str(tmp_path))
    state = TaskStateStore() if request.param == "task state store" else None
    return [TaskRun(lambda **changes: modify(deferrable=False, **changes), state) for _ in range(2)]


@pytest.fixture
def frozen_before_sending(monkeypatch: pytest.MonkeyPatch) -> Freeze:
    """Lets something happen once, while the process that has recorded an intent is about to send the submission."""

    def freeze(meanwhile: Callable[[], None]) -> None:
        send = LumaClient.submit

        def thawed(client: LumaClient, *arguments: Any, **options: Any) -> str:
            monkeypatch.setattr(LumaClient, "submit", send)
            meanwhile()
            return send(client, *arguments, **options)

        monkeypatch.setattr(LumaClient, "submit", thawed)

    return freeze


def report(task: TaskRun) -> None:
    """Run the next try, which finds the intent, and asks a person to look whether it was accepted."""
    task.ti.try_number = 1
    with pytest.raises(AirflowFailException, match="log page"):
        task.run_try()


def test_nothing_is_sent_after_a_person_has_cleared_the_task_and_another_try_has_submitted(
    luma, tasks, frozen_before_sending
):
    frozen, later = tasks

    def meanwhile() -> None:
        report(later)
        later.clear_and_run()

    frozen_before_sending(meanwhile)
    with pytest.raises(AirflowException, match="another try, or another run .*has taken over.* Nothing was sent"):
        frozen.run_try()
    assert luma.accepted == 1
    assert later.run_try()["luma_task_id"] == luma.jobs[0].task_id, "its record is untouched"


def test_nothing_is_sent_after_a_person_was_asked_to_look_for_the_job(luma, tasks, frozen_before_sending):
    """Who has looked, and found none, must not be charged for it afterwards."""
    frozen, later = tasks
    frozen_before_sending(lambda: report(later))
    with pytest.raises(AirflowException, match="Nothing was sent"):
        frozen.run_try()
    assert luma.accepted == 0
    later.clear_and_run()
    assert luma.accepted == 1


def test_nothing_is_sent_if_the_record_is_gone(luma, modify, frozen_before_sending):
    """A Clear of Airflow 3.4 discards it by default."""
    state = TaskStateStore()
    frozen_before_sending(lambda: state.delete("luma_submission"))
    with pytest.raises(AirflowException, match="Nothing was sent"):
        TaskRun(lambda **changes: modify(deferrable=False, **changes), state).run_try()
    assert luma.accepted == 0


def test_nothing_is_sent_if_the_store_cannot_say(luma, modify, frozen_before_sending, monkeypatch):
    state = TaskStateStore()

    def fail(_key: str, _default: Any = None) -> Any:
        raise ConnectionError("the database is down")

    frozen_before_sending(lambda: monkeypatch.setattr(state, "get", fail))
    with pytest.raises(AirflowException, match="Could not check .* the database is down. Nothing was sent"):
        TaskRun(lambda **changes: modify(deferrable=False, **changes), state).run_try()
    assert luma.accepted == 0


class TestIntentThatCannotBeWritten:
    """The store has written the intent, but its answer is lost: the task says that nothing was submitted."""

    @pytest.mark.parametrize("tries", [1, 2])
    def test_next_try_submits(self, luma, modify, monkeypatch, tries):
        state = TaskStateStore()
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), state)

        def lose_the_answer(_number: int, is_done: bool) -> None:
            if is_done:
                raise ConnectionError("no response")

        for _ in range(tries):
            state.around_set = lose_the_answer
            with pytest.raises(ConnectionError):
                task.run_try()
            state.around_set = lambda *_: None
            assert state.record is None
        assert task.run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_log_says_that_nothing_was_submitted_whatever_the_store_says(self, luma, modify, task_log):
        state = TaskStateStore()

        def fail(_number: int, _is_done: bool) -> None:
            raise ConnectionError("no response")

        state.around_set = fail
        with pytest.raises(ConnectionError):
            TaskRun(lambda **changes: modify(deferrable=False, **changes), state).run_try()
        assert messages(task_log, "Could not record the submission", "nothing was submitted")
        assert luma.accepted == 0

    def test_paid_job_that_the_intent_would_have_replaced_is_not_lost(self, luma, modify, leave_running, until):
        state = TaskStateStore()
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), state)
        job = leave_running(task)

        def lose_the_answer(_number: int, is_done: bool) -> None:
            if is_done:
                state.around_set = lambda *_: None
                raise ConnectionError("no response")

        state.around_set = lose_the_answer
        with pytest.raises(ConnectionError):
            task.run_try(prompt="make it rain")
        assert state.record["luma_task_id"] == job


def test_record_of_a_try_that_has_begun_meanwhile_stays(luma, tasks, monkeypatch):
    frozen, later = tasks
    kind = TaskStateSubmissionStore if frozen.store is not None else ObjectSubmissionStore
    begin = kind.begin

    def thawed(*arguments: Any) -> None:
        monkeypatch.setattr(kind, "begin", begin)
        later.ti.try_number = 1
        later.run_try()
        begin(*arguments)

    monkeypatch.setattr(kind, "begin", thawed)
    with pytest.raises(AirflowException, match="nother try of this task"):
        frozen.run_try()
    later.run_try()
    assert luma.accepted == 1

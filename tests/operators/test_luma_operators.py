# SPDX-License-Identifier: Apache-2.0
"""The operators, without a running Airflow: what they send, how they defer, and how they end."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_luma import callbacks, protocol, waiting
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.operators.luma import REFUSAL_IS_NEWS, REFUSED_KEY, LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.submission import CALLBACK_KEY, STORE_KEY, new_reference
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger, LumaTaskTrigger

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]
GOOD = {"prompt": "make it a rainy night", "video_url": "https://example.com/v.mp4"}


class TaskInstance:
    """What of Airflow's task instance the operators use."""

    dag_id = "films"
    run_id = "manual__1"
    task_id = "modify"
    map_index = -1

    def __init__(self, try_number: int = 1, max_tries: int = 2) -> None:
        self.try_number = try_number
        self.max_tries = max_tries
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.pushed.get(key)


class Killed(BaseException):
    """The worker's process is gone, from one line to the next."""


class Store:
    """
    What of Airflow's task state store the operators use: it outlives the tries of one task instance.

    :ivar operations: what was done to it, in order: ``set`` with the record's id, ``delete``
    :ivar around_set: called with the number of the call, and whether it is done, before and after each ``set``
    """

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.around_set: Callable[[int, bool], None] = lambda _number, _is_done: None
        self._kept: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def restart(self, crash: tuple[int, bool] | None) -> None:
        """Count the calls of ``set`` anew, and let the process die at one of them."""
        self._numbers = itertools.count(1)

        def around_set(*at: Any) -> None:
            if at == crash:
                raise Killed

        self.around_set = around_set

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self._kept[key]) if key in self._kept else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        number = next(self._numbers)
        self.around_set(number, False)
        self._kept[key] = json.dumps(value)
        self.operations.append(("set", value["luma_task_id"]))
        self.around_set(number, True)

    def delete(self, key: str) -> None:
        self._kept.pop(key, None)
        self.operations.append("delete")

    @property
    def record(self) -> Any:
        """What is kept of the submission, if anything."""
        assert set(self._kept) <= {STORE_KEY, CALLBACK_KEY}
        return self.get(STORE_KEY)

    def note(self, luma_task_id: str, reference: str | None = None) -> None:
        """Write down which job a submission has become, as the receiver of callbacks does."""
        callback = {"reference": reference or self.record["reference"], "luma_task_id": luma_task_id}
        self._kept[CALLBACK_KEY] = json.dumps(callback)


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance(), "task_state_store": Store()}


@pytest.fixture
def modify(luma, luma_conn):
    def _modify(**changes: Any) -> LumaModifyOperator:
        arguments = {**GOOD, "video_url": luma.sample_url, "poll_interval": 0.05, "timeout": 20, **changes}
        return LumaModifyOperator(task_id="modify", **arguments)

    return _modify


def submissions(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "submit"]


class TestModify:
    def test_it_defers_to_the_trigger(self, luma, modify, context):
        operator = modify(poll_interval=12, timeout=600)
        before = time.time()
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context)
        (job,) = luma.jobs
        assert context["ti"].pushed["luma_task_id"] == job.task_id
        assert isinstance(deferred.value.trigger, LumaTaskTrigger)
        _, arguments = deferred.value.trigger.serialize()
        end_time, made = arguments.pop("end_time"), arguments.pop("made")
        assert before + 600 <= end_time <= time.time() + 600
        assert before <= made <= time.time()
        assert arguments == {"luma_task_id": job.task_id, "luma_conn_id": "luma_default", "poll_interval": 12}
        assert deferred.value.method_name == "execute_complete"
        assert deferred.value.timeout is None
        assert callable(getattr(operator, deferred.value.method_name))

    def test_the_deferral_ends_with_execution_timeout(self, modify, context):
        with pytest.raises(TaskDeferred) as deferred:
            modify(execution_timeout=timedelta(minutes=5)).execute(context)
        assert deferred.value.timeout == timedelta(minutes=5)

    def test_it_waits_in_the_worker(self, luma, modify, context):
        result = modify(deferrable=False).execute(context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert len(result["result_urls"]) == 1
        assert context["ti"].pushed["luma_task_id"] == luma.jobs[0].task_id

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_it_does_not_wait(self, luma, modify, context, deferrable):
        result = modify(wait_for_completion=False, deferrable=deferrable).execute(context)
        assert result == {
            "luma_task_id": luma.jobs[0].task_id,
            "status": "GENERATING",
            "result_urls": [],
            "origin_urls": [],
            "created_at": None,
            "completed_at": None,
        }
        assert list(result) == KEYS
        assert [call for call in luma.calls if call.on == "status"] == []

    def test_optional_keys(self, luma, modify, context):
        modify(wait_for_completion=False, watermark="mine", callback_url="http://127.0.0.1:9/cb").execute(context)
        other = {"ti": TaskInstance(), "task_state_store": Store()}
        modify(wait_for_completion=False, watermark="", callback_url="").execute(other)
        assert luma.jobs[0].request["watermark"] == "mine"
        assert luma.jobs[0].request["callBackUrl"] == "http://127.0.0.1:9/cb"
        assert sorted(luma.jobs[1].request) == ["prompt", "videoUrl"]

    def test_multiple_outputs(self, modify):
        assert modify().multiple_outputs is True
        assert modify(multiple_outputs=False).multiple_outputs is False

    def test_template_fields(self):
        assert set(LumaModifyOperator.template_fields) == {
            "prompt",
            "video_url",
            "watermark",
            "callback_url",
            "luma_conn_id",
        }

    @pytest.mark.parametrize("code", [401, 404, 422, 505])
    def test_a_permanent_refusal_uses_no_retries(self, luma, modify, context, code):
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(AirflowFailException, match=str(code)) as caught:
            modify().execute(context)
        assert isinstance(caught.value.__cause__, LumaError)
        assert len(submissions(luma)) == 1
        assert "luma_task_id" not in context["ti"].pushed

    def test_too_few_credits_leave_retrying_to_airflow(self, luma, modify, context):
        luma.configure(credits=0)
        with pytest.raises(LumaInsufficientCreditsError) as caught:
            modify().execute(context)
        assert not isinstance(caught.value, AirflowFailException)

    @pytest.mark.parametrize(("code", "kind"), [(429, LumaRateLimitError), (455, LumaUnavailableError)])
    def test_passing_trouble_that_lasts_leaves_retrying_to_airflow(
        self, luma, modify, context, monkeypatch, code, kind
    ):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.1)
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(kind):
            modify(deferrable=False, timeout=0.1).execute(context)

    def test_an_unknown_outcome_uses_no_retries(self, luma, modify, context):
        luma.configure(faults=["submit:cut,after_accept"])
        with pytest.raises(AirflowFailException, match="log page") as caught:
            modify().execute(context)
        assert isinstance(caught.value.__cause__, LumaSubmissionUnknownError)
        assert luma.accepted == 1

    def test_an_unknown_outcome_may_be_submitted_again_by_a_retry(self, luma, modify, context):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        operator = modify(resubmit_on_unknown=True, wait_for_completion=False)
        with pytest.raises(LumaSubmissionUnknownError):
            operator.execute(context)
        assert len(submissions(luma)) == 1
        context["ti"].try_number += 1
        assert operator.execute(context)["luma_task_id"] == luma.jobs[1].task_id

    @pytest.mark.parametrize(
        ("outcome", "kind"), [("generate_failed", LumaGenerationError), ("create_failed", LumaGenerationError)]
    )
    def test_a_failed_job_in_the_worker(self, luma, modify, context, outcome, kind):
        luma.configure(outcome=outcome, error_message="no people, please")
        with pytest.raises(kind, match="no people, please") as caught:
            modify(deferrable=False).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_a_time_out_in_the_worker(self, luma, modify, context):
        luma.configure(processing_seconds=60)
        with pytest.raises(LumaTimeoutError) as caught:
            modify(deferrable=False, timeout=0.2).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_a_missing_connection(self, context):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
            LumaModifyOperator(task_id="modify", luma_conn_id="nowhere", **GOOD).execute(context)


# -- submit once ------------------------------------------------------------------------------------------------

MODES = {
    "deferred": {"deferrable": True},
    "in the worker": {"deferrable": False},
    "not waited for": {"wait_for_completion": False},
}

#: Longer than any test takes.
LONG = 60


class Tries:
    """
    One task instance, from try to try, as Airflow runs it: a new operator for each, and only the store stays.

    Each try runs to its end, through the trigger if it defers.
    """

    def __init__(self, modify: Callable[..., LumaModifyOperator], store: Store | None, *, retries: int = 2) -> None:
        self.store = store
        self.retries = retries
        self.ti = TaskInstance(try_number=0, max_tries=retries)
        self._modify = modify

    def try_it(self, **changes: Any) -> dict[str, Any]:
        """Run the first try, or another one because the last has failed."""
        self.ti = TaskInstance(self.ti.try_number + 1, self.ti.max_tries)
        context: Any = {"ti": self.ti}
        if self.store is not None:
            context["task_state_store"] = self.store
        method, kwargs = "execute", {}
        while True:
            operator = self._modify(**changes)
            operator.render_template_fields({})
            try:
                if method == "execute":
                    return operator.execute(context)
                return operator.resume_execution(method, kwargs, context)
            except TaskDeferred as deferred:
                method = deferred.method_name
                kwargs = {**(deferred.kwargs or {}), "event": asyncio.run(self._event(deferred.trigger))}

    def cleared(self, **changes: Any) -> dict[str, Any]:
        """Run the try after a person has cleared the task."""
        self.ti.max_tries = self.ti.try_number + self.retries
        return self.try_it(**changes)

    @staticmethod
    async def _event(trigger: Any) -> Any:
        (event,) = [event.payload async for event in trigger.run()]
        return event


@pytest.fixture(params=MODES.values(), ids=MODES)
def task(modify, request) -> Tries:
    """A task in each of the three modes, with two retries."""
    return Tries(lambda **changes: modify(**request.param, **changes), Store())


@pytest.fixture
def sync_task(modify) -> Tries:
    """A task that waits in the worker, for what comes before the wait and is the same in all modes."""
    return Tries(lambda **changes: modify(**{"deferrable": False, **changes}), Store())


@pytest.fixture
def leave_running(luma) -> Callable[[Tries], str]:
    """Let the first try of a task end while its job runs; return the job's id."""

    def _leave_running(task: Tries) -> str:
        luma.configure(processing_seconds=LONG)
        with suppress(LumaTimeoutError):
            task.try_it(timeout=0.05)
        luma.configure(processing_seconds=0)
        assert luma.accepted == 1
        return luma.jobs[0].task_id

    return _leave_running


@pytest.fixture
def leave_ended(luma, until) -> Callable[..., str]:
    """Let the first try of a task end after its job; return the job's id."""

    def _leave_ended(task: Tries, **how: Any) -> str:
        luma.configure(processing_seconds=0, **how)
        with suppress(LumaGenerationError):
            task.try_it()
        until(lambda: luma.jobs[0].complete_time)
        luma.configure(outcome="success")
        assert luma.accepted == 1
        return luma.jobs[0].task_id

    return _leave_ended


def said(task_log: list[Any]) -> list[str]:
    return [entry["event"] % entry.get("positional_args", ()) for entry in task_log]


def lines(task_log: list[Any], *words: str) -> list[str]:
    """The log's lines with all these words."""
    return [line for line in said(task_log) if all(word in line for word in words)]


def result_of(task: Tries, luma_task_id: str, result: dict[str, Any]) -> None:
    """The result, and what is pushed before it, are of that job."""
    assert result["luma_task_id"] == luma_task_id
    assert task.ti.pushed["luma_task_id"] == luma_task_id


class TestSubmitOnce:
    """Each row of the table, from the task to the service's account."""

    def test_the_first_try_submits(self, luma, task, task_log):
        result = task.try_it()
        assert luma.accepted == 1
        result_of(task, luma.jobs[0].task_id, result)
        assert task.store.operations == [("set", None), ("set", luma.jobs[0].task_id)]
        assert len(lines(task_log, "Nothing was submitted before")) == 1

    def test_a_retry_waits_for_a_running_job(self, luma, task, leave_running, task_log):
        job = leave_running(task)
        with suppress(LumaTimeoutError):
            result_of(task, job, task.try_it(timeout=0.05))
        assert task.ti.pushed["luma_task_id"] == job
        assert luma.accepted == 1
        assert len(lines(task_log, "continues", job, "try 1")) == 1

    def test_and_gets_its_video(self, luma, modify):
        task = Tries(modify, Store())
        luma.configure(faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            task.try_it(timeout=0.05)
        luma.configure(faults=["status:unknown_flag,flag=0,times=3"])
        result = task.try_it()
        result_of(task, luma.jobs[0].task_id, result)
        assert (result["status"], len(result["result_urls"]), luma.accepted) == ("SUCCESS", 1, 1)

    def test_a_flag_that_nobody_knows_counts_as_running(self, luma, task, leave_running):
        job = leave_running(task)
        luma.configure(faults=["status:unknown_flag"])
        with suppress(LumaTimeoutError):
            task.try_it(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)

    @pytest.mark.parametrize("outcome", ["success", "callback_failed"])
    def test_a_retry_takes_the_result_of_a_job_that_succeeded(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.try_it()
        result_of(task, job, result)
        assert luma.accepted == 1
        assert result["status"] == ("SUCCESS" if result["result_urls"] else "GENERATING")
        assert len(lines(task_log, "takes the result", job, "try 1")) == 1

    def test_a_result_that_is_there_is_not_waited_for(self, luma, modify, leave_ended):
        task = Tries(modify, Store())
        leave_ended(task)
        looks = len(luma.calls)
        assert task.try_it()["status"] == "SUCCESS"
        assert len(luma.calls) == looks + 1

    @pytest.mark.parametrize("outcome", ["generate_failed", "create_failed"])
    def test_a_retry_replaces_a_job_that_failed(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.try_it()
        assert luma.accepted == 2
        result_of(task, luma.jobs[1].task_id, result)
        assert task.store.record["luma_task_id"] == luma.jobs[1].task_id
        assert task.store.record["try_number"] == 2
        assert len(lines(task_log, "has failed", job, "try 1")) == 1

    def test_a_retry_replaces_a_job_that_is_no_longer_known(self, luma, task, leave_ended, monkeypatch, task_log):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0)
        job = leave_ended(task)
        luma.reset()
        result = task.try_it()
        assert luma.accepted == 1
        assert result["luma_task_id"] != job
        result_of(task, luma.jobs[0].task_id, result)
        assert len(lines(task_log, "no longer knows", job, "try 1")) == 1

    @pytest.mark.parametrize("by", ["try_it", "cleared"])
    def test_a_changed_request_is_submitted(self, luma, task, leave_running, by, task_log):
        job = leave_running(task)
        looks = len(luma.calls)
        result = getattr(task, by)(prompt="make it a sunny day")
        assert luma.accepted == 2
        result_of(task, luma.jobs[1].task_id, result)
        assert luma.calls[looks].on == "submit", "of a job that is not wanted nothing is asked"
        assert len(lines(task_log, "changed", job, "try 1")) == 1

    def test_a_cleared_task_waits_for_its_running_job(self, luma, task, leave_running, task_log):
        job = leave_running(task)
        with suppress(LumaTimeoutError):
            task.cleared(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)
        assert len(lines(task_log, "cleared", "still running", job, "try 1")) == 1

    @pytest.mark.parametrize("outcome", ["success", "callback_failed", "generate_failed"])
    def test_a_cleared_task_submits_when_its_job_has_ended(self, luma, task, leave_ended, outcome, task_log):
        job = leave_ended(task, outcome=outcome)
        result = task.cleared()
        assert luma.accepted == 2
        result_of(task, luma.jobs[1].task_id, result)
        assert len(lines(task_log, "cleared", job, "try 1")) == 1

    def test_a_cleared_task_is_a_new_one_each_time(self, luma, sync_task):
        for accepted in (1, 2, 3):
            sync_task.cleared()
            assert luma.accepted == accepted

    def test_a_retry_of_a_cleared_task_is_a_retry(self, luma, task, leave_ended):
        leave_ended(task)
        task.cleared()
        assert luma.accepted == 2
        result_of(task, luma.jobs[1].task_id, task.try_it())
        assert luma.accepted == 2

    def test_also_where_the_cleared_task_had_waited_for_the_job(self, luma, sync_task):
        luma.configure(processing_seconds=0, faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            sync_task.try_it(timeout=0.05)
        with pytest.raises(LumaTimeoutError):
            sync_task.cleared(timeout=0.05)
        assert sync_task.store.record["max_tries"] == sync_task.ti.max_tries == 3
        assert sync_task.store.record["try_number"] == 1, "it is still the first try that submitted"
        luma.configure(faults=[])
        result_of(sync_task, luma.jobs[0].task_id, sync_task.try_it())
        assert luma.accepted == 1

    def test_a_clear_that_was_not_served_stays_one(self, luma, sync_task, leave_ended):
        """The try after a Clear ends before it has a job: the next one is still what the person wanted."""
        leave_ended(sync_task)
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            sync_task.cleared()
        result_of(sync_task, sync_task.try_it()["luma_task_id"], sync_task.ti.pushed)
        assert luma.accepted == 2

    def test_a_clear_whose_try_died_at_once_stays_one(self, luma, sync_task, leave_ended):
        leave_ended(sync_task)
        sync_task.store.restart((1, False))
        with pytest.raises(Killed):
            sync_task.cleared()
        sync_task.store.restart(None)
        sync_task.try_it()
        assert luma.accepted == 2

    def test_retries_that_were_lowered_before_a_clear(self, luma, modify, leave_ended):
        task = Tries(modify, Store(), retries=5)
        leave_ended(task)
        task.retries = 1
        task.cleared()
        assert luma.accepted == 2

    def test_retries_that_were_raised_before_a_retry(self, luma, sync_task, leave_ended):
        leave_ended(sync_task)
        sync_task.retries = 9  # Airflow goes by max_tries, which only Clear sets
        sync_task.try_it()
        assert luma.accepted == 1

    def test_without_retries(self, luma, modify, leave_ended):
        task = Tries(modify, Store(), retries=0)
        leave_ended(task)
        task.cleared()
        assert luma.accepted == 2

    def test_tasks_do_not_share(self, luma, modify):
        mapped = [Tries(modify, Store()) for _ in range(2)]
        ids = [one.try_it()["luma_task_id"] for one in mapped]
        assert ids == [job.task_id for job in luma.jobs]
        assert [one.try_it()["luma_task_id"] for one in mapped] == ids
        assert luma.accepted == 2

    def test_the_record_gives_nothing_away(self, luma, task, api_key):
        task.try_it(watermark="a mark")
        written = json.dumps(task.store.record)
        for word in (api_key, GOOD["prompt"], luma.sample_url, "a mark", "luma_default"):
            assert word not in written


class TestWhereLumaCannotBeAsked:
    """What an edge in front of the service says, or does not say, is no news about the job."""

    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch, short_pauses):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.5)

    @pytest.mark.parametrize("fault", ["refuse,code=429", "refuse,code=500", "refuse,code=455", "html", "cut", "empty"])
    def test_a_retry_pays_nothing(self, luma, task, leave_running, fault):
        job = leave_running(task)
        luma.configure(faults=[f"status:{fault}"])
        with suppress(LumaTimeoutError):
            task.try_it(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)

    @pytest.mark.parametrize("code", [403, 404, 501, 502])
    def test_an_error_page_of_an_edge_is_not_lumas_word(self, luma, sync_task, leave_running, monkeypatch, code):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0)
        leave_running(sync_task)
        luma.configure(faults=[f"status:html,code={code}"])
        with suppress(LumaError, AirflowFailException):
            sync_task.try_it(timeout=0.05)
        assert luma.accepted == 1

    def test_a_blip_does_not_give_a_cleared_task_its_old_video(self, luma, sync_task, leave_ended):
        leave_ended(sync_task)
        luma.configure(faults=["status:refuse,code=429,times=1"])
        sync_task.cleared()
        assert luma.accepted == 2

    def test_a_blip_does_not_cost_a_retry(self, luma, sync_task, leave_ended):
        leave_ended(sync_task, outcome="generate_failed")
        luma.configure(faults=["status:refuse,code=429,times=1"])
        assert sync_task.try_it()["luma_task_id"] == luma.jobs[1].task_id

    def test_a_wrong_key_pays_nothing(self, luma, sync_task, leave_running, set_connection):
        leave_running(sync_task)
        set_connection(luma.base_url, key="another")
        with pytest.raises((LumaAuthError, AirflowFailException)):
            sync_task.try_it()
        assert luma.accepted == 1
        assert sync_task.store.record["luma_task_id"] == luma.jobs[0].task_id

    def test_a_connection_that_is_gone_is_told_before_the_wait(self, modify, leave_running, monkeypatch):
        task = Tries(modify, Store())
        leave_running(task)
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='luma_default'"):
            task.try_it(timeout=0.05)


class Relay:
    """
    A way to the simulator on which one can stand and watch submissions pass.

    :ivar arriving: called when a submission arrives, before the service has it
    :ivar answering: called when the service has answered, before the answer goes back
    """

    def __init__(self, base_url: str) -> None:
        self.arriving: Callable[[], None] = lambda: None
        self.answering: Callable[[], None] = lambda: None
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
                is_submission = self.command == "POST"
                if is_submission:
                    relay.arriving()
                answer = requests.request(self.command, base_url + self.path, data=body, headers=headers, timeout=20)
                if is_submission:
                    relay.answering()
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = _pass_on

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def relay(luma, luma_conn, set_connection) -> Iterator[Relay]:
    """A way to the simulator on which one can watch."""
    relay = Relay(luma.base_url)
    set_connection(relay.base_url)
    yield relay
    relay.close()


class TestTheOrderOfThings:
    def test_the_intent_is_kept_before_the_request_is_sent_and_the_id_after_it(self, relay, luma, task):
        seen = []
        relay.arriving = relay.answering = lambda: seen.append(task.store.record)
        task.try_it()
        assert len(seen) == 2
        for record in seen:
            assert (record["luma_task_id"], record["try_number"], record["max_tries"]) == (None, 1, 2)
        assert task.store.record == {**seen[0], "luma_task_id": luma.jobs[0].task_id}

    def test_also_at_each_repetition(self, relay, luma, task, short_pauses):
        seen = []
        relay.arriving = lambda: seen.append(task.store.record)
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        task.try_it()
        assert [record["luma_task_id"] for record in seen] == [None, None, None]
        job = luma.jobs[0].task_id
        assert task.store.operations == [("set", None), "delete", ("set", None), "delete", ("set", None), ("set", job)]

    def test_there_is_no_intent_while_a_refused_submission_pauses(self, relay, luma, sync_task, monkeypatch):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        between = []
        monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: between.append(sync_task.store.record))
        sync_task.try_it(wait_for_completion=False)
        assert between == [None]


class TestRefusals:
    """What was surely not accepted leaves nothing that could hinder the next try."""

    @pytest.mark.parametrize("code", [401, 402, 404, 422, 501, 505])
    @pytest.mark.parametrize("style", ["status", "body"])
    def test_a_refusal_leaves_no_record(self, luma, task, code, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=1"])
        with pytest.raises((LumaError, AirflowFailException), match=str(code)):
            task.try_it()
        assert task.store.operations == [("set", None), "delete"]
        assert task.store.record is None
        task.try_it()
        assert luma.accepted == 1

    def test_a_connection_that_was_never_made_leaves_no_record(
        self, luma, task, monkeypatch, set_connection, free_port
    ):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.01)
        set_connection(f"http://127.0.0.1:{free_port}")
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            task.try_it()
        assert task.store.record is None
        set_connection(luma.base_url)
        task.try_it()
        assert luma.accepted == 1

    def test_a_connection_that_is_missing_leaves_no_record(self, luma, task, monkeypatch, set_connection):
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        with pytest.raises(AirflowNotFoundException):
            task.try_it()
        assert task.store.record is None
        set_connection(luma.base_url)
        task.try_it()
        assert luma.accepted == 1

    def test_what_is_not_even_sent_leaves_no_record(self, luma, task):
        with pytest.raises(AirflowFailException, match="prompt"):
            task.try_it(prompt="{{ '雨' }}")
        assert task.store.record is None
        assert luma.calls == []

    @pytest.mark.parametrize(("field", "value"), [("prompt", Path("/x")), ("video_url", b"https://e.com/v.mp4")])
    def test_a_rendered_value_of_another_type_uses_no_retries(self, luma, modify, context, field, value):
        operator = modify(**{field: "{{ params.x }}"})
        setattr(operator, field, value)  # as render_template_as_native_obj would
        with pytest.raises(AirflowFailException, match=field):
            operator.execute(context)
        assert luma.calls == []
        assert context["task_state_store"].record is None

    def test_a_store_that_fails_first_stops_everything(self, luma, task):
        def fail(_number: int, _is_done: bool) -> None:
            raise ConnectionError("the API server is away")

        task.store.around_set = fail
        with pytest.raises(ConnectionError):
            task.try_it()
        assert submissions(luma) == []


class TestTheLine:
    """Over the limit for submissions, or while Luma is away, a task that can be deferred waits in the triggerer."""

    @pytest.fixture
    def line(self, modify, context):
        """Run a task until it is deferred, first of all or in its turn; return the deferral."""

        def _line(in_line: TaskDeferred | None = None, **changes: Any) -> TaskDeferred:
            if in_line is None:
                return deferral(modify(**changes).execute, context)
            return deferral(resume, modify(**changes), in_line, context, {"turn": time.time()})

        return _line

    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize("code", [429, 455])
    def test_a_refused_task_lines_up_at_once(self, luma, line, context, code, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=1"])
        started = time.time()
        deferred = line()
        assert isinstance(deferred.trigger, LumaSubmissionTrigger)
        assert (len(submissions(luma)), luma.accepted) == (1, 0)
        assert context["task_state_store"].record is None, "a kill while it waits costs nothing"
        assert started <= deferred.kwargs["since"] <= time.time()

    def test_in_its_turn_it_submits_and_waits_for_the_job(self, luma, line):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        assert waits_for(line(line())) == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_it_keeps_its_place_however_often_it_is_refused(self, luma, line):
        luma.configure(faults=["submit:refuse,code=429,retry_after=7,style=status,times=2"])
        first = line()
        turn = time.time()
        again = line(first)
        _, before = first.trigger.serialize()
        _, after = again.trigger.serialize()
        assert before["turn"] is None
        assert before["not_before"] == pytest.approx(first.kwargs["since"] + 7, abs=1)
        assert turn <= after["turn"] <= time.time()
        assert (after["since"], after["until"]) == (before["since"], before["until"])
        assert waits_for(line(again)) == luma.jobs[0].task_id

    def test_it_does_not_wait_for_ever(self, luma, line, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        deferred = line(timeout=0.2)
        assert deferred.trigger.until == pytest.approx(deferred.kwargs["since"] + 0.2)
        deferred.kwargs["since"] -= 0.2
        with pytest.raises(LumaRateLimitError):
            resume(modify(timeout=0.2), deferred, context, {"turn": time.time()})
        assert context["task_state_store"].record is None

    def test_for_a_service_that_is_away_it_waits_two_minutes(self, line, set_connection, free_port):
        set_connection(f"http://127.0.0.1:{free_port}")
        deferred = line(timeout=3600)
        assert deferred.trigger.until == pytest.approx(deferred.kwargs["since"] + hooks.SUBMIT_PATIENCE)

    def test_those_two_minutes_count_from_when_it_went_away(self, luma, line, modify, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        busy = line(timeout=3600)
        busy.kwargs["since"] -= 600
        luma.configure(faults=["submit:refuse,code=455"])
        away = line(busy, timeout=3600)
        assert away.trigger.until == pytest.approx(time.time() + hooks.SUBMIT_PATIENCE, abs=5)
        away.kwargs["away_since"] -= hooks.SUBMIT_PATIENCE
        with pytest.raises(LumaUnavailableError):
            resume(modify(timeout=3600), away, context, {"turn": time.time()})

    def test_execution_timeout_counts_from_the_first_time(self, luma, line):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        first = line(execution_timeout=timedelta(seconds=100))
        deadline = first.kwargs["execution_deadline"]
        first.kwargs["execution_deadline"] = deadline - 40
        again = line(first, execution_timeout=timedelta(seconds=100))
        assert again.timeout.total_seconds() == pytest.approx(60, abs=5)
        waiting_for_job = line(again, execution_timeout=timedelta(seconds=100))
        assert waiting_for_job.kwargs["execution_deadline"] == deadline - 40

    def test_its_end_says_that_nothing_was_billed(self, luma, line, modify, context):
        luma.configure(faults=["submit:refuse,code=429"])
        line(execution_timeout=timedelta(seconds=1))
        with pytest.raises(LumaTimeoutError, match="nothing was billed"):
            modify(execution_timeout=timedelta(seconds=1)).resume_execution(
                "__fail__", {"error": "Trigger timeout"}, context
            )

    def test_a_refused_submission_that_cannot_be_forgotten_is_not_tried_again(self, luma, modify, context):
        def fail(_key: str) -> None:
            raise ConnectionError("the API server is away")

        context["task_state_store"].delete = fail
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        with pytest.raises(LumaRateLimitError):
            modify().execute(context)

    def test_an_answer_that_is_lost_in_its_turn_keeps_the_deadline(self, luma, line, set_connection):
        set_connection(luma.base_url, callback_base_url="http://127.0.0.1:9")
        luma.configure(faults=["submit:refuse,code=429,times=1", "submit:cut,after_accept,times=1"])
        hour = timedelta(hours=1)
        first = line(execution_timeout=hour)
        first.kwargs["execution_deadline"] -= 3000
        lost = line(first, execution_timeout=hour)
        assert isinstance(lost.trigger, LumaCallbackTrigger)
        assert lost.timeout.total_seconds() == pytest.approx(600, abs=5)

    def test_in_the_worker_an_outage_counts_from_its_start(self, luma, modify, context, monkeypatch, short_pauses):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.3)
        busy = ["submit:refuse,code=429,retry_after=0.5,style=status,times=1"]
        luma.configure(faults=[*busy, "submit:refuse,code=455,times=1"])
        assert modify(deferrable=False, timeout=20).execute(context)["status"] == "SUCCESS"

    def test_in_the_worker_it_waits_as_long(self, luma, modify, context, short_pauses, monkeypatch):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.0)  # that is for outages
        luma.configure(faults=["submit:refuse,code=429,times=3"])
        assert modify(deferrable=False, timeout=20).execute(context)["status"] == "SUCCESS"
        assert (len(submissions(luma)), luma.accepted) == (4, 1)

    @pytest.mark.parametrize("wait_for_completion", [True, False])
    def test_through_the_trigger(self, luma, modify, wait_for_completion):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        task = Tries(lambda **changes: modify(wait_for_completion=wait_for_completion, **changes), Store())
        result = task.try_it()
        assert result["luma_task_id"] == luma.jobs[0].task_id
        assert task.store.operations == [
            ("set", None), "delete", ("set", None), "delete", ("set", None), ("set", luma.jobs[0].task_id)
        ]  # fmt: skip


class Siblings:
    """The XComs of a mapped task's instances."""

    def __init__(self) -> None:
        self.pushed: dict[int, dict[str, Any]] = {}

    def context(self, map_index: int) -> dict[str, Any]:
        siblings = self

        class Mapped(TaskInstance):
            def xcom_pull(self, *, task_ids: Any, key: str) -> Any:
                assert task_ids == [self.task_id]
                return [pushed[key] for pushed in siblings.pushed.values() if key in pushed] or [None]

        ti = Mapped()
        ti.map_index = map_index
        self.pushed[map_index] = ti.pushed
        return {"ti": ti, "task_state_store": Store()}


class TestMapped:
    @pytest.fixture
    def siblings(self) -> Siblings:
        return Siblings()

    def test_after_one_was_refused_the_others_line_up_unheard(self, luma, modify, siblings):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        for i in range(5):
            assert isinstance(deferral(modify().execute, siblings.context(i)).trigger, LumaSubmissionTrigger)
        assert len(submissions(luma)) == 1

    def test_in_its_turn_each_tries(self, luma, modify, siblings):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        contexts = [siblings.context(i) for i in range(3)]
        lined_up = [deferral(modify().execute, context) for context in contexts]
        for context, deferred in zip(contexts, lined_up, strict=True):
            assert waits_for(deferral(resume, modify(), deferred, context, {"turn": time.time()}))
        assert luma.accepted == 3

    def test_siblings_that_cannot_be_told_or_asked_do_no_harm(self, luma, modify, siblings, monkeypatch):
        def fail(*_: Any, **__: Any) -> None:
            raise ConnectionError("the XCom backend is away")

        context = siblings.context(0)
        context["ti"].xcom_pull = fail
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        push = context["ti"].xcom_push
        context["ti"].xcom_push = lambda key, value: fail() if key == REFUSED_KEY else push(key, value)
        assert isinstance(deferral(modify().execute, context).trigger, LumaSubmissionTrigger)

    def test_a_refusal_of_long_ago_is_no_news(self, luma, modify, siblings):
        siblings.context(0)["ti"].pushed[REFUSED_KEY] = time.time() - REFUSAL_IS_NEWS
        assert waits_for(deferral(modify().execute, siblings.context(1)))
        assert luma.accepted == 1

    def test_a_service_that_is_away_is_asked_by_each(self, luma, modify, siblings):
        luma.configure(faults=["submit:refuse,code=455,times=1"])
        deferral(modify().execute, siblings.context(0))
        assert waits_for(deferral(modify().execute, siblings.context(1))) == luma.jobs[0].task_id

    def test_in_the_worker_nobody_lines_up(self, luma, modify, siblings):
        siblings.context(0)["ti"].pushed[REFUSED_KEY] = time.time()
        assert modify(deferrable=False).execute(siblings.context(1))["status"] == "SUCCESS"


UNKNOWN = {
    "cut after accepting": ["submit:cut,after_accept,times=1"],
    "cut before": ["submit:cut,times=1"],
    "no answer in time": ["submit:hang,seconds=20,after_accept,times=1"],
    "a bare 500": ["submit:html,after_accept,times=1"],
    "an acceptance without an id": ["submit:null_data,after_accept,times=1"],
}


@pytest.mark.parametrize("faults", UNKNOWN.values(), ids=UNKNOWN)
class TestUnknown:
    """Nobody can say whether it was accepted."""

    @pytest.fixture(autouse=True)
    def _impatient(self, luma, set_connection, luma_conn, faults):
        set_connection(luma.base_url, timeout=1)
        requests.get(luma.sample_url, timeout=20)  # drawn when it is first asked for
        luma.reset()
        luma.configure(faults=faults)

    def test_a_person_has_to_look(self, luma, task):
        with pytest.raises(AirflowFailException, match="log page") as first:
            task.try_it()
        assert isinstance(first.value.__cause__, LumaSubmissionUnknownError)
        assert task.store.operations == [("set", None)]
        accepted = luma.accepted
        for _ in range(2):
            with pytest.raises(AirflowFailException, match="log page.*LumaTaskSensor") as again:
                task.try_it()
            assert "Try 1 " in str(again.value)
        assert luma.accepted == accepted
        assert len(submissions(luma)) == 1

    def test_a_person_has_looked(self, luma, task):
        with pytest.raises(AirflowFailException):
            task.try_it()
        accepted = luma.accepted
        result = task.cleared()
        assert luma.accepted == accepted + 1
        result_of(task, luma.jobs[-1].task_id, result)
        assert task.store.record["luma_task_id"] == luma.jobs[-1].task_id

    def test_or_it_is_submitted_again_exactly_once(self, luma, task, task_log):
        with pytest.raises(LumaSubmissionUnknownError) as first:
            task.try_it(resubmit_on_unknown=True)
        assert not isinstance(first.value, AirflowFailException)
        assert task.store.operations == [("set", None)]
        accepted = luma.accepted
        job = task.try_it(resubmit_on_unknown=True)["luma_task_id"]
        assert luma.accepted == accepted + 1
        assert len(lines(task_log, "resubmit_on_unknown", "ry 1")) == 1
        assert task.try_it(resubmit_on_unknown=True)["luma_task_id"] == job
        assert luma.accepted == accepted + 1


#: At which call of set(), whether before or after it took effect; what was accepted, and whether it is known.
CRASHES = [
    pytest.param(1, False, 0, "nothing", id="before the intent is kept"),
    pytest.param(1, True, 0, "intent", id="after the intent is kept"),
    pytest.param(2, False, 1, "intent", id="before the id is kept"),
    pytest.param(2, True, 1, "id", id="after the id is kept"),
]


class TestCrashes:
    """The process dies between any two lines. Whatever the next try does, it pays for no second job unasked."""

    @pytest.fixture
    def kill(self) -> Iterator[Callable[[type[BaseException]], Callable[[], None]]]:
        """Makes a function that ends what the main thread does, as Airflow's own timeout does: by a signal."""
        before = signal.getsignal(signal.SIGUSR1)

        def _kill(kind: type[BaseException]) -> Callable[[], None]:
            def end(*_: Any) -> None:
                raise kind

            signal.signal(signal.SIGUSR1, end)
            return lambda: os.kill(os.getpid(), signal.SIGUSR1)

        yield _kill
        signal.signal(signal.SIGUSR1, before)

    @pytest.mark.parametrize(("number", "is_done", "accepted", "kept"), CRASHES)
    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_around_the_store(self, luma, task, number, is_done, accepted, kept, resubmit_on_unknown):
        task.store.restart((number, is_done))
        with pytest.raises(Killed):
            task.try_it(resubmit_on_unknown=resubmit_on_unknown)
        task.store.restart(None)
        assert luma.accepted == accepted
        if kept == "intent" and not resubmit_on_unknown:
            with pytest.raises(AirflowFailException, match="log page"):
                task.try_it(resubmit_on_unknown=resubmit_on_unknown)
            assert luma.accepted == accepted
            return
        result = task.try_it(resubmit_on_unknown=resubmit_on_unknown)
        assert luma.accepted == (1 if kept == "id" else accepted + 1)
        result_of(task, luma.jobs[-1].task_id, result)

    @pytest.mark.parametrize("kind", [Killed, AirflowTaskTimeout])
    @pytest.mark.parametrize(("moment", "accepted"), [("arriving", 0), ("answering", 1)])
    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_on_the_wire(self, relay, luma, task, kill, moment, accepted, kind, resubmit_on_unknown):
        strike, is_over = kill(kind), threading.Event()

        def die() -> None:
            if not is_over.is_set():
                strike()
                is_over.wait(10)
                raise ConnectionAbortedError

        setattr(relay, moment, die)
        with pytest.raises(kind):
            task.try_it(resubmit_on_unknown=resubmit_on_unknown)
        is_over.set()
        assert task.store.operations == [("set", None)]
        assert luma.accepted == accepted
        if resubmit_on_unknown:
            result_of(task, task.try_it(resubmit_on_unknown=True)["luma_task_id"], task.ti.pushed)
            assert luma.accepted == accepted + 1
        else:
            with pytest.raises(AirflowFailException, match="log page"):
                task.try_it()
            assert luma.accepted == accepted

    @pytest.mark.parametrize("retries", [1, 2, 3])
    def test_no_row_of_crashes_pays_twice(self, luma, modify, retries):
        luma.configure(processing_seconds=0)
        moments = [None, *((number, is_done) for number in (1, 2) for is_done in (False, True))]
        for crashes in itertools.product(moments, repeat=retries):
            task, before = Tries(lambda **changes: modify(deferrable=False, **changes), Store()), luma.accepted
            for crash in (*crashes, None):
                task.store.restart(crash)
                with suppress(Killed, AirflowFailException):
                    task.try_it()
            assert luma.accepted - before <= 1, crashes
            assert task.store.record is not None

    def test_between_a_refusal_and_its_note(self, luma, sync_task, monkeypatch):
        """A refused submission whose intent could not be taken back is unknown to the next try: a person looks."""
        luma.configure(faults=["submit:refuse,code=402,times=1"])

        def die(_key: str) -> None:
            raise Killed

        monkeypatch.setattr(sync_task.store, "delete", die)
        with pytest.raises(Killed):
            sync_task.try_it()
        with pytest.raises(AirflowFailException, match="log page"):
            sync_task.try_it()
        assert luma.accepted == 0

    def test_a_replacement_is_as_safe_as_a_first_submission(self, luma, task, leave_ended):
        leave_ended(task, outcome="generate_failed")
        task.store.restart((2, False))
        with pytest.raises(Killed):
            task.try_it()
        assert luma.accepted == 2
        with pytest.raises(AirflowFailException, match="Try 2 "):
            task.try_it()
        assert luma.accepted == 2

    @pytest.mark.parametrize("is_done", [False, True])
    def test_while_a_cleared_task_takes_a_running_job_over(self, luma, task, leave_running, is_done):
        job = leave_running(task)

        task.store.restart((1, is_done))
        with pytest.raises(Killed):
            task.cleared()
        task.store.restart(None)
        with suppress(LumaTimeoutError):
            task.try_it(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)

    def test_a_store_that_fails_after_the_acceptance_leaves_the_id_in_the_log(self, luma, task, task_log):
        def fail(number: int, is_done: bool) -> None:
            if (number, is_done) == (2, False):
                raise ConnectionError("the API server is away")

        task.store.around_set = fail
        with suppress(ConnectionError):
            task.try_it()
        assert luma.accepted == 1
        assert len(lines(task_log, "accepted", luma.jobs[0].task_id)) == 1
        with suppress(AirflowFailException):
            task.try_it()
        assert luma.accepted == 1

    def test_a_store_that_fails_after_a_refusal_does_not_hide_it(self, luma, sync_task, monkeypatch):
        luma.configure(faults=["submit:refuse,code=422,times=1"])

        def fail(_key: str) -> None:
            raise ConnectionError("the API server is away")

        monkeypatch.setattr(sync_task.store, "delete", fail)
        with pytest.raises(AirflowFailException, match="422"):
            sync_task.try_it()


class TestWithoutAStore:
    """Airflow below 3.3."""

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    def test_each_try_submits_and_says_so_once(self, luma, modify, mode, task_log):
        task = Tries(lambda **changes: modify(**mode, **changes), None)
        for number in (1, 2):
            task_log.clear()
            result_of(task, task.try_it()["luma_task_id"], task.ti.pushed)
            assert luma.accepted == number
            assert len(lines(task_log, "3.3")) == 1
            assert lines(task_log, "Nothing was submitted") == []

    def test_an_unknown_outcome_uses_no_retries(self, luma, modify):
        luma.configure(faults=["submit:cut,after_accept"])
        with pytest.raises(AirflowFailException, match="log page"):
            Tries(modify, None).try_it()
        assert luma.accepted == 1


class TestExecuteComplete:
    def test_the_result(self, modify, context):
        result = {**dict.fromkeys(KEYS), "luma_task_id": "abc", "status": "SUCCESS", "result_urls": ["https://e.com/r"]}
        assert modify().execute_complete(context, {"task": result}) == result

    @pytest.mark.parametrize("kind", ["LumaGenerationError", "LumaTimeoutError", "LumaAuthError", "LumaError"])
    def test_an_error(self, modify, context, kind):
        event = {"error": {"type": kind, "code": 501, "msg": "no people, please", "luma_task_id": "abc"}}
        with pytest.raises(LumaError, match="no people, please") as caught:
            modify().execute_complete(context, event)
        assert type(caught.value).__name__ == kind
        assert "abc" in str(caught.value)

    def test_execution_timeout_names_the_job(self, luma, modify, context):
        operator = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        resumed = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(LumaTimeoutError, match="execution_timeout") as caught:
            resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert caught.value.luma_task_id == luma.jobs[0].task_id
        assert "0:00:07" in str(caught.value)
        assert "still running" in str(caught.value)

    def test_resuming_goes_to_execute_complete(self, modify, context):
        result = {**dict.fromkeys(KEYS), "luma_task_id": "abc", "result_urls": []}
        assert modify().resume_execution("execute_complete", {"event": {"task": result}}, context) == result


def deferral(work: Callable[..., Any], *arguments: Any, **options: Any) -> TaskDeferred:
    """Let a task work until it is deferred; what it passes on survives a database."""
    with pytest.raises(TaskDeferred) as deferred:
        work(*arguments, **options)
    assert json.loads(json.dumps(deferred.value.kwargs)) == deferred.value.kwargs
    return deferred.value


def resume(operator: LumaModifyOperator, deferred: TaskDeferred, context: Any, event: dict[str, Any]) -> Any:
    """Go on with a deferred task in another process, as the one that was woken by this event."""
    return operator.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context)


def called(luma_task_id: str) -> dict[str, Any]:
    """The event of a callback."""
    return {"callback": {"luma_task_id": luma_task_id}}


def waits_for(deferred: TaskDeferred) -> Any:
    """The job that a task is deferred for, or None if it waits for a callback to name one."""
    kind, arguments = deferred.trigger.serialize()
    assert kind.endswith((".LumaTaskTrigger", ".LumaCallbackTrigger"))
    return arguments.get("luma_task_id")


class Callbacks:
    """What tests of callbacks share: the connection has Luma call back, though nothing ever arrives by itself."""

    @pytest.fixture(autouse=True)
    def _callbacks_on(self, luma, luma_conn, set_connection, monkeypatch):
        set_connection(luma.base_url, callback_base_url="http://127.0.0.1:9")
        luma.configure(callback_copies=0, processing_seconds=LONG)
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.05)

    @pytest.fixture
    def end(self, luma, until) -> Callable[..., None]:
        """Let the jobs end that are accepted from now on; wait for those that are there."""

        def _end(**how: Any) -> None:
            luma.configure(processing_seconds=0, **how)
            until(lambda: all(job.complete_time for job in luma.jobs))

        return _end


class TestCallbackAddress(Callbacks):
    def test_luma_is_given_ours(self, luma, modify, context):
        deferral(modify().execute, context)
        (job,), record = luma.jobs, context["task_state_store"].record
        connection = hooks.LumaHook().get_luma_connection()
        assert job.request["callBackUrl"].startswith("http://127.0.0.1:9/luma/callback?")
        assert callbacks.is_ours(job.request["callBackUrl"], connection, record["reference"])
        assert not callbacks.is_ours(job.request["callBackUrl"], connection, new_reference())
        assert record["calls_back"] is True
        assert luma.accepted == 1

    def test_its_token_is_masked_in_logs(self, luma, modify, context, monkeypatch):
        masked: list[str] = []
        monkeypatch.setattr("airflow_provider_luma.hooks.luma.mask_secret", masked.append)
        deferral(modify().execute, context)
        token = callbacks.token_of(luma.jobs[0].request["callBackUrl"])
        assert token in masked
        assert token not in json.dumps(context["task_state_store"].record)
        assert token not in json.dumps(context["ti"].pushed)

    def test_each_submission_has_its_own(self, luma, modify):
        for _ in range(2):
            deferral(modify().execute, {"ti": TaskInstance(), "task_state_store": Store()})
        one, other = (job.request["callBackUrl"] for job in luma.jobs)
        assert one != other

    def test_also_at_a_repetition_that_follows_a_refusal(self, luma, modify, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        lined_up = deferral(modify().execute, context)
        with pytest.raises(TaskDeferred):
            resume(modify(), lined_up, context, {"turn": time.time()})
        assert callbacks.is_ours(
            luma.jobs[0].request["callBackUrl"],
            hooks.LumaHook().get_luma_connection(),
            context["task_state_store"].record["reference"],
        )
        assert luma.accepted == 1

    def test_also_without_a_store(self, luma, modify):
        deferral(modify().execute, {"ti": TaskInstance()})
        assert callbacks.is_ours(luma.jobs[0].request["callBackUrl"], hooks.LumaHook().get_luma_connection())
        assert luma.accepted == 1

    def test_a_webhook_of_the_users_own_goes_first(self, luma, modify, context):
        deferral(modify(callback_url="http://127.0.0.1:9/hook?x=1").execute, context)
        assert luma.jobs[0].request["callBackUrl"] == "http://127.0.0.1:9/hook?x=1"
        assert context["task_state_store"].record["calls_back"] is False
        assert luma.accepted == 1

    def test_without_a_base_there_is_none(self, luma, modify, context, set_connection):
        set_connection(luma.base_url)
        deferral(modify().execute, context)
        assert "callBackUrl" not in luma.jobs[0].request
        assert context["task_state_store"].record["calls_back"] is False

    @pytest.mark.parametrize("base", ["http://10.0.0.1:8080", "http://localhost:8080", "http://airflow-apiserver"])
    def test_one_that_luma_cannot_reach_is_refused_before_anything_is_sent(self, context, set_connection, base):
        set_connection("https://api.example.com:443", callback_base_url=base)
        with pytest.raises(AirflowFailException, match="callback_base_url") as caught:
            LumaModifyOperator(task_id="modify", **GOOD).execute(context)
        assert isinstance(caught.value.__cause__, LumaValidationError)
        assert context["task_state_store"].operations == []
        assert context["ti"].pushed["luma_error"]["type"] == "LumaValidationError"


class TestCallback(Callbacks):
    """A task waits for its job, and Luma calls back."""

    def test_the_job_has_ended(self, luma, modify, context, end):
        luma.configure(processing_seconds=0)
        deferred = deferral(modify().execute, context)
        end()
        job = luma.jobs[0].task_id
        result = resume(modify(), deferred, context, called(job))
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"], len(result["result_urls"])) == (job, "SUCCESS", 1)
        assert luma.accepted == 1

    def test_it_is_still_running(self, luma, modify, context, task_log):
        deferred = deferral(modify(timeout=600, poll_interval=12).execute, context)
        job = luma.jobs[0].task_id
        again = deferral(resume, modify(timeout=600, poll_interval=12), deferred, context, called(job))
        before, after = (one.trigger.serialize()[1] for one in (deferred, again))
        del before["made"]  # now nothing is a reason to let others look first
        assert after == {**before, "poll_interval": 1.2}, "Luma has called, and will not again: look at the usual pace"
        assert (again.method_name, again.kwargs) == (deferred.method_name, deferred.kwargs)
        assert again.timeout is None
        assert len(lines(task_log, "not ended", job)) == 1
        assert luma.accepted == 1

    def test_execution_timeout_does_not_begin_anew(self, luma, modify, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        first = deferral(modify(**options).execute, context)
        assert first.timeout == timedelta(minutes=5)
        deadline = first.kwargs["execution_deadline"]
        assert 290 < deadline - time.time() <= 300
        first.kwargs["execution_deadline"] -= 200  # as if it had waited that long
        again = deferral(resume, modify(**options), first, context, called(luma.jobs[0].task_id))
        assert timedelta(seconds=90) < again.timeout <= timedelta(seconds=100)
        assert again.kwargs == first.kwargs
        first.kwargs["execution_deadline"] -= 200
        over = deferral(resume, modify(**options), first, context, called(luma.jobs[0].task_id))
        assert over.timeout == timedelta(0)

    @pytest.mark.parametrize("outcome", ["generate_failed", "create_failed"])
    def test_the_job_failed(self, luma, modify, context, end, outcome):
        luma.configure(processing_seconds=0, outcome=outcome, error_message="no people, please")
        deferred = deferral(modify().execute, context)
        end()
        with pytest.raises(LumaGenerationError, match="no people, please") as caught:
            resume(modify(), deferred, context, called(luma.jobs[0].task_id))
        assert caught.value.luma_task_id == luma.jobs[0].task_id
        assert "no people, please" in context["ti"].pushed["luma_error"]["msg"]

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_luma_cannot_be_asked(self, luma, modify, context, task_log, fault):
        deferred = deferral(modify().execute, context)
        luma.configure(faults=[f"status:{fault}"])
        again = deferral(resume, modify(), deferred, context, called(luma.jobs[0].task_id))
        assert (again.trigger.end_time, again.kwargs) == (deferred.trigger.end_time, deferred.kwargs)
        assert len(lines(task_log, "called back", "cannot be asked")) == 1
        assert luma.accepted == 1

    def test_what_the_callback_names_is_not_believed(self, luma, modify, context, end):
        """It is a doorbell: the task asks for the job that it waits for."""
        luma.configure(processing_seconds=0)
        deferred = deferral(modify().execute, context)
        end()
        assert resume(modify(), deferred, context, called("another-job"))["luma_task_id"] == luma.jobs[0].task_id

    def test_a_killed_task_that_was_woken_names_its_job(self, luma, modify, context, task_log):
        deferred = deferral(modify().execute, context)
        operator = modify()
        deferral(resume, operator, deferred, context, called(luma.jobs[0].task_id))
        operator.on_kill()
        assert lines(task_log, luma.jobs[0].task_id, "billed")


LOST = "submit:cut,after_accept,times=1"


class TestLostAnswer(Callbacks):
    """The answer to a submission is lost; if a job was accepted, its callback will tell."""

    @pytest.fixture(autouse=True)
    def _lost(self, luma, _callbacks_on):
        luma.configure(faults=[LOST])

    @pytest.fixture
    def lost(self, luma, modify, context) -> TaskDeferred:
        """A task that waits for the callback."""
        deferred = deferral(modify().execute, context)
        assert luma.accepted == 1
        return deferred

    def test_it_waits_for_the_callback(self, luma, modify, context, task_log):
        before = time.time()
        deferred = deferral(modify(poll_interval=3, timeout=600).execute, context)
        record = context["task_state_store"].record
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        _, arguments = deferred.trigger.serialize()
        assert arguments["reference"] == deferred.kwargs["reference"] == record["reference"]
        assert before + 30 <= arguments["until"] <= time.time() + 30, "a look into the store now and then"
        assert before + 600 <= deferred.kwargs["end_time"] <= time.time() + 600
        assert deferred.method_name == "execute_called_back"
        assert (record["luma_task_id"], record["calls_back"]) == (None, True)
        assert len(lines(task_log, "may have been accepted", "calls back")) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    def test_no_longer_than_it_may(self, modify, context):
        deferred = deferral(modify(poll_interval=30, timeout=10).execute, context)
        assert deferred.trigger.serialize()[1]["until"] == deferred.kwargs["end_time"]

    def test_within_execution_timeout(self, modify, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        deferred = deferral(modify(**options).execute, context)
        assert deferred.timeout == timedelta(minutes=5)
        deferred.kwargs["execution_deadline"] -= 200
        again = deferral(resume, modify(**options), deferred, context, {})
        assert timedelta(seconds=90) < again.timeout <= timedelta(seconds=100)
        assert again.kwargs == deferred.kwargs

    def test_the_callback_names_a_job_that_has_ended(self, luma, modify, context, end, task_log):
        luma.configure(processing_seconds=0)
        deferred = deferral(modify().execute, context)
        end()
        job = luma.jobs[0].task_id
        result = resume(modify(), deferred, context, called(job))
        assert (result["luma_task_id"], result["status"], len(result["result_urls"])) == (job, "SUCCESS", 1)
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert len(lines(task_log, "lost submission", job)) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    def test_the_callback_names_a_job_that_runs(self, luma, modify, context, lost):
        job = luma.jobs[0].task_id
        lost.kwargs["execution_deadline"] = deadline = time.time() + 100
        options = {"execution_timeout": timedelta(minutes=5)}
        again = deferral(resume, modify(**options), lost, context, called(job))
        assert waits_for(again) == job
        assert again.method_name == "execute_complete"
        assert again.kwargs["execution_deadline"] == deadline
        assert timedelta(seconds=90) < again.timeout <= timedelta(seconds=100)
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert luma.accepted == 1

    def test_the_callback_names_a_job_that_failed(self, luma, modify, context, end):
        luma.configure(processing_seconds=0, outcome="generate_failed", error_message="no people, please")
        deferred = deferral(modify().execute, context)
        end()
        with pytest.raises(LumaGenerationError, match="no people, please"):
            resume(modify(), deferred, context, called(luma.jobs[0].task_id))
        assert luma.accepted == 1

    def test_which_a_retry_replaces(self, luma, modify, context, end):
        luma.configure(processing_seconds=0, outcome="generate_failed")
        deferred = deferral(modify().execute, context)
        end()
        job = luma.jobs[0].task_id
        context["task_state_store"].note(job)
        with pytest.raises(LumaGenerationError):
            resume(modify(), deferred, context, called(job))
        luma.configure(outcome="success")
        context["ti"] = TaskInstance(2)
        again = deferral(modify().execute, context)
        assert waits_for(again) == luma.jobs[1].task_id
        assert luma.accepted == 2

    def test_a_callback_that_names_a_strangers_job_is_ignored(self, luma, modify, context, lost, task_log):
        stranger = hooks.LumaHook().modify_video("make it rain", luma.sample_url)
        again = deferral(resume, modify(), lost, context, called(stranger))
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == lost.kwargs
        assert len(lines(task_log, stranger, "ignored")) == 1
        assert context["task_state_store"].record["luma_task_id"] is None
        assert "luma_task_id" not in context["ti"].pushed
        assert waits_for(deferral(resume, modify(), again, context, called(luma.jobs[0].task_id))) is not None
        assert luma.accepted == 2, "its own, and the stranger's"

    def test_so_is_one_of_another_submission_of_ours(self, luma, modify, context, lost):
        deferral(modify().execute, {"ti": TaskInstance(), "task_state_store": Store()})
        own, other = (job.task_id for job in luma.jobs)
        again = deferral(resume, modify(), lost, context, called(other))
        assert waits_for(again) is None
        assert waits_for(deferral(resume, modify(), again, context, called(own))) == own

    def test_so_is_one_that_names_a_job_nobody_knows(self, luma, modify, context, lost, task_log):
        again = deferral(resume, modify(), lost, context, called("nobody-knows"))
        assert (waits_for(again), again.kwargs) == (None, lost.kwargs)
        assert len(lines(task_log, "nobody-knows", "ignored")) == 1
        assert luma.accepted == 1

    def test_a_note_in_the_store_is_as_good_as_a_callback(self, luma, modify, context, lost):
        """The trigger fires now and then, for the case that the callback came in the wrong moment."""
        job = luma.jobs[0].task_id
        context["task_state_store"].note(job)
        assert waits_for(deferral(resume, modify(), lost, context, {})) == job
        assert context["task_state_store"].record["luma_task_id"] == job
        assert luma.accepted == 1

    def test_a_note_about_another_submission_is_none(self, luma, modify, context, lost):
        context["task_state_store"].note(luma.jobs[0].task_id, new_reference())
        assert waits_for(deferral(resume, modify(), lost, context, {})) is None

    def test_without_a_callback_it_waits_on(self, modify, context, lost):
        again = deferral(resume, modify(), lost, context, {})
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == lost.kwargs
        assert again.trigger.until >= lost.trigger.until

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_where_luma_cannot_be_asked_the_callback_is_not_forgotten(self, luma, modify, context, lost, fault):
        job = luma.jobs[0].task_id
        luma.configure(faults=[f"status:{fault}"])
        again = deferral(resume, modify(), lost, context, called(job))
        assert isinstance(again.trigger, LumaCallbackTrigger)
        assert again.kwargs == {**lost.kwargs, "called": job}
        luma.configure(faults=[])
        assert waits_for(deferral(resume, modify(), again, context, {})) == job
        assert luma.accepted == 1

    def test_nor_where_it_answers_only_the_first_question(self, luma, modify, context, lost):
        """That is enough to know whose job it is."""
        job = luma.jobs[0].task_id
        luma.configure(faults=["status:refuse,code=500,every=2"])
        assert waits_for(deferral(resume, modify(), lost, context, called(job))) == job
        assert luma.accepted == 1

    def test_no_callback_comes_in_time(self, luma, modify, context, lost):
        lost.kwargs["end_time"] = time.time() - 1
        with pytest.raises(AirflowFailException, match="not called back.*log page") as caught:
            resume(modify(), lost, context, {})
        assert isinstance(caught.value.__cause__, LumaSubmissionUnknownError)
        assert context["ti"].pushed["luma_error"]["type"] == "LumaSubmissionUnknownError"
        assert context["task_state_store"].record["luma_task_id"] is None, "the intent stays, for a person to see"
        assert luma.accepted == 1

    def test_a_callback_that_comes_last_counts(self, luma, modify, context, lost):
        lost.kwargs["end_time"] = time.time() - 1
        job = luma.jobs[0].task_id
        assert waits_for(deferral(resume, modify(), lost, context, called(job))) == job

    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_a_job_that_is_known_by_name_is_not_given_up(self, luma, modify, context, lost, resubmit_on_unknown):
        lost.kwargs["end_time"] = time.time() - 1
        job = luma.jobs[0].task_id
        luma.configure(faults=["status:refuse,code=500"])
        with pytest.raises(LumaUnavailableError):
            resume(modify(resubmit_on_unknown=resubmit_on_unknown), lost, context, called(job))
        assert context["task_state_store"].record is not None
        assert luma.accepted == 1

    def test_or_it_is_submitted_again(self, luma, modify, context):
        options = {"resubmit_on_unknown": True}
        lost = deferral(modify(**options).execute, context)
        assert isinstance(lost.trigger, LumaCallbackTrigger), "the callback is waited for all the same"
        lost.kwargs["end_time"] = time.time() - 1
        with pytest.raises(LumaSubmissionUnknownError):
            resume(modify(**options), lost, context, {})
        assert luma.accepted == 1
        context["ti"] = TaskInstance(2)
        again = deferral(modify(**options).execute, context)
        assert waits_for(again) == luma.jobs[1].task_id
        assert luma.accepted == 2

    def test_a_task_that_does_not_wait_for_its_job_waits_for_the_callback(self, luma, modify, context):
        options = {"wait_for_completion": False}
        deferred = deferral(modify(**options).execute, context)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        job = luma.jobs[0].task_id
        result = resume(modify(**options), deferred, context, called(job))
        assert (list(result), result["luma_task_id"], result["status"]) == (KEYS, job, "GENERATING")
        assert context["task_state_store"].record["luma_task_id"] == context["ti"].pushed["luma_task_id"] == job
        assert luma.accepted == 1

    def test_nor_does_it_matter_to_it_how_the_job_ended(self, luma, modify, context, end):
        options = {"wait_for_completion": False}
        luma.configure(processing_seconds=0, outcome="generate_failed")
        deferred = deferral(modify(**options).execute, context)
        end()
        assert resume(modify(**options), deferred, context, called(luma.jobs[0].task_id))["status"] == "GENERATING"

    @pytest.mark.parametrize("wait_for_completion", [True, False])
    def test_a_task_that_may_not_be_deferred_fails(self, luma, modify, context, wait_for_completion):
        options = {"deferrable": False, "wait_for_completion": wait_for_completion}
        for number in (1, 2):
            context["ti"] = TaskInstance(number)
            with pytest.raises(AirflowFailException, match="log page"):
                modify(**options).execute(context)
        assert luma.accepted == len(submissions(luma)) == 1

    def test_so_does_one_with_a_webhook_of_its_own(self, luma, modify, context):
        with pytest.raises(AirflowFailException, match="log page"):
            modify(callback_url="http://127.0.0.1:9/hook").execute(context)
        assert luma.accepted == 1

    def test_without_a_store_too(self, luma, modify):
        """Airflow below 3.3."""
        context = {"ti": TaskInstance()}
        deferred = deferral(modify().execute, context)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        again = deferral(resume, modify(), deferred, context, {})
        assert (waits_for(again), again.kwargs) == (None, deferred.kwargs)
        job = luma.jobs[0].task_id
        assert waits_for(deferral(resume, modify(), again, context, called(job))) == job
        assert context["ti"].pushed["luma_task_id"] == job
        again.kwargs["end_time"] = time.time() - 1
        with pytest.raises(AirflowFailException, match="not called back"):
            resume(modify(), again, context, {})
        assert luma.accepted == 1

    def test_a_task_that_was_cleared_meanwhile_keeps_its_own_record(self, luma, modify, context, lost):
        """The woken try is of the past: what a later one has written stays."""
        store, job = context["task_state_store"], luma.jobs[0].task_id
        other = {**store.record, "reference": new_reference()}
        store.set(STORE_KEY, other)
        assert waits_for(deferral(resume, modify(), lost, context, called(job))) == job
        assert store.record == other


class TestKilledBeforeTheAnswer(Callbacks):
    """A retry finds an intent; that its job calls back is known."""

    @pytest.fixture
    def killed(self, luma, modify, context) -> dict[str, Any]:
        """The context of a retry, after the worker was killed before it could write down the id."""
        store = context["task_state_store"]
        store.restart((2, False))
        with pytest.raises(Killed):
            modify().execute(context)
        store.restart(None)
        assert (luma.accepted, store.record["luma_task_id"]) == (1, None)
        context["ti"] = TaskInstance(2)
        return context

    def test_it_waits_for_the_callback(self, luma, modify, killed, task_log):
        deferred = deferral(modify().execute, killed)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        assert deferred.kwargs["reference"] == killed["task_state_store"].record["reference"]
        assert len(lines(task_log, "Try 1 ", "calls back", "nothing new is billed")) == 1
        job = luma.jobs[0].task_id
        assert waits_for(deferral(resume, modify(), deferred, killed, called(job))) == job
        assert killed["task_state_store"].record["luma_task_id"] == job
        assert luma.accepted == len(submissions(luma)) == 1

    def test_it_goes_on_where_the_callback_has_come_already(self, luma, modify, killed, task_log):
        job = luma.jobs[0].task_id
        killed["task_state_store"].note(job)
        assert waits_for(deferral(modify().execute, killed)) == job
        assert killed["task_state_store"].record["luma_task_id"] == killed["ti"].pushed["luma_task_id"] == job
        assert len(lines(task_log, "continues", job, "nothing new is billed")) == 1
        assert luma.accepted == len(submissions(luma)) == 1

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    def test_in_every_mode(self, luma, modify, killed, mode):
        killed["task_state_store"].note(luma.jobs[0].task_id)
        with suppress(LumaTimeoutError, TaskDeferred):
            modify(timeout=0.05, **mode).execute(killed)
        assert killed["ti"].pushed["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == len(submissions(luma)) == 1

    def test_and_takes_its_result(self, luma, modify, context, until):
        luma.configure(processing_seconds=0)
        store = context["task_state_store"]
        store.restart((2, False))
        with pytest.raises(Killed):
            modify().execute(context)
        store.restart(None)
        until(lambda: luma.jobs[0].complete_time)
        store.note(luma.jobs[0].task_id)
        context["ti"] = TaskInstance(2)
        result = modify().execute(context)
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert luma.accepted == 1

    @pytest.mark.parametrize("named", ["nobody-knows", "a stranger's"])
    def test_a_note_that_names_a_job_of_others_is_ignored(self, luma, modify, killed, named):
        if named == "a stranger's":
            named = hooks.LumaHook().modify_video("make it rain", luma.sample_url)
        killed["task_state_store"].note(named)
        deferred = deferral(modify().execute, killed)
        assert isinstance(deferred.trigger, LumaCallbackTrigger)
        assert killed["task_state_store"].record["luma_task_id"] is None

    def test_where_luma_cannot_be_asked_nothing_is_submitted(self, luma, modify, killed):
        killed["task_state_store"].note(luma.jobs[0].task_id)
        luma.configure(faults=["status:refuse,code=500"])
        with pytest.raises(LumaUnavailableError):
            modify().execute(killed)
        luma.configure(faults=[])
        killed["ti"] = TaskInstance(3)
        assert waits_for(deferral(modify().execute, killed)) == luma.jobs[0].task_id
        assert luma.accepted == len(submissions(luma)) == 1

    def test_no_number_of_tries_pays_twice(self, luma, modify, killed):
        for number in range(2, 6):
            killed["ti"] = TaskInstance(number)
            deferred = deferral(modify().execute, killed)
            deferred.kwargs["end_time"] = time.time() - 1
            with pytest.raises(AirflowFailException):
                resume(modify(), deferred, killed, {})
        assert luma.accepted == len(submissions(luma)) == 1

    def test_who_clears_it_gets_the_video_that_nobody_has_seen(self, luma, modify, killed, until):
        luma.configure(processing_seconds=0)
        killed["task_state_store"].note(luma.jobs[0].task_id)
        until(lambda: luma.jobs[0].complete_time, seconds=90)
        killed["ti"] = TaskInstance(2, max_tries=5)
        assert modify().execute(killed)["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_a_person_who_clears_it_gets_another_video(self, luma, modify, killed):
        killed["ti"] = TaskInstance(2, max_tries=3)
        assert waits_for(deferral(modify().execute, killed)) == luma.jobs[1].task_id
        assert luma.accepted == 2


class TestOnKill:
    def test_before_anything_was_sent(self, modify, task_log):
        modify().on_kill()
        (entry,) = task_log
        assert entry["log_level"] == "warning"
        assert "Luma account" in entry["event"]

    def test_while_a_job_runs(self, luma, modify, context, task_log):
        operator = modify()
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        said = task_log[-1]["event"]
        for hint in (luma.jobs[0].task_id, "cannot cancel", "billed", "LumaTaskSensor"):
            assert hint in said


TEMPLATES = ["{{ params.x }}", "{% if x %}{% endif %}", "prefix {{ ti.xcom_pull('x') }}"]


class TestParseTime:
    """Mistakes in literals are told when the DAG is parsed; templates and outputs are judged once rendered."""

    @pytest.mark.parametrize(
        ("changes", "names"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"prompt": "сделай дождь"}, "prompt"),
            ({"video_url": ""}, "video_url"),
            ({"video_url": "s3://bucket/v.mp4"}, "video_url"),
            ({"video_url": "https://example.com/v.webm"}, "video_url"),
            ({"callback_url": "example.com"}, "callback_url"),
            ({"poll_interval": 0}, "poll_interval"),
            ({"poll_interval": "30"}, "poll_interval"),
            ({"timeout": -1}, "timeout"),
            ({"timeout": None}, "timeout"),
        ],
        ids=str,
    )
    def test_literal_mistakes(self, changes, names):
        with pytest.raises(LumaValidationError, match=names):
            LumaModifyOperator(task_id="modify", **{**GOOD, **changes})

    @pytest.mark.parametrize("field", ["prompt", "video_url", "callback_url", "watermark", "luma_conn_id"])
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_templates(self, field, template):
        operator = LumaModifyOperator(task_id="modify", **{**GOOD, field: template})
        assert getattr(operator, field) == template

    def test_outputs_of_other_tasks(self):
        with DAG("d", schedule=None):
            first = BaseOperator(task_id="first")
            operator = LumaModifyOperator(task_id="modify", prompt=first.output["p"], video_url=first.output["v"])
        assert operator.upstream_task_ids == {"first"}

    @pytest.mark.parametrize(
        ("field", "rendered"),
        [("prompt", ""), ("prompt", "雨"), ("video_url", "ftp://e.com/v.mp4"), ("callback_url", "nonsense")],
    )
    def test_mistakes_after_rendering(self, luma, modify, context, field, rendered):
        operator = modify(**{field: "{{ params.x }}"})
        operator.render_template_fields({"params": {"x": rendered}})
        with pytest.raises(AirflowFailException, match=field):
            operator.execute(context)
        assert luma.calls == []

    def test_rendered_fields_are_sent(self, luma, modify, context):
        operator = modify(
            prompt="make it {{ x }}", watermark="{{ x }}", luma_conn_id="luma_{{ y }}", wait_for_completion=False
        )
        operator.render_template_fields({"x": "snow", "y": "default"})
        operator.execute(context)
        assert luma.jobs[0].request["prompt"] == "make it snow"
        assert luma.jobs[0].request["watermark"] == "snow"

    @pytest.mark.parametrize(
        ("operator", "fixed", "mapped"),
        [
            (LumaModifyOperator, {"prompt": "rain"}, {"video_url": ["https://e.com/1.mp4", "https://e.com/2.mp4"]}),
            (LumaModifyOperator, {"video_url": "https://e.com/1.mp4", "poll_interval": 5}, {"prompt": ["a", "b"]}),
            (LumaDownloadOperator, {"destination": "/tmp/x"}, {"urls": [["https://e.com/1.mp4"]]}),
        ],
    )
    def test_mapping(self, operator, fixed, mapped):
        with DAG("d", schedule=None):
            task = operator.partial(task_id="mapped", **fixed).expand(**mapped)
        assert isinstance(task, MappedOperator)

    def test_a_mapped_task_is_the_same_operator(self):
        with DAG("d", schedule=None):
            task = LumaModifyOperator.partial(task_id="m", prompt="rain").expand(video_url=["https://e.com/1.mp4"])
        unmapped = task.unmap({"video_url": "https://e.com/1.mp4"})
        assert isinstance(unmapped, LumaModifyOperator)
        assert unmapped.multiple_outputs is True


class TestDownload:
    """Where files go. How the bytes get there is the hook's affair."""

    @pytest.fixture
    def download(self, wires, set_connection, context, tmp_path):
        """Download paths of a web server to a place in a new folder, and return what was written, relative to it."""
        wire = wires.start(wires.answer(body=b"a video"))
        set_connection(wire.base_url)

        def _download(paths: Any, destination: str) -> list[str]:
            one = isinstance(paths, str)
            urls = wire.base_url + paths if one else type(paths)(wire.base_url + path for path in paths)
            operator = LumaDownloadOperator(task_id="download", urls=urls, destination=f"{tmp_path}/{destination}")
            written = operator.execute(context)
            assert all(isinstance(path, str) for path in written)
            there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
            relative = [path.removeprefix("file://").removeprefix(f"{tmp_path}/") for path in written]
            assert set(relative) == there
            return relative

        return _download

    def test_template_fields(self):
        assert set(LumaDownloadOperator.template_fields) == {"urls", "destination", "luma_conn_id"}

    @pytest.mark.parametrize(
        ("paths", "destination", "files"),
        [
            ("/a.mp4", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/", ["data/a.mp4"]),
            ("/a.mp4?signature=1", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/b.mp4", ["data/b.mp4"]),
            (["/a.mp4"], "data/b.mp4", ["data/b.mp4"]),
            (("/a.mp4", "/b.mp4"), "data", ["data/a.mp4", "data/b.mp4"]),
            (["/1/a.mp4", "/2/a.mp4", "/3/a.mp4"], "data", ["data/a.mp4", "data/2-a.mp4", "data/3-a.mp4"]),
        ],
        ids=str,
    )
    def test_the_plan(self, download, paths, destination, files):
        assert download(paths, destination) == files

    def test_the_plan_is_the_same_at_every_try(self, download):
        paths = [f"/{n}/v.mp4" for n in range(4)]
        assert download(paths, "data") == download(paths, "data")

    @pytest.mark.parametrize(
        "paths",
        [
            ["/2-a.mp4", "/a.mp4", "/x/a.mp4"],
            ["/a.mp4", "/x/a.mp4", "/2-a.mp4"],
            ["/1/a.mp4", "/2/a.mp4", "/1/a.mp4", "/2/a.mp4"],
            ["/", "/x/", "/video.mp4"],
        ],
        ids=["a name like ours first", "a name like ours last", "the same twice", "no names"],
    )
    def test_no_two_addresses_share_a_file(self, download, paths):
        assert len(set(download(paths, "data"))) == len(set(paths))

    @pytest.mark.parametrize(
        ("urls", "destination", "names"),
        [
            ([], "/data", "urls"),
            (None, "/data", "urls"),
            ("", "/data", "urls"),
            ("https://e.com/a.mp4", "", "destination"),
            ("https://e.com/a.mp4", "  ", "destination"),
            ("https://e.com/a.mp4", None, "destination"),
            (["https://e.com/a.mp4", "https://e.com/b.mp4"], "/data/one.mp4", "destination"),
            (["ftp://e.com/a.mp4"], "/data", "urls"),
            ([None], "/data", "urls"),
        ],
        ids=str,
    )
    def test_mistakes_use_no_retries(self, luma_conn, context, urls, destination, names, tmp_path):
        if destination == "/data":
            destination = str(tmp_path)
        with pytest.raises(AirflowFailException, match=names):
            LumaDownloadOperator(task_id="download", urls=urls, destination=destination).execute(context)

    def test_a_result(self, luma, modify, context, tmp_path):
        urls = modify(deferrable=False).execute(context)["result_urls"]
        written = LumaDownloadOperator(task_id="download", urls=urls, destination=str(tmp_path)).execute(context)
        assert len(written) == 1
        assert all(isinstance(one, str) for one in written)
        assert [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True]


def test_the_dict_is_the_same_everywhere(luma, modify, context):
    waited = modify(deferrable=False).execute(context)
    not_waited = modify(wait_for_completion=False).execute({**context, "task_state_store": Store()})
    assert list(waited) == list(not_waited) == KEYS
    assert protocol.LumaTaskStatus[waited["status"]].name == "SUCCESS"

# SPDX-License-Identifier: Apache-2.0
"""What of Airflow an operator uses while it runs: a task instance, the task state store, and a task run try by try."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.plugins import listener
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY, UPLOAD_KEY
from airflow_provider_luma.triggers.luma import LumaSubmissionTrigger
from harness import simulated_clock


class TaskInstance:
    """The part of Airflow's task instance that the operators use."""

    dag_id = "films"
    run_id = "manual__1"
    task_id = "modify"
    map_index = -1

    def __init__(self, try_number: int = 1, max_tries: int = 2) -> None:
        self.id = uuid4()
        self.try_number = try_number
        self.max_tries = max_tries
        self.pushed: dict[str, Any] = {}
        self.task: Any = None
        self.context: Any = None

    def get_template_context(self) -> Any:
        return self.context

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.pushed.get(key)


class XComSequence(Sequence[Any]):
    """
    What an operator is given of a mapped task: each item is asked for when it is used.

    :ivar not_found: questions for what is not there, each of which Airflow logs as an error
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self.not_found = 0

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._values[index]
        except IndexError:
            self.not_found += 1
            raise


class Killed(BaseException):
    """The worker's process has ended, from one instruction to the next."""


@contextmanager
def killed_at(number: int, *methods: tuple[type, str], is_done: bool) -> Iterator[None]:
    """
    Kill the process once, around a call of one of some methods, and go on as a process that starts after that.

    :param number: which of the calls of all these methods it is, counted from 1
    :param is_done: kill it after the call instead of before
    """
    calls = itertools.count(1)

    def killing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            is_due = next(calls) == number
            if is_due and not is_done:
                raise Killed
            result = method(*arguments, **options)
            if is_due:
                raise Killed
            return result

        return call

    with pytest.MonkeyPatch.context() as patched, suppress(Killed):
        for kind, name in methods:
            patched.setattr(kind, name, killing(getattr(kind, name)))
        yield


class TaskStateStore:
    """
    The part of Airflow's task state store that the operators use: it outlives the tries of one task instance.

    :ivar operations: what was done to it, in order: ``("set", the record's id)``, ``("set", "delivered")``,
        ``("set", "reported")`` or ``"delete"``
    :ivar around_set: called before and after each ``set``, with the number of the call and whether it is done
    """

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.around_set: Callable[[int, bool], None] = lambda _number, _is_done: None
        self._values: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def crash_at(self, crash: tuple[int, bool] | None) -> None:
        """Count the calls of ``set`` anew, and kill the process before or after one of them; None for no crash."""
        self._numbers = itertools.count(1)

        def around_set(*at: Any) -> None:
            if at == crash:
                raise Killed

        self.around_set = around_set

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self._values[key]) if key in self._values else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        number = next(self._numbers)
        self.around_set(number, False)
        self._values[key] = json.dumps(value)
        told = [mark for mark in ("delivered", "reported") if value.get(mark)]
        self.operations.append(("set", *(told or [value.get("luma_task_id")])))
        self.around_set(number, True)

    def delete(self, key: str) -> None:
        self._values.pop(key, None)
        self.operations.append("delete")

    @property
    def record(self) -> Any:
        """The record of the submission, if there is one."""
        assert set(self._values) <= {STORE_KEY, CALLBACK_KEY, UPLOAD_KEY}
        return self.get(STORE_KEY)

    def change(self, **changes: Any) -> None:
        """Change the record behind the task's back."""
        self._values[STORE_KEY] = json.dumps({**self.record, **changes})

    def record_callback(self, luma_task_id: str, reference: str | None = None) -> None:
        """Record which job a submission has become, as the receiver of callbacks does."""
        callback = {"reference": reference or self.record["reference"], "luma_task_id": luma_task_id}
        self._values[CALLBACK_KEY] = json.dumps(callback)


class TaskRun:
    """
    One task instance, from try to try, as Airflow runs it: a new operator for each, and only the store stays.

    Each try runs to its end, through the trigger if it defers.

    :param modify: creates the operator
    :param store: the task state store; None for an Airflow that has none
    :param retries: the task's retries
    :param passes_kwargs: whether a resumed task gets the deferral's kwargs; False as in ``dag.test()`` of Airflow
        3.1 to 3.3, which passes the event alone
    :param names: what of ``dag_id``, ``run_id``, ``task_id`` and ``map_index`` differs from the task instance's own
    """

    def __init__(
        self,
        modify: Callable[..., LumaModifyOperator],
        store: TaskStateStore | None,
        *,
        retries: int = 2,
        passes_kwargs: bool = True,
        **names: Any,
    ) -> None:
        self.store = store
        self.retries = retries
        self._names = names
        self.ti = self._new_ti(0, retries)
        #: Called when the operator has returned, before Airflow knows.
        self.on_return: Callable[[], None] = lambda: None
        self._modify = modify
        self._passes_kwargs = passes_kwargs

    def run_try(self, **changes: Any) -> dict[str, Any]:
        """Run the first try, or another one because the last has failed."""
        self.ti = self._new_ti(self.ti.try_number + 1, self.ti.max_tries)
        context: Any = {"ti": self.ti}
        if self.store is not None:
            context["task_state_store"] = self.store
        resumed: tuple[str, dict[str, Any]] | None = None
        while True:
            operator = self._modify(**changes)
            operator.render_template_fields({})
            try:
                result = operator.resume_execution(*resumed, context) if resumed else operator.execute(context)
            except TaskDeferred as deferred:
                kwargs = (deferred.kwargs or {}) if self._passes_kwargs else {}
                resumed = deferred.method_name, {**kwargs, "event": _event_of(deferred.trigger)}
                continue
            self.on_return()
            self.ti.task, self.ti.context = operator, context
            listener.on_task_instance_success(task_instance=self.ti)
            return result

    def _new_ti(self, try_number: int, max_tries: int) -> TaskInstance:
        ti = TaskInstance(try_number, max_tries)
        vars(ti).update(self._names)
        return ti

    def clear_and_run(self, **changes: Any) -> dict[str, Any]:
        """Run the try after a person has cleared the task."""
        self.ti.max_tries = self.ti.try_number + self.retries
        return self.run_try(**changes)


def _event_of(trigger: Any) -> Any:
    """Run a trigger as the triggerer does, from its serialized arguments, and return its only event."""
    _, arguments = trigger.serialize()
    stored = type(trigger)(**json.loads(json.dumps(arguments)))
    # A queue only waits, which takes no time in simulated time.
    run = simulated_clock.run if isinstance(stored, LumaSubmissionTrigger) else asyncio.run
    (event,) = run(_events_of(stored))
    return json.loads(json.dumps(event))


async def _events_of(trigger: Any) -> list[Any]:
    return [event.payload async for event in trigger.run()]


def assert_result_is_of(luma_task_id: str, task: TaskRun, result: dict[str, Any]) -> None:
    """Assert that what a task has returned, and what it has pushed before, are of one job."""
    assert result["luma_task_id"] == luma_task_id
    assert task.ti.pushed["luma_task_id"] == luma_task_id

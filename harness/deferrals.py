# SPDX-License-Identifier: Apache-2.0
"""Defer and resume a task step by step, with the events that Airflow or the receiver of callbacks sends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.operators.luma import LumaModifyOperator


def deferral_of(work: Callable[..., Any], *arguments: Any, **options: Any) -> TaskDeferred:
    """Run a task until it is deferred; assert that its kwargs survive a database."""
    with pytest.raises(TaskDeferred) as deferred:
        work(*arguments, **options)
    for handed_over in (deferred.value.kwargs, deferred.value.trigger.serialize()[1]):
        assert json.loads(json.dumps(handed_over)) == handed_over
    return deferred.value


def resume(operator: LumaModifyOperator, deferred: TaskDeferred, context: Any, event: dict[str, Any]) -> Any:
    """Resume a deferred task with an event, as a new process does."""
    return operator.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context)


def callback_event(luma_task_id: str) -> dict[str, Any]:
    """Return the event of a callback that names a job."""
    return {"callback": {"luma_task_id": luma_task_id}}


def expiry_event(deferred: TaskDeferred) -> dict[str, Any]:
    """Return the event of a trigger that only waits for a time, sent once that time has come."""
    return {"state": dict(deferred.kwargs or {}), "at": time.time()}


def awaited_job(deferred: TaskDeferred) -> Any:
    """Return the id of the job that a task is deferred for, or None if it waits for a callback to name one."""
    kind, arguments = deferred.trigger.serialize()
    assert kind.endswith((".LumaTaskTrigger", ".LumaCallbackTrigger"))
    return arguments.get("luma_task_id")

# SPDX-License-Identifier: Apache-2.0
"""Listener that records when Airflow has stored a task's result; Airflow calls it after every successful task."""

from __future__ import annotations

import sys
from typing import Any

from airflow.listeners import hookimpl


@hookimpl(tryfirst=True)  # if a listener fails, those after it are not called
def on_task_instance_success(task_instance: Any) -> None:
    """Record that the result was delivered, if the task is one of ours."""
    operators = sys.modules.get("airflow_provider_luma.operators.luma")  # if not loaded, the task is not ours
    task = getattr(task_instance, "task", None)
    if operators is not None and isinstance(task, operators.LumaJobOperator):
        task.on_result_stored(task_instance.get_template_context())

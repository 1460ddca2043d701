# SPDX-License-Identifier: Apache-2.0
"""Listener that learns when Airflow has stored a task's result; Airflow calls it after every task that succeeds."""

from __future__ import annotations

import sys
from typing import Any

from airflow.listeners import hookimpl


@hookimpl(tryfirst=True)  # one that fails ends the others
def on_task_instance_success(task_instance: Any) -> None:
    """Let one of our tasks record that its result was delivered."""
    outcome = sys.modules.get("airflow_provider_luma.operators.luma")  # not loaded, it is none of ours
    task = getattr(task_instance, "task", None)
    if outcome is not None and isinstance(task, outcome.LumaJobOperator):
        task.on_result_stored(task_instance.get_template_context())

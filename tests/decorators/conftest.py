# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the task decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_luma.simulator import Simulator
from tests.support.operator_fixtures import context

__all__ = ["context"]


@pytest.fixture
def decorated(luma: Simulator, luma_conn: str) -> Callable[..., Any]:
    """Creates the task of a decorated function, against the simulator's sample."""

    def _decorated(function: Callable[..., Any], arguments: dict[str, Any] | None = None, **parameters: Any) -> Any:
        parameters = {
            "task_id": "modify",
            "video_url": luma.sample_url,
            "poll_interval": 0.02,
            "timeout": 20,
            **parameters,
        }
        with DAG("films", schedule=None):
            return task.luma_modify(**parameters)(function)(**(arguments or {})).operator

    return _decorated

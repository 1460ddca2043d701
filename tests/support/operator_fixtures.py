# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that run operators: a context, and operators against the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.simulator import Simulator
from tests.support.task_instance import TaskInstance, TaskStateStore

#: The keys of the dict that every operator returns for a job, in order.
RESULT_KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]

#: Parameters in which nothing is wrong.
VALID_PARAMETERS = {"prompt": "make it a rainy night", "video_url": "https://example.com/v.mp4"}


def new_context() -> dict[str, Any]:
    """Return the context of another task instance, at its first try."""
    return {"ti": TaskInstance(), "task_state_store": TaskStateStore()}


@pytest.fixture
def context() -> dict[str, Any]:
    """The context of a task instance, at its first try."""
    return new_context()


@pytest.fixture
def modify(luma: Simulator, luma_conn: str) -> Callable[..., LumaModifyOperator]:
    """Creates an operator that modifies the simulator's sample, with some parameters changed."""

    def _modify(**changes: Any) -> LumaModifyOperator:
        parameters = {**VALID_PARAMETERS, "video_url": luma.sample_url, "poll_interval": 0.02, "timeout": 120}
        return LumaModifyOperator(task_id="modify", **{**parameters, **changes})

    return _modify


@pytest.fixture
def frozen_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str, Callable[[], Any]], None]:
    """Lets something happen once, when a process is about to call a method."""

    def freeze(kind: type, name: str, meanwhile: Callable[[], Any]) -> None:
        method = getattr(kind, name)

        def thawed(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(kind, name, method)
            meanwhile()
            return method(*arguments, **options)

        monkeypatch.setattr(kind, name, thawed)

    return freeze

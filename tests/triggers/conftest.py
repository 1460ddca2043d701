# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of triggers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_provider_luma.submission import queue
from airflow_provider_luma.triggers import luma as triggers


async def _only_event(trigger: BaseTrigger) -> dict[str, Any]:
    events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    assert json.loads(json.dumps(events[0])) == events[0]
    return events[0]


@pytest.fixture
def only_event() -> Callable[[BaseTrigger], Awaitable[dict[str, Any]]]:
    """Runs a trigger to its end; returns its only event, which has to survive a database."""
    return _only_event


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let the triggers' clock follow that of the (simulated) event loop; returns the time at which that starts."""
    start = 1_800_000_000.0
    clock = SimpleNamespace(time=lambda: start + asyncio.get_running_loop().time())
    for module in (triggers, queue):
        monkeypatch.setattr(module, "time", clock)
    return start

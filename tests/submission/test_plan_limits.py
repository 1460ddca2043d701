# SPDX-License-Identifier: Apache-2.0
"""
More jobs at once than a plan of Luma's own API allows are all accepted, with few refusals, in simulated time.

The plan answers at the wire. What is real: the operator, the reading of its answers, the triggers, and the queue.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import random
from collections import deque
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.core import deferral
from airflow_provider_luma.core.job import Request, Response
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.submission import queue, workflow
from airflow_provider_luma.transport import workers
from airflow_provider_luma.triggers import luma as triggers
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from harness.simulated_clock import run
from tests.support.operator_fixtures import new_context

START = 1_800_000_000.0
SLOTS = 16


def now() -> float:
    return asyncio.get_running_loop().time()


class Plan:
    """
    The two limits of a plan: requests in any minute, and jobs at a time.

    :param seconds: how long a job takes
    """

    def __init__(self, *, jobs_at_a_time: int, requests_per_minute: int, seconds: float) -> None:
        self._jobs_at_a_time, self._requests_per_minute = jobs_at_a_time, requests_per_minute
        self._seconds = seconds
        self._counted: deque[float] = deque()
        self._ends: list[float] = []
        self.accepted: list[float] = []
        self.refused: list[tuple[float, str]] = []

    def send(self, connection: Any, request: Request, *, before_send: Any, may_repeat: bool) -> Response:
        """Answer a submission, as the transport for workers does."""
        assert (request.method, request.path, may_repeat) == ("POST", "/v1/generations", False)
        before_send()
        while self._counted and now() - self._counted[0] >= 60:
            self._counted.popleft()
        while self._ends and self._ends[0] <= now():
            heapq.heappop(self._ends)
        if len(self._counted) == self._requests_per_minute:
            seconds = math.ceil(self._counted[0] + 60 - now())
            rate = {"limit": self._requests_per_minute, "remaining": 0, "reset": int(START + now()) + seconds}
            return self._refuse("requests", seconds, {f"x-ratelimit-{name}": str(rate[name]) for name in rate})
        self._counted.append(now())
        if len(self._ends) == self._jobs_at_a_time:
            return self._refuse("jobs", 60, {})
        heapq.heappush(self._ends, now() + self._seconds)
        self.accepted.append(now())
        return Response(201, json.dumps({"id": str(UUID(int=len(self.accepted))), "state": "queued"}).encode())

    def _refuse(self, limit: str, seconds: float, headers: dict[str, str]) -> Response:
        self.refused.append((now(), limit))
        return Response(429, b'{"detail": "Too many."}', float(seconds), None, headers)


class Cluster:
    """Runs tasks until their jobs are accepted; Airflow's scheduler, workers and triggerer take seconds by chance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def run(self, number: int) -> list[str]:
        self._slots = asyncio.Semaphore(SLOTS)
        return await asyncio.gather(*(self._run() for _ in range(number)))

    async def _run(self) -> str:
        context: Any = new_context()
        method, kwargs = "execute", {}
        while True:
            async with self._slots:
                await asyncio.sleep(self._random.uniform(2, 6))
                operator = LumaModifyOperator(
                    task_id="modify", prompt="snow", video_url="https://example.com/a.mp4", check_video=False
                )
                with pytest.raises(TaskDeferred) as caught:
                    getattr(operator, method)(context, **kwargs)
            await asyncio.sleep(self._random.uniform(1, 3))
            deferred = caught.value
            _, arguments = deferred.trigger.serialize()
            trigger = type(deferred.trigger)(**json.loads(json.dumps(arguments)))
            if isinstance(trigger, LumaTaskTrigger):
                return trigger.luma_task_id
            (event,) = [event.payload async for event in trigger.run()]
            method, kwargs = deferred.method_name, {**(deferred.kwargs or {}), "event": event}


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs tasks on a plan; returns the ids of their jobs."""
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://:luma-api-key@agents.lumalabs.ai")
    monkeypatch.setattr(triggers, "SHORTEST_DEFERRAL", deferral.SHORTEST_DEFERRAL)
    monkeypatch.setattr(queue, "SUBMISSION_WINDOW", 10.0)
    for module in (triggers, queue, workflow):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: START + now()))

    def _simulate(plan: Plan, tasks: int, seed: int) -> list[str]:
        monkeypatch.setattr(workers, "send", plan.send)
        return run(Cluster(seed).run(tasks))

    return _simulate


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_every_job_is_accepted_with_at_most_three_refusals_on_average(simulate, seed):
    plan = Plan(jobs_at_a_time=10, requests_per_minute=30, seconds=60)
    ids = simulate(plan, 100, seed)
    assert len(set(ids)) == len(plan.accepted) == 100
    assert {limit for _, limit in plan.refused} == {"requests", "jobs"}
    assert len(plan.refused) <= 300


def test_a_queue_for_few_long_jobs_slows_down_to_the_rate_at_which_they_end(simulate):
    plan = Plan(jobs_at_a_time=2, requests_per_minute=30, seconds=300)
    ids = simulate(plan, 10, seed=1)
    assert len(set(ids)) == len(plan.accepted) == 10
    after_the_first = [at for at, _ in plan.refused if at > 60]
    # In twenty minutes, with two tries a minute at most.
    assert len(after_the_first) <= 40

# SPDX-License-Identifier: Apache-2.0
"""Jobs of a service without callbacks are checked sooner when they have likely ended, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.core.poll_state import PollOutcome, PollState
from airflow_provider_luma.waiting import poller as poller_module
from airflow_provider_luma.waiting.poller import Poller
from harness.simulated_clock import run

START = 1_800_000_000.0
POLL_INTERVAL = 30.0


def now() -> float:
    return START + asyncio.get_running_loop().time()


@dataclass
class Client:
    """A client of a service that tells the state of its jobs, but not when they ended."""

    requests_per_second: float
    service: str
    #: When each job began and when it ends.
    jobs: dict[str, tuple[float, float]] = field(default_factory=dict)
    checks: dict[str, list[float]] = field(default_factory=dict)

    async def get_requests_per_second(self) -> float:
        return self.requests_per_second

    async def poll(self, state: PollState) -> PollOutcome:
        began, ends = self.jobs[state.luma_task_id]
        self.checks.setdefault(state.luma_task_id, []).append(now())
        await asyncio.sleep(0.1)
        status = LumaTaskStatus.SUCCESS if now() >= ends else LumaTaskStatus.GENERATING
        created_at = datetime.fromtimestamp(began, UTC)
        task = LumaTask(state.luma_task_id, status, ("https://example.com/o.mp4",), created_at=created_at)
        return state.on_status(task, now())

    async def close(self) -> None: ...


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    """Waits for jobs, ten at a time, each of which takes a few minutes; returns the client that checked them."""
    monkeypatch.setattr(poller_module, "time", SimpleNamespace(time=now))

    def _wait(
        service: str = "luma", requests_per_second: float = 1.0, number: int = 120, at_a_time: int = 10
    ) -> Client:
        client, rng = Client(requests_per_second, service), random.Random(1)

        async def main() -> None:
            poller: Any = Poller(client)  # type: ignore[arg-type]
            slots = asyncio.Semaphore(at_a_time)

            async def one(name: str) -> None:
                async with slots:
                    client.jobs[name] = now(), now() + rng.gauss(180, 15)
                    await poller.wait_for(PollState(name, poll_interval=POLL_INTERVAL, service=service))

            await asyncio.gather(*(one(str(number)) for number in range(number)))
            await poller.close()

        run(main())
        return client

    return _wait


def lateness(client: Client) -> float:
    """Return the mean seconds from a job's end to the check that found it, once enough have ended."""
    late = [client.checks[name][-1] - ends for name, (_, ends) in list(client.jobs.items())[40:]]
    return sum(late) / len(late)


def number_of_checks(client: Client) -> int:
    return sum(map(len, client.checks.values()))


def test_ends_are_found_sooner_than_the_poll_interval_alone_would_find_them(wait):
    with_callbacks, without = wait("kie"), wait("luma")
    assert lateness(with_callbacks) == pytest.approx(POLL_INTERVAL / 2, rel=0.2)
    assert lateness(without) < 0.6 * lateness(with_callbacks)
    assert number_of_checks(without) < 1.3 * number_of_checks(with_callbacks)


def test_poll_interval_is_the_longest_time_between_two_checks_and_five_seconds_are_the_shortest(wait):
    client = wait("luma", requests_per_second=100.0)
    gaps = [later - earlier for checks in client.checks.values() for earlier, later in pairwise(checks)]
    assert min(gaps) >= poller_module.SHORTEST_INTERVAL
    assert max(gaps) <= POLL_INTERVAL + 1
    assert min(gaps) < POLL_INTERVAL / 2


def test_sooner_checks_yield_to_those_that_are_due(wait):
    busy = {"requests_per_second": 0.3, "number": 60}
    ordinary, sooner = wait("kie", **busy), wait("luma", **busy)
    assert lateness(sooner) < 1.1 * lateness(ordinary)

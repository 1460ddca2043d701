# SPDX-License-Identifier: Apache-2.0
"""Jobs whose status checks get no answer do not hold up those of the others."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from contextlib import suppress
from statistics import mean, quantiles

import pytest

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.core.poll_state import PollOutcome, PollState
from airflow_provider_luma.core.rate_limit import MAX_UNANSWERED
from airflow_provider_luma.exceptions import LumaUnavailableError
from airflow_provider_luma.waiting.poller import Poller
from harness.simulated_clock import run

pytestmark = pytest.mark.slow

#: Seconds between two status checks, and after which a client gives one up.
POLL_INTERVAL, TIMEOUT = 30.0, 30.0


class Client:
    """Gets an answer about healthy jobs, and waits for one about the others; remembers how late each check was."""

    def __init__(self, limit: float) -> None:
        self.limit, self.unanswered, self.most_unanswered = limit, 0, 0
        #: Seconds that the connection takes to be read, and how often that fails before.
        self.reading, self.unreadable = 0.0, 0
        self.sent: list[float] = []
        self.lateness: defaultdict[str, list[float]] = defaultdict(list)
        self._due: dict[str, float] = {}
        self._read_at: float | None = None

    async def get_requests_per_second(self) -> float:
        if self._read_at is None:
            self._read_at = asyncio.get_running_loop().time() + self.reading
        await asyncio.sleep(max(0.0, self._read_at - asyncio.get_running_loop().time()))
        if self.unreadable:
            self.unreadable, self._read_at = self.unreadable - 1, None
            raise OSError("the secrets backend is down")
        return self.limit

    def on_unreadable(self, state: PollState, error: Exception) -> PollOutcome:
        return state.on_error(LumaUnavailableError(None, str(error)), 0.0)

    async def poll(self, state: PollState) -> PollOutcome:
        clock = asyncio.get_running_loop().time
        self.sent.append(clock())
        kind = state.luma_task_id.split()[0]
        self.lateness[kind].append(clock() - self._due.get(state.luma_task_id, 0.0))
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        await asyncio.sleep(TIMEOUT if kind == "hanging" else 0.2)
        self.unanswered -= 1
        if kind == "hanging":
            outcome = state.on_error(LumaUnavailableError(None, "no answer"), 0.0)
        else:
            outcome = state.on_status(LumaTask(state.luma_task_id, LumaTaskStatus.GENERATING), 0.0)
        self._due[state.luma_task_id] = clock() + outcome.delay
        return outcome

    async def close(self) -> None:
        pass


def simulate(
    *, hanging: int, healthy: int, limit: float, seconds: float = 600, reading: float = 0.0, unreadable: int = 0
) -> Client:
    """Wait for jobs, some of which get no answer, within one rate limit."""
    client = Client(limit)
    client.reading, client.unreadable = reading, unreadable
    ids = [*(f"hanging {i}" for i in range(hanging)), *(f"healthy {i}" for i in range(healthy))]
    random.Random(f"{hanging} {healthy}").shuffle(ids)

    async def main() -> None:
        poller = Poller(client)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for luma_task_id in ids:
                    group.create_task(poller.wait_for(PollState(luma_task_id, poll_interval=POLL_INTERVAL)))
        await poller.close()

    run(main())
    return client


def p95(lateness: list[float]) -> float:
    return quantiles(lateness, n=20)[-1]


@pytest.mark.parametrize("hanging", [10, 40, 150])
def test_checks_of_healthy_jobs_are_in_time_beside_jobs_whose_answers_hang(hanging):
    client = simulate(hanging=hanging, healthy=20, limit=10)
    assert p95(client.lateness["healthy"]) <= 5
    assert len(client.lateness["healthy"]) > 0.9 * 20 * 600 / POLL_INTERVAL


@pytest.mark.parametrize(("limit", "hanging", "healthy"), [(0.2, 5, 1), (0.5, 10, 3), (0.9, 15, 8)])
def test_checks_of_healthy_jobs_are_in_time_below_one_request_a_second(limit, hanging, healthy):
    client = simulate(hanging=hanging, healthy=healthy, limit=limit, seconds=1800)
    assert p95(client.lateness["healthy"][2 * healthy :]) <= 5 + 1 / limit


def test_where_not_all_checks_can_be_sent_in_time_those_of_healthy_jobs_go_first():
    client = simulate(hanging=40, healthy=16, limit=1)
    assert mean(client.lateness["healthy"]) < mean(client.lateness["hanging"]) / 2
    assert len(client.lateness["hanging"]) > 3 * 40  # and none starves


def test_hanging_requests_are_bounded_and_do_not_stop_the_healthy_ones():
    client = simulate(hanging=600, healthy=20, limit=50)
    assert client.most_unanswered <= MAX_UNANSWERED
    assert p95(client.lateness["healthy"][20:]) <= 5
    assert len(client.lateness["hanging"]) > 600


@pytest.mark.parametrize(("hanging", "limit"), [(40, 10), (600, 50), (10, 0.5)])
def test_no_more_checks_than_the_limit_are_sent_in_any_second(hanging, limit):
    sent = simulate(hanging=hanging, healthy=20, limit=limit).sent
    most = max(1, int(limit))
    assert all(later - first >= 1 - 1e-6 for first, later in itertools.pairwise(sent[::most]))


@pytest.mark.parametrize("unreadable", [0, 1, 30])
def test_checks_that_waited_for_the_connection_to_be_read_are_not_sent_together(unreadable):
    client = simulate(hanging=0, healthy=40, limit=5, seconds=300, reading=20, unreadable=unreadable)
    assert len(client.sent) > 100
    assert all(later - first >= 1 - 1e-6 for first, later in itertools.pairwise(client.sent[::5]))

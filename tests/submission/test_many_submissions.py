# SPDX-License-Identifier: Apache-2.0
"""
More jobs at once than Luma accepts are all submitted, at the rate it accepts, by few worker slots and one triggerer.

The limit is the service's own, 20 submissions in 10 seconds, and so is the time that all this takes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.operators.luma import LumaModifyOperator
from tests.support.calls import submissions
from tests.support.task_instance import TaskInstance

SLOTS = 16
#: Also for measuring: MANY_JOBS=200 and pytest's -s print what came of it.
JOBS = int(os.environ.get("MANY_JOBS", "60"))


class Cluster:
    """
    Runs tasks in worker slots and their triggers in one event loop; only Airflow's scheduler is left out.

    :ivar held: seconds for which each piece of work held a slot, to be printed
    """

    def __init__(self, video_url: str) -> None:
        self.held: list[float] = []
        self._video_url = video_url
        self._workers = ThreadPoolExecutor(SLOTS)

    async def run(self, number: int) -> list[dict[str, Any]]:
        with self._workers:
            return await asyncio.gather(*(self._run() for _ in range(number)))

    async def _run(self) -> dict[str, Any]:
        method, kwargs = "execute", {}
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._workers, self._work, method, kwargs)
            except TaskDeferred as deferred:
                (event,) = [event.payload async for event in deferred.trigger.run()]
                method, kwargs = deferred.method_name, {**(deferred.kwargs or {}), "event": event}

    def _work(self, method: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        time.sleep(random.uniform(0.1, 1.0))  # a worker's process starts
        operator = LumaModifyOperator(
            task_id="modify", prompt="make it snow", video_url=self._video_url, wait_for_completion=False
        )
        context: Any = {"ti": TaskInstance(max_tries=0)}
        try:
            return getattr(operator, method)(context, **kwargs)
        finally:
            self.held.append(time.monotonic() - started)


@pytest.mark.long
def test_all_jobs_are_submitted_at_the_rate_that_luma_accepts_with_few_refusals(luma, luma_conn, monkeypatch):
    monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_DEFERRAL", 1.0)
    monkeypatch.setattr("airflow_provider_luma.submission.queue.SUBMISSION_WINDOW", 10.0)
    luma.configure(submissions_per_10_seconds=20, processing_seconds=600, max_running=JOBS, credits=20 * JOBS)
    cluster = Cluster(luma.sample_url)
    started = time.monotonic()
    results = asyncio.run(cluster.run(JOBS))
    took = time.monotonic() - started
    refused = [call for call in submissions(luma) if call.code == 429]
    print(
        f"{JOBS} jobs: {luma.accepted} accepted in {took:.0f} s, {len(refused)} refused, "
        f"a slot held for {sum(cluster.held) / JOBS:.1f} s a job, {max(cluster.held):.1f} s at most at a time"
    )
    assert luma.accepted == len({result["luma_task_id"] for result in results}) == JOBS
    # Few are refused twice, because those that have not tried yet use up what others were permitted.
    assert len(refused) <= 1.2 * JOBS
    assert len(submissions(luma)) == len(cluster.held), "no slot is held while a task is queued"

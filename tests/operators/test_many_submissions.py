# SPDX-License-Identifier: Apache-2.0
"""
More jobs at once than Luma accepts: sixteen worker slots, one triggerer, and only Airflow's scheduler left out.

The limit is the service's own, 20 submissions in 10 seconds, and so is the time that all this takes.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma.operators.luma import LumaModifyOperator

SLOTS = 16
#: Also for measuring: MANY_JOBS=200 and pytest's -s print what came of it.
JOBS = int(os.environ.get("MANY_JOBS", "60"))


class Cluster:
    """
    Runs tasks in worker slots and their triggers in one event loop.

    :ivar held: seconds for which each piece of work held a slot
    """

    def __init__(self, video_url: str, *, is_mapped: bool) -> None:
        self.held: list[float] = []
        self._video_url = video_url
        self._is_mapped = is_mapped
        self._xcoms: dict[int, dict[str, Any]] = {}
        self._workers = ThreadPoolExecutor(SLOTS)
        self._lock = threading.Lock()

    async def run(self, number: int) -> list[dict[str, Any]]:
        with self._workers:
            return await asyncio.gather(*(self._run(i) for i in range(number)))

    async def _run(self, number: int) -> dict[str, Any]:
        method, kwargs = "execute", {}
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._workers, self._work, number, method, kwargs
                )
            except TaskDeferred as deferred:
                (event,) = [event.payload async for event in deferred.trigger.run()]
                method, kwargs = deferred.method_name, {**(deferred.kwargs or {}), "event": event}

    def _work(self, number: int, method: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        time.sleep(random.uniform(0.1, 1.0))  # a worker's process starts
        operator = LumaModifyOperator(
            task_id="modify", prompt="make it snow", video_url=self._video_url, wait_for_completion=False
        )
        context: Any = {"ti": self._task_instance(number)}
        try:
            return getattr(operator, method)(context, **kwargs)
        finally:
            self.held.append(time.monotonic() - started)

    def _task_instance(self, number: int) -> Any:
        cluster = self

        class TaskInstance:
            dag_id, run_id, task_id = "films", "manual__1", "modify"
            map_index = number if cluster._is_mapped else -1
            try_number, max_tries = 1, 0

            def xcom_push(self, key: str, value: Any) -> None:
                with cluster._lock:
                    cluster._xcoms.setdefault(number, {})[key] = value

            def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
                with cluster._lock:
                    return [pushed[key] for pushed in cluster._xcoms.values() if key in pushed] or [None]

        return TaskInstance()


# A mapped run's tasks tell each other. Runs of their own cannot, so each is refused once; and some twice, as those that
# have not tried yet take turns away from those that wait.
@pytest.mark.parametrize(("is_mapped", "most_refused"), [(True, SLOTS), (False, 1.2 * JOBS)], ids=["mapped", "runs"])
@pytest.mark.timeout(60 + 2 * JOBS)
@pytest.mark.long
def test_all_are_submitted_at_the_services_pace(luma, luma_conn, monkeypatch, is_mapped, most_refused):
    monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_WAIT", 1.0)
    monkeypatch.setattr("airflow_provider_luma.poller.SUBMISSION_WINDOW", 10.0)
    luma.configure(submissions_per_10_seconds=20, processing_seconds=600, max_running=JOBS, credits=20 * JOBS)
    cluster = Cluster(luma.sample_url, is_mapped=is_mapped)
    started = time.monotonic()
    results = asyncio.run(cluster.run(JOBS))
    took = time.monotonic() - started
    refused = [call for call in luma.calls if call.on == "submit" and call.code == 429]
    print(
        f"{JOBS} jobs: {luma.accepted} accepted in {took:.0f} s, {len(refused)} refused, "
        f"a slot held for {sum(cluster.held) / JOBS:.1f} s a job, {max(cluster.held):.1f} s at most at a time"
    )
    assert luma.accepted == len({result["luma_task_id"] for result in results}) == JOBS
    assert len(refused) <= most_refused
    assert took < 30 + 0.6 * JOBS, "20 at once, and after ten seconds the others at nearly two a second"
    assert max(cluster.held) < 5, "no slot is held while a task waits for its turn"

# SPDX-License-Identifier: Apache-2.0
"""
Many jobs waiting in one event loop, with and without the service's limit of 10 status calls a second.

Ours beside the HTTP provider's deferrable sensor (its trigger, with the smallest check of the body that makes it wait
for a job at all), and beside the loop of the service's quickstart, made asynchronous. The simulator is a process of
its own, so that the processor time is that of the waiting alone. ``WAITING_JOBS=100,500,1000`` sets how many jobs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
from airflow.providers.common.compat.sdk import AirflowException
from airflow.providers.http.hooks.http import HttpAsyncHook
from airflow.providers.http.triggers.http import HttpSensorTrigger

from airflow_provider_luma.triggers import luma as triggers
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from demo.__main__ import simulator

#: Seconds: how long jobs take, at least and up to so much longer, and how long a contender is watched.
FASTEST, SPREAD, PATIENCE = 60, 60, 240
LOOK_EVERY = 5
NO_LIMIT = 1_000_000


class HookThatReadsTheBody(HttpAsyncHook):
    """Take "still generating" for "not there yet", which the sensor's trigger waits out."""

    async def run(self, *arguments: Any, **options: Any) -> Any:
        """Call, and read the answer as a sensor's response_check would."""
        response = await super().run(*arguments, **options)
        data = json.loads(await response.read()).get("data") or {}
        if not data.get("successFlag"):
            raise AirflowException("404:still generating")
        return response


class SensorTrigger(HttpSensorTrigger):
    """The HTTP provider's own, with that hook."""

    def _get_async_hook(self) -> HttpAsyncHook:
        return HookThatReadsTheBody(method=self.method, http_conn_id=self.http_conn_id)


async def ours(luma_task_id: str) -> None:
    """Wait as this package does."""
    trigger = LumaTaskTrigger(luma_task_id, "luma_bench", LOOK_EVERY, time.time() + PATIENCE)
    async for event in trigger.run():
        assert "task" in event.payload, event.payload


async def http_sensor(luma_task_id: str) -> None:
    """Wait as the HTTP provider's deferrable sensor does."""
    path = f"/api/v1/modify/record-info?taskId={luma_task_id}"
    async for _ in SensorTrigger(endpoint=path, http_conn_id="http_bench", poke_interval=LOOK_EVERY).run():
        return


async def quickstart(luma_task_id: str) -> None:
    """Wait as the service's quickstart shows: an answer that is not a success ends it."""
    base_url, key = os.environ["BENCH_LUMA"], os.environ["BENCH_KEY"]
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        while True:
            async with session.get(f"{base_url}/api/v1/modify/record-info", params={"taskId": luma_task_id}) as answer:
                document = await answer.json()
            if answer.status != 200 or document["code"] != 200:
                raise AirflowException(document["msg"])
            if document["data"]["successFlag"]:
                return
            await asyncio.sleep(LOOK_EVERY)


CONTENDERS: dict[str, Callable[[str], Awaitable[None]]] = {
    "ours": ours,
    "http sensor": http_sensor,
    "quickstart": quickstart,
}


def main() -> None:
    """Measure, and print a table."""
    logging.disable(logging.WARNING)  # each refusal would be a line
    triggers.SHORTEST_WAIT = 0.0  # a courtesy towards Airflow's scheduler, which is not here
    numbers = [int(number) for number in os.environ.get("WAITING_JOBS", "100").split(",")]
    print(f"Jobs of {FASTEST} to {FASTEST + SPREAD} s waiting in one event loop, looked at every {LOOK_EVERY} s;")
    print(f"given up after {PATIENCE} s:\n")
    print(
        "| jobs | limit | | seen | late p50 / p95 / p99 s | mean | calls | refused | CPU ms a call | connections | MB |"
    )
    print("|---:|---|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for number in numbers:
        for limit in (10, NO_LIMIT):
            for name in CONTENDERS:
                with TemporaryDirectory() as folder, simulator(Path(folder, "simulator.txt"), "unused") as luma:
                    print(_measured(luma, name, number, limit), flush=True)


def _measured(luma: str, name: str, number: int, limit: int) -> str:
    key = "simulator-key"
    control = httpx.Client(base_url=luma, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    settings = {
        "processing_seconds": FASTEST,
        "processing_jitter": SPREAD,
        "submissions_per_10_seconds": NO_LIMIT,
        "max_running": NO_LIMIT,
        "credits": 1e9,
        "status_calls_per_second": limit,
        "webhook_secret": None,
    }
    control.patch("/simulator/settings", json=settings).raise_for_status()
    extra = {"requests_per_second": 10 if limit == 10 else 1000}
    os.environ["AIRFLOW_CONN_LUMA_BENCH"] = json.dumps(
        {"conn_type": "luma", "host": luma, "password": key, "extra": extra}
    )
    os.environ["AIRFLOW_CONN_HTTP_BENCH"] = json.dumps(
        {"conn_type": "http", "host": luma, "extra": {"Authorization": f"Bearer {key}"}}
    )
    os.environ.update(BENCH_LUMA=luma, BENCH_KEY=key)
    body = {"prompt": "Make it snow", "videoUrl": f"{luma}/files/sample.mp4"}
    ids = [control.post("/api/v1/modify/generate", json=body).json()["data"]["taskId"] for _ in range(number)]

    memory, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    seen = asyncio.run(_wait(CONTENDERS[name], ids))
    cpu, memory = time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    state = control.get("/simulator/state").json()
    looks = [call for call in state["calls"] if call["on"] == "status"]
    control.patch("/simulator/settings", json={"status_calls_per_second": NO_LIMIT}).raise_for_status()
    late = []
    for luma_task_id, at in seen.items():
        record = control.get("/api/v1/modify/record-info", params={"taskId": luma_task_id}).json()["data"]
        late.append(at - record["completeTime"] / 1000)
    calls, refused = len(looks), len([call for call in looks if call["code"] == 429])
    quantiles = statistics.quantiles(late, n=100) if len(late) > 1 else [0.0] * 99
    return (
        f"| {number} | {'10/s' if limit == 10 else 'none'} | {name} | {len(late)} "
        f"| {quantiles[49]:.1f} / {quantiles[94]:.1f} / {quantiles[98]:.1f} | {statistics.mean(late or [0]):.1f} "
        f"| {calls} | {100 * refused / max(1, calls):.1f} % | {1000 * cpu / max(1, calls):.2f} "
        f"| {state['connections']} | {memory / 1024:.0f} |"
    )


async def _wait(contender: Callable[[str], Awaitable[None]], ids: list[str]) -> dict[str, float]:
    """Start all at once; return when each finish was seen."""
    seen: dict[str, float] = {}

    async def one(luma_task_id: str) -> None:
        await contender(luma_task_id)
        seen[luma_task_id] = time.time()

    tasks = [asyncio.create_task(one(luma_task_id)) for luma_task_id in ids]
    _, unfinished = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


if __name__ == "__main__":
    main()

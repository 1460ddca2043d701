# SPDX-License-Identifier: Apache-2.0
"""
Many jobs waiting in one event loop, under the service's limit of 10 status calls a second.

Our trigger is compared with that of the HTTP provider's deferrable sensor (with the smallest check of the body that
makes it wait for a job at all), and with the loop of the service's quickstart, made asynchronous. Each runs in its own
process, with its own simulator, so that processor time and memory are those of the waiting alone.
``WAITING_JOBS=500`` sets how many jobs.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
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

#: Seconds: the shortest job, by how much others may be longer, and when a contender is stopped.
FASTEST, SPREAD, TIMEOUT = 60, 60, 240
JOBS = int(os.environ.get("WAITING_JOBS", "500"))
POLL_INTERVAL = 5
#: Status calls that the service allows in a second.
LIMIT = 10
NO_LIMIT = 1_000_000
PICTURE = Path(__file__).parent.parent / "docs" / "waiting.svg"


class HookThatReadsTheBody(HttpAsyncHook):
    """Report "still generating" as "not found" (404), which the sensor's trigger waits out."""

    async def run(self, *arguments: Any, **options: Any) -> Any:
        """Call, and read the answer as a sensor's response_check would."""
        response = await super().run(*arguments, **options)
        data = json.loads(await response.read()).get("data") or {}
        if not data.get("successFlag"):
            raise AirflowException("404:still generating")
        return response


class SensorTrigger(HttpSensorTrigger):
    """The HTTP provider's own, with that hook."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        return f"{__name__}.{type(self).__qualname__}", super().serialize()[1]

    def _get_async_hook(self) -> HttpAsyncHook:
        return HookThatReadsTheBody(method=self.method, http_conn_id=self.http_conn_id)


async def ours(luma_task_id: str) -> None:
    """Wait as this package does."""
    trigger = LumaTaskTrigger(luma_task_id, "luma_bench", POLL_INTERVAL, time.time() + TIMEOUT)
    async for event in trigger.run():
        assert "task" in event.payload, event.payload


async def http_sensor(luma_task_id: str) -> None:
    """Wait as the HTTP provider's deferrable sensor does."""
    path = f"/api/v1/modify/record-info?taskId={luma_task_id}"
    async for _ in SensorTrigger(endpoint=path, http_conn_id="http_bench", poke_interval=POLL_INTERVAL).run():
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
            await asyncio.sleep(POLL_INTERVAL)


CONTENDERS: dict[str, Callable[[str], Awaitable[None]]] = {
    "ours": ours,
    "http sensor": http_sensor,
    "quickstart": quickstart,
}
#: When refused, it asks again at once and keeps a processor busy, so the others are measured before it.
BUSY = "http sensor"


@dataclass
class Outcome:
    """
    What came of a contender's wait.

    :param ends: for each job, when it ended and when that was seen, in seconds from the first submission; None if
        it never was
    """

    ends: list[tuple[float, float | None]]
    calls: int
    refused: int
    most_in_a_second: int
    cpu: float
    connections: int
    megabytes: float

    @property
    def late(self) -> list[float]:
        """How late the ends of jobs were seen, in seconds; ends that were never seen are left out."""
        return [max(0.0, seen - ended) for ended, seen in self.ends if seen is not None]

    def row(self) -> str:
        """Return the cells of the table."""
        late = self.late
        p50, p95, p99 = (statistics.quantiles(late, n=100)[i] for i in (49, 94, 98)) if len(late) > 1 else [0.0] * 3
        return (
            f"| {len(late)} | {statistics.mean(late or [0]):.1f} | {p50:.1f} / {p95:.1f} / {p99:.1f} "
            f"| {self.calls / len(self.ends):.1f} | {100 * self.refused / max(1, self.calls):.1f} % "
            f"| {self.most_in_a_second} | {1000 * self.cpu / max(1, self.calls):.2f} | {self.connections} "
            f"| {self.megabytes:.0f} |"
        )


def main() -> None:
    """Measure, print a table, and draw."""
    print(
        f"{JOBS} jobs of {FASTEST} to {FASTEST + SPREAD} s waiting in one event loop, polled every {POLL_INTERVAL} s;"
    )
    print(f"{LIMIT} calls a second allowed; stopped after {TIMEOUT} s:\n")
    print(
        "| | seen | late: mean s | p50 / p95 / p99 s | calls a job | refused "
        "| most calls in a second | CPU ms a call | connections | MB more |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    outcomes = {
        **_at_the_same_time([name for name in CONTENDERS if name != BUSY]),
        **_at_the_same_time([BUSY]),
    }
    for name in CONTENDERS:
        print(f"| {name} {outcomes[name].row()}", flush=True)
    draw({name: outcomes[name] for name in CONTENDERS})


def draw(outcomes: dict[str, Outcome]) -> None:
    """Draw how the ends of jobs were seen."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "luma"  # the same picture is the same file
    figure, course = plt.subplots(figsize=(7, 4.2), layout="constrained")
    ended = sorted(end for end, _ in outcomes["ours"].ends)
    course.step(ended, range(1, len(ended) + 1), color="0.6", label="ended at Luma")
    for name, outcome in outcomes.items():
        seen = sorted(seen for _, seen in outcome.ends if seen is not None)
        until = max([TIMEOUT, *seen])
        course.step([0, *seen, until], [0, *range(1, len(seen) + 1), len(seen)], where="post", label=name)
    course.set(title=f"{JOBS} jobs, {LIMIT} calls a second", xlabel="seconds", ylabel="jobs", ylim=(0, None))
    course.legend()
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"\nDrawn: {PICTURE.name}")


def _at_the_same_time(names: list[str]) -> dict[str, Outcome]:
    command = [sys.executable, "-m", "benchmarks.waiting"]
    environment = {**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL"}  # each refusal would be a line
    running = {name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, env=environment) for name in names}
    outputs = {name: process.communicate()[0] for name, process in running.items()}
    assert not any(process.returncode for process in running.values()), outputs
    return {name: Outcome(**json.loads(output.splitlines()[-1])) for name, output in outputs.items()}


def one(name: str) -> None:
    """Let one contender wait, and print what came of it."""
    triggers.SHORTEST_DEFERRAL = 0.0  # it is for Airflow's scheduler, which does not run here
    with TemporaryDirectory() as folder, simulator(Path(folder, "simulator.txt"), "unused") as luma:
        print(json.dumps(asdict(_measured(luma, name))))


def _measured(luma: str, name: str) -> Outcome:
    key = "simulator-key"
    control = httpx.Client(base_url=luma, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    settings = {
        "processing_seconds": FASTEST,
        "processing_jitter": SPREAD,
        "submissions_per_10_seconds": NO_LIMIT,
        "max_running": NO_LIMIT,
        "credits": 1e9,
        "status_calls_per_second": LIMIT,
        "webhook_secret": None,
    }
    control.patch("/simulator/settings", json=settings).raise_for_status()
    os.environ["AIRFLOW_CONN_LUMA_BENCH"] = json.dumps({"conn_type": "luma", "host": luma, "password": key})
    os.environ["AIRFLOW_CONN_HTTP_BENCH"] = json.dumps(
        {"conn_type": "http", "host": luma, "extra": {"Authorization": f"Bearer {key}"}}
    )
    os.environ.update(BENCH_LUMA=luma, BENCH_KEY=key)
    body = {"prompt": "Make it snow", "videoUrl": f"{luma}/files/sample.mp4"}
    start = time.time()
    ids = [control.post("/api/v1/modify/generate", json=body).json()["data"]["taskId"] for _ in range(JOBS)]

    before = control.get("/simulator/state").json()["connections"]
    memory, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    seen = asyncio.run(_wait(CONTENDERS[name], ids))
    cpu, memory = time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    state = control.get("/simulator/state").json()
    status_calls = [call for call in state["calls"] if call["on"] == "status"]
    return Outcome(
        ends=[(_end(job) - start, _elapsed(start, seen.get(job["task_id"]))) for job in state["jobs"]],
        calls=len(status_calls),
        refused=sum(call["code"] == 429 for call in status_calls),
        most_in_a_second=most_in_a_second([call["at"] for call in status_calls]),
        cpu=cpu,
        connections=state["connections"] - before,
        megabytes=memory / 1024,
    )


def most_in_a_second(times: list[float]) -> int:
    """Return how many of these times lie within one second at most."""
    times, most, first = sorted(times), 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def _end(job: dict[str, Any]) -> float:
    """Return when a job has ended, or, if it is still running, will end."""
    return float((job["complete_time"] or job["create_time"] + 1000 * job["seconds"]) / 1000)


def _elapsed(start: float, at: float | None) -> float | None:
    return None if at is None else at - start


async def _wait(contender: Callable[[str], Awaitable[None]], ids: list[str]) -> dict[str, float]:
    """Start all at once; return when each finish was seen."""
    seen: dict[str, float] = {}

    async def one(luma_task_id: str) -> None:
        await contender(luma_task_id)
        seen[luma_task_id] = time.time()

    tasks = [asyncio.create_task(one(luma_task_id)) for luma_task_id in ids]
    _, unfinished = await asyncio.wait(tasks, timeout=TIMEOUT)
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1])
    else:
        main()

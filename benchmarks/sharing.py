# SPDX-License-Identifier: Apache-2.0
"""
Several triggerers on one account, which share the limit of 10 status calls a second without knowing of each other.

Each runs in its own process, with its own event loop and the default settings, against the same simulator. First, all
of them wait for 500 jobs until the last has ended; ``SHARING_LOOPS=1,2`` sets how many there are in each run. Then
two wait for jobs that do not end, and one is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from airflow_provider_luma.triggers import luma as triggers
from benchmarks.waiting import FASTEST, LIMIT, NO_LIMIT, SPREAD, ours
from demo.__main__ import simulator

JOBS = int(os.environ.get("SHARING_JOBS", "500"))
LOOPS = os.environ.get("SHARING_LOOPS", "1,2")
#: Seconds before one of two is killed, before the other one's rate is then measured, and for which it is measured.
KILLED_AFTER, SETTLED_AFTER, MEASURED = 90, 60, 20


@dataclass
class Account:
    """The simulated service, and the jobs that were submitted to it."""

    address: str
    control: httpx.Client
    ids: list[str]

    def state(self) -> dict[str, Any]:
        """Return what the service has seen."""
        return self.control.get("/simulator/state").json()

    def status_calls(self) -> list[dict[str, Any]]:
        """Return the status calls in their order."""
        return [call for call in self.state()["calls"] if call["on"] == "status"]

    def start(self, ids: list[str]) -> subprocess.Popen[str]:
        """Let a triggerer's event loop wait for some of the jobs."""
        connection = {"conn_type": "luma", "host": self.address, "password": "simulator-key"}
        environment = {
            **os.environ,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL",  # each refusal would be a line
            "AIRFLOW_CONN_LUMA_BENCH": json.dumps(connection),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sharing", "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(ids))
        process.stdin.close()
        process.stdin = None
        return process


@contextmanager
def account(**settings: Any) -> Iterator[Account]:
    """Run a service and submit the jobs."""
    unlimited = {"submissions_per_10_seconds": NO_LIMIT, "max_running": NO_LIMIT, "credits": 1e9}
    settings = {"status_calls_per_second": LIMIT, "webhook_secret": None, **unlimited, **settings}
    with TemporaryDirectory() as folder, simulator(Path(folder, "simulator.txt"), "unused") as address:
        headers = {"Authorization": "Bearer simulator-key"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as control:
            control.patch("/simulator/settings", json=settings).raise_for_status()
            body = {"prompt": "Make it snow", "videoUrl": f"{address}/files/sample.mp4"}
            answers = [control.post("/api/v1/modify/generate", json=body).json() for _ in range(JOBS)]
            yield Account(address, control, [answer["data"]["taskId"] for answer in answers])


def until_all_have_ended(number: int) -> str:
    """Let this many event loops wait for all the jobs; return a row of the table."""
    with account(processing_seconds=FASTEST, processing_jitter=SPREAD) as service:
        processes = [service.start(service.ids[i::number]) for i in range(number)]
        seen = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
        calls, jobs = service.status_calls(), service.state()["jobs"]
    ends = {job["task_id"]: job["complete_time"] / 1000 for job in jobs}
    late = [max(0.0, at - ends[luma_task_id]) for of_loop in seen for luma_task_id, at in of_loop.items()]
    means = [statistics.mean(max(0.0, at - ends[i]) for i, at in of_loop.items()) for of_loop in seen]
    refused = sum(call["code"] == 429 for call in calls)
    p50, p95 = (statistics.quantiles(late, n=100)[i] for i in (49, 94))
    return (
        f"| {number} | {len(late)} of {JOBS} | {statistics.mean(late):.1f} | {p50:.1f} / {p95:.1f} "
        f"| {', '.join(f'{mean:.1f}' for mean in means)} | {len(calls)} | {100 * refused / len(calls):.2f} % |"
    )


def one_is_killed() -> str:
    """Return what becomes of the rate when one of two event loops is killed."""
    with account(processing_seconds=3600) as service:
        first, second = (service.start(service.ids[i::2]) for i in range(2))
        time.sleep(KILLED_AFTER)
        first.kill()
        killed_at = time.time()
        time.sleep(SETTLED_AFTER + MEASURED)
        second.kill()
        calls = [(call["at"] - killed_at, call["code"] == 429) for call in service.status_calls()]
    both = [is_refused for at, is_refused in calls if -60 <= at < 0]
    alone = [is_refused for at, is_refused in calls if SETTLED_AFTER <= at < SETTLED_AFTER + MEASURED]
    course = [sum(start <= at < start + 10 for at, _ in calls) / 10 for start in range(0, SETTLED_AFTER, 10)]
    return (
        f"In the minute before one of two is killed: {both.count(False) / 60:.1f} calls a second accepted, "
        f"{100 * both.count(True) / len(both):.1f} % refused. After that, for ten seconds each: {course}; "
        f"and after a minute: {alone.count(False) / MEASURED:.1f}, {100 * alone.count(True) / len(alone):.1f} % refused"
    )


async def wait(ids: list[str]) -> dict[str, float]:
    """Wait for the jobs; return when the end of each was seen."""
    seen: dict[str, float] = {}

    async def one(luma_task_id: str) -> None:
        await ours(luma_task_id)
        seen[luma_task_id] = time.time()

    await asyncio.gather(*(one(luma_task_id) for luma_task_id in ids))
    return seen


def main() -> None:
    """Measure, and print."""
    print(f"{JOBS} jobs of {FASTEST} to {FASTEST + SPREAD} s, {LIMIT} calls a second allowed:\n")
    print("| event loops | seen | late: mean s | p50 / p95 s | mean of each s | calls | refused |")
    print("|---:|---:|---:|---:|---|---:|---:|")
    for number in LOOPS.split(","):
        print(until_all_have_ended(int(number)), flush=True)
    print(f"\n{one_is_killed()}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        triggers.SHORTEST_DEFERRAL = 0.0  # it is for Airflow's scheduler, which does not run here
        print(json.dumps(asyncio.run(wait(json.load(sys.stdin)))))
    else:
        main()

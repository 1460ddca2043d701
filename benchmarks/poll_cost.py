# SPDX-License-Identifier: Apache-2.0
"""
What a status check costs in a real triggerer, without any limit.

A thousand tasks are put into Airflow's database as deferred, and a triggerer takes them up: first with Airflow's own
``DateTimeTrigger``, which polls nothing and so shows what Airflow itself needs; then with the HTTP provider's sensor
trigger, with ours, and with one that does nothing but poll over one kept session, which is the least a trigger can do.
Connections are where most people have them, in Airflow's database, which is PostgreSQL if there is one on this machine.

``COST_JOBS=1000`` and ``COST_STARTS=3`` set how many tasks wait, and how often each triggerer is started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from benchmarks.triggerer import blocked, connect, triggerer_processes
from benchmarks.waiting import SensorTrigger
from harness.local_airflow import LocalAirflow
from harness.postgres import binaries, postgres

JOBS = int(os.environ.get("COST_JOBS", "1000"))
STARTS = int(os.environ.get("COST_STARTS", "3"))
#: Seconds between two status checks of a job, from a start until the cost is measured, and over which it is.
POLL_INTERVAL, WARM_UP, MEASURED = 5, 30, 60
NO_LIMIT = 1_000_000

DAG_FILE = f"""
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(dag_id="parked", schedule=None, max_active_tasks=2000):
    BashOperator.partial(task_id="modify", pool="without_slots").expand(bash_command=["true"] * {JOBS})
"""


class BareTrigger(BaseTrigger):
    """Does nothing but poll, over one session that all share: no limit, no error handling, no deadline."""

    session: aiohttp.ClientSession | None = None

    def __init__(self, luma_task_id: str) -> None:
        super().__init__()
        self.luma_task_id = luma_task_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments."""
        return f"benchmarks.poll_cost.{type(self).__qualname__}", {"luma_task_id": self.luma_task_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the job has ended."""
        if BareTrigger.session is None:
            headers = {"Authorization": f"Bearer {os.environ['BENCH_KEY']}"}
            BareTrigger.session = aiohttp.ClientSession(headers=headers)
        url = f"{os.environ['BENCH_LUMA']}/api/v1/modify/record-info"
        while True:
            async with BareTrigger.session.get(url, params={"taskId": self.luma_task_id}) as answer:
                if (await answer.json())["data"]["successFlag"]:
                    break
            await asyncio.sleep(POLL_INTERVAL)
        yield TriggerEvent({})


def trigger(kind: str, luma_task_id: str) -> BaseTrigger:
    """Return one that waits for a job."""
    far = datetime.now(UTC) + timedelta(hours=5)
    if kind == "ours":
        return LumaTaskTrigger(luma_task_id, "luma_bench", POLL_INTERVAL, far.timestamp())
    if kind == "http sensor":
        path = f"/api/v1/modify/record-info?taskId={luma_task_id}"
        return SensorTrigger(endpoint=path, http_conn_id="http_bench", poke_interval=POLL_INTERVAL)
    return BareTrigger(luma_task_id) if kind == "bare polling" else DateTimeTrigger(far)


def main() -> None:
    """Measure, and print."""
    settings = Settings(
        submissions_per_10_seconds=NO_LIMIT,
        max_running=NO_LIMIT,
        credits=1e9,
        processing_seconds=7200,
        status_calls_per_second=NO_LIMIT,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        luma = stack.enter_context(Simulator(settings))
        (folder / "dags").mkdir()
        (folder / "dags" / "parked.py").write_text(DAG_FILE)
        environment = {
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "AIRFLOW__TRIGGERER__CAPACITY": "2000",
            "BENCH_LUMA": luma.base_url,
            "BENCH_KEY": settings.api_key,
        }
        if programs := binaries():
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = stack.enter_context(postgres(programs))
        airflow = stack.enter_context(LocalAirflow(folder / "airflow", folder / "dags", environment))
        connect(airflow, luma)
        _schedule(airflow)
        (folder / "jobs.json").write_text(json.dumps(_submit(luma)))
        print(f"{JOBS} tasks deferred in one triggerer, each polled every {POLL_INTERVAL} s, over {MEASURED} s:\n")
        print(
            "| trigger | status checks | connections | CPU ms a check, beyond Airflow's own: event loop "
            "| its supervisor | both | warnings of a blocked event loop at each start, seconds |"
        )
        print("|---|---:|---:|---:|---:|---:|---|")
        idle = [0.0, 0.0]
        for kind in ("Airflow's DateTimeTrigger", "http sensor", "ours", "bare polling"):
            spent = _measure(airflow, luma, kind, folder / "jobs.json", idle)
            idle = idle if any(idle) else spent


def _submit(luma: Simulator) -> list[str]:
    body = {"prompt": "Make it snow", "videoUrl": luma.sample_url}
    headers = {"Authorization": f"Bearer {luma.settings.api_key}"}
    with httpx.Client(base_url=luma.base_url, headers=headers) as client:
        answers = [client.post("/api/v1/modify/generate", json=body) for _ in range(JOBS)]
    return [answer.json()["data"]["taskId"] for answer in answers]


def _schedule(airflow: LocalAirflow) -> None:
    """Have Airflow schedule the tasks, which no slot lets run; then only the triggerer, and what it needs, runs."""
    airflow.call("POST", "/pools", json={"name": "without_slots", "slots": 0})
    path = f"/dags/parked/dagRuns/{airflow.trigger('parked')}/taskInstances"
    airflow.wait_until(
        lambda: airflow.call("GET", path, params={"limit": 1, "state": ["scheduled"]})["total_entries"] == JOBS,
        "the tasks to be scheduled",
        seconds=300,
    )
    airflow.stop("scheduler")
    airflow.stop("dag-processor")


def park(kind: str, jobs: list[str]) -> None:
    """Put the tasks into Airflow's database as deferred. Runs with the environment of that Airflow."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        tasks = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == "parked")).all()
        for task, luma_task_id in zip(tasks, jobs, strict=True):
            row = Trigger.from_object(trigger(kind, luma_task_id))
            session.add(row)
            session.flush()
            task.state, task.trigger_id, task.next_method, task.try_number = "deferred", row.id, "resume", 1


def _measure(airflow: LocalAirflow, luma: Simulator, kind: str, jobs: Path, idle: list[float]) -> list[float]:
    """Let the triggers of a kind wait, print a row, and return what they cost each process of the triggerer."""
    airflow.stop("triggerer")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.poll_cost", kind, str(jobs)],
        env=airflow.environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    warnings = []
    for start in range(STARTS):
        if start:
            airflow.stop("triggerer", signal.SIGKILL)
        before = len(blocked(airflow))
        airflow.start("triggerer")
        airflow.wait_until(lambda: len(triggerer_processes(airflow)) == 3, "the triggerer", seconds=60)
        time.sleep(WARM_UP)
        warnings.append(" ".join(warning.partition(": ")[2] for warning in blocked(airflow)[before:]) or "none")
    checks, connections, spent = _status_checks(luma), luma.connections, _cpu_seconds(airflow)
    time.sleep(MEASURED)
    spent = [after - before for before, after in zip(spent, _cpu_seconds(airflow), strict=True)]
    checks, connections = _status_checks(luma) - checks, luma.connections - connections
    beyond = [1000 * (mine - own) / max(1, checks) for mine, own in zip(spent, idle, strict=True)]
    cells = [f"{checks:,}", f"{connections:,}", *(f"{ms:.2f}" for ms in (*beyond, sum(beyond)))]
    if not checks:
        cells = ["0", "0", *(f"{seconds:.1f} s" for seconds in (*spent, sum(spent)))]
    print(f"| {kind} | {' | '.join(cells)} | {'; '.join(warnings)} |", flush=True)
    return spent


def _status_checks(luma: Simulator) -> int:
    return sum(call.on == "status" for call in luma.calls)


def _cpu_seconds(airflow: LocalAirflow) -> list[float]:
    """Return what the event loop's process and its supervisor have used; the third one only serves logs."""
    supervisor, *children = triggerer_processes(airflow)
    [loop] = [child for child in children if "serve-logs" not in " ".join(child.cmdline())]
    return [sum(process.cpu_times()[:2]) for process in (loop, supervisor)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        park(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()

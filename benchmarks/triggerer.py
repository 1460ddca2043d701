# SPDX-License-Identifier: Apache-2.0
"""
Whether a thousand jobs are too many for a real triggerer.

The jobs wait for ten minutes under the service's limit of 10 status calls a second; halfway through, the triggerer is
killed and started again. Connections are where most people keep them: in Airflow's database, which is PostgreSQL if
that is installed on this machine.

``ENDURING_JOBS=1000`` and ``ENDURING_MINUTES=10`` set the sizes.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from airflow_provider_luma.simulator import Settings, Simulator
from benchmarks.waiting import most_in_a_second
from harness.local_airflow import LocalAirflow
from harness.postgres import binaries, postgres

JOBS = int(os.environ.get("ENDURING_JOBS", "1000"))
MINUTES = float(os.environ.get("ENDURING_MINUTES", "10"))
#: Jobs that a machine with two cores submits per second, at least; and the seconds over which they end.
STARTS_PER_SECOND, ENDING = 1.4, 400
NO_LIMIT = 1_000_000

DAG_FILE = f"""
from datetime import timedelta
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

with DAG(dag_id="nothing_of_ours", schedule=None):
    TimeDeltaSensor(task_id="wait", delta=timedelta(seconds=5), deferrable=True)

with DAG(dag_id="endurance", schedule=None, max_active_tasks=2000, params={{"video_url": ""}}):
    LumaModifyOperator.partial(
        task_id="modify", video_url="{{{{ params.video_url }}}}", luma_conn_id="luma_bench", timeout=7200
    ).expand(prompt=[f"Make it a snowy morning, take {{i % 3}}" for i in range({JOBS})])
"""


def main() -> None:
    """Measure, and print."""
    settings = Settings(submissions_per_10_seconds=NO_LIMIT, max_running=NO_LIMIT, credits=1e9)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        luma = stack.enter_context(Simulator(settings))
        (folder / "dags").mkdir()
        (folder / "dags" / "waiting_jobs.py").write_text(DAG_FILE)
        environment = {
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "AIRFLOW__TRIGGERER__CAPACITY": "2000",
        }
        if programs := binaries():
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = stack.enter_context(postgres(programs))
        airflow = stack.enter_context(LocalAirflow(folder / "airflow", folder / "dags", environment))
        connect(airflow, luma, limit=10)
        Endurance(airflow, luma).run()


def connect(airflow: LocalAirflow, luma: Simulator, limit: int = 1000) -> None:
    """Make the connections to the simulator; ours with this many status calls a second."""
    key = luma.settings.api_key
    for connection in (
        {"connection_id": "luma_bench", "conn_type": "luma", "password": key, "extra": {"requests_per_second": limit}},
        {"connection_id": "http_bench", "conn_type": "http", "extra": {"Authorization": f"Bearer {key}"}},
    ):
        body = {**connection, "host": luma.base_url, "extra": json.dumps(connection["extra"])}
        actions = [{"action": "create", "entities": [body], "action_on_existence": "overwrite"}]
        airflow.call("PATCH", "/connections", json={"actions": actions})


def triggerer_processes(airflow: LocalAirflow) -> list[psutil.Process]:
    """Return the triggerer's processes, the one that supervises the others first."""
    process = psutil.Process(airflow.processes["triggerer"].pid)
    return [process, *process.children(recursive=True)]


def blocked(airflow: LocalAirflow) -> list[str]:
    """Return when Airflow warned that its triggers' event loop was blocked, and for how many seconds."""
    lines = (airflow.logs / "triggerer.txt").read_text().splitlines()
    warnings = [line for line in lines if "thread was blocked" in line]
    return [f"{line[11:19]}: {line.partition('blocked for ')[2].split()[0]}" for line in warnings]


def _megabytes(airflow: LocalAirflow) -> float:
    return sum(process.memory_full_info().uss for process in triggerer_processes(airflow)) / 2**20


class Endurance:
    """A thousand jobs, from the first submission to the end of the last task, and what is measured meanwhile."""

    def __init__(self, airflow: LocalAirflow, luma: Simulator) -> None:
        self.airflow = airflow
        self.luma = luma
        self.megabytes: list[float] = []
        self.unhealthy = 0
        self.oldest_heartbeat = 0.0

    def run(self) -> None:
        """Let them wait and end, and print what was measured."""
        airflow, luma = self.airflow, self.luma
        submitting = JOBS / STARTS_PER_SECOND
        luma.reset()
        luma.configure(
            processing_seconds=submitting + MINUTES * 60, processing_jitter=ENDING, status_calls_per_second=10
        )
        first = airflow.trigger("nothing_of_ours")
        airflow.wait_until(lambda: airflow.run_state("nothing_of_ours", first) == "success", "a sensor", seconds=120)
        print(f"warnings of a blocked event loop before any trigger of ours: {blocked(self.airflow)}", flush=True)
        started = time.time()
        run_id = airflow.trigger("endurance", video_url=luma.sample_url)
        self._wait_until_all_wait(run_id)
        all_wait = time.time()
        print(f"{JOBS} jobs wait, {all_wait - started:.0f} s after the start of the run", flush=True)
        self._observe(until=all_wait + MINUTES * 30)
        memory_before, self.megabytes = self.megabytes, []
        airflow.stop("triggerer", signal.SIGKILL)
        airflow.start("triggerer")
        killed = time.time()
        airflow.wait_until(lambda: self._heartbeat_age() < time.time() - killed, "the new triggerer", seconds=120)
        print(f"killed and restarted the triggerer; its first heartbeat after {time.time() - killed:.0f} s", flush=True)
        self._observe(until=all_wait + MINUTES * 60)
        memory_after = list(self.megabytes)
        self._observe(until=time.time() + 3600, run_id=run_id)
        self._report(run_id, memory_before, memory_after)

    def _wait_until_all_wait(self, run_id: str) -> None:
        path = f"/dags/endurance/dagRuns/{run_id}/taskInstances"

        def deferred() -> int:
            return int(self.airflow.call("GET", path, params={"limit": 1, "state": ["deferred"]})["total_entries"])

        self.airflow.wait_until(
            lambda: self.luma.accepted == JOBS and deferred() == JOBS,
            f"{JOBS} jobs to wait",
            seconds=JOBS / STARTS_PER_SECOND + 300,
            every=2,
        )

    def _observe(self, until: float, run_id: str | None = None) -> None:
        while time.time() < until:
            if run_id and self.airflow.run_state("endurance", run_id) in ("success", "failed"):
                return
            health = self.airflow.call("GET", "/monitor/health")["triggerer"]
            self.unhealthy += health["status"] != "healthy"
            self.oldest_heartbeat = max(self.oldest_heartbeat, self._heartbeat_age())
            self.megabytes.append(_megabytes(self.airflow))
            time.sleep(5)

    def _heartbeat_age(self) -> float:
        latest = self.airflow.call("GET", "/monitor/health")["triggerer"]["latest_triggerer_heartbeat"]
        return (datetime.now(UTC) - datetime.fromisoformat(latest)).total_seconds()

    def _report(self, run_id: str, *memory: list[float]) -> None:
        status_calls = [call for call in self.luma.calls if call.on == "status"]
        tasks = self.airflow.tasks("endurance", run_id)
        seen: dict[str, list[float]] = defaultdict(list)
        for call in status_calls:
            if call.code == 200:
                seen[call.task_id or ""].append(call.at)
        late = [
            next(at for at in seen[job.task_id] if at >= job.complete_time / 1000) - job.complete_time / 1000
            for job in self.luma.jobs
            if job.complete_time
        ]
        quantiles = statistics.quantiles(late, n=100)
        print(f"tasks: {dict(Counter(task['state'] for task in tasks))}, tries {max(t['try_number'] for t in tasks)}")
        print(f"submissions accepted: {self.luma.accepted}")
        refused = sum(call.code == 429 for call in status_calls)
        print(f"status calls: {len(status_calls)}, refused {refused}")
        print(f"most in any second: {most_in_a_second([call.at for call in status_calls])}")
        print(
            f"from a job's end to the status check that found it: mean {statistics.mean(late):.1f} s, "
            f"p50 {quantiles[49]:.1f}, p95 {quantiles[94]:.1f}, p99 {quantiles[98]:.1f}"
        )
        for when, megabytes in zip(("before the kill", "after it"), memory, strict=True):
            tenth = max(1, len(megabytes) // 10)
            print(
                f"memory of the triggerer {when}: {statistics.mean(megabytes[:tenth]):.0f} MB at first, "
                f"{statistics.mean(megabytes[-tenth:]):.0f} MB at last"
            )
        print(f"health checks that failed: {self.unhealthy}; oldest heartbeat {self.oldest_heartbeat:.1f} s")
        print(f"warnings of a blocked event loop, those included: {blocked(self.airflow)}", flush=True)


if __name__ == "__main__":
    main()

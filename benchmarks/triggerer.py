# SPDX-License-Identifier: Apache-2.0
"""
What waiting costs in a real triggerer, and whether a thousand jobs are too many for it.

First the cost: as many jobs wait with ours, then with the HTTP provider's own sensor trigger, in the same triggerer.
Then the endurance: a thousand jobs wait in it for ten minutes under the service's limit of 10 status calls a second;
half way through it is killed, and started again. Connections are where most people have them, in Airflow's database,
which is PostgreSQL if there is one on this machine.

``COST_JOBS=300``, ``ENDURING_JOBS=1000`` and ``ENDURING_MINUTES=10`` set the sizes; 0 jobs leave that part out.
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
from demo.local_airflow import LocalAirflow
from demo.postgres import binaries, postgres

COST_JOBS = int(os.environ.get("COST_JOBS", "300"))
JOBS = int(os.environ.get("ENDURING_JOBS", "1000"))
MINUTES = float(os.environ.get("ENDURING_MINUTES", "10"))
#: Seconds over which the cost is measured, and between two looks at each job then.
MEASURED, LOOK_EVERY = 60, 10
#: Jobs that a machine of two cores gets submitted a second, at least; and the seconds over which they end.
STARTS_PER_SECOND, ENDING = 1.4, 400
NO_LIMIT = 1_000_000

DAG_FILE = """
import json, os
from datetime import timedelta
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG, BaseOperator
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaModifyOperator
from benchmarks.waiting import SensorTrigger

video_url, look_every = os.environ["BENCH_VIDEO_URL"], int(os.environ["BENCH_LOOK_EVERY"])


def prompts(number):
    return [f"Make it a snowy morning, take {i % 3}" for i in range(int(number))]


class ModifyWithHttpSensor(BaseOperator):
    def __init__(self, *, prompt, **kwargs):
        super().__init__(**kwargs)
        self.prompt = prompt

    def execute(self, context):
        luma_task_id = LumaHook("luma_bench").modify_video(self.prompt, video_url)
        path = f"/api/v1/modify/record-info?taskId={luma_task_id}"
        trigger = SensorTrigger(endpoint=path, http_conn_id="http_bench", poke_interval=look_every)
        self.defer(trigger=trigger, method_name="done")

    def done(self, context, event):
        return event


with DAG(dag_id="ours", schedule=None, max_active_tasks=2000):
    LumaModifyOperator.partial(
        task_id="modify", video_url=video_url, luma_conn_id="luma_bench", poll_interval=look_every, timeout=7200
    ).expand(prompt=prompts(os.environ["BENCH_COST_JOBS"]))

with DAG(dag_id="http_sensor", schedule=None, max_active_tasks=2000):
    ModifyWithHttpSensor.partial(task_id="modify").expand(prompt=prompts(os.environ["BENCH_COST_JOBS"]))

with DAG(dag_id="nothing_of_ours", schedule=None):
    TimeDeltaSensor(task_id="wait", delta=timedelta(seconds=5), deferrable=True)

with DAG(dag_id="endurance", schedule=None, max_active_tasks=2000):
    LumaModifyOperator.partial(
        task_id="modify", video_url=video_url, luma_conn_id="luma_bench", timeout=7200
    ).expand(prompt=prompts(os.environ["BENCH_JOBS"]))
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
            "BENCH_VIDEO_URL": luma.sample_url,
            "BENCH_LOOK_EVERY": str(LOOK_EVERY),
            "BENCH_COST_JOBS": str(max(1, COST_JOBS)),
            "BENCH_JOBS": str(max(1, JOBS)),
        }
        if programs := binaries():
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = stack.enter_context(postgres(programs))
        airflow = stack.enter_context(LocalAirflow(folder / "airflow", folder / "dags", environment))
        _connect(airflow, luma)
        if COST_JOBS:
            _cost(airflow, luma)
        if JOBS:
            _connect(airflow, luma, limit=10)
            Endurance(airflow, luma).run()


def _connect(airflow: LocalAirflow, luma: Simulator, limit: int = 1000) -> None:
    key = luma.settings.api_key
    for connection in (
        {"connection_id": "luma_bench", "conn_type": "luma", "password": key, "extra": {"requests_per_second": limit}},
        {"connection_id": "http_bench", "conn_type": "http", "extra": {"Authorization": f"Bearer {key}"}},
    ):
        body = {**connection, "host": luma.base_url, "extra": json.dumps(connection["extra"])}
        actions = [{"action": "create", "entities": [body], "action_on_existence": "overwrite"}]
        airflow.call("PATCH", "/connections", json={"actions": actions})


def _triggerer(airflow: LocalAirflow) -> list[psutil.Process]:
    process = psutil.Process(airflow.processes["triggerer"].pid)
    return [process, *process.children(recursive=True)]


def _cpu_seconds(airflow: LocalAirflow) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _triggerer(airflow))


def _megabytes(airflow: LocalAirflow) -> float:
    return sum(process.memory_full_info().uss for process in _triggerer(airflow)) / 2**20


def _looks(luma: Simulator) -> int:
    return sum(call.on == "status" for call in luma.calls)


# -- cost -----------------------------------------------------------------------------------------------------------


def _cost(airflow: LocalAirflow, luma: Simulator) -> None:
    print(f"{COST_JOBS} jobs waiting in one triggerer, looked at every {LOOK_EVERY} s, for {MEASURED} s:\n")
    print("| | looks | connections | CPU s of the triggerer | without what it needs idle: ms a look |")
    print("|---|---:|---:|---:|---:|")
    started = _cpu_seconds(airflow)
    time.sleep(MEASURED)
    idle = _cpu_seconds(airflow) - started
    print(f"| idle | 0 | 0 | {idle:.1f} | |", flush=True)
    for dag_id in ("ours", "http_sensor"):
        luma.reset()
        luma.configure(
            processing_seconds=COST_JOBS / STARTS_PER_SECOND + MEASURED + 60, status_calls_per_second=NO_LIMIT
        )
        run_id = airflow.trigger(dag_id)
        _wait_until_all_wait(airflow, luma, dag_id, run_id, COST_JOBS)
        looks, connections, started = _looks(luma), luma.connections, _cpu_seconds(airflow)
        time.sleep(MEASURED)
        cpu = _cpu_seconds(airflow) - started
        looks, connections = _looks(luma) - looks, luma.connections - connections
        print(f"| {dag_id} | {looks} | {connections} | {cpu:.1f} | {1000 * (cpu - idle) / looks:.2f} |", flush=True)
        airflow.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"})
    print()


def _wait_until_all_wait(airflow: LocalAirflow, luma: Simulator, dag_id: str, run_id: str, number: int) -> None:
    def deferred() -> int:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return int(airflow.call("GET", path, params={"limit": 1, "state": ["deferred"]})["total_entries"])

    airflow.wait_until(
        lambda: luma.accepted == number and deferred() == number,
        f"{number} jobs to wait",
        seconds=number / STARTS_PER_SECOND + 300,
        every=2,
    )


# -- endurance ------------------------------------------------------------------------------------------------------


class Endurance:
    """A thousand jobs, from the first submission to the end of the last task, and what is seen meanwhile."""

    def __init__(self, airflow: LocalAirflow, luma: Simulator) -> None:
        self.airflow = airflow
        self.luma = luma
        self.megabytes: list[float] = []
        self.unhealthy = 0
        self.oldest_heartbeat = 0.0

    def run(self) -> None:
        """Let them wait and end, and print what was seen."""
        airflow, luma = self.airflow, self.luma
        submitting = JOBS / STARTS_PER_SECOND
        luma.reset()
        luma.configure(
            processing_seconds=submitting + MINUTES * 60, processing_jitter=ENDING, status_calls_per_second=10
        )
        first = airflow.trigger("nothing_of_ours")
        airflow.wait_until(lambda: airflow.run_state("nothing_of_ours", first) == "success", "a sensor", seconds=120)
        print(f"warnings of a blocked event loop before any trigger of ours: {self._blocked()}", flush=True)
        started = time.time()
        run_id = airflow.trigger("endurance")
        _wait_until_all_wait(airflow, luma, "endurance", run_id, JOBS)
        all_wait = time.time()
        print(f"{JOBS} jobs wait, {all_wait - started:.0f} s after the start of the run", flush=True)
        self._watch(until=all_wait + MINUTES * 30)
        memory_before, self.megabytes = self.megabytes, []
        airflow.stop("triggerer", signal.SIGKILL)
        airflow.start("triggerer")
        killed = time.time()
        airflow.wait_until(lambda: self._heartbeat_age() < time.time() - killed, "the new triggerer", seconds=120)
        print(f"killed and restarted the triggerer; its heart beat after {time.time() - killed:.0f} s", flush=True)
        self._watch(until=all_wait + MINUTES * 60)
        memory_after = list(self.megabytes)
        self._watch(until=time.time() + 3600, run_id=run_id)
        self._report(run_id, memory_before, memory_after)

    def _watch(self, until: float, run_id: str | None = None) -> None:
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
        looks = [call for call in self.luma.calls if call.on == "status"]
        tasks = self.airflow.tasks("endurance", run_id)
        seen: dict[str, list[float]] = defaultdict(list)
        for look in looks:
            if look.code == 200:
                seen[look.task_id or ""].append(look.at)
        late = [
            next(at for at in seen[job.task_id] if at >= job.complete_time / 1000) - job.complete_time / 1000
            for job in self.luma.jobs
            if job.complete_time
        ]
        quantiles = statistics.quantiles(late, n=100)
        print(f"tasks: {dict(Counter(task['state'] for task in tasks))}, tries {max(t['try_number'] for t in tasks)}")
        print(f"submissions accepted: {self.luma.accepted}")
        print(f"status calls: {len(looks)}, refused {sum(call.code == 429 for call in looks)}")
        print(f"most in any second: {most_in_a_second([call.at for call in looks])}")
        print(
            f"from a job's end to the look that saw it: mean {statistics.mean(late):.1f} s, p50 {quantiles[49]:.1f}, "
            f"p95 {quantiles[94]:.1f}, p99 {quantiles[98]:.1f}"
        )
        for when, megabytes in zip(("before the kill", "after it"), memory, strict=True):
            tenth = max(1, len(megabytes) // 10)
            print(
                f"memory of the triggerer {when}: {statistics.mean(megabytes[:tenth]):.0f} MB at first, "
                f"{statistics.mean(megabytes[-tenth:]):.0f} MB at last"
            )
        print(f"health checks that failed: {self.unhealthy}; oldest heartbeat {self.oldest_heartbeat:.1f} s")
        print(f"warnings of a blocked event loop, those included: {self._blocked()}", flush=True)

    def _blocked(self) -> list[str]:
        """Return when Airflow warned that its triggers' event loop was blocked, and for how many seconds."""
        lines = (self.airflow.logs / "triggerer.txt").read_text().splitlines()
        warnings = [line for line in lines if "thread was blocked" in line]
        return [f"{line[11:19]}: {line.partition('blocked for ')[2].partition(',')[0]}" for line in warnings]


if __name__ == "__main__":
    main()

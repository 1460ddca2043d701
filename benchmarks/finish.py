# SPDX-License-Identifier: Apache-2.0
"""
How long it takes from "finished at Luma" to "finished in Airflow": with callbacks, and polling at two intervals.

The three run one at a time, on the same Airflow and simulator, each with the same number of mapped jobs. All figures
include Airflow's own share (scheduling the resumed task, starting a process for it).
"""

from __future__ import annotations

import json
import statistics
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_provider_luma.simulator import Settings, Simulator
from harness.local_airflow import LocalAirflow

JOBS = 50
#: Seconds; spread out, so that not all resumed tasks want a process at once.
FASTEST, SPREAD = 45, 75
WAYS = {"with callbacks": (True, 30), "polling every 5 s": (False, 5), "polling every 30 s": (False, 30)}

DAG_FILE = """
import json, os
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

for way, (expects_callback, poll_interval) in json.loads(os.environ["BENCH_WAYS"]).items():
    with DAG(dag_id=way.replace(" ", "_"), schedule=None, max_active_tasks=1000):
        LumaModifyOperator.partial(
            task_id="modify",
            video_url=os.environ["BENCH_VIDEO_URL"],
            luma_conn_id="luma_callbacks" if expects_callback else "luma_polling",
            poll_interval=poll_interval,
        ).expand(prompt=[f"Make it a snowy morning, take {i % 3}" for i in range(%d)])
"""


def main() -> None:
    """Measure, and print a table."""
    settings = Settings(processing_seconds=FASTEST, processing_jitter=SPREAD, credits=1e6)
    with TemporaryDirectory() as folder, Simulator(settings) as luma:
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "finish.py").write_text(DAG_FILE.replace("%d", str(JOBS)))
        environment = {"BENCH_WAYS": json.dumps(WAYS), "BENCH_VIDEO_URL": luma.sample_url}
        airflow = LocalAirflow(Path(folder, "airflow"), dags, environment)
        connection = {"conn_type": "luma", "host": luma.base_url, "password": luma.settings.api_key}
        airflow.environment["AIRFLOW_CONN_LUMA_POLLING"] = json.dumps(connection)
        connection["extra"] = json.dumps({"callback_base_url": airflow.url})
        airflow.environment["AIRFLOW_CONN_LUMA_CALLBACKS"] = json.dumps(connection)
        print(f"From the end of a job at Luma to the end of its task, {JOBS} jobs each:\n")
        print("| | p50 s | p95 s | longest s | status calls a job | submissions |")
        print("|---|---:|---:|---:|---:|---:|")
        with airflow:
            for way in WAYS:
                luma.reset()
                print(_measured(airflow, luma, way), flush=True)


def _measured(airflow: LocalAirflow, luma: Simulator, way: str) -> str:
    dag_id = way.replace(" ", "_")
    run_id = airflow.trigger(dag_id)
    airflow.wait_until(
        lambda: airflow.run_state(dag_id, run_id) in ("success", "failed"), f"{dag_id} to end", seconds=900, every=2
    )
    ended = {job.task_id: (job.complete_time or 0) / 1000 for job in luma.jobs}
    late = []
    for task in airflow.tasks(dag_id, run_id):
        luma_task_id = airflow.xcom(dag_id, run_id, "modify", "luma_task_id", task["map_index"])
        late.append(datetime.fromisoformat(task["end_date"]).timestamp() - ended[luma_task_id])
    assert len(late) == JOBS and airflow.run_state(dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    status_calls = len([call for call in luma.calls if call.on == "status"]) / JOBS
    p50, p95 = statistics.median(late), statistics.quantiles(late, n=20)[-1]
    return f"| {way} | {p50:.1f} | {p95:.1f} | {max(late):.1f} | {status_calls:.1f} | {luma.accepted} |"


if __name__ == "__main__":
    main()

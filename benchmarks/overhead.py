# SPDX-License-Identifier: Apache-2.0
"""
What one job costs beyond the time that Luma takes: with our operator, and with the HTTP provider's operator and sensor.

They run one after the other, on the same Airflow and simulator, with the same number of runs each. All figures include
Airflow's own share (scheduling, starting processes for tasks).
"""

from __future__ import annotations

import json
import statistics
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_provider_luma.simulator import Settings, Simulator
from harness.local_airflow import LocalAirflow

RUNS, SECONDS = 3, 30
WAYS = ("ours_with_callbacks", "ours_polling", "http_operator_and_sensor")

DAG_FILE = """
import json, os
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

job = {"prompt": "Make it a snowy morning", "video_url": os.environ["BENCH_VIDEO_URL"]}

for way in ("with_callbacks", "polling"):
    with DAG(dag_id="ours_" + way, schedule=None):
        LumaModifyOperator(task_id="modify", luma_conn_id="luma_" + way, poll_interval=5, **job)

with DAG(dag_id="http_operator_and_sensor", schedule=None):
    submit = HttpOperator(
        task_id="submit",
        http_conn_id="http_luma",
        endpoint="/api/v1/modify/generate",
        headers={"Content-Type": "application/json"},
        data=json.dumps({"prompt": job["prompt"], "videoUrl": job["video_url"]}),
        response_check=lambda response: response.json()["code"] == 200,
        response_filter=lambda response: response.json()["data"]["taskId"],
    )
    submit >> HttpSensor(
        task_id="wait",
        http_conn_id="http_luma",
        endpoint="/api/v1/modify/record-info?taskId={{ ti.xcom_pull(task_ids='submit') }}",
        response_check=lambda response: response.json()["data"]["successFlag"] == 1,
        poke_interval=5,
    )
"""


def main() -> None:
    """Measure, and print a table."""
    with TemporaryDirectory() as folder, Simulator(Settings(processing_seconds=SECONDS)) as luma:
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "overhead.py").write_text(DAG_FILE)
        airflow = LocalAirflow(Path(folder, "airflow"), dags, {"BENCH_VIDEO_URL": luma.sample_url})
        connection = {"conn_type": "luma", "host": luma.base_url, "password": luma.settings.api_key}
        header = {"Authorization": f"Bearer {luma.settings.api_key}"}
        for name, one in {
            "LUMA_POLLING": connection,
            "LUMA_WITH_CALLBACKS": {**connection, "extra": {"callback_base_url": airflow.url}},
            "HTTP_LUMA": {"conn_type": "http", "host": luma.base_url, "extra": header},
        }.items():
            airflow.environment[f"AIRFLOW_CONN_{name}"] = json.dumps(one)
        print(f"A job of {SECONDS} s, polled every 5 s; medians of {RUNS} runs:\n")
        print("| | the run took longer than the job: s | worker slots held: s | status calls |")
        print("|---|---:|---:|---:|")
        with airflow:
            for way in WAYS:
                print(_measured(airflow, luma, way), flush=True)


def _measured(airflow: LocalAirflow, luma: Simulator, way: str) -> str:
    longer, held, status_calls = [], [], []
    for _ in range(RUNS):
        luma.reset()
        run_id = airflow.trigger(way)
        slots = slot_seconds(airflow, way, run_id)
        run = airflow.call("GET", f"/dags/{way}/dagRuns/{run_id}")
        assert run["state"] == "success", airflow.story(way, run_id)
        start, end = (datetime.fromisoformat(run[date]).timestamp() for date in ("start_date", "end_date"))
        longer.append(end - start - SECONDS)
        held.append(slots)
        status_calls.append(sum(call.on == "status" for call in luma.calls))
    median = statistics.median
    return f"| {way.replace('_', ' ')} | {median(longer):.1f} | {median(held):.1f} | {median(status_calls):.0f} |"


def slot_seconds(airflow: LocalAirflow, dag_id: str, run_id: str, *, timeout: float = 300, every: float = 0.2) -> float:
    """Wait for the end of a run; return for how many seconds its tasks held worker slots."""
    held, last = 0.0, time.monotonic()

    def has_ended() -> bool:
        nonlocal held, last
        slots = airflow.call("GET", "/pools/default_pool")["running_slots"]
        held, last = held + slots * (time.monotonic() - last), time.monotonic()
        return airflow.run_state(dag_id, run_id) in ("success", "failed")

    airflow.wait_until(has_ended, f"{dag_id} to end", seconds=timeout, every=every)
    return held


if __name__ == "__main__":
    main()

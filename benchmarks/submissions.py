# SPDX-License-Identifier: Apache-2.0
"""
Two hundred mapped jobs that want to be submitted at once, where Luma accepts 20 in 10 seconds.

Our operator is compared with the HTTP provider's, which relies on Airflow's own retries, as one would write it by hand.
Both only submit, one after the other on the same Airflow. ``SUBMITTED_JOBS=200`` sets how many jobs.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_provider_luma.simulator import Settings, Simulator
from benchmarks.overhead import slot_seconds
from harness.local_airflow import LocalAirflow

JOBS = int(os.environ.get("SUBMITTED_JOBS", "200"))
TIMEOUT = 1800

DAG_FILE = """
import json, os
from datetime import timedelta
from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

prompts = [f"Make it a snowy morning, take {i}" for i in range(int(os.environ["BENCH_JOBS"]))]
video_url = os.environ["BENCH_VIDEO_URL"]

with DAG(dag_id="ours", schedule=None, max_active_tasks=1000):
    LumaModifyOperator.partial(task_id="submit", video_url=video_url, wait_for_completion=False).expand(prompt=prompts)

with DAG(dag_id="http_operator", schedule=None, max_active_tasks=1000):
    HttpOperator.partial(
        task_id="submit",
        http_conn_id="http_luma",
        endpoint="/api/v1/modify/generate",
        headers={"Content-Type": "application/json"},
        response_check=lambda response: response.json()["code"] == 200,
        retries=20,
        retry_delay=timedelta(seconds=5),
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(seconds=60),
    ).expand(data=[json.dumps({"prompt": prompt, "videoUrl": video_url}) for prompt in prompts])
"""


def main() -> None:
    """Measure, and print a table."""
    settings = Settings(processing_seconds=1, max_running=10_000, credits=1e6)
    with TemporaryDirectory() as folder, Simulator(settings) as luma:
        dags = Path(folder, "dags")
        dags.mkdir()
        (dags / "submissions.py").write_text(DAG_FILE)
        environment = {"BENCH_JOBS": str(JOBS), "BENCH_VIDEO_URL": luma.sample_url}
        connection = {"host": luma.base_url, "password": luma.settings.api_key}
        environment["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps({"conn_type": "luma", **connection})
        header = {"Authorization": f"Bearer {luma.settings.api_key}"}
        environment["AIRFLOW_CONN_HTTP_LUMA"] = json.dumps(
            {"conn_type": "http", "host": luma.base_url, "extra": json.dumps(header)}
        )
        print(f"{JOBS} mapped jobs, of which Luma accepts 20 in 10 seconds:\n")
        print("| | accepted | the last after s | refused | longest gap s | worker slots held, s a job |")
        print("|---|---:|---:|---:|---:|---:|")
        with LocalAirflow(Path(folder, "airflow"), dags, environment) as airflow:
            for dag_id in ("ours", "http_operator"):
                luma.reset()
                print(_measured(airflow, luma, dag_id), flush=True)


def _measured(airflow: LocalAirflow, luma: Simulator, dag_id: str) -> str:
    run_id = airflow.trigger(dag_id)
    held = slot_seconds(airflow, dag_id, run_id, timeout=TIMEOUT, every=0.5)
    calls = [call for call in luma.calls if call.on == "submit"]
    accepted = [call.at for call in calls if call.code == 200]
    gaps = [later - earlier for earlier, later in pairwise(accepted)]
    codes = Counter(call.code for call in calls)
    return (
        f"| {dag_id} ({airflow.run_state(dag_id, run_id)}) | {luma.accepted} | {accepted[-1] - calls[0].at:.0f} "
        f"| {codes[429]} | {max(gaps):.0f} | {held / JOBS:.1f} |"
    )


if __name__ == "__main__":
    main()

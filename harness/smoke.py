# SPDX-License-Identifier: Apache-2.0
"""
Import every module and run two jobs: ``python -m harness.smoke``.

It needs only the extra ``simulator``, so it also runs with the oldest versions that the package claims to support.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import airflow_provider_luma
from airflow_provider_luma.simulator import Settings, Simulator
from harness.local_airflow import LocalAirflow

API_KEY = "smoke-test-key"

DAG = """
from airflow.sdk import DAG, task
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

with DAG(dag_id="smoke", schedule=None):
    modify = LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="{video_url}", poll_interval=1)
    LumaDownloadOperator(task_id="download", urls=modify.output, destination="{destination}/")

    @task.luma_modify(video_url="{video_url}", poll_interval=1)
    def decorated(run_id):
        return f"make it rain in {{run_id}}"

    decorated()
"""


def import_all() -> list[str]:
    """Import every module of the package; return their names."""
    found = [module.name for module in pkgutil.walk_packages(airflow_provider_luma.__path__, "airflow_provider_luma.")]
    # The fixtures need pytest, which is in another extra.
    names = [name for name in found if not name.startswith("airflow_provider_luma.testing")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return names


def run_jobs(home: Path) -> int:
    """Run a DAG of two jobs without a scheduler; return how many jobs the simulator accepted."""
    dags, videos = home / "dags", home / "videos"
    dags.mkdir()
    with Simulator(Settings(api_key=API_KEY, processing_seconds=0)) as luma:
        (dags / "smoke.py").write_text(DAG.format(video_url=luma.sample_url, destination=f"file://{videos}"))
        address = luma.base_url.removeprefix("http://")
        local = LocalAirflow(home, dags, {"AIRFLOW_CONN_LUMA_DEFAULT": f"luma://:{API_KEY}@{address}/http"})
        local.run("db", "migrate")
        local.run("dags", "reserialize")
        local.run("dags", "test", "smoke")
        if not [video for video in videos.glob("*.mp4") if video.stat().st_size]:
            sys.exit("the DAG succeeded, but no video was downloaded")
        return luma.accepted


def main() -> None:
    """Import all modules, run the jobs, and print the versions."""
    with tempfile.TemporaryDirectory() as home:
        modules, jobs = len(import_all()), run_jobs(Path(home))
    names = ("apache-airflow", "apache-airflow-providers-http", "apache-airflow-providers-common-compat", "av")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(f"{modules} modules imported, {jobs} jobs done, with {versions}")  # noqa: T201


if __name__ == "__main__":
    main()

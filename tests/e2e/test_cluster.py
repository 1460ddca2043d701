# SPDX-License-Identifier: Apache-2.0
"""
A cluster, as ``make demo-cluster`` runs it: its workers and triggerers are killed, and every job is paid once and done.

``CLUSTER_JOBS=1000`` makes a longer proof of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_luma.simulator import Settings, Simulator
from harness.cluster import TRIGGERERS, WORKERS, AirflowCluster
from tests.e2e.clusters import cluster_of, restart_after_a_kill

JOBS = int(os.environ.get("CLUSTER_JOBS", "100"))
#: Status checks that a job may cost with callbacks, on average.
CHECKS_PER_JOB = 3

pytestmark = [pytest.mark.long, pytest.mark.timeout(600 + JOBS * 3), pytest.mark.xdist_group("cluster")]

# A worker can be killed just before a submission leaves: then no callback comes, and only a person, or this option,
# submits again.
DAG = """
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

with DAG(dag_id="many", schedule=None, max_active_tasks=1000):
    LumaModifyOperator.partial(
        task_id="modify",
        video_url={video_url!r},
        timeout={timeout},
        resubmit_on_unknown=True,
        retries=20,
        retry_delay=1,
        max_active_tis_per_dag=1000,
    ).expand(prompt=[f"Make it snow, please: version {{number}}" for number in range({jobs})])
"""


@pytest.fixture
def luma() -> Iterator[Simulator]:
    """A Luma service whose jobs take one to two minutes, with the real limits."""
    with Simulator(Settings(processing_seconds=60, processing_jitter=60, credits=10**6)) as luma:
        yield luma


@pytest.fixture
def cluster(luma: Simulator, tmp_path: Path) -> Iterator[AirflowCluster]:
    """A cluster whose jobs are called back."""
    dag = DAG.format(video_url=luma.sample_url, jobs=JOBS, timeout=300 + JOBS * 2)
    with cluster_of(luma, tmp_path, dag) as airflow:
        yield airflow


def test_each_job_is_paid_once_and_done_though_workers_and_triggerers_are_killed(
    cluster: AirflowCluster, luma: Simulator
) -> None:
    run_id, began = cluster.trigger("many"), time.monotonic()
    for component, submitted in zip((*WORKERS, *TRIGGERERS), (0.2, 0.4, 0.6, 0.8), strict=True):
        cluster.wait_until(lambda part=submitted: luma.accepted >= JOBS * part, f"{submitted} of the jobs", seconds=900)
        restart_after_a_kill(cluster, component)

    ended = ("success", "failed")
    cluster.wait_until(lambda: cluster.run_state("many", run_id) in ended, "all jobs", seconds=600 + JOBS * 2, every=2)

    assert cluster.run_state("many", run_id) == "success", cluster.story("many", run_id)
    states = [task["state"] for task in cluster.tasks("many", run_id)]
    assert states == ["success"] * JOBS
    assert luma.accepted == JOBS
    checks = sum(call.on == "status" for call in luma.calls)
    refused = sum(call.on == "status" and call.code == 429 for call in luma.calls)
    print(f"{JOBS} jobs in {time.monotonic() - began:.0f} s: {checks} status checks, of which {refused} were refused")
    assert checks <= CHECKS_PER_JOB * JOBS

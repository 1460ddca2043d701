# SPDX-License-Identifier: Apache-2.0
"""A run of 200 tasks that may submit 50 jobs, on a cluster whose workers and triggerers are killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from harness.cluster import TRIGGERERS, WORKERS, AirflowCluster
from tests.e2e.clusters import cluster_of, restart_after_a_kill

TASKS, LIMIT = 200, 50

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.xdist_group("cluster")]

DAG = """
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

with DAG(dag_id="many", schedule=None, max_active_tasks=1000, default_args={{"max_jobs_per_run": {limit}}}):
    LumaModifyOperator.partial(
        task_id="modify",
        video_url={video_url!r},
        timeout=300,
        queue_timeout=1800,
        retries=20,
        retry_delay=1,
        max_active_tis_per_dag=1000,
    ).expand(prompt=[f"Make it snow, please: version {{number}}" for number in range({tasks})])
"""


@pytest.fixture
def luma() -> Iterator[Simulator]:
    """A Luma service with the real limits, which also loses the response to some submissions."""
    faults = ["submit:hang,seconds=3,after_accept=true,every=7"]
    with Simulator(Settings(processing_seconds=20, processing_jitter=20, credits=10**6, faults=faults)) as luma:
        yield luma


@pytest.fixture
def cluster(luma: Simulator, tmp_path: Path) -> Iterator[AirflowCluster]:
    with cluster_of(luma, tmp_path, DAG.format(video_url=luma.sample_url, tasks=TASKS, limit=LIMIT)) as airflow:
        yield airflow


def test_run_submits_no_more_jobs_than_it_may_though_workers_and_triggerers_are_killed(
    cluster: AirflowCluster, luma: Simulator, tmp_path: Path
) -> None:
    run_id, began = cluster.trigger("many"), time.monotonic()
    for component, submitted in zip((*WORKERS, *TRIGGERERS), (5, 15, 25, 35), strict=True):
        cluster.wait_until(lambda jobs=submitted: luma.accepted >= jobs, f"{submitted} jobs", seconds=900)
        restart_after_a_kill(cluster, component)
    cluster.wait_until(lambda: cluster.run_state("many", run_id) == "failed", "all tasks to end", seconds=1500, every=3)

    tasks = cluster.tasks("many", run_id)
    states = Counter(task["state"] for task in tasks)
    failed = [task["map_index"] for task in tasks if task["state"] == "failed"]
    errors = [cluster.xcom("many", run_id, "modify", "luma_error", map_index) for map_index in failed]
    reasons = Counter(error["type"] for error in errors)
    store = ObjectSubmissionStore(str(tmp_path / "store"), ("many", run_id, "modify", 0))
    in_use = store.run_budget(LIMIT, "luma_default").usage().jobs
    print(f"{states}, {reasons}, {luma.accepted} accepted, {in_use} slots, in {time.monotonic() - began:.0f} s")
    # A worker that is killed just before its submission leaves one whose outcome nobody knows.
    unknown = reasons["LumaSubmissionUnknownError"]
    assert reasons["LumaJobLimitError"] == TASKS - LIMIT, cluster.story("many", run_id)
    assert in_use == LIMIT
    assert luma.accepted == states["success"] == LIMIT - unknown
    said = {error["msg"] for error in errors if error["type"] == "LumaJobLimitError"}
    assert said == {
        f"max_jobs_per_run={LIMIT}: this DAG run has submitted, or is submitting, {LIMIT} jobs (modify: {LIMIT}). "
        "This try submitted nothing"
    }

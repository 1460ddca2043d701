# SPDX-License-Identifier: Apache-2.0
"""
A batch in a bucket, on a cluster whose workers are killed: each clip is paid once, and a later run pays for new ones.

``BATCH_CLIPS=40`` makes a shorter proof of it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_luma.simulator import Settings, Simulator
from harness.cluster import WORKERS, AirflowCluster
from tests.e2e.clusters import cluster_of, restart_after_a_kill
from tests.support.clips import clip as make_clip
from tests.support.clips import with_broken_sound
from tests.support.storages import BUCKET, Bucket, aws_connection

CLIPS = int(os.environ.get("BATCH_CLIPS", "200"))
#: Each such clip fails at Luma.
FAILING = 20

pytestmark = [pytest.mark.long, pytest.mark.timeout(900 + CLIPS * 12), pytest.mark.xdist_group("cluster")]

# With resubmit_on_unknown, since a worker can be killed just before a submission leaves.
DAG = f"""
from airflow.sdk import DAG, Asset
from airflow_provider_luma.task_groups.batch import modify_videos

with DAG(dag_id="folder", schedule=None, max_active_tasks=1000):
    modify_videos(
        group_id="batch",
        clips="s3://e2e_s3@{BUCKET}/in",
        prompt="Make it a snowy morning",
        destination="s3://e2e_s3@{BUCKET}/out",
        allowed_failures=0.05,
        resubmit_on_failure=False,
        resubmit_on_unknown=True,
        max_active_tis_per_dagrun=60,
        timeout={600 + CLIPS * 6},
        retries=20,
        retry_delay=1,
        outlets=[Asset("videos")],
    )
"""


@pytest.fixture
def luma() -> Iterator[Simulator]:
    """A Luma service with the real limits, whose jobs take up to a minute."""
    with Simulator(Settings(processing_seconds=20, processing_jitter=40, credits=10**6)) as luma:
        yield luma


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    """A bucket with the clips, of which each has another length."""
    bucket = Bucket(s3_endpoint, f"s3://e2e_s3@{BUCKET}/out", "out/")
    if BUCKET not in [found["Name"] for found in bucket.s3.list_buckets()["Buckets"]]:
        bucket.s3.create_bucket(Bucket=BUCKET)
    good, broken = make_clip(), with_broken_sound(make_clip(sound="aac"))
    for number in range(CLIPS):
        put_clip(bucket, f"clip-{number:04}", broken if number % FAILING == 0 else good + free_box(number))
    return bucket


def free_box(size: int) -> bytes:
    """Return a part of an MP4 that players skip."""
    return struct.pack(">I4s", 8 + size, b"free") + bytes(size)


def put_clip(bucket: Bucket, name: str, content: bytes) -> None:
    bucket.s3.put_object(Bucket=BUCKET, Key=f"in/{name}.mp4", Body=content)


@pytest.fixture
def cluster(luma: Simulator, s3_endpoint: str, tmp_path: Path) -> Iterator[AirflowCluster]:
    """A cluster whose jobs are called back."""
    with cluster_of(luma, tmp_path, DAG, AIRFLOW_CONN_E2E_S3=aws_connection(s3_endpoint)) as airflow:
        yield airflow


def finish(cluster: AirflowCluster, run_id: str) -> None:
    ended = ("success", "failed")
    cluster.wait_until(
        lambda: cluster.run_state("folder", run_id) in ended, "the batch", seconds=600 + CLIPS * 8, every=3
    )
    assert cluster.run_state("folder", run_id) == "success", cluster.story("folder", run_id)


def test_each_clip_is_paid_once_though_workers_are_killed_and_a_later_run_pays_for_new_clips(
    cluster: AirflowCluster, luma: Simulator, bucket: Bucket
) -> None:
    run_id, began = cluster.trigger("folder"), time.monotonic()
    for worker, part in zip(WORKERS, (0.3, 0.6), strict=True):
        cluster.wait_until(lambda part=part: luma.accepted >= CLIPS * part, f"{part} of the jobs", seconds=1800)
        restart_after_a_kill(cluster, worker)
    finish(cluster, run_id)
    print(f"{CLIPS} clips in {time.monotonic() - began:.0f} s")

    table = cluster.xcom("folder", run_id, "batch.collect")
    failing = {f"clip-{number:04}" for number in range(0, CLIPS, FAILING)}
    names = [row["clip"].rpartition("/")[2].removesuffix(".mp4") for row in table]
    assert names == [f"clip-{number:04}" for number in range(CLIPS)]
    for name, row in zip(names, table, strict=True):
        if name in failing:
            assert (row["video"], "could not be rendered" in row["error"]) == (None, True)
        else:
            assert (row["video"], row["error"]) == (f"s3://e2e_s3@{BUCKET}/out/{name}.mp4", None)
    assert luma.accepted == CLIPS == len({row["luma_task_id"] for row in table})
    written = {path.name for path in map(Path, bucket_names(bucket)) if path.suffix == ".mp4"}
    assert written == {f"{name}.mp4" for name in names if name not in failing}
    claims = [name for name in bucket_names(bucket) if name.endswith(".luma-job.json")]
    assert len(claims) == len(failing)

    same, another = make_clip(seconds=2), make_clip(seconds=3)
    for name, content in (("new-1", same), ("new-2", same), ("new-3", another)):
        put_clip(bucket, name, content)
    run_id = cluster.trigger("folder")
    finish(cluster, run_id)
    later = cluster.xcom("folder", run_id, "batch.collect")
    assert luma.accepted == CLIPS + 3
    assert [row["video"] for row in later[:CLIPS]] == [row["video"] for row in table]
    assert [row["video"] for row in later[CLIPS:]] == [f"s3://e2e_s3@{BUCKET}/out/new-{n}.mp4" for n in (1, 2, 3)]
    assert len(cluster.call("GET", "/assets/events")["asset_events"]) == 2, "one for each run"


def bucket_names(bucket: Bucket) -> list[str]:
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="out/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

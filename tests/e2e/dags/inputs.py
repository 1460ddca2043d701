# SPDX-License-Identifier: Apache-2.0
"""Clips that have no public address: on a disk, and in a bucket."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.task_groups.video import modify_long_video

for dag_id, luma_conn_id, video_url in (
    ("uploaded_clip", "luma_input_uploaded", os.environ["E2E_S3_CLIP"]),
    ("uploaded_clip_luma", "luma_input_luma_uploaded", os.environ["E2E_S3_CLIP"]),
    ("signed_clip", "luma_input_signed", os.environ["E2E_S3_CLIP"]),
    ("crash_uploading", "luma_crash_uploading", os.environ["LUMA_VIDEO"]),
    ("crash_luma_uploading", "luma_crash_luma_uploading", os.environ["LUMA_VIDEO"]),
):
    with DAG(dag_id=dag_id, schedule=None):
        modify = LumaModifyOperator(
            task_id="modify",
            prompt="Make it a snowy morning",
            video_url=video_url,
            luma_conn_id=luma_conn_id,
            poll_interval=2,
            retries=2,
            retry_delay=timedelta(seconds=1),
        )
        if dag_id.startswith("uploaded_clip"):
            LumaDownloadOperator(
                task_id="download",
                urls=modify.output["result_urls"],
                destination=os.environ["E2E_S3_CLIP"].replace("/in/", "/{{ dag.dag_id }}/"),
                luma_conn_id=luma_conn_id,
            )


@task
def write_prompts() -> list[str]:
    """Return what somebody else may have written."""
    return ["{{ conn.luma_default.password }}", "As in notes.txt"]


for dag_id in ("film", "film_luma", "film_with_prompts"):
    with DAG(
        dag_id=dag_id,
        schedule=None,
        params={"source": "/nowhere/film.mp4", "folder": "/nowhere"},
        default_args={
            "luma_conn_id": "luma_input_luma_film" if dag_id == "film_luma" else "luma_input_film",
            "poll_interval": 2,
            "retries": 2,
            "retry_delay": timedelta(seconds=1),
        },
    ):
        modify_long_video(
            group_id="film",
            source="{{ params.source }}",
            prompt=write_prompts() if dag_id == "film_with_prompts" else "Make it a snowy morning",
            destination="{{ params.folder }}/film.mp4",
            work_dir="{{ params.folder }}/work",
            clip_seconds=10,
        )

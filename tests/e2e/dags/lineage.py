# SPDX-License-Identifier: Apache-2.0
"""Every operator that makes something of a video: each is asked for its lineage, and some have outlets."""

from __future__ import annotations

import os
from typing import Any

from airflow.providers.openlineage.utils.selective_enable import enable_lineage
from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator, LumaUploadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

SOURCE = os.environ["E2E_S3_CLIP"]
FOLDER = SOURCE.replace("/in/clip.mp4", "/{{ dag.dag_id }}")


def first_result(result: dict[str, Any]) -> str:
    return result["result_urls"][0]


with enable_lineage(DAG(dag_id="lineage", schedule=None)):
    split = VideoSplitOperator(task_id="split", source=SOURCE, destination=f"{FOLDER}/clips", clip_seconds=2)
    modify = LumaModifyOperator.partial(task_id="modify", prompt="Make it a snowy morning", poll_interval=2).expand(
        video_url=split.output
    )
    download = LumaDownloadOperator.partial(
        task_id="download",
        destination=f"{FOLDER}/modified/clip-{{{{ ti.map_index }}}}.mp4",
        outlets=[AssetAlias("lineage_clips")],
    ).expand(urls=modify.output.map(first_result))
    VideoJoinOperator(
        task_id="join",
        clips=download.output,
        source=SOURCE,
        destination=f"{FOLDER}/film.mp4",
        plan=split.output["luma_split"],
        outlets=[Asset("lineage_film")],
    )

    upload = LumaUploadOperator(task_id="upload", source=SOURCE)
    submit = LumaModifyOperator(
        task_id="submit", prompt="Make it rain", video_url=upload.output["url"], wait_for_completion=False
    )
    LumaTaskSensor(task_id="wait", luma_task_id=submit.output["luma_task_id"], poke_interval=2)

    LumaModifyOperator(
        task_id="signed", prompt="Make it rain", video_url=SOURCE, luma_conn_id="luma_input_signed", poll_interval=2
    )

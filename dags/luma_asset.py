# SPDX-License-Identifier: Apache-2.0
"""
### Process the video in another DAG

`luma_asset` makes a video and updates the asset `luma_video`. `luma_asset_news` is scheduled on that asset, so it runs
whenever there is a new video. The asset event contains the address of the file, the job at Luma, its prompt and its
source. The two DAGs pass nothing else to each other and do not depend on each other.

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from airflow.sdk import DAG, Asset, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

# An asset with a name only: for an address such as s3://, Airflow would import the storage's provider at every parse.
VIDEO = Asset("luma_video")

with DAG(
    dag_id="luma_asset",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Make it a rainy night with neon lights",
            type="string",
            minLength=1,
            description="How to change the video, in English.",
        ),
        "video_url": Param(
            os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4"),
            type="string",
            minLength=1,
            description="The clip: a public address, or a file on a disk of the workers or in an object store, e.g. "
            "s3://my_aws@bucket/clip.mp4. At kie.ai: an MP4, MOV or AVI of at most 10 seconds and 500 MB.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the video, on a disk or an object store.",
        ),
    },
):
    modify = LumaModifyOperator(
        task_id="modify",
        prompt="{{ params.prompt }}",
        video_url="{{ params.video_url }}",
    )
    LumaDownloadOperator(
        task_id="download",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/",
        outlets=[VIDEO],
    )


@task
def tell(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
    videos = [event.extra for event in triggering_asset_events[VIDEO]]
    for video in videos:
        print(f"New: {video['files']} from {video['sources']} with {video['prompts']}, jobs {video['luma_task_ids']}")
    return videos


with DAG(dag_id="luma_asset_news", schedule=[VIDEO], doc_md=__doc__, tags=["luma", "example"]):
    tell()

# SPDX-License-Identifier: Apache-2.0
"""
### Modify all clips of a folder

Each clip becomes a video of the same name. Trigger the DAG again after new clips have arrived: only those are modified,
and paid for. To have a video made again, delete it.

Give each folder of clips its own destination: videos of other clips or DAGs are not replaced. On a disk, the folder
above the destination must exist.

`collect` returns a table of clips and videos, and fails if more than 5 % of the clips have none. The *Luma result* page
of any clip links to the gallery, which shows all clips of the run and their videos.

Needs a connection `luma_default` of type Luma, with your API key, and a pool `luma` that counts deferred tasks:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"
"""

from __future__ import annotations

import os

from airflow.sdk import DAG, Param

from airflow_provider_luma.task_groups.batch import modify_videos

with DAG(
    dag_id="luma_folder",
    schedule=None,
    max_active_runs=1,  # a clip that another run is working on would count as failed
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Cover everything in fresh snow",
            type="string",
            minLength=1,
            description="How to change the videos, in English.",
        ),
        "clips": Param(
            os.environ.get("LUMA_CLIPS", "/data/clips"),
            type="string",
            minLength=1,
            description="Folder with the clips, on a disk of the workers or in an object store.",
        ),
        "destination": Param(
            os.environ.get("LUMA_VIDEOS", "/data/videos/snow"),
            type="string",
            minLength=1,
            description="Folder for the videos of these clips alone, on a disk of the workers or in an object store.",
        ),
    },
):
    modify_videos(
        group_id="batch",
        clips="{{ params.clips }}",
        prompt="{{ params.prompt }}",
        destination="{{ params.destination }}",
        allowed_failures=0.05,
        pool="luma",
    )

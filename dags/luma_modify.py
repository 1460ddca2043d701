# SPDX-License-Identifier: Apache-2.0
"""
### Modify one clip

Modify a clip according to a prompt, and download the result to a destination of your choice.

`modify` submits the job to Luma and then **waits in the triggerer**: while Luma processes the video, the task is
*deferred* and holds no worker slot. `download` streams the result to any storage that Airflow supports, such as
`file:///data/videos` or `s3://my_aws@bucket/videos`.

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile

from airflow.sdk import DAG, Param

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

with DAG(
    dag_id="luma_modify",
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
    )

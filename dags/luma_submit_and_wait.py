# SPDX-License-Identifier: Apache-2.0
"""
### Submit now, wait elsewhere

Submitting and waiting are separate tasks: `submit` ends as soon as Luma has accepted the job, and the sensor `wait`
waits for that job by its id. Use this if other work depends on the *submission* rather than on the video, if the wait
belongs in another DAG, or if the job was submitted elsewhere: the sensor needs only the id.

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile

from airflow.sdk import DAG, Param

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(
    dag_id="luma_submit_and_wait",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Make it a watercolour painting",
            type="string",
            minLength=1,
            description="How to change the video, in English.",
        ),
        "video_url": Param(
            os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4"),
            type="string",
            format="uri",
            description="Public address of the clip. At kie.ai: an MP4, MOV or AVI of at most 10 seconds and 500 MB.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the video, on a disk or an object store.",
        ),
    },
):
    submit = LumaModifyOperator(
        task_id="submit",
        prompt="{{ params.prompt }}",
        video_url="{{ params.video_url }}",
        wait_for_completion=False,
    )
    wait = LumaTaskSensor(
        task_id="wait",
        luma_task_id=submit.output["luma_task_id"],
        timeout=3600,
    )
    LumaDownloadOperator(
        task_id="download",
        urls=wait.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/",
    )

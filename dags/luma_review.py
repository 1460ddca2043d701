# SPDX-License-Identifier: Apache-2.0
"""
### A person approves the video

The video is modified and downloaded. Then the task `review` waits for a person, who sees the original and the modified
video side by side on the **Luma result** page, and approves or rejects the video in Airflow's own form, with an
optional comment. Only an approved video is published; after a rejection, `publish` is skipped.

The form is under *Required Actions* in Airflow, and linked from the result page. The waiting task holds no worker slot.
The video is downloaded first because its address expires: after 14 days at kie.ai, after an hour with Luma's own API.

On Airflow 3.4, `luma_review_versions` makes another version after each rejection.

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_luma.links.luma import LumaResultLink
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

BODY = """
**[See both videos side by side]({{ ti.xcom_pull(task_ids="modify", key="%s") }})**

{{ params.prompt }}
"""


@task
def publish(files: Iterable[str], params: dict[str, Any]) -> list[str]:
    published = []
    for file in map(ObjectStoragePath, files):
        target = ObjectStoragePath(params["destination"]) / "published" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.copy(target)
        published.append(str(target))
    return published


with DAG(
    dag_id="luma_review",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Turn the day into a rainy night with neon lights",
            type="string",
            minLength=1,
            description="How to change the video, in English.",
        ),
        "video_url": Param(
            os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4"),
            type="string",
            minLength=1,
            description="The clip: a public address, or a file in any storage.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the videos; approved ones are copied to its subfolder published/.",
        ),
    },
):
    modify = LumaModifyOperator(task_id="modify", prompt="{{ params.prompt }}", video_url="{{ params.video_url }}")

    fetch = LumaDownloadOperator(
        task_id="fetch",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/",
    )

    review = ApprovalOperator(
        task_id="review",
        subject="Publish this video?",
        body=BODY % LumaResultLink().xcom_key,
        params={"comment": Param("", type=["string", "null"], title="Comment")},
    )

    fetch >> review >> publish(fetch.output)

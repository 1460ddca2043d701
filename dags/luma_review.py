# SPDX-License-Identifier: Apache-2.0
"""
### A person approves the video

The video is modified and fetched, then the task `review` waits for a person, who sees the original and the modified
video side by side on the page **Luma result**, and approves or rejects in Airflow's own form, with a word to say why.
Only an approved video is published; after a rejection `publish` is skipped.

The answer is found under *Required Actions* in Airflow, and on the page itself. While it is awaited, no worker slot is
held. The video is fetched before, since its address at Luma expires, with kie.ai after 14 days.

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
            description="Folder for the videos; those that are approved are copied to published/ in it.",
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
        params={"comment": Param("", type=["string", "null"], title="A word to say why")},
    )

    fetch >> review >> publish(fetch.output)

# SPDX-License-Identifier: Apache-2.0
"""
### Another version after each rejection

Like `luma_review`, but with each rejection the person gives a new prompt, from which the next version is made. There
are at most three versions, since each is a job that you pay for. Once a version is approved, it is published. If the
last one is not approved either, the run fails and nothing is published.

Needs Airflow 3.4, which has loops, and a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, ObjectStoragePath, Param, task, task_group

from airflow_provider_luma.links.luma import LumaResultLink
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

APPROVE, ANOTHER = "Approve", "Make another version"
MAX_VERSIONS = 3

BODY = """
**[See both videos side by side]({{ ti.xcom_pull(task_ids="version.modify", key="%s") }})**

Version {{ loop.index + 1 }} of at most {{ loop.max_iterations }}: {{ ti.xcom_pull(task_ids="version.prompt") }}
"""


@task_group
def version() -> None:
    @task
    def prompt(*, loop: Any, params: dict[str, Any]) -> str:
        said = loop.previous["params_input"].get("prompt") if loop.index else None
        return said or params["prompt"]

    modify = LumaModifyOperator(task_id="modify", prompt=prompt(), video_url="{{ params.video_url }}")
    fetch = LumaDownloadOperator(
        task_id="fetch",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/{{ loop.index + 1 }}/",
    )
    review = HITLOperator(
        task_id="review",
        subject="Publish this version?",
        body=BODY % LumaResultLink().xcom_key,
        options=[APPROVE, ANOTHER],
        params={"prompt": Param("", type=["string", "null"], title="Prompt for another version")},
    )
    fetch >> review


def approved(*, loop: Any) -> bool:
    """End the loop once a person approves a version."""
    return loop.result["chosen_options"] == [APPROVE]


@task
def publish(versions: Sequence[list[str]], params: dict[str, Any]) -> list[str]:
    published = []
    for file in map(ObjectStoragePath, versions[-1]):
        target = ObjectStoragePath(params["destination"]) / "published" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.copy(target)
        published.append(str(target))
    return published


if hasattr(version, "loop"):
    with DAG(
        dag_id="luma_review_versions",
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
                description="Folder for the videos; the approved one is copied to its subfolder published/.",
            ),
        },
    ) as dag:
        versions = version.loop(max_iterations=MAX_VERSIONS, until=approved)
        versions >> publish(dag.get_task("version.fetch").output)

# SPDX-License-Identifier: Apache-2.0
"""Tasks with many instances, for the gallery. Nothing of them runs: a test says how each instance has ended."""

from __future__ import annotations

import os

from airflow.sdk import DAG, task

from airflow_provider_luma.operators.luma import LumaModifyOperator


@task
def prompts() -> list[str]:
    return []


for dag_id, prompt in (
    ("gallery_of_200", [f"version {number}" for number in range(200)]),
    ("gallery_of_3", ["version 0", "version 1", "version 2"]),
    ("gallery_to_come", None),
):
    with DAG(dag_id=dag_id, schedule=None, is_paused_upon_creation=True):
        LumaModifyOperator.partial(task_id="modify", video_url=os.environ["LUMA_VIDEO_URL"]).expand(
            prompt=prompts() if prompt is None else prompt
        )

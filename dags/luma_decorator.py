# SPDX-License-Identifier: Apache-2.0
"""
### A function that returns the prompt

A function decorated with `@task.luma_modify` returns the prompt, or a dict of the operator's templated parameters.
Everything else works as in `LumaModifyOperator`: the task waits in the triggerer, and a retry continues the same job if
the function returns the same again.

`season` returns a prompt for the month of the run. `weather` is mapped, and makes one version for each kind of weather.

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from airflow.sdk import DAG, Param, literal, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator

SEASONS = ("winter", "spring", "summer", "autumn")

with DAG(
    dag_id="luma_decorator",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "place": Param("by the sea", type="string", description="Where the scene is, in English."),
        "weathers": Param(
            ["rain", "snow"],
            type="array",
            items={"type": "string"},
            minItems=1,
            description="In English, one per line; each makes one version and costs one job.",
        ),
        "video_url": Param(
            os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4"),
            type="string",
            minLength=1,
            description="The clip. At kie.ai: an MP4, MOV or AVI of at most 10 seconds and 500 MB.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the videos, on a disk or an object store.",
        ),
    },
):

    @task.luma_modify(video_url="{{ params.video_url }}")
    def season(dag_run: Any, params: dict[str, Any]) -> Any:
        name = SEASONS[dag_run.run_after.month % 12 // 3]
        # The returned text is rendered as a template, which can read passwords: use a literal for what a user typed in.
        return literal(f"Make it a day in {name} {params['place']}")

    @task
    def weathers(params: dict[str, Any]) -> list[str]:
        return list(params["weathers"])

    @task.luma_modify(map_index_template="{{ task.watermark }}")
    def weather(kind: str, place: str) -> dict[str, Any]:
        return {
            "prompt": literal(f"Make it an evening in the {kind} {place}"),
            "video_url": "{{ params.video_url }}",
            "watermark": literal(kind),
        }

    modified = season()
    versions = weather.partial(place="{{ params.place }}").expand(kind=weathers())

    folder = "{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}"
    LumaDownloadOperator(task_id="download", urls=modified, destination=f"{folder}/")
    LumaDownloadOperator.partial(task_id="download_versions", destination=f"{folder}/{{{{ ti.map_index }}}}/").expand(
        urls=versions
    )

# SPDX-License-Identifier: Apache-2.0
"""
### Several versions of one private clip

A clip from a disk or a private bucket is uploaded once, and each prompt makes a version of its own of it. The results
are collected at the end, each beside its prompt. The page behind *Luma result* of any version leads to the gallery,
which shows all of them.

Luma reads public addresses only. `LumaModifyOperator` uploads a file by itself; where many tasks share one, an upload
of its own saves the others. Luma keeps it for a day, and deletes it.

Needs a connection `luma_default` of type Luma, with the API key as its Password, and a pool `luma` that counts
deferred tasks:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaModifyOperator, LumaUploadOperator


@task
def prompts(params: dict[str, Any]) -> list[str]:
    return list(params["prompts"])


@task
def collect(asked: list[str], results: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    versions = [
        {"prompt": prompt, "url": result["result_urls"][0]} for prompt, result in zip(asked, results, strict=True)
    ]
    for version in versions:
        print(f"{version['prompt']}\n  {version['url']}")
    return versions


with DAG(
    dag_id="luma_variations",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "source": Param(
            os.environ.get("LUMA_VIDEO", "/data/clip.mp4"),
            type="string",
            minLength=1,
            description="A clip on a disk of the workers, or in an object store, e.g. s3://my_aws@bucket/clip.mp4.",
        ),
        "prompts": Param(
            ["Make it a rainy night with neon lights", "Cover everything in fresh snow", "Paint it in watercolours"],
            type="array",
            items={"type": "string"},
            minItems=1,
            description="How to change the clip, in English; one version for each line, and one job to pay.",
        ),
    },
):
    upload = LumaUploadOperator(task_id="upload", source="{{ params.source }}")

    asked = prompts()
    modify = LumaModifyOperator.partial(
        task_id="modify",
        video_url="{{ ti.xcom_pull(task_ids='upload', key='url') }}",
        pool="luma",
        map_index_template="{{ task.prompt }}",
    ).expand(prompt=asked)
    upload >> modify

    collect(asked, modify.output)

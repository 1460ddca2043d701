# SPDX-License-Identifier: Apache-2.0
"""
### Modify many clips

Each clip has a mapped task of its own, which is submitted, waited for, retried and downloaded independently. The
files are collected at the end. The page behind *Luma result* of any clip leads to the gallery, which shows all of them,
before and after, while the run goes on.

The pool `luma` limits how many jobs run at Luma at the same time. Create it once, **with deferred tasks
included**, because a task that waits in the triggerer still has a job running at Luma:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"

Needs a connection `luma_default` of type Luma, with the API key as its Password.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

SAMPLE = os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4")
# The simulator serves three different clips. An address of your own remains one clip, and costs one job.
CLIPS = list(
    dict.fromkeys(SAMPLE.replace("/sample.mp4", f"/{name}.mp4") for name in ("sample", "sample-2", "sample-3"))
)


@task
def clips(params: dict[str, Any]) -> list[str]:
    return list(params["video_urls"])


@task
def collect(downloads: Iterable[list[str]]) -> list[str]:
    files = [file for files in downloads for file in files]
    print(f"{len(files)} videos:", *files, sep="\n  ")
    return files


with DAG(
    dag_id="luma_batch",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Cover everything in fresh snow",
            type="string",
            minLength=1,
            description="How to change the videos, in English.",
        ),
        "video_urls": Param(
            CLIPS,
            type="array",
            items={"type": "string"},
            minItems=1,
            description="Public addresses of the clips, one per line.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the videos, on a disk or an object store.",
        ),
    },
):
    modify = LumaModifyOperator.partial(
        task_id="modify",
        prompt="{{ params.prompt }}",
        pool="luma",
        map_index_template="{{ task.video_url.rsplit('/', 1)[-1] }}",
    ).expand(video_url=clips())

    download = LumaDownloadOperator.partial(
        task_id="download",
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/{{ ti.map_index }}/",
    ).expand(urls=modify.output.map(lambda result: result["result_urls"]))

    collect(download.output)

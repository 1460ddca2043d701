# SPDX-License-Identifier: Apache-2.0
"""
### Several versions of one private clip

A clip from a disk or a private bucket is uploaded once. Each prompt makes its own version of the clip, which is
downloaded as soon as it is ready. A version that fails does not affect the others: at the end, `collect` lists the
videos with their prompts. If any is missing, `collect` fails and names the prompt and the reason.

The *Luma result* page of any version links to the gallery, which shows all of them.

Luma cannot read private files. `LumaModifyOperator` uploads them itself; with several tasks for the same file, a
separate upload task avoids uploading it several times. Luma keeps the upload for at least a day.

Needs a connection `luma_default` of type Luma, with your API key, and a pool `luma` that counts
deferred tasks:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from airflow.sdk import DAG, Param, task, task_group

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator, LumaUploadOperator


@task
def prompts(params: dict[str, Any]) -> list[str]:
    return list(params["prompts"])


@task_group
def version(prompt: str) -> None:
    """Make one version, and download it. Add whatever else each video needs."""
    modify = LumaModifyOperator(
        task_id="modify",
        prompt=prompt,
        video_url="{{ ti.xcom_pull(task_ids='upload', key='url') }}",
        pool="luma",
        map_index_template="{{ task.prompt }}",
    )
    LumaDownloadOperator(
        task_id="download",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/{{ ti.map_index }}/",
    )


@task(trigger_rule="all_done", retries=0)
def collect(asked: list[str], ti: Any) -> list[dict[str, str]]:
    """Return the videos; fail if a prompt has none."""
    steps = ["version.modify", "version.download"]
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=steps, run_ids=[ti.run_id])[ti.run_id]
    versions, missing = [], []
    # By map index: failed tasks have no XCom, so a list of all XComs would not match the prompts.
    for index, prompt in enumerate(asked):
        failed = next((step for step in steps if states.get(f"{step}_{index}") != "success"), None)
        if failed is None:
            [file] = ti.xcom_pull(task_ids="version.download", map_indexes=index)
            versions.append({"prompt": prompt, "file": file})
        else:
            error = ti.xcom_pull(task_ids=failed, key="luma_error", map_indexes=index)
            reason = error["msg"] if error else f"{failed} [{index}] is {states.get(f'{failed}_{index}')}"
            missing.append(f"{prompt}: {reason}")
    print(f"Videos ({len(versions)}):", *(f"{made['prompt']}\n    {made['file']}" for made in versions), sep="\n  ")
    if missing:
        raise RuntimeError("\n  ".join([f"No video for {len(missing)} of {len(asked)} prompts:", *missing]))
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
            description="Prompts in English, one per line; each makes one version and costs one job.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the videos, on a disk or an object store.",
        ),
    },
):
    upload = LumaUploadOperator(task_id="upload", source="{{ params.source }}")

    asked = prompts()
    upload >> version.expand(prompt=asked) >> collect(asked)

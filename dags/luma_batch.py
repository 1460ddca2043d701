# SPDX-License-Identifier: Apache-2.0
"""
### Modify many clips

Each clip is submitted, retried and downloaded independently, so a clip that fails does not affect the others. At the
end, `collect` lists the videos. If any is missing, `collect` fails and lists each clip without a video, with the
reason. In that case, clear the failed tasks: no other clip is paid for again.

The *Luma result* page of any clip links to the gallery, which shows all clips and their videos, even while the run is
in progress.

The pool `luma` limits the number of jobs that run at Luma at the same time. Create it once, **including deferred
tasks**, because a task that waits in the triggerer still has a job running at Luma:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"

Needs a connection `luma_default` of type Luma, with your API key.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from airflow.sdk import DAG, Param, task, task_group

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

SAMPLE = os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4")
# The simulator serves three different clips. An address of your own stays a single clip, and a single job.
CLIPS = list(
    dict.fromkeys(SAMPLE.replace("/sample.mp4", f"/{name}.mp4") for name in ("sample", "sample-2", "sample-3"))
)


@task
def clips(params: dict[str, Any]) -> list[str]:
    return list(params["video_urls"])


@task_group
def clip(video_url: str) -> None:
    """Modify one clip, and download it. Add whatever else each video needs."""
    modify = LumaModifyOperator(
        task_id="modify",
        prompt="{{ params.prompt }}",
        video_url=video_url,
        pool="luma",
        # Without the query, which contains the signature of a signed address.
        map_index_template="{{ task.video_url.split('?')[0].rsplit('/', 1)[-1] }}",
    )
    LumaDownloadOperator(
        task_id="download",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/{{ ti.map_index }}/",
    )


@task(trigger_rule="all_done", retries=0)
def collect(asked: list[str], ti: Any) -> list[str]:
    """Return the videos; fail if a clip has none."""
    steps = ["clip.modify", "clip.download"]
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=steps, run_ids=[ti.run_id])[ti.run_id]
    files, missing = [], []
    # By map index: failed tasks have no XCom, so a list of all XComs would not match the clips.
    for index, video_url in enumerate(asked):
        failed = next((step for step in steps if states.get(f"{step}_{index}") != "success"), None)
        if failed is None:
            files += ti.xcom_pull(task_ids="clip.download", map_indexes=index)
        else:
            error = ti.xcom_pull(task_ids=failed, key="luma_error", map_indexes=index)
            reason = error["msg"] if error else f"{failed} [{index}] is {states.get(f'{failed}_{index}')}"
            missing.append(f"{video_url.split('?')[0]}: {reason}")
    print(f"Videos ({len(files)}):", *files, sep="\n  ")
    if missing:
        raise RuntimeError("\n  ".join([f"No video for {len(missing)} of {len(asked)} clips:", *missing]))
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
            description="The clips, one per line: public addresses, or files in any storage.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the videos, on a disk or an object store.",
        ),
    },
):
    all_clips = clips()
    clip.expand(video_url=all_clips) >> collect(all_clips)

# SPDX-License-Identifier: Apache-2.0
"""
### Modify a film that is too long for Luma

Luma accepts only short clips. The film is split into clips, a separate job modifies each clip, and the
results are joined into a film, in sync and with the original sound.

**Each clip is a job that you pay for**: the log of `split` shows how many there are before the first is submitted, and
`max_clips` limits their number. A failed clip can be retried or cleared without the others.

Needs a connection `luma_default` of type Luma, with your API key, the extra `media` of the provider
package, and a pool `luma` that counts deferred tasks:

    airflow pools set --include-deferred luma 20 "Jobs running at Luma"
"""

from __future__ import annotations

import os
import tempfile

from airflow.sdk import DAG, Param

from airflow_provider_luma.task_groups.video import modify_long_video

with DAG(
    dag_id="luma_long_video",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "Make it a rainy night with neon lights",
            type="string",
            minLength=1,
            description="How to change the film, in English.",
        ),
        "source": Param(
            os.environ.get("LUMA_VIDEO", "/data/film.mp4"),
            type="string",
            minLength=1,
            description="The film: a file on a disk of the workers, or in an object store.",
        ),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the film, on a disk or an object store.",
        ),
    },
):
    modify_long_video(
        group_id="film",
        source="{{ params.source }}",
        prompt="{{ params.prompt }}",
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/film.mp4",
        work_dir="{{ params.destination }}/work",
        max_clips=60,
        pool="luma",
    )

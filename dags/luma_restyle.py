# SPDX-License-Identifier: Apache-2.0
"""
### Restyle a clip with Luma's own API, and keep its sound

`strength` sets how far the result may depart from the clip: from `adhere_1`, which keeps most, through `flex_1` to
`reimagine_3`. The price depends on `resolution`: try a prompt in `360p` first.

Luma's own API returns silent videos, so `download` adds the sound of the clip to the result.

Needs a connection `luma_agents` of type Luma, with your API key for Luma's own API, and the extra `media` of the
provider package:

    airflow connections add luma_agents --conn-uri 'luma://:luma-api-YOUR-KEY@agents.lumalabs.ai'
"""

from __future__ import annotations

import os
import tempfile

from airflow.sdk import DAG, Param

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator

with DAG(
    dag_id="luma_restyle",
    schedule=None,
    doc_md=__doc__,
    tags=["luma", "example"],
    params={
        "prompt": Param(
            "A hand-drawn film in watercolours",
            type="string",
            minLength=1,
            description="How to change the video.",
        ),
        "video_url": Param(
            os.environ.get("LUMA_VIDEO_URL", "http://127.0.0.1:8765/files/sample.mp4"),
            type="string",
            minLength=1,
            description="An MP4, MOV or WebM of at most 18 seconds and 200 MB: a public https address.",
        ),
        "strength": Param(
            "flex_2",
            enum=[f"{kind}_{degree}" for kind in ("adhere", "flex", "reimagine") for degree in (1, 2, 3)],
            description="How far the result may depart from the clip.",
        ),
        "resolution": Param("360p", enum=["360p", "540p", "720p", "1080p"], description="360p is a cheap draft."),
        "destination": Param(
            os.environ.get("LUMA_DESTINATION", f"file://{tempfile.gettempdir()}/luma"),
            type="string",
            minLength=1,
            description="Folder for the video, on a disk or an object store.",
        ),
    },
):
    modify = LumaModifyOperator(
        task_id="modify",
        luma_conn_id="luma_agents",
        prompt="{{ params.prompt }}",
        video_url="{{ params.video_url }}",
        options={"video": {"resolution": "{{ params.resolution }}", "edit": {"strength": "{{ params.strength }}"}}},
    )
    LumaDownloadOperator(
        task_id="download",
        luma_conn_id="luma_agents",
        urls=modify.output,
        destination="{{ params.destination }}/{{ dag.dag_id }}/{{ run_id }}/",
        sound_from="{{ params.video_url }}",
    )

# SPDX-License-Identifier: Apache-2.0
"""
One DAG for each rehearsal: clip → modify → download, as in ``luma_modify``, but impatient.

Each has its own connection, and so its own Luma with its own faults; they can all run at once.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

DESTINATION = os.environ["LUMA_DESTINATION"]


def arguments(operator: dict[str, Any]) -> dict[str, Any]:
    seconds = operator.pop("execution_timeout", None)
    return {**operator, "execution_timeout": timedelta(seconds=seconds)} if seconds else operator


for name, rehearsal in json.loads(os.environ["LUMA_REHEARSALS"]).items():
    with DAG(
        dag_id=f"rehearse_{name}",
        schedule=None,
        default_args={
            "luma_conn_id": f"luma_{name}",
            "retries": rehearsal["retries"],
            "retry_delay": timedelta(seconds=1),
        },
    ):
        modify = LumaModifyOperator(
            task_id="modify",
            prompt="Make it a {{ 'snowy' }} morning",
            video_url=rehearsal["video_url"],
            poll_interval=1,
            **arguments(rehearsal["operator"]),
        )
        LumaDownloadOperator(
            task_id="download",
            urls=modify.output["result_urls"],
            destination=f"{DESTINATION}/{{{{ dag.dag_id }}}}/{{{{ run_id }}}}/",
        )

with DAG(
    dag_id="every_way_to_wait",
    schedule=None,
    params={"luma_conn_id": "luma_default"},
    default_args={"luma_conn_id": "{{ params.luma_conn_id }}"},
):
    submit = LumaModifyOperator(
        task_id="submit",
        prompt="Make it a snowy morning",
        video_url=os.environ["LUMA_VIDEO_URL"],
        wait_for_completion=False,
    )
    for mode, options in {
        "deferrable": {"poke_interval": 1},
        "poke": {"deferrable": False, "poke_interval": 1},
        "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 30},
    }.items():
        LumaTaskSensor(task_id=mode, luma_task_id=submit.output["luma_task_id"], **options)
    LumaTaskSensor(task_id="unknown", luma_task_id="there-is-no-such-task", retries=2)
    LumaTaskSensor(task_id="unknown_but_soft", luma_task_id="there-is-no-such-task", soft_fail=True)

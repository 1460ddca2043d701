# SPDX-License-Identifier: Apache-2.0
"""One DAG for each way in which a callback may come, or be lost."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

for name, options in {
    "once": {"poll_interval": 30},
    "never": {},
    "five_times": {},
    "early": {},
    "by_others": {"poll_interval": 30},
    "by_an_old_token": {"poll_interval": 30},
    "after_a_lost_answer": {},
    "before_the_retry": {"retries": 2},
    "after_the_retry": {"retries": 2},
    "by_a_sensor": {"poll_interval": 30, "wait_for_completion": False},
}.items():
    with DAG(dag_id=f"callback_{name}", schedule=None, default_args={"luma_conn_id": f"luma_callback_{name}"}):
        modify = LumaModifyOperator(
            task_id="modify",
            prompt="Make it a snowy morning",
            video_url=os.environ["LUMA_VIDEO_URL"],
            retry_delay=timedelta(seconds=1),
            **{"poll_interval": 1, **options},
        )
        if name == "by_a_sensor":
            for task_id in ("one", "another"):
                LumaTaskSensor(task_id=task_id, luma_task_id=modify.output["luma_task_id"])

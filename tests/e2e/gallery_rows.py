# SPDX-License-Identifier: Apache-2.0
"""
Write into Airflow's metadata database how the instances of a mapped task have ended, as if they had run.

A run of hundreds of tasks would take many minutes. Started by :mod:`test_gallery` with the environment of its Airflow;
what to write comes as JSON: the run, and for each map index a state, a label and XComs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select


def write(dag_id: str, run_id: str, task_id: str, rows: dict[str, dict[str, Any]]) -> None:
    """Write states and XComs; the task instances are there since the run was created."""
    named = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
    with create_session() as session:
        for ti in session.scalars(select(TaskInstance).filter_by(**named)):
            row = rows.get(str(ti.map_index))
            if row is None:
                continue
            ti.state = row["state"]
            ti._rendered_map_index = row.get("label")
            for key, value in row.get("xcoms", {}).items():
                XComModel.set(key=key, value=value, map_index=ti.map_index, session=session, **named)


if __name__ == "__main__":
    write(**json.load(sys.stdin))

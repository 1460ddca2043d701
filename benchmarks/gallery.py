# SPDX-License-Identifier: Apache-2.0
"""How long the gallery of a mapped task with 500 finished jobs takes in a browser."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from airflow_provider_luma.simulator import Simulator
from benchmarks.pages import add_dags, measure

JOBS = 500
DAG_ID, RUN_ID, TASK_ID = "bench", "run", "modify"

WATCH = """
    window.seen = {};
    const isInView = ({ top, bottom }) => top < innerHeight && bottom > 0;
    const look = () => {
        const cards = [...document.querySelectorAll('.card')];
        const inView = cards.filter(card => isInView(card.getBoundingClientRect()));
        const videos = inView.map(card => [...card.querySelectorAll('video')]);
        const now = {
            cards: cards.length > 0,
            prompts: inView.length > 0 && inView.every(card => /version \\d/.test(card.textContent)),
            pictures: inView.length > 0 && videos.every(pair => pair.length && pair.every(one => one.readyState >= 2)),
        };
        for (const name in now) if (now[name]) window.seen[name] ??= performance.now();
    };
    new MutationObserver(look).observe(document, { childList: true, subtree: true, characterData: true });
    document.addEventListener('loadeddata', look, true);"""

#: What the script notes, and the columns of the table.
NAMES = {"cards": "cards", "prompts": "prompts in view", "pictures": "pictures in view"}


def main() -> None:
    """Measure, and print a table."""
    print(f"A mapped task with {JOBS} finished jobs:\n")
    page = f"/luma/gallery?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}"
    with Simulator() as luma:
        os.environ["BENCH_VIDEO_URL"] = luma.sample_url  # for the process that fills the database
        measure("benchmarks.gallery", page, WATCH, NAMES)


def fill() -> None:
    """Write the run into the database of the Airflow whose environment this process has."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from sqlalchemy import insert, select

    now = datetime.now(UTC)
    run = {"dag_id": DAG_ID, "run_id": RUN_ID}
    times = {"run_after": now, "logical_date": now, "start_date": now, "queued_at": now}
    with add_dags(DAG_ID).begin() as connection:
        row = {**run, **times, "run_type": "manual", "state": "success", "clear_number": 0}
        connection.execute(insert(DagRun.__table__), row)
        number = connection.execute(select(DagRun.__table__.c.id)).scalar_one()
        ended = {"state": "success", "start_date": now, "end_date": now, "try_number": 1, "pool": "default_pool"}
        task = {**run, **ended, "task_id": TASK_ID, "operator": "LumaModifyOperator"}
        connection.execute(insert(TaskInstance.__table__), [{**task, "map_index": index} for index in range(JOBS)])
        xcom = {**run, "dag_run_id": number, "task_id": TASK_ID, "timestamp": now}
        pushed = [{**xcom, "map_index": index, **one} for index in range(JOBS) for one in _xcoms(index, now)]
        connection.execute(insert(XComModel.__table__), pushed)


def _xcoms(index: int, ended: datetime) -> list[dict[str, str]]:
    url = os.environ["BENCH_VIDEO_URL"]
    result: dict[str, Any] = {
        **{"luma_task_id": f"job-{index}", "status": "SUCCESS", "result_urls": [url], "origin_urls": []},
        **{"created_at": ended.isoformat(), "completed_at": ended.isoformat()},
    }
    values = {"luma_request": {"kind": "clip", "prompt": f"version {index}", "video_url": url}, "return_value": result}
    return [{"key": key, "value": json.dumps(value)} for key, value in values.items()]


if __name__ == "__main__":
    fill() if sys.argv[1:] == ["fill"] else main()

# SPDX-License-Identifier: Apache-2.0
"""
How long the overview of all jobs takes in a browser, with a history of 20,000 task instances.

A fifth of the task instances are jobs, and a fifth downloads of their results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.pages import add_dags, measure

DAGS, RUNS, TASKS = 20, 200, 5
RUNS_RENDERED = 30
DAYS = 28

#: Notes when something first appears on the page, in milliseconds since its navigation.
WATCH = """
    window.seen = {};
    const texts = selector => [...document.querySelectorAll(selector)].map(element => element.textContent);
    const isInView = ({ top, bottom }) => top < innerHeight && bottom > 0;
    const look = () => {
        const rows = [...document.querySelectorAll('#jobs tbody tr')];
        const inView = rows.filter(row => isInView(row.getBoundingClientRect()));
        const now = {
            jobs: rows.length > 0,
            prompts: rows.length > 0 && inView.every(row => row.children[3].textContent),
            details: rows.length > 0 && inView.every(row => row.children[6].textContent),
            firstHand: document.querySelector('#hands tbody tr') !== null,
            hands: texts('#hands-note').some(words => words && words !== 'Checking …'),
        };
        for (const name in now) if (now[name]) window.seen[name] ??= performance.now();
    };
    new MutationObserver(look).observe(document, { childList: true, subtree: true, characterData: true });"""


#: What the script notes, and the columns of the table.
NAMES = {
    "jobs": "listed",
    "prompts": "prompts in view",
    "details": "rows in view complete",
    "firstHand": "first that needs a hand",
    "hands": "first 40 checked",
}


def main() -> None:
    """Measure, and print a table."""
    print(f"{DAGS * RUNS * TASKS:,} task instances of {DAYS} days, of which {DAGS * RUNS:,} are jobs:\n")
    measure("benchmarks.overview", "/luma/overview", WATCH, NAMES)


# -- the history -----------------------------------------------------------------------------------------------------


def fill() -> None:
    """Write the history into the database of the Airflow whose environment this process has."""
    from airflow.models.dagrun import DagRun
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from sqlalchemy import insert, select

    engine = add_dags(*(f"dag_{number}" for number in range(DAGS)))
    tasks, xcoms = _tasks_and_xcoms()
    with engine.begin() as connection:
        connection.execute(insert(DagRun.__table__), list(_runs()))
    with engine.begin() as connection:
        runs = connection.execute(select(DagRun.__table__.c["dag_id", "run_id", "id"]))
        ids = {(dag_id, run_id): number for dag_id, run_id, number in runs}
        connection.execute(insert(TaskInstance.__table__), tasks)
        connection.execute(insert(RenderedTaskInstanceFields.__table__), list(_rendered()))
        of_runs = ({**xcom, "dag_run_id": ids[xcom["dag_id"], xcom["run_id"]]} for xcom in xcoms)
        connection.execute(insert(XComModel.__table__), list(of_runs))


def _started(run: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=DAYS) * (RUNS - run) / RUNS


def _runs() -> Iterator[dict[str, Any]]:
    for dag in range(DAGS):
        for run in range(RUNS):
            at = _started(run) + timedelta(minutes=dag)
            times = {"run_after": at, "logical_date": at, "start_date": at, "queued_at": at}
            named = {"dag_id": f"dag_{dag}", "run_id": f"run_{run}"}
            yield {**named, **times, "run_type": "scheduled", "state": "success", "clear_number": 0}


def _rendered() -> Iterator[dict[str, Any]]:
    """Return the rendered fields of the newest runs of each DAG: Airflow keeps no more."""
    for dag in range(DAGS):
        for run in range(RUNS - RUNS_RENDERED, RUNS):
            fields = {"prompt": f"Prompt {run}", "video_url": "https://e.com/v.mp4"}
            named = {"dag_id": f"dag_{dag}", "run_id": f"run_{run}", "task_id": "modify", "map_index": -1}
            yield {**named, "rendered_fields": fields, "k8s_pod_yaml": None}


def _tasks_and_xcoms() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    tasks, xcoms = [], []
    others = {f"other_{n}": "BashOperator" for n in range(TASKS - 2)}
    operators = {"modify": "LumaModifyOperator", "download": "LumaDownloadOperator", **others}
    for dag in range(DAGS):
        for run in range(RUNS):
            named = {"dag_id": f"dag_{dag}", "run_id": f"run_{run}"}
            began = _started(run) + timedelta(minutes=dag)
            ended = began + timedelta(minutes=5)
            job, is_bad = f"{dag:08x}-{run:04x}-4e9a-9a77-2f0d5c3e1a11", (dag + run) % 40 == 0
            for task_id, operator in operators.items():
                state = "failed" if is_bad and task_id == "modify" else "upstream_failed" if is_bad else "success"
                task = {**named, "task_id": task_id, "operator": operator, "map_index": -1, "pool": "default_pool"}
                tasks.append({**task, "state": state, "start_date": began, "end_date": ended, "try_number": 1})
            pushed = {"luma_request": {"kind": "clip", "prompt": f"Prompt {run}", "video_url": "https://e.com/v.mp4"}}
            result = {
                **{"luma_task_id": job, "status": "SUCCESS", "result_urls": [f"https://e.com/{job}.mp4"]},
                **{"origin_urls": [], "created_at": began.isoformat(), "completed_at": ended.isoformat()},
            }
            error = {
                "type": "LumaTimeoutError",
                "msg": "not finished",
                "code": None,
                "luma_task_id": job,
                "remedy": "Clear it",
            }
            ending = {"luma_error": error, "luma_task_id": job} if is_bad else {"return_value": result, **result}
            written = [f"/videos/{job}.mp4"]
            downloaded = {} if is_bad else {f"luma_fetched_{job}": written, "return_value": written}
            for task_id, values in {"modify": {**pushed, **ending}, "download": downloaded}.items():
                xcom = {**named, "task_id": task_id, "map_index": -1, "timestamp": ended}
                xcoms += [{**xcom, "key": key, "value": json.dumps(value)} for key, value in values.items()]
    return tasks, xcoms


if __name__ == "__main__":
    fill() if sys.argv[1:] == ["fill"] else main()

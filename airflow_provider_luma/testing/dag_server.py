# SPDX-License-Identifier: Apache-2.0
"""
Runs DAGs in a separate process, one at a time: ``python dag_server.py FILE_DESCRIPTOR PARENT``.

:mod:`.airflow_process` starts it with the environment that Airflow is to read, and sends requests to that descriptor.
It ends when its parent does.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: Seconds between two status checks, or two tries of a call: a simulated job ends at once.
BRIEFLY = 0.1


def shorten_waits() -> None:
    """Shorten the package's waits. Other modules copy these values when they are imported, so this must run first."""
    from airflow_provider_luma.core import backoff, deferral, poll_state
    from airflow_provider_luma.services import luma
    from airflow_provider_luma.submission import queue

    class BriefPollState(poll_state.PollState):
        def __init__(self, luma_task_id: str, *, poll_interval: float, **others: Any) -> None:
            super().__init__(luma_task_id, poll_interval=min(poll_interval, BRIEFLY), **others)

    deferral.SHORTEST_DEFERRAL = 0.0  # it is for Airflow's scheduler, which does not run here
    queue.SUBMISSION_WINDOW = 0.0
    backoff.FIRST_DELAY = luma.FIRST_CHECK_DELAY = BRIEFLY
    poll_state.PollState = BriefPollState  # type: ignore[misc]


def migrate() -> None:
    """Create the database, and keep a copy of it. If one exists, restore it: an earlier process was killed."""
    from airflow.utils.db import initdb

    home = Path(os.environ["AIRFLOW_HOME"])
    if (home / "migrated.db").exists():
        _copy("migrated.db", "airflow.db")
        return
    (home / "airflow.db").unlink(missing_ok=True)
    initdb()
    _copy("airflow.db", "migrating.db")
    (home / "migrating.db").replace(home / "migrated.db")


def reset() -> None:
    """Restore the database as it was after the migration."""
    from airflow import settings

    assert settings.Session is not None
    settings.Session.remove()  # the last run's, which dag.test() leaves open
    _copy("migrated.db", "airflow.db")


def _copy(source: str, target: str) -> None:
    """Copy a database in Airflow's home over another one, even if that is in use."""
    home = Path(os.environ["AIRFLOW_HOME"])
    with closing(sqlite3.connect(home / source)) as reader, closing(sqlite3.connect(home / target)) as writer:
        reader.backup(writer)


def run(dag_id: str, params: dict[str, Any], environment: dict[str, str], log: str) -> dict[str, Any]:
    """Run a DAG; return the state of the run, those of its tasks, and the XComs."""
    os.environ.clear()
    os.environ.update(environment)
    _log_to(log)
    dag = _find(dag_id)
    _retry_at_once(dag)
    dag_run = dag.test(run_conf=params)
    states = [(ti.task_id, ti.map_index, ti.state and str(ti.state)) for ti in dag_run.get_task_instances()]
    return {"state": str(dag_run.state), "states": states, "xcoms": _xcoms(dag_id, dag_run.run_id)}


def _log_to(file: str) -> None:
    """Send everything that this process and its children print from now on to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with Path(file).open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _find(dag_id: str) -> Any:
    """Return a DAG; if it does not exist, raise LookupError and list the DAG files that could not be imported."""
    from airflow_provider_luma.compat import BundleDagBag

    folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
    bag = BundleDagBag(folder, bundle_path=Path(folder))
    if dag_id in bag.dags:
        return bag.dags[dag_id]
    found = f"There is no DAG {dag_id!r} in {folder}; DAGs there: {', '.join(sorted(bag.dags)) or 'none'}"
    errors = [f"{Path(folder, file)} cannot be imported:\n{error}" for file, error in bag.import_errors.items()]
    raise LookupError("\n".join([found, *errors]))


def _retry_at_once(dag: Any) -> None:
    """Let tasks be retried, and our sensors poke, without the delays that a DAG sets."""
    from airflow_provider_luma.sensors.luma import LumaTaskSensor

    for task in dag.tasks:
        is_mapped = hasattr(task, "partial_kwargs")
        shorter: dict[str, Any] = {"retry_delay": timedelta(0)}
        if issubclass(task.operator_class if is_mapped else type(task), LumaTaskSensor):
            shorter["poke_interval"] = BRIEFLY
        if is_mapped:
            task.partial_kwargs.update(shorter)
        else:
            vars(task).update(shorter)


def _xcoms(dag_id: str, run_id: str) -> list[tuple[str, int, str, Any]]:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    of_run = select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id)
    with create_session() as session:
        rows = session.scalars(of_run)
        return [(row.task_id, row.map_index, row.key, _value(row)) for row in rows]


def _value(row: Any) -> Any:
    from airflow.sdk.execution_time.xcom import XCom

    try:
        return XCom.deserialize_value(row)
    except Exception:  # Airflow is not allowed to import its class here, or the class cannot read it
        return row.value


def serve(channel: Connection) -> None:
    """Answer requests until the other side closes the channel."""
    actions: dict[str, Callable[..., Any]] = {"start": migrate, "reset": reset, "run": run}
    while True:
        try:
            request = json.loads(channel.recv_bytes())
        except EOFError:
            return
        try:
            answer = actions[request.pop("do")](**request) or {}
        except Exception as error:
            traceback.print_exc()
            answer = {"problem": str(error) if isinstance(error, LookupError) else f"{type(error).__name__}: {error}"}
        channel.send_bytes(json.dumps(answer, default=str).encode())


def end_with(parent: int) -> None:
    """Kill this process and those of its tasks as soon as the process of the tests has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[2]),), daemon=True).start()
    os.set_inheritable(int(sys.argv[1]), False)
    shorten_waits()
    serve(Connection(int(sys.argv[1])))

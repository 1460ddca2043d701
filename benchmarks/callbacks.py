# SPDX-License-Identifier: Apache-2.0
"""
What a callback costs: processor time of the receiver and of the database, with few and with many tasks and records.

The receiver runs in a separate process, mounted as in Airflow's API server, on PostgreSQL. Each callback resumes one
task. It is measured first with no other waiting task and no other record, then with 5,000 waiting tasks and the records
of 200,000 submissions. Callbacks to addresses that do not name the try, as in version 1.0.0, show what a search costs.

``CALLBACKS=100`` and ``CALLBACK_ROUNDS=3`` set how many callbacks are sent, and how often.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import httpx
import psutil

CALLBACKS = int(os.environ.get("CALLBACKS", "100"))
ROUNDS = int(os.environ.get("CALLBACK_ROUNDS", "3"))
WAITING, RECORDS = 5_000, 200_000


def main() -> None:
    """Measure in a separate process, whose Airflow has a separate database, and print a table."""
    from harness.postgres import binaries, postgres

    programs = binaries()
    if programs is None:
        print("Not measured: there is no PostgreSQL on this machine.")
        return
    with TemporaryDirectory() as folder, postgres(programs) as url:
        environment = {
            "AIRFLOW_HOME": folder,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        command = [sys.executable, "-c", "from benchmarks.callbacks import measure; measure()"]
        subprocess.run(command, env={**os.environ, **environment}, check=True)


def measure() -> None:
    """Measure, and print a table."""
    from airflow.utils.db import initdb

    from harness.api_server import KEY, api_server_process

    initdb()
    _execute("ALTER SYSTEM SET autovacuum = off")
    _execute("SELECT pg_reload_conf()")
    spent: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    connection = json.dumps({"conn_type": "luma", "host": "http://127.0.0.1:9", "password": KEY})
    with api_server_process(AIRFLOW_CONN_LUMA_DEFAULT=connection) as port:
        receiver = psutil.Process().children()[-1]
        _callbacks(port, receiver, names_try=True)  # warm up: the first callbacks import modules and fill caches
        for _ in range(ROUNDS):
            for others in ("none", f"{WAITING:,} waiting, {RECORDS:,} records"):
                _fill(has_others=others != "none")
                for names_try in (True, False):
                    spent.setdefault((others, names_try), []).append(_callbacks(port, receiver, names_try=names_try))
    print(f"{CALLBACKS} callbacks, {ROUNDS} times; medians of the processor time of each:\n")
    print("| other tasks and records | address | receiver ms | database ms | both ms | times |")
    print("|---|---|---:|---:|---:|---:|")
    least = _median(spent[("none", True)])[2]
    for (others, names_try), seconds in spent.items():
        own, database, both = _median(seconds)
        address = "names the try" if names_try else "of 1.0.0"
        print(f"| {others} | {address} | {own:.1f} | {database:.1f} | {both:.1f} | {both / least:.1f} |")


def _median(seconds: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return milliseconds a callback, of the receiver, the database, and both."""
    columns = [[own for own, _ in seconds], [database for _, database in seconds], [sum(both) for both in seconds]]
    own, database, both = (statistics.median(column) * 1000 / CALLBACKS for column in columns)
    return own, database, both


def _callbacks(port: int, receiver: psutil.Process, *, names_try: bool) -> tuple[float, float]:
    """Defer tasks, send their callbacks one by one; return the seconds of the receiver and the database for all."""
    from airflow_provider_luma.connection import LumaConnection
    from airflow_provider_luma.core.callback_token import callback_url
    from airflow_provider_luma.core.decision import SubmissionRecord, new_reference
    from harness.api_server import KEY
    from harness.metadata_db import MetadataDb, TaskStateStoreModel, operator_awaiting_job

    db, connection = MetadataDb(), LumaConnection("http://127.0.0.1:9", KEY, callback_base_url="http://airflow")
    jobs, dag_id = [new_reference() for _ in range(CALLBACKS)], f"measured_{time.time_ns()}"
    tasks = db.defer(*map(operator_awaiting_job, jobs), dag_id=dag_id)
    urls = []
    for job, task in zip(jobs, tasks, strict=True):
        reference = new_reference()
        if TaskStateStoreModel is not None:
            db.save_record(task, SubmissionRecord(reference, "f" * 64, job, 2, 1, expects_callback=True))
        url = callback_url(connection, "luma_default", reference, UUID(str(task)) if names_try else None)
        urls.append((url or "").partition("?")[2])
    _execute("VACUUM ANALYZE")
    before = _cpu(receiver)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for job, query in zip(jobs, urls, strict=True):
            answer = client.post(f"/luma/callback?{query}", json={"code": 200, "data": {"taskId": job}})
            assert answer.status_code == 200
    still_waiting = f"SELECT count(*) FROM task_instance WHERE state = 'deferred' AND dag_id = '{dag_id}'"
    while _execute(still_waiting):
        time.sleep(0.2)
    own, database = (after - earlier for after, earlier in zip(_cpu(receiver), before, strict=True))
    return own, database


def _cpu(receiver: psutil.Process) -> tuple[float, float]:
    """Return the processor time so far of the receiver, and of PostgreSQL with the processes that it has ended."""
    server = psutil.Process(int(_execute("SELECT pg_backend_pid()"))).parent()
    assert server is not None, "PostgreSQL runs on this machine"
    own = receiver.cpu_times()
    database = sum(server.cpu_times()[:4])
    database += sum(sum(process.cpu_times()[:2]) for process in server.children())
    return own.user + own.system, database


def _fill(*, has_others: bool) -> None:
    """Leave no other tasks and records, or many: copies of one, under other names."""
    from airflow_provider_luma.core.decision import Outcome, SubmissionRecord
    from harness.metadata_db import JOB, MetadataDb, TaskStateStoreModel, operator_awaiting_job

    MetadataDb.empty()
    _execute("VACUUM FULL")
    if not has_others:
        return
    db = MetadataDb()
    (waiting,) = db.defer(operator_awaiting_job(), dag_id="waiting")
    (ended,) = db.defer(operator_awaiting_job(), dag_id="ended", state="success")
    trigger_id = db.states([waiting])[0].trigger_id
    job = {"next_kwargs": f"replace(next_kwargs::text, '{JOB}', md5(n::text))::jsonb"}
    _copy("trigger", trigger_id, WAITING, {"id": f"{trigger_id} + 1 + n"})
    own = {"id": "gen_random_uuid()", "task_id": "'task_' || n"}
    _copy("task_instance", waiting, WAITING, {**own, "trigger_id": f"{trigger_id} + 1 + n", **job})
    _copy("task_instance", ended, RECORDS, {**own, "trigger_id": "NULL"})
    if TaskStateStoreModel is not None:
        record = SubmissionRecord("0" * 32, "f" * 64, JOB, 2, 1, expects_callback=True, delivered=Outcome.RESULT)
        db.save_record(ended, record)
        first = _execute("SELECT max(id) FROM task_state_store")
        value = "replace(value, repeat('0', 32), md5(n::text))"
        _copy("task_state_store", first, RECORDS, {**own, "id": f"{first} + n", "value": value})
        _execute(f"SELECT setval('task_state_store_id_seq', {first} + {RECORDS})")
    _execute(f"SELECT setval('trigger_id_seq', {trigger_id} + 1 + {WAITING})")


def _copy(table: str, row_id: object, count: int, changes: dict[str, str]) -> None:
    """Copy a row of the database, with some columns computed from the number ``n`` of the copy."""
    names = _execute(
        f"SELECT string_agg(quote_ident(column_name), ',') FROM information_schema.columns WHERE table_name = '{table}'"
    ).split(",")
    values = ", ".join(changes.get(name, name) for name in names)
    _execute(
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table}, generate_series(1, {count}) n "
        f"WHERE id = '{row_id}'"
    )


def _execute(statement: str) -> Any:
    """Execute a statement by itself; return the first value of its result, if it has one."""
    from airflow import settings
    from sqlalchemy import text

    with settings.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        result = connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


if __name__ == "__main__":
    main()

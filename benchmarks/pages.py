# SPDX-License-Identifier: Apache-2.0
"""A page in a browser, with an API server on SQLite and, where it is installed, on PostgreSQL."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import requests
from selenium.webdriver import Chrome
from selenium.webdriver.support.ui import WebDriverWait
from sqlalchemy.engine import Engine

from harness.chromium import chromium
from harness.local_airflow import LocalAirflow
from harness.postgres import binaries, postgres

VISITS = 7


def measure(module: str, page: str, watch: str, names: Mapping[str, str]) -> None:
    """
    Visit a page several times, and print a table: the first visit, and the median of the others.

    :param module: ``python -m MODULE fill`` fills the database of the Airflow whose environment it has
    :param page: the page's path, below the API server's address
    :param watch: JavaScript that notes in ``window.seen`` when something first appears, in milliseconds since the
        page's own navigation
    :param names: what it notes, and the title of each column
    """
    print(f"| database | visit | {' | '.join(names.values())} | requests |")
    print(f"|---|---|{'---:|' * (len(names) + 1)}")
    databases: dict[str, AbstractContextManager[str | None]] = {"SQLite": nullcontext()}
    if programs := binaries():
        databases["PostgreSQL"] = postgres(programs)
    for database, running in databases.items():
        with TemporaryDirectory() as folder, running as address:
            environment = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address} if address else {}
            airflow = LocalAirflow(Path(folder), Path(folder, "dags"), environment)
            airflow.run("db", "migrate")
            subprocess.run([sys.executable, "-m", module, "fill"], env=airflow.environment, check=True)
            airflow.start("api-server")
            try:
                airflow.wait_until(lambda airflow=airflow: _answers(airflow), "the API server to answer")
                _print_visits(database, airflow, Path(folder), page, watch, names)
            finally:
                airflow.stop_all()


def add_dags(*dag_ids: str) -> Engine:
    """Add DAGs to the database of the Airflow whose environment this process has; return its engine."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(DagBundleModel(name="bench"))
        session.flush()
        named = {"bundle_name": "bench", "fileloc": "/dags/x.py", "is_stale": False}
        session.add_all(DagModel(dag_id=dag_id, **named) for dag_id in dag_ids)
        # Rows are not added in a session: computing a column's default ends a session that is open.
        return session.get_bind()


def _answers(airflow: LocalAirflow) -> bool:
    try:
        return requests.get(f"{airflow.url}/luma/overview", timeout=30).ok
    except requests.ConnectionError:
        return False


def _print_visits(
    database: str, airflow: LocalAirflow, folder: Path, page: str, watch: str, names: Mapping[str, str]
) -> None:
    with chromium(folder, "--window-size=1280,1000") as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
        browser.get(f"{airflow.url}/auth/token/login?next={airflow.url}/luma/static/common.css")
        visits = [_visit(browser, f"{airflow.url}{page}", names) for _ in range(VISITS)]
    for which, seen in {"first": visits[:1], "later": visits[1:]}.items():
        cells = [f"{statistics.median(visit[column] for visit in seen):,.0f}" for column in range(len(names) + 1)]
        print(f"| {database} | {which} | {' | '.join(cells)} |", flush=True)


def _visit(browser: Chrome, address: str, names: Mapping[str, str]) -> list[float]:
    browser.get(address)
    WebDriverWait(browser, 120, poll_frequency=0.2).until(
        lambda opened: opened.execute_script("return Object.keys(window.seen).length") == len(names),
        "the page to be complete",
    )
    seen = browser.execute_script("return window.seen")
    sent = "return performance.getEntriesByType('resource').filter(entry => entry.name.includes('/api/v2/')).length"
    return [*(seen[name] for name in names), browser.execute_script(sent)]

# SPDX-License-Identifier: Apache-2.0
"""
A real Airflow for all of these tests, and one Luma for each rehearsal.

Each group of tests shares an Airflow, so that groups run side by side: ``runs``, which watch runs of DAGs whatever goes
wrong, ``pages``, which look at pages and the connection, and ``long``. All of them end before a worker begins with the
unit tests, which they would slow down.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from airflow_provider_luma.simulator import Settings, Simulator
from harness.local_airflow import LocalAirflow
from harness.postgres import binaries, postgres
from tests.e2e.browsers import browser, stranger
from tests.e2e.runs import AIRFLOW, modify
from tests.e2e.scenarios import CALLBACKS, CRASHES, DAILY, INPUTS, KILLED, REHEARSALS, Rehearsal
from tests.support.s3_fixtures import s3_endpoint
from tests.support.storages import BUCKET, Bucket, aws_connection

__all__ = ["browser", "s3_endpoint", "stranger"]

REPOSITORY = Path(__file__).parent.parent.parent
#: For tests of Airflow's own record of a submission.
needs_task_state = pytest.mark.skipif(AIRFLOW < (3, 3), reason="needs Airflow 3.3")
#: On 3.3 records live in Airflow's task state store, which 3.1 and 3.2 lack, and which a Clear on 3.4 discards.
USES_SUBMISSION_STORE = AIRFLOW != (3, 3)

#: Rehearsals that run at the same time. A busier scheduler notices a deferral only after the job has ended, and then
#: fails the task.
AT_ONCE = 6

#: Example DAGs that run with a connection to Luma's own API as well, under ``own_api_`` and their names.
OWN_API_EXAMPLES = ("luma_modify", "luma_batch", "luma_long_video", "luma_submit_and_wait", "luma_variations")

#: The tests in whose Airflow the logs are searched for secrets: it logs at DEBUG, which the others need not pay for.
SECRETS_GROUP = "runs"

API_KEY = "the-key-that-must-not-be-seen-anywhere"
WEBHOOK_SECRET = "and-neither-must-the-key-that-signs"


@pytest.fixture(scope="package")
def to_rehearse(request: pytest.FixtureRequest) -> dict[str, Rehearsal]:
    """Return what is rehearsed: every day's, and what a test of this session is about."""
    selected = {
        item.callspec.params.get("name")
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    return {name: rehearsal for name, rehearsal in REHEARSALS.items() if name in DAILY or name in selected}


@pytest.fixture(scope="package")
def lumas(to_rehearse: dict[str, Rehearsal]) -> Iterator[dict[str, Simulator]]:
    """Return a running Luma for each rehearsal, and ``default`` for the example DAGs."""
    with ExitStack() as running:
        lumas = {
            name: running.enter_context(
                Simulator(
                    Settings.model_validate(
                        {
                            "api_key": API_KEY,
                            "webhook_secret": WEBHOOK_SECRET,
                            "processing_seconds": 3,
                            **rehearsal.luma,
                        }
                    )
                )
            )
            for name, rehearsal in {**to_rehearse, **CRASHES, **CALLBACKS, **INPUTS, "default": Rehearsal()}.items()
        }
        yield lumas


def set_connection(environment: dict[str, str], name: str, luma: Simulator, **extra: object) -> None:
    """Set the connection to a Luma, with this extra beside what it has."""
    variable = f"AIRFLOW_CONN_LUMA_{name.upper()}"
    extra = {**json.loads(environment.get(variable, "{}")).get("extra", {}), **extra}
    environment[variable] = json.dumps(
        {"conn_type": "luma", "host": luma.base_url, "password": API_KEY, "extra": extra}
    )


def service_of(name: str) -> dict[str, str]:
    """Return what the extra of a rehearsal's connection says about the service."""
    service = REHEARSALS[name].service if name in REHEARSALS else "kie"
    return {} if service == "kie" else {"service": service}


def enable_callbacks(airflow: LocalAirflow, lumas: dict[str, Simulator]) -> None:
    """Give connections the address of an Airflow that is not started yet."""
    for name in (*CALLBACKS, "crash_at_random", "default"):
        set_connection(
            airflow.environment, name, lumas[name], callback_base_url=airflow.url, webhook_secret=WEBHOOK_SECRET
        )


@pytest.fixture
def luma(lumas: dict[str, Simulator]) -> Simulator:
    """Return the Luma of the example DAGs, as new."""
    lumas["default"].reset()
    return lumas["default"]


@pytest.fixture(scope="package")
def crash_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a task says that it stands still."""
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="package")
def database() -> Iterator[dict[str, str]]:
    """Return the setting for a PostgreSQL; without one on this machine, Airflow takes SQLite."""
    programs = binaries()
    if programs is None:
        assert not os.environ.get("CI"), "PostgreSQL is needed here; it is not on this machine"
        yield {}
        return
    with postgres(programs) as address:
        yield {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}


@pytest.fixture(scope="package")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the example DAGs and with ours."""
    folder = tmp_path_factory.mktemp("dags")
    for file in [*(REPOSITORY / "dags").glob("*.py"), *(Path(__file__).parent / "dags").glob("*.py")]:
        shutil.copy(file, folder)
    for name in OWN_API_EXAMPLES:
        dag, own = f'dag_id="{name}"', f'dag_id="own_api_{name}", default_args={{"luma_conn_id": "luma_own_api"}}'
        (folder / f"own_api_{name}.py").write_text((folder / f"{name}.py").read_text().replace(dag, own))
    return folder


@pytest.fixture(scope="package")
def lineage_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file to which OpenLineage writes its events, a line each."""
    return tmp_path_factory.mktemp("lineage") / "events.jsonl"


@pytest.fixture(scope="package")
def environment(
    to_rehearse: dict[str, Rehearsal],
    lumas: dict[str, Simulator],
    crash_stage: Path,
    lineage_events: Path,
    s3_endpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Return what the DAGs need: connections, clips, and what to rehearse."""
    clip = tmp_path_factory.mktemp("clips") / "clip.mp4"
    clip.write_bytes(requests.get(lumas["default"].sample_url, timeout=30).content)
    bucket = Bucket(s3_endpoint, f"s3://e2e_s3@{BUCKET}", "")
    bucket.s3.create_bucket(Bucket=BUCKET)
    bucket.s3.upload_file(str(clip), BUCKET, "in/clip.mp4")
    environment = {
        # DAG files do not change during the tests; parsing them every ten seconds would waste a core.
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "3600",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
            {"type": "file", "log_file_path": str(lineage_events), "append": True}
        ),
        # OpenLineage forks a process for each event, so only the lineage DAG enables it.
        "AIRFLOW__OPENLINEAGE__SELECTIVE_ENABLE": "True",
        # So that what is killed is missed soon.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "CRASH_STAGE": str(crash_stage),
        "LUMA_VIDEO_URL": lumas["default"].sample_url,
        "LUMA_VIDEO": str(clip),
        "AIRFLOW_CONN_E2E_S3": aws_connection(s3_endpoint),
        "E2E_S3_CLIP": f"{bucket.destination}/in/clip.mp4",
        "LUMA_DESTINATION": f"file://{tmp_path_factory.mktemp('videos')}",
        "LUMA_REHEARSALS": json.dumps(
            {
                name: {
                    "retries": rehearsal.retries,
                    "operator": rehearsal.operator,
                    "video_url": lumas[name].sample_url,
                }
                for name, rehearsal in to_rehearse.items()
            }
        ),
    }
    store = str(tmp_path_factory.mktemp("submissions"))
    for name, luma in lumas.items():
        is_recorded = USES_SUBMISSION_STORE and name in {*CRASHES, *CALLBACKS} - {"crash_cleared"}
        extra = {"submission_store": store} if is_recorded or name == "crash_cleared_with_store" else {}
        set_connection(environment, name, luma, **service_of(name), **extra)
        if name in {*CRASHES, *INPUTS}:  # their simulators serve both services, one test after the other
            kind, _, of = name.partition("_")
            set_connection(environment, f"{kind}_luma_{of}", luma, service="luma", **extra)
    set_connection(environment, "own_api", lumas["default"], service="luma")
    set_connection(environment, "input_signed", lumas["input_signed"], sign_inputs=600)
    return environment


@pytest.fixture(scope="package")
def airflow(
    dags: Path,
    environment: dict[str, str],
    lumas: dict[str, Simulator],
    database: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalAirflow]:
    """Return a running Airflow."""
    local = LocalAirflow(tmp_path_factory.mktemp("airflow"), dags, {**environment, **database})
    if "PYTEST_XDIST_WORKER" not in os.environ or f"@{SECRETS_GROUP} " in os.environ["PYTEST_CURRENT_TEST"]:
        local.environment["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "DEBUG"
    enable_callbacks(local, lumas)
    with local as running:
        pool = {"name": "luma", "slots": 20, "description": "Jobs running at Luma", "include_deferred": True}
        running.call("POST", "/pools", json=pool)
        _shared.append(running)
        yield running
        _shared.remove(running)


@pytest.fixture(scope="package")
def rehearsals(to_rehearse: dict[str, Rehearsal], airflow: LocalAirflow, lumas: dict[str, Simulator]) -> dict[str, str]:
    """Return the ended run of each rehearsal."""
    to_come = deque(to_rehearse)
    for name in to_come:
        lumas[name].reset()
    runs: dict[str, str] = {}
    running: set[str] = set()

    def advance() -> bool:
        ended = {name for name in running if airflow.run_state(f"rehearse_{name}", runs[name]) in ("success", "failed")}
        running.difference_update(ended)
        while to_come and len(running) < AT_ONCE:
            name = to_come.popleft()
            runs[name] = airflow.trigger(f"rehearse_{name}")
            running.add(name)
        for name in running & KILLED.keys():
            mark_failed_while_it_waits(airflow, f"rehearse_{name}", runs[name])
        return not running

    airflow.wait_until(advance, "all rehearsals to end", seconds=1500, every=4)
    return runs


def mark_failed_while_it_waits(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    """End a task as a person does, if it holds a worker and waits for Luma."""
    if modify(airflow, dag_id, run_id)["state"] == "running" and "GENERATING" in airflow.task_log(
        dag_id, run_id, "modify"
    ):
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/modify"
        airflow.call("PATCH", path, json={"new_state": "failed"})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(1800))
            if item.get_closest_marker("xdist_group") is None:
                is_long = item.get_closest_marker("long") is not None
                item.add_marker(pytest.mark.xdist_group("long" if is_long else SECRETS_GROUP))
            if needs_airflow(item) and "versions" in config.option.markexpr:
                move_to_group(item, "versions")  # few tests of many groups, for which one Airflow does
    yield
    # Start the slow end-to-end tests first, and keep those that need an Airflow together.
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, not needs_airflow(item)))


def move_to_group(item: pytest.Item, group: str) -> None:
    for node in item.listchain():  # xdist would join the names of all groups
        node.own_markers = [mark for mark in node.own_markers if mark.name != "xdist_group"]
    item.add_marker(pytest.mark.xdist_group(group))


def needs_airflow(item: pytest.Item | None) -> bool:
    return item is not None and "airflow" in getattr(item, "fixturenames", ())


#: The Airflow of the fixture :func:`airflow`. The hooks below stop it while no test needs it.
_shared: list[LocalAirflow] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for airflow in _shared:
        if needs_airflow(item) and not airflow.processes:
            airflow.start_all()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    for airflow in _shared:
        if not needs_airflow(nextitem):
            airflow.stop_all()

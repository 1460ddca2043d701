# SPDX-License-Identifier: Apache-2.0
"""Paid jobs on a real Airflow, where something else than a kill comes between a job and its result."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_luma.links.luma import ERROR_KEY
from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import API_KEY
from tests.e2e.echo import Echo
from tests.e2e.runs import (
    SERVICES,
    clear,
    crash_dag,
    modify,
    says,
    wait_for_run,
    wait_for_state,
    wait_until_stored,
    want,
)
from tests.e2e.written import in_any_form, written

pytestmark = [pytest.mark.xdist_group("long"), pytest.mark.long]


both_services = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def service() -> str:
    """Return the service of tests that run with one only."""
    return "kie"


@pytest.fixture
def start(
    airflow: LocalAirflow, lumas: dict[str, Simulator], service: str
) -> Callable[..., tuple[str, str, Simulator]]:
    def start(name: str, **settings: Any) -> tuple[str, str, Simulator]:
        luma, dag_id = lumas[f"crash_{name}"], crash_dag(name, service)
        luma.reset()
        luma.configure(**settings)
        want(airflow, "Make it a snowy morning")
        return dag_id, airflow.trigger(dag_id), luma

    return start


@pytest.fixture
def failing_post_execute(crash_stage: Path) -> Iterator[Path]:
    """Return the file that makes ``post_execute`` fail for as long as it is there."""
    file = crash_stage / "post_execute-fails"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


@pytest.fixture
def frozen(airflow: LocalAirflow, crash_stage: Path) -> Iterator[Callable[[str], list[psutil.Process]]]:
    """Freezes a task that is about to send, with its supervisor, as if their machine were suspended."""
    processes: list[psutil.Process] = []

    def freeze(dag_id: str) -> list[psutil.Process]:
        file = crash_stage / f"{dag_id}-before_sending"
        airflow.wait_until(lambda: file.exists() and file.read_text() != "", f"{dag_id} to stand still")
        task = psutil.Process(int(file.read_text()))
        processes.extend((task.parent(), task))
        for process in processes:
            process.suspend()
        return processes

    yield freeze
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@pytest.fixture
def one_retry_less(airflow: LocalAirflow, crash_stage: Path) -> Iterator[Callable[[str], None]]:
    """Changes a DAG file, so that its task has no retry any more, and waits until Airflow has read it."""
    file = crash_stage / "retries"

    def change(dag_id: str) -> None:
        file.write_text("0")
        airflow.call("PUT", f"/parseDagFile/{airflow.call('GET', f'/dags/{dag_id}')['file_token']}")
        airflow.wait_until(
            lambda: airflow.call("GET", f"/dags/{dag_id}/tasks/modify")["retries"] == 0, "the new version of the DAG"
        )

    yield change
    file.unlink(missing_ok=True)


@pytest.fixture
def echo(airflow: LocalAirflow, lumas: dict[str, Simulator]) -> Iterator[Echo]:
    """Return a server that repeats keys, to which the connection ``luma_echo`` leads."""
    server = Echo(lumas["crash_echo"].base_url)
    connection = {"connection_id": "luma_echo", "conn_type": "luma", "host": server.base_url, "password": API_KEY}
    airflow.call("POST", "/connections", json=connection)
    yield server
    airflow.call("DELETE", "/connections/luma_echo")
    server.close()


@pytest.fixture
def lead(
    airflow: LocalAirflow, lumas: dict[str, Simulator], environment: dict[str, str]
) -> Iterator[Callable[[str], None]]:
    """Leads the connection ``luma_switched`` to a service."""
    connection = json.loads(environment["AIRFLOW_CONN_LUMA_CRASH_SWITCHED"])

    def lead(service: str) -> None:
        extra = json.dumps({**connection["extra"], "service": service})
        airflow.call("PATCH", "/connections/luma_switched", json={**new, "extra": extra})

    new = {**connection, "connection_id": "luma_switched", "extra": None}
    airflow.call("POST", "/connections", json=new)
    yield lead
    airflow.call("DELETE", "/connections/luma_switched")


@pytest.mark.parametrize("services", [SERVICES, SERVICES[::-1]], ids="-to-".join)
def test_connection_that_leads_to_another_service_for_a_while_costs_nothing_and_loses_nothing(
    airflow: LocalAirflow, start: Any, lead: Callable[[str], None], services: tuple[str, str]
) -> None:
    first, other = services
    lead(first)
    dag_id, run_id, luma = start("switched", processing_seconds=600)
    wait_for_state(airflow, dag_id, run_id, "deferred")

    lead(other)
    words = f"connection 'luma_switched' leads to the service '{other}' now, but the job belongs to '{first}'"
    assert says(airflow, dag_id, run_id, words), "the wait goes on"
    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert says(
        airflow, dag_id, run_id, f"submitted to the service '{first}', but the connection now leads to '{other}'"
    )

    lead(first)
    clear(airflow, dag_id, run_id)
    wait_for_state(airflow, dag_id, run_id, "deferred")
    lead(other)
    assert says(airflow, dag_id, run_id, words)
    luma.end_jobs()
    lead(first)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[0].task_id
    assert luma.accepted == 1
    assert {call.service for call in luma.calls} - {None} == {first}, "the other was asked nothing"


@both_services
def test_result_that_airflow_could_not_store_is_returned_after_a_clear(
    airflow: LocalAirflow, start: Any, failing_post_execute: Path
) -> None:
    dag_id, run_id, luma = start("not_stored", processing_seconds=1)
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert modify(airflow, dag_id, run_id)["try_number"] == 2
    failing_post_execute.unlink()

    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[0].task_id
    assert luma.accepted == 1

    wait_until_stored(airflow, dag_id, run_id)
    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert luma.accepted == 2, "now the result was returned, and a Clear wants a new video"


@both_services
def test_key_that_is_refused_for_a_while_costs_no_try(airflow: LocalAirflow, start: Any) -> None:
    dag_id, run_id, luma = start("refused_key", processing_seconds=600)
    wait_for_state(airflow, dag_id, run_id, "deferred")
    luma.configure(faults=["status:refuse,code=401"])
    assert says(airflow, dag_id, run_id, f"the API key of connection 'luma_{dag_id}' was refused")
    luma.configure(faults=[])
    luma.end_jobs()

    wait_for_run(airflow, dag_id, run_id, "success")
    assert (modify(airflow, dag_id, run_id)["try_number"], luma.accepted) == (1, 1)


@both_services
def test_refused_request_does_not_hide_the_paid_job_of_the_one_before(airflow: LocalAirflow, start: Any) -> None:
    dag_id, run_id, luma = start("changed_request", processing_seconds=600)
    wait_for_run(airflow, dag_id, run_id, "failed")
    luma.end_jobs()

    want(airflow, "Make it a rainy evening")
    luma.configure(faults=["submit:refuse,code=402"])
    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert says(airflow, dag_id, run_id, "code 402")

    want(airflow, "Make it a snowy morning")
    luma.configure(faults=[])
    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[0].task_id
    assert luma.accepted == 1


@both_services
def test_worker_that_was_frozen_before_it_sent_sends_nothing_once_others_have_moved_on(
    airflow: LocalAirflow, start: Any, frozen: Callable[[str], list[psutil.Process]], crash_stage: Path
) -> None:
    dag_id, run_id, luma = start("frozen", processing_seconds=1)
    processes = frozen(dag_id)
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert says(airflow, dag_id, run_id, "A job may have been accepted")
    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert luma.accepted == 1

    (crash_stage / f"{dag_id}-goes-on").touch()
    for process in processes:
        process.send_signal(signal.SIGCONT)
    _, task = processes
    airflow.wait_until(
        lambda: not task.is_running() or task.status() == psutil.STATUS_ZOMBIE, "the frozen task to have ended"
    )
    assert luma.accepted == 1
    assert len([call for call in luma.calls if call.on == "submit"]) == 1


def test_clear_returns_the_video_of_a_job_of_which_luma_had_said_that_it_failed(
    airflow: LocalAirflow, start: Any
) -> None:
    dag_id, run_id, luma = start("wrong_failure", processing_seconds=600, faults=["status:unknown_flag,flag=3,times=1"])
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert modify(airflow, dag_id, run_id)["try_number"] == 1
    luma.end_jobs()
    airflow.wait_until(lambda: luma.jobs[0].complete_time is not None, "the job to end")

    clear(airflow, dag_id, run_id)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[0].task_id
    assert luma.accepted == 1


@both_services
def test_try_after_one_whose_intent_was_not_confirmed_submits_once(airflow: LocalAirflow, start: Any) -> None:
    dag_id, run_id, luma = start("intent_lost", processing_seconds=1)
    wait_for_run(airflow, dag_id, run_id, "success")
    assert modify(airflow, dag_id, run_id)["try_number"] == 3
    for number in (1, 2):
        airflow.wait_for_log("nothing was submitted", dag_id, run_id, "modify", number)
    assert len([call for call in luma.calls if call.on == "submit"]) == luma.accepted == 1


def test_clear_with_fewer_retries_that_leaves_max_tries_as_it_was_submits_anew(
    airflow: LocalAirflow, start: Any, one_retry_less: Callable[[str], None]
) -> None:
    dag_id, run_id, luma = start("fewer_retries", processing_seconds=1)
    wait_for_run(airflow, dag_id, run_id, "success")
    wait_until_stored(airflow, dag_id, run_id)
    before = modify(airflow, dag_id, run_id)["max_tries"]

    one_retry_less(dag_id)
    clear(airflow, dag_id, run_id, run_on_latest_version=True)
    assert modify(airflow, dag_id, run_id)["max_tries"] == before
    wait_for_run(airflow, dag_id, run_id, "success")
    assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[-1].task_id
    assert luma.accepted == 2


def test_limit_of_the_key_and_the_edge_cost_nothing_and_leave_the_retry_its_submission(
    airflow: LocalAirflow, start: Any
) -> None:
    faults = ["submit:refuse,code=433,style=body,times=1", "submit:edge_block,times=1"]
    dag_id, run_id, luma = start("key_limit", processing_seconds=1, faults=faults)
    wait_for_run(airflow, dag_id, run_id, "success")
    airflow.wait_for_log("Raise the limit of this API key", dag_id, run_id, "modify", 1)
    airflow.wait_for_log("before checking the API key: 'error code: 1010'", dag_id, run_id, "modify", 2)
    assert modify(airflow, dag_id, run_id)["try_number"] == 2
    assert len([call for call in luma.calls if call.on == "submit"]) == 3
    assert luma.accepted == 1


def test_key_that_a_server_repeats_is_nowhere(airflow: LocalAirflow, start: Any, echo: Echo) -> None:
    dag_id, run_id, luma = start("echo", processing_seconds=600, outcome="generate_failed")
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert says(airflow, dag_id, run_id, "The submission was not accepted: I do not take 'Bearer ***'")
    assert says(airflow, dag_id, run_id, "GENERATE_FAILED: I do not take 'Bearer ***'")
    failure = airflow.xcom(dag_id, run_id, "modify", ERROR_KEY)
    assert "I do not take 'Bearer ***'" in str(failure), "which the result page shows"
    luma.end_jobs()
    airflow.wait_until(lambda: luma.jobs[0].complete_time is not None, "the job to end")
    echo.lose_a_submission()
    clear(airflow, dag_id, run_id)
    assert says(airflow, dag_id, run_id, "a response that repeats the API key")
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert luma.accepted == 1
    assert echo.submissions == echo.checks == [], "every form was sent"

    key = in_any_form(API_KEY)
    assert not key.search(str(failure).encode())
    assert [place for place, content in written(airflow) if key.search(content)] == []

# SPDX-License-Identifier: Apache-2.0
"""Paid jobs on a real Airflow, where something else than a kill comes between a job and its result."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import clear, modify, says, wait_for_run, wait_for_state, wait_until_stored, want

pytestmark = [pytest.mark.xdist_group("long"), pytest.mark.long]


@pytest.fixture
def start(airflow: LocalAirflow, lumas: dict[str, Simulator]) -> Callable[..., tuple[str, str, Simulator]]:
    def start(name: str, **settings: Any) -> tuple[str, str, Simulator]:
        luma = lumas[f"crash_{name}"]
        luma.reset()
        luma.configure(**settings)
        want(airflow, "Make it a snowy morning")
        return f"crash_{name}", airflow.trigger(f"crash_{name}"), luma

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


def test_key_that_is_refused_for_a_while_costs_no_try(airflow: LocalAirflow, start: Any) -> None:
    dag_id, run_id, luma = start("refused_key", processing_seconds=600)
    wait_for_state(airflow, dag_id, run_id, "deferred")
    luma.configure(faults=["status:refuse,code=401"])
    assert says(airflow, dag_id, run_id, "the API key of connection 'luma_crash_refused_key' is refused")
    luma.configure(faults=[])
    luma.end_jobs()

    wait_for_run(airflow, dag_id, run_id, "success")
    assert (modify(airflow, dag_id, run_id)["try_number"], luma.accepted) == (1, 1)


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


def test_worker_that_was_frozen_before_it_sent_sends_nothing_once_others_have_moved_on(
    airflow: LocalAirflow, start: Any, frozen: Callable[[str], list[psutil.Process]], crash_stage: Path
) -> None:
    dag_id, run_id, luma = start("frozen", processing_seconds=1)
    processes = frozen(dag_id)
    wait_for_run(airflow, dag_id, run_id, "failed")
    assert says(airflow, dag_id, run_id, "log page of the Luma account")
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

# SPDX-License-Identifier: Apache-2.0
"""What can go wrong at Luma, one thing at a time, on a real Airflow."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import finish
from tests.e2e.scenarios import DAILY, FAILURES, SUCCESSES, UNKNOWN_OUTCOMES, Rehearsal
from tests.e2e.videos import assert_modified

RESULT = {"luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"}


def rehearsed(table: dict[str, Rehearsal]) -> list[Any]:
    """Return the names of a table's rehearsals."""
    return [pytest.param(name, marks=[] if name in DAILY else pytest.mark.long) for name in table]


@pytest.mark.parametrize("name", rehearsed(SUCCESSES))
def test_rehearsal_ends_in_success(
    airflow: LocalAirflow, lumas: dict[str, Simulator], rehearsals: dict[str, str], name: str
) -> None:
    dag_id, luma = f"rehearse_{name}", lumas[name]

    assert airflow.run_state(dag_id, rehearsals[name]) == "success", airflow.story(dag_id, rehearsals[name])
    result = airflow.xcom(dag_id, rehearsals[name], "modify")
    assert set(result) - {"service"} == RESULT
    assert (result["status"], result.get("service", "kie")) == ("SUCCESS", SUCCESSES[name].service)
    assert [result["luma_task_id"]] == [job.task_id for job in luma.jobs]
    assert airflow.xcom(dag_id, rehearsals[name], "modify", "result_urls") == result["result_urls"]
    [file] = airflow.xcom(dag_id, rehearsals[name], "download")
    assert_modified(file, luma.sample_url)
    assert luma.accepted == SUCCESSES[name].accepted
    assert len([call for call in luma.calls if call.on == "submit"]) == SUCCESSES[name].calls
    assert {call.service for call in luma.calls if call.on == "submit"} == {SUCCESSES[name].service}
    assert not any(call.carried_authorization for call in luma.calls if call.on == "file")


@pytest.mark.parametrize("name", rehearsed(FAILURES))
def test_rehearsal_ends_in_a_failure_that_says_why(
    airflow: LocalAirflow, lumas: dict[str, Simulator], rehearsals: dict[str, str], name: str
) -> None:
    dag_id, luma, rehearsal = f"rehearse_{name}", lumas[name], FAILURES[name]

    assert airflow.run_state(dag_id, rehearsals[name]) == "failed"
    [modify] = [task for task in airflow.tasks(dag_id, rehearsals[name]) if task["task_id"] == "modify"]
    for words in rehearsal.says:
        log = airflow.wait_for_log(words, dag_id, rehearsals[name], "modify", modify["try_number"])
    assert luma.accepted == rehearsal.accepted
    submissions = [call for call in luma.calls if call.on == "submit"]
    assert len(submissions) == rehearsal.calls
    assert modify["try_number"] == max(rehearsal.calls, 1), "each try submits once"
    if name in UNKNOWN_OUTCOMES:
        assert f"X-Request-Id {submissions[0].headers['x-request-id']}" in log
    elif rehearsal.accepted and name not in ("lost_answer", "accepted_with_a_500", "accepted_with_a_redirect"):
        assert luma.jobs[-1].task_id in log
        assert airflow.xcom(dag_id, rehearsals[name], "modify", "luma_task_id") == luma.jobs[-1].task_id


def test_triggerer_survives_every_rehearsal(airflow: LocalAirflow, rehearsals: dict[str, str]) -> None:
    """One value that its database or its serialiser does not take would end it, and every other wait with it."""
    assert airflow.processes["triggerer"].poll() is None
    airflow.wait_until(airflow.is_healthy, "every component to report")


def test_task_marked_failed_by_a_person_names_the_job_that_is_still_running(
    airflow: LocalAirflow, lumas: dict[str, Simulator], rehearsals: dict[str, str]
) -> None:
    [job] = lumas["killed"].jobs
    words = f"Luma cannot cancel a job: Luma task {job.task_id} is still running"
    assert airflow.wait_for_log(words, "rehearse_killed", rehearsals["killed"], "modify")


@pytest.mark.versions
@pytest.mark.parametrize("luma_conn_id", ["luma_default", pytest.param("luma_own_api", marks=pytest.mark.long)])
def test_sensor_waits_in_every_mode_for_a_submitted_job(
    airflow: LocalAirflow, luma: Simulator, luma_conn_id: str
) -> None:
    luma.configure(processing_seconds=20)
    run_id = airflow.trigger("every_way_to_wait", luma_conn_id=luma_conn_id)
    finish(airflow, "every_way_to_wait", run_id)

    tasks = {task["task_id"]: task for task in airflow.tasks("every_way_to_wait", run_id)}
    states = {task_id: task["state"] for task_id, task in tasks.items()}
    assert states == {
        "submit": "success",
        "deferrable": "success",
        "poke": "success",
        "reschedule": "success",
        "unknown": "failed",
        "unknown_but_soft": "skipped",
    }
    submitted = airflow.xcom("every_way_to_wait", run_id, "submit")
    assert (submitted["status"], submitted["result_urls"]) == ("GENERATING", [])
    for way in ("deferrable", "poke", "reschedule"):
        result = airflow.xcom("every_way_to_wait", run_id, way)
        assert set(result) - {"service"} == RESULT
        assert (result["luma_task_id"], result["status"]) == (submitted["luma_task_id"], "SUCCESS")
        assert airflow.xcom("every_way_to_wait", run_id, way, "result_urls") == result["result_urls"]
    assert tasks["unknown"]["try_number"] == 1, "a retry cannot help"
    assert airflow.wait_for_log("Luma does not know this task", "every_way_to_wait", run_id, "unknown")
    assert luma.accepted == 1

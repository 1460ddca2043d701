# SPDX-License-Identifier: Apache-2.0
"""What can go wrong at Luma, one thing at a time, on a real Airflow."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from scenarios import FAILURES, KILLED, REHEARSALS, SUCCESSES
from videos import assert_modified

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow

RESULT = {"luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"}


#: Runs at the same time. A busier scheduler notices a deferral only after the job has ended, and then fails the task.
AT_ONCE = 6


@pytest.fixture(scope="session")
def runs(airflow: LocalAirflow, lumas: dict[str, Simulator]) -> dict[str, str]:
    """Return the run of each rehearsal, ended."""
    runs: dict[str, str] = {}
    for name in REHEARSALS:
        lumas[name].reset()

    def is_waiting(name: str) -> bool:
        [modify] = [task for task in airflow.tasks(f"rehearse_{name}", runs[name]) if task["task_id"] == "modify"]
        return modify["state"] == "running" and "GENERATING" in airflow.task_log(
            f"rehearse_{name}", runs[name], "modify"
        )

    def have_ended(names: Iterable[str]) -> bool:
        return all(airflow.run_state(f"rehearse_{name}", runs[name]) in ("success", "failed") for name in names)

    names = list(REHEARSALS)
    for start in range(0, len(names), AT_ONCE):
        batch = names[start : start + AT_ONCE]
        runs |= {name: airflow.trigger(f"rehearse_{name}") for name in batch}
        for name in KILLED.keys() & set(batch):
            airflow.wait_until(lambda name=name: is_waiting(name), f"{name} to wait for Luma", seconds=120, every=1)
            path = f"/dags/rehearse_{name}/dagRuns/{runs[name]}/taskInstances/modify"
            airflow.call("PATCH", path, json={"new_state": "failed"})
        airflow.wait_until(lambda batch=batch: have_ended(batch), f"{batch} to end", seconds=300, every=1)
    return runs


@pytest.mark.parametrize("name", SUCCESSES)
def test_rehearsal_ends_in_success(
    airflow: LocalAirflow, lumas: dict[str, Simulator], runs: dict[str, str], name: str
) -> None:
    dag_id, luma = f"rehearse_{name}", lumas[name]

    assert airflow.run_state(dag_id, runs[name]) == "success", airflow.story(dag_id, runs[name])
    result = airflow.xcom(dag_id, runs[name], "modify")
    assert set(result) == RESULT
    assert result["status"] == "SUCCESS"
    assert [result["luma_task_id"]] == [job.task_id for job in luma.jobs]
    assert airflow.xcom(dag_id, runs[name], "modify", "result_urls") == result["result_urls"]
    [file] = airflow.xcom(dag_id, runs[name], "download")
    assert_modified(file, luma.sample_url)
    assert luma.accepted == SUCCESSES[name].accepted
    assert len([call for call in luma.calls if call.on == "submit"]) == SUCCESSES[name].calls
    assert not any(call.carried_authorization for call in luma.calls if call.on == "file")


@pytest.mark.parametrize("name", FAILURES)
def test_rehearsal_ends_in_a_failure_that_says_why(
    airflow: LocalAirflow, lumas: dict[str, Simulator], runs: dict[str, str], name: str
) -> None:
    dag_id, luma, rehearsal = f"rehearse_{name}", lumas[name], FAILURES[name]

    assert airflow.run_state(dag_id, runs[name]) == "failed"
    [modify] = [task for task in airflow.tasks(dag_id, runs[name]) if task["task_id"] == "modify"]
    for words in rehearsal.says:
        log = airflow.wait_for_log(words, dag_id, runs[name], "modify", modify["try_number"])
    assert luma.accepted == rehearsal.accepted
    assert len([call for call in luma.calls if call.on == "submit"]) == rehearsal.calls
    if rehearsal.accepted and name not in ("lost_answer", "accepted_with_a_500", "accepted_with_a_redirect"):
        assert luma.jobs[0].task_id in log
        assert airflow.xcom(dag_id, runs[name], "modify", "luma_task_id") == luma.jobs[0].task_id


def test_triggerer_survives_every_rehearsal(airflow: LocalAirflow, runs: dict[str, str]) -> None:
    """One value that its database or its serialiser does not take would end it, and every other wait with it."""
    assert airflow.processes["triggerer"].poll() is None
    airflow.wait_until(airflow.is_healthy, "every component to report", seconds=120)


def test_task_marked_failed_by_a_person_names_the_job_that_is_still_running(
    airflow: LocalAirflow, lumas: dict[str, Simulator], runs: dict[str, str]
) -> None:
    [job] = lumas["killed"].jobs
    words = f"Luma cannot cancel a job: Luma task {job.task_id} is still running"
    assert airflow.wait_for_log(words, "rehearse_killed", runs["killed"], "modify")


def test_sensor_waits_in_every_mode_for_a_submitted_job(airflow: LocalAirflow, luma: Simulator) -> None:
    luma.configure(processing_seconds=20)
    run_id = airflow.trigger("every_way_to_wait")
    airflow.wait_until(
        lambda: airflow.run_state("every_way_to_wait", run_id) in ("success", "failed"), "the run to end", seconds=300
    )

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
        assert set(result) == RESULT
        assert (result["luma_task_id"], result["status"]) == (submitted["luma_task_id"], "SUCCESS")
        assert airflow.xcom("every_way_to_wait", run_id, way, "result_urls") == result["result_urls"]
    assert tasks["unknown"]["try_number"] == 1, "a retry cannot help"
    assert airflow.wait_for_log("Luma does not know this task", "every_way_to_wait", run_id, "unknown")
    assert luma.accepted == 1

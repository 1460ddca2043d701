# SPDX-License-Identifier: Apache-2.0
"""Kills and Clears on a real Airflow: no video is paid for twice, and none is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import needs_task_state
from tests.e2e.runs import (
    SERVICES,
    clear,
    crash_dag,
    kill_process_that_calls,
    modify,
    says,
    wait_for_run,
    wait_for_state,
    wait_until_stored,
    want,
)

pytestmark = pytest.mark.xdist_group("runs")

#: Beside the daily tests: further places to be killed at, and what the unit tests cover as well.
long = pytest.mark.long

#: With the other service, the decisions are the same, and what differs is seen in the rehearsals.
both_services = pytest.mark.parametrize("service", ["kie", pytest.param("luma", marks=long)])

#: What the log says about an unknown outcome.
WHERE_TO_LOOK = {"kie": "log page of the Luma account", "luma": "Ask Luma's support"}


@pytest.fixture
def held_process(crash_stage: Path, airflow: LocalAirflow) -> Callable[[str, str], psutil.Process]:
    def wait(dag_id: str, place: str) -> psutil.Process:
        file = crash_stage / f"{dag_id}-{place}"
        airflow.wait_until(lambda: file.exists() and file.read_text() != "", f"{dag_id} to stand still")
        return psutil.Process(int(file.read_text()))

    return wait


class TestKilled:
    """With ``retries=2``."""

    @pytest.fixture
    def start(self, airflow: LocalAirflow, lumas: dict[str, Simulator]) -> Callable[..., tuple[str, str, Simulator]]:
        def start(name: str, service: str, **settings: Any) -> tuple[str, str, Simulator]:
            luma, dag_id = lumas[f"crash_{name}"], crash_dag(name, service)
            luma.reset()
            luma.configure(**settings)
            return dag_id, airflow.trigger(dag_id), luma

        return start

    def succeeded(self, airflow: LocalAirflow, dag_id: str, run_id: str, luma: Simulator, tries: int | None) -> None:
        wait_for_state(airflow, dag_id, run_id, "success", "failed", "upstream_failed")
        assert modify(airflow, dag_id, run_id)["state"] == "success", airflow.story(dag_id, run_id, lines=60)
        assert tries in (None, modify(airflow, dag_id, run_id)["try_number"])
        assert luma.accepted == 1
        result = airflow.xcom(dag_id, run_id, "modify")
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")

    @pytest.mark.parametrize("service", SERVICES)
    def test_worker_killed_between_acceptance_and_answer_leaves_a_failure_that_asks_a_person(
        self, airflow: LocalAirflow, start: Any, service: str
    ) -> None:
        dag_id, run_id, luma = start("answer_lost", service, faults=["submit:hang,seconds=120,after_accept=true"])
        airflow.wait_until(lambda: luma.accepted == 1, "the job to be accepted")
        kill_process_that_calls(luma)

        wait_for_state(airflow, dag_id, run_id, "failed")
        assert luma.accepted == 1
        assert modify(airflow, dag_id, run_id)["try_number"] == 2, "the third try is not used"
        for words in (
            "Try 1 ended just before or after submitting",
            WHERE_TO_LOOK[service],
            "Clearing this task submits",
        ):
            assert says(airflow, dag_id, run_id, words)
        [submission] = [call for call in luma.calls if call.on == "submit"]
        if service == "luma":
            assert says(airflow, dag_id, run_id, f"X-Request-Id {submission.headers['x-request-id']}, sent at")

    @long
    @pytest.mark.parametrize("service", SERVICES)
    def test_worker_killed_while_it_uploads_leaves_a_retry_that_uploads_again_and_submits_once(
        self, airflow: LocalAirflow, start: Any, service: str
    ) -> None:
        dag_id, run_id, luma = start("uploading", service, faults=["upload:hang,seconds=120,after_accept=true,times=1"])
        airflow.wait_until(lambda: len(luma.uploads) == 1, "the clip to be uploaded")
        kill_process_that_calls(luma)

        self.succeeded(airflow, dag_id, run_id, luma, tries=2)
        assert len(luma.uploads) == 2

    @long
    @pytest.mark.parametrize("service", SERVICES)
    def test_worker_killed_between_acceptance_and_answer_with_resubmit_on_unknown_submits_again(
        self, airflow: LocalAirflow, start: Any, service: str
    ) -> None:
        faults = ["submit:hang,seconds=120,after_accept=true,times=1"]
        dag_id, run_id, luma = start("answer_lost_resubmit", service, faults=faults, processing_seconds=1)
        airflow.wait_until(lambda: luma.accepted == 1, "the job to be accepted")
        kill_process_that_calls(luma)

        wait_for_state(airflow, dag_id, run_id, "success", "failed")
        assert modify(airflow, dag_id, run_id)["state"] == "success", airflow.story(dag_id, run_id)
        assert luma.accepted == 2

    @both_services
    @pytest.mark.parametrize(
        "place",
        [pytest.param("before_deferral", marks=pytest.mark.versions), pytest.param("execute_complete", marks=long)],
    )
    def test_worker_killed_after_the_answer_leaves_a_job_that_the_retry_continues(
        self,
        airflow: LocalAirflow,
        start: Any,
        held_process: Callable[[str, str], psutil.Process],
        place: str,
        service: str,
    ) -> None:
        dag_id, run_id, luma = start(place, service, processing_seconds=5)
        held_process(dag_id, place).kill()

        self.succeeded(airflow, dag_id, run_id, luma, tries=2)
        assert says(airflow, dag_id, run_id, "nothing new is billed")

    @long
    @pytest.mark.parametrize("service", SERVICES)
    def test_worker_killed_while_it_polls_leaves_a_job_that_the_retry_continues(
        self, airflow: LocalAirflow, start: Any, service: str
    ) -> None:
        faults = ["status:hang,seconds=60,skip=1,times=1"]
        dag_id, run_id, luma = start("synchronous", service, processing_seconds=8, faults=faults)
        airflow.wait_until(lambda: len([c for c in luma.calls if c.on == "status"]) > 1, "a status check")
        kill_process_that_calls(luma)

        self.succeeded(airflow, dag_id, run_id, luma, tries=2)

    @long
    @pytest.mark.parametrize(
        ("component", "service"),
        [("triggerer", "kie"), ("triggerer", "luma"), ("scheduler", "kie"), ("api-server", "kie")],
    )
    def test_component_killed_while_the_task_is_deferred_costs_no_second_job(
        self, airflow: LocalAirflow, start: Any, component: str, service: str
    ) -> None:
        dag_id, run_id, luma = start(component.replace("-", "_"), service, processing_seconds=600)
        wait_for_state(airflow, dag_id, run_id, "deferred")
        airflow.stop(component, signal.SIGKILL)
        luma.end_jobs()
        if component == "api-server":
            airflow.wait_until(lambda: luma.jobs[0].complete_time, "the job to end with nobody there")
        airflow.start(component)
        airflow.wait_until(airflow.is_healthy, "Airflow to be healthy again")

        # A worker that is to take up the result while there is no API server needs another try.
        self.succeeded(airflow, dag_id, run_id, luma, tries=None if component == "api-server" else 1)

    @long
    @pytest.mark.parametrize("service", SERVICES)
    def test_retry_after_a_timeout_continues_the_job(self, airflow: LocalAirflow, start: Any, service: str) -> None:
        dag_id, run_id, luma = start("timed_out", service, processing_seconds=14)

        wait_for_state(airflow, dag_id, run_id, "success", "failed")
        assert modify(airflow, dag_id, run_id)["state"] == "success", airflow.story(dag_id, run_id)
        assert modify(airflow, dag_id, run_id)["try_number"] > 1
        assert luma.accepted == 1


class TestCleared:
    """By a person, through the REST API."""

    @pytest.fixture
    def luma(self, lumas: dict[str, Simulator], airflow: LocalAirflow, name: str) -> Simulator:
        luma = lumas[f"crash_{name}"]
        luma.reset()
        want(airflow, "Make it a snowy morning")
        return luma

    @both_services
    @pytest.mark.parametrize(
        ("name", "when", "prompt", "accepted", "words"),
        [
            pytest.param(name, *case, id=f"{name}-{case[0]}-{case[1]}", marks=[*store_marks, *case_marks])
            for name, store_marks in (("cleared", [needs_task_state]), ("cleared_with_store", []))
            for case, case_marks in (
                (("running", "same", 1, "continuing it, nothing new is billed"), [pytest.mark.versions]),
                (
                    ("succeeded", "same", 2, "was returned; submitting a new job"),
                    [] if name == "cleared" else [long],
                ),
                (("running", "changed", 2, "its request has changed"), [long]),
                (("failed", "same", 2, "failed; submitting a new job"), [long]),
            )
        ],
    )
    def test_cleared_task_submits_only_if_its_outcome_was_delivered_or_its_request_has_changed(
        self,
        airflow: LocalAirflow,
        luma: Simulator,
        name: str,
        when: str,
        prompt: str,
        accepted: int,
        words: str,
        service: str,
    ) -> None:
        dag_id = crash_dag(name, service)
        luma.configure(
            processing_seconds=600 if when == "running" else 1,
            outcome="generate_failed" if when == "failed" else "success",
        )
        run_id = airflow.trigger(dag_id)
        state = {"running": "deferred", "succeeded": "success", "failed": "failed"}[when]
        wait_for_state(airflow, dag_id, run_id, state)
        if when != "running":
            wait_for_run(airflow, dag_id, run_id, state)
        if when == "succeeded":
            wait_until_stored(airflow, dag_id, run_id)
        luma.configure(outcome="success", processing_seconds=1)
        if prompt == "changed":
            want(airflow, "Make it a rainy evening")

        clear(airflow, dag_id, run_id, keeps_state=name == "cleared")
        if (when, prompt) == ("running", "same"):
            wait_for_state(airflow, dag_id, run_id, "deferred")
            luma.end_jobs()

        wait_for_state(airflow, dag_id, run_id, "success")
        assert says(airflow, dag_id, run_id, words)
        assert luma.accepted == accepted
        assert airflow.xcom(dag_id, run_id, "modify", "luma_task_id") == luma.jobs[-1].task_id


@both_services
def test_task_that_timed_out_returns_its_video_after_a_clear_and_pays_once(
    airflow: LocalAirflow, lumas: dict[str, Simulator], service: str
) -> None:
    dag_id, luma = crash_dag("never_delivered", service), lumas["crash_never_delivered"]
    luma.reset()
    luma.configure(processing_seconds=14)
    run_id = airflow.trigger(dag_id)
    wait_for_state(airflow, dag_id, run_id, "failed")
    wait_for_run(airflow, dag_id, run_id, "failed")
    airflow.wait_until(lambda: bool(luma.jobs[0].complete_time), "the job to end with nobody there")

    clear(airflow, dag_id, run_id)

    wait_for_state(airflow, dag_id, run_id, "success")
    assert says(airflow, dag_id, run_id, "no record that Airflow stored the result")
    result = airflow.xcom(dag_id, run_id, "modify")
    assert (result["luma_task_id"], len(result["result_urls"])) == (luma.jobs[0].task_id, 1)
    assert luma.accepted == 1


@needs_task_state
def test_submission_record_is_visible_in_the_rest_api(airflow: LocalAirflow, luma: Simulator) -> None:
    luma.configure(processing_seconds=1)
    run_id = airflow.trigger("luma_modify")
    wait_for_state(airflow, "luma_modify", run_id, "success")

    path = f"/dags/luma_modify/dagRuns/{run_id}/taskInstances/modify/state-store/luma_submission"
    record = airflow.call("GET", path)["value"]
    assert record["luma_task_id"] == luma.jobs[0].task_id

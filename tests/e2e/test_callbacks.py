# SPDX-License-Identifier: Apache-2.0
"""Callbacks on a real Airflow: once, often, early, late, never, or forged; always one job, and the right outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from airflow_provider_luma.core.callback_token import token_of
from airflow_provider_luma.core.deferral import SHORTEST_DEFERRAL
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.simulator.callbacks import payload, signature
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import API_KEY, WEBHOOK_SECRET
from tests.e2e.runs import kill_process_that_calls, modify, wait_for_state

#: What a log of a task that went well must not hold.
ALARMS = ("Traceback", "ERROR", "error    ]")


def status_checks(luma: Simulator) -> int:
    return len([call for call in luma.calls if call.on == "status"])


def is_resumable(task: dict[str, Any]) -> bool:
    """Tell whether a task is deferred, for long enough that a callback resumes it at once."""
    if task["trigger"] is None:
        return False
    deferred_at = datetime.fromisoformat(task["trigger"]["created_date"])
    return (datetime.now(UTC) - deferred_at).total_seconds() > SHORTEST_DEFERRAL


#: What Luma does in the runs in which the test does not interfere, and which therefore run side by side.
AT_ONCE: dict[str, dict[str, Any]] = {
    "once": {"processing_seconds": 60},
    "never": {"processing_seconds": 12, "callback_copies": 0},
    "five_times": {"processing_seconds": 15, "callback_copies": 5},
    "early": {"processing_seconds": 1, "callback_early": True},
    "by_a_sensor": {"processing_seconds": 50},
    "after_a_lost_answer": {"processing_seconds": 20, "faults": ["submit:cut,after_accept=true,times=1"]},
}


@pytest.fixture(scope="package")
def start(airflow: LocalAirflow, lumas: dict[str, Simulator]) -> Callable[..., tuple[str, str, Simulator]]:
    def start(name: str, **settings: Any) -> tuple[str, str, Simulator]:
        luma = lumas[f"callback_{name}"]
        luma.reset()
        luma.configure(**settings)
        return f"callback_{name}", airflow.trigger(f"callback_{name}"), luma

    return start


@pytest.fixture(scope="package")
def runs(start: Any) -> dict[str, tuple[str, str, Simulator]]:
    """Return DAG, run and Luma of each of these."""
    return {name: start(name, **settings) for name, settings in AT_ONCE.items()}


@pytest.fixture
def succeeded(airflow: LocalAirflow) -> Callable[..., str]:
    def succeeded(dag_id: str, run_id: str, luma: Simulator, tries: int = 1) -> str:
        """Wait for the task; return the log of its last try."""
        wait_for_state(airflow, dag_id, run_id, "success", "failed", "upstream_failed")
        task = modify(airflow, dag_id, run_id)
        assert task["state"] == "success", airflow.story(dag_id, run_id, lines=60)
        assert (task["try_number"], luma.accepted) == (tries, 1)
        assert airflow.xcom(dag_id, run_id, "modify")["luma_task_id"] == luma.jobs[0].task_id
        log = airflow.wait_for_log(f"Luma task {luma.jobs[0].task_id} is finished", dag_id, run_id, "modify", tries)
        assert not [line for line in log.splitlines() if any(alarm in line for alarm in ALARMS)]
        for secret in (API_KEY, WEBHOOK_SECRET, token_of(luma.jobs[0].callback_url or "")):
            written = [file for file in airflow.logs.rglob("*") if file.is_file()]
            assert [str(file) for file in written if secret.encode() in file.read_bytes()] == []
        return log

    return succeeded


@pytest.mark.versions
def test_job_of_a_minute_costs_two_status_checks(runs: Any, succeeded: Any) -> None:
    dag_id, run_id, luma = runs["once"]
    succeeded(dag_id, run_id, luma)
    assert status_checks(luma) <= 2
    assert luma.jobs[0].callback_tries == 1


@pytest.mark.parametrize(("name", "callbacks"), [("never", 0), ("five_times", 5), ("early", 1)])
def test_task_succeeds_however_often_and_early_its_callback_comes(
    runs: Any, succeeded: Any, name: str, callbacks: int
) -> None:
    dag_id, run_id, luma = runs[name]
    succeeded(dag_id, run_id, luma)
    assert luma.jobs[0].callback_tries == callbacks


@pytest.mark.versions
def test_callback_resumes_sensors_of_the_job(airflow: LocalAirflow, runs: Any) -> None:
    dag_id, run_id, luma = runs["by_a_sensor"]
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) in ("success", "failed"), "the sensors to end")
    assert airflow.run_state(dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    assert luma.accepted == 1
    assert status_checks(luma) <= 4, "each sensor checks at its start, and when it is resumed"


@pytest.mark.long
def test_callback_without_proof_resumes_no_task(airflow: LocalAirflow, start: Any, succeeded: Any) -> None:
    dag_id, run_id, luma = start("by_others", processing_seconds=600)
    wait_for_state(airflow, dag_id, run_id, "deferred")
    airflow.wait_until(lambda: status_checks(luma) > 0, "the first status check")
    [job] = luma.jobs
    url, right_body = job.callback_url or "", payload(job)

    def post(url: str = url, timestamp: float | None = None, secret: str = WEBHOOK_SECRET, **sent: Any) -> int:
        at = str(int(timestamp or time.time()))
        headers = {"X-Webhook-Timestamp": at, "X-Webhook-Signature": signature(job.task_id, at, secret)}
        answer = requests.post(url, headers=headers, timeout=30, **(sent or {"json": right_body}))
        assert answer.status_code == 200 or answer.content == b"", "a request without proof learns nothing"
        return answer.status_code

    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    base = url.partition("?")[0]
    assert post(f"{base}?{urlencode({**query, 'token': 'f' * 64})}") == 403
    assert post(f"{base}?{urlencode({**query, 'reference': 'f' * 32})}") == 403
    assert post(f"{base}?{urlencode({**query, 'conn_id': 'luma_callback_once'})}") == 403
    assert post(f"{base}?{urlencode({**query, 'conn_id': 'there_is_none'})}") == 403
    assert post(base) == 403
    assert post(secret="another") == 403
    assert post(timestamp=time.time() - 400) == 403
    assert post(data=b"x" * 10_000_000) == 413
    assert post(data=b"no JSON") == 400
    assert post(json={"code": 200, "data": {}}) == 400
    assert modify(airflow, dag_id, run_id)["state"] == "deferred"
    assert status_checks(luma) == 1

    # A callback of another task, all else right, is signed for that other one.
    assert post(json={"code": 200, "data": {"taskId": "another-task"}}) == 403
    assert modify(airflow, dag_id, run_id)["state"] == "deferred"

    # A request with the address and the signing key that says that a running job has ended causes one status check.
    assert post() == 200
    airflow.wait_until(lambda: status_checks(luma) >= 2, "the second status check")
    luma.end_jobs()
    log = succeeded(dag_id, run_id, luma)
    assert "the job is still running" in log
    assert luma.jobs[0].callback_tries == 1


@pytest.mark.long
def test_token_of_an_ended_job_wakes_no_task_that_waits_for_another_one(airflow: LocalAirflow, start: Any) -> None:
    dag_id, first, luma = start("by_an_old_token", processing_seconds=600)
    wait_for_state(airflow, dag_id, first, "deferred")
    luma.end_jobs()
    wait_for_state(airflow, dag_id, first, "success")
    second = airflow.trigger(dag_id)
    wait_for_state(airflow, dag_id, second, "deferred")
    airflow.wait_until(lambda: is_resumable(modify(airflow, dag_id, second)), "a callback to resume the task at once")
    ended, running = luma.jobs
    trigger, checks = modify(airflow, dag_id, second)["trigger"]["id"], status_checks(luma)

    def call_back(url: str) -> str:
        """Say that the running job has ended, signed by Luma; return what the receiver has logged of it."""
        at, words = str(int(time.time())), f"Callback for Luma task {running.task_id}; "
        signed = {"X-Webhook-Timestamp": at, "X-Webhook-Signature": signature(running.task_id, at, WEBHOOK_SECRET)}
        log = airflow.logs / "api-server.txt"
        before = log.read_text().count(words)
        assert requests.post(url, headers=signed, timeout=120, json=payload(running)).status_code == 200
        airflow.wait_until(lambda: log.read_text().count(words) > before, "the callback to be handled")
        return log.read_text().rpartition(words)[2].partition("\n")[0]

    assert "tasks resumed: 0" in call_back(ended.callback_url or "")
    assert modify(airflow, dag_id, second)["trigger"]["id"] == trigger
    assert status_checks(luma) == checks
    assert "tasks resumed: 1" in call_back(running.callback_url or "")
    luma.end_jobs()
    wait_for_state(airflow, dag_id, second, "success")
    assert luma.accepted == 2


@pytest.mark.versions
def test_callback_recovers_a_submission_whose_answer_was_lost(runs: Any, succeeded: Any) -> None:
    dag_id, run_id, luma = runs["after_a_lost_answer"]
    log = succeeded(dag_id, run_id, luma)
    assert "Waiting for Luma's callback to confirm it" in log
    assert f"Recovered Luma task {luma.jobs[0].task_id} from a callback" in log


@pytest.mark.parametrize("name", ["before_the_retry", "after_the_retry"])
def test_callback_recovers_a_submission_whose_worker_was_killed(
    airflow: LocalAirflow, start: Any, succeeded: Any, name: str
) -> None:
    dag_id, run_id, luma = start(
        name, faults=["submit:hang,seconds=600,after_accept=true,times=1"], processing_seconds=600
    )
    airflow.wait_until(lambda: luma.accepted == 1, "the job to be accepted")
    if name == "before_the_retry":
        luma.end_jobs()
        airflow.wait_until(lambda: luma.jobs[0].callback_tries == 1, "a callback that no task waits for")
    kill_process_that_calls(luma)
    if name == "after_the_retry":
        wait_for_state(airflow, dag_id, run_id, "deferred")
        luma.end_jobs()

    log = succeeded(dag_id, run_id, luma, tries=2)
    assert f"Recovered Luma task {luma.jobs[0].task_id} from a callback" in log
    assert ("waiting for Luma's callback" in log) == (name == "after_the_retry")

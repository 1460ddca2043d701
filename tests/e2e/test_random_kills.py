# SPDX-License-Identifier: Apache-2.0
"""
A hundred jobs while workers and the triggerer are killed at random: every accepted job is accounted for.

Callbacks are on, so a job whose answer was lost with its worker is recovered, and only submissions that were never
accepted stay unknown.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import psutil
import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import task_processes

JOBS = int(os.environ.get("RANDOM_KILLS_JOBS", "100"))
SECONDS_OF_KILLING = float(os.environ.get("RANDOM_KILLS_SECONDS", "150"))
DAG_ID = "crash_at_random"
UNKNOWN = "may have been accepted"

pytestmark = [pytest.mark.long, pytest.mark.timeout(750 + SECONDS_OF_KILLING * 8)]


def kill_at_random(airflow: LocalAirflow, dice: random.Random, stop: threading.Event, killed: Counter[str]) -> None:
    while not stop.wait(dice.uniform(0.5, 3)):
        if dice.random() < 0.1:
            airflow.stop("triggerer", signal.SIGKILL)
            airflow.start("triggerer")
            killed["triggerer"] += 1
            continue
        try:
            victims = task_processes(airflow)
            if victims:
                dice.choice(victims).kill()
                killed["worker"] += 1
        except psutil.NoSuchProcess:
            continue  # it ended by itself, just now


def wait_for_end(airflow: LocalAirflow, run_id: str) -> None:
    ended = ("success", "failed")
    airflow.wait_until(lambda: airflow.run_state(DAG_ID, run_id) in ended, "all jobs to end", seconds=900, every=3)


def last_log(airflow: LocalAirflow, run_id: str, task: dict[str, Any]) -> str:
    return airflow.task_log(DAG_ID, run_id, "modify", task["try_number"], task["map_index"])


def clear_those_that_were_always_killed(airflow: LocalAirflow, run_id: str, luma: Simulator) -> int:
    """Clear the tasks of which not even the last try could say what became of them, as a person does."""
    words = [UNKNOWN, *(job.task_id for job in luma.jobs)]
    failed = [task for task in airflow.tasks(DAG_ID, run_id) if task["state"] == "failed"]
    silent = {
        task["map_index"]: task["try_number"]
        for task in failed
        if not any(word in last_log(airflow, run_id, task) for word in words)
    }
    if silent:
        task_ids = [["modify", index] for index in silent]
        options = {"dry_run": False, "dag_run_id": run_id, "task_ids": task_ids, "only_failed": True}
        airflow.call("POST", f"/dags/{DAG_ID}/clearTaskInstances", json=options)
        airflow.wait_until(
            lambda: all(
                task["try_number"] > silent.get(task["map_index"], 0) for task in airflow.tasks(DAG_ID, run_id)
            ),
            "a try that nobody kills",
            seconds=240,
        )
        wait_for_end(airflow, run_id)
    return len(silent)


def test_every_accepted_job_is_accounted_for_after_random_kills(
    airflow: LocalAirflow, lumas: dict[str, Simulator], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("RANDOM_KILLS_SEED", random.SystemRandom().randrange(10**6)))
    with capsys.disabled():
        print(f"\nRANDOM_KILLS_SEED={seed}")
    luma = lumas[DAG_ID]
    luma.reset()
    # Long enough for the time of killing; and now and then an answer so late that a kill may come before it.
    luma.configure(
        processing_seconds=30,
        processing_jitter=60,
        credits=10**6,
        faults=["submit:hang,seconds=3,after_accept=true,every=4"],
    )
    stop, killed = threading.Event(), Counter[str]()
    killer = threading.Thread(target=kill_at_random, args=(airflow, random.Random(seed), stop, killed))

    run_id = airflow.trigger(DAG_ID)
    airflow.wait_until(lambda: luma.accepted > 0, "the first job", seconds=120)
    killer.start()
    started = time.monotonic()
    try:
        airflow.wait_until(
            lambda: (
                airflow.run_state(DAG_ID, run_id) in ("success", "failed")
                or time.monotonic() - started > SECONDS_OF_KILLING
            ),
            "the time of killing to pass",
            seconds=SECONDS_OF_KILLING + 60,
            every=3,
        )
    finally:
        stop.set()
        killer.join()
    wait_for_end(airflow, run_id)
    cleared = clear_those_that_were_always_killed(airflow, run_id, luma)

    tasks = airflow.tasks(DAG_ID, run_id)
    assert len(tasks) == JOBS
    accepted = {job.task_id for job in luma.jobs}
    outcomes, accounted = Counter[str](), set[str]()
    for task in tasks:
        map_index = task["map_index"]
        if task["state"] == "success":
            result = airflow.xcom(DAG_ID, run_id, "modify", map_index=map_index)
            outcomes["succeeded"] += 1
            accounted.add(result["luma_task_id"])
            continue
        log = last_log(airflow, run_id, task)
        named = {luma_task_id for luma_task_id in accepted if luma_task_id in log}
        if named:
            outcomes["failed, naming its job"] += 1
            accounted |= named
        else:
            assert UNKNOWN in log, log[-2000:]
            outcomes["failed as unknown"] += 1
    with capsys.disabled():
        print(f"\nkilled {dict(killed)}; cleared {cleared}; jobs {dict(outcomes)}; accepted {luma.accepted}")
    assert sum(killed.values()) > 10
    assert len(accepted) == luma.accepted, "no id occurs twice"
    assert luma.accepted == JOBS - outcomes["failed as unknown"], "one for each job that is not unknown, and no other"
    assert accounted == accepted

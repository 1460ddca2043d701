# SPDX-License-Identifier: Apache-2.0
"""Runs of DAGs, watched from outside: how they end, what their tasks say, and which processes run them."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from typing import Any

import psutil

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow

#: For tests that run with both services.
SERVICES = ("kie", "luma")

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])


def finish(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    """Wait for the end of a run; return its state."""
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) in ("success", "failed"), f"{dag_id} to end")
    return airflow.run_state(dag_id, run_id)


def crash_dag(name: str, service: str) -> str:
    """Return the id of the DAG for a crash that submits to this service."""
    return f"crash_{name}" if service == "kie" else f"crash_{service}_{name}"


def modify(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, Any]:
    """Return the task ``modify`` of a run."""
    [task] = [task for task in airflow.tasks(dag_id, run_id) if task["task_id"] == "modify"]
    return task


def wait_for_state(airflow: LocalAirflow, dag_id: str, run_id: str, *states: str) -> None:
    """Wait until the task ``modify`` is in one of these states."""
    airflow.wait_until(lambda: modify(airflow, dag_id, run_id)["state"] in states, f"{dag_id} to be {states}")


def says(airflow: LocalAirflow, dag_id: str, run_id: str, words: str) -> bool:
    """Wait for words in the log of the last try of ``modify``."""
    task = modify(airflow, dag_id, run_id)
    return words in airflow.wait_for_log(words, dag_id, run_id, "modify", task["try_number"])


def clear(
    airflow: LocalAirflow, dag_id: str, run_id: str, *, keeps_state: bool = False, **further_options: bool
) -> None:
    """
    Clear the task ``modify`` as a person does, once the task is at rest.

    :param keeps_state: on Airflow 3.4, tick "Keep task state and resume"
    """
    tries = modify(airflow, dag_id, run_id)["try_number"]
    options = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["modify"], "only_failed": False}
    options |= further_options
    if AIRFLOW >= (3, 4):
        options["keep_task_state"] = keeps_state
    airflow.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=options)
    airflow.wait_until(lambda: modify(airflow, dag_id, run_id)["try_number"] > tries, "a new try")


def wait_for_run(airflow: LocalAirflow, dag_id: str, run_id: str, state: str) -> None:
    """Wait for the end of a run: Airflow can lose a Clear that comes while the scheduler is ending it."""
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) == state, "the run to end")


def wait_until_stored(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    """Wait until the task has been told that Airflow has its result, which is a moment after its success."""
    tries = modify(airflow, dag_id, run_id)["try_number"]
    airflow.wait_for_log("Airflow has stored the result", dag_id, run_id, "modify", tries)


def want(airflow: LocalAirflow, prompt: str) -> None:
    """Set the prompt of all coming tries of DAGs that take it from a variable."""
    variable = {"key": "prompt", "value": prompt}
    if any(v["key"] == "prompt" for v in airflow.call("GET", "/variables")["variables"]):
        airflow.call("PATCH", "/variables/prompt", json=variable)
    else:
        airflow.call("POST", "/variables", json=variable)


def task_processes(airflow: LocalAirflow) -> list[psutil.Process]:
    """Return the processes that run tasks: the executor's workers are children of the scheduler, tasks theirs."""
    workers = psutil.Process(airflow.processes["scheduler"].pid).children()
    return [task for worker in workers for task in worker.children()]


def has_process(airflow: LocalAirflow, task_instance_id: str) -> bool:
    """Tell whether a process runs a task instance, and so holds a worker's slot."""
    for process in task_processes(airflow):
        with suppress(psutil.NoSuchProcess):
            if task_instance_id in process.cmdline():
                return True
    return False


def kill_process_that_calls(luma: Simulator) -> None:
    """Kill the task process that has a call to this Luma in flight."""
    port = int(luma.base_url.rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            talks = any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp"))
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if talks and process.pid != psutil.Process().pid:
            process.kill()
            return
    raise AssertionError("no process calls this Luma")

# SPDX-License-Identifier: Apache-2.0
"""Runs of DAGs, watched from outside: how they end, what their tasks say, and which processes run them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow


def finish(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    """Wait for the end of a run; return its state."""
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) in ("success", "failed"), f"{dag_id} to end")
    return airflow.run_state(dag_id, run_id)


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

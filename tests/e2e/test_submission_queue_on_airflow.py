# SPDX-License-Identifier: Apache-2.0
"""More jobs than Luma accepts: they are queued in the triggerer without a worker, and survive its death."""

from __future__ import annotations

import signal

import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow

DAG_ID = "crash_in_queue"


@pytest.mark.long
def test_queued_submissions_survive_the_triggerer_and_need_one_try_each(
    airflow: LocalAirflow, lumas: dict[str, Simulator]
) -> None:
    luma = lumas[DAG_ID]
    luma.reset()
    luma.configure(submissions_per_10_seconds=4, processing_seconds=1)
    run_id = airflow.trigger(DAG_ID)

    def waiting() -> list[dict[str, object]]:
        return [task for task in airflow.tasks(DAG_ID, run_id) if task["state"] == "deferred"]

    airflow.wait_until(lambda: luma.accepted >= 4 and len(waiting()) >= 6, "tasks to be queued")
    airflow.stop("triggerer", signal.SIGKILL)
    airflow.start("triggerer")
    airflow.wait_until(lambda: airflow.run_state(DAG_ID, run_id) in ("success", "failed"), "all to end", every=2)
    tasks = airflow.tasks(DAG_ID, run_id)
    assert [task["state"] for task in tasks] == ["success"] * 12, airflow.story(DAG_ID, run_id)
    assert {task["try_number"] for task in tasks} == {1}
    assert luma.accepted == 12
    refused = [call for call in luma.calls if call.on == "submit" and call.code == 429]
    assert len(refused) <= 24, "each was refused twice at most, on average"
    logs = [airflow.task_log(DAG_ID, run_id, "modify", map_index=number) for number in range(12)]
    assert any("queued in the triggerer" in log for log in logs)

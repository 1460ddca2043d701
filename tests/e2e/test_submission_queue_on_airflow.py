# SPDX-License-Identifier: Apache-2.0
"""More jobs than Luma accepts: they are queued in the triggerer without a worker, and survive its death."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import SERVICES, crash_dag

#: Luma's own API asks for a minute's patience, which would make this test last for minutes.
LIMITS: dict[str, dict[str, Any]] = {
    "kie": {"submissions_per_10_seconds": 4},
    "luma": {"faults": ["submit:refuse,code=429,retry_after=5,skip=4,times=12"]},
}


@pytest.mark.long
@pytest.mark.parametrize("service", SERVICES)
def test_queued_submissions_survive_the_triggerer_and_need_one_try_each(
    airflow: LocalAirflow, lumas: dict[str, Simulator], service: str
) -> None:
    luma, dag_id = lumas["crash_in_queue"], crash_dag("in_queue", service)
    luma.reset()
    luma.configure(processing_seconds=1, **LIMITS[service])
    run_id = airflow.trigger(dag_id)

    def waiting() -> list[dict[str, object]]:
        return [task for task in airflow.tasks(dag_id, run_id) if task["state"] == "deferred"]

    airflow.wait_until(lambda: luma.accepted >= 4 and len(waiting()) >= 6, "tasks to be queued")
    airflow.stop("triggerer", signal.SIGKILL)
    airflow.start("triggerer")
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) in ("success", "failed"), "all to end", every=2)
    tasks = airflow.tasks(dag_id, run_id)
    assert [task["state"] for task in tasks] == ["success"] * 12, airflow.story(dag_id, run_id)
    assert {task["try_number"] for task in tasks} == {1}
    assert luma.accepted == 12
    refused = [call for call in luma.calls if call.on == "submit" and call.code == 429]
    assert len(refused) <= 24, "each was refused twice at most, on average"
    logs = [airflow.task_log(dag_id, run_id, "modify", map_index=number) for number in range(12)]
    assert any("queued in the triggerer" in log for log in logs)

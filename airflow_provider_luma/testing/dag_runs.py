# SPDX-License-Identifier: Apache-2.0
"""Runs of DAGs in a test, and what became of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.testing.airflow_process import AirflowProcess

if TYPE_CHECKING:
    from airflow_provider_luma.simulator import Job, Simulator

#: A task, with its map index if it is mapped.
TaskKey = str | tuple[str, int]


@dataclass(frozen=True)
class DagRunResult:
    """
    What became of a run of a DAG.

    :param dag_id: the DAG
    :param state: the state of the run, such as ``success`` or ``failed``
    :param states: the state of each task, by its id; by id and map index if the task is mapped
    :param submissions: the submissions that the simulator accepted during the run, oldest first
    :param log: all that Airflow and the tasks have logged or printed
    :param xcoms: the XComs, by task id, map index and key; :meth:`xcom` returns one of them
    """

    dag_id: str
    state: str
    states: Mapping[TaskKey, str | None]
    submissions: Sequence[Job] = field(repr=False)
    log: str = field(repr=False)
    xcoms: Mapping[tuple[str, int, str], Any] = field(repr=False)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """
        Return an XCom, converted to JSON's types: tuples become lists; times and assets become strings.

        :raises LookupError: the task has not pushed that
        """
        if (task_id, map_index, key) not in self.xcoms:
            pushed = ", ".join(f"{task}[{index}] {name}" for task, index, name in sorted(self.xcoms)) or "none"
            raise LookupError(f"{self.dag_id} has no XCom {task_id}[{map_index}] {key}; XComs pushed: {pushed}")
        return self.xcoms[task_id, map_index, key]


class DagRunner:
    """The fixture ``run_dag``: runs DAGs in an Airflow whose connection ``luma_default`` leads to a simulator."""

    def __init__(self, airflow: AirflowProcess, simulator: Simulator) -> None:
        self._airflow = airflow
        self._simulator = simulator

    def __call__(
        self,
        dag_id: str,
        params: Mapping[str, Any] | None = None,
        *,
        connections: Mapping[str, str | Mapping[str, Any]] | None = None,
        timeout: float = 300,
    ) -> DagRunResult:
        """
        Run a DAG to its end, and print its log, which pytest shows if the test fails.

        The run has the test's environment variables, but neither its Airflow settings nor its connections, so it cannot
        spend credits by accident.

        :param dag_id: the DAG, of a file in the DAGs folder
        :param params: the params of the run
        :param connections: Airflow connections by their ids, each as a URI or as a dict. ``luma_default`` leads to
            kie.ai's API unless it is given, e.g. ``{"luma_default": luma_simulator.connection_uri("luma")}``
        :param timeout: seconds after which a run that has not ended is killed
        :raises AirflowProblem: there is no such DAG, its file cannot be imported, the params are invalid, or the run
            has not ended in time. A run that fails raises nothing
        """
        known = {job.task_id for job in self._simulator.jobs}
        given = {"luma_default": self._simulator.connection_uri(), **(connections or {})}
        result, log = self._airflow.run(dag_id, params or {}, given, timeout)
        sys.stdout.write(log)
        return DagRunResult(
            dag_id=dag_id,
            state=result["state"],
            states={task if index < 0 else (task, index): state for task, index, state in result["states"]},
            submissions=[job for job in self._simulator.jobs if job.task_id not in known],
            log=log,
            xcoms={(task, index, key): value for task, index, key, value in result["xcoms"]},
        )

# SPDX-License-Identifier: Apache-2.0
"""The budget of the DAG run to which the tests' task instances belong."""

from __future__ import annotations

from typing import Any

from airflow_provider_luma.submission.budget import RunBudget
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from tests.support.task_instance import TaskInstance

#: The run of the tests' task instances.
DAG_ID, RUN_ID = TaskInstance.dag_id, TaskInstance.run_id


def store_of(folder: str, map_index: int = 0, task_id: str = "modify") -> ObjectSubmissionStore:
    return ObjectSubmissionStore(folder, (DAG_ID, RUN_ID, task_id, map_index))


def budget_of(folder: str, map_index: int = 0, *, limit: int = 2, task_id: str = "modify", **options: Any) -> RunBudget:
    """Return the budget of the run as one mapped task instance sees it."""
    return store_of(folder, map_index, task_id).run_budget(limit, "luma_default", **options)


def jobs_of(folder: str) -> int:
    """Return how many slots of the run are in use."""
    return budget_of(folder).usage().jobs

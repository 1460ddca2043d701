# SPDX-License-Identifier: Apache-2.0
"""Submitting each job only once, whatever happens between the tries of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_luma.submission.store import SubmissionStore


def open_store(context: Context, folder: str | None) -> SubmissionStore:
    """
    Return the store of the running task instance.

    :param context: the task instance's context
    :param folder: the connection's ``submission_store``, if any
    """
    from airflow_provider_luma.compat import loop_iteration, task_state_store
    from airflow_provider_luma.submission.store import TaskStateSubmissionStore

    own = TaskStateSubmissionStore(task_state_store(context))
    if folder is not None:
        from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore

        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        _, iteration = loop_iteration(ti)  # each iteration is a separate task instance
        path = (ti.dag_id, ti.run_id, ti.task_id, map_index)
        return ObjectSubmissionStore(folder, path, iteration if iteration != map_index else None, earlier=own)
    return own

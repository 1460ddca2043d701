# SPDX-License-Identifier: Apache-2.0
"""
Delivery of a job's outcome: what a person can know of it, and the record that tells so.

Whoever clears a task wants a new video if the outcome of the last job was delivered, and that job's video if not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaGenerationError, LumaResultMissingError
from airflow_provider_luma.links.luma import pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_luma.submission.store import SubmissionStore


class LumaJobOperator(LumaBaseOperator):
    """An operator that has submitted a job, and delivers its outcome."""

    resubmit_on_failure: bool

    def open_store(self, context: Context) -> SubmissionStore:
        """Return where the record of this task's submission lives."""
        from airflow_provider_luma.submission.stores import open_store

        return open_store(context, self.hook.luma_connection.submission_store)

    def finished(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        """Return the result of a job that has ended well."""
        self.log.info("Luma task %s is finished: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        return self.delivered(result, context)

    def delivered(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        """Return a result, and record that it was returned."""
        self.mark_told(result["luma_task_id"], context)
        self.result = result
        return result

    @contextmanager
    def delivered_failure(self, context: Context) -> Iterator[None]:
        """Let a person know how the job has failed, and record that; spend no retries if a new job is not wanted."""
        with pushed_failure(context):
            try:
                yield
            except LumaResultMissingError as failure:
                self.mark_told(failure.luma_task_id, context, is_missing=True)
                raise
            except LumaGenerationError as failure:
                self.mark_told(failure.luma_task_id, context)
                if self.resubmit_on_failure:
                    raise
                raise AirflowFailException(str(failure)) from failure

    def mark_told(self, luma_task_id: str | None, context: Context, *, is_missing: bool = False) -> None:
        """
        Record that the outcome of a job is known: whoever clears the task from now on wants a new video.

        :param is_missing: the outcome is that Luma lists no video; should it be listed later, it is still wanted
        """
        from airflow_provider_luma.submission.store import mark_told, try_store

        store = try_store(self.log, self.open_store, context)
        if store is not None and luma_task_id is not None:
            mark_told(store, self.log, luma_task_id, is_missing=is_missing)

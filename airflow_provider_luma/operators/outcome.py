# SPDX-License-Identifier: Apache-2.0
"""
Delivery of a job's outcome: what Airflow and a person have of it, and the record that tells so.

Whoever clears a task wants a new video if the result of the last job was delivered, and that job's video if not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.exceptions import (
    LumaGenerationError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaValidationError,
)
from airflow_provider_luma.links.luma import pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_luma.core.decision import Outcome
    from airflow_provider_luma.core.deferral import JobFinished
    from airflow_provider_luma.submission.store import SubmissionStore


class LumaJobOperator(LumaBaseOperator):
    """An operator that has submitted a job, and delivers its outcome."""

    resubmit_on_failure: bool

    def open_store(self, context: Context) -> SubmissionStore:
        """Return where the record of this task's submission lives."""
        from airflow_provider_luma.submission.stores import open_store

        try:
            return open_store(context, self.hook.luma_connection.submission_store)
        except LumaValidationError as error:
            raise AirflowFailException(str(error)) from error

    def finished(self, job: JobFinished, context: Context, *, source: object = None) -> dict[str, Any]:
        """
        Return the result of a job that has ended well.

        :param source: the video that was modified, if Luma knows only a copy of it
        """
        result, asked = job["task"], job.get("request") or {}
        self.log.info("Luma task %s is finished: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        self.report_job(result, context, prompt=asked.get("prompt"), source=source or asked.get("video_url"))
        return result

    def on_result_stored(self, context: Context) -> None:
        """
        Record that Airflow has the result: whoever clears the task from now on wants a new video.

        Called after the task has succeeded. Before that its ``post_execute`` or the XCom backend may still fail it.
        """
        from airflow_provider_luma.core.decision import Outcome

        if self._mark(self.result.get("luma_task_id"), Outcome.RESULT, context):
            self.log.info("Airflow has stored the result: a Clear of this task makes a new video")

    @contextmanager
    def delivered_failure(self, context: Context) -> Iterator[None]:
        """Let a person know how the job has failed, and record that; spend no retries if a new job is not wanted."""
        from airflow_provider_luma.core.decision import Outcome

        with pushed_failure(context):
            try:
                yield
            except LumaResultMissingError as failure:
                self._mark(failure.luma_task_id, None, context)
                raise
            except LumaGenerationError as failure:
                self._mark(failure.luma_task_id, Outcome.FAILURE, context)
                if self.resubmit_on_failure:
                    raise
                raise AirflowFailException(str(failure)) from failure
            except LumaTimeoutError as failure:
                failure.remedy = self.recovery_hint(context)
                raise

    def recovery_hint(self, context: Context) -> str:
        """Return what a person can do about a task that has failed while its job is running, without paying again."""
        from airflow_provider_luma.submission.store import NoStore, try_store

        return (try_store(self.log, self.open_store, context) or NoStore()).recovery_hint

    def _mark(self, luma_task_id: str | None, outcome: Outcome | None, context: Context) -> bool:
        from airflow_provider_luma.submission.store import mark_delivered, try_store

        store = try_store(self.log, self.open_store, context)
        if store is None or luma_task_id is None:
            return False
        return mark_delivered(store, self.log, luma_task_id, outcome)

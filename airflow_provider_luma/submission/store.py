# SPDX-License-Identifier: Apache-2.0
"""
Submission store: where the record of a submission lives, so that it survives retries, crashes and deferrals.

It is Airflow's task state store (Airflow 3.3 and newer), which keeps one record for each task instance. Below 3.3 there
is none, and every try finds nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.submission.decision import SubmissionRecord

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The key of the record in the task state store.
STORE_KEY = "luma_submission"

#: The key under which the receiver of callbacks records, for an intent, which job it has become.
CALLBACK_KEY = "luma_callback"


class SubmissionStore:
    """
    What the running task instance keeps of its latest submission.

    :param context: of the task instance
    """

    def __init__(self, context: Context) -> None:
        self._state = context.get("task_state_store")

    @property
    def is_durable(self) -> bool:
        """Whether the next try finds what this one writes."""
        return self._state is not None

    def load(self) -> SubmissionRecord | None:
        """Return the record, if there is one."""
        return SubmissionRecord.load(self._state.get(STORE_KEY)) if self._state is not None else None

    def save(self, record: SubmissionRecord) -> None:
        """Write the record: an intent before the request, the id after its answer."""
        if self._state is not None:
            self._state.set(STORE_KEY, record.as_dict())

    def forget(self) -> None:
        """Delete the record of a submission that was surely not accepted."""
        if self._state is not None:
            self._state.delete(STORE_KEY)

    def complete(self, reference: str, luma_task_id: str, *, max_tries: int) -> SubmissionRecord | None:
        """
        Put the job's id into the record of a submission whose answer was lost.

        :returns: the record that is stored now; it is unchanged if it belongs to a later submission
        """
        record = self.load()
        if record is None or record.reference != reference:
            return record
        record = replace(record, luma_task_id=luma_task_id, max_tries=max_tries)
        self.save(record)
        return record

    def callback_task_id(self, reference: str) -> str | None:
        """Return the id of the job that a callback has named for a submission; it is not verified."""
        callback: Any = self._state.get(CALLBACK_KEY) if self._state is not None else None
        return callback["luma_task_id"] if callback and callback["reference"] == reference else None

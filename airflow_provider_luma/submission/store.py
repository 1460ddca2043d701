# SPDX-License-Identifier: Apache-2.0
"""
Submission stores: they keep the record of a submission, so that it survives retries, crashes and deferrals.

If the connection's extra has a ``submission_store``, records live in that folder on any storage (:mod:`.store_folder`).
Otherwise they live in Airflow's task state store (Airflow 3.3 and newer), one for each task instance; from Airflow 3.4
a Clear discards the record by default. Below 3.3 there is no such store, and nothing is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_luma.compat import CLEAR_DISCARDS_TASK_STATE, AirflowException
from airflow_provider_luma.core.decision import RECORDS_KEPT, SubmissionRecord
from airflow_provider_luma.exceptions import CLEAR_HINT, KEEP_STATE_HINT, NO_RECORD_HINT, LumaValidationError

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.submission.budget import RunBudget

T = TypeVar("T")

#: The key of the record in the task state store.
STORE_KEY = "luma_submission"

#: The key of the upload's details.
UPLOAD_KEY = "luma_upload"

#: The key under which the receiver of callbacks records which job an intent led to.
CALLBACK_KEY = "luma_callback"


class SubmissionStore(ABC):
    """Keeps the record of a task instance's latest submission."""

    #: Whether the next try finds what this one writes.
    is_durable = True

    #: What a person can do, without paying for another job, if a task has failed while its job is running.
    recovery_hint = CLEAR_HINT

    @abstractmethod
    def load(self) -> SubmissionRecord | None:
        """Return the record, if there is one."""

    @abstractmethod
    def begin(self, intent: SubmissionRecord) -> None:
        """Write the intent of a new submission; raise if that fails, so that nothing is submitted."""

    @abstractmethod
    def save(self, record: SubmissionRecord) -> None:
        """Write the updated record of a submission that was begun."""

    @abstractmethod
    def forget(self, intent: SubmissionRecord, *, may_be_paid: bool = False) -> None:
        """
        Drop the intent of a submission that was not accepted, and restore the record it replaced.

        :param may_be_paid: it may have been accepted, and so keeps its slot in the run's budget
        """

    def is_current(self, intent: SubmissionRecord) -> bool:
        """
        Return whether an intent still counts: no later try has taken over, and nobody has removed its record.

        Asked just before the submission is sent. Where nothing is kept, there is nothing to compare.
        """
        return not self.is_durable or self.load() == intent

    @abstractmethod
    def callback_task_id(self, reference: str) -> str | None:
        """Return the job id that a callback named for a submission; it is not verified."""

    @abstractmethod
    def load_upload(self) -> dict[str, Any] | None:
        """Return the upload kept by :meth:`save_upload`, if any."""

    @abstractmethod
    def save_upload(self, upload: dict[str, Any]) -> None:
        """Keep the upload of the task's input video, so that a later try need not repeat it."""

    def run_budget(self, limit: int, conn_id: str, *, is_first_try: bool = False) -> RunBudget:
        """
        Return the budget of the DAG run.

        :param limit: ``max_jobs_per_run``
        :param conn_id: the connection that names the store
        :param is_first_try: whether no earlier try can have left a slot
        :raises LumaValidationError: this store cannot keep one
        :raises AirflowException: the storage cannot be used
        """
        raise no_budget(conn_id, "has none")

    def update(self, reference: str, **changes: Any) -> SubmissionRecord | None:
        """
        Change the record of a submission.

        :param reference: the submission's name
        :returns: the record that is now stored; unchanged if it belongs to a later submission
        """
        record = self.load()
        if record is None or record.reference != reference:
            return record
        changed = replace(record, **changes)
        if changed != record:
            self.save(changed)
        return changed


class TaskStateSubmissionStore(SubmissionStore):
    """
    Keeps the record in Airflow's task state store.

    :param state: the task instance's part of that store; None if Airflow has no such store, so that nothing is kept
    """

    if CLEAR_DISCARDS_TASK_STATE:
        recovery_hint = KEEP_STATE_HINT

    def __init__(self, state: Any) -> None:
        self._state = state
        #: The submission that this process has seen last: any other one is from another try.
        self._seen: str | None = None
        if state is None:
            self.is_durable, self.recovery_hint = False, NO_RECORD_HINT

    def load(self) -> SubmissionRecord | None:
        """Return the record, if there is one."""
        record = self._read()
        self._seen = record.reference if record else None
        return record

    def begin(self, intent: SubmissionRecord) -> None:
        """
        Write the intent in place of an earlier submission's record.

        :raises AirflowException: another try has begun a submission in the meantime, and its record must stay
        """
        stored = self._read()
        if stored is not None and stored.reference != self._seen:
            raise AirflowException(
                "Another try of this task has begun to submit since this one read the record. This try submitted "
                "nothing"
            )
        self._set(STORE_KEY, intent.as_dict())
        self._seen = intent.reference

    def save(self, record: SubmissionRecord) -> None:
        """Write the record, unless another try has begun a submission since."""
        if self._is_latest(record):
            self._set(STORE_KEY, record.as_dict())

    def forget(self, intent: SubmissionRecord, *, may_be_paid: bool = False) -> None:
        """Restore the record the intent replaced, unless another try has begun a submission since."""
        if self._state is None or not self._is_latest(intent):
            return
        self._seen = intent.replaced.reference if intent.replaced else None
        if intent.replaced is None:
            self._state.delete(STORE_KEY)
        else:
            self._set(STORE_KEY, intent.replaced.as_dict())

    def _is_latest(self, record: SubmissionRecord) -> bool:
        stored = self._read()
        return stored is None or stored.reference == record.reference

    def callback_task_id(self, reference: str) -> str | None:
        """Return the id that the receiver of callbacks has written beside the record."""
        callback = self._get(CALLBACK_KEY)
        return callback["luma_task_id"] if callback and callback["reference"] == reference else None

    def load_upload(self) -> dict[str, Any] | None:
        """Return the upload kept by :meth:`save_upload`, if any."""
        return self._get(UPLOAD_KEY)

    def save_upload(self, upload: dict[str, Any]) -> None:
        """Keep an upload."""
        self._set(UPLOAD_KEY, upload)

    def _read(self) -> SubmissionRecord | None:
        return SubmissionRecord.load(self._get(STORE_KEY))

    def _get(self, key: str) -> dict[str, Any] | None:
        return None if self._state is None else self._state.get(key)

    def _set(self, key: str, value: dict[str, Any]) -> None:
        if self._state is not None:
            # Keep it as long as kie.ai keeps its records; Airflow's default is a month.
            self._state.set(key, value, retention=timedelta(seconds=RECORDS_KEPT))


def no_budget(conn_id: str, what_it_has: str) -> LumaValidationError:
    """Return the error for a store that cannot keep the budget of a DAG run."""
    return LumaValidationError(
        None,
        "max_jobs_per_run needs a submission_store that lets only one of several workers create a file: a disk that "
        f"all workers share, Amazon S3, Google Cloud Storage or Azure Blob Storage. Connection {conn_id!r} "
        f"{what_it_has}. Nothing was submitted. Set submission_store in its extra, or remove max_jobs_per_run",
    )


def try_store(log: Logger, access: Callable[..., T], *arguments: Any, **changes: Any) -> T | None:
    """Use the store; if that fails, log it and return None, because Luma's response matters more."""
    try:
        return access(*arguments, **changes)
    except Exception:
        log.exception(
            "Could not access the submission store. If this try fails, the next one may not find its job; someone may "
            "then have to look for it in the Luma account"
        )
        return None

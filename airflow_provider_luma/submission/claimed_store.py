# SPDX-License-Identifier: Apache-2.0
"""
Claims: if several runs want the same video, only one of them pays for a job.

A submission store belongs to one task instance of one run. In a batch, a later or simultaneous run may find the same
clip, still without a video. So the store gets a claim that all runs can see. It is made just before the intent is
written, and kept until it is certain that no job was accepted.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_luma.core.decision import Outcome, SubmissionRecord
from airflow_provider_luma.submission.store import SubmissionStore

if TYPE_CHECKING:
    from airflow_provider_luma.submission.budget import RunBudget

log = logging.getLogger(__name__)


class Claim(Protocol):
    """A claim to a video."""

    def stake(self, reference: str, known_job: str | None) -> None:
        """
        Make the claim for a submission; raise if another task has one.

        :param known_job: the job of the record that the submission replaces
        """

    def name_job(self, reference: str, luma_task_id: str) -> None:
        """Write the job's id into the claim of a submission, for other runs."""

    def is_held(self, reference: str) -> bool:
        """Return whether a submission still holds the claim."""

    def regain(self, reference: str) -> bool:
        """Put a submission's claim back if a later one has replaced it; return whether the submission holds it now."""

    def withdraw(self, reference: str) -> None:
        """Undo :meth:`stake`, unless another task has taken the claim over."""


class ClaimedStore(SubmissionStore):
    """
    A submission store with a claim.

    :param store: keeps the record
    :param claim: keeps other runs from submitting
    :param recovery_hint: what a person can do if the task has failed while its job is running
    """

    def __init__(self, store: SubmissionStore, claim: Claim, recovery_hint: str) -> None:
        self._store, self._claim = store, claim
        self.is_durable, self.recovery_hint = store.is_durable, recovery_hint

    def load(self) -> SubmissionRecord | None:
        """
        Return the record, if there is one.

        While its claim is there, the video has not been written, so the result counts as not delivered.
        """
        record = self._store.load()
        if record is None or record.luma_task_id is None:
            return record
        has_claim = self._claim.regain(record.reference)
        return replace(record, delivered=None) if has_claim and record.delivered is Outcome.RESULT else record

    def begin(self, intent: SubmissionRecord) -> None:
        """Stake the claim, then write the intent."""
        self._claim.stake(intent.reference, intent.replaced.luma_task_id if intent.replaced else None)
        self._store.begin(intent)

    def save(self, record: SubmissionRecord) -> None:
        """
        Write the updated record, and a new job id into the claim.

        Once the outcome has been delivered, the claim is left alone: the job's download may hold it by then.
        """
        self._store.save(record)
        if record.luma_task_id is None or record.delivered is not None:
            return
        try:
            self._claim.name_job(record.reference, record.luma_task_id)
        except Exception:
            log.warning("Could not write the job's id into the claim, so other runs cannot show it", exc_info=True)

    def forget(self, intent: SubmissionRecord, *, may_be_paid: bool = False) -> None:
        """
        Drop the intent, and withdraw the claim unless there may be a job.

        A claim that cannot be withdrawn costs nothing: the next try takes it over, and other runs say whose it is.
        """
        self._store.forget(intent, may_be_paid=may_be_paid)
        try:
            if not may_be_paid:
                self._claim.withdraw(intent.reference)
            elif intent.replaced is not None:
                self._claim.regain(intent.replaced.reference)
        except Exception:
            log.warning(
                "Could not withdraw the claim to the video, so other runs will not submit its clip", exc_info=True
            )

    def is_current(self, intent: SubmissionRecord) -> bool:
        """Return whether an intent and its claim still count."""
        return self._store.is_current(intent) and self._claim.is_held(intent.reference)

    def run_budget(self, limit: int, conn_id: str, *, is_first_try: bool = False) -> RunBudget:
        """Return the budget of the DAG run."""
        return self._store.run_budget(limit, conn_id, is_first_try=is_first_try)

    def callback_task_id(self, reference: str) -> str | None:
        """Return the job id that a callback named for a submission."""
        return self._store.callback_task_id(reference)

    def load_upload(self) -> dict[str, Any] | None:
        """Return the upload kept by :meth:`save_upload`, if any."""
        return self._store.load_upload()

    def save_upload(self, upload: dict[str, Any]) -> None:
        """Keep the upload of the task's input video."""
        self._store.save_upload(upload)

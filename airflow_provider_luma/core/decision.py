# SPDX-License-Identifier: Apache-2.0
"""
The submit-once decision table: what a try does, given what an earlier try has recorded. No I/O.

A job costs money and cannot be cancelled, and the service offers no way to ask whether it has accepted one. So a task
records an intent (a :class:`SubmissionRecord` without an id) *before* it sends the request, and the id *after* the
response. Whenever a process is killed, the next try finds one of three things: no record (nothing was sent), an intent
(something may have been sent), or an id.

:data:`TABLE` says what to do next, and :func:`decide` looks it up. Besides the record, the decision depends on

* whether the request is unchanged, judging by its fingerprint;
* whether this try is an Airflow retry or follows a Clear (:func:`is_cleared`). A retry completes the last try;
  clearing a task whose outcome was seen requests a new video;
* whether the outcome was seen: a result or a failure was delivered, or the outcome was reported as unknown.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from airflow_provider_luma.core.job import DEFAULT_SERVICE

#: Seconds for which kie.ai keeps a job's record: two months (https://docs.kie.ai). We keep our records as long.
RECORDS_KEPT = 62 * 86_400.0


class Outcome(StrEnum):
    """Which outcome of a job has been delivered."""

    #: Airflow has stored the result.
    RESULT = "result"
    #: The task has failed because the job failed at the service.
    FAILURE = "failure"
    #: Either of these; records of version 1.1.0 do not say which.
    EITHER = "either"


@dataclass(frozen=True)
class SubmissionRecord:
    """
    The record of a submission. It contains no secrets, because Airflow's UI shows it.

    :param reference: our own unique name for this submission
    :param fingerprint: what was asked for, see :meth:`~airflow_provider_luma.core.job.ModifyRequest.fingerprint`
    :param luma_task_id: the job's id; None until Luma has assigned one
    :param max_tries: the task's ``max_tries`` when the record was written
    :param try_number: the try that submitted
    :param expects_callback: whether Luma was given a callback address of ours
    :param submitted_at: when the record was written, in seconds since the epoch; None in a record of version 1.0.0
    :param delivered: which outcome was delivered, if any
    :param reported: whether a task has failed because it is unknown whether the submission was accepted, or because
        the job has an id but Luma lists no video for it
    :param clear_number: how often the DAG run had been cleared when the record was written; None before version 2.0.0
    :param replaced: for an intent, the record of the job that it replaced, which applies again if the submission is
        refused
    :param service: the name of the service that it was submitted to
    """

    reference: str
    fingerprint: str
    luma_task_id: str | None
    max_tries: int
    try_number: int
    expects_callback: bool = False
    submitted_at: float | None = None
    delivered: Outcome | None = None
    reported: bool = False
    clear_number: int | None = None
    replaced: SubmissionRecord | None = None
    service: str = DEFAULT_SERVICE

    @classmethod
    def load(cls, stored: Any) -> SubmissionRecord | None:
        """Read what :meth:`as_dict` wrote, here or in an earlier version; None if there is nothing."""
        if not stored:
            return None
        fields = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        if delivered := fields.pop("delivered", None):
            fields["delivered"] = Outcome(delivered) if delivered in set(Outcome) else Outcome.EITHER
        return cls(**{**fields, "replaced": cls.load(fields.get("replaced"))})

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        delivered = self.delivered and self.delivered.value  # version 1.1.0 reads this as true
        return {**asdict(self), "delivered": delivered, "replaced": self.replaced and self.replaced.as_dict()}

    @property
    def job(self) -> SubmissionRecord | None:
        """The record of the latest job known to have been accepted: this one, or the one it replaced."""
        return self if self.luma_task_id is not None else self.replaced


def new_reference() -> str:
    """Return a unique, unguessable name for a submission."""
    return uuid.uuid4().hex


class Try(Enum):
    """Why this try runs; see :func:`is_cleared`."""

    RETRY = "a retry"
    CLEARED = "after a Clear"


class JobStatus(Enum):
    """The status of a recorded job, as far as the decision depends on it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    RESULT_MISSING = "succeeded, but lists no video"
    FAILED = "failed"
    FORGOTTEN = "no longer known, after more than two months"
    NOT_FOUND = "not known, although it may exist"
    UNAVAILABLE = "cannot be checked"


class Seen(Enum):
    """Whether a person can know the outcome: it was delivered, or reported as unknown or missing."""

    YES = True
    NO = False


class Callback(Enum):
    """Whether a callback can still name the job of an intent."""

    EXPECTED = True
    NONE = False


class Resubmit(Enum):
    """The operator's ``resubmit_on_failure`` for a job, or its ``resubmit_on_unknown`` for an intent."""

    ON = True
    OFF = False


class Step(Enum):
    """What to do."""

    SUBMIT = "submit"
    WAIT = "wait for the recorded job"
    TAKE_RESULT = "return the recorded job's result"
    AWAIT_CALLBACK = "wait for the callback"
    FAIL = "fail without further retries"
    RAISE_FAILURE = "fail as the recorded job did"
    NOT_FOUND = "fail"
    ASK_LATER = "fail; the next try checks again"
    REFUSE = "fail without further retries; send nothing"


#: Matches every value of a column in a row of the table.
ANY: None = None


class NoRecord(NamedTuple):
    """No earlier try has left a record."""


class Job(NamedTuple):
    """The record has an id, and the request is the same."""

    this_try: Try | None
    status: JobStatus | None
    seen: Seen | None = ANY
    resubmit: Resubmit | None = ANY


class JobOfAnotherRequest(NamedTuple):
    """The record has an id, and the request has changed."""

    this_try: Try | None


class Intent(NamedTuple):
    """The record has no id. A callback is expected only if the request is the same."""

    this_try: Try | None
    seen: Seen | None = ANY
    callback: Callback | None = ANY
    resubmit: Resubmit | None = ANY


class JobOfAnotherService(NamedTuple):
    """The connection leads to a different service from the record's, with or without an id."""


Situation = NoRecord | Job | JobOfAnotherRequest | Intent | JobOfAnotherService


class Row(NamedTuple):
    """
    One row of the table.

    :param situation: the situations to which the row applies
    :param step: what to do
    :param reason: the text for the task's log; ``{id}`` is the recorded job, ``{number}`` the try that submitted it
    """

    situation: Situation
    step: Step
    reason: str

    def covers(self, situation: Situation) -> bool:
        """Return whether the row applies."""
        return type(situation) is type(self.situation) and all(
            column in (ANY, fact) for column, fact in zip(self.situation, situation, strict=True)
        )


#: Exactly one row covers each situation. ``python -m harness.decision_table`` copies the table to docs/operations.md.
TABLE = (
    Row(NoRecord(), Step.SUBMIT, "No earlier submission recorded; submitting"),

    # A failed try is no reason to pay again: the job runs whether or not anyone waits for it.
    Row(Job(Try.RETRY, JobStatus.RUNNING), Step.WAIT,
        "Continuing Luma task {id}, submitted by try {number}; nothing new is billed"),
    Row(Job(Try.RETRY, JobStatus.SUCCEEDED), Step.TAKE_RESULT,
        "Returning the result of Luma task {id}, submitted by try {number}; nothing new is billed"),
    Row(Job(Try.RETRY, JobStatus.RESULT_MISSING), Step.WAIT,
        "Luma task {id}, submitted by try {number}, succeeded, but Luma lists no video yet; waiting for it, nothing "
        "new is billed"),
    Row(Job(Try.RETRY, JobStatus.FAILED, resubmit=Resubmit.ON), Step.SUBMIT,
        "Luma task {id}, submitted by try {number}, failed; submitting a new job"),
    Row(Job(Try.RETRY, JobStatus.FAILED, resubmit=Resubmit.OFF), Step.RAISE_FAILURE,
        "Luma task {id}, submitted by try {number}, failed; nothing is submitted, as resubmit_on_failure is off"),
    Row(Job(Try.RETRY, JobStatus.UNAVAILABLE), Step.WAIT,
        "Status check failed for Luma task {id}, submitted by try {number}; continuing it, nothing new is billed"),

    # While Luma should still know a job, an error of the service or the connection never leads to paying for it again.
    Row(Job(ANY, JobStatus.FORGOTTEN), Step.SUBMIT,
        "Luma no longer knows Luma task {id}, submitted by try {number} over two months ago; submitting a new job"),
    Row(Job(ANY, JobStatus.NOT_FOUND), Step.NOT_FOUND,
        "Luma does not know Luma task {id}, submitted by try {number}, although it may exist; nothing is submitted"),

    # A Clear asks for a new video only if the one already paid for was seen. A status check shows if it exists.
    Row(Job(Try.CLEARED, JobStatus.RUNNING), Step.WAIT,
        "Task cleared, but Luma task {id} of try {number} is still running, cannot be cancelled, and is paid for; "
        "continuing it, nothing new is billed"),
    Row(Job(Try.CLEARED, JobStatus.SUCCEEDED, Seen.NO), Step.TAKE_RESULT,
        "Task cleared, but there is no record that Airflow stored the result of Luma task {id} of try {number}, which "
        "is paid for; returning it, nothing new is billed. Clear the task again for a new video"),
    Row(Job(Try.CLEARED, JobStatus.SUCCEEDED, Seen.YES), Step.SUBMIT,
        "Task cleared after the result of Luma task {id} of try {number} was returned; submitting a new job"),
    Row(Job(Try.CLEARED, JobStatus.RESULT_MISSING, Seen.NO), Step.WAIT,
        "Task cleared; Luma task {id} of try {number} succeeded and is paid for, but Luma lists no video yet. Waiting "
        "for it, nothing new is billed"),
    Row(Job(Try.CLEARED, JobStatus.RESULT_MISSING, Seen.YES), Step.SUBMIT,
        "Task cleared after Luma task {id} of try {number} was returned, or reported to have no video; submitting a "
        "new job"),
    Row(Job(Try.CLEARED, JobStatus.FAILED, resubmit=Resubmit.ON), Step.SUBMIT,
        "Task cleared after Luma task {id} of try {number} failed; submitting a new job"),
    Row(Job(Try.CLEARED, JobStatus.FAILED, Seen.NO, Resubmit.OFF), Step.RAISE_FAILURE,
        "Task cleared, but no try has reported that Luma task {id} of try {number} failed; nothing is submitted, as "
        "resubmit_on_failure is off"),
    Row(Job(Try.CLEARED, JobStatus.FAILED, Seen.YES, Resubmit.OFF), Step.SUBMIT,
        "Task cleared after the failure of Luma task {id} of try {number} was reported; submitting a new job"),
    Row(Job(Try.CLEARED, JobStatus.UNAVAILABLE), Step.ASK_LATER,
        "Task cleared, but the status check of Luma task {id} of try {number} failed; nothing is submitted until Luma "
        "responds"),

    # The recorded job produces a different video from the one requested now.
    Row(JobOfAnotherRequest(Try.RETRY), Step.SUBMIT,
        "The request has changed since try {number} submitted Luma task {id}; submitting a new job. To fetch the "
        "earlier result, use a LumaTaskSensor with that id"),
    Row(JobOfAnotherRequest(Try.CLEARED), Step.SUBMIT,
        "Task cleared, and its request has changed since try {number} submitted Luma task {id}; submitting a new job. "
        "To fetch the earlier result, use a LumaTaskSensor with that id"),

    # A job may be running, but we have no id to ask Luma about. A callback would name it; otherwise a person must look.
    Row(Intent(Try.RETRY, callback=Callback.EXPECTED), Step.AWAIT_CALLBACK,
        "Try {number} ended just before or after submitting, and no response from Luma is recorded; waiting for Luma's "
        "callback to confirm the job, nothing new is billed"),
    Row(Intent(Try.RETRY, callback=Callback.NONE, resubmit=Resubmit.OFF), Step.FAIL,
        "Try {number} ended just before or after submitting, and no response from Luma is recorded. A job may have "
        "been accepted"),
    Row(Intent(Try.RETRY, callback=Callback.NONE, resubmit=Resubmit.ON), Step.SUBMIT,
        "Try {number} ended just before or after submitting, and no response from Luma is recorded. A job may have "
        "been accepted; submitting again, as resubmit_on_unknown is on"),
    Row(Intent(Try.CLEARED, Seen.NO, Callback.EXPECTED), Step.AWAIT_CALLBACK,
        "Task cleared, but try {number} ended just before or after submitting, and no response from Luma is recorded; "
        "waiting for Luma's callback to confirm the job, nothing new is billed"),
    Row(Intent(Try.CLEARED, Seen.NO, Callback.NONE, Resubmit.OFF), Step.FAIL,
        "Task cleared, but try {number} ended just before or after submitting, and no response from Luma is recorded. "
        "A job may have been accepted"),
    Row(Intent(Try.CLEARED, Seen.NO, Callback.NONE, Resubmit.ON), Step.SUBMIT,
        "Task cleared, but try {number} ended just before or after submitting, and no response from Luma is recorded. "
        "A job may have been accepted; submitting again, as resubmit_on_unknown is on"),
    Row(Intent(Try.CLEARED, Seen.YES), Step.SUBMIT,
        "Task cleared after it was reported that try {number} may have submitted a job; submitting"),

    # Neither service knows the other's jobs, and the connection may have been switched by mistake.
    Row(JobOfAnotherService(), Step.REFUSE,
        "Try {number} submitted to the service {service!r}, but the connection now leads to {current!r}; no request is "
        "sent. Point the connection back to {service!r}, or delete this task's submission record to submit a new job"),
)  # fmt: skip


class Decision(NamedTuple):
    """What to do, and why, as text for the task's log."""

    step: Step
    reason: str


def is_for_replaced(record: SubmissionRecord, fingerprint: str) -> bool:
    """Return whether a request matches the job that an intent replaced, and that job's result was never delivered."""
    replaced = record.replaced if record.luma_task_id is None else None
    return (
        replaced is not None
        and replaced.fingerprint == fingerprint != record.fingerprint
        and replaced.delivered is not Outcome.RESULT
    )


def must_ask(record: SubmissionRecord | None, fingerprint: str) -> bool:
    """Return whether the decision depends on the status of the recorded job at Luma."""
    return record is not None and record.luma_task_id is not None and record.fingerprint == fingerprint


def refusal_of_service(record: SubmissionRecord | None, service: str) -> str | None:
    """Return why no request is sent, if the connection leads to a different service from the record's; else None."""
    if record is None or record.service == service:
        return None
    (row,) = (row for row in TABLE if row.covers(JobOfAnotherService()))
    return row.reason.format(number=record.try_number, service=record.service, current=service)


def decide(
    record: SubmissionRecord | None,
    *,
    fingerprint: str,
    max_tries: int,
    clear_number: int | None = None,
    status: JobStatus | None = None,
    can_await_callback: bool = False,
    resubmit_on_unknown: bool = False,
    resubmit_on_failure: bool = True,
) -> Decision:
    """
    Decide what a try does.

    :param record: the record left by an earlier try, if any
    :param fingerprint: the fingerprint of this try's request
    :param max_tries: the task's current ``max_tries``
    :param clear_number: how often the DAG run has been cleared so far
    :param status: the status of the recorded job, where :func:`must_ask` is true
    :param can_await_callback: whether the task can be deferred to wait for a callback
    :param resubmit_on_unknown: whether to risk paying twice rather than have a person check the account
    :param resubmit_on_failure: submit again after a failed job; if off, only on a Clear after the failure was reported
    """
    situation: Situation = NoRecord()
    if record is not None:
        cleared = is_cleared(record, max_tries, clear_number, fails_for_good=not resubmit_on_failure)
        this_try, is_same = Try.CLEARED if cleared else Try.RETRY, record.fingerprint == fingerprint
        if record.luma_task_id is None:
            callback = Callback(record.expects_callback and can_await_callback and is_same)
            situation = Intent(this_try, Seen(record.reported), callback, Resubmit(resubmit_on_unknown))
        elif is_same:
            situation = Job(this_try, status, _seen(record, status), Resubmit(resubmit_on_failure))
        else:
            situation = JobOfAnotherRequest(this_try)
    row = next(row for row in TABLE if row.covers(situation))
    reason = row.reason if record is None else row.reason.format(id=record.luma_task_id, number=record.try_number)
    return Decision(row.step, reason)


def is_cleared(
    record: SubmissionRecord, max_tries: int, clear_number: int | None, *, fails_for_good: bool = False
) -> bool:
    """
    Return whether a person has cleared the task since its record was written; otherwise this try is a retry.

    Airflow has no flag for this. A Clear sets the task's ``max_tries`` to the tries so far plus ``retries``, and a
    retry leaves it unchanged. But a Clear with fewer ``retries`` can yield the same number; then only the DAG run's
    ``clear_number`` reveals the Clear. That also counts Clears of other tasks, so it is used only if the record shows
    that this task had ended for good: with a result, by asking a person, or with a failed job that is not retried.

    :param fails_for_good: whether a failed job ends the task without using its retries
    """
    if max_tries != record.max_tries:
        return True
    has_ended = (
        record.delivered is Outcome.RESULT
        or (record.delivered is Outcome.FAILURE and fails_for_good)
        or (record.luma_task_id is None and record.reported)
    )
    return has_ended and None not in (record.clear_number, clear_number) and clear_number != record.clear_number


def _seen(record: SubmissionRecord, status: JobStatus | None) -> Seen:
    """
    Return whether a person can know how a job ended.

    A report that the video was missing, or of a failure since reversed, does not mean that anybody has seen the video.
    """
    if status is JobStatus.FAILED:
        return Seen(record.delivered is not None)
    is_reported = record.reported and status is JobStatus.RESULT_MISSING
    return Seen(record.delivered is Outcome.RESULT or is_reported)

# SPDX-License-Identifier: Apache-2.0
"""
Decision table of submit-once: what a try does, given what an earlier one has recorded. No I/O.

A job costs money, cannot be cancelled, and the service offers no way to ask whether it has accepted one. So a task
records an intent (a :class:`SubmissionRecord` without an id) *before* the request is sent, and the id *after* the
answer. Wherever a process is killed, the next try finds one of three things: no record (nothing was sent), an intent
(something may have been sent), or an id.

What to do then is a table, :data:`TABLE`, and :func:`decide` reads it. Three facts decide beside the record:

* whether the request is still the same one, by its fingerprint;
* whether this try is a retry by Airflow or was cleared by a person, see :func:`is_cleared`. A retry wants what the last
  try wanted; a person who clears a task whose outcome is known wants a new video;
* whether that outcome is known: a result or a failure was delivered, or it was reported that nobody knows.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any, NamedTuple

#: Seconds for which Luma keeps its records of a job, two months (https://docs.kie.ai), and so we keep ours.
RECORDS_KEPT = 62 * 86_400.0


class Outcome(StrEnum):
    """What of a job has been delivered."""

    #: Airflow has stored the result.
    RESULT = "result"
    #: The task has failed with the service's own failure.
    FAILURE = "failure"
    #: One of the two; records of version 1.1.0 do not tell which.
    EITHER = "either"


@dataclass(frozen=True)
class SubmissionRecord:
    """
    What is recorded of a submission. It holds nothing secret: Airflow's UI shows it.

    :param reference: a name of our own for this one submission
    :param fingerprint: what was asked for, see :meth:`~airflow_provider_luma.core.job.ModifyRequest.fingerprint`
    :param luma_task_id: the job's id, or None as long as Luma has not given it
    :param max_tries: the task's ``max_tries`` when it was written
    :param try_number: the try that submitted
    :param expects_callback: whether Luma was given a callback address of ours
    :param submitted_at: when it was written, in seconds since the epoch; None in a record of version 1.0.0
    :param delivered: what of the outcome was delivered, if anything
    :param reported: whether a task has failed because it is unknown if the submission was accepted; of a job with an
        id, because Luma lists no video
    :param clear_number: how often the DAG run had been cleared when it was written; None before version 1.2.0
    :param replaced: of an intent, the record of the job in whose place it was written: that counts again should the
        submission be refused
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
        delivered = self.delivered and self.delivered.value  # which counts as true in version 1.1.0
        return {**asdict(self), "delivered": delivered, "replaced": self.replaced and self.replaced.as_dict()}

    @property
    def job(self) -> SubmissionRecord | None:
        """The record of the latest job that is known to have been accepted: this one, or the one it has replaced."""
        return self if self.luma_task_id is not None else self.replaced


def new_reference() -> str:
    """Return a name for a submission that nobody else has, and nobody can guess."""
    return uuid.uuid4().hex


class JobStatus(Enum):
    """What the service says of a recorded job, as far as the decision depends on it."""

    RUNNING = "running"
    SUCCEEDED = "has succeeded"
    RESULT_MISSING = "has succeeded, but lists no video"
    FAILED = "has failed"
    FORGOTTEN = "is no longer known, as Luma keeps records for two months"
    NOT_FOUND = "is not known, although Luma keeps records for two months"
    UNAVAILABLE = "cannot be asked"


class Step(Enum):
    """What to do."""

    SUBMIT = "submit"
    WAIT = "wait for the recorded job"
    TAKE_RESULT = "take the recorded job's result"
    AWAIT_CALLBACK = "wait for the callback that tells the job's id"
    FAIL = "fail, and let a person check the account"
    RAISE_FAILURE = "fail as the recorded job has"
    NOT_FOUND = "fail, as paying again is no answer to a job that Luma does not find"
    ASK_LATER = "fail, and ask again at the next try"


class Row(NamedTuple):
    """
    One row of the table; None in a column stands for anything.

    :param record: ``none``, ``id``, ``intent``, or ``callback``: an intent whose callback can be waited for
    :param request: ``same`` or ``changed``
    :param by: ``retry``, or ``clear`` by a person
    :param status: what Luma says of the recorded job
    :param told: whether a person can know the outcome: the result was delivered, or it was reported that an intent's
        outcome is unknown, or that a video is missing
    :param step: what to do
    :param reason: the text for the task's log
    """

    record: str
    request: str | None
    by: str | None
    status: JobStatus | None
    told: bool | None
    step: Step
    reason: str


# Why each row is as it is:
#   none                     Nothing was ever sent, or what was sent was surely refused.
#   id, same, retry          A failed try is no reason to pay again: the job runs whether somebody waits or not.
#                            Only a job that brought nothing is replaced. Where Luma cannot be asked, waiting is what
#                            costs nothing.
#   id, same, no video       The video is made and paid for. Where Luma does not show it, a person has to ask; only
#                            one who was told so, and clears the task, wants another instead.
#   id, same, not found      Luma keeps its records for two months. Before that, "no such task" is an error of the
#                            service or of the connection, and paying again is no answer to it.
#   id, changed              The recorded job makes another video than the one that is wanted now.
#   id, same, clear          A running job cannot be cancelled and is paid for, so it is the new video; so is one that
#                            has ended and whose result nobody has got. Of one that was delivered, a person wants
#                            another. Which of these it is only Luma can tell.
#   callback                 If a job was accepted, its callback tells its id; waiting for that costs nothing.
#   intent, retry            It may be running, and nobody can ask. A second may be one too many: a person must check.
#   intent, clear            A person has checked, if it was ever reported that there is something to check.
TABLE = (
    Row("none", None, None, None, None, Step.SUBMIT, "Nothing was submitted before; this try submits"),
    Row("id", "same", "retry", JobStatus.RUNNING, None, Step.WAIT,
        "This try continues Luma task {id}, submitted by try {number}; nothing new is billed"),
    Row("id", "same", "retry", JobStatus.SUCCEEDED, None, Step.TAKE_RESULT,
        "This try takes the result of Luma task {id}, submitted by try {number}; nothing new is billed"),
    Row("id", "same", "retry", JobStatus.RESULT_MISSING, None, Step.WAIT,
        "Luma task {id}, submitted by try {number}, has succeeded, but Luma lists no video yet; this try waits for it, "
        "and nothing new is billed"),
    Row("id", "same", "retry", JobStatus.FAILED, None, Step.SUBMIT,
        "Luma task {id}, submitted by try {number}, has failed; this try submits a new job"),
    Row("id", "same", None, JobStatus.FORGOTTEN, None, Step.SUBMIT,
        "Luma no longer knows Luma task {id}, submitted by try {number} over two months ago; this try submits a new "
        "job"),
    Row("id", "same", None, JobStatus.NOT_FOUND, None, Step.NOT_FOUND,
        "Luma says that it does not know Luma task {id}, submitted by try {number}, although it keeps records for two "
        "months; nothing is submitted"),
    Row("id", "same", "retry", JobStatus.UNAVAILABLE, None, Step.WAIT,
        "Luma cannot be asked for now; this try continues Luma task {id}, submitted by try {number}"),
    Row("id", "changed", "retry", None, None, Step.SUBMIT,
        "The request has changed since try {number} submitted Luma task {id}; this try submits a new job. A "
        "LumaTaskSensor with that id fetches the earlier one's result"),
    Row("id", "same", "clear", JobStatus.RUNNING, None, Step.WAIT,
        "The task was cleared, but Luma task {id} of try {number} is still running, cannot be cancelled, and is paid "
        "for: this try continues it; nothing new is billed"),
    Row("id", "same", "clear", JobStatus.UNAVAILABLE, None, Step.ASK_LATER,
        "The task was cleared, and Luma cannot be asked what has become of Luma task {id} of try {number}; "
        "nothing is submitted before it answers"),
    Row("id", "same", "clear", JobStatus.SUCCEEDED, False, Step.TAKE_RESULT,
        "The task was cleared, but no record says that Airflow has got the result of Luma task {id} of try {number}, "
        "and it is paid for: this try returns it; nothing new is billed. Clear the task again for a new video"),
    Row("id", "same", "clear", JobStatus.SUCCEEDED, True, Step.SUBMIT,
        "The task was cleared after the result of Luma task {id} of try {number} had been returned; "
        "this try submits a new job"),
    Row("id", "same", "clear", JobStatus.RESULT_MISSING, False, Step.WAIT,
        "The task was cleared; Luma task {id} of try {number} has succeeded and is paid for, but Luma lists no video "
        "yet: this try waits for it; nothing new is billed"),
    Row("id", "same", "clear", JobStatus.RESULT_MISSING, True, Step.SUBMIT,
        "The task was cleared after it was reported that Luma lists no video for Luma task {id} of try {number}; "
        "this try submits a new job"),
    Row("id", "same", "clear", JobStatus.FAILED, None, Step.SUBMIT,
        "The task was cleared after Luma task {id} of try {number} had failed; this try submits a new job"),
    Row("id", "changed", "clear", None, None, Step.SUBMIT,
        "The task was cleared, and its request has changed since try {number} submitted Luma task {id}; "
        "this try submits a new job. A LumaTaskSensor with that id fetches the earlier one's result"),
    Row("callback", "same", "retry", None, None, Step.AWAIT_CALLBACK,
        "Try {number} was about to submit, or had submitted, when it ended; no answer of Luma is recorded. If a job "
        "was accepted, its callback comes when it has ended: this try waits for that; nothing new is billed"),
    Row("callback", "same", "clear", None, False, Step.AWAIT_CALLBACK,
        "The task was cleared while try {number} was about to submit, or had submitted; no answer of Luma is recorded. "
        "If a job was accepted, its callback comes when it has ended: this try waits for that; nothing new is billed"),
    Row("intent", None, "retry", None, None, Step.FAIL,
        "Try {number} was about to submit, or had submitted, when it ended; no answer of Luma is recorded. "
        "A job may have been accepted"),
    Row("intent", None, "clear", None, False, Step.FAIL,
        "The task was cleared while try {number} was about to submit, or had submitted; no answer of Luma is recorded. "
        "A job may have been accepted"),
    Row("intent", None, "clear", None, True, Step.SUBMIT,
        "It is unknown whether try {number} had submitted a job; that was reported, and the task was cleared since: "
        "this try submits"),
)  # fmt: skip


class Decision(NamedTuple):
    """What to do, and the text for the task's log that says why."""

    step: Step
    reason: str


def is_for_replaced(record: SubmissionRecord, fingerprint: str) -> bool:
    """Tell whether a request is that of the job which an intent has replaced, and whose result nobody has got."""
    replaced = record.replaced if record.luma_task_id is None else None
    return (
        replaced is not None
        and replaced.fingerprint == fingerprint != record.fingerprint
        and replaced.delivered is not Outcome.RESULT
    )


def must_ask(record: SubmissionRecord | None, fingerprint: str) -> bool:
    """Tell whether the decision depends on what Luma says of the recorded job."""
    return record is not None and record.luma_task_id is not None and record.fingerprint == fingerprint


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

    :param record: what an earlier try has left, if anything
    :param fingerprint: what this try asks for
    :param max_tries: the task's ``max_tries`` now
    :param clear_number: how often the DAG run was cleared, up to now
    :param status: what Luma says of the recorded job, where :func:`must_ask` is true
    :param can_await_callback: the task can be deferred until a callback comes
    :param resubmit_on_unknown: the user would rather pay twice than have a person check the account
    :param resubmit_on_failure: a job that has failed at Luma is replaced, unless a person has seen the failure anyway
    """
    fails_for_good = not resubmit_on_failure
    is_clear = record is not None and is_cleared(record, max_tries, clear_number, fails_for_good=fails_for_good)
    by = "clear" if is_clear else "retry"
    row = _row(record, fingerprint, by, status, can_await_callback=can_await_callback)
    reason = row.reason.format(id=record.luma_task_id, number=record.try_number) if record is not None else row.reason
    if row.step is Step.FAIL and resubmit_on_unknown:
        return Decision(Step.SUBMIT, f"{reason}. As resubmit_on_unknown is on, this try submits again")
    has_seen_failure = record is not None and record.delivered is not None and by == "clear"
    if status is JobStatus.FAILED and not resubmit_on_failure and not has_seen_failure:
        return Decision(Step.RAISE_FAILURE, f"{reason.partition(';')[0]}; resubmit_on_failure is off")
    return Decision(row.step, reason)


def is_cleared(
    record: SubmissionRecord, max_tries: int, clear_number: int | None, *, fails_for_good: bool = False
) -> bool:
    """
    Tell whether a person has cleared the task since its record was written; otherwise this try is a retry.

    Airflow does not tell. A Clear sets the task's ``max_tries`` to the tries so far plus ``retries``, and a retry
    leaves it unchanged; but a Clear with fewer ``retries`` can arrive at the same number. The DAG run's
    ``clear_number`` shows that case. It also counts Clears of other tasks, so it is used only if the record shows that
    this task had ended for good: with a result, by asking a person, or with a failed job that is not retried.

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


def _row(
    record: SubmissionRecord | None, fingerprint: str, by: str, status: JobStatus | None, *, can_await_callback: bool
) -> Row:
    """Return the first row of the table that fits."""
    kinds = _kinds(record, can_await_callback=can_await_callback)
    request = "same" if record is not None and record.fingerprint == fingerprint else "changed"
    facts = (request, by, status, _is_told(record, status))
    return next(
        row
        for row in TABLE
        if row.record in kinds
        and all(
            column in (None, fact)
            for column, fact in zip((row.request, row.by, row.status, row.told), facts, strict=True)
        )
    )


def _is_told(record: SubmissionRecord | None, status: JobStatus | None) -> bool:
    """
    Tell whether a person can know the outcome.

    Who was told of a missing video, or of a failure that the service has since taken back, has not got the video yet.
    """
    if record is None or record.luma_task_id is None:
        return record is not None and record.reported
    return record.delivered is Outcome.RESULT or (record.reported and status is JobStatus.RESULT_MISSING)


def _kinds(record: SubmissionRecord | None, *, can_await_callback: bool) -> tuple[str, ...]:
    """Return what a record counts as in the table; an intent with a callback to come is an intent, too."""
    if record is None:
        return ("none",)
    if record.luma_task_id is not None:
        return ("id",)
    return ("callback", "intent") if record.expects_callback and can_await_callback else ("intent",)

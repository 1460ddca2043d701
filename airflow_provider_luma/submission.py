# SPDX-License-Identifier: Apache-2.0
"""
Submit once: what is remembered of a submission, and what the next try makes of it. No I/O.

A job costs money, cannot be cancelled, and the service offers no way to ask whether it has accepted one. So a
task writes down what it is about to do *before* the request leaves (an intent: a :class:`Record` without an
id), and completes that *after* the answer. The record lives in Airflow's task state store (Airflow 3.3 and
newer), which outlives retries, crashes and deferrals. Whatever happens between any two lines, the next try finds
one of three things: no record (nothing was sent), an intent (something may have been sent), or an id.

What to do then is a table, :data:`TABLE`, and :func:`decide` reads it. Two things decide beside the record:

* whether the request is still the same one, by its fingerprint;
* whether this try is a retry by Airflow or was cleared by a person. A retry wants what the last try wanted;
  whoever clears a task that has ended wants a new video. Airflow does not say which it is, but Clear sets the
  task's ``max_tries`` anew (to the tries so far and ``retries`` more), and a retry leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

#: Where the record is kept in the task state store.
STORE_KEY = "luma_submission"

#: Where the receiver of callbacks writes, for an intent whose answer was lost, which job it has become.
CALLBACK_KEY = "luma_callback"


@dataclass(frozen=True)
class Record:
    """
    What is remembered of a submission. It holds nothing secret: Airflow's UI shows it.

    :param reference: a name of our own for this one submission
    :param fingerprint: what was asked for, see :func:`fingerprint`
    :param luma_task_id: the job's id, or None as long as Luma has not given it
    :param max_tries: the task's ``max_tries`` when it was written
    :param try_number: the try that submitted
    :param calls_back: whether Luma was given an address of ours to call when the job has ended
    """

    reference: str
    fingerprint: str
    luma_task_id: str | None
    max_tries: int
    try_number: int
    calls_back: bool = False

    @classmethod
    def intent(cls, reference: str, fingerprint: str, *, max_tries: int, try_number: int, calls_back: bool) -> Record:
        """Return the record of a submission that is about to be sent."""
        return cls(reference, fingerprint, None, max_tries, try_number, calls_back)

    @classmethod
    def load(cls, stored: Any) -> Record | None:
        """Read what :meth:`as_dict` wrote; None if there is nothing."""
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored}) if stored else None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)


def new_reference() -> str:
    """Return a name for a submission that nobody else has, and nobody can guess."""
    return uuid.uuid4().hex


def fingerprint(*, prompt: str, video_url: str, watermark: str | None, luma_conn_id: str) -> str:
    """Return a hash of what makes one job differ from another."""
    request = json.dumps([prompt, video_url, watermark or None, luma_conn_id])
    return hashlib.sha256(request.encode()).hexdigest()


class LumaSays(Enum):
    """What the service says of a recorded job."""

    RUNNING = "running"
    SUCCEEDED = "has succeeded"
    FAILED = "has failed"
    UNKNOWN = "is no longer known"
    NOTHING = "cannot be asked"


class Step(Enum):
    """What to do."""

    SUBMIT = "submit"
    WAIT = "wait for the recorded job"
    TAKE = "take the recorded job's result"
    AWAIT_CALLBACK = "wait for the callback that tells the job's id"
    FAIL = "fail, and let a person look"
    ASK_LATER = "fail, and ask again at the next try"


class Row(NamedTuple):
    """
    One row of the table; None in a column stands for anything.

    :param record: ``none``, ``id``, ``intent``, or ``called``: an intent whose job Luma calls back about
    :param request: ``same`` or ``changed``
    :param by: ``retry``, or ``clear`` by a person
    :param says: what Luma says of the recorded job
    :param step: what to do
    :param why: the line for the task's log
    """

    record: str
    request: str | None
    by: str | None
    says: LumaSays | None
    step: Step
    why: str


# Why each row is as it is:
#   none                     Nothing was ever sent, or what was sent was surely refused.
#   id, same, retry          A failed try is no reason to pay again: the job goes on whether somebody waits or not.
#                            Only a job that brought nothing (failed, or forgotten by Luma) is replaced.
#                            Where Luma cannot be asked, waiting is what costs nothing.
#   id, changed              The recorded job makes another video than the one that is wanted now.
#   id, same, clear          A running job cannot be cancelled and is paid for, so it is the new video; of one that
#                            has ended the person has seen the outcome, and wants another. Which of the two it is
#                            only Luma can tell.
#   called, retry            If a job was accepted, its callback tells its id; waiting for that costs nothing.
#   intent, retry            It may be running, and nobody can ask. A second may be one too many: a person must look.
#   intent, clear            A person has looked.
TABLE = (
    Row("none", None, None, None, Step.SUBMIT, "Nothing was submitted before; this try submits"),
    Row(
        "id", "same", "retry", LumaSays.RUNNING, Step.WAIT,
        "This try continues Luma task {id}, submitted by try {number}; nothing new is billed",
    ),
    Row(
        "id", "same", "retry", LumaSays.SUCCEEDED, Step.TAKE,
        "This try takes the result of Luma task {id}, submitted by try {number}; nothing new is billed",
    ),
    Row(
        "id", "same", "retry", LumaSays.FAILED, Step.SUBMIT,
        "Luma task {id}, submitted by try {number}, has failed; this try submits a new job",
    ),
    Row(
        "id", "same", "retry", LumaSays.UNKNOWN, Step.SUBMIT,
        "Luma no longer knows Luma task {id}, submitted by try {number}; this try submits a new job",
    ),
    Row(
        "id", "same", "retry", LumaSays.NOTHING, Step.WAIT,
        "Luma cannot be asked for now; this try continues Luma task {id}, submitted by try {number}",
    ),
    Row(
        "id", "changed", "retry", None, Step.SUBMIT,
        "The request has changed since try {number} submitted Luma task {id}; this try submits a new job",
    ),
    Row(
        "id", "same", "clear", LumaSays.RUNNING, Step.WAIT,
        "The task was cleared, but Luma task {id} of try {number} is still running, cannot be cancelled, and is paid "
        "for: this try continues it; nothing new is billed",
    ),
    Row(
        "id", "same", "clear", LumaSays.NOTHING, Step.ASK_LATER,
        "The task was cleared, and Luma cannot be asked whether Luma task {id} of try {number} is still running; "
        "nothing is submitted before it answers",
    ),
    Row(
        "id", "same", "clear", None, Step.SUBMIT,
        "The task was cleared after Luma task {id} of try {number} had ended; this try submits a new job",
    ),
    Row(
        "id", "changed", "clear", None, Step.SUBMIT,
        "The task was cleared, and its request has changed since try {number} submitted Luma task {id}; "
        "this try submits a new job",
    ),
    Row(
        "called", "same", "retry", None, Step.AWAIT_CALLBACK,
        "Try {number} was about to submit, or had submitted, when it ended; no answer of Luma is recorded. If a job "
        "was accepted, Luma calls back when it has ended: this try waits for that; nothing new is billed",
    ),
    Row(
        "intent", None, "retry", None, Step.FAIL,
        "Try {number} was about to submit, or had submitted, when it ended; no answer of Luma is recorded. "
        "A job may have been accepted",
    ),
    Row(
        "intent", None, "clear", None, Step.SUBMIT,
        "It is unknown whether try {number} had submitted a job, but the task was cleared since; this try submits",
    ),
)  # fmt: skip


class Decision(NamedTuple):
    """What to do, and the line for the task's log that says why."""

    step: Step
    why: str


def must_ask(record: Record | None, fingerprint: str) -> bool:
    """Tell whether the decision depends on what Luma says of the recorded job."""
    return record is not None and record.luma_task_id is not None and record.fingerprint == fingerprint


def decide(
    record: Record | None,
    *,
    fingerprint: str,
    max_tries: int,
    says: LumaSays | None = None,
    can_await_callback: bool = False,
    resubmit_on_unknown: bool = False,
) -> Decision:
    """
    Decide what a try does.

    :param record: what an earlier try has left, if anything
    :param fingerprint: what this try asks for
    :param max_tries: the task's ``max_tries`` now
    :param says: what Luma says of the recorded job, where :func:`must_ask` is true
    :param can_await_callback: the task can be deferred until a callback comes
    :param resubmit_on_unknown: the user would rather pay twice than look
    """
    kinds = _kinds(record, can_await_callback=can_await_callback)
    request = "same" if record is not None and record.fingerprint == fingerprint else "changed"
    by = "clear" if record is not None and max_tries != record.max_tries else "retry"
    row = next(
        row
        for row in TABLE
        if row.record in kinds and row.request in (None, request) and row.by in (None, by) and row.says in (None, says)
    )
    why = row.why.format(id=record.luma_task_id, number=record.try_number) if record is not None else row.why
    if row.step is Step.FAIL and resubmit_on_unknown:
        return Decision(Step.SUBMIT, f"{why}. As resubmit_on_unknown is on, this try submits again")
    return Decision(row.step, why)


def _kinds(record: Record | None, *, can_await_callback: bool) -> tuple[str, ...]:
    """Return what a record counts as in the table; an intent that Luma calls back about is an intent all the same."""
    if record is None:
        return ("none",)
    if record.luma_task_id is not None:
        return ("id",)
    return ("called", "intent") if record.calls_back and can_await_callback else ("intent",)

# SPDX-License-Identifier: Apache-2.0
"""
What is rehearsed, as one table: what Luma does, how the operator is set, and what a user must then see.

``accepted`` is the number of jobs that Luma accepted (and billed), ``calls`` the number of submissions it saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from airflow_provider_luma.simulator import Fault


@dataclass(frozen=True)
class Rehearsal:
    luma: dict[str, Any] = field(default_factory=dict)
    operator: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    says: tuple[str, ...] = ()
    accepted: int = 1
    calls: int = 1


def status(kind: str, **options: Any) -> dict[str, Any]:
    return {"faults": [Fault(on="status", kind=kind, **options)]}


def submit(kind: str, **options: Any) -> dict[str, Any]:
    return {"faults": [Fault(on="submit", kind=kind, **options)]}


SUCCESSES = {
    "status_html_500": Rehearsal({**status("html", every=5), "processing_seconds": 8}),
    "status_429_retry_after": Rehearsal(status("refuse", code=429, style="status", retry_after=2, every=2)),
    "status_429_in_body": Rehearsal(status("refuse", code=429, style="body", every=2)),
    "status_cut": Rehearsal(status("cut", every=2)),
    "status_null_data": Rehearsal(status("null_data", every=2)),
    "unknown_flags": Rehearsal(status("unknown_flag", every=2)),
    "response_string": Rehearsal(status("response_string")),
    "hostile_prompt": Rehearsal(status("hostile_text")),
    "callback_failed": Rehearsal({"outcome": "callback_failed"}),
    "submit_429_twice": Rehearsal(submit("refuse", code=429, times=2), calls=3),
    "synchronous": Rehearsal(operator={"deferrable": False}),
}

FAILURES = {
    "refused_401": Rehearsal(submit("refuse", code=401), retries=2, accepted=0, says=("code 401", "API key")),
    "refused_402": Rehearsal({"credits": 0}, retries=1, accepted=0, calls=2, says=("code 402", "Top up")),
    "refused_404": Rehearsal(submit("refuse", code=404), retries=2, accepted=0, says=("code 404",)),
    "refused_422": Rehearsal(submit("refuse", code=422), retries=2, accepted=0, says=("code 422",)),
    "refused_505": Rehearsal(submit("refuse", code=505), retries=2, accepted=0, says=("code 505",)),
    "create_failed": Rehearsal(
        {"outcome": "create_failed", "error_message": "Too dark to see."},
        says=("CREATE_TASK_FAILED: Too dark to see.",),
    ),
    "generate_failed": Rehearsal(
        {"outcome": "generate_failed", "error_message": "The model gave up."},
        says=("GENERATE_FAILED: The model gave up.", "code 501"),
    ),
    "hostile_text": Rehearsal(
        {"outcome": "generate_failed", **status("hostile_text")},
        says=("GENERATE_FAILED: The model \ufffd said \ufffd no",),
    ),
    "no_urls": Rehearsal({"outcome": "no_urls"}, says=("no video is listed",)),
    "timed_out": Rehearsal({"processing_seconds": 300}, {"timeout": 4}, says=("still running there under this id",)),
    "out_of_execution_time": Rehearsal(
        {"processing_seconds": 300},
        {"execution_timeout": 20},
        says=("not finished within execution_timeout", "still running there under this id"),
    ),
    "accepted_with_a_500": Rehearsal(
        submit("refuse", code=500, after_accept=True),
        retries=2,
        says=("It may have been accepted", "log page of the Luma account", "Clearing this task submits another"),
    ),
    "accepted_with_a_redirect": Rehearsal(
        submit("redirect", code=307, after_accept=True),
        retries=2,
        says=("It may have been accepted", "log page of the Luma account", "Clearing this task submits another"),
    ),
    "lost_answer": Rehearsal(
        submit("cut", after_accept=True), retries=2, says=("It may have been accepted", "log page of the Luma account")
    ),
}

#: Ended by a person while it holds a worker.
KILLED = {"killed": Rehearsal({"processing_seconds": 300}, {"deferrable": False}, says=("Luma cannot cancel a job",))}

REHEARSALS = {**SUCCESSES, **FAILURES, **KILLED}

#: Those in which another Airflow, serialiser or scheduler could make a difference. The others differ from them in what
#: Luma answers, which the unit tests cover as well.
DAILY = {
    "status_429_in_body",
    "hostile_prompt",
    "callback_failed",
    "submit_429_twice",
    "synchronous",
    "refused_401",
    "refused_402",
    "generate_failed",
    "hostile_text",
    "timed_out",
    "out_of_execution_time",
    "accepted_with_a_500",
    "lost_answer",
    *KILLED,
}

#: Runs in which something is killed or cleared; each has a Luma that is set up when it is run.
CRASHES = {
    f"crash_{name}": Rehearsal()
    for name in (
        "answer_lost",
        "answer_lost_resubmit",
        "before_deferral",
        "execute_complete",
        "triggerer",
        "api_server",
        "scheduler",
        "synchronous",
        "timed_out",
        "at_random",
        "cleared",
        "cleared_with_store",
        "never_delivered",
        "in_queue",
        "uploading",
        "not_stored",
        "refused_key",
        "changed_request",
        "frozen",
        "wrong_failure",
        "intent_lost",
        "fewer_retries",
        "key_limit",
        "echo",
    )
}

#: Runs whose clips have no public address.
INPUTS = {f"input_{name}": Rehearsal() for name in ("uploaded", "signed", "film")}

#: Runs in which Luma calls Airflow back, or ought to.
CALLBACKS = {
    f"callback_{name}": Rehearsal()
    for name in (
        "once",
        "never",
        "five_times",
        "early",
        "by_others",
        "after_a_lost_answer",
        "before_the_retry",
        "after_the_retry",
        "by_a_sensor",
        "by_an_old_token",
    )
}

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
    service: str = "kie"


def status(kind: str, **options: Any) -> dict[str, Any]:
    return {"faults": [Fault(on="status", kind=kind, **options)]}


def submit(kind: str, **options: Any) -> dict[str, Any]:
    return {"faults": [Fault(on="submit", kind=kind, **options)]}


def luma(settings: dict[str, Any] | None = None, /, **options: Any) -> Rehearsal:
    """Return a rehearsal with Luma's own API."""
    return Rehearsal(settings or {}, service="luma", **options)


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
    "luma_status_html_500": luma({**status("html", every=5), "processing_seconds": 8}),
    "luma_status_500": luma(status("refuse", code=500, every=2)),
    "luma_status_429": luma(status("refuse", code=429, retry_after=2, every=2)),
    "luma_status_cut": luma(status("cut", every=2)),
    "luma_status_null": luma(status("null_data", every=2)),
    "luma_unknown_state": luma(status("unknown_flag", every=2)),
    "luma_hostile_text": luma(status("hostile_text")),
    "luma_synchronous": luma(operator={"deferrable": False}),
    "luma_too_many_jobs": luma(submit("refuse", code=429, retry_after=1, times=2), calls=3),
    "luma_too_many_requests": luma(submit("refuse", code=429, limit="requests", retry_after=1, times=2), calls=3),
    "luma_clip_not_fetched": luma(
        submit("refuse", code=503, message="Failed to fetch the source: timeout.", times=1), calls=2
    ),
    "luma_options": luma(operator={"options": {"video": {"resolution": "1080p", "edit": {"strength": "flex_2"}}}}),
}

#: Responses of Luma's own API that leave open whether it has accepted a submission.
UNKNOWN_OUTCOMES = {
    f"luma_{name}": luma(
        submit(kind, after_accept=True, **options),
        retries=2,
        says=("It may have been accepted", "Ask Luma's support", "Clearing this task submits another"),
    )
    for name, kind, options in (
        ("accepted_with_a_500", "refuse", {"code": 500}),
        ("accepted_with_a_503", "refuse", {"code": 503, "message": "Try again later."}),
        ("accepted_with_a_409", "refuse", {"code": 409}),
        ("accepted_with_a_redirect", "redirect", {"code": 307}),
        ("accepted_with_half_an_answer", "truncated", {}),
        ("lost_answer", "cut", {}),
    )
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
    **{
        f"luma_refused_{code}": luma(submit("refuse", code=code), retries=2, accepted=0, says=(f"code {code}",))
        for code in (400, 401, 403, 404, 413, 422)
    },
    "luma_refused_402": luma({"credits": 0}, retries=1, accepted=0, calls=2, says=("code 402",)),
    "luma_content_moderated": luma(
        {"outcome": "generate_failed", "failure_code": "content_moderated", "error_message": "Not this."},
        retries=2,
        says=("GENERATE_FAILED: Not this. (content_moderated: Luma's moderation refused",),
    ),
    "luma_generation_failed": luma(
        {"outcome": "generate_failed", "error_message": "The model gave up."},
        retries=1,
        accepted=2,
        calls=2,
        says=("GENERATE_FAILED: The model gave up. (generation_failed: refunded",),
    ),
    "luma_no_urls": luma({"outcome": "no_urls"}, says=("no video is listed",)),
    "luma_timed_out": luma(
        {"processing_seconds": 300}, operator={"timeout": 4}, says=("still running there under this id",)
    ),
    **{
        f"luma_with_{parameter}": luma(
            operator={parameter: value},
            retries=2,
            accepted=0,
            calls=0,
            says=(f"{parameter} is set, but Luma's own API does not support it",),
        )
        for parameter, value in {"watermark": "ours", "callback_url": "https://example.com/called"}.items()
    },
    **UNKNOWN_OUTCOMES,
}

#: Ended by a person while it holds a worker.
KILLED = {"killed": Rehearsal({"processing_seconds": 300}, {"deferrable": False}, says=("Luma cannot cancel a job",))}

REHEARSALS = {**SUCCESSES, **FAILURES, **KILLED}

#: Those in which another Airflow, serialiser or scheduler could make a difference. The others differ from them in what
#: Luma answers, which the unit tests cover as well.
DAILY = {
    "hostile_prompt",
    "submit_429_twice",
    "synchronous",
    "refused_401",
    "generate_failed",
    "hostile_text",
    "timed_out",
    "out_of_execution_time",
    "lost_answer",
    "luma_too_many_jobs",
    "luma_lost_answer",
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
        "switched",
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

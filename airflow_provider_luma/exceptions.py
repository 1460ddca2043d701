# SPDX-License-Identifier: Apache-2.0
"""
The exceptions that this package raises about Luma.

Every error has a ``code`` and a message (``msg``), so that a task's log shows what the service said. The codes are
kie.ai's (https://docs.kie.ai/common-api/quickstart) or the HTTP statuses of Luma's own API. An error that did not come
from a service has no code.

Errors travel from the triggerer to the worker as plain dicts: see :meth:`LumaError.as_dict`.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_luma.core.redaction import without_credentials
from airflow_provider_luma.core.wire import plain_text, read_integer

#: Maximum characters of a message: it goes into logs, events, XComs and pages.
MAX_MSG_LENGTH = 2000

#: What a person can do, without paying for another job, if a task has failed while its job is running.
CLEAR_HINT = "Clear this task to wait for it again: nothing new is billed"

#: The same where a Clear discards the record by default.
KEEP_STATE_HINT = (
    "Clear this task with 'Keep task state and resume' ticked to wait for it again: nothing new is billed. "
    "Otherwise, the Clear discards the job's record, and another job is billed"
)

#: The same where nothing keeps the record.
NO_RECORD_HINT = (
    "A LumaTaskSensor with this luma_task_id fetches its result. A retry or a Clear of this task submits another, "
    "separately billed, job, because Airflow before 3.3 keeps no task state: to avoid that, set submission_store "
    "in the connection"
)

#: The same where a claim beside the video keeps the task from submitting another job.
CLAIMED_HINTS = {
    KEEP_STATE_HINT: (
        "Clear this task with 'Keep task state and resume' ticked to wait for it again: nothing new is billed. "
        "Otherwise, the Clear discards the job's record, and the task can no longer fetch its video"
    ),
    NO_RECORD_HINT: (
        "A LumaTaskSensor with this luma_task_id fetches its result. This task cannot, because Airflow before 3.3 "
        "keeps no task state: to avoid that, set submission_store in the connection"
    ),
}

#: Only these texts are shown as advice if they come from a claim in storage.
RECOVERY_HINTS = frozenset({CLEAR_HINT, KEEP_STATE_HINT, NO_RECORD_HINT, *CLAIMED_HINTS.values()})


class LumaError(Exception):
    """
    The base class of everything this package raises about Luma.

    Messages may quote a service or a library, and may be shown anywhere. So they become plain text, are cut off after
    2,000 characters, and lose secrets in addresses: user and password, a signed address's query, a callback's token.

    :param code: Luma's code for the error, or the HTTP status if there was no code; None if there was neither
    :param msg: what happened, in Luma's words or ours
    :param luma_task_id: the Luma task it is about, if any
    :param retry_after: seconds that the service asked to wait before the next call, if any
    """

    #: What the reader of a task's log can do about it.
    remedy: str = ""

    def __init__(
        self,
        code: int | None,
        msg: str,
        *,
        luma_task_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code = read_integer(code)
        self.msg = _plain_msg(msg)
        super().__init__(self.code, self.msg)
        self.luma_task_id = None if luma_task_id is None else plain_text(luma_task_id)
        self.retry_after = retry_after

    def __str__(self) -> str:
        about = f"Luma task {self.luma_task_id}: " if self.luma_task_id else ""
        said = f"{self.msg} (code {self.code})" if self.code is not None else self.msg
        return f"{about}{said}{'. ' + self.remedy if self.remedy else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Return the error as JSON values, for a trigger's event."""
        return {"type": type(self).__name__, "code": self.code, "msg": self.msg, "luma_task_id": self.luma_task_id}

    @staticmethod
    def from_dict(error: dict[str, Any]) -> LumaError:
        """Return the error that :meth:`as_dict` described; an unknown type becomes a LumaError."""
        known = {kind.__name__: kind for kind in _subclasses(LumaError)}
        kind = known.get(error["type"], LumaError)
        return kind(error["code"], error["msg"], luma_task_id=error["luma_task_id"])


class LumaAuthError(LumaError):
    """401: the API key is missing or wrong. A retry cannot help."""

    remedy = "Set a valid API key in the connection that luma_conn_id names"


class LumaInsufficientCreditsError(LumaError):
    """402, or fewer credits than ``min_credits``. Nothing was started; a retry works once the account is topped up."""

    remedy = "Top up the Luma account, then let the task retry, or clear it"


class LumaKeyLimitError(LumaInsufficientCreditsError):
    """433: the account's limit for this API key is reached. Nothing was started; a later retry works."""

    remedy = "Raise the limit of this API key in the Luma account, or retry the task once the limit resets"


class LumaJobLimitError(LumaError):
    """The DAG run has submitted ``max_jobs_per_run`` jobs. Nothing was submitted. A retry cannot help."""

    remedy = (
        "To submit more jobs in this run, raise max_jobs_per_run and clear this task. To free the slot of a job that "
        "was not accepted, see 'Limit what a run may cost' in the documentation"
    )


class LumaNotFoundError(LumaError):
    """404: there is no such job, file or endpoint. A retry cannot help."""


class LumaValidationError(LumaError, ValueError):
    """
    422, at Luma's own API also 400 and 413: the request was refused because of its content. A retry cannot help.

    Our own checks also raise it, before anything is sent; then there is no code.
    """


class LumaRateLimitError(LumaError):
    """429: too many calls. The refused call was not queued; repeat it after ``retry_after``."""

    #: Whether too many jobs are running: the next submission is accepted once one of them has ended.
    has_too_many_jobs = False

    #: How many requests a minute the service allows, if it stated the limit.
    requests_per_minute: int | None = None


class LumaUnavailableError(LumaError):
    """455, 5xx, an unreadable response or a broken network: the service is unavailable for now."""


class LumaFeatureDisabledError(LumaError):
    """505, at Luma's own API 403: the service or the account lacks this feature. A retry cannot help."""


class LumaGenerationError(LumaError):
    """501, or a job that ended as CREATE_TASK_FAILED or GENERATE_FAILED: Luma could not make this video."""

    remedy = "Change the prompt or the clip, then clear the task: that submits a new, separately billed job"


class LumaRequestFailedError(LumaGenerationError):
    """A job failed because of its prompt or clip. The same request would fail again, so a retry cannot help."""


class LumaResultMissingError(LumaError):
    """The job has succeeded, but Luma lists no video. It is paid for; a later status check may find the video."""

    remedy = "Ask the service's support for the video, and give them the task id"


class LumaTimeoutError(LumaError):
    """The job did not end within ``timeout``. It was not cancelled, because Luma cannot cancel jobs."""


class LumaSubmissionUnknownError(LumaError):
    """
    A submission was sent but its response was lost: the job may or may not have been accepted, and billed.

    It is not sent again, unless ``resubmit_on_unknown`` is on. No API call shows what happened: with kie.ai, the log
    page of the account does; with Luma's own API, its support can find out.
    """

    remedy = (
        "Check the log page of the Luma account for a job with this prompt. If there is one, use a LumaTaskSensor with "
        "its id to wait for it. Clearing this task submits another, separately billed, job"
    )


#: Errors that may pass: a later call may succeed.
TRANSIENT = (LumaRateLimitError, LumaUnavailableError)

#: Errors that the same submission would always raise again.
PERMANENT = (LumaAuthError, LumaNotFoundError, LumaValidationError, LumaFeatureDisabledError)


def _plain_msg(msg: str) -> str:
    msg = without_credentials(plain_text(msg))
    return msg if len(msg) <= MAX_MSG_LENGTH else f"{msg[: MAX_MSG_LENGTH - 1]}…"


def _subclasses(kind: type[LumaError]) -> list[type[LumaError]]:
    direct = kind.__subclasses__()
    return direct + [below for child in direct for below in _subclasses(child)]

# SPDX-License-Identifier: Apache-2.0
"""
What can go wrong with Luma, as one small tree of exceptions.

Every error carries Luma's own ``code`` and words (``msg``), so that a task's log says what the service
said. The codes are those of https://docs.kie.ai/common-api/quickstart; an error that never came from the
service has no code.

Errors travel from the triggerer to the worker as plain dicts: see :meth:`LumaError.as_dict`.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_luma.core.redaction import without_credentials
from airflow_provider_luma.core.wire import plain_text, read_integer

#: Characters of a message that are kept: it goes into logs, events, XComs and pages.
MAX_MSG_LENGTH = 2000


class LumaError(Exception):
    """
    The root of everything this package raises about Luma.

    Its texts may come from anywhere, and go everywhere: they become plain, are cut off after 2,000 characters, and
    lose what is secret in an address: user and password, the query of a signed one, and the token of a callback's.

    :param code: Luma's code for the error, or the HTTP status where that is all there was; None if neither came
    :param msg: what happened, in Luma's words or ours
    :param luma_task_id: the Luma task it is about, if there is one
    :param retry_after: seconds the service asked to wait before the next call, if it did
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
        """Return the error that :meth:`as_dict` described; a type that is not known becomes a LumaError."""
        known = {kind.__name__: kind for kind in _subclasses(LumaError)}
        kind = known.get(error["type"], LumaError)
        return kind(error["code"], error["msg"], luma_task_id=error["luma_task_id"])


class LumaAuthError(LumaError):
    """401: the API key is missing or wrong. A retry cannot help."""

    remedy = "Put a valid API key into the connection that luma_conn_id names"


class LumaInsufficientCreditsError(LumaError):
    """402: insufficient credits. Nothing was started; a later retry works once the account is topped up."""

    remedy = "Top up the Luma account, then let the task retry or clear it"


class LumaKeyLimitError(LumaInsufficientCreditsError):
    """433: a limit that the account sets for this API key is reached. Nothing was started; a later retry works."""

    remedy = "Raise the limit of this API key in the Luma account, or let the task retry once it has passed"


class LumaNotFoundError(LumaError):
    """404: no such task, file or endpoint. A retry cannot help."""


class LumaValidationError(LumaError, ValueError):
    """
    422: the request was refused for what is in it. A retry cannot help.

    Also raised by our own checks before anything is sent; then there is no code.
    """


class LumaRateLimitError(LumaError):
    """429: too many calls. The refused call was not queued; repeat it after ``retry_after``."""


class LumaUnavailableError(LumaError):
    """455, 5xx, an unreadable answer or a broken network: for now, the service cannot be asked."""


class LumaFeatureDisabledError(LumaError):
    """505: the service has switched this feature off. A retry cannot help."""


class LumaGenerationError(LumaError):
    """501, or a job that ended as CREATE_TASK_FAILED or GENERATE_FAILED: Luma could not make this video."""

    remedy = "Change the prompt or the clip, then clear the task: that submits a new, separately billed job"


class LumaResultMissingError(LumaError):
    """The job has ended well, but Luma lists no video. It is paid for; a later status check may find the video."""

    remedy = "Ask the support of the service for the video, naming the task id"


class LumaTimeoutError(LumaError):
    """The job did not end within ``timeout``. It was not cancelled, since Luma cannot cancel."""


class LumaSubmissionUnknownError(LumaError):
    """
    A submission was sent and its answer never came: it may have been accepted, and billed, or not.

    Never sent again silently. The service offers no way to ask; its web log tells.
    """

    remedy = (
        "Look at the log page of the Luma account for a job with this prompt. If there is one, a LumaTaskSensor with "
        "its id waits for it. Clearing this task submits another, separately billed, job"
    )


#: Errors that a later call may not meet again.
TRANSIENT = (LumaRateLimitError, LumaUnavailableError)

#: Errors of a submission that the same submission will always meet again.
PERMANENT = (LumaAuthError, LumaNotFoundError, LumaValidationError, LumaFeatureDisabledError)


def _plain_msg(msg: str) -> str:
    msg = without_credentials(plain_text(msg))
    return msg if len(msg) <= MAX_MSG_LENGTH else f"{msg[: MAX_MSG_LENGTH - 1]}…"


def _subclasses(kind: type[LumaError]) -> list[type[LumaError]]:
    direct = kind.__subclasses__()
    return direct + [below for child in direct for below in _subclasses(child)]

# SPDX-License-Identifier: Apache-2.0
"""
The Luma Modify API, without any I/O.

Everything this package knows about the service is in this module: how a call is written (a :class:`Request`), and how
an answer (a :class:`Response`) becomes a value or a typed error. The hooks send them and know nothing else. Facts about
the service come from https://docs.kie.ai/luma-api/quickstart and the pages beside it.

An answer is an *envelope*, JSON ``{"code": int, "msg": str, "data": ...}``. A refusal comes as an HTTP status or as
HTTP 200 with the code inside, and an edge in front of the service may answer with HTML, with nothing, or with half a
document. A submission is read more carefully than the rest (:func:`read_submission`): what matters there is whether the
service may have accepted, and billed, the job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaKeyLimitError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.untrusted import (
    read_integer,
    read_json,
    read_object,
    read_retry_after,
    read_strings,
    read_text,
    read_time,
    without_signatures,
)
from airflow_provider_luma.validation import check_callback_url, check_prompt, check_video_address, check_watermark

DEFAULT_HOST = "https://api.kie.ai"

#: Containers the service reads (https://docs.kie.ai/luma-api/generate-luma-modify-video).
VIDEO_EXTENSIONS = ("mp4", "mov", "avi")


# -- values ---------------------------------------------------------------------------------------------------


class LumaTaskStatus(IntEnum):
    """
    A job's ``successFlag``, under the service's own names (https://docs.kie.ai/luma-api/get-luma-modify-details).

    A flag that the pages do not list becomes a member named ``UNDOCUMENTED_n`` and counts as running: a new
    flag must not end a job that is paid for.
    """

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3
    CALLBACK_FAILED = 4

    @classmethod
    def _missing_(cls, value: object) -> LumaTaskStatus | None:
        if not isinstance(value, int):
            return None
        undocumented = int.__new__(cls, value)
        undocumented._name_ = f"UNDOCUMENTED_{value}"
        undocumented._value_ = value
        return undocumented

    @property
    def is_documented(self) -> bool:
        """Whether the service's pages list this flag."""
        return self.name in type(self).__members__


@dataclass(frozen=True)
class LumaTask:
    """
    A job, as one status check has seen it.

    :param luma_task_id: the job's id at Luma
    :param status: where it stands
    :param result_urls: the modified videos, once there are any; kept by the service for 14 days
    :param origin_urls: the videos as they came out of the model, if the service gives them
    :param created_at: when Luma accepted the job (UTC)
    :param completed_at: when it ended (UTC), or None while it runs
    :param error_code: Luma's code for a failed job
    :param error_message: Luma's words for a failed job
    :param prompt: what was asked for, as the service has recorded it
    :param video_url: the input, as the service has recorded it
    :param callback_url: the address it calls when the job ends
    """

    luma_task_id: str
    status: LumaTaskStatus
    result_urls: tuple[str, ...] = ()
    origin_urls: tuple[str, ...] = ()
    created_at: datetime | None = None
    completed_at: datetime | None = None
    error_code: int | None = None
    error_message: str | None = None
    prompt: str | None = None
    video_url: str | None = None
    callback_url: str | None = field(default=None, repr=False)  # it may hold a token

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended, well or badly."""
        return self.status.is_documented and self.status is not LumaTaskStatus.GENERATING

    @property
    def is_successful(self) -> bool:
        """Whether there is a video: CALLBACK_FAILED means that only the callback could not be delivered."""
        return self.status in (LumaTaskStatus.SUCCESS, LumaTaskStatus.CALLBACK_FAILED)

    def as_dict(self) -> dict[str, Any]:
        """
        Return what operators and sensors hand to the tasks after them: JSON values, times in ISO 8601 UTC.

        The status of every job with a video reads SUCCESS, so that a pipeline needs one comparison.
        """
        status = LumaTaskStatus.SUCCESS if self.is_successful else self.status
        return {
            "luma_task_id": self.luma_task_id,
            "status": status.name,
            "result_urls": list(self.result_urls),
            "origin_urls": [without_signatures(url) if self._is_input(url) else url for url in self.origin_urls],
            "created_at": self.created_at and self.created_at.isoformat(),
            "completed_at": self.completed_at and self.completed_at.isoformat(),
        }

    def _is_input(self, url: str) -> bool:
        """Tell whether an address is that of the input, which may be a signed one."""
        return self.video_url is not None and url.partition("?")[0] == self.video_url.partition("?")[0]

    def request(self) -> dict[str, str | None]:
        """Return what was asked for, as the service has recorded it, for whoever shows it; without signatures."""
        return {"prompt": self.prompt, "video_url": self.video_url and without_signatures(self.video_url)}

    def failure(self) -> LumaGenerationError:
        """Return the error that a failed job stands for, with Luma's code and words."""
        words = self.error_message or "the service gave no reason"
        return LumaGenerationError(self.error_code, f"{self.status.name}: {words}", luma_task_id=self.luma_task_id)


# -- requests and responses -------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A call to make: path below the service's address, query, and JSON body."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    json: Mapping[str, str] | None = None


class Response(NamedTuple):
    """An answer as it came over the wire."""

    http_status: int
    body: bytes
    retry_after: str | None = None
    location: str | None = None


@dataclass(frozen=True)
class ModifyRequest:
    """
    One job to submit. It is checked once, by :meth:`check`, before anything is recorded or sent.

    :param prompt: how to change the video, in English
    :param video_url: address of an MP4, MOV or AVI of at most 10 seconds and 500 MB: a public one, or a file in a
        storage, which is given a public address before the submission
    :param watermark: text to put into the video, if any
    :param callback_url: public address that the service calls when the job ends, if any
    """

    prompt: str
    video_url: str
    watermark: str | None = None
    callback_url: str | None = field(default=None, repr=False)  # it may hold a token

    def check(self, *, service_is_public: bool) -> None:
        """
        Refuse what the service is sure to refuse.

        :param service_is_public: the service is on the Internet, and so cannot reach private addresses
        :raises LumaValidationError: names the parameter and the remedy
        """
        check_prompt(self.prompt)
        check_video_address(self.video_url, service_is_public=service_is_public)
        check_watermark(self.watermark)
        if self.callback_url:
            check_callback_url(self.callback_url, service_is_public=service_is_public)

    def fingerprint(self, luma_conn_id: str) -> str:
        """Return a hash of what distinguishes one job from another: everything but the callback address."""
        identity = json.dumps([self.prompt, self.video_url, self.watermark or None, luma_conn_id])
        return hashlib.sha256(identity.encode()).hexdigest()

    def encode(self) -> Request:
        """Write the submission. Optional keys are left out when unset: the service refuses null."""
        optional = {"callBackUrl": self.callback_url, "watermark": self.watermark}
        body = {"prompt": self.prompt, "videoUrl": self.video_url}
        return Request("POST", "/api/v1/modify/generate", json=body | {k: v for k, v in optional.items() if v})


def task_request(luma_task_id: str) -> Request:
    """Write a status check."""
    return Request("GET", "/api/v1/modify/record-info", query={"taskId": luma_task_id})


def endpoint_request() -> Request:
    """Write the question whether the Luma endpoint is there: a status check of a job that cannot exist."""
    return task_request("0" * 32)


def credits_request() -> Request:
    """Write the question for the account's remaining credits."""
    return Request("GET", "/api/v1/chat/credit")


# -- reading answers --------------------------------------------------------------------------------------------

#: The service's codes (https://docs.kie.ai/luma-api/quickstart) and what they are for us.
REFUSALS: dict[int, type[LumaError]] = {
    401: LumaAuthError,
    402: LumaInsufficientCreditsError,
    404: LumaNotFoundError,
    422: LumaValidationError,
    429: LumaRateLimitError,
    433: LumaKeyLimitError,
    455: LumaUnavailableError,
    500: LumaUnavailableError,
    501: LumaGenerationError,
    505: LumaFeatureDisabledError,
}


#: What it means that the endpoint is not found (`docs/connection.md`).
ENDPOINT_MISSING = (
    f"The address in the connection has no Luma endpoint. If its Host is not {DEFAULT_HOST}, correct that; otherwise "
    "kie.ai has probably withdrawn it: copies of its documentation since April 2026 do not list it"
)

#: Codes that say that an answer came too late, or that the job is there.
_TOO_LATE = {408, 409, 499}


class _Envelope(NamedTuple):
    code: int
    msg: str
    data: Any


def _envelope(response: Response) -> _Envelope | None:
    """Take the answer apart; None if it is not an envelope, and so not from the service itself."""
    document = read_json(response.body)
    if not isinstance(document, dict):
        return None
    code = read_integer(document.get("code"))
    if code is None:
        return None
    msg = document.get("msg")
    return _Envelope(code, msg if isinstance(msg, str) else "", document.get("data"))


def _is_success(response: Response, envelope: _Envelope) -> bool:
    return 200 <= response.http_status < 300 and envelope.code == 200


def _is_own_refusal(response: Response, envelope: _Envelope) -> bool:
    """Tell whether the service refuses by itself: an edge that has lost its answer has a status of its own."""
    return envelope.code != 200 and response.http_status in (envelope.code, *range(200, 300), *range(400, 500))


def _is_refused_by_edge(response: Response) -> bool:
    """Tell whether Cloudflare, in front of the service, has refused a call by itself and passed nothing on."""
    return response.http_status in (403, 429) and re.match(rb"\s*error code: 10\d\d\s*$", response.body) is not None


def _refusal(
    response: Response, envelope: _Envelope | None, refusals: Mapping[int, type[LumaError]] = REFUSALS
) -> LumaError:
    """Return the error that a refused or unreadable answer stands for."""
    retry_after = read_retry_after(response.retry_after)
    if envelope is not None and envelope.code != 200:
        kind = refusals.get(envelope.code, LumaUnavailableError)
        return kind(envelope.code, envelope.msg or "the service gave no reason", retry_after=retry_after)
    status = response.http_status
    if 300 <= status < 400:
        return LumaUnavailableError(
            None,
            f"the address in the connection redirects (HTTP {status}) to {response.location!r}: put the service's own "
            "address into its Host, or set allow_redirects in its extra",
        )
    if status == 403 and _is_refused_by_edge(response):
        return LumaUnavailableError(
            status,
            f"the edge in front of the service refuses this machine or its proxy, and does not look at the API key: "
            f"{excerpt(response)}",
            retry_after=retry_after,
        )
    kind = refusals.get(status, LumaUnavailableError)
    return kind(
        status,
        f"HTTP {status}, and not readable as an answer of Luma: {excerpt(response)}",
        retry_after=retry_after,
    )


def read_data(response: Response, refusals: Mapping[int, type[LumaError]] = REFUSALS) -> Any:
    """
    Return the data of a successful answer.

    :param refusals: what the service's codes, and the HTTP statuses of an edge, mean at this endpoint
    :raises LumaError: the service refused, or the answer is not readable
    """
    envelope = _envelope(response)
    if envelope is not None and _is_success(response, envelope):
        return envelope.data
    raise _refusal(response, envelope, refusals)


def _is_page_missing(response: Response, envelope: _Envelope | None) -> bool:
    """Tell whether an answer says that there is no such endpoint, and nothing about what was asked."""
    if envelope is None:
        return response.http_status in (404, 410)
    # What models that moved have answered.
    return "page does not exist" in envelope.msg.lower()


def _refuses_submission(response: Response, envelope: _Envelope) -> bool:
    names_job = isinstance(envelope.data, dict) and bool(envelope.data.get("taskId") or envelope.data.get("task_id"))
    is_refusal = envelope.code in {*range(400, 500), 505} - _TOO_LATE and not names_job
    return is_refusal and _is_own_refusal(response, envelope) and response.http_status not in _TOO_LATE


def read_submission(response: Response) -> str:
    """
    Return the id of an accepted job.

    Only the service's own 4xx, 455 and 505 are refusals. What it calls 500 is "an unexpected error while processing the
    request" (https://docs.kie.ai/luma-api/quickstart), an edge or a redirect may have passed the request on, and 408,
    409 and 499 say that an answer came too late, or that the job is there.

    :raises LumaError: the service refused, and surely did not start anything
    :raises LumaSubmissionUnknownError: the answer does not tell; the job may run, and be billed
    """
    envelope = _envelope(response)
    luma_task_id = envelope.data.get("taskId") if envelope is not None and isinstance(envelope.data, dict) else None
    has_id = isinstance(luma_task_id, str) and bool(luma_task_id.strip())
    if envelope is not None and has_id and _is_success(response, envelope):
        return str(luma_task_id)
    if envelope is not None and _refuses_submission(response, envelope):
        refusal = _refusal(response, envelope)
        if envelope.code == 404 or _is_page_missing(response, envelope):
            refusal = LumaNotFoundError(envelope.code, refusal.msg)
            refusal.remedy = ENDPOINT_MISSING
        raise refusal
    if _is_refused_by_edge(response):
        raise _refusal(response, None)
    status = response.http_status
    is_redirect = 300 <= status < 400
    told = f"is a redirect: {_refusal(response, None).msg}" if is_redirect else f"names no job: {excerpt(response)}"
    if _is_page_missing(response, envelope):
        told = f"{told}. {ENDPOINT_MISSING}"
    raise LumaSubmissionUnknownError(
        None, f"the submission was sent, but the answer (HTTP {status}) {told}. It may have been accepted"
    )


def read_task(response: Response, luma_task_id: str) -> LumaTask:
    """
    Return the job that a status check has seen.

    :raises LumaAuthError: the service refuses the key
    :raises LumaNotFoundError: the service does not know the job, or not yet
    :raises LumaRateLimitError, LumaUnavailableError: everything else, as it says nothing of the job
    """
    envelope = _envelope(response)
    if envelope is None or not _is_success(response, envelope):
        raise _task_error(response, envelope, luma_task_id)
    data = envelope.data if isinstance(envelope.data, dict) else {}
    told_id = str(data.get("taskId") or "").strip().lower()  # an edge's cache may answer for another job
    flag = read_integer(data.get("successFlag")) if told_id in ("", luma_task_id.strip().lower()) else None
    # An answer that ends a wait must name the job.
    if flag is None or (flag != LumaTaskStatus.GENERATING and not told_id):
        raise LumaUnavailableError(
            None, f"the answer says nothing about the job: {excerpt(response)}", luma_task_id=luma_task_id
        )
    results, asked = read_object(data.get("response")), read_object(data.get("paramJson"))
    return LumaTask(
        luma_task_id=luma_task_id,
        status=LumaTaskStatus(flag),
        result_urls=read_strings(results.get("resultUrls")),
        origin_urls=read_strings(results.get("originUrls")),
        created_at=read_time(data.get("createTime")),
        completed_at=read_time(data.get("completeTime")),
        error_code=read_integer(data.get("errorCode")),
        error_message=str(data["errorMessage"]) if data.get("errorMessage") else None,
        prompt=read_text(asked.get("prompt")),
        video_url=read_text(asked.get("videoUrl")),
        callback_url=read_text(asked.get("callBackUrl")),
    )


def _task_error(response: Response, envelope: _Envelope | None, luma_task_id: str) -> LumaError:
    """Return the error of a status check; only what the service itself says of the key or the job may end a wait."""
    error = _refusal(response, envelope)
    kind: type[LumaError] = LumaUnavailableError
    if isinstance(error, LumaRateLimitError):
        kind = LumaRateLimitError
    elif envelope is not None and _is_own_refusal(response, envelope):
        # Of a job that was only just made the service says 422, "recordInfo is null".
        own: dict[int, type[LumaError]] = {401: LumaAuthError, 404: LumaNotFoundError, 422: LumaNotFoundError}
        kind = own.get(envelope.code, LumaUnavailableError)
    return kind(error.code, error.msg, luma_task_id=luma_task_id, retry_after=error.retry_after)


def read_endpoint(response: Response) -> None:
    """
    Take the answer to :func:`endpoint_request`.

    :raises LumaNotFoundError: there is no Luma endpoint at this address
    :raises LumaError: the answer does not say whether there is one
    """
    envelope = _envelope(response)
    if _is_page_missing(response, envelope):
        raise LumaNotFoundError(response.http_status, ENDPOINT_MISSING)
    if envelope is not None and _is_success(response, envelope):
        return
    error = _task_error(response, envelope, "")
    if not isinstance(error, LumaNotFoundError):  # otherwise it has looked for the job
        raise error


def read_credits(response: Response) -> float:
    """
    Return the account's remaining credits.

    :raises LumaError: the service refused, or the answer is no number
    """
    remaining = read_data(response)
    if isinstance(remaining, bool) or not isinstance(remaining, (int, float)) or not abs(remaining) < 1e15:
        raise LumaUnavailableError(None, f"the answer names no number of credits: {excerpt(response)}")
    return float(remaining)


def excerpt(response: Response) -> str:
    """Return the beginning of an answer's body, for a message."""
    text = " ".join(response.body[:300].decode("utf-8", "replace").split())
    return repr(text[:150]) if text else "an empty body"

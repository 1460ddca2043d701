# SPDX-License-Identifier: Apache-2.0
"""
kie.ai's Luma Modify API, its File Upload API, and its download addresses.

Everything this package knows about the service is here: how to build each call (a :class:`Request`), and how to turn a
response (a :class:`Response`) into a value or a typed error. It does no I/O. Facts about the service come from
https://docs.kie.ai/luma-api/quickstart and its neighbouring pages.

A response is an *envelope*, JSON ``{"code": int, "msg": str, "data": ...}``. A refusal comes as an HTTP status or as
HTTP 200 with the code inside. The edge server in front of the service (Cloudflare) may respond with HTML, with nothing,
or with half a document. The response to a submission is read more strictly than others (:func:`read_submission`): what
matters is whether the service may have accepted, and billed, the job.

Files are uploaded to a separate host, with the same API key (https://docs.kie.ai/file-upload-api/quickstart). The
response to an upload comes in two shapes. The pages disagree on whether a file is kept for 24 hours or three days, so
we assume 24 hours unless the response says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airflow_provider_luma.core.decision import RECORDS_KEPT
from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus, LumaUpload, ModifyRequest, Request, Response
from airflow_provider_luma.core.validation import (
    check_callback_url,
    check_english,
    check_prompt,
    check_video_address,
    check_watermark,
)
from airflow_provider_luma.core.wire import read_integer, read_json, read_object, read_strings, read_text, read_time
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
from airflow_provider_luma.services.base import Limits, SendForm, UploadStep
from airflow_provider_luma.services.common import check_options, excerpt, redirected

name = "kie"

host = "https://api.kie.ai"

base_path = ""

#: Where files are uploaded if the connection leads to the service itself.
upload_host = "https://kieai.redpandaai.co"

#: https://docs.kie.ai/luma-api/generate-luma-modify-video. The service fetches uploads, too: the same limits apply.
limits = Limits(seconds=10.0, bytes_by_url=500 * 1024**2, bytes_as_file=500 * 1024**2, containers=("mp4", "mov", "avi"))

has_callbacks = True

has_balance = True

#: The documented limit, per key, of a sibling endpoint.
requests_per_second = 10.0

#: 20 in 10 seconds, according to https://docs.kie.ai.
submissions_per_second = 2.0

#: Two months.
records_kept = RECORDS_KEPT

#: Two weeks.
results_kept = 14 * 86_400.0

#: The endpoint that accepts multipart forms of any size.
UPLOAD_PATH = "/api/file-stream-upload"

#: The account's folder for our files. The pages disagree on whether it may be omitted.
UPLOAD_FOLDER = "airflow-provider-luma"

#: How long an uploaded file is kept at least, unless the response says otherwise.
UPLOADS_KEPT = timedelta(hours=24)

#: Address of an uploaded file, without a user name, and its maximum length: it goes into XComs and triggers.
_UPLOADED = re.compile(r"https?://[^\s/?#@\\]+[/?#][^\s\\\x00-\x1f\x7f]*")
_MAX_ADDRESS = 8192


# -- requests ---------------------------------------------------------------------------------------------------


def check(request: ModifyRequest, *, is_public: bool) -> None:
    """Refuse what the service is sure to refuse; see :meth:`~airflow_provider_luma.services.base.Service.check`."""
    check_prompt(request.prompt)
    check_english(request.prompt)
    check_video_address(request.video_url, containers=limits.containers, service_is_public=is_public)
    check_watermark(request.watermark)
    if request.callback_url:
        check_callback_url(request.callback_url, service_is_public=is_public)
    check_options(request.options, reserved=_PARAMETERS)


#: The operator's parameters for the fields of a submission.
_PARAMETERS = {"prompt": "prompt", "videoUrl": "video_url", "watermark": "watermark", "callBackUrl": "callback_url"}


def submission(request: ModifyRequest, reference: str) -> Request:
    """Build the request that submits a job. Unset optional keys are left out: the service refuses null."""
    fields = {name: getattr(request, parameter) for name, parameter in _PARAMETERS.items()}
    body = {name: value for name, value in fields.items() if value}
    return Request("POST", "/api/v1/modify/generate", json={**(request.options or {}), **body})


def unknown_outcome_remedy(reference: str, submitted_at: float | None) -> str:
    """Return how a person can find out what became of a submission whose response was lost."""
    return LumaSubmissionUnknownError.remedy


def status(luma_task_id: str) -> Request:
    """Build the request for a status check."""
    return Request("GET", "/api/v1/modify/record-info", query={"taskId": luma_task_id})


def price(seconds: float, options: Mapping[str, Any] | None) -> None:
    """Return None: prices are not published."""


def liveness() -> Request:
    """Build a request that shows whether the Luma endpoint exists: a status check of a job that cannot exist."""
    return status("0" * 32)


def balance() -> Request:
    """Build the request for the account's remaining credits."""
    return Request("GET", "/api/v1/chat/credit")


# -- reading responses ------------------------------------------------------------------------------------------

#: The service's codes (https://docs.kie.ai/luma-api/quickstart) and the errors we raise for them.
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

#: The same for the upload endpoint.
_UPLOAD_REFUSALS: dict[int, type[LumaError]] = {
    **REFUSALS,
    400: LumaValidationError,
    405: LumaFeatureDisabledError,
    413: LumaValidationError,
}

#: What to tell users when the endpoint is not found (`docs/connection.md`).
ENDPOINT_MISSING = (
    f"There is no Luma endpoint at the connection's address. If the connection's Host is not {host}, correct it; "
    "otherwise, kie.ai has probably withdrawn the endpoint: it has been missing from copies of the documentation since "
    "April 2026"
)

#: Codes that may mean that only the response timed out, or that the job already exists.
_TOO_LATE = {408, 409, 499}


class _Envelope(NamedTuple):
    code: int
    msg: str
    data: Any


def _envelope(response: Response) -> _Envelope | None:
    """Parse a response; None if it is not an envelope, and so not from the service itself."""
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
    """Return whether the service itself refused. An edge that lost the response sends a different HTTP status."""
    return envelope.code != 200 and response.http_status in (envelope.code, *range(200, 300), *range(400, 500))


def _is_refused_by_edge(response: Response) -> bool:
    """Return whether Cloudflare, in front of the service, refused the call itself without forwarding it."""
    return response.http_status in (403, 429) and re.match(rb"\s*error code: 10\d\d\s*$", response.body) is not None


def _refusal(
    response: Response, envelope: _Envelope | None, refusals: Mapping[int, type[LumaError]] = REFUSALS
) -> LumaError:
    """Return the error for a refusal or an unreadable response."""
    retry_after = response.retry_after
    if envelope is not None and envelope.code != 200:
        kind = refusals.get(envelope.code, LumaUnavailableError)
        return kind(envelope.code, envelope.msg or "the service gave no reason", retry_after=retry_after)
    status = response.http_status
    if 300 <= status < 400:
        return redirected(response)
    if status == 403 and _is_refused_by_edge(response):
        return LumaUnavailableError(
            status,
            f"the edge in front of the service blocked this machine or its proxy before checking the API key: "
            f"{excerpt(response)}",
            retry_after=retry_after,
        )
    kind = refusals.get(status, LumaUnavailableError)
    return kind(
        status,
        f"HTTP {status}, but not a response from Luma: {excerpt(response)}",
        retry_after=retry_after,
    )


def read_data(response: Response, refusals: Mapping[int, type[LumaError]] = REFUSALS) -> Any:
    """
    Return the data of a successful response.

    :param refusals: what the service's codes, and the HTTP statuses of an edge, mean at this endpoint
    :raises LumaError: the service refused, or the response is unreadable
    """
    envelope = _envelope(response)
    if envelope is not None and _is_success(response, envelope):
        return envelope.data
    raise _refusal(response, envelope, refusals)


def _is_page_missing(response: Response, envelope: _Envelope | None) -> bool:
    """Return whether a response says that there is no such endpoint, rather than no such job."""
    if envelope is None:
        return response.http_status in (404, 410)
    # What the service returns for models that have moved.
    return "page does not exist" in envelope.msg.lower()


def _refuses_submission(response: Response, envelope: _Envelope) -> bool:
    names_job = isinstance(envelope.data, dict) and bool(envelope.data.get("taskId") or envelope.data.get("task_id"))
    is_refusal = envelope.code in {*range(400, 500), 505} - _TOO_LATE and not names_job
    return is_refusal and _is_own_refusal(response, envelope) and response.http_status not in _TOO_LATE


def read_submission(response: Response) -> str:
    """
    Return the id of an accepted job.

    Only the service's own 4xx, 455 and 505 are refusals. Its 500 means "an unexpected error while processing the
    request" (https://docs.kie.ai/luma-api/quickstart). An edge or a redirect may have forwarded the request. And 408,
    409 and 499 may mean that only the response timed out, or that the job already exists.

    :raises LumaError: the service refused, and certainly did not start anything
    :raises LumaSubmissionUnknownError: the response does not show whether the job was accepted, and billed
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
    what = f"is a redirect: {_refusal(response, None).msg}" if is_redirect else f"has no job id: {excerpt(response)}"
    if _is_page_missing(response, envelope):
        what = f"{what}. {ENDPOINT_MISSING}"
    raise LumaSubmissionUnknownError(
        None, f"the submission was sent, but the response (HTTP {status}) {what}. It may have been accepted"
    )


def read_status(response: Response, luma_task_id: str) -> LumaTask:
    """
    Return the job from the response to a status check.

    :raises LumaAuthError: the service refuses the key
    :raises LumaNotFoundError: the service does not know the job, or not yet
    :raises LumaRateLimitError, LumaUnavailableError: any other error, because it says nothing about the job
    """
    envelope = _envelope(response)
    if envelope is None or not _is_success(response, envelope):
        raise _task_error(response, envelope, luma_task_id)
    data = envelope.data if isinstance(envelope.data, dict) else {}
    told_id = str(data.get("taskId") or "").strip().lower()  # an edge's cache may return another job
    flag = read_integer(data.get("successFlag")) if told_id in ("", luma_task_id.strip().lower()) else None
    # A response that ends a wait must name the job.
    if flag is None or (flag != LumaTaskStatus.GENERATING and not told_id):
        raise LumaUnavailableError(
            None, f"the response does not show the job's status: {excerpt(response)}", luma_task_id=luma_task_id
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
    """Return the error of a status check. Only the service's own verdict on the key or the job may end a wait."""
    error = _refusal(response, envelope)
    kind: type[LumaError] = LumaUnavailableError
    if isinstance(error, LumaRateLimitError):
        kind = LumaRateLimitError
    elif envelope is not None and _is_own_refusal(response, envelope):
        # For a job created a moment ago, the service returns 422, "recordInfo is null".
        own: dict[int, type[LumaError]] = {401: LumaAuthError, 404: LumaNotFoundError, 422: LumaNotFoundError}
        kind = own.get(envelope.code, LumaUnavailableError)
    return kind(error.code, error.msg, luma_task_id=luma_task_id, retry_after=error.retry_after)


def read_liveness(response: Response) -> None:
    """
    Read the response to :func:`liveness`.

    :raises LumaNotFoundError: there is no Luma endpoint at this address
    :raises LumaError: the response does not show whether there is one
    """
    envelope = _envelope(response)
    if _is_page_missing(response, envelope):
        raise LumaNotFoundError(response.http_status, ENDPOINT_MISSING)
    if envelope is not None and _is_success(response, envelope):
        return
    error = _task_error(response, envelope, "")
    if not isinstance(error, LumaNotFoundError):  # "not found" means that the endpoint looked for the job
        raise error


def read_balance(response: Response) -> float:
    """
    Return the account's remaining credits.

    :raises LumaError: the service refused, or the response is not a number
    """
    remaining = read_data(response)
    if isinstance(remaining, bool) or not isinstance(remaining, (int, float)) or not abs(remaining) < 1e15:
        raise LumaUnavailableError(None, f"the response has no number of credits: {excerpt(response)}")
    return float(remaining)


# -- files -----------------------------------------------------------------------------------------------------


def upload(name: str, size: int, now: datetime) -> Generator[UploadStep, Response, LumaUpload]:
    """Upload a file as a form; see :meth:`~airflow_provider_luma.services.base.Service.upload`."""
    response = yield SendForm(UPLOAD_PATH, {"uploadPath": UPLOAD_FOLDER, "fileName": name})
    data = read_object(read_data(response, _UPLOAD_REFUSALS))
    url = read_text(data.get("downloadUrl")) or read_text(data.get("fileUrl"))
    if not url or len(url) > _MAX_ADDRESS or not _UPLOADED.fullmatch(url):
        raise LumaUnavailableError(None, f"the response has no valid address of the uploaded file: {excerpt(response)}")
    stored = read_integer(data.get("fileSize"))
    if stored not in (None, size):
        raise LumaUnavailableError(None, f"{size} bytes were uploaded, but the service stored {stored}")
    return LumaUpload(url, size, _read_expiry(data.get("expiresAt")) or now + UPLOADS_KEPT)


def _read_expiry(value: object) -> datetime | None:
    """Read a time in ISO 8601 (UTC unless it names a zone) or in milliseconds since the epoch."""
    try:
        expiry = datetime.fromisoformat(value) if isinstance(value, str) else None
        return (expiry.astimezone(UTC) if expiry.tzinfo else expiry.replace(tzinfo=UTC)) if expiry else read_time(value)
    except (ValueError, OverflowError):
        return read_time(value)


def renewal(result_url: str, luma_task_id: str | None = None) -> Request:
    """Build the request for a temporary download address of a result."""
    return Request("POST", "/api/v1/common/download-url", json={"url": result_url})


def read_renewal(response: Response, result_url: str = "", luma_task_id: str | None = None) -> str:
    """
    Return a temporary download address, valid for 20 minutes.

    :raises LumaError: the service refused, or the response is not an address
    """
    url = read_data(response)
    if not isinstance(url, str) or not url:
        raise LumaUnavailableError(None, f"the response has no download address: {excerpt(response)}")
    return url

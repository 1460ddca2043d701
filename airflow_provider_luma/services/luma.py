# SPDX-License-Identifier: Apache-2.0
"""
Luma's own API ("Luma Agents API"), with the model that edits videos.

Facts about it come from https://docs.agents.lumalabs.ai and from Luma's Python SDK, ``luma-agents`` 0.5.0. They
disagree in places and leave gaps. Where a job may have been paid for, the code assumes that it was.

The HTTP status decides what a response means, not its text: an error is ``{"detail": ...}``, but may also be HTML or
nothing. The service has no callbacks, no balance, no list of jobs, and no idempotency key.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from airflow_provider_luma.core.addresses import is_luma_file
from airflow_provider_luma.core.backoff import MAX_RETRY_AFTER
from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus, LumaUpload, ModifyRequest, Request, Response
from airflow_provider_luma.core.validation import check_prompt, check_video_address
from airflow_provider_luma.core.wire import plain_text, read_integer, read_json, read_object, read_text
from airflow_provider_luma.exceptions import (
    TRANSIENT,
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.services.base import Call, Limits, SendFile, UploadStep
from airflow_provider_luma.services.common import check_options, excerpt, redirected

name = "luma"

host = "https://agents.lumalabs.ai"

base_path = "/v1"

upload_host = host

#: The SDK says 18 seconds and 200 MB; older pages say 30 seconds, and 100 MB. No page lists the formats: an MP4 with
#: H.264 is safe.
limits = Limits(
    seconds=18.0,
    bytes_by_url=200_000_000,
    bytes_as_file=5 * 1024**3,
    containers=("mp4", "mov", "webm"),
    prompt_characters=6000,
)

has_callbacks = False

has_balance = False

#: Status checks do not count against the limit of requests per minute, but too many are refused.
requests_per_second = 1.0

#: The plan limits requests per minute and jobs at a time. The lowest known limit is 30 requests per minute.
submissions_per_second = 0.5

#: Length of the sliding window in which requests are counted, in seconds.
RATE_WINDOW = 60.0

#: A higher limit in a refusal, in requests per minute, is ignored as implausible.
MAX_REQUESTS_PER_MINUTE = 6000

#: Unknown.
records_kept = None

#: The address of a result is signed for an hour; each status check returns a new one.
results_kept = 3600.0

DEFAULT_MODEL = "ray-3.2"

#: ``video.edit`` must have exactly one of these.
CONTROLS = ("auto_controls", "strength", "controls")

STRENGTHS = tuple(f"{kind}_{degree}" for kind in ("adhere", "flex", "reimagine") for degree in (1, 2, 3))

RESOLUTIONS = ("360p", "540p", "720p", "1080p")

DEFAULT_RESOLUTION = "720p"

MAX_KEYFRAMES = 64

#: US dollars for up to 5 and up to 10 seconds, by resolution, as of 28 November 2026. No page has prices for
#: other lengths: for 10 to 18 seconds, we assume twice the price of 10.
_PRICES = {"360p": (0.54, 1.08), "540p": (0.72, 1.44), "720p": (1.08, 2.16), "1080p": (2.16, 4.32)}

#: Fields that we set, and the parameters they come from.
_PARAMETERS = {"prompt": "prompt", "source": "video_url"}

#: Media types by file extension. Without an extension, a video counts as an MP4.
_MEDIA_TYPES = {"mov": "video/quicktime", "webm": "video/webm"}


#: Ids go into paths, so anything but a UUID or the like is refused.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

#: How long the service should keep an uploaded file: long enough that a day is left after a slow upload.
FILES_KEPT = timedelta(days=2)

#: Seconds between checks of whether an uploaded file is ready: the first delay, which doubles, and the longest.
FIRST_CHECK_DELAY, LONGEST_CHECK_DELAY = 1.0, 15.0

#: Maximum seconds to wait for an uploaded file to become ready.
CHECK_TIMEOUT = 600.0

#: The address for an upload, and a header for it as ``name:value``; the service sends both, and neither is trusted.
_UPLOAD_ADDRESS = re.compile(r"https?://[\x21-\x7e]{1,8192}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}:[\x20-\x7e]{0,4096}")
_MAX_HEADERS = 32

#: Headers that the client sets itself, and credentials, which a signed address does not need.
_OWN_HEADERS = frozenset(
    "authorization connection content-length cookie expect host keep-alive proxy-authorization proxy-connection te "
    "trailer transfer-encoding upgrade".split()
)


# -- requests ---------------------------------------------------------------------------------------------------


def check(request: ModifyRequest, *, is_public: bool) -> None:
    """Refuse what the service is sure to refuse; see :meth:`~airflow_provider_luma.services.base.Service.check`."""
    check_prompt(request.prompt)
    if limits.prompt_characters is not None and len(request.prompt) > limits.prompt_characters:
        raise LumaValidationError(
            None,
            f"prompt has {len(request.prompt):,} characters, but Luma's own API accepts at most "
            f"{limits.prompt_characters:,}: shorten it",
        )
    for parameter in ("watermark", "callback_url"):
        if getattr(request, parameter):
            raise LumaValidationError(None, f"{parameter} is set, but Luma's own API does not support it: leave it out")
    _check_own_options(request.options)
    if is_luma_file(request.video_url):
        return
    check_video_address(request.video_url, containers=limits.containers, service_is_public=is_public)
    if is_public and request.video_url.lower().startswith("http:"):
        raise LumaValidationError(None, "video_url begins with http://, but Luma's own API accepts only https://")


def _check_own_options(options: Mapping[str, Any] | None) -> None:
    check_options(options, reserved=_PARAMETERS)
    options = options or {}
    if "type" in options:
        raise LumaValidationError(None, "options sets 'type': leave it out; it is always video_edit")
    for field in ("aspect_ratio", "duration"):
        if field in options or field in read_object(options.get("video")):
            raise LumaValidationError(None, f"options sets {field!r}: leave it out; the result matches the source")
    _check_video_options(_member(options, "video", "options"))


def _check_video_options(video: Mapping[str, Any]) -> None:
    edit, path = _member(video, "edit", "options['video']"), "options['video']['edit']"
    resolution = video.get("resolution", DEFAULT_RESOLUTION)
    if resolution not in RESOLUTIONS:
        raise LumaValidationError(
            None, f"options['video']['resolution'] is {resolution!r}: give one of {', '.join(RESOLUTIONS)}"
        )
    if video.get("hdr") and resolution not in ("720p", "1080p"):
        raise LumaValidationError(
            None, f"options['video']['hdr'] needs a resolution of 720p or 1080p, not {resolution}"
        )
    if video.get("exr_export") and not video.get("hdr"):
        raise LumaValidationError(None, "options['video']['exr_export'] needs options['video']['hdr']")
    chosen = [control for control in CONTROLS if control in edit]
    if len(chosen) > 1:
        raise LumaValidationError(None, f"{path} has {' and '.join(chosen)}: give only one of {', '.join(CONTROLS)}")
    if "auto_controls" in edit and edit["auto_controls"] is not True:
        raise LumaValidationError(
            None, f"{path}['auto_controls'] is {edit['auto_controls']!r}: give True, or leave it out"
        )
    if "strength" in edit and edit["strength"] not in STRENGTHS:
        raise LumaValidationError(
            None, f"{path}['strength'] is {edit['strength']!r}: give one of {', '.join(STRENGTHS)}"
        )
    _check_keyframes(edit, path)


def _check_keyframes(edit: Mapping[str, Any], path: str) -> None:
    keyframes, indexes = edit.get("keyframes", []), edit.get("keyframe_indexes", [])
    if not isinstance(keyframes, list) or not isinstance(indexes, list) or len(keyframes) != len(indexes):
        raise LumaValidationError(None, f"{path}: keyframes and keyframe_indexes must be two lists of the same length")
    if len(keyframes) > MAX_KEYFRAMES:
        raise LumaValidationError(None, f"{path} has {len(keyframes)} keyframes: give at most {MAX_KEYFRAMES}")
    positions = [index for index in indexes if isinstance(index, int) and not isinstance(index, bool) and index >= 0]
    if len(set(positions)) != len(indexes):
        raise LumaValidationError(
            None, f"{path}['keyframe_indexes'] is {indexes!r}: give distinct frame numbers of the source, starting at 0"
        )


def _member(options: Mapping[str, Any], field: str, path: str) -> Mapping[str, Any]:
    value = options.get(field, {})
    if not isinstance(value, dict):
        raise LumaValidationError(None, f"{path}[{field!r}] is {value!r}: give a dict")
    return value


def submission(request: ModifyRequest, reference: str) -> Request:
    """Build the request that submits a job. Luma's support can find it in their logs by its ``X-Request-Id``."""
    options = request.options or {}
    video = _member(options, "video", "options")
    edit = _member(video, "edit", "options['video']")
    if not any(control in edit for control in CONTROLS):
        edit = {"auto_controls": True, **edit}
    body = {
        "model": DEFAULT_MODEL,
        **options,
        "type": "video_edit",
        "prompt": request.prompt,
        "source": _source(request.video_url),
        "video": {**video, "edit": edit},
    }
    return Request("POST", "/v1/generations", json=body, headers={"X-Request-Id": reference})


def _source(video_url: str) -> dict[str, str]:
    if is_luma_file(video_url):
        kind, _, video_id = video_url.partition(":")
        return {"file_id" if kind == "luma-file" else "generation_id": video_id}
    return {"url": video_url, "media_type": _media_type(video_url)}


def _media_type(url: str) -> str:
    extension = PurePosixPath(unquote(urlsplit(url).path)).suffix[1:].lower()
    return _MEDIA_TYPES.get(extension, "video/mp4")


def unknown_outcome_remedy(reference: str, submitted_at: float | None) -> str:
    """Return how a person can find out what became of a submission whose response was lost."""
    sent = (
        "" if submitted_at is None else f", sent at {datetime.fromtimestamp(submitted_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    )
    return (
        f"Ask Luma's support whether it accepted the request with X-Request-Id {reference}{sent}. If it did, a "
        "LumaTaskSensor with the job's id waits for it. Clearing this task submits another, separately billed, job"
    )


def status(luma_task_id: str) -> Request:
    """Build the request for a status check."""
    return Request("GET", f"/v1/generations/{_path_part(luma_task_id)}")


def _path_part(luma_task_id: str) -> str:
    """Return an id for use in a path; raise if its characters show that it is not an id of this service."""
    if not _ID.fullmatch(luma_task_id):
        raise LumaNotFoundError(
            None, "Luma's own API has no such id; its ids look like 0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11"
        )
    return luma_task_id


def price(seconds: float, options: Mapping[str, Any] | None) -> float | None:
    """Estimate what a job costs, in US dollars; see :meth:`~airflow_provider_luma.services.base.Service.price`."""
    options = options or {}
    video = options.get("video", {})
    if not isinstance(video, dict):
        return None
    prices = _PRICES.get(str(video.get("resolution", DEFAULT_RESOLUTION)))
    if prices is None or options.get("model", DEFAULT_MODEL) != DEFAULT_MODEL or seconds > limits.seconds:
        return None
    up_to_5, up_to_10 = prices
    usual = up_to_5 if seconds <= 5 else up_to_10 if seconds <= 10 else 2 * up_to_10
    return usual * (3 if video.get("exr_export") else 2 if video.get("hdr") else 1)


def liveness() -> Request:
    """Build a free request that shows whether key and endpoint work: a list of one file."""
    return Request("GET", "/v1/files", query={"limit": "1"})


def balance() -> Request:
    """
    Refuse: the service does not report a balance.

    :raises LumaFeatureDisabledError: always
    """
    raise LumaFeatureDisabledError(None, "Luma's own API does not report a balance: see the account's page")


def renewal(result_url: str, luma_task_id: str | None) -> Request:
    """
    Build the request for a temporary download address of a result: a status check.

    :raises LumaValidationError: the job is not known
    """
    if luma_task_id is None:
        raise LumaValidationError(
            None,
            "the address of a result of Luma's own API is valid for an hour, and renewing it takes the job's id: pass "
            "what the modify task returned, urls=modify.output",
        )
    return status(luma_task_id)


# -- reading responses ------------------------------------------------------------------------------------------

#: The HTTP statuses that mean: not accepted, not charged.
REFUSALS: dict[int, type[LumaError]] = {
    400: LumaValidationError,
    401: LumaAuthError,
    402: LumaInsufficientCreditsError,
    403: LumaFeatureDisabledError,
    404: LumaNotFoundError,
    413: LumaValidationError,
    422: LumaValidationError,
    429: LumaRateLimitError,
}


class Failure(NamedTuple):
    """
    What a job's ``failure_code`` means.

    :param advice: what to tell the user
    :param is_request_at_fault: whether the same request would fail again
    """

    advice: str
    is_request_at_fault: bool


FAILURES = {
    "content_moderated": Failure("Luma's moderation refused the prompt, the clip or the result; refunded", True),
    "generation_failed": Failure("refunded; the same request may succeed as a new job", False),
    "output_not_found": Failure("the result was lost; refunded; the same request may succeed as a new job", False),
    "budget_exhausted": Failure("the account ran out of money, and may have been billed in part: top it up", False),
    "rate_limited": Failure("the service was overloaded, and may have billed the job", False),
    "image_too_large": Failure("an input image is too large; the job may have been billed", True),
    "unsupported_format": Failure("the clip's format is not supported; the job may have been billed", True),
    "corrupt_input": Failure("the clip is damaged; the job may have been billed", True),
    "invalid_request": Failure("the request is invalid; the job may have been billed", True),
}

_STATES = {
    "queued": LumaTaskStatus.GENERATING,
    "processing": LumaTaskStatus.GENERATING,
    "completed": LumaTaskStatus.SUCCESS,
    "failed": LumaTaskStatus.GENERATE_FAILED,
}


def read_submission(response: Response) -> str:
    """
    Return the id of an accepted job.

    :raises LumaError: the service refused, and certainly did not start anything
    :raises LumaSubmissionUnknownError: the response does not show whether the job was accepted, and billed
    """
    http_status = response.http_status
    luma_task_id = read_text(_document(response).get("id")) or ""
    if 200 <= http_status < 300 and _ID.fullmatch(luma_task_id):
        return luma_task_id
    if http_status in REFUSALS or _is_source_unreadable(response):
        raise _refusal(response, is_submission=True)
    raise LumaSubmissionUnknownError(
        None,
        f"the submission was sent, but the response has no job id: {_reason(response)} (HTTP {http_status}). "
        "It may have been accepted",
    )


def _is_source_unreadable(response: Response) -> bool:
    """
    Return whether the service refused because it could not fetch the clip: a 502 or 503 that says so in JSON.

    The text must be explicit: "insufficient resources" says nothing about the clip. If there is an id, the job may run.
    """
    detail = (_detail(response) or "").lower()
    says_so = re.search(r"\bsource\b", detail) and re.search(r"fetch|download|retriev", detail)
    return response.http_status in (502, 503) and bool(says_so) and not _document(response).get("id")


def read_status(response: Response, luma_task_id: str) -> LumaTask:
    """
    Return the job from the response to a status check.

    :raises LumaAuthError: the service refuses the key
    :raises LumaNotFoundError: the service does not know the job, or not yet
    :raises LumaRateLimitError, LumaUnavailableError: any other error, because it says nothing about the job
    """
    if not 200 <= response.http_status < 300:
        raise _status_error(response, luma_task_id)
    job = _document(response)
    state = job.get("state")
    # A response that ends a wait must name the job: an edge's cache may return another one.
    if not isinstance(state, str) or str(job.get("id") or "").lower() != luma_task_id.lower():
        raise LumaUnavailableError(
            None, f"the response does not show the job's status: {excerpt(response)}", luma_task_id=luma_task_id
        )
    code = read_text(job.get("failure_code"))
    return LumaTask(
        luma_task_id=luma_task_id,
        status=_STATES[state] if state in _STATES else LumaTaskStatus.undocumented(state[:40]),
        result_urls=_results(job.get("output")),
        created_at=_time(job.get("created_at")),
        error_message=_failure_text(read_text(job.get("failure_reason")), code) if state == "failed" else None,
        service=name,
        is_request_at_fault=code in FAILURES and FAILURES[code].is_request_at_fault,
    )


def _results(output: object) -> tuple[str, ...]:
    entries = output if isinstance(output, list) else []
    urls = (entry.get("url") for entry in entries if isinstance(entry, dict) and entry.get("type") == "video")
    return tuple(url for url in urls if isinstance(url, str) and url)


def _failure_text(reason: str | None, code: str | None) -> str:
    words = reason or "the service gave no reason"
    if code is None:
        return words
    return f"{words} ({code}: {FAILURES[code].advice})" if code in FAILURES else f"{words} ({code})"


def _status_error(response: Response, luma_task_id: str) -> LumaError:
    """Return the error of a status check. Only the service's own verdict on the key or the job may end a wait."""
    error = _refusal(response)
    kind: type[LumaError] = LumaUnavailableError
    own: dict[int, type[LumaError]] = {401: LumaAuthError, 404: LumaNotFoundError}
    if isinstance(error, LumaRateLimitError):
        kind = LumaRateLimitError
    elif _detail(response) is not None:
        kind = own.get(response.http_status, LumaUnavailableError)
    return kind(error.code, error.msg, luma_task_id=luma_task_id, retry_after=error.retry_after)


def read_liveness(response: Response) -> None:
    """
    Read the response to :func:`liveness`.

    :raises LumaError: the key is refused, or the response does not show whether the endpoint works
    """
    if not (200 <= response.http_status < 300 and _document(response)):
        raise _refusal(response)


def read_balance(response: Response) -> float:
    """
    Refuse: the service does not report a balance.

    :raises LumaFeatureDisabledError: always
    """
    raise LumaFeatureDisabledError(None, "Luma's own API does not report a balance: see the account's page")


def read_renewal(response: Response, result_url: str, luma_task_id: str | None) -> str:
    """
    Return another address of a result.

    :raises LumaNotFoundError: the job no longer lists it
    :raises LumaError: the service refused
    """
    assert luma_task_id is not None, "a result without its job cannot be renewed"
    task = read_status(response, luma_task_id)
    path = _path(result_url)
    matching = [url for url in task.result_urls if path is not None and _path(url) == path]
    if not matching and len(task.result_urls) == 1:
        return task.result_urls[0]
    if not matching:
        raise LumaNotFoundError(None, "the job no longer lists this video", luma_task_id=luma_task_id)
    return matching[0]


def _path(url: str) -> str | None:
    """Return the path of an address; None if the address is invalid."""
    try:
        return urlsplit(url).path
    except ValueError:
        return None


def _refusal(response: Response, *, is_submission: bool = False) -> LumaError:
    http_status = response.http_status
    if 300 <= http_status < 400:
        return redirected(response)
    if http_status == 429:
        return _rate_limited(response, is_submission=is_submission)
    kind = REFUSALS.get(http_status, LumaUnavailableError)
    refusal = kind(http_status, _reason(response), retry_after=response.retry_after)
    if isinstance(refusal, LumaNotFoundError) and _detail(response) is None:
        refusal.remedy = f"If the Host of the connection is not {host}, correct it"
    return refusal


def _rate_limited(response: Response, *, is_submission: bool) -> LumaRateLimitError:
    """
    Return the error for a 429, which shows which limit was reached: requests a minute, or jobs at a time.

    Only a refusal for too many requests a minute has ``X-RateLimit`` headers. A submission refused without them has
    reached the limit of jobs at a time, unless the response is not the service's own. A status check refused without
    them has reached neither limit.
    """
    limit, remaining, reset = (
        read_integer(response.headers.get(f"x-ratelimit-{part}")) for part in ("limit", "remaining", "reset")
    )
    retry_after, reason = response.retry_after, _reason(response)
    if (limit, reset) != (None, None) and (remaining or 0) <= 0:
        per_minute = limit if limit is not None and 0 < limit <= MAX_REQUESTS_PER_MINUTE else None
        if retry_after is None:
            retry_after = reset if reset is not None and 0 < reset <= RATE_WINDOW else RATE_WINDOW
        used_up = f"limit of {per_minute} requests a minute reached" if per_minute else "limit of requests reached"
        error = LumaRateLimitError(429, f"{used_up}: {reason}", retry_after=retry_after)
        error.requests_per_minute = per_minute
        return error
    if is_submission and _detail(response) is not None:
        error = LumaRateLimitError(429, f"limit of jobs at a time reached: {reason}", retry_after=retry_after)
        error.has_too_many_jobs = True
        return error
    return LumaRateLimitError(429, reason, retry_after=retry_after)


def _reason(response: Response) -> str:
    detail = _detail(response)
    return f"HTTP {response.http_status}: {excerpt(response)}" if detail is None else detail or "no reason given"


def _detail(response: Response) -> str | None:
    """Return the reason that the service gives; None if the response is not its own."""
    document = read_json(response.body)
    if not isinstance(document, dict) or "detail" not in document:
        return None
    detail = document["detail"]
    if isinstance(detail, list):  # a web framework's validation errors: the field, and what is wrong
        detail = "; ".join(_validation_text(item) for item in detail)
    return detail if isinstance(detail, str) else ""


def _validation_text(item: object) -> str:
    fields = read_object(item)
    where = fields.get("loc")
    path = ".".join(map(str, where)) if isinstance(where, list) else ""
    return f"{path}: {fields.get('msg')}" if path else plain_text(str(item))


def _document(response: Response) -> Mapping[str, Any]:
    document = read_json(response.body)
    return document if isinstance(document, dict) else {}


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
        return time and (time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None


# -- files -----------------------------------------------------------------------------------------------------


def upload(name: str, size: int, now: datetime) -> Generator[UploadStep, Response, LumaUpload]:
    """
    Upload a file; see :meth:`~airflow_provider_luma.services.base.Service.upload`.

    Announce it, put its bytes where the service says, have the service check it, and wait until it is ready.

    :raises LumaValidationError: the service does not accept this file
    :raises LumaError: any other refusal, or the check takes too long
    """
    expires_at = (now + FILES_KEPT).astimezone(UTC).replace(microsecond=0)
    announcement = {
        "mime_type": _media_type(name),
        "size_bytes": size,
        "purpose": "input",
        "filename": name,
        "expires_at": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}",
    }
    file_id, target = _read_announced((yield Call(Request("POST", "/v1/files", json=announcement))))
    _check_stored((yield target))
    _read_completed((yield Call(Request("POST", f"/v1/files/{file_id}/complete"))))
    file = yield from _wait_until_ready(file_id)
    return LumaUpload(f"luma-file:{file_id}", size, _time(file.get("expires_at")) or expires_at)


def _read_announced(response: Response) -> tuple[str, SendFile]:
    """Return the id of an announced file, and where to put its bytes."""
    if not 200 <= response.http_status < 300:
        raise _refusal(response)
    document = _document(response)
    file_id, target = read_text(document.get("id")) or "", read_object(document.get("upload"))
    url, headers = read_text(target.get("url")) or "", target.get("headers") or {}
    if (
        not _ID.fullmatch(file_id)
        or target.get("method", "PUT") != "PUT"
        or not _UPLOAD_ADDRESS.fullmatch(url)
        or not isinstance(headers, dict)
        or len(headers) > _MAX_HEADERS
        or not all(isinstance(value, str) and _HEADER.fullmatch(f"{name}:{value}") for name, value in headers.items())
    ):
        # The response is not quoted: it may hold a signature.
        raise LumaUnavailableError(None, "the service returned no usable address for the upload")
    return file_id, SendFile(url, {name: value for name, value in headers.items() if name.lower() not in _OWN_HEADERS})


def _check_stored(response: Response) -> None:
    """Raise unless the storage has accepted the file. Its errors repeat signatures, so only their code is shown."""
    if 200 <= response.http_status < 300:
        return
    code = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", response.body)
    said = f" ({code[1].decode()})" if code else ""
    redirects = ", a redirect, which is not followed" if 300 <= response.http_status < 400 else ""
    raise LumaUnavailableError(
        None, f"the service's storage did not accept the file: HTTP {response.http_status}{said}{redirects}"
    )


def _read_completed(response: Response) -> None:
    if not 200 <= response.http_status < 300:
        raise _refusal(response)


def _wait_until_ready(file_id: str) -> Generator[UploadStep, Response, Mapping[str, Any]]:
    """
    Wait until the service has checked a file. A failed request for its state is repeated.

    :raises LumaValidationError: the service refuses the file
    :raises LumaError: it is still pending after :data:`CHECK_TIMEOUT` seconds of waiting
    """
    waited, delay, pause = 0.0, 0.0, FIRST_CHECK_DELAY
    while True:
        retry_after: float | None = None
        try:
            file = _read_file((yield Call(Request("GET", f"/v1/files/{file_id}"), delay)), file_id)
        except TRANSIENT as error:
            retry_after, reason = error.retry_after, error.msg
        else:
            if file["state"] == "ready":
                return file
            if file["state"] == "failed":
                reason = read_text(file.get("failure_reason")) or "the service gave no reason"
                raise LumaValidationError(None, f"Luma refused the uploaded file: {reason}")
            reason = f"its state is {str(file['state'])[:40]!r}"
        delay = max(pause, min(retry_after or 0.0, MAX_RETRY_AFTER))
        pause = min(2 * pause, LONGEST_CHECK_DELAY)
        waited += delay
        if waited > CHECK_TIMEOUT:
            raise LumaError(
                None,
                f"the file was uploaded, but is not ready after {CHECK_TIMEOUT:g} s: {reason}. Nothing was submitted",
            )


def _read_file(response: Response, file_id: str) -> Mapping[str, Any]:
    """
    Return a file from the response to a check of its state.

    :raises LumaRateLimitError, LumaUnavailableError: the response does not show the file's state
    """
    file = _document(response)
    if 200 <= response.http_status < 300:
        if file.get("id") == file_id and isinstance(file.get("state"), str):
            return file
        raise LumaUnavailableError(None, f"the response does not show the file's state: {excerpt(response)}")
    refusal = _refusal(response)
    if isinstance(refusal, LumaNotFoundError):  # it may not be visible everywhere yet
        raise LumaUnavailableError(refusal.code, refusal.msg, retry_after=refusal.retry_after)
    raise refusal

# SPDX-License-Identifier: Apache-2.0
"""
The Luma Modify API, without any I/O.

Everything this package knows about the service is in this module: how a call is written (a
:class:`Request`), and how an answer (a :class:`Response`) becomes a value or a typed error. The hooks carry
the one to the other over the network and know nothing else. Facts about the service come from
https://docs.kie.ai/luma-api/quickstart and the pages beside it.

An answer is an *envelope*, JSON ``{"code": int, "msg": str, "data": ...}``. A refusal comes as an HTTP status
or as HTTP 200 with the code inside, and what stands in front of the service may answer with HTML, with
nothing, or with half a document. Three functions read what all answers have in common: :func:`_envelope`
takes the document apart, :func:`_refusal` turns a code into an error, :func:`_data` does both. A submission
is read more carefully than the rest (:func:`read_submission`): what matters there is whether the service may
have accepted, and billed, the job.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)

DEFAULT_HOST = "https://api.kie.ai"

#: Containers the service reads (https://docs.kie.ai/luma-api/generate-luma-modify-video).
VIDEO_EXTENSIONS = ("mp4", "mov", "avi")

#: Extensions that name a file of another kind. Any other ending (``.php``, ``.v2``) is a web address like
#: any other, and only the service can tell what is behind it.
_OTHER_FILE_EXTENSIONS = frozenset(
    "3g2 3gp aac asf bmp csv doc docx f4v flac flv gif gz heic html htm jpeg jpg json m2ts m3u8 m4a m4v mkv mp3 "
    "mpd mpeg mpg mts mxf ogg ogv pdf png rar rm svg tar tif tiff ts txt vob wav webm webp wmv xml zip".split()
)


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
    What one look at a job told.

    :param luma_task_id: the job's id at Luma
    :param status: where it stands
    :param result_urls: the modified videos, once there are any; kept by the service for 14 days
    :param origin_urls: the videos as they came out of the model, if the service gives them
    :param created_at: when Luma accepted the job (UTC)
    :param completed_at: when it ended (UTC), or None while it runs
    :param error_code: Luma's code for a failed job
    :param error_message: Luma's words for a failed job
    :param prompt: what was asked for, as the service remembers it
    :param video_url: the input, as the service remembers it
    :param callback_url: the address it was told to call when the job ends
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
        """Whether there is a video: CALLBACK_FAILED means that only the news of it could not be delivered."""
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
            "origin_urls": list(self.origin_urls),
            "created_at": self.created_at and self.created_at.isoformat(),
            "completed_at": self.completed_at and self.completed_at.isoformat(),
        }

    def request(self) -> dict[str, str | None]:
        """Return what was asked for, as the service remembers it, for whoever shows the result."""
        return {"prompt": self.prompt, "video_url": self.video_url}

    def failure(self) -> LumaGenerationError:
        """Return the error that a failed job stands for, with Luma's code and words."""
        words = self.error_message or "the service gave no reason"
        return LumaGenerationError(self.error_code, f"{self.status.name}: {words}", luma_task_id=self.luma_task_id)


# -- what goes out and what comes back --------------------------------------------------------------------------


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


def modify_request(
    prompt: str, video_url: str, *, callback_url: str | None = None, watermark: str | None = None
) -> Request:
    """Write the submission of a job. Optional keys are left out when unset: the service refuses null."""
    body = {"prompt": prompt, "videoUrl": video_url}
    if callback_url:
        body["callBackUrl"] = callback_url
    if watermark:
        body["watermark"] = watermark
    return Request("POST", "/api/v1/modify/generate", json=body)


def task_request(luma_task_id: str) -> Request:
    """Write a look at a job."""
    return Request("GET", "/api/v1/modify/record-info", query={"taskId": luma_task_id})


def credits_request() -> Request:
    """Write the question for the account's remaining credits."""
    return Request("GET", "/api/v1/chat/credit")


def download_url_request(result_url: str) -> Request:
    """Write the request for a temporary download address of a result."""
    return Request("POST", "/api/v1/common/download-url", json={"url": result_url})


# -- reading answers --------------------------------------------------------------------------------------------

#: The service's codes (https://docs.kie.ai/luma-api/quickstart) and what they are for us.
_REFUSALS: dict[int, type[LumaError]] = {
    401: LumaAuthError,
    402: LumaInsufficientCreditsError,
    404: LumaNotFoundError,
    422: LumaValidationError,
    429: LumaRateLimitError,
    455: LumaUnavailableError,
    500: LumaUnavailableError,
    501: LumaGenerationError,
    505: LumaFeatureDisabledError,
}


class _Envelope(NamedTuple):
    code: int
    msg: str
    data: Any


def _envelope(response: Response) -> _Envelope | None:
    """Take the answer apart; None if it is not an envelope, and so not from the service itself."""
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    code = _integer(document.get("code"))
    if code is None:
        return None
    msg = document.get("msg")
    return _Envelope(code, msg if isinstance(msg, str) else "", document.get("data"))


def _is_success(response: Response, envelope: _Envelope) -> bool:
    return 200 <= response.http_status < 300 and envelope.code == 200


def _refusal(response: Response, envelope: _Envelope | None) -> LumaError:
    """Return the error that a refused or unreadable answer stands for."""
    retry_after = _seconds(response.retry_after)
    if envelope is not None and envelope.code != 200:
        kind = _REFUSALS.get(envelope.code, LumaUnavailableError)
        return kind(envelope.code, envelope.msg or "the service gave no reason", retry_after=retry_after)
    status = response.http_status
    if 300 <= status < 400:
        return LumaUnavailableError(
            None,
            f"the address in the connection redirects (HTTP {status}) to {response.location!r}: put the service's own "
            "address into its Host, or set allow_redirects in its extra",
        )
    kind = _REFUSALS.get(status, LumaUnavailableError)
    return kind(
        status,
        f"HTTP {status}, and not readable as an answer of Luma: {_excerpt(response)}",
        retry_after=retry_after,
    )


def _data(response: Response) -> Any:
    """Return the data of a successful answer; raise the error of any other."""
    envelope = _envelope(response)
    if envelope is not None and _is_success(response, envelope):
        return envelope.data
    raise _refusal(response, envelope)


def read_submission(response: Response) -> str:
    """
    Return the id of an accepted job.

    :raises LumaError: the service refused, and surely did not start anything
    :raises LumaSubmissionUnknownError: the answer does not tell; the job may run, and be billed
    """
    envelope = _envelope(response)
    luma_task_id = envelope.data.get("taskId") if envelope is not None and isinstance(envelope.data, dict) else None
    has_id = isinstance(luma_task_id, str) and bool(luma_task_id.strip())
    if envelope is not None and has_id and _is_success(response, envelope):
        return str(luma_task_id)
    if envelope is not None:
        # A gateway's 504 in an envelope is no refusal: what is behind the gateway may have accepted.
        is_refused = envelope.code in _REFUSALS or 400 <= envelope.code < 500
    else:
        # Not the service's own words, yet plain HTTP: whoever answered did not process the request.
        is_refused = 300 <= response.http_status < 500
    if is_refused and not has_id:
        raise _refusal(response, envelope)
    raise LumaSubmissionUnknownError(
        None,
        f"the submission was sent, but the answer (HTTP {response.http_status}) tells of no accepted job: "
        f"{_excerpt(response)}. It may have been accepted",
    )


def read_task(response: Response, luma_task_id: str) -> LumaTask:
    """
    Return what a look at a job told.

    :raises LumaError: the service refused; an answer of the wrong shape is a LumaUnavailableError
    """
    try:
        data = _data(response)
    except LumaError as error:
        error.luma_task_id = luma_task_id
        if _envelope(response) is None and not isinstance(error, (LumaAuthError, LumaRateLimitError)):
            # What an edge says of pages and features ("404", "501") is not the service's word on a job.
            raise LumaUnavailableError(
                error.code, error.msg, luma_task_id=luma_task_id, retry_after=error.retry_after
            ) from None
        raise
    flag = _integer(data.get("successFlag")) if isinstance(data, dict) else None
    if flag is None:
        raise LumaUnavailableError(
            None, f"the answer says nothing about the job: {_excerpt(response)}", luma_task_id=luma_task_id
        )
    results, asked = _object(data.get("response")), _object(data.get("paramJson"))
    return LumaTask(
        luma_task_id=luma_task_id,
        status=LumaTaskStatus(flag),
        result_urls=_strings(results.get("resultUrls")),
        origin_urls=_strings(results.get("originUrls")),
        created_at=_time(data.get("createTime")),
        completed_at=_time(data.get("completeTime")),
        error_code=_integer(data.get("errorCode")),
        error_message=str(data["errorMessage"]) if data.get("errorMessage") else None,
        prompt=_text(asked.get("prompt")),
        video_url=_text(asked.get("videoUrl")),
        callback_url=_text(asked.get("callBackUrl")),
    )


def read_credits(response: Response) -> float:
    """
    Return the account's remaining credits.

    :raises LumaError: the service refused, or the answer is no number
    """
    remaining = _data(response)
    if isinstance(remaining, bool) or not isinstance(remaining, (int, float)) or not abs(remaining) < 1e15:
        raise LumaUnavailableError(None, f"the answer names no number of credits: {_excerpt(response)}")
    return float(remaining)


def read_download_url(response: Response) -> str:
    """
    Return a temporary download address, valid for 20 minutes.

    :raises LumaError: the service refused, or the answer is no address
    """
    url = _data(response)
    if not isinstance(url, str) or not url:
        raise LumaUnavailableError(None, f"the answer names no download address: {_excerpt(response)}")
    return url


def _integer(value: object) -> int | None:
    """Read a number that the service may also write as a string."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    return None


def _object(value: object) -> Mapping[str, Any]:
    """Read an object that sibling endpoints of the service write as a JSON string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _time(value: object) -> datetime | None:
    """Read milliseconds since the epoch; a time out of all bounds is as good as none."""
    milliseconds = _integer(value)
    if not milliseconds:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _seconds(retry_after: str | None) -> float | None:
    """Read Retry-After: a number of seconds, or the time until which to wait, as an edge in maintenance writes it."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", retry_after.strip(), re.ASCII):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _excerpt(response: Response) -> str:
    text = " ".join(response.body[:300].decode("utf-8", "replace").split())
    return repr(text[:150]) if text else "an empty body"


# -- what may be sent -------------------------------------------------------------------------------------------


def check_prompt(prompt: object) -> None:
    """
    Check the prompt of a submission.

    :raises LumaValidationError: it is blank, or not in the Latin script, of which the service takes English only
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise LumaValidationError(
            None, f"prompt is {prompt!r}: say in English how to change the video, e.g. 'make it a rainy night'"
        )
    foreign = [letter for letter in prompt if letter.isalpha() and not _is_latin(letter)]
    if foreign:
        raise LumaValidationError(
            None,
            f"prompt holds {''.join(foreign[:20])!r}, and the service takes English only: translate the prompt",
        )


def _is_latin(letter: str) -> bool:
    # A unit such as the micrometre, and an apostrophe typed as a modifier letter, are English too.
    if letter == "\N{MICRO SIGN}" or unicodedata.category(letter) == "Lm":
        return True
    # The compatibility form brings styled and full-width letters back to the alphabet they belong to.
    return "LATIN" in unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "")


def check_video_url(video_url: object, *, service_is_public: bool = False) -> None:
    """
    Check the address of an input video.

    :param service_is_public: the service is on the Internet, and so cannot reach private addresses
    :raises LumaValidationError: the service could never read a video from there
    """
    _check_url("video_url", video_url, service_is_public=service_is_public)
    extension = PurePosixPath(unquote(urlsplit(str(video_url)).path)).suffix[1:].lower()
    if extension in _OTHER_FILE_EXTENSIONS:
        raise LumaValidationError(
            None,
            f"video_url ends in .{extension}, and the service takes MP4, MOV and AVI only: "
            f"convert the video first ({video_url!r})",
        )


def check_callback_url(callback_url: object, *, service_is_public: bool = False) -> None:
    """
    Check the address that the service shall call when a job ends.

    :raises LumaValidationError: the service could never call there
    """
    _check_url("callback_url", callback_url, service_is_public=service_is_public)


def check_watermark(watermark: object) -> None:
    """
    Check the text to put into the video.

    :raises LumaValidationError: it is neither a text nor none
    """
    if watermark is not None and not isinstance(watermark, str):
        raise LumaValidationError(None, f"watermark is {watermark!r}: give a text, or none")


def check_luma_task_id(luma_task_id: object) -> None:
    """
    Check the id of a job. It is opaque: that it is there is all one can tell.

    :raises LumaValidationError: there is none
    """
    if not isinstance(luma_task_id, str) or not luma_task_id.strip():
        raise LumaValidationError(
            None,
            f"luma_task_id is {luma_task_id!r}: give the id that a submission returned, "
            'e.g. submit.output["luma_task_id"]',
        )


def check_positive(parameter: str, seconds: object) -> None:
    """
    Check a number of seconds.

    :raises LumaValidationError: it is no number above zero
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise LumaValidationError(None, f"{parameter} is {seconds!r}: give a number of seconds above 0")


def _check_url(parameter: str, url: object, *, service_is_public: bool) -> None:
    if not isinstance(url, str) or not url.strip():
        raise LumaValidationError(None, f"{parameter} is {url!r}: give a public http(s) address")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LumaValidationError(None, f"{parameter} is no valid address ({error}): {url!r}") from error
    if parts.scheme not in ("http", "https"):
        raise LumaValidationError(
            None,
            f"{parameter} must begin with http:// or https://, since the service fetches it over the web: {url!r}",
        )
    if not host or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise LumaValidationError(None, f"{parameter} names no host, or holds blanks or backslashes: {url!r}")
    if service_is_public and is_private_host(host):
        raise LumaValidationError(
            None,
            f"{parameter} points to {host}, which Luma on the public Internet cannot reach: "
            "use a public or signed address",
        )


def is_private_host(host: str) -> bool:
    """
    Tell whether a host is surely not on the public Internet: by its address, or by its name.

    Names are not looked up: the worker's view of the DNS is not the service's.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _ip_address(host)
    if address is not None:
        return not address.is_global or address.is_multicast
    private_zones = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
    return "." not in host or host.endswith(private_zones)


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # Clients also read 127.1, 0x7f.1 and 2130706433 as IPv4 addresses.
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

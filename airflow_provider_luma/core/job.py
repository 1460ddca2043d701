# SPDX-License-Identifier: Apache-2.0
"""
The central values: what to request from a service, the job that it creates, and an uploaded file.

A :class:`Request` goes out over HTTP, and a :class:`Response` comes back. A service
(:mod:`airflow_provider_luma.services`) writes the former and reads the latter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from airflow_provider_luma.core.redaction import without_queries, without_signatures
from airflow_provider_luma.exceptions import LumaGenerationError, LumaRequestFailedError

#: The service of jobs, records and deferrals that name no service, such as those from before version 2.0.0.
DEFAULT_SERVICE = "kie"


class LumaTaskStatus(IntEnum):
    """
    A job's status at any service, as kie.ai names it (https://docs.kie.ai/luma-api/get-luma-modify-details).

    An undocumented status becomes a member named ``UNDOCUMENTED_…`` and counts as running: it must not end the wait
    for a job that is paid for.
    """

    GENERATING = 0
    SUCCESS = 1
    CREATE_TASK_FAILED = 2
    GENERATE_FAILED = 3
    CALLBACK_FAILED = 4

    @classmethod
    def _missing_(cls, value: object) -> LumaTaskStatus | None:
        return cls.undocumented(str(value), value) if isinstance(value, int) else None

    @classmethod
    def undocumented(cls, name: str, value: int = -1) -> LumaTaskStatus:
        """Return a status that the service's documentation does not list."""
        undocumented = int.__new__(cls, value)
        undocumented._name_ = f"UNDOCUMENTED_{name}"
        undocumented._value_ = value
        return undocumented

    @property
    def is_documented(self) -> bool:
        """Whether the service's documentation lists this status."""
        return self.name in type(self).__members__


@dataclass(frozen=True)
class LumaTask:
    """
    A job, as seen by one status check.

    :param luma_task_id: the job's id at Luma
    :param status: its current status
    :param result_urls: the modified videos, once available; the addresses expire after the service's ``results_kept``
    :param origin_urls: the videos as output by the model, if the service provides them
    :param created_at: when Luma accepted the job (UTC)
    :param completed_at: when it ended (UTC), or None while it runs; if the service does not report it, the time of the
        first status check after the end
    :param error_code: kie.ai's code for a failed job
    :param error_message: the service's error message for a failed job
    :param prompt: the prompt, if the service returns it
    :param video_url: the address of the input video, if the service returns it
    :param callback_url: the address that the service calls when the job ends, if any
    :param service: the name of the service that runs it
    :param is_request_at_fault: whether a failed job's request would fail again
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
    service: str = DEFAULT_SERVICE
    is_request_at_fault: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the job has succeeded or failed."""
        return self.status.is_documented and self.status is not LumaTaskStatus.GENERATING

    @property
    def is_successful(self) -> bool:
        """Whether there is a video. CALLBACK_FAILED only means that the callback could not be delivered."""
        return self.status in (LumaTaskStatus.SUCCESS, LumaTaskStatus.CALLBACK_FAILED)

    def as_dict(self) -> dict[str, Any]:
        """
        Return what operators and sensors pass to downstream tasks: JSON values, times in ISO 8601 UTC.

        Every job with a video has the status SUCCESS here, so that a pipeline needs only one comparison.
        ``service`` is included unless it is the default one.
        """
        status = LumaTaskStatus.SUCCESS if self.is_successful else self.status
        result = {
            "luma_task_id": self.luma_task_id,
            "status": status.name,
            "result_urls": list(self.result_urls),
            "origin_urls": [without_signatures(url) if self._is_input(url) else url for url in self.origin_urls],
            "created_at": self.created_at and self.created_at.isoformat(),
            "completed_at": self.completed_at and self.completed_at.isoformat(),
        }
        return result if self.service == DEFAULT_SERVICE else {**result, "service": self.service}

    def _is_input(self, url: str) -> bool:
        """Return whether an address is that of the input, which may be signed."""
        return self.video_url is not None and url.partition("?")[0] == self.video_url.partition("?")[0]

    def request(self) -> dict[str, str | None]:
        """Return the request as the service returned it, without signatures, for display."""
        return {"prompt": self.prompt, "video_url": self.video_url and without_signatures(self.video_url)}

    def failure(self) -> LumaGenerationError:
        """Return the error to raise for a failed job, with the service's code and message."""
        words = self.error_message or "the service gave no reason"
        kind = LumaRequestFailedError if self.is_request_at_fault else LumaGenerationError
        return kind(self.error_code, f"{self.status.name}: {words}", luma_task_id=self.luma_task_id)


class Request(NamedTuple):
    """
    A call to make.

    :param path: the path below the service's address
    :param headers: headers to add
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None


class Response(NamedTuple):
    """
    A response as received.

    :param retry_after: seconds that the service asked to wait before the next call, if any
    :param location: the redirect target, if any
    :param headers: the headers whose names begin with ``X-``, in lower case
    """

    http_status: int
    body: bytes
    retry_after: float | None = None
    location: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ModifyRequest:
    """
    One job to submit. :meth:`.Service.check` checks it before anything is recorded or sent.

    :param prompt: how to change the video; kie.ai accepts English only
    :param video_url: address of a clip within the service's limits: a public address, ``luma-file:<id>``, or a file in
        storage, which is uploaded or gets a signed address before the submission
    :param watermark: text to put into the video, if any (kie.ai only)
    :param callback_url: public address that the service calls when the job ends, if any (kie.ai only)
    :param options: further fields of the service's own request, if any
    :param ignores_queries: whether addresses that differ only in their queries, as signed ones do, count as the same
    """

    prompt: str
    video_url: str
    watermark: str | None = None
    callback_url: str | None = field(default=None, repr=False)  # it may hold a token
    options: Mapping[str, Any] | None = None
    ignores_queries: bool = False

    def fingerprint(self, luma_conn_id: str) -> str:
        """Return a hash of what distinguishes one job from another: everything but the callback address."""
        identity = [self.prompt, self.video_url, self.watermark or None, luma_conn_id, *filter(None, [self.options])]
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256((without_queries(text) if self.ignores_queries else text).encode()).hexdigest()


@dataclass(frozen=True)
class LumaUpload:
    """
    An uploaded file.

    :param url: its public address, which anyone who knows it can read, or ``luma-file:<id>``
    :param size: its size in bytes
    :param expires_at: when the service deletes it (UTC)
    """

    url: str
    size: int
    expires_at: datetime

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, the time in ISO 8601 UTC."""
        return {"url": self.url, "size": self.size, "expires_at": self.expires_at.isoformat()}

    @classmethod
    def load(cls, stored: Any) -> LumaUpload | None:
        """Read what :meth:`as_dict` wrote; None if it is missing or malformed."""
        try:
            upload = cls(str(stored["url"]), int(stored["size"]), datetime.fromisoformat(stored["expires_at"]))
        except (KeyError, TypeError, ValueError):
            return None
        return upload if upload.expires_at.tzinfo else None

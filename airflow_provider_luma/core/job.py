# SPDX-License-Identifier: Apache-2.0
"""
The values that everything else is about: what is asked of a service, the job that it makes of it, and an uploaded file.

:class:`Request` and :class:`Response` are what crosses the wire. A service (:mod:`airflow_provider_luma.services`)
writes the one and reads the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

from airflow_provider_luma.core.redaction import without_signatures
from airflow_provider_luma.exceptions import LumaGenerationError


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


class Request(NamedTuple):
    """
    A call to make.

    :param path: below the service's address
    :param form: fields of a form; a file is added to it, and it goes to the address that takes files
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    json: Mapping[str, str] | None = None
    form: Mapping[str, str] | None = None


class Response(NamedTuple):
    """
    An answer as it came over the wire.

    :param retry_after: seconds from then on for which the service wants no other call, if it said so
    :param location: where it redirects to, if it does
    """

    http_status: int
    body: bytes
    retry_after: float | None = None
    location: str | None = None


@dataclass(frozen=True)
class ModifyRequest:
    """
    One job to submit. The service checks it before anything is recorded or sent.

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

    def fingerprint(self, luma_conn_id: str) -> str:
        """Return a hash of what distinguishes one job from another: everything but the callback address."""
        identity = json.dumps([self.prompt, self.video_url, self.watermark or None, luma_conn_id])
        return hashlib.sha256(identity.encode()).hexdigest()


@dataclass(frozen=True)
class LumaUpload:
    """
    An uploaded file.

    :param url: its public address, which only whoever knows it can read
    :param size: bytes
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
        """Read what :meth:`as_dict` wrote; None if there is nothing, or something else."""
        try:
            upload = cls(str(stored["url"]), int(stored["size"]), datetime.fromisoformat(stored["expires_at"]))
        except (KeyError, TypeError, ValueError):
            return None
        return upload if upload.expires_at.tzinfo else None

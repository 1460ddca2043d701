# SPDX-License-Identifier: Apache-2.0
"""
The service's File Upload API and its download addresses, without any I/O.

Files are uploaded to a host of their own, with the same API key (https://docs.kie.ai/file-upload-api/quickstart). The
answer to an upload comes in two shapes, and the pages disagree on whether a file is kept for 24 hours or three days, so
we count on 24 hours where the answer itself does not tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_luma.exceptions import (
    LumaError,
    LumaFeatureDisabledError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.protocol import REFUSALS, Request, Response, excerpt, read_data
from airflow_provider_luma.untrusted import read_integer, read_object, read_text, read_time

#: Where files are uploaded if the service itself, ``api.kie.ai``, is used.
DEFAULT_UPLOAD_HOST = "https://kieai.redpandaai.co"

#: The endpoint that takes a multipart form of any size.
UPLOAD_PATH = "/api/file-stream-upload"

#: The folder in the account that our files go to. The pages disagree on whether it may be left out.
UPLOAD_FOLDER = "airflow-provider-luma"

#: For how long an uploaded file is surely kept, where the answer does not say.
UPLOADS_KEPT = timedelta(hours=24)

#: Address of an uploaded file, without a user, and its characters at most: it goes into XComs and triggers.
_UPLOADED = re.compile(r"https?://[^\s/?#@\\]+[/?#][^\s\\\x00-\x1f\x7f]*")
_MAX_ADDRESS = 8192

_UPLOAD_REFUSALS: dict[int, type[LumaError]] = {
    **REFUSALS,
    400: LumaValidationError,
    405: LumaFeatureDisabledError,
    413: LumaValidationError,
}


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


def read_upload(response: Response, size: int, now: datetime) -> LumaUpload:
    """
    Return the uploaded file.

    :param size: the bytes that were sent
    :param now: the time of the answer
    :raises LumaValidationError: the service does not take this file
    :raises LumaUnavailableError: the answer names no address, or another size
    :raises LumaError: any other refusal
    """
    data = read_object(read_data(response, _UPLOAD_REFUSALS))
    url = read_text(data.get("downloadUrl")) or read_text(data.get("fileUrl"))
    if not url or len(url) > _MAX_ADDRESS or not _UPLOADED.fullmatch(url):
        raise LumaUnavailableError(None, f"the answer names no address of the uploaded file: {excerpt(response)}")
    stored = read_integer(data.get("fileSize"))
    if stored not in (None, size):
        raise LumaUnavailableError(None, f"of {size} bytes that were uploaded, the service has stored {stored}")
    return LumaUpload(url, size, _read_expiry(data.get("expiresAt")) or now + UPLOADS_KEPT)


def _read_expiry(value: object) -> datetime | None:
    """Read a time in ISO 8601, in UTC if it names no zone, or in milliseconds since the epoch."""
    try:
        expiry = datetime.fromisoformat(value) if isinstance(value, str) else None
        return (expiry.astimezone(UTC) if expiry.tzinfo else expiry.replace(tzinfo=UTC)) if expiry else read_time(value)
    except (ValueError, OverflowError):
        return read_time(value)


def download_url_request(result_url: str) -> Request:
    """Write the request for a temporary download address of a result."""
    return Request("POST", "/api/v1/common/download-url", json={"url": result_url})


def read_download_url(response: Response) -> str:
    """
    Return a temporary download address, valid for 20 minutes.

    :raises LumaError: the service refused, or the answer is no address
    """
    url = read_data(response)
    if not isinstance(url, str) or not url:
        raise LumaUnavailableError(None, f"the answer names no download address: {excerpt(response)}")
    return url

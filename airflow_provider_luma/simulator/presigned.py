# SPDX-License-Identifier: Apache-2.0
"""S3-style presigned URLs: signing, checking, and the XML of a refusal."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from .clock import Clock

_DATE_FORMAT = "%Y%m%dT%H%M%SZ"
_SIGNED_QUERY = (
    "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Security-Token",
)  # fmt: skip


class Presigner:
    """Signs URLs for one method and a limited time, and checks them. Each URL is different."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._serial = itertools.count(1)
        self._last_serial = 0
        self._last_expired = 0

    def sign(self, method: str, path: str, seconds: float, headers: Mapping[str, str] | None = None) -> str:
        """
        Return the path with the query that makes it a presigned URL.

        :param headers: headers that the request must send with these values
        """
        headers = headers or {}
        self._last_serial = next(self._serial)
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"SIMULATOR/{now:%Y%m%d}/us-east-1/s3/aws4_request",
            "X-Amz-Date": now.strftime(_DATE_FORMAT),
            "X-Amz-Expires": str(int(seconds)),
            "X-Amz-SignedHeaders": ";".join(sorted(name.lower() for name in (*headers, "host"))),
            "X-Amz-Security-Token": f"{self._last_serial:x}",
        }
        values = {name.lower(): value for name, value in headers.items()}
        query["X-Amz-Signature"] = self._signature(method, path, query, values)
        return f"{path}?{urlencode(query)}"

    def expire_all(self) -> None:
        """Expire every URL signed so far."""
        self._last_expired = self._last_serial

    def refusal(self, request: Request, max_seconds: float) -> Response | None:
        """
        Return the error response to a request; None if its URL is valid.

        :param max_seconds: URLs expire at this age, even if they were signed for longer
        """
        query = request.query_params
        if "authorization" in request.headers:
            return storage_error(400, "InvalidArgument", "Only one auth mechanism allowed.")
        if any(name not in query for name in (*_SIGNED_QUERY, "X-Amz-Signature")):
            return storage_error(403, "AccessDenied", "Access Denied")
        signed = query["X-Amz-SignedHeaders"].split(";")
        values = {name: request.headers.get(name, "") for name in signed if name != "host"}
        expected = self._signature(request.method, request.url.path, query, values)
        if not hmac.compare_digest(query["X-Amz-Signature"].encode(), expected.encode()):
            return storage_error(403, "SignatureDoesNotMatch", "The signature does not match.")
        if any(name.startswith("x-amz-") and name not in signed for name in request.headers):
            return storage_error(403, "AccessDenied", "There were headers present in the request which were not signed")
        signed_at = datetime.strptime(query["X-Amz-Date"], _DATE_FORMAT).replace(tzinfo=UTC).timestamp()
        age_limit = min(int(query["X-Amz-Expires"]), max_seconds)
        is_too_old = self._clock.time() >= signed_at + age_limit
        if int(query["X-Amz-Security-Token"], 16) <= self._last_expired or is_too_old:
            return storage_error(403, "AccessDenied", "Request has expired")
        return None

    def _signature(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
        parts = [method, path, *(f"{name}={query[name]}" for name in _SIGNED_QUERY)]
        parts += [f"{name}:{headers[name]}" for name in sorted(headers)]
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


def storage_error(status: int, code: str, message: str) -> Response:
    """Build an error response as S3 writes it."""
    content = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{uuid.uuid4().hex[:16].upper()}</RequestId>"
        "</Error>"
    )
    return Response(content, status_code=status, media_type="application/xml")

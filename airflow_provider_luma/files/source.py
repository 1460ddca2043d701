# SPDX-License-Identifier: Apache-2.0
"""
The source of a download: one file on a web server that is not trusted.

Only http(s) is followed, redirects included. For a service on the public Internet, no redirect may lead into a private
network. No message quotes the query of an address, or a password in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from airflow_provider_luma.core.addresses import is_private_host
from airflow_provider_luma.core.redaction import without_secrets
from airflow_provider_luma.core.validation import VIDEO_EXTENSIONS
from airflow_provider_luma.exceptions import LumaNotFoundError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.masking import without_debug_logs
from airflow_provider_luma.transport.adapter import Throughput, watch

CHUNK_SIZE = 1024 * 1024

_MAX_REDIRECTS = 5

#: Bytes, and the seconds that we wait for them before the server counts as stalled.
MIN_PROGRESS, PROGRESS_TIMEOUT = 100_000, 300.0

#: Seconds for which a file must be unchanged before its date identifies its version.
MIN_AGE = 60

#: Status codes for a file that does not exist (any more); object stores answer 403 for a missing file.
_GONE = frozenset({401, 403, 404, 410})


def new_throughput() -> Throughput:
    """Return the limit on how slowly a server may send."""
    return Throughput(MIN_PROGRESS, PROGRESS_TIMEOUT)


@dataclass
class FileSource:
    """
    Requests files.

    :param session: makes a session without credentials
    :param timeout: seconds without a byte after which a connection counts as broken
    :param is_public: private addresses are refused
    :param head_size: bytes to request, if the beginning of a file is enough
    """

    session: Callable[[], requests.Session]
    timeout: float
    is_public: bool
    head_size: int | None = None

    @contextmanager
    def open(self, url: str, offset: int = 0, version: str | None = None) -> Iterator[requests.Response]:
        """
        Request a file from an offset on. The response has status 200 or, with an offset, 206 or 416.

        :param version: the strong validator of the version to continue; if the file has changed, all of it is sent
        :raises LumaNotFoundError: there is no such file
        :raises LumaUnavailableError: any other response, or none
        :raises LumaValidationError: the address, or one that it redirects to, is refused
        """
        with self.session() as session:
            # requests would read the body of a redirect, of any length, into memory.
            session.resolve_redirects = lambda *_, **__: iter(())  # type: ignore[method-assign]
            with self._get(session, url, offset, version) as response:
                yield response

    def checked(self, url: str) -> str:
        """
        Return the address as requests will send it, which is the form that is checked.

        :raises LumaValidationError: it is not an http(s) address, or it is private
        """
        try:
            prepared = requests.Request("GET", url).prepare().url or ""
            parts = urlsplit(prepared)
            host = parts.hostname
        except ValueError:  # its text may quote the whole address
            raise LumaValidationError(None, f"urls: {without_secrets(url)!r} is not a valid address") from None
        if parts.scheme not in ("http", "https") or not host:
            raise LumaValidationError(
                None, f"urls: only http(s) addresses can be downloaded, not {without_secrets(url)!r}"
            )
        self._check_host(prepared, host)
        return prepared

    def _check_host(self, url: str, host: str) -> None:
        if self.is_public and is_private_host(host):
            raise LumaValidationError(
                None,
                f"urls: {without_secrets(url)} leads into a private network ({host}), which never holds Luma's results",
            )

    def _get(self, session: requests.Session, url: str, offset: int, version: str | None) -> requests.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            url = self.checked(url)
            response = self._send(session, url, offset, version)
            target = _redirect_target(session, response)
            if target is None:
                return _accepted(response, allows_part=bool(offset or self.head_size))
            response.close()
            url = target
        raise LumaUnavailableError(None, f"{without_secrets(url)}: more than {_MAX_REDIRECTS} redirects")

    def _send(self, session: requests.Session, url: str, offset: int, version: str | None) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}
        if offset or self.head_size:
            headers["Range"] = f"bytes={offset}-{self.head_size - 1 if self.head_size else ''}"
        if offset and version:
            headers["If-Range"] = version
        watch(session, new_throughput, on_connected=partial(self._check_host, url))
        try:
            with without_debug_logs():
                return session.get(url, headers=headers, timeout=self.timeout, stream=True, allow_redirects=False)
        except LumaValidationError:
            raise
        except (requests.RequestException, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, requests.exceptions.InvalidHeader):
                raise LumaValidationError(None, f"urls: {without_secrets(url)} is not a valid address") from None
            # Its text would quote the whole URL, and the query of a signed one is a credential.
            reason = f"{without_secrets(url)} did not answer ({type(error).__name__})"
            raise LumaUnavailableError(None, reason) from None


def _redirect_target(session: requests.Session, response: requests.Response) -> str | None:
    try:
        target = session.get_redirect_target(response)
        return None if target is None else urljoin(response.url, target)
    except ValueError:
        response.close()
        raise LumaValidationError(
            None, f"urls: {without_secrets(response.url)} redirects to an invalid address"
        ) from None


def _accepted(response: requests.Response, *, allows_part: bool) -> requests.Response:
    """Return a response that is a file, or says that the file is shorter now; raise an error for any other."""
    status = response.status_code
    if allows_part and status == 416:
        return response
    if status == 200 or (allows_part and status == 206):
        if _is_a_message(response):
            response.close()
            raise LumaUnavailableError(None, "the server answered with a message instead of the video")
        return response
    response.close()
    kind = LumaNotFoundError if status in _GONE else LumaUnavailableError
    raise kind(status, f"the server answered HTTP {status}")


def _is_a_message(response: requests.Response) -> bool:
    """Return whether the server sent an error page, an error as JSON, or nothing instead of a video."""
    if not url_path(response.url).lower().endswith(tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)):
        return False
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/json") or content_length(response) == 0


def chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as soon as they arrive, so that none are lost if the connection breaks."""
    if _is_encoded(response):
        raise LumaUnavailableError(None, "the server compressed the file although asked not to")
    try:
        while chunk := response.raw.read1(CHUNK_SIZE):
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise LumaUnavailableError(None, f"the connection broke: {type(error).__name__}") from None


def beginning(response: requests.Response, size: int) -> bytes:
    """Return at least ``size`` bytes of the beginning of a body, or all of a shorter one."""
    start = b""
    for chunk in chunks(response):
        start += chunk
        if len(start) >= size:
            break
    return start


def strong_validator(response: requests.Response) -> str | None:
    """
    Return what identifies this version of a file, if the server gives it: a strong ETag, or a strong date.

    Two versions written within a second may have the same date. A date is strong once that second is certainly over,
    however far the clocks differ (RFC 9110, 8.8.2.2 and 13.1.5).
    """
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    if etag is not None:
        return etag if re.fullmatch(r'"[^"\s]*"', etag) else None
    try:
        age = parsedate_to_datetime(response.headers["Date"]) - parsedate_to_datetime(modified or "")
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return modified if age.total_seconds() >= MIN_AGE else None


def content_length(response: requests.Response) -> int | None:
    """Return the length of the body, if the server gives it."""
    if response.headers.get("Transfer-Encoding") or _is_encoded(response):
        return None
    length = response.headers.get("Content-Length", "")
    # Headers are Latin-1, which has superscript digits; and Python refuses to parse thousands of digits.
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def ends_by_itself(response: requests.Response) -> bool:
    """Return whether a body that is cut off can be recognised, because its last chunk would be missing."""
    return response.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"


def _is_encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")


def url_path(url: str) -> str:
    """Return an address's path; empty if the address is invalid."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""

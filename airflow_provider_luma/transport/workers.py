# SPDX-License-Identifier: Apache-2.0
"""
HTTP in workers, with ``requests``: one session per call, with only the connection's options, and bounded in time.

See :mod:`~airflow_provider_luma.transport.options` for proxies and certificates.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from http.client import BadStatusLine, LineTooLong, RemoteDisconnected, UnknownProtocol
from importlib.metadata import version
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import requests
import urllib3

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.job import Request, Response
from airflow_provider_luma.core.redaction import MIN_KEY_LENGTH, body_without_key, without_key
from airflow_provider_luma.core.wire import plain_text, read_retry_after
from airflow_provider_luma.transport.adapter import Throughput, watch
from airflow_provider_luma.transport.options import Session, check_options, configure

T = TypeVar("T")

#: Maximum bytes read of a response. The service's own have a few thousand; a response cut off here is unreadable.
MAX_BODY_SIZE = 256 * 1024

#: Seconds within which a worker must have received a response, counted from the response's first byte.
ANSWER_TIMEOUT = 120.0

#: Minimum seconds to wait for the response to an upload: the service may store the whole file before it responds.
UPLOAD_ANSWER_TIMEOUT = 120.0

#: Sent with every request: the edge in front of the service refuses unusual user agents.
USER_AGENT = f"airflow-provider-luma/{version('airflow-provider-luma')}"

#: What older and newer versions of the HTTP library put before a reason: the repr of an object.
_HTTP_OBJECT = re.compile(r"(<[^<>]* object at 0x[0-9a-f]+>|\w*Connection(Pool)?\(host=[^()]*\))(: )?")

#: Errors that quote the malformed response, which may echo our request headers and so the API key.
_UNREADABLE = (
    BadStatusLine,
    LineTooLong,
    UnknownProtocol,
    urllib3.exceptions.HeaderParsingError,
    urllib3.exceptions.InvalidChunkLength,
)


class Form(Protocol):
    """The body of a form, in pieces."""

    @property
    def content_type(self) -> str:
        """The content type, with the boundary of the parts."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class _ApiSession(Session):
    """
    A session that sends the API key, and ignores redirects it must not follow.

    With a malformed target, the ``requests`` library would fail after the request was sent. It also logs every target
    that it follows, so a target that contains the API key is not followed.
    """

    def __init__(self, api_key: str) -> None:
        super().__init__()
        self._api_key, self.auth = api_key, self._with_key

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # requests removes the header when a redirect leads to another host.
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    def get_redirect_target(self, response: Any) -> str | None:
        """Return the redirect target of a response, if it may be followed."""
        target: str | None = super().get_redirect_target(response)
        is_leak = target is not None and len(self._api_key) >= MIN_KEY_LENGTH
        return None if is_leak and self._api_key.lower() in unquote(target or "").lower() else target

    def resolve_redirects(self, *arguments: Any, yield_requests: bool = False, **options: Any) -> Any:
        """Yield the responses of the redirects that are followed."""
        return iter(()) if yield_requests else super().resolve_redirects(*arguments, **options)


def requests_session(connection: LumaConnection) -> requests.Session:
    """
    Return a session with the connection's transport options, but without any credentials.

    :raises LumaValidationError: its certificates cannot be read on this machine
    """
    return _with_options(Session(), connection)


def api_session(connection: LumaConnection) -> requests.Session:
    """
    Return a session with the API key and the connection's transport options.

    :raises LumaValidationError: its certificates cannot be read on this machine
    """
    session = _with_options(_ApiSession(connection.api_key), connection)
    session.cert = connection.cert
    return session


def _with_options(session: requests.Session, connection: LumaConnection) -> requests.Session:
    check_options(connection)
    configure(session, connection)
    session.headers["User-Agent"] = USER_AGENT
    return session


def send(
    connection: LumaConnection,
    request: Request,
    *,
    form: Form | None = None,
    may_repeat: bool = True,
    before_send: Callable[[], None] = lambda: None,
) -> Response:
    """
    Send a request with the API key.

    Each call has its own session: a keep-alive connection that the server has since closed would needlessly make the
    outcome of a submission unknown.

    :param form: the body, if the request is a form; it goes to the connection's upload host
    :param may_repeat: whether redirects are followed, if the connection allows that: they may deliver a request twice
    :param before_send: called on the open connection, just before anything is sent; if it raises, the call ends
    :raises OSError: there was no response; the error does not show whether the request was sent
    :raises ValueError: an address is malformed, perhaps that of a redirect
    :raises LumaValidationError: the connection's certificates cannot be read on this machine
    """
    answer_timeout = connection.timeout if form is None else max(connection.timeout, UPLOAD_ANSWER_TIMEOUT)
    with api_session(connection) as session:
        # Opening a connection can take half a minute, and by then the request may no longer be wanted.
        watch(session, partial(Throughput, math.inf, ANSWER_TIMEOUT), before_send=before_send)
        response = session.request(
            request.method,
            (connection.base_url if form is None else connection.upload_url) + request.path,
            params=request.query,
            json=request.json,
            data=form,
            headers={**(request.headers or {}), **({"Content-Type": form.content_type} if form is not None else {})},
            timeout=(connection.timeout, answer_timeout),
            allow_redirects=connection.allow_redirects and may_repeat,
            stream=True,
        )
        return to_response(connection, response.status_code, read_body(response), response.headers)


def within(seconds: float, call: Callable[[], T]) -> T:
    """
    Return what a call returns, within a time limit. Read timeouts never end a call if bytes keep trickling in.

    :raises TimeoutError: the call took too long; it is left running in its thread
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def read_body(response: requests.Response) -> bytes:
    """Read the body of a streamed response, up to :data:`MAX_BODY_SIZE`."""
    body = bytearray()
    for chunk in response.iter_content(65536):
        body += chunk
        if len(body) >= MAX_BODY_SIZE:
            break
    return bytes(body[:MAX_BODY_SIZE])


def to_response(connection: LumaConnection, status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    """Return the parts of an HTTP response that a service reads, without the API key, in case it was echoed."""
    location = headers.get("Location")
    return Response(
        status,
        body_without_key(body, connection.api_key),
        read_retry_after(headers.get("Retry-After"), datetime.now(UTC)),
        location and without_key(location, connection.api_key),
        {
            name.lower(): plain_text(without_key(value, connection.api_key))
            for name, value in headers.items()
            if name.lower().startswith("x-")
        },
    )


def reason_of(error: Exception, connection: LumaConnection) -> str:
    """
    Return the root cause of an error as text, without object addresses or the API key.

    :param connection: the connection over which the call was made
    """
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    if isinstance(cause, urllib3.exceptions.ProtocolError) and len(cause.args) > 1:
        cause = cause.args[1]
    if isinstance(cause, _UNREADABLE) and not isinstance(cause, RemoteDisconnected):
        return "the response is not HTTP"
    text = _HTTP_OBJECT.sub("", str(cause)) or type(error).__name__
    return without_key(text, connection.api_key)

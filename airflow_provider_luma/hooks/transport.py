# SPDX-License-Identifier: Apache-2.0
"""
HTTP transport: the sessions of workers, and what the answers and errors of requests and aiohttp mean.

requests serves the workers, aiohttp the triggerer. Both are given exactly what
:class:`~airflow_provider_luma.connection.LumaConnection` lists; see :mod:`~airflow_provider_luma.hooks.options`.
"""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http.client import BadStatusLine, HTTPResponse, LineTooLong, RemoteDisconnected, UnknownProtocol
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import unquote

import requests
import urllib3
from requests.adapters import HTTPAdapter

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.hooks.options import Session, check_options, configure
from airflow_provider_luma.protocol import Response

T = TypeVar("T")

#: Bytes of an answer that are read; the service's own are a few thousand. What is cut off here is no readable answer.
MAX_BODY_SIZE = 256 * 1024

#: Seconds in which an answer to a worker must have arrived, from its first byte on.
ANSWER_TIMEOUT = 120.0

#: Characters of an API key below which it is not looked for in answers: it could be a word in them. Real ones have 32.
MIN_KEY_LENGTH = 8

#: Sent with every request: the edge in front of the service refuses unusual user agents.
USER_AGENT = f"airflow-provider-luma/{version('airflow-provider-luma')}"

#: Levels of JSON escapes undone when looking for the key: the service nests JSON documents in JSON strings.
MAX_NESTED_ESCAPES = 5

#: A JSON escape sequence.
_JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
#: What the HTTP library puts before a reason: an object, as its older and newer versions show it.
_HTTP_OBJECT = re.compile(r"(<[^<>]* object at 0x[0-9a-f]+>|\w*Connection(Pool)?\(host=[^()]*\))(: )?")

#: Errors that quote the malformed response, which may echo our request headers and so the API key.
_UNREADABLE = (
    BadStatusLine,
    LineTooLong,
    UnknownProtocol,
    urllib3.exceptions.HeaderParsingError,
    urllib3.exceptions.InvalidChunkLength,
)


class _ApiSession(Session):
    """
    A session that does not look at a redirect which it is not to follow.

    requests would fail on a malformed target after the request was sent. It also logs every target it follows, so one
    that contains the API key is not followed.
    """

    api_key = ""

    def get_redirect_target(self, response: Any) -> str | None:
        """Return where an answer leads."""
        target: str | None = super().get_redirect_target(response)
        is_leak = target is not None and len(self.api_key) >= MIN_KEY_LENGTH
        return None if is_leak and self.api_key.lower() in unquote(target or "").lower() else target

    def resolve_redirects(self, *arguments: Any, yield_requests: bool = False, **options: Any) -> Any:
        """Yield the answers of the redirects that are followed."""
        return iter(()) if yield_requests else super().resolve_redirects(*arguments, **options)


class BearerAuth(requests.auth.AuthBase):
    """
    Adds the API key to a request; requests removes it when a redirect leads to another host.

    :param api_key: the key
    """

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _Reader(io.RawIOBase):
    """Reads an answer, unless it takes too long. In one that drips each byte is in time for the socket's timeout."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._deadline = raw, math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the answer does not come to an end")
        count = self._raw.readinto(buffer)
        self._deadline = min(self._deadline, time.monotonic() + ANSWER_TIMEOUT)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp = io.BufferedReader(_Reader(self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        # urllib3 logs malformed header lines, which may echo our request headers and so the API key.
        self.msg.defects.clear()
        self.msg.set_payload("")


class _CheckedAdapter(HTTPAdapter):
    """Calls ``check`` on each open connection, just before a request is sent; reads no answer for ever."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self._check_pools_of(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        self._check_pools_of(manager)
        return manager

    def _check_pools_of(self, manager: Any) -> None:
        pools = manager.pool_classes_by_scheme  # a SOCKS proxy has pools of its own
        manager.pool_classes_by_scheme = {scheme: _checked_pool(pool, self._check) for scheme, pool in pools.items()}


def _checked_pool(pool: Any, check: Callable[[], None]) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        response_class = _Answer

        def endheaders(self, *arguments: Any, **options: Any) -> None:
            # Called once for a request, and not for the CONNECT that opens a tunnel through a proxy.
            if self.sock is None:
                self.connect()
            check()
            super().endheaders(*arguments, **options)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


def check_before_send(session: requests.Session, check: Callable[[], None]) -> None:
    """
    Have a session call ``check`` on each open connection, just before a request is sent, and read no answer for ever.

    Opening a connection can take half a minute, in which the reason for the request may have gone.
    """
    for prefix in ("https://", "http://"):
        session.mount(prefix, _CheckedAdapter(check))


def requests_session(connection: LumaConnection) -> requests.Session:
    """
    Return a session with the connection's transport options, and without any credentials.

    :raises LumaValidationError: its certificates cannot be read on this machine
    """
    return _with_options(Session(), connection)


def api_session(connection: LumaConnection) -> requests.Session:
    """
    Return a session that carries the API key beside the connection's transport options.

    :raises LumaValidationError: its certificates cannot be read on this machine
    """
    session = _ApiSession()
    session.auth, session.api_key = BearerAuth(connection.api_key), connection.api_key
    _with_options(session, connection)
    session.cert = connection.cert
    return session


def _with_options(session: requests.Session, connection: LumaConnection) -> requests.Session:
    check_options(connection)
    configure(session, connection)
    session.headers["User-Agent"] = USER_AGENT
    return session


def within(seconds: float, call: Callable[[], T]) -> T:
    """
    Return what a call returns. A server that drips is always about to answer: no timeout of a read ends that.

    :raises TimeoutError: it has taken too long, and is left to itself
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
    """Read the body of a streamed answer, up to :data:`MAX_BODY_SIZE`."""
    body = bytearray()
    for chunk in response.iter_content(65536):
        body += chunk
        if len(body) >= MAX_BODY_SIZE:
            break
    return bytes(body[:MAX_BODY_SIZE])


def to_response(connection: LumaConnection, status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    """Return what the protocol reads of an HTTP answer, without the API key, should the service repeat it."""
    location = headers.get("Location")
    return Response(
        status,
        _without_key_in_body(body, connection.api_key),
        headers.get("Retry-After"),
        location and without_key(location, connection),
    )


def without_key(text: str, connection: LumaConnection) -> str:
    """Return a text without the API key, should it repeat that, in whatever case: hosts are written in lower case."""
    key = connection.api_key
    return re.sub(re.escape(key), "***", text, flags=re.IGNORECASE) if len(key) >= MIN_KEY_LENGTH else text


def _without_key_in_body(body: bytes, key: str) -> bytes:
    """Return a body without the API key; nothing of one that repeats it with escapes, or not in UTF-8."""
    if len(key) < MIN_KEY_LENGTH:
        return body
    body = body.replace(key.encode(), b"***")
    if b"\\" not in body and b"\0" not in body:
        return body
    text = body.replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16 and UTF-32, wherever they begin
    for _ in range(MAX_NESTED_ESCAPES):
        if key.lower() in text.lower():
            return b"an answer that repeats the API key"
        text = _JSON_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else escape[2], text)
    return body


def reason_of(error: Exception, connection: LumaConnection) -> str:
    """
    Return what happened, without the layers around it, the addresses of objects, and the API key.

    :param connection: over which the call was made
    """
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    if isinstance(cause, urllib3.exceptions.ProtocolError) and len(cause.args) > 1:
        cause = cause.args[1]
    if isinstance(cause, _UNREADABLE) and not isinstance(cause, RemoteDisconnected):
        return "the answer is not HTTP"
    text = _HTTP_OBJECT.sub("", str(cause)) or type(error).__name__
    return without_key(text, connection)

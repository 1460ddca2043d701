# SPDX-License-Identifier: Apache-2.0
"""Hook that calls Luma from the triggerer's event loop, over kept connections that all status checks share."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import tenacity
from airflow.providers.http.hooks.http import HttpAsyncHook

from airflow_provider_luma.compat import AirflowNotFoundException, get_async_connection
from airflow_provider_luma.connection import LumaConnection, missing_connection
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.job import LumaTask, Request, Response
from airflow_provider_luma.core.poll_state import PollAgain, PollOutcome, PollState
from airflow_provider_luma.core.rate_limit import MAX_UNANSWERED
from airflow_provider_luma.core.redaction import without_key
from airflow_provider_luma.exceptions import LumaAuthError, LumaNotFoundError, LumaUnavailableError
from airflow_provider_luma.hooks.base import POLL_ERRORS, LumaHookBase
from airflow_provider_luma.services import kie
from airflow_provider_luma.transport.options import Certificates, triggerer_certificates, triggerer_proxy_of
from airflow_provider_luma.transport.workers import MAX_BODY_SIZE, USER_AGENT, to_response

if TYPE_CHECKING:
    from airflow.providers.http.hooks.http import SessionConfig

#: Seconds after which the connection is read again.
CONNECTION_TTL = 60.0

#: Seconds for which a status check waits for the connection to be read: a job's deadline counts all the same.
READING_TIMEOUT = 30.0

#: Bytes of an answer above which it is read in a thread: all triggers share the event loop.
LONG_BODY = 16 * 1024


@dataclass(frozen=True)
class _Opened:
    """A connection, and what has been opened for it."""

    connection: LumaConnection
    certificates: Certificates
    session: aiohttp.ClientSession
    proxy: str | None


class LumaAsyncHook(LumaHookBase, HttpAsyncHook):
    """
    Call Luma from the triggerer's event loop.

    Used as ``async with LumaAsyncHook(...) as hook``, all calls share one kept connection, opened by the first.
    Without that, close the hook with :meth:`close` when done.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    def __init__(self, luma_conn_id: str = LumaHookBase.default_conn_name) -> None:
        super().__init__(luma_conn_id)
        self._opened: _Opened | None = None
        #: Sessions that were replaced, and when the last request over each has ended.
        self._retired: list[tuple[aiohttp.ClientSession, float]] = []
        self._reading: asyncio.Task[_Opened] | None = None
        #: When the last reading of the connection began.
        self._read_at = -math.inf

    async def __aenter__(self) -> LumaAsyncHook:
        """Return the hook; its session is opened by the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the session."""
        await self.close()

    async def close(self) -> None:
        """Close the session; a later call opens a new one."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._retire()
        await self._close_retired(math.inf)

    async def get_luma_connection(self) -> LumaConnection:
        """
        Read the connection.

        :raises AirflowNotFoundException: there is no such connection
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: it names no usable address
        """
        try:
            # Also read to its end if the trigger is cancelled: on Airflow 3.1 the answer would be left to whoever asks
            # Airflow next, and from then on no trigger of this triggerer would get its own.
            connection = await asyncio.shield(get_async_connection(self.luma_conn_id))
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from None
        return LumaConnection.of(connection)

    async def config(self) -> SessionConfig:
        """Return what the HTTP provider's own ``session`` uses: address, API key, proxy and certificates."""
        from airflow.providers.http.hooks.http import SessionConfig  # from 6.0.1 on, as is what calls this

        connection = await self.get_luma_connection()
        return SessionConfig(
            base_url=connection.base_url,
            headers=_authorization(connection),
            extra_options=await _transport_options(connection),
        )

    async def run(
        self,
        session: aiohttp.ClientSession | None = None,
        endpoint: str | None = None,
        data: dict[str, Any] | str | None = None,
        json: dict[str, Any] | str | None = None,
        headers: dict[str, Any] | None = None,
        extra_options: dict[str, Any] | None = None,
    ) -> aiohttp.ClientResponse:
        """
        Send a request, as the HTTP provider's hook does, with the API key and nothing of the connection's extra.

        See :class:`~airflow.providers.http.hooks.http.HttpAsyncHook` for the parameters.
        """
        if session is None:
            async with aiohttp.ClientSession() as session:
                return await self.run(session, endpoint, data, json, headers, extra_options)
        connection = await self.get_luma_connection()
        # One without a connection: what the provider does with a connection differs between its releases.
        hook = HttpAsyncHook(self.method, "", retry_limit=self.retry_limit, retry_delay=self.retry_delay)
        hook.base_url = connection.base_url
        headers = {**_authorization(connection), **(headers or {})}
        options = {**await _transport_options(connection), **(extra_options or {})}
        return await hook.run(session, endpoint, data, json, headers, options)

    async def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        options = backoff.retry_options(backoff.READ_RETRY_TIMEOUT)
        return await tenacity.AsyncRetrying(**options)(self._get_status, luma_task_id)

    async def poll(self, state: PollState) -> PollOutcome:
        """
        Check the status of a job once, and log what is worth a line.

        It sends one request at most. If the key was refused and has since been replaced, the next check uses the new
        one.
        """
        result: LumaTask | Exception
        try:
            opened = await self._get_opened()
        except Exception as error:
            return self.on_unreadable(state, error)
        try:
            result = await self._get_status(state.luma_task_id, opened)
        except (LumaAuthError, LumaNotFoundError) as error:
            # The key, or the whole account, may have been replaced during the wait.
            try:
                current = await self._read_again()
            except Exception as unreadable:
                return self.on_unreadable(state, unreadable)
            if current.connection != opened.connection and not state.is_replacement_refused:
                state.is_replacement_refused = True
                return PollAgain(0.0)
            result = error
        except POLL_ERRORS as error:
            result = error
        return self._take(state, result, opened.connection)

    def on_unreadable(self, state: PollState, error: Exception) -> PollOutcome:
        """Log that the connection cannot be read, and return what that means for the wait for a job."""
        return self._take(state, self._unreadable_connection(error))

    async def get_requests_per_second(self) -> float:
        """
        Return how many status checks a second the connection allows.

        The next :meth:`poll` then sends its request without reading the connection first.

        :raises Exception: the connection cannot be read now
        """
        return (await self._get_opened()).connection.requests_per_second

    async def _get_status(self, luma_task_id: str, opened: _Opened | None = None) -> LumaTask:
        response = await self._send(kie.task_request(luma_task_id), opened or await self._get_opened())
        if len(response.body) > LONG_BODY:
            return await asyncio.to_thread(kie.read_task, response, luma_task_id)
        return kie.read_task(response, luma_task_id)

    async def _send(self, request: Request, opened: _Opened) -> Response:
        connection = opened.connection
        try:
            async with opened.session.request(
                request.method,
                connection.base_url + request.path,
                params=request.query,
                json=request.json,
                allow_redirects=connection.allow_redirects,
                max_redirects=connection.max_redirects,
                proxy=opened.proxy,
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    if len(body) >= MAX_BODY_SIZE:
                        break
                answer = connection, response.status, bytes(body[:MAX_BODY_SIZE]), response.headers
                is_long = len(body) > LONG_BODY
                return await asyncio.to_thread(to_response, *answer) if is_long else to_response(*answer)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # the last of an address that is none
            reason = _reason_of(error, connection)
            raise LumaUnavailableError(None, f"{connection.base_url} did not answer: {reason}") from None

    async def _get_opened(self) -> _Opened:
        """Return the open connection; read it again after a minute, while the old one is still used."""
        if self._opened is None:
            return await self._read()
        if time.monotonic() - self._read_at >= CONNECTION_TTL:
            self._start_reading()
        return self._opened

    async def _read_again(self) -> _Opened:
        """Read the connection as it is now; concurrent callers share one reading."""
        now, opened = time.monotonic(), await self._read()
        while self._read_at < now:  # the reading had begun earlier, and may be outdated
            opened = await self._read()
        return opened

    async def _read(self) -> _Opened:
        timeout = asyncio.timeout(READING_TIMEOUT)
        try:
            async with timeout:
                # Shielded, since other triggers may wait for it as well.
                return await asyncio.shield(self._start_reading())
        except TimeoutError:
            if not timeout.expired():
                raise
            raise TimeoutError(f"no answer after {READING_TIMEOUT:g} s") from None

    def _start_reading(self) -> asyncio.Task[_Opened]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._reopen())
            # Retrieve the error: nobody does while the old connection is still in use.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        return self._reading

    async def _reopen(self) -> _Opened:
        """
        Read the connection, and open it if it, or a file of certificates, has changed.

        If that fails, the one that was read before is kept.
        """
        self._read_at = time.monotonic()
        connection = await self.get_luma_connection()
        certificates = await asyncio.to_thread(Certificates.of, connection)
        if self._opened is None or (self._opened.connection, self._opened.certificates) != (connection, certificates):
            opened = await self._open(connection, certificates)
            self._retire()
            self._opened = opened
            await self._close_retired(time.monotonic())
            return opened
        return self._opened

    def _retire(self) -> None:
        """Use the session for no new call; other status checks may still be waiting for their answers on it."""
        if self._opened is not None:
            self._retired.append((self._opened.session, time.monotonic() + self._opened.connection.timeout))
        self._opened = None

    async def _close_retired(self, now: float) -> None:
        """Close the sessions that no request uses any more: in a triggerer that runs for weeks there may be many."""
        unused = [session for session, unused_at in self._retired if unused_at <= now]
        for session in unused:
            await session.close()
        self._retired = [retired for retired in self._retired if retired[0] not in unused]

    async def _open(self, connection: LumaConnection, certificates: Certificates) -> _Opened:
        proxy, context = triggerer_proxy_of(connection), await asyncio.to_thread(triggerer_certificates, connection)
        # Not trust_env: that would also read a .netrc, whose entries aiohttp cannot combine with the key.
        session = aiohttp.ClientSession(
            headers={**_authorization(connection), "User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=connection.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # the service uses no cookies
            connector=aiohttp.TCPConnector(
                ssl=context,
                # The rate limiter bounds requests. One that waited here for a socket would use up its own timeout.
                limit=max(MAX_UNANSWERED, math.ceil(connection.requests_per_second)),
            ),
        )
        return _Opened(connection, certificates, session, proxy)


def _authorization(connection: LumaConnection) -> dict[str, str]:
    return {"Authorization": f"Bearer {connection.api_key}"}


async def _transport_options(connection: LumaConnection) -> dict[str, Any]:
    """Return aiohttp's arguments for the connection's proxy and certificates."""
    return {
        "proxy": triggerer_proxy_of(connection),
        "ssl": await asyncio.to_thread(triggerer_certificates, connection),
    }


def _reason_of(error: Exception, connection: LumaConnection) -> str:
    if isinstance(error, aiohttp.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers HTTP {error.status}"
    # These quote the malformed response, which may echo our request headers and so the API key.
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return "the answer is not HTTP, or is cut off"
    return without_key(str(error) or type(error).__name__, connection.api_key)

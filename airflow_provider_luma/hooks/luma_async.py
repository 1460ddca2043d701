# SPDX-License-Identifier: Apache-2.0
"""Hook that calls Luma from the triggerer's event loop, over kept connections that all status checks share."""

from __future__ import annotations

import asyncio
import math
import time

import aiohttp
import tenacity
from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.providers.http.hooks.http import HttpAsyncHook, SessionConfig

from airflow_provider_luma import backoff, protocol
from airflow_provider_luma.connection import DEFAULT_REQUESTS_PER_SECOND, LumaConnection, missing_connection
from airflow_provider_luma.exceptions import LumaAuthError, LumaNotFoundError, LumaUnavailableError
from airflow_provider_luma.hooks.base import POLL_ERRORS, LumaHookBase
from airflow_provider_luma.hooks.transport import (
    MAX_BODY_SIZE,
    USER_AGENT,
    proxy_of,
    ssl_context,
    to_response,
    without_key,
)
from airflow_provider_luma.polling.rate_limiter import MAX_UNANSWERED
from airflow_provider_luma.polling.state import PollOutcome, PollState
from airflow_provider_luma.protocol import LumaTask

#: Seconds after which the connection is read again.
CONNECTION_TTL = 60.0

#: Bytes of an answer above which it is read in a thread: all triggers share the event loop.
LONG_BODY = 16 * 1024


class LumaAsyncHook(LumaHookBase, HttpAsyncHook):
    """
    Call Luma from the triggerer's event loop.

    Used as ``async with LumaAsyncHook(...) as hook``, all calls share one kept connection, opened by the first.
    Without that, close the hook with :meth:`close` when done.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    def __init__(self, luma_conn_id: str = LumaHookBase.default_conn_name) -> None:
        super().__init__(luma_conn_id)
        self._connection: LumaConnection | None = None
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []
        self._opening = asyncio.Lock()
        self._read_at = 0.0
        self._proxy: str | None = None

    async def __aenter__(self) -> LumaAsyncHook:
        """Return the hook; its session is opened by the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the session."""
        await self.close()

    async def close(self) -> None:
        """Close the session; a later call opens a new one."""
        self._retire_session()
        while self._retired:
            await self._retired.pop().close()

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
        except AirflowNotFoundException as error:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from error
        return LumaConnection.of(connection)

    async def config(self) -> SessionConfig:
        """Return what the HTTP provider's own ``run`` sends: the API key, and nothing of the connection's extra."""
        connection = await self.get_luma_connection()
        return SessionConfig(base_url=connection.base_url, headers={"Authorization": f"Bearer {connection.api_key}"})

    async def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        options = backoff.retry_options(backoff.READ_RETRY_TIMEOUT)
        return await tenacity.AsyncRetrying(**options)(self._get_status, luma_task_id)

    async def poll(self, state: PollState) -> PollOutcome:
        """Check the status of a job once, and log what is worth a line."""
        result: LumaTask | Exception
        try:
            await self._opened()
        except Exception as error:
            return self._take(state, self._unreadable_connection(error))
        try:
            result = await self._get_status_with_current_key(state.luma_task_id)
        except POLL_ERRORS as error:
            result = error
        return self._take(state, result, self._connection)

    async def get_requests_per_second(self) -> float:
        """Return how many status checks a second the connection allows; the default if it cannot be read now."""
        try:
            connection, _ = await self._opened()
        except Exception:
            return DEFAULT_REQUESTS_PER_SECOND  # every status check reports the error itself
        return connection.requests_per_second

    async def _get_status_with_current_key(self, luma_task_id: str) -> LumaTask:
        used = self._connection
        try:
            return await self._get_status(luma_task_id)
        except (LumaAuthError, LumaNotFoundError):
            # The key, or the whole account, may have been replaced during the wait.
            used = used or self._connection
            try:
                is_unchanged = await self.get_luma_connection() == used
                if not is_unchanged and self._connection is used:
                    self._retire_session()
                await self._opened()  # reads it once more, and that can fail, too
            except Exception as error:
                raise self._unreadable_connection(error) from error
            if is_unchanged:
                raise
            return await self._get_status(luma_task_id)

    def _retire_session(self) -> None:
        """Use the session for no new call; other status checks may still be waiting for their answers on it."""
        if self._session is not None:
            self._retired.append(self._session)
        self._session = None

    async def _get_status(self, luma_task_id: str) -> LumaTask:
        response = await self._send(protocol.task_request(luma_task_id))
        if len(response.body) > LONG_BODY:
            return await asyncio.to_thread(protocol.read_task, response, luma_task_id)
        return protocol.read_task(response, luma_task_id)

    async def _send(self, request: protocol.Request) -> protocol.Response:
        connection, session = await self._opened()
        try:
            async with session.request(
                request.method,
                connection.base_url + request.path,
                params=request.query,
                json=request.json,
                allow_redirects=connection.allow_redirects,
                max_redirects=connection.max_redirects,
                proxy=self._proxy,
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

    async def _opened(self) -> tuple[LumaConnection, aiohttp.ClientSession]:
        connection, session = self._connection, self._session
        if connection is not None and session is not None and time.monotonic() - self._read_at < CONNECTION_TTL:
            return connection, session
        async with self._opening:
            connection, session = self._connection, self._session
            if connection is None or session is None or time.monotonic() - self._read_at >= CONNECTION_TTL:
                connection = await self._reload()
            if connection != self._connection or session is None:
                self._retire_session()
                session = self._session = await self._open(connection)
                self._connection = connection
            return connection, session

    async def _reload(self) -> LumaConnection:
        """Read the connection; if that fails, keep using the one that was read before."""
        try:
            connection = await self.get_luma_connection()
        except Exception:
            if self._connection is None or self._session is None:
                raise
            connection = self._connection
        self._read_at = time.monotonic()
        return connection

    async def _open(self, connection: LumaConnection) -> aiohttp.ClientSession:
        self._proxy = proxy_of(connection)
        # Not trust_env: that would also read a .netrc, whose entries aiohttp cannot combine with the key.
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {connection.api_key}", "User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=connection.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # the service uses no cookies
            connector=aiohttp.TCPConnector(
                ssl=await asyncio.to_thread(ssl_context, connection),
                # The rate limiter bounds them. A request that waits here has been permitted, and its timeout runs.
                limit=max(MAX_UNANSWERED, math.ceil(connection.requests_per_second)),
            ),
        )


def _reason_of(error: Exception, connection: LumaConnection) -> str:
    if isinstance(error, aiohttp.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers HTTP {error.status}"
    # These quote the malformed response, which may echo our request headers and so the API key.
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return "the answer is not HTTP, or is cut off"
    return without_key(str(error) or type(error).__name__, connection)

# SPDX-License-Identifier: Apache-2.0
"""
The client that the triggerer uses to call the service.

This is a separate module because it imports aiohttp, which workers do not need: the import would cost each task a fifth
of a second of processor time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import tenacity

from airflow_provider_luma.client import POLL_ERRORS, check_service, take_status, unanswered
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.job import LumaTask
from airflow_provider_luma.core.poll_state import PollAgain, PollOutcome, PollState
from airflow_provider_luma.exceptions import LumaAuthError, LumaNotFoundError
from airflow_provider_luma.transport import triggerer
from airflow_provider_luma.transport.options import Certificates

if TYPE_CHECKING:
    import aiohttp
    from airflow.sdk.types import Logger

#: Seconds after which the triggerer reads a connection again.
CONNECTION_TTL = 60.0

#: Seconds for which a status check waits for the connection to be read, because a job's deadline keeps running.
READING_TIMEOUT = 30.0


class LumaAsyncClient:
    """
    A client of the service for the triggerer's event loop, with keep-alive connections that all status checks share.

    :param read: reads the current connection
    :param log: where progress is logged
    """

    def __init__(self, read: Callable[[], Awaitable[LumaConnection]], log: Logger) -> None:
        self._read_connection, self._log = read, log
        self._opened: triggerer.OpenConnection | None = None
        #: Replaced sessions, and when the last request over each will have ended.
        self._retired: list[tuple[aiohttp.ClientSession, float]] = []
        self._reading: asyncio.Task[triggerer.OpenConnection] | None = None
        #: When the connection was last read: the start of that read.
        self._read_at = -math.inf

    async def close(self) -> None:
        """Close the session; a later call opens a new one."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._retire()
        await self._close_retired(math.inf)

    async def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are retried for at most a minute.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """

        async def get_status() -> LumaTask:
            return await self._get_status(luma_task_id, await self._get_opened())

        return await tenacity.AsyncRetrying(**backoff.retry_options(backoff.READ_RETRY_TIMEOUT))(get_status)

    async def poll(self, state: PollState) -> PollOutcome:
        """
        Check the status of a job once, and log any progress.

        It sends at most one request. If the key was refused and has since been replaced, the next check uses the new
        one.
        """
        result: LumaTask | Exception
        try:
            opened = await self._get_opened()
        except Exception as error:
            return self.on_unreadable(state, error)
        try:
            check_service(opened.connection, state)
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
        return take_status(state, result, self._log, connection=opened.connection, can_be_called_back=True)

    def on_unreadable(self, state: PollState, error: Exception) -> PollOutcome:
        """Log that the connection cannot be read, and return the outcome for a waiting job."""
        return take_status(state, error, self._log)

    async def get_requests_per_second(self) -> float:
        """
        Return how many status checks per second the connection allows.

        The next :meth:`poll` then sends its request without reading the connection first.

        :raises Exception: the connection cannot be read
        """
        return (await self._get_opened()).connection.requests_per_second

    async def _get_status(self, luma_task_id: str, opened: triggerer.OpenConnection) -> LumaTask:
        service = opened.connection.service
        try:
            response = await opened.send(service.status(luma_task_id))
        except triggerer.FAILURES as error:
            raise unanswered(opened.connection, triggerer.reason_of(error, opened.connection)) from None
        if len(response.body) > triggerer.LONG_BODY:
            return await asyncio.to_thread(service.read_status, response, luma_task_id)
        return service.read_status(response, luma_task_id)

    # -- the connection as it is now ----------------------------------------------------------------------------

    async def _get_opened(self) -> triggerer.OpenConnection:
        """Return the open connection; after a minute, read it again in the background."""
        if self._opened is None:
            return await self._read()
        if time.monotonic() - self._read_at >= CONNECTION_TTL:
            self._start_reading()
        return self._opened

    async def _read_again(self) -> triggerer.OpenConnection:
        """Read the current connection; concurrent callers share one read."""
        now, opened = time.monotonic(), await self._read()
        while self._read_at < now:  # that read had started earlier, and may be outdated
            opened = await self._read()
        return opened

    async def _read(self) -> triggerer.OpenConnection:
        timeout = asyncio.timeout(READING_TIMEOUT)
        try:
            async with timeout:
                # Shielded, because other triggers may be waiting for the same read.
                return await asyncio.shield(self._start_reading())
        except TimeoutError:
            if not timeout.expired():
                raise
            raise TimeoutError(f"no response after {READING_TIMEOUT:g} s") from None

    def _start_reading(self) -> asyncio.Task[triggerer.OpenConnection]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._reopen())
            # Retrieve the error: nobody awaits it while the old connection is still in use.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        return self._reading

    async def _reopen(self) -> triggerer.OpenConnection:
        """
        Read the connection, and reopen it if the connection or a certificate file has changed.

        If that fails, the previous one is kept.
        """
        self._read_at = time.monotonic()
        connection = await self._read_connection()
        certificates = await asyncio.to_thread(Certificates.of, connection)
        if self._opened is None or (self._opened.connection, self._opened.certificates) != (connection, certificates):
            opened = await triggerer.OpenConnection.open(connection, certificates)
            self._retire()
            self._opened = opened
            await self._close_retired(time.monotonic())
            return opened
        return self._opened

    def _retire(self) -> None:
        """Stop using the session for new calls; other status checks may still be waiting for responses on it."""
        if self._opened is not None:
            self._retired.append((self._opened.session, time.monotonic() + self._opened.connection.timeout))
        self._opened = None

    async def _close_retired(self, now: float) -> None:
        """Close sessions that no request uses any more: a triggerer that runs for weeks may collect many."""
        unused = [session for session, unused_at in self._retired if unused_at <= now]
        for session in unused:
            await session.close()
        self._retired = [retired for retired in self._retired if retired[0] not in unused]

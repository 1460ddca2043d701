# SPDX-License-Identifier: Apache-2.0
"""
Clients of the service: :class:`LumaClient` for workers, :class:`LumaAsyncClient` for the triggerer.

Two kinds of call are told apart. *Reading* is safe to repeat, and a transient error is waited out. *Submitting* costs
money: it is repeated only where the service surely accepted nothing.

A :class:`LumaClient` is bound to one snapshot of a connection: key, checks and requests of an attempt to submit belong
together. What lasts reads the connection anew, so that a key that is replaced meanwhile is seen: the waits and the
retries in a worker by making another client, the triggerer's by :class:`LumaAsyncClient` itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import tenacity
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.log import mask_secret

from airflow_provider_luma import metrics
from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import backoff, callback_token
from airflow_provider_luma.core.job import LumaTask, LumaUpload, ModifyRequest, Request, Response
from airflow_provider_luma.core.poll_state import Failed, Finished, PollAgain, PollOutcome, PollState
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaNotFoundError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.transport import triggerer, workers
from airflow_provider_luma.transport.options import Certificates, check_options, triggerer_proxy_of

if TYPE_CHECKING:
    from uuid import UUID

    import aiohttp
    from airflow.sdk.types import Logger

T = TypeVar("T")

#: Seconds for what is not to hold a submission up: without a byte, and all in all.
QUICK_TIMEOUT, QUICK_DEADLINE = 5.0, 15.0

#: Seconds after which the triggerer reads a connection again.
CONNECTION_TTL = 60.0

#: Seconds for which a status check waits for the connection to be read: a job's deadline counts all the same.
READING_TIMEOUT = 30.0

#: What may come in place of a job's status: an error of the service, or of reading the connection.
POLL_ERRORS = (LumaError, AirflowException, AirflowRuntimeError)


# -- workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LumaClient:
    """
    The service, as one snapshot of a connection leads to it.

    :param connection: the snapshot
    :param log: where progress is told
    """

    connection: LumaConnection
    log: Logger

    # -- submitting ---------------------------------------------------------------------------------------------

    def check_request(self, request: ModifyRequest, *, expects_callback: bool = False) -> None:
        """
        Refuse a request that is sure to be refused, before anything is sent or recorded.

        :param expects_callback: whether the job will be given a callback address of Airflow's
        :raises LumaValidationError: names the parameter, or the field of the connection, and the remedy
        """
        check_options(self.connection)
        self.connection.service.check(request, is_public=self.connection.is_public)
        if expects_callback and (problem := self.connection.callback_problem):
            raise LumaValidationError(None, f"connection {self.connection.conn_id!r}: {problem}")

    def check_wait_in_triggerer(self) -> None:
        """
        Refuse what works here, and does not in the triggerer, before a job is paid for that is waited for there.

        :raises LumaValidationError: names the remedy
        """
        triggerer_proxy_of(self.connection)

    def callback_url(self, reference: str, task_instance_id: UUID | None = None) -> str | None:
        """
        Return the address of Airflow that the service is to call when a job has ended; None if it is polled.

        :param reference: a name for the submission that nobody can guess
        :param task_instance_id: the try that submits; with it a callback costs less
        """
        url = callback_token.callback_url(self.connection, self.connection.conn_id, reference, task_instance_id)
        if url is not None:
            mask_secret(callback_token.token_of(url))
        return url

    def submit(self, request: ModifyRequest, *, before_send: Callable[[], None] = lambda: None) -> str:
        """
        Submit a job in one single attempt. It costs credits, and cannot be cancelled.

        :param before_send: called on the open connection, just before anything is sent; what it raises ends the attempt
        :returns: the job's id at Luma
        :raises LumaSubmissionUnknownError: sent, but the answer was lost: the job may run, and be billed
        :raises LumaError: surely nothing was accepted
        """
        is_sent = False

        def on_connected() -> None:
            nonlocal is_sent
            before_send()
            is_sent = True

        try:
            submission = self.connection.service.submission(request)
            response = workers.send(self.connection, submission, may_repeat=False, before_send=on_connected)
        except Exception as error:
            # The exception type does not show whether the request was sent.
            reason, address = workers.reason_of(error, self.connection), self.connection.base_url
            if is_sent:
                told = f"the submission was sent to {address}, but no answer came: {reason}"
                raise LumaSubmissionUnknownError(None, f"{told}. It may have been accepted") from None
            # A malformed address, as of a misspelt host, is a ValueError.
            if isinstance(error, LumaError) or not isinstance(error, (OSError, ValueError)):
                raise
            raise LumaUnavailableError(None, f"{address} could not be reached: {reason}") from None
        return self.connection.service.read_submission(response)

    # -- reading ------------------------------------------------------------------------------------------------

    def get_status(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job, once.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: it refused, or cannot be asked
        """
        service = self.connection.service
        return self._read(service.status(luma_task_id), partial(service.read_status, luma_task_id=luma_task_id))

    def get_credits(self) -> float:
        """
        Return the account's remaining credits, asked once.

        :raises LumaError: the service refused, or cannot be asked
        """
        service = self.connection.service
        return self._read(service.balance(), service.read_balance)

    def credits_left(self) -> float | None:
        """Return the account's remaining credits if that can be had at once, else None; it never raises."""
        try:
            return workers.within(QUICK_DEADLINE, self.quick().get_credits)
        except Exception as error:  # a job was paid for, and this is no reason to lose sight of it
            self.log.debug("The remaining credits could not be had: %s", error)
            return None

    def get_download_url(self, result_url: str) -> str:
        """
        Return a temporary download address of a result, asked for once.

        :raises LumaError: the service refused, e.g. because the file is not one of its own, or cannot be asked
        """
        service = self.connection.service
        return self._read(service.renewal(result_url), service.read_renewal)

    def check_liveness(self) -> None:
        """
        Ask the service something that costs nothing.

        :raises LumaNotFoundError: there is no such endpoint at this address
        :raises LumaError: it is not known whether the endpoint works
        """
        service = self.connection.service
        self._read(service.liveness(), service.read_liveness)

    def quick(self) -> LumaClient:
        """Return a client that gives a silent server a few seconds only."""
        timeout = min(self.connection.timeout, QUICK_TIMEOUT)
        return replace(self, connection=replace(self.connection, timeout=timeout))

    def poll(self, state: PollState) -> PollOutcome:
        """Check the status of a job once, and log what is worth a line."""
        result: LumaTask | Exception
        try:
            result = self.get_status(state.luma_task_id)
        except POLL_ERRORS as error:
            result = error
        return take_status(state, result, self.log, connection=self.connection)

    def check_job(self, luma_task_id: str, *, retry_timeout: float = 0.0, sends_metrics: bool = True) -> LumaTask:
        """Check the status of a job; see :func:`check_job`."""
        return check_job(self.poll, luma_task_id, retry_timeout=retry_timeout, sends_metrics=sends_metrics)

    # -- uploading ----------------------------------------------------------------------------------------------

    def upload(self, name: str, size: int, form: Callable[[Request], workers.Form]) -> LumaUpload:
        """
        Upload a file, in one single attempt.

        :param name: its name at the service
        :param size: bytes
        :param form: makes the body of the request
        :raises LumaValidationError: the service does not take this file
        :raises LumaUnavailableError: the host could not be reached, or its answer was lost
        :raises LumaError: any other refusal
        """
        request = self.connection.service.upload(name)
        try:
            response = workers.send(self.connection, request, form=form(request), may_repeat=False)
        except OSError as error:
            reason = workers.reason_of(error, self.connection)
            raise LumaUnavailableError(None, f"{self.connection.upload_url} did not answer: {reason}") from None
        return self.connection.service.read_upload(response, size, datetime.now(UTC))

    def _read(self, request: Request, read: Callable[[Response], T]) -> T:
        try:
            response = workers.send(self.connection, request)
        except LumaError:
            raise
        except (OSError, ValueError) as error:  # the latter of a malformed address, also in a redirect
            # Its text says all; its traceback would only fill a screen of the task's log.
            raise _unanswered(self.connection, workers.reason_of(error, self.connection)) from None
        return read(response)


def retry_submission(attempt: Callable[[], str], timeout: float, log: Logger) -> str:
    """
    Repeat an attempt to submit while it surely was not accepted, for a transient reason.

    An outage of the service is waited out for two minutes at most, counted from its beginning.

    :param attempt: one attempt; one with an unknown outcome is never repeated
    :param timeout: seconds for which it is repeated at most, all in all
    """

    def log_refusal(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        log.warning("The submission was not accepted: %s. Nothing was billed; next in %.0f s", error, seconds)

    return tenacity.Retrying(**backoff.submission_retry_options(timeout), before_sleep=log_refusal)(attempt)


def retry_read(read: Callable[[], T]) -> T:
    """Call what only reads, and again for a minute at most while it fails with a transient error."""
    return tenacity.Retrying(**backoff.retry_options(backoff.READ_RETRY_TIMEOUT))(read)


def _unanswered(connection: LumaConnection, reason: str) -> LumaUnavailableError:
    return LumaUnavailableError(None, f"{connection.base_url} did not answer: {reason}")


# -- waiting ----------------------------------------------------------------------------------------------------


def take_status(
    state: PollState,
    result: LumaTask | Exception,
    log: Logger,
    *,
    connection: LumaConnection | None = None,
    can_be_called_back: bool = False,
) -> PollOutcome:
    """
    Bring the result of a status check into the poll state, and log its progress.

    :param result: the job, or why its status could not be had
    :param connection: with which it was asked for; None if that could not be read
    :param can_be_called_back: whether a callback to the connection's address ends the wait
    """
    now = time.time()
    if connection is None:
        # The API server or a secrets backend is down, or somebody is just editing the connection: no reason to give up
        # a job that is paid for.
        result = LumaUnavailableError(None, f"the connection could not be read: {result}")
    elif isinstance(result, LumaAuthError):
        result = LumaAuthError(
            result.code, f"the API key of connection {connection.conn_id!r} is refused: {result.msg}"
        )
    elif not isinstance(result, (LumaTask, LumaError)):
        result = LumaUnavailableError(None, f"the connection could not be read: {result}")
    if isinstance(result, LumaError):
        outcome = state.on_error(result, now)
    else:
        # One that comes over another connection, even with the same API key, resumes no task of this one.
        expects_callback = (
            can_be_called_back
            and connection is not None
            and callback_token.is_ours(result.callback_url, connection, conn_id=connection.conn_id)
        )
        outcome = state.on_status(result, now, expects_callback=expects_callback)
    if not isinstance(outcome, Failed) and (progress := state.progress(now)):
        log.log(*progress)
    return outcome


def wait_for_job(poll: Callable[[PollState], PollOutcome], state: PollState) -> LumaTask:
    """
    Wait, in this process, until a job has ended well.

    :param poll: checks the status once
    :raises LumaError: what has ended the wait
    """
    while True:
        outcome = poll(state)
        if not isinstance(outcome, PollAgain):
            return _ended(outcome)
        time.sleep(outcome.delay)


def check_job(
    poll: Callable[[PollState], PollOutcome],
    luma_task_id: str,
    *,
    retry_timeout: float = 0.0,
    sends_metrics: bool = True,
) -> LumaTask:
    """
    Check the status of a job, and again for some seconds where its id or its result is in doubt.

    :param poll: checks the status once
    :param retry_timeout: seconds for which transient errors are waited out; 0 to raise the first
    :param sends_metrics: whether a job that has ended is recorded in Airflow's metrics: not if it was before
    :returns: the job; if it has ended, it has ended well, and lists a video
    :raises LumaGenerationError: the job failed
    :raises LumaNotFoundError: the service does not know the id
    :raises LumaRateLimitError, LumaUnavailableError: the service could not be asked
    :raises LumaError: any other refusal
    """
    state = PollState(luma_task_id, poll_interval=backoff.READ_RETRY_TIMEOUT)
    give_up_at = time.monotonic() + retry_timeout
    while True:
        outcome = poll(state)
        if not isinstance(outcome, PollAgain):
            return _ended(outcome, sends_metrics=sends_metrics)
        if outcome.is_running and outcome.task is not None:
            return outcome.task
        if outcome.error is not None and time.monotonic() + outcome.delay >= give_up_at:
            raise outcome.error
        time.sleep(outcome.delay)


def _ended(outcome: Finished | Failed, *, sends_metrics: bool = True) -> LumaTask:
    """Return the job that has ended well, or raise what has ended the wait."""
    if sends_metrics and outcome.task is not None and outcome.task.is_finished:
        metrics.job_ended(outcome.task)
    if isinstance(outcome, Failed):
        raise outcome.reason
    return outcome.task


class LumaAsyncClient:
    """
    The service, from the triggerer's event loop, over kept connections that all status checks share.

    :param read: reads the connection as it is now
    :param log: where progress is told
    """

    def __init__(self, read: Callable[[], Awaitable[LumaConnection]], log: Logger) -> None:
        self._read_connection, self._log = read, log
        self._opened: triggerer.OpenConnection | None = None
        #: Sessions that were replaced, and when the last request over each has ended.
        self._retired: list[tuple[aiohttp.ClientSession, float]] = []
        self._reading: asyncio.Task[triggerer.OpenConnection] | None = None
        #: When the last reading of the connection began.
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
        Check the status of a job. Transient errors are waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """

        async def get_status() -> LumaTask:
            return await self._get_status(luma_task_id, await self._get_opened())

        return await tenacity.AsyncRetrying(**backoff.retry_options(backoff.READ_RETRY_TIMEOUT))(get_status)

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
        return take_status(state, result, self._log, connection=opened.connection, can_be_called_back=True)

    def on_unreadable(self, state: PollState, error: Exception) -> PollOutcome:
        """Log that the connection cannot be read, and return what that means for the wait for a job."""
        return take_status(state, error, self._log)

    async def get_requests_per_second(self) -> float:
        """
        Return how many status checks a second the connection allows.

        The next :meth:`poll` then sends its request without reading the connection first.

        :raises Exception: the connection cannot be read now
        """
        return (await self._get_opened()).connection.requests_per_second

    async def _get_status(self, luma_task_id: str, opened: triggerer.OpenConnection) -> LumaTask:
        service = opened.connection.service
        try:
            response = await opened.send(service.status(luma_task_id))
        except triggerer.FAILURES as error:
            raise _unanswered(opened.connection, triggerer.reason_of(error, opened.connection)) from None
        if len(response.body) > triggerer.LONG_BODY:
            return await asyncio.to_thread(service.read_status, response, luma_task_id)
        return service.read_status(response, luma_task_id)

    # -- the connection as it is now ----------------------------------------------------------------------------

    async def _get_opened(self) -> triggerer.OpenConnection:
        """Return the open connection; read it again after a minute, while the old one is still used."""
        if self._opened is None:
            return await self._read()
        if time.monotonic() - self._read_at >= CONNECTION_TTL:
            self._start_reading()
        return self._opened

    async def _read_again(self) -> triggerer.OpenConnection:
        """Read the connection as it is now; concurrent callers share one reading."""
        now, opened = time.monotonic(), await self._read()
        while self._read_at < now:  # the reading had begun earlier, and may be outdated
            opened = await self._read()
        return opened

    async def _read(self) -> triggerer.OpenConnection:
        timeout = asyncio.timeout(READING_TIMEOUT)
        try:
            async with timeout:
                # Shielded, since other triggers may wait for it as well.
                return await asyncio.shield(self._start_reading())
        except TimeoutError:
            if not timeout.expired():
                raise
            raise TimeoutError(f"no answer after {READING_TIMEOUT:g} s") from None

    def _start_reading(self) -> asyncio.Task[triggerer.OpenConnection]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._reopen())
            # Retrieve the error: nobody does while the old connection is still in use.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        return self._reading

    async def _reopen(self) -> triggerer.OpenConnection:
        """
        Read the connection, and open it if it, or a file of certificates, has changed.

        If that fails, the one that was read before is kept.
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

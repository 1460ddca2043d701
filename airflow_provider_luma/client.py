# SPDX-License-Identifier: Apache-2.0
"""
The client that workers use to call the service. The triggerer uses :mod:`~airflow_provider_luma.async_client`.

There are two kinds of call. *Reading* is safe to repeat, so transient errors are retried. *Submitting* costs money:
it is repeated only if the service certainly accepted nothing.

A :class:`LumaClient` is bound to one snapshot of a connection, so that all checks and requests of one submission
attempt use the same settings. Waits and retries create another client, so that they notice a replaced key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import tenacity
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.log import mask_secret

from airflow_provider_luma import metrics
from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import backoff, callback_token
from airflow_provider_luma.core.job import LumaTask, ModifyRequest, Request, Response
from airflow_provider_luma.core.poll_state import Failed, Finished, PollAgain, PollOutcome, PollState
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.transport import workers
from airflow_provider_luma.transport.options import check_options, triggerer_proxy_of

if TYPE_CHECKING:
    from uuid import UUID

    from airflow.sdk.types import Logger

T = TypeVar("T")

#: Limits in seconds for a call that must not hold up a submission: without receiving a byte, and in total.
QUICK_TIMEOUT, QUICK_DEADLINE = 5.0, 15.0

#: What a status check may raise: an error of the service, or of reading the connection.
POLL_ERRORS = (LumaError, AirflowException, AirflowRuntimeError)


# -- workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LumaClient:
    """
    A client of the service, bound to one snapshot of a connection.

    :param connection: the snapshot
    :param log: where progress is logged
    """

    connection: LumaConnection
    log: Logger

    # -- submitting ---------------------------------------------------------------------------------------------

    def check_request(self, request: ModifyRequest, *, expects_callback: bool = False) -> None:
        """
        Refuse a request that the service is sure to refuse, before anything is sent or recorded.

        :param expects_callback: whether the job will get a callback address of Airflow
        :raises LumaValidationError: names the parameter, or the field of the connection, and the remedy
        """
        check_options(self.connection)
        self.connection.service.check(request, is_public=self.connection.is_public)
        expects_callback = expects_callback and self.connection.service.has_callbacks
        if expects_callback and (problem := self.connection.callback_problem):
            raise LumaValidationError(None, f"connection {self.connection.conn_id!r}: {problem}")

    def check_wait_in_triggerer(self) -> None:
        """
        Refuse a connection that the triggerer could not use for polling, before a job is paid for.

        :raises LumaValidationError: names the remedy
        """
        triggerer_proxy_of(self.connection)

    def callback_url(self, reference: str, task_instance_id: UUID | None = None) -> str | None:
        """
        Return Airflow's address for the service to call when a job has ended; None if jobs are only polled.

        :param reference: an unguessable name for the submission
        :param task_instance_id: the try that submits; it makes callbacks cheaper to handle
        """
        if not self.connection.service.has_callbacks:
            return None
        url = callback_token.callback_url(self.connection, self.connection.conn_id, reference, task_instance_id)
        if url is not None:
            mask_secret(callback_token.token_of(url))
        return url

    def submit(self, request: ModifyRequest, reference: str, *, before_send: Callable[[], None] = lambda: None) -> str:
        """
        Submit a job in a single attempt. It costs credits, and cannot be cancelled.

        :param reference: our own name for the submission
        :param before_send: called on the open connection, just before anything is sent; if it raises, the attempt ends
        :returns: the job's id at Luma
        :raises LumaSubmissionUnknownError: sent, but the response was lost: the job may run, and be billed
        :raises LumaError: certainly nothing was accepted
        """
        is_sent = False

        def on_connected() -> None:
            nonlocal is_sent
            before_send()
            is_sent = True

        service, sent_at = self.connection.service, time.time()
        try:
            submission = service.submission(request, reference)
            response = workers.send(self.connection, submission, may_repeat=False, before_send=on_connected)
        except Exception as error:
            # The exception type does not show whether the request was sent.
            reason, address = workers.reason_of(error, self.connection), self.connection.base_url
            if is_sent:
                what = f"the submission was sent to {address}, but no response arrived: {reason}"
                unknown = LumaSubmissionUnknownError(None, f"{what}. It may have been accepted")
                unknown.remedy = service.unknown_outcome_remedy(reference, sent_at)
                raise unknown from None
            # A malformed address, such as a misspelt host, raises a ValueError.
            if isinstance(error, LumaError) or not isinstance(error, (OSError, ValueError)):
                raise
            raise LumaUnavailableError(None, f"{address} could not be reached: {reason}") from None
        try:
            return service.read_submission(response)
        except LumaSubmissionUnknownError as error:
            error.remedy = service.unknown_outcome_remedy(reference, sent_at)
            raise

    # -- reading ------------------------------------------------------------------------------------------------

    def get_status(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job, once.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: it refused, or did not respond
        """
        service = self.connection.service
        return self._read(service.status(luma_task_id), partial(service.read_status, luma_task_id=luma_task_id))

    def get_credits(self) -> float:
        """
        Return the account's remaining credits, without retrying.

        :raises LumaError: the service refused, or did not respond
        """
        service = self.connection.service
        return self._read(service.balance(), service.read_balance)

    def credits_left(self) -> float | None:
        """Return the account's remaining credits, or None if reading them fails or takes too long; never raises."""
        if not self.connection.service.has_balance:
            return None
        try:
            return workers.within(QUICK_DEADLINE, self.quick().get_credits)
        except Exception as error:  # a job was paid for, and must not be lost over this
            self.log.debug("Could not read the remaining credits: %s", error)
            return None

    def get_download_url(self, result_url: str, luma_task_id: str | None = None) -> str:
        """
        Return a temporary download address of a result, without retrying.

        :param luma_task_id: the result's job, if known
        :raises LumaError: the service refused, e.g. because it did not make the file, or did not respond
        """
        service = self.connection.service
        read = partial(service.read_renewal, result_url=result_url, luma_task_id=luma_task_id)
        return self._read(service.renewal(result_url, luma_task_id), read)

    def check_liveness(self) -> None:
        """
        Check with a free call that the endpoint works.

        :raises LumaNotFoundError: there is no such endpoint at this address
        :raises LumaError: the check has failed, so the endpoint may or may not work
        """
        service = self.connection.service
        self._read(service.liveness(), service.read_liveness)

    def quick(self) -> LumaClient:
        """Return a client that waits only a few seconds for a silent server."""
        timeout = min(self.connection.timeout, QUICK_TIMEOUT)
        return replace(self, connection=replace(self.connection, timeout=timeout))

    def poll(self, state: PollState) -> PollOutcome:
        """Check the status of a job once, and log any progress."""
        result: LumaTask | Exception
        try:
            check_service(self.connection, state)
            result = self.get_status(state.luma_task_id)
        except POLL_ERRORS as error:
            result = error
        return take_status(state, result, self.log, connection=self.connection)

    def check_job(self, luma_task_id: str, *, retry_timeout: float = 0.0, sends_metrics: bool = True) -> LumaTask:
        """Check the status of a job; see :func:`check_job`."""
        return check_job(self.poll, luma_task_id, retry_timeout=retry_timeout, sends_metrics=sends_metrics)

    # -- uploading ----------------------------------------------------------------------------------------------

    def call(self, request: Request) -> Response:
        """
        Make one call of an upload.

        :raises LumaUnavailableError: there was no response
        """
        return self._read(request, lambda response: response)

    def send_form(self, path: str, form: workers.Form) -> Response:
        """
        Send a form with a file to the upload host.

        :raises LumaUnavailableError: there was no response
        """
        try:
            return workers.send(self.connection, Request("POST", path), form=form, may_repeat=False)
        except OSError as error:
            reason = workers.reason_of(error, self.connection)
            raise LumaUnavailableError(None, f"the upload to {self.connection.upload_url} failed: {reason}") from None

    def _read(self, request: Request, read: Callable[[Response], T]) -> T:
        try:
            response = workers.send(self.connection, request)
        except LumaError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a malformed address, perhaps in a redirect
            # The message says it all; the traceback would only fill the task's log.
            raise unanswered(self.connection, workers.reason_of(error, self.connection)) from None
        return read(response)


def retry_submission(attempt: Callable[[], str], timeout: float, log: Logger) -> str:
    """
    Retry a submission as long as it fails for a transient reason, and was certainly not accepted.

    During a service outage, retries stop two minutes after its start.

    :param attempt: makes one attempt; never called again if the outcome is unknown
    :param timeout: maximum seconds of retrying in total
    """

    def log_refusal(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        log.warning("The submission was not accepted: %s. Nothing was billed; retrying in %.0f s", error, seconds)

    return tenacity.Retrying(**backoff.submission_retry_options(timeout), before_sleep=log_refusal)(attempt)


def retry_read(read: Callable[[], T]) -> T:
    """Call a function that only reads, and retry it for at most a minute while it fails with a transient error."""
    return tenacity.Retrying(**backoff.retry_options(backoff.READ_RETRY_TIMEOUT))(read)


def check_service(connection: LumaConnection, state: PollState) -> None:
    """
    Check that a job belongs to the connection's service.

    :raises LumaUnavailableError: it does not; the connection may be switched back
    """
    if problem := connection.service_problem(state.service):
        raise LumaUnavailableError(None, problem)


def unanswered(connection: LumaConnection, reason: str) -> LumaUnavailableError:
    """Return the error of a request that got no response."""
    return LumaUnavailableError(None, f"the request to {connection.base_url} failed: {reason}")


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
    Update the poll state with the result of a status check, and log the job's progress.

    :param result: the job, or the error that the check raised
    :param connection: the connection used for the check; None if it could not be read
    :param can_be_called_back: whether a callback to the connection's address ends the wait
    """
    now = time.time()
    if connection is None or not isinstance(result, (LumaTask, LumaError)):
        # The API server or a secrets backend is down, or somebody is editing the connection right now. That is no
        # reason to give up on a job that is paid for.
        result = LumaUnavailableError(None, f"the connection could not be read: {result}")
    elif isinstance(result, LumaAuthError):
        result = LumaAuthError(
            result.code, f"the API key of connection {connection.conn_id!r} was refused: {result.msg}"
        )
    if isinstance(result, LumaError):
        outcome = state.on_error(result, now)
    else:
        # A callback for another connection, even with the same API key, does not resume tasks of this one.
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
    Wait in this process until a job has succeeded.

    :param poll: checks the status once
    :raises LumaError: the wait has ended without a result
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
    service: str | None = None,
) -> LumaTask:
    """
    Check the status of a job; check again for some seconds if its id is unknown or its result is missing.

    :param poll: checks the status once
    :param retry_timeout: seconds for which transient errors are retried; 0 to raise the first
    :param sends_metrics: whether to record the end of the job in Airflow's metrics; False if it was already
    :param service: the name of the job's service; None if it is that of the connection
    :returns: the job, which is running, or has succeeded and lists a video
    :raises LumaGenerationError: the job failed
    :raises LumaNotFoundError: the service does not know the id
    :raises LumaRateLimitError, LumaUnavailableError: the status could not be checked
    :raises LumaError: any other refusal
    """
    state = PollState(luma_task_id, poll_interval=backoff.READ_RETRY_TIMEOUT, service=service)
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
    """Return the job that has succeeded, or raise the error that ended the wait."""
    if sends_metrics and outcome.task is not None and outcome.task.is_finished:
        metrics.job_ended(outcome.task)
    if isinstance(outcome, Failed):
        raise outcome.reason
    return outcome.task

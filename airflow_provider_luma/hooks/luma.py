# SPDX-License-Identifier: Apache-2.0
"""
Hook that calls Luma from a worker; its sibling for the triggerer is :class:`LumaAsyncHook`.

Both send the requests of :mod:`airflow_provider_luma.services.kie` and know nothing else about the service.

Two kinds of call are told apart. *Reading* is safe to repeat, and a transient error is waited out. *Submitting* costs
money: it is repeated only where the service surely accepted nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import tenacity
from airflow.sdk.log import mask_secret

import airflow_provider_luma
from airflow_provider_luma import metrics
from airflow_provider_luma.compat import AirflowNotFoundException
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import backoff, callback_token
from airflow_provider_luma.core.job import LumaTask, LumaUpload, ModifyRequest
from airflow_provider_luma.core.poll_state import Failed, Finished, PollAgain, PollOutcome, PollState
from airflow_provider_luma.core.validation import (
    check_file_address,
    check_luma_task_id,
    check_positive,
    check_video_url,
)
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaNotFoundError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.files.download import Download
from airflow_provider_luma.files.input_video import check_public_video
from airflow_provider_luma.files.source import FileSource
from airflow_provider_luma.files.stored_file import StoredFile
from airflow_provider_luma.files.upload import Upload
from airflow_provider_luma.hooks.api import LumaApiHook
from airflow_provider_luma.hooks.base import POLL_ERRORS
from airflow_provider_luma.hooks.luma_async import LumaAsyncHook
from airflow_provider_luma.services import kie
from airflow_provider_luma.transport.workers import reason_of, requests_session, within

if TYPE_CHECKING:
    from uuid import UUID

    from airflow.sdk import ObjectStoragePath


__all__ = ["LumaAsyncHook", "LumaHook"]

#: Bytes of a public video that are looked at.
HEAD_SIZE = 4096

#: Seconds for what is not to hold a submission up: without a byte, and all in all.
HEAD_TIMEOUT, HEAD_DEADLINE = 5.0, 15.0


def _connection_form_widgets() -> dict[str, Any]:
    """Return the form's fields for the extra, on Airflow 3.1; later ones read the same data from the provider info."""
    # Airflow's API server brings wtforms, or a stand-in. Numbers are texts: 3.1 has fields for whole numbers only.
    from wtforms import PasswordField, StringField  # type: ignore[import-untyped, unused-ignore]

    return {
        name: (PasswordField if field["schema"].get("format") == "password" else StringField)(
            field["label"], description=field["description"]
        )
        for name, field in _connection_type()["conn-fields"].items()
    }


def _ui_field_behaviour() -> dict[str, Any]:
    """Return what the form calls Airflow's own fields of a connection, and which of them it hides."""
    return {name.replace("-", "_"): value for name, value in _connection_type()["ui-field-behaviour"].items()}


def _connection_type() -> dict[str, Any]:
    (luma,) = airflow_provider_luma.get_provider_info()["connection-types"]
    return dict(luma)


class LumaHook(LumaApiHook):
    """
    Call Luma from a worker.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    get_connection_form_widgets = staticmethod(_connection_form_widgets)
    get_ui_field_behaviour = staticmethod(_ui_field_behaviour)

    # -- submitting -------------------------------------------------------------------------------------------------

    def modify_video(
        self, prompt: str, video_url: str, *, callback_url: str | None = None, watermark: str | None = None
    ) -> str:
        """
        Submit a job. It costs credits, and cannot be cancelled.

        Repeated, for two minutes at most, where the service surely did not accept it: over the rate limit,
        under maintenance, refused with a transient reason, or never reached.

        :param prompt: how to change the video, in English
        :param video_url: public http(s) address of an MP4, MOV or AVI of at most 10 seconds and 500 MB
        :param callback_url: public address that the service calls when the job ends
        :param watermark: text to put into the video
        :returns: the job's id at Luma
        :raises LumaValidationError: the prompt or an address is refused, by us before sending or by the service
        :raises LumaInsufficientCreditsError: the account lacks credits
        :raises LumaSubmissionUnknownError: sent, but the answer was lost: the job may run, and be billed
        :raises LumaError: any other refusal
        """
        check_video_url(video_url)
        request = ModifyRequest(prompt, video_url, watermark, callback_url)
        self.check_request(request)
        return self.retry_submission(partial(self.submit, request), backoff.OUTAGE_TIMEOUT)

    def check_request(self, request: ModifyRequest, *, expects_callback: bool = False) -> None:
        """
        Refuse a request that is sure to be refused, before anything is sent or recorded.

        :param expects_callback: whether the job will be given a callback address of Airflow's
        :raises LumaValidationError: names the parameter, or the field of the connection, and the remedy
        """
        self._checked_connection = connection = self.check_connection()
        request.check(service_is_public=connection.is_public)
        if expects_callback and (problem := connection.callback_problem):
            raise LumaValidationError(None, f"connection {self.luma_conn_id!r}: {problem}")

    def submit(self, request: ModifyRequest, *, before_send: Callable[[], None] = lambda: None) -> str:
        """
        Submit a job in one single attempt.

        :param before_send: called on the open connection, just before anything is sent; what it raises ends the attempt
        :returns: the job's id at Luma
        :raises LumaSubmissionUnknownError: sent, but the answer was lost: the job may run, and be billed
        :raises LumaError: surely nothing was accepted
        """
        connection, self._checked_connection, is_sent = self.luma_connection, None, False

        def on_connected() -> None:
            nonlocal is_sent
            before_send()
            is_sent = True

        try:
            # A redirect could deliver the submission twice, or hide that it was delivered at all.
            response = self._send(
                kie.submission_request(request), replace(connection, allow_redirects=False), on_connected
            )
        except Exception as error:
            # No kind of error tells: most can come before a request as well as after it.
            reason = reason_of(error, connection)
            if is_sent:
                told = f"the submission was sent to {self.base_url}, but no answer came: {reason}"
                raise LumaSubmissionUnknownError(None, f"{told}. It may have been accepted") from None
            # An address that is none, as of a misspelt host, is a ValueError.
            if isinstance(error, LumaError) or not isinstance(error, (OSError, ValueError)):
                raise
            raise LumaUnavailableError(None, f"{self.base_url} could not be reached: {reason}") from None
        return kie.read_submission(response)

    def retry_submission(self, attempt: Callable[[], str], timeout: float) -> str:
        """
        Repeat an attempt to submit while it surely was not accepted, for a transient reason.

        An outage of the service is waited out for two minutes at most, counted from its beginning.

        :param attempt: one attempt; one with an unknown outcome is never repeated
        :param timeout: seconds for which it is repeated at most, all in all
        """
        options = backoff.submission_retry_options(timeout)
        return tenacity.Retrying(**options, before_sleep=self._log_refusal)(attempt)

    def get_callback_url(self, reference: str, task_instance_id: UUID | None = None) -> str | None:
        """
        Return the address of Airflow that Luma is to call when a job has ended; None without ``callback_base_url``.

        :param reference: a name for the submission that nobody can guess
        :param task_instance_id: the try that submits; with it a callback costs less
        """
        connection = self.luma_connection
        url = callback_token.callback_url(connection, self.luma_conn_id, reference, task_instance_id)
        if url is not None:
            mask_secret(callback_token.token_of(url))
        return url

    def is_job_of(self, task: LumaTask, reference: str) -> bool:
        """
        Tell whether a job was created by a submission of ours: whether its callback address names that one.

        The token in it is not checked: Luma itself tells the address, and the API key may have been replaced since.

        :param reference: the submission's name, which nobody can guess
        """
        return callback_token.reference_of(task.callback_url) == reference

    # -- reading ----------------------------------------------------------------------------------------------------

    def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        return self._retry_read(partial(self._get_status, luma_task_id))

    def get_credits(self) -> float:
        """
        Return the account's remaining credits. Transient errors are waited out, for a minute at most.

        :raises LumaError: the service refused
        """
        return self._retry_read(self._get_credits)

    def get_download_url(self, result_url: str) -> str:
        """
        Return a temporary download address of a result, valid for 20 minutes.

        :param result_url: one of a job's result_urls
        :raises LumaError: the service refused, e.g. because the file is not one of its own
        """
        request = kie.download_url_request(result_url)
        return self._retry_read(partial(self._read, request, kie.read_download_url))

    def credits_left(self) -> float | None:
        """Return the account's remaining credits if that can be had at once, else None; it never raises."""
        try:
            connection = self.luma_connection
            quick = replace(connection, timeout=min(connection.timeout, HEAD_TIMEOUT))
            return within(HEAD_DEADLINE, partial(self._get_credits, quick))
        except Exception as error:  # a job was paid for, and this is no reason to lose sight of it
            self.log.debug("The remaining credits could not be had: %s", error)
            return None

    def test_connection(self) -> tuple[bool, str]:
        """
        Return whether the connection works, and how many credits remain, or what is wrong and how to correct it.

        A status check of a job that cannot exist shows whether the Luma endpoint is there. Neither call costs anything.
        With ``callback_base_url``, that address is called as the service would, with a probe that resumes nothing.
        """
        try:
            remaining = self._get_credits()
            connection = self.get_luma_connection()
        except (LumaError, AirflowNotFoundException) as error:
            return False, str(error)
        message = f"Connected to {self.base_url}: {remaining:g} credits left"
        try:
            self._read(kie.endpoint_request(), kie.read_endpoint, connection)
        except LumaNotFoundError as error:
            return False, f"{message}. {error.msg}"
        except LumaError as error:
            message = f"{message}. Whether the Luma endpoint is there could not be checked: {error}"
        if connection.callback_base_url is None:
            return True, message
        from airflow_provider_luma.hooks.callback_check import check_callbacks

        finding = check_callbacks(connection, self.luma_conn_id)
        if finding.is_in_doubt:
            self.log.warning("%s", finding.text)  # the command line shows no message of a test that succeeds
        return not finding.is_broken, f"{message}. {finding.text}"

    # -- waiting ----------------------------------------------------------------------------------------------------

    def wait_for_completion(
        self,
        luma_task_id: str,
        *,
        timeout: float = 1800,
        poll_interval: float = 30,
        created_at: float | None = None,
    ) -> LumaTask:
        """
        Wait, in this process, until a job has ended well.

        :param timeout: seconds to wait at most
        :param poll_interval: seconds between two status checks; the service recommends 30
        :param created_at: when the job was created, in seconds since the epoch, if it is known that there is one: an
            API key that is refused while it is being replaced then does not end the wait
        :returns: the finished job, with at least one result URL
        :raises LumaGenerationError: the job failed
        :raises LumaTimeoutError: the job is still running after the timeout
        :raises LumaError: the service refused for good
        """
        check_luma_task_id(luma_task_id)
        check_positive("timeout", timeout)
        check_positive("poll_interval", poll_interval)
        self.check_connection()  # an error in it is better raised now than waited out
        end_time = time.time() + timeout
        state = PollState(luma_task_id, poll_interval=poll_interval, end_time=end_time, created_at=created_at)
        while True:
            outcome = self.poll(state)
            if not isinstance(outcome, PollAgain):
                return _ended(outcome)
            time.sleep(outcome.delay)

    def check(self, luma_task_id: str, *, retry_timeout: float | None = None, sends_metrics: bool = True) -> LumaTask:
        """
        Check the status of a job, and again for some seconds where its id or its result is in doubt.

        :param retry_timeout: seconds for which transient errors are waited out; None to raise the first
        :param sends_metrics: whether a job that has ended is recorded in Airflow's metrics: not if it was before
        :returns: the job; if it has ended, it has ended well, and lists a video
        :raises LumaGenerationError: the job failed
        :raises LumaNotFoundError: the service does not know the id
        :raises LumaRateLimitError, LumaUnavailableError: the service could not be asked
        :raises LumaError: any other refusal
        """
        state = PollState(luma_task_id, poll_interval=backoff.READ_RETRY_TIMEOUT)
        give_up_at = time.monotonic() + (retry_timeout or 0.0)
        while True:
            outcome = self.poll(state)
            if not isinstance(outcome, PollAgain):
                return _ended(outcome, sends_metrics=sends_metrics)
            if outcome.is_running and outcome.task is not None:
                return outcome.task
            if outcome.error is not None and time.monotonic() + outcome.delay >= give_up_at:
                raise outcome.error
            time.sleep(outcome.delay)

    def poll(self, state: PollState) -> PollOutcome:
        """Check the status of a job once, and log what is worth a line."""
        result: LumaTask | Exception
        try:
            connection = self.get_luma_connection()
        except Exception as error:
            return self._take(state, self._unreadable_connection(error))
        try:
            result = self._get_status(state.luma_task_id, connection)
        except POLL_ERRORS as error:
            result = error
        return self._take(state, result)

    # -- files ------------------------------------------------------------------------------------------------------

    def download(
        self, url: str, destination: str | ObjectStoragePath, *, name: str | None = None, overwrite: bool = False
    ) -> ObjectStoragePath:
        """
        Stream a file, such as a result, to any storage that Airflow knows. The API key is not sent along.

        Until it is whole the file bears another name. A broken connection is resumed where it broke.

        :param url: http(s) address
        :param destination: a file (its name ends in an extension), or a folder, in which the file gets the name
            it has in the URL, as far as that is harmless
        :param name: the file's name; then the destination is a folder in any case
        :param overwrite: fetch, and replace, a file that is there already; otherwise one that is shown to be the
            same is kept as it is
        :returns: where the file is
        :raises LumaValidationError: the address is no http(s) address, or leads to a private network, or the file
            is longer than 10 GiB
        :raises LumaNotFoundError: there is no such file, e.g. because the result has expired
        :raises LumaUnavailableError: the file could not be had in one piece
        :raises FileExistsError: what may be another file has that name, and ``overwrite`` is off
        """
        connection = self.get_luma_connection()
        return Download(
            session=partial(requests_session, connection),
            timeout=connection.timeout,
            service_is_public=connection.is_public,
            renew=self.get_download_url,
            log=self.log,
        ).run(url, destination, name=name, overwrite=overwrite)

    def upload(
        self,
        source: str | ObjectStoragePath,
        *,
        check_video: bool = False,
        fail_if_killed: Callable[[], None] = lambda: None,
    ) -> LumaUpload:
        """
        Upload a file from any storage that Airflow knows, so that the service can read it. It costs nothing.

        Streamed with constant memory; the service keeps the file for 24 hours at least.

        :param source: a path on this machine, or an address such as ``s3://my_aws@bucket/clip.mp4``
        :param check_video: look into the file first, and refuse what is no video that the service takes
        :param fail_if_killed: called before each piece is sent; what it raises ends the upload
        :returns: its public address, its size in bytes, and when the service deletes it
        :raises LumaValidationError: there is no such file, or the service does not take it
        :raises AirflowException: the file cannot be read
        :raises LumaError: any other refusal
        """
        check_file_address("source", source)
        file = StoredFile.find(str(source), "source")
        if check_video:
            file.check(self.log)
        return self.upload_file(file, fail_if_killed)

    def upload_file(self, file: StoredFile, fail_if_killed: Callable[[], None] = lambda: None) -> LumaUpload:
        """Upload a file that has been looked up; see :meth:`upload`."""
        return Upload(self._send_form, self.log, fail_if_killed).run(file)

    def check_public_video(self, url: str) -> None:
        """
        Look at the first bytes of a public video, and at what its server says of it; without the API key.

        :raises LumaValidationError: there is nothing, or surely no video that the service takes
        """
        connection = self.luma_connection
        source = FileSource(
            partial(requests_session, connection),
            min(connection.timeout, HEAD_TIMEOUT),
            connection.is_public,
            head_size=HEAD_SIZE,
        )
        try:
            within(HEAD_DEADLINE, partial(check_public_video, url, source, self.log))
        except TimeoutError:
            self.log.warning("video_url could not be checked from here: its server takes too long")

    def _get_status(self, luma_task_id: str, connection: LumaConnection | None = None) -> LumaTask:
        read = partial(kie.read_task, luma_task_id=luma_task_id)
        return self._read(kie.task_request(luma_task_id), read, connection)

    def _get_credits(self, connection: LumaConnection | None = None) -> float:
        return self._read(kie.credits_request(), kie.read_credits, connection)

    def _log_refusal(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        self.log.warning("The submission was not accepted: %s. Nothing was billed; next in %.0f s", error, seconds)


def _ended(outcome: Finished | Failed, *, sends_metrics: bool = True) -> LumaTask:
    """Return the job that has ended well, or raise what has ended the wait."""
    if sends_metrics and outcome.task is not None and outcome.task.is_finished:
        metrics.job_ended(outcome.task)
    if isinstance(outcome, Failed):
        raise outcome.reason
    return outcome.task

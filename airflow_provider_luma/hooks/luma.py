# SPDX-License-Identifier: Apache-2.0
"""
The hooks: :class:`LumaHook` for workers, :class:`LumaAsyncHook` for the triggerer's event loop.

They read the Airflow connection and leave the calls to the clients (:mod:`airflow_provider_luma.client`,
:mod:`airflow_provider_luma.async_client`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.hook import BaseHook

import airflow_provider_luma
from airflow_provider_luma.client import (
    LumaClient,
    check_job,
    retry_read,
    retry_submission,
    take_status,
    wait_for_job,
)
from airflow_provider_luma.compat import AirflowNotFoundException, get_async_connection
from airflow_provider_luma.connection import LumaConnection, missing_connection
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.addresses import is_luma_file
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.core.job import LumaTask, LumaUpload, ModifyRequest
from airflow_provider_luma.core.poll_state import PollOutcome, PollState
from airflow_provider_luma.core.validation import (
    check_file_address,
    check_luma_task_id,
    check_positive,
    check_video_url,
)
from airflow_provider_luma.exceptions import LumaAuthError, LumaError, LumaNotFoundError, LumaValidationError
from airflow_provider_luma.files.download import Download
from airflow_provider_luma.files.masking import mask_query
from airflow_provider_luma.files.sound_source import SoundSource, sound_source
from airflow_provider_luma.files.stored_file import StoredFile
from airflow_provider_luma.files.upload import Upload
from airflow_provider_luma.services import SERVICES
from airflow_provider_luma.transport.options import check_options
from airflow_provider_luma.transport.workers import api_session, requests_session

if TYPE_CHECKING:
    import requests
    from airflow.sdk import ObjectStoragePath

__all__ = ["LumaAsyncHook", "LumaHook"]


def _connection_form_widgets() -> dict[str, Any]:
    """Return the form's fields for the extra on Airflow 3.1. Later releases read the same from the provider info."""
    # Airflow's API server provides wtforms, or a stand-in. Numbers use text fields: 3.1 only has integer fields.
    from wtforms import PasswordField, StringField  # type: ignore[import-untyped, unused-ignore]

    return {
        name: (PasswordField if field["schema"].get("format") == "password" else StringField)(
            field["label"], description=field["description"]
        )
        for name, field in _connection_type()["conn-fields"].items()
    }


def _ui_field_behaviour() -> dict[str, Any]:
    """Return the form's labels for Airflow's own connection fields, and which of these it hides."""
    return {name.replace("-", "_"): value for name, value in _connection_type()["ui-field-behaviour"].items()}


def _connection_type() -> dict[str, Any]:
    (luma,) = airflow_provider_luma.get_provider_info()["connection-types"]
    return dict(luma)


def _refuse_renewal(url: str) -> str:
    raise LumaNotFoundError(None, "only the address of a result can be renewed")


class _ConnectionType(BaseHook):
    """The connection type that both hooks use."""

    conn_name_attr = "luma_conn_id"
    default_conn_name = "luma_default"
    conn_type = "luma"
    hook_name = "Luma"

    def __init__(self, luma_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.luma_conn_id = luma_conn_id


class LumaHook(_ConnectionType):
    """
    Call Luma from a worker.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    get_connection_form_widgets = staticmethod(_connection_form_widgets)
    get_ui_field_behaviour = staticmethod(_ui_field_behaviour)

    # -- the connection ---------------------------------------------------------------------------------------------

    def get_luma_connection(self) -> LumaConnection:
        """
        Read the connection again at every call, so that a new API key takes effect immediately.

        :raises AirflowNotFoundException: there is no such connection
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: its address is unusable, or an option is invalid
        """
        try:
            connection = self.get_connection(self.luma_conn_id)
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from None
        return LumaConnection.of(connection, self.luma_conn_id)

    def get_client(self) -> LumaClient:
        """Return a client bound to the current connection; raise the same errors as :meth:`get_luma_connection`."""
        return LumaClient(self.get_luma_connection(), self.log)

    def get_checked_client(self) -> LumaClient:
        """Return a client like :meth:`get_client`, but refuse unreadable certificates or a malformed proxy address."""
        client = self.get_client()
        check_options(client.connection)
        return client

    def get_conn(self) -> requests.Session:
        """Return a session with the API key and the connection's transport options, and nothing else."""
        return api_session(self.get_luma_connection())

    def test_connection(self) -> tuple[bool, str]:
        """
        Check the connection with free calls.

        For kie.ai, the account's credits are read, and a status check of a job that cannot exist shows whether the Luma
        endpoint exists. For Luma's own API, a list of files shows whether the key works. If ``callback_base_url`` is
        set and the service has callbacks, that address receives a probe, which resumes nothing.

        :returns: whether the connection works, and a message: the credits left, or what is wrong and how to correct it
        """
        try:
            client = self.get_client()
            message = f"Connected to {client.connection.base_url}"
            if client.connection.service.has_balance:
                message = f"{message}: {client.get_credits():g} credits left"
        except (LumaError, AirflowNotFoundException) as error:
            return False, str(error)
        try:
            client.check_liveness()
        except LumaNotFoundError as error:
            return False, f"{message}. {error.msg}"
        except LumaError as error:
            if not client.connection.service.has_balance:  # then nothing has shown yet that the key works
                return False, str(error)
            message = f"{message}. Could not check whether the Luma endpoint exists: {error}"
        if not client.connection.service.has_callbacks:
            return True, f"{message}. The service {client.connection.service_name!r} has no callbacks: jobs are polled"
        if client.connection.callback_base_url is None:
            return True, message
        from airflow_provider_luma.hooks.callback_check import check_callbacks

        finding = check_callbacks(client.connection, self.luma_conn_id)
        if finding.is_in_doubt:
            self.log.warning("%s", finding.text)  # the command line shows no message if the test succeeds
        return not finding.is_broken, f"{message}. {finding.text}"

    # -- jobs -------------------------------------------------------------------------------------------------------

    def modify_video(
        self,
        prompt: str,
        video_url: str,
        *,
        callback_url: str | None = None,
        watermark: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> str:
        """
        Submit a job. It costs credits, and cannot be cancelled.

        A submission that was certainly not accepted, for a transient reason, is retried for at most two minutes.

        :param prompt: how to change the video; kie.ai accepts English only
        :param video_url: public http(s) address of a video; at Luma's own API also ``luma-file:ID`` or ``luma-job:ID``
        :param callback_url: public address that the service calls when the job ends (kie.ai only)
        :param watermark: text to put into the video (kie.ai only)
        :param options: further fields of the service's own request, by name
        :returns: the job's id at Luma
        :raises LumaValidationError: the prompt or an address was refused, by us before sending or by the service
        :raises LumaInsufficientCreditsError: the account lacks credits
        :raises LumaSubmissionUnknownError: sent, but the response was lost: the job may run, and be billed
        :raises LumaError: any other refusal
        """
        if not is_luma_file(video_url):
            check_video_url(video_url)
        request = ModifyRequest(prompt, video_url, watermark, callback_url, options)
        service: str | None = None

        def submit() -> str:
            nonlocal service
            client = self.get_client()
            if problem := client.connection.service_problem(service):
                raise LumaValidationError(None, f"{problem}. Nothing was submitted")
            service = client.connection.service_name
            client.check_request(request)
            return client.submit(request, new_reference())

        return retry_submission(submit, backoff.OUTAGE_TIMEOUT, self.log)

    def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are retried for at most a minute.

        :param luma_task_id: the job's id at Luma
        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        return retry_read(lambda: self.get_client().get_status(luma_task_id))

    def get_credits(self) -> float:
        """
        Return the account's remaining credits. Transient errors are retried for at most a minute.

        :raises LumaFeatureDisabledError: the service is Luma's own API, which does not report them
        :raises LumaError: the service refused
        """
        return retry_read(lambda: self.get_client().get_credits())

    def wait_for_completion(
        self,
        luma_task_id: str,
        *,
        timeout: float = 1800,
        poll_interval: float = 30,
        created_at: float | None = None,
        service: str | None = None,
    ) -> LumaTask:
        """
        Wait in this process until a job has succeeded.

        :param luma_task_id: the job's id at Luma
        :param timeout: maximum seconds to wait
        :param poll_interval: seconds between two status checks; kie.ai recommends 30
        :param created_at: when the job was created, in seconds since the epoch, if the job is known to exist: then an
            API key that is refused while it is being replaced does not end the wait
        :param service: the name of the job's service, ``kie`` or ``luma``; by default the connection's
        :returns: the finished job, with at least one result URL
        :raises LumaGenerationError: the job failed
        :raises LumaTimeoutError: the job is still running after the timeout
        :raises LumaError: any other error that waiting cannot solve
        """
        check_luma_task_id(luma_task_id)
        check_positive("timeout", timeout)
        check_positive("poll_interval", poll_interval)
        client = self.get_checked_client()  # better to raise an error in the connection now than to wait it out
        state = PollState(
            luma_task_id,
            poll_interval=poll_interval,
            end_time=time.time() + timeout,
            created_at=created_at,
            service=service or client.connection.service_name,
        )
        return wait_for_job(self.poll, state)

    def check_job(self, luma_task_id: str, *, retry_timeout: float = 0.0, service: str | None = None) -> LumaTask:
        """Check the status of a job over the current connection; see :func:`airflow_provider_luma.client.check_job`."""
        return check_job(self.poll, luma_task_id, retry_timeout=retry_timeout, service=service)

    def poll(self, state: PollState) -> PollOutcome:
        """Check the status of a job once over the current connection."""
        try:
            client = self.get_client()
        except Exception as error:
            return take_status(state, error, self.log)
        return client.poll(state)

    # -- files ------------------------------------------------------------------------------------------------------

    def get_download_url(self, result_url: str, *, luma_task_id: str | None = None, service: str | None = None) -> str:
        """
        Return a temporary download address of a result, valid for 20 minutes (kie.ai) or an hour (Luma's own API).

        :param result_url: one of a job's ``result_urls``
        :param luma_task_id: the job's id, which Luma's own API requires
        :param service: the name of the job's service, ``kie`` or ``luma``; by default the connection's
        :raises LumaValidationError: the connection leads to another service, or ``luma_task_id`` is required
        :raises LumaError: the service refused, e.g. because it did not make the file
        """

        def renew() -> str:
            client = self.get_client()
            if problem := client.connection.service_problem(service):
                raise LumaValidationError(None, problem)
            url = client.get_download_url(result_url, luma_task_id)
            mask_query(url)
            return url

        return retry_read(renew)

    def open_sound(self, address: str | ObjectStoragePath | None) -> AbstractContextManager[SoundSource | None]:
        """
        Open and check the sound of a video, for :meth:`download`; it stays available until the context ends.

        :param address: a file in any storage, or a public address; None for no sound
        :returns: a context manager that yields the sound, or None if the video has none
        :raises LumaValidationError: the video cannot be used, or the extra ``media`` is not installed
        """

        def fetch(url: str, folder: Path) -> None:
            self._download(None, renew=_refuse_renewal).run(url, str(folder), name="source.video")

        return sound_source(address, fetch, self.log)

    def download(
        self,
        url: str,
        destination: str | ObjectStoragePath,
        *,
        name: str | None = None,
        overwrite: bool = False,
        luma_task_id: str | None = None,
        service: str | None = None,
        sound_from: str | ObjectStoragePath | SoundSource | None = None,
        before_writing: Callable[[], None] = lambda: None,
    ) -> ObjectStoragePath:
        """
        Stream a file, such as a result, to any storage that Airflow supports. The API key is not sent.

        The file has a temporary name until it is complete. A broken download resumes where it stopped.

        :param url: http(s) address of the file
        :param destination: a file (if its name has an extension), or a folder. In a folder, the file is named after its
            job if that is given, otherwise after the URL
        :param name: the file's name; the destination is then always a folder
        :param overwrite: download again and replace a file that already exists. Otherwise that file is kept if it is
            verifiably the same
        :param luma_task_id: the id of the job that made the file, if known; an address of Luma's own API cannot be
            renewed without it
        :param service: the name of the job's service, ``kie`` or ``luma``; by default the connection's
        :param sound_from: a video whose sound is added to the downloaded one: a file in any storage, or a public
            address. This needs the extra ``media``, and the file becomes an MP4
        :param before_writing: called when the complete file is about to get its name; if it raises, nothing is written
        :returns: the path of the file
        :raises LumaValidationError: the address is not http(s) or leads to a private network; the file is over 10 GiB
        :raises LumaNotFoundError: there is no such file, e.g. because the result has expired
        :raises LumaUnavailableError: the file could not be downloaded completely
        :raises FileExistsError: a file that may be different has that name, and ``overwrite`` is off
        """
        with nullcontext(sound_from) if isinstance(sound_from, SoundSource) else self.open_sound(sound_from) as sound:
            renew = partial(self.get_download_url, luma_task_id=luma_task_id, service=service)
            options = {"renew": renew, "luma_task_id": luma_task_id, "sound": sound, "before_writing": before_writing}
            download = self._download(service, **options)
            return download.run(url, destination, name=name, overwrite=overwrite)

    def _download(self, service: str | None, **parameters: Any) -> Download:
        connection = self.get_luma_connection()
        return Download(
            session=partial(requests_session, connection),
            timeout=connection.timeout,
            service_is_public=connection.is_public,
            log=self.log,
            results_kept=SERVICES.get(service or "", connection.service).results_kept,
            **parameters,
        )

    def upload(
        self,
        source: str | ObjectStoragePath,
        *,
        check_video: bool = False,
        fail_if_killed: Callable[[], None] = lambda: None,
    ) -> LumaUpload:
        """
        Upload a file from any storage that Airflow supports, so that the service can read it. Uploads are free.

        The file is streamed with constant memory. The service keeps it for at least 24 hours. Luma's own API also
        checks the file; this method waits for that, for at most ten minutes.

        :param source: a path on this machine, or an address such as ``s3://my_aws@bucket/clip.mp4``
        :param check_video: validate the file first, and refuse it unless it is a video that the service accepts
        :param fail_if_killed: called before each piece is sent; if it raises, the upload ends
        :returns: its address (public, or ``luma-file:<id>``), its size in bytes, and when the service deletes it
        :raises LumaValidationError: there is no such file, or the service does not accept it
        :raises AirflowException: the file cannot be read
        :raises LumaError: any other refusal
        """
        client = self.get_checked_client()
        limits = client.connection.service.limits
        check_file_address("source", source, containers=limits.containers)
        file = StoredFile.find(str(source), "source")
        if check_video:
            file.check(limits, self.log)
        try:
            return Upload(client, self.log, fail_if_killed).run(file)
        except LumaAuthError:
            current = self.get_checked_client()  # the key may have been replaced during the upload
            if current.connection == client.connection:
                raise
            return Upload(current, self.log, fail_if_killed).run(file)


class LumaAsyncHook(_ConnectionType):
    """
    Call Luma from the triggerer's event loop.

    In ``async with LumaAsyncHook(...) as hook``, all calls share one keep-alive connection, which the first call opens.
    Otherwise, close the hook with :meth:`close` when done.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    def __init__(self, luma_conn_id: str = _ConnectionType.default_conn_name) -> None:
        from airflow_provider_luma.async_client import LumaAsyncClient

        super().__init__(luma_conn_id)
        self.client = LumaAsyncClient(self.get_luma_connection, self.log)

    async def __aenter__(self) -> LumaAsyncHook:
        """Return the hook; the first call opens its session."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the session."""
        await self.close()

    async def close(self) -> None:
        """Close the session; a later call opens a new one."""
        await self.client.close()

    async def get_luma_connection(self) -> LumaConnection:
        """
        Read the connection.

        :raises AirflowNotFoundException: there is no such connection
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: its address is unusable, or an option is invalid
        """
        try:
            # Finish this read even if the trigger is cancelled: on Airflow 3.1, the next caller would otherwise get
            # this response, and from then on no trigger of this triggerer would get its own.
            connection = await asyncio.shield(get_async_connection(self.luma_conn_id))
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from None
        return LumaConnection.of(connection, self.luma_conn_id)

    async def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Check the status of a job. Transient errors are retried for at most a minute.

        :param luma_task_id: the job's id at Luma
        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        return await self.client.get_task(luma_task_id)

# SPDX-License-Identifier: Apache-2.0
"""
The wire between Airflow and Luma: :class:`LumaHook` for workers, :class:`LumaAsyncHook` for the triggerer.

Both carry the requests of :mod:`airflow_provider_luma.protocol` to the service and its answers back, and
know nothing else about it. They build on the hooks of the HTTP provider, with one difference that matters: of
the connection, only what :class:`~airflow_provider_luma.connection.LumaConnection` lists is used, so that
nothing in its extra leaves as a header.

Two kinds of call are told apart. *Reading* is safe to repeat, and a passing trouble is waited out.
*Submitting* costs money: it is repeated only where the service surely accepted nothing.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import requests
import tenacity
import urllib3
from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException
from airflow.providers.http.hooks.http import HttpAsyncHook, HttpHook, SessionConfig
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.log import mask_secret

from airflow_provider_luma import callbacks, protocol
from airflow_provider_luma.connection import DEFAULT_REQUESTS_PER_SECOND, LumaConnection, missing_connection
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaNotFoundError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.download import Download
from airflow_provider_luma.protocol import LumaTask
from airflow_provider_luma.waiting import Watch, patience

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.types import Logger

#: Seconds for which a single read outside of a wait is repeated while the service is unavailable.
READ_PATIENCE = 60.0

#: Seconds for which a submission is repeated that the service surely did not accept.
SUBMIT_PATIENCE = 120.0

#: Seconds after which looks that share a hook read the connection again.
CONNECTION_TTL = 60.0

T = TypeVar("T")


class _Session(requests.Session):
    """A session whose own proxies and certificates take precedence over the environment's."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        return super().merge_environment_settings(
            url, {**self.proxies, **(proxies or {})}, stream, self.verify if verify is None else verify, cert
        )


class _BearerAuth(requests.auth.AuthBase):
    """Adds the API key to a request; requests takes it off again when a redirect leaves the host."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _LumaHookBase:
    """What both hooks tell Airflow about themselves, and how they read their connection."""

    conn_name_attr = "luma_conn_id"
    default_conn_name = "luma_default"
    conn_type = "luma"
    hook_name = "Luma"

    def __init__(self, luma_conn_id: str = default_conn_name) -> None:
        super().__init__(http_conn_id=luma_conn_id)  # type: ignore[call-arg]
        self.luma_conn_id = luma_conn_id


class LumaHook(_LumaHookBase, HttpHook):
    """
    Call Luma from a worker.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    def get_luma_connection(self) -> LumaConnection:
        """
        Read the connection, afresh at every call, so that a new API key is used as soon as it is there.

        :raises AirflowNotFoundException: there is no such connection
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: it names no usable address
        """
        try:
            connection = self.get_connection(self.luma_conn_id)
        except AirflowNotFoundException as error:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from error
        return LumaConnection.of(connection)

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """
        Return a session that carries the API key, the connection's transport options, and nothing else.

        :param headers: further headers
        :param extra_options: transport options that take precedence over the connection's
        """
        connection = self.get_luma_connection()
        session = _session(connection)
        session.auth = _BearerAuth(connection.api_key)
        session.cert = connection.cert
        session.headers.update(headers or {})
        self.base_url, self._base_url_initialized = connection.base_url, True
        self.merged_extra = {
            "timeout": connection.timeout,
            "allow_redirects": connection.allow_redirects,
            **(extra_options or {}),
        }
        return self._configure_session_from_mount_adapters(session)

    def modify_video(
        self, prompt: str, video_url: str, *, callback_url: str | None = None, watermark: str | None = None
    ) -> str:
        """
        Submit a job. It costs credits, and cannot be cancelled.

        Repeated, for two minutes at most, where the service surely did not accept it: over the rate limit,
        under maintenance, refused with a passing reason, or never reached.

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
        return self.patiently(partial(self.submit, prompt, video_url, callback_url=callback_url, watermark=watermark))

    def submit(
        self, prompt: str, video_url: str, *, callback_url: str | None = None, watermark: str | None = None
    ) -> str:
        """
        Submit a job as :meth:`modify_video` does, in one single attempt.

        :raises LumaSubmissionUnknownError: sent, but the answer was lost: the job may run, and be billed
        :raises LumaError: surely nothing was accepted
        """
        service_is_public = self.get_luma_connection().is_public
        protocol.check_prompt(prompt)
        protocol.check_video_url(video_url, service_is_public=service_is_public)
        if callback_url:
            protocol.check_callback_url(callback_url, service_is_public=service_is_public)
        return self._submit(protocol.modify_request(prompt, video_url, callback_url=callback_url, watermark=watermark))

    def get_callback_url(self, reference: str) -> str | None:
        """
        Return the address of Airflow that Luma is to call when a job has ended; None without ``callback_base_url``.

        :param reference: a name for the submission that nobody can guess
        :raises LumaValidationError: Luma could never call there
        """
        connection = self.get_luma_connection()
        if problem := callbacks.unreachable_base(connection):
            raise LumaValidationError(None, f"connection {self.luma_conn_id!r}: {problem}")
        url = callbacks.callback_url(connection, self.luma_conn_id, reference)
        if url is not None:
            mask_secret(callbacks.token_of(url))
        return url

    def is_job_of(self, task: LumaTask, reference: str) -> bool:
        """
        Tell whether a job was made by a submission of ours: whether Luma was told to call that one's address.

        :param reference: the submission's name
        """
        return callbacks.is_ours(task.callback_url, self.get_luma_connection(), reference)

    def patiently(self, submit: Callable[[], str], rate_limit_patience: float = SUBMIT_PATIENCE) -> str:
        """
        Repeat an attempt to submit while it surely was not accepted for a passing reason.

        An outage of the service is waited out for two minutes at most, counted from its beginning.

        :param submit: one attempt; an attempt with an unknown outcome is never repeated
        :param rate_limit_patience: seconds for which it is repeated at most, all in all
        """
        away_since: float | None = None

        def stop(state: tenacity.RetryCallState) -> bool:
            nonlocal away_since
            elapsed = state.seconds_since_start or 0.0
            is_away = state.outcome is not None and isinstance(state.outcome.exception(), LumaUnavailableError)
            away_since = (elapsed if away_since is None else away_since) if is_away else None
            until = rate_limit_patience
            if away_since is not None:
                until = min(until, away_since + SUBMIT_PATIENCE)
            return elapsed + state.upcoming_sleep >= until

        options = {**patience(SUBMIT_PATIENCE), "stop": stop}
        return tenacity.Retrying(**options, before_sleep=self._log_refusal)(submit)

    def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Look at a job. Passing trouble is waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        return tenacity.Retrying(**patience(READ_PATIENCE))(self._look, luma_task_id)

    def get_credits(self) -> float:
        """
        Return the account's remaining credits. Passing trouble is waited out, for a minute at most.

        :raises LumaError: the service refused
        """
        return tenacity.Retrying(**patience(READ_PATIENCE))(self._credits)

    def get_download_url(self, result_url: str) -> str:
        """
        Return a temporary download address of a result, valid for 20 minutes.

        :param result_url: one of a job's result_urls
        :raises LumaError: the service refused, e.g. because the file is not one of its own
        """
        request = protocol.download_url_request(result_url)
        read = partial(self._read, request, protocol.read_download_url)
        return tenacity.Retrying(**patience(READ_PATIENCE))(read)

    def wait_for_completion(self, luma_task_id: str, *, timeout: float = 1800, poll_interval: float = 30) -> LumaTask:
        """
        Wait, in this process, until a job has ended well.

        :param timeout: seconds to wait at most
        :param poll_interval: seconds between two looks; the service recommends 30
        :returns: the finished job, with at least one result URL
        :raises LumaGenerationError: the job failed
        :raises LumaTimeoutError: the job is still running after the timeout
        :raises LumaError: the service refused for good
        """
        protocol.check_luma_task_id(luma_task_id)
        protocol.check_positive("timeout", timeout)
        protocol.check_positive("poll_interval", poll_interval)
        self.get_luma_connection()  # what is wrong with it had better be said now than waited out
        watch = Watch(luma_task_id, poll_interval=poll_interval, end_time=time.time() + timeout)
        while not isinstance(outcome := self.look(watch), LumaTask):
            time.sleep(outcome)
        return outcome

    def check(self, luma_task_id: str, *, patiently: bool = False) -> LumaTask | None:
        """
        Look at a job, and again for some seconds where a look leaves a doubt about its id or its result.

        :param patiently: wait out passing trouble, for a minute at most
        :returns: the job, if it has ended well; None if it is running
        :raises LumaGenerationError: the job failed
        :raises LumaNotFoundError: the service does not know the id
        :raises LumaRateLimitError, LumaUnavailableError: the service could not be asked
        :raises LumaError: any other refusal
        """
        watch = Watch(luma_task_id, poll_interval=READ_PATIENCE)
        give_up = time.monotonic() + (READ_PATIENCE if patiently else 0.0)
        while not isinstance(outcome := self.look(watch), LumaTask):
            if watch.trouble is not None and time.monotonic() >= give_up:
                raise watch.trouble
            if watch.trouble is None and watch.is_settled:
                return None
            time.sleep(outcome)
        return outcome

    def look(self, watch: Watch) -> LumaTask | float:
        """
        Look once at a watched job, and log what is worth a line.

        :returns: the job, if it has ended well, or the seconds to wait before the next look
        :raises LumaError: what the watch decided to end with
        """
        task: LumaTask | None = None
        try:
            task = self._look(watch.luma_task_id)
        except LumaError as error:
            delay: float | None = watch.stumbled(error, time.time())
        except (AirflowException, AirflowRuntimeError) as error:
            delay = watch.stumbled(_unreadable_connection(error), time.time())
        else:
            delay = watch.saw(task, time.time())
        return _outcome(self.log, watch, task, delay)

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
        :param overwrite: fetch, and replace, a file that is there already; otherwise one of the right length is
            left alone
        :returns: where the file is
        :raises LumaValidationError: the address is no http(s) address, or leads to a private network
        :raises LumaNotFoundError: there is no such file, e.g. because the result has expired
        :raises LumaUnavailableError: the file could not be had in one piece
        :raises FileExistsError: another file has that name, and ``overwrite`` is off
        """
        connection = self.get_luma_connection()
        return Download(
            session=partial(_session, connection),
            timeout=connection.timeout,
            service_is_public=connection.is_public,
            renew=self.get_download_url,
            log=self.log,
        ).run(url, destination, name=name, overwrite=overwrite)

    def test_connection(self) -> tuple[bool, str]:
        """Say how many credits are left, or what is wrong and where to mend it."""
        try:
            remaining = self._credits()
        except (LumaError, AirflowNotFoundException) as error:
            return False, str(error)
        return True, f"Connected to {self.base_url}: {remaining:g} credits left"

    def _look(self, luma_task_id: str) -> LumaTask:
        return self._read(protocol.task_request(luma_task_id), partial(protocol.read_task, luma_task_id=luma_task_id))

    def _credits(self) -> float:
        return self._read(protocol.credits_request(), protocol.read_credits)

    def _read(self, request: protocol.Request, read: Callable[[protocol.Response], T]) -> T:
        try:
            response = self._send(request)
        except requests.RequestException as error:
            # Its words tell all; its traceback would only fill a screen of the task's log.
            raise LumaUnavailableError(None, f"{self.base_url} did not answer: {_reason(error)}") from None
        return read(response)

    def _submit(self, request: protocol.Request) -> str:
        try:
            response = self._send(request)
        except requests.RequestException as error:
            if _never_connected(error):
                raise LumaUnavailableError(None, f"{self.base_url} could not be reached: {_reason(error)}") from None
            raise LumaSubmissionUnknownError(
                None,
                f"the submission was sent to {self.base_url}, but no answer came: {_reason(error)}. "
                "It may have been accepted",
            ) from None
        return protocol.read_submission(response)

    def _send(self, request: protocol.Request) -> protocol.Response:
        # A session per call, as in HttpHook: a kept connection that the server has closed meanwhile would make
        # the outcome of a submission unknown without need.
        with self.get_conn() as session:
            response = session.request(
                request.method,
                self.base_url + request.path,
                params=request.query,
                json=request.json,
                timeout=self.merged_extra["timeout"],
                allow_redirects=self.merged_extra["allow_redirects"],
            )
            return _response(response.status_code, response.content, response.headers)

    def _log_refusal(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        self.log.warning("The submission was not accepted: %s. Nothing was billed; again in %.0f s", error, seconds)


class LumaAsyncHook(_LumaHookBase, HttpAsyncHook):
    """
    Call Luma from the triggerer's event loop.

    Used as ``async with LumaAsyncHook(...) as hook``, all calls share one kept connection, opened by the first.
    Without that, close the hook with :meth:`close` when done.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    def __init__(self, luma_conn_id: str = _LumaHookBase.default_conn_name) -> None:
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
            connection = await get_async_connection(self.luma_conn_id)
        except AirflowNotFoundException as error:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from error
        return LumaConnection.of(connection)

    async def config(self) -> SessionConfig:
        """Return what the HTTP provider's own ``run`` sends: the API key, and nothing of the connection's extra."""
        connection = await self.get_luma_connection()
        return SessionConfig(base_url=connection.base_url, headers={"Authorization": f"Bearer {connection.api_key}"})

    async def get_task(self, luma_task_id: str) -> LumaTask:
        """
        Look at a job. Passing trouble is waited out, for a minute at most.

        :raises LumaNotFoundError: the service does not know the id
        :raises LumaError: any other refusal
        """
        return await tenacity.AsyncRetrying(**patience(READ_PATIENCE))(self._look, luma_task_id)

    async def look(self, watch: Watch) -> LumaTask | float:
        """
        Look once at a watched job, and log what is worth a line.

        :returns: the job, if it has ended well, or the seconds to wait before the next look
        :raises LumaError: what the watch decided to end with
        """
        task: LumaTask | None = None
        try:
            task = await self._look_with_current_key(watch.luma_task_id)
        except LumaError as error:
            delay: float | None = watch.stumbled(error, time.time())
        except (AirflowException, AirflowRuntimeError) as error:
            delay = watch.stumbled(_unreadable_connection(error), time.time())
        else:
            watch.is_called_back = self._connection is not None and callbacks.is_ours(
                task.callback_url, self._connection
            )
            delay = watch.saw(task, time.time())
        return _outcome(self.log, watch, task, delay)

    async def get_requests_per_second(self) -> float:
        """Return how many status checks a second the connection allows; the default if it cannot be read now."""
        try:
            connection, _ = await self._opened()
        except (LumaError, AirflowException, AirflowRuntimeError):
            return DEFAULT_REQUESTS_PER_SECOND  # what is wrong is said, and dealt with, at every look
        return connection.requests_per_second

    async def _look_with_current_key(self, luma_task_id: str) -> LumaTask:
        used = self._connection
        try:
            return await self._look(luma_task_id)
        except (LumaAuthError, LumaNotFoundError):
            # The key, or the whole account, may have been replaced while we waited.
            used = used or self._connection
            if await self.get_luma_connection() == used:
                raise
            if self._connection is used:
                self._retire_session()
            return await self._look(luma_task_id)

    def _retire_session(self) -> None:
        """Use the session no more; other looks may still be under way on it."""
        if self._session is not None:
            self._retired.append(self._session)
        self._session = None

    async def _look(self, luma_task_id: str) -> LumaTask:
        response = await self._send(protocol.task_request(luma_task_id))
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
                return _response(response.status, await response.read(), response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise LumaUnavailableError(None, f"{connection.base_url} did not answer: {reason}") from None

    async def _opened(self) -> tuple[LumaConnection, aiohttp.ClientSession]:
        async with self._opening:
            connection, session = self._connection, self._session
            if connection is None or session is None or time.monotonic() - self._read_at >= CONNECTION_TTL:
                connection = await self._read_again()
            if connection != self._connection or session is None:
                self._retire_session()
                session = self._session = await self._open(connection)
                self._connection = connection
            return connection, session

    async def _read_again(self) -> LumaConnection:
        """Read the connection; where that fails for now, go on with what was read before."""
        try:
            connection = await self.get_luma_connection()
        except (LumaError, AirflowException, AirflowRuntimeError):
            if self._connection is None or self._session is None:
                raise
            connection = self._connection
        self._read_at = time.monotonic()
        return connection

    async def _open(self, connection: LumaConnection) -> aiohttp.ClientSession:
        self._proxy = _proxy(connection)
        # Not trust_env: that would also read a .netrc, whose entries aiohttp cannot combine with the key.
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {connection.api_key}"},
            timeout=aiohttp.ClientTimeout(total=connection.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # looks have nothing to remember
            connector=aiohttp.TCPConnector(
                ssl=await asyncio.to_thread(_ssl, connection),
                limit=max(1, int(connection.requests_per_second)),
            ),
        )


def _session(connection: LumaConnection) -> requests.Session:
    """Return a session with the connection's transport options, and without any credentials."""
    session = _Session()
    session.proxies = dict(connection.proxies)
    session.verify = connection.verify
    session.trust_env = connection.trust_env
    session.max_redirects = connection.max_redirects
    return session


def _ssl(connection: LumaConnection) -> ssl.SSLContext | bool:
    """Return the connection's certificates as aiohttp wants them. Reads files."""
    if connection.verify is False and connection.cert is None:
        return False
    bundle = Path(connection.verify) if isinstance(connection.verify, str) else None
    if bundle is None and connection.cert is None:
        return True
    context = ssl.create_default_context(
        cafile=bundle if bundle and bundle.is_file() else None,
        capath=bundle if bundle and bundle.is_dir() else None,
    )
    if connection.verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if connection.cert is not None:
        files = (connection.cert,) if isinstance(connection.cert, str) else connection.cert
        context.load_cert_chain(*files)
    return context


def _outcome(log: Logger, watch: Watch, task: LumaTask | None, delay: float | None) -> LumaTask | float:
    """Log a look's news at a human pace; return the finished job, or the seconds until the next look."""
    if line := watch.progress(time.time()):
        log.log(*line)
    if delay is not None:
        return delay
    assert task is not None, "a watch is finished by a job it saw"
    return task


def _response(status: int, body: bytes, headers: Mapping[str, str]) -> protocol.Response:
    return protocol.Response(status, body, headers.get("Retry-After"), headers.get("Location"))


def _proxy(connection: LumaConnection) -> str | None:
    """Return the proxy on the way to the service, chosen as requests does."""
    url = connection.base_url
    environment = requests.utils.get_environ_proxies(url) if connection.trust_env else {}
    proxy: str | None = requests.utils.select_proxy(url, {**environment, **connection.proxies})
    return proxy


def _unreadable_connection(error: Exception) -> LumaUnavailableError:
    # The API server or a secrets backend is down, or the connection is just being replaced: no reason to give up
    # a job that is paid for.
    return LumaUnavailableError(None, f"the connection could not be read: {error}")


def _reason(error: requests.RequestException) -> str:
    """Return what happened, without the layers around it and the addresses of objects."""
    cause = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    if isinstance(cause, urllib3.exceptions.ProtocolError) and len(cause.args) > 1:
        cause = cause.args[1]
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>(: )?", "", str(cause)) or type(error).__name__


#: What OpenSSL calls a handshake that failed before anything was sent.
_FAILED_HANDSHAKES = frozenset(
    {
        "CERTIFICATE_VERIFY_FAILED",
        "HTTP_REQUEST",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)


def _never_connected(error: requests.RequestException) -> bool:
    """Tell whether a request failed before any of it could reach the service."""
    if isinstance(error, (requests.exceptions.ConnectTimeout, ValueError)):  # a ValueError: no such address
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, urllib3.exceptions.ProxyError):
        # Also raised for an answer lost on the way back through a proxy: what is behind it decides.
        reason = reason.original_error
        if isinstance(reason, OSError) and str(reason).startswith("Tunnel connection failed"):
            return True
    if isinstance(reason, urllib3.exceptions.SSLError) and reason.args:
        return getattr(reason.args[0], "reason", None) in _FAILED_HANDSHAKES
    return isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))

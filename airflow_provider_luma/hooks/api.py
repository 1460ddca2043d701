# SPDX-License-Identifier: Apache-2.0
"""
Calls from a worker to the service, and the connection that they use.

Built on the HTTP provider's hook, with one difference that matters: of the connection, only what
:class:`~airflow_provider_luma.connection.LumaConnection` lists is used, so that nothing of its extra is sent as a
header.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import tenacity
from airflow.providers.http.hooks.http import HttpHook

from airflow_provider_luma.compat import AirflowNotFoundException
from airflow_provider_luma.connection import LumaConnection, missing_connection
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.job import Request, Response
from airflow_provider_luma.exceptions import LumaError, LumaUnavailableError
from airflow_provider_luma.hooks.base import LumaHookBase
from airflow_provider_luma.services.kie import UPLOAD_PATH
from airflow_provider_luma.transport.options import check_options, triggerer_proxy_of
from airflow_provider_luma.transport.workers import api_session, check_before_send, read_body, reason_of, to_response

if TYPE_CHECKING:
    from airflow_provider_luma.files.upload import MultipartFile

#: Seconds for the answer to an upload at least: the service may store the whole file before it answers.
UPLOAD_ANSWER_TIMEOUT = 120.0

T = TypeVar("T")


class LumaApiHook(LumaHookBase, HttpHook):
    """
    Call the service with the connection's API key.

    :param luma_conn_id: the connection, of type Luma, that holds the API key
    """

    #: With which a request was checked: the attempt to submit that follows uses the same.
    _checked_connection: LumaConnection | None = None

    @property
    def luma_connection(self) -> LumaConnection:
        """The connection with which a request was checked, or else a fresh one."""
        return self._checked_connection or self.get_luma_connection()

    def get_luma_connection(self) -> LumaConnection:
        """
        Read the connection, afresh at every call, so that a new API key is used as soon as there is one.

        :raises AirflowNotFoundException: there is no such connection
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: it names no usable address
        """
        try:
            connection = self.get_connection(self.luma_conn_id)
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing_connection(self.luma_conn_id)) from None
        return LumaConnection.of(connection)

    def check_connection(self) -> LumaConnection:
        """Read the connection, as :meth:`get_luma_connection` does, and the files that it names."""
        connection = self.get_luma_connection()
        check_options(connection)
        return connection

    def check_wait_in_triggerer(self) -> None:
        """
        Refuse what works here, and does not in the triggerer, before a job is paid for that is waited for there.

        :raises LumaValidationError: names the remedy
        """
        triggerer_proxy_of(self.luma_connection)

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """
        Return a session that carries the API key, the connection's transport options, and nothing else.

        :param headers: further headers
        :param extra_options: transport options that take precedence over the connection's
        """
        return self._open(self.get_luma_connection(), headers, extra_options)

    def _open(self, connection: LumaConnection, headers: Any = None, extra_options: Any = None) -> requests.Session:
        session = api_session(connection)
        session.headers.update(headers or {})
        self.base_url, self._base_url_initialized = connection.base_url, True
        self.merged_extra = {
            "timeout": connection.timeout,
            "allow_redirects": connection.allow_redirects,
            **(extra_options or {}),
        }
        return self._configure_session_from_mount_adapters(session)

    # -- the wire ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _retry_read(read: Callable[[], T]) -> T:
        return tenacity.Retrying(**backoff.retry_options(backoff.READ_RETRY_TIMEOUT))(read)

    def _read(
        self,
        request: Request,
        read: Callable[[Response], T],
        connection: LumaConnection | None = None,
    ) -> T:
        self._checked_connection = None  # it may be old by the time of a submission that follows
        connection = connection or self.get_luma_connection()
        try:
            response = self._send(request, connection)
        except LumaError:
            raise
        except (OSError, ValueError) as error:  # the latter of an address that is none, also in a redirect
            # Its text says all; its traceback would only fill a screen of the task's log.
            reason = reason_of(error, connection)
            raise LumaUnavailableError(None, f"{self.base_url} did not answer: {reason}") from None
        return read(response)

    def _send(
        self,
        request: Request,
        connection: LumaConnection,
        before_send: Callable[[], None] = lambda: None,
    ) -> Response:
        # A session per call, as in HttpHook: a kept connection that the server has closed meanwhile would make
        # the outcome of a submission unknown without need.
        with self._open(connection) as session:
            check_before_send(session, before_send)
            response = session.request(
                request.method,
                self.base_url + request.path,
                params=request.query,
                json=request.json,
                timeout=self.merged_extra["timeout"],
                allow_redirects=self.merged_extra["allow_redirects"],
                stream=True,
            )
            return to_response(connection, response.status_code, read_body(response), response.headers)

    def _send_form(self, form: MultipartFile) -> Response:
        """
        Send a file to the upload host.

        :raises LumaUnavailableError: the host could not be reached, or its answer was lost
        """
        connection = self.get_luma_connection()
        try:
            with self._open(connection) as session:
                check_before_send(session, lambda: None)
                response = session.post(
                    connection.upload_url + UPLOAD_PATH,
                    data=form,
                    headers={"Content-Type": form.content_type},
                    timeout=(connection.timeout, max(connection.timeout, UPLOAD_ANSWER_TIMEOUT)),
                    allow_redirects=False,
                    stream=True,
                )
                return to_response(connection, response.status_code, read_body(response), response.headers)
        except OSError as error:
            reason = reason_of(error, connection)
            raise LumaUnavailableError(None, f"{connection.upload_url} did not answer: {reason}") from None

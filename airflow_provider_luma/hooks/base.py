# SPDX-License-Identifier: Apache-2.0
"""What the two hooks share: their names, and how they take the result of a status check."""

from __future__ import annotations

import time

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import callback_token
from airflow_provider_luma.core.job import LumaTask
from airflow_provider_luma.core.poll_state import Failed, PollOutcome, PollState
from airflow_provider_luma.exceptions import LumaAuthError, LumaError, LumaUnavailableError

#: What may come in place of a job's status: an error of the service, or of reading the connection.
POLL_ERRORS = (LumaError, AirflowException, AirflowRuntimeError)


class LumaHookBase:
    """What both hooks tell Airflow about themselves, and how they take the result of a status check."""

    conn_name_attr = "luma_conn_id"
    default_conn_name = "luma_default"
    conn_type = "luma"
    hook_name = "Luma"

    def __init__(self, luma_conn_id: str = default_conn_name) -> None:
        super().__init__(http_conn_id=luma_conn_id)  # type: ignore[call-arg]
        self.luma_conn_id = luma_conn_id

    @staticmethod
    def _unreadable_connection(error: Exception) -> LumaUnavailableError:
        """
        Return what an unreadable connection means for a wait.

        The API server or a secrets backend is down, or somebody is just editing the connection: no reason to give up a
        job that is paid for.
        """
        return LumaUnavailableError(None, f"the connection could not be read: {error}")

    def _take(
        self, state: PollState, result: LumaTask | Exception, connection: LumaConnection | None = None
    ) -> PollOutcome:
        """
        Bring the result of a status check into the poll state, and log its progress.

        :param result: the job, or why its status could not be had
        :param connection: where given, a callback to its address is expected to end the wait
        """
        now = time.time()
        if isinstance(result, LumaTask):
            # One that comes over another connection, even with the same API key, resumes no task of this one.
            expects_callback = connection is not None and callback_token.is_ours(
                result.callback_url, connection, conn_id=self.luma_conn_id
            )
            outcome = state.on_status(result, now, expects_callback=expects_callback)
        elif isinstance(result, LumaAuthError):
            refused = f"the API key of connection {self.luma_conn_id!r} is refused: {result.msg}"
            outcome = state.on_error(LumaAuthError(result.code, refused), now)
        elif isinstance(result, LumaError):
            outcome = state.on_error(result, now)
        else:
            outcome = state.on_error(self._unreadable_connection(result), now)
        if not isinstance(outcome, Failed) and (progress := state.progress(now)):
            self.log.log(*progress)  # type: ignore[attr-defined]
        return outcome

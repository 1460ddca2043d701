# SPDX-License-Identifier: Apache-2.0
"""One attempt to submit: an intent in the store before the request, and the job's id after its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import tenacity
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.exceptions import LumaError, LumaSubmissionUnknownError
from airflow_provider_luma.submission.store import try_store

#: Seconds before the job's id is written once more, if that has failed: without it, a person has to look for the job.
SAVE_RETRY_DELAY = 1.0

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.core.decision import SubmissionRecord
    from airflow_provider_luma.core.job import ModifyRequest
    from airflow_provider_luma.files.input_video import InputVideo
    from airflow_provider_luma.hooks.luma import LumaHook
    from airflow_provider_luma.submission.store import SubmissionStore


class SubmissionAttempt:
    """
    A submission that is sent once each time it is called.

    :param client: the service
    :param store: where the record of the task's submission lives
    :param log: the task's log
    :param request: what to submit
    :param video: its input
    :param intent: the record to write before
    :param fail_if_killed: called just before anything is sent; raises if the task was killed
    :ivar is_forgotten: whether the store holds no intent of an attempt that was refused
    """

    def __init__(
        self,
        client: LumaHook,
        store: SubmissionStore,
        log: Logger,
        *,
        request: ModifyRequest,
        video: InputVideo,
        intent: SubmissionRecord,
        fail_if_killed: Callable[[], None],
    ) -> None:
        self._client, self._store, self._log = client, store, log
        self._request, self._video = request, video
        self._intent = intent
        self._fail_if_killed = fail_if_killed
        self.is_forgotten = True

    def __call__(self) -> str:
        """
        Submit.

        :returns: the job's id at Luma
        :raises LumaSubmissionUnknownError: sent, but the answer was lost: the job may run, and be billed
        :raises AirflowException: the storage could not sign, the intent could not be recorded, another try has taken
            over, or the task was killed; nothing was sent
        :raises LumaError: surely nothing was accepted
        """
        self._fail_if_killed()
        if not self.is_forgotten:
            self._try_to_forget()
        if not self.is_forgotten:
            raise AirflowException(
                "The submission store still holds an attempt that was refused, so nothing more is submitted by this try"
            )
        request = replace(self._request, video_url=self._video.renewed(self._request.video_url))
        try:
            self._store.begin(self._intent)
        except Exception:
            self._log.warning("The submission could not be recorded, so nothing was submitted")
            self._try_to_forget()  # the write may have been done all the same, and only its answer lost
            raise
        try:
            luma_task_id = self._client.submit(request, before_send=self._fail_if_overtaken)
        except LumaSubmissionUnknownError:
            raise  # the intent stays, for the next try to find
        except (LumaError, AirflowException, AirflowRuntimeError):
            # Refused, never sent, or the connection could not be read: surely nothing was accepted.
            self._try_to_forget()
            raise
        self._log.info("Luma accepted the job as Luma task %s", luma_task_id)
        try_store(self._log, self._save, replace(self._intent, luma_task_id=luma_task_id, replaced=None))
        return luma_task_id

    def _fail_if_overtaken(self) -> None:
        """
        Raise if this process must send nothing any more.

        It may have been frozen, with its machine, since it wrote the intent. Meanwhile the next try has reported that
        the outcome is unknown, and a person has cleared the task.
        """
        self._fail_if_killed()
        if not self._store.is_durable:
            return
        try:
            record = self._store.load()
        except Exception as error:
            raise AirflowException(
                f"The submission store cannot tell whether this try is still the one to submit: {error}. "
                "Nothing was sent"
            ) from error
        if record != self._intent:
            raise AirflowException(
                "Another try, or a person, has taken over while this one was about to submit. Nothing was sent"
            )

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(SAVE_RETRY_DELAY), reraise=True)
    def _save(self, record: SubmissionRecord) -> None:
        self._store.save(record)

    def _try_to_forget(self) -> None:
        self.is_forgotten = try_store(self._log, self._forget) is True

    def _forget(self) -> bool:
        self._store.forget(self._intent)
        return True

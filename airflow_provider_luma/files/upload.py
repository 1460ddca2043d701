# SPDX-License-Identifier: Apache-2.0
"""
Upload of one file to the service, streamed from any storage with constant memory.

An upload costs nothing, so whatever may pass is tried again. A file's name at the service is its own, as an edge of the
service may go on serving what an earlier upload has left under the same name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import tenacity

from airflow_provider_luma.core.backoff import retry_options
from airflow_provider_luma.core.job import LumaUpload
from airflow_provider_luma.files.multipart import MultipartFile
from airflow_provider_luma.files.progress import PROGRESS_INTERVAL, megabytes
from airflow_provider_luma.services.kie import UPLOAD_FOLDER, read_upload

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.core.job import Response
    from airflow_provider_luma.files.stored_file import StoredFile

#: How often an upload is tried within a try of the task.
MAX_ATTEMPTS = 5


@dataclass
class Upload:
    """
    How a file is uploaded.

    :param send: sends a form to the service
    :param log: where progress is told
    :param fail_if_killed: called before each piece that is sent; what it raises ends the upload
    """

    send: Callable[[MultipartFile], Response]
    log: Logger
    fail_if_killed: Callable[[], None]

    def run(self, file: StoredFile) -> LumaUpload:
        """
        Upload a file, again if the service cannot take it for now.

        :raises LumaValidationError: the service does not take this file
        :raises LumaError: any other refusal
        :raises AirflowException: the file could not be read, or was changed meanwhile
        """
        self.log.info("Uploading %s to Luma (%s)", file.shown, megabytes(file.size))
        retrying = tenacity.Retrying(
            **{**retry_options(0), "stop": tenacity.stop_after_attempt(MAX_ATTEMPTS)}, before_sleep=self._log_retry
        )
        upload: LumaUpload = retrying(self._attempt, file)
        file.check_unchanged()
        self.log.info("Uploaded %s; Luma keeps it until %s", file.shown, f"{upload.expires_at:%Y-%m-%d %H:%M:%S UTC}")
        return upload

    def _attempt(self, file: StoredFile) -> LumaUpload:
        progress = _Progress(file, self.log, self.fail_if_killed)
        form = MultipartFile(file, {"uploadPath": UPLOAD_FOLDER, "fileName": file.name}, progress.add)
        return read_upload(self.send(form), file.size, datetime.now(UTC))

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        self.log.warning("The upload failed: %s. It starts over in %.0f s", error, seconds)


class _Progress:
    """Tells how far an upload is, every few seconds."""

    def __init__(self, file: StoredFile, log: Logger, fail_if_killed: Callable[[], None]) -> None:
        self._file, self._log, self._fail_if_killed = file, log, fail_if_killed
        self._done = 0
        self._logged_at = time.monotonic()

    def add(self, count: int) -> None:
        self._fail_if_killed()
        self._done += count
        if time.monotonic() - self._logged_at >= PROGRESS_INTERVAL:
            self._logged_at = time.monotonic()
            done, size = megabytes(self._done), megabytes(self._file.size)
            self._log.info("Uploaded %s of %s, %.0f %%", done, size, 100 * self._done / self._file.size)

# SPDX-License-Identifier: Apache-2.0
"""
Upload of one file to the service, streamed from any storage with constant memory.

An upload costs nothing, so it is retried after any temporary error. Each version of a file has a unique name at the
service, whose edge servers may go on serving an earlier upload of the same name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

import tenacity
from urllib3.fields import RequestField
from urllib3.filepost import choose_boundary

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.backoff import retry_options
from airflow_provider_luma.core.job import LumaUpload
from airflow_provider_luma.exceptions import LumaError
from airflow_provider_luma.files.progress import PROGRESS_INTERVAL, megabytes
from airflow_provider_luma.files.put import put
from airflow_provider_luma.files.stored_file import BLOCK_SIZE
from airflow_provider_luma.services.base import SendFile, SendForm

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.client import LumaClient
    from airflow_provider_luma.core.job import Response
    from airflow_provider_luma.files.stored_file import StoredFile
    from airflow_provider_luma.services.base import UploadStep


#: Attempts to upload a file within a try of the task.
MAX_ATTEMPTS = 5

#: Seconds after which a task that waits notices that it was killed.
KILL_CHECK_INTERVAL = 1.0


@dataclass
class Upload:
    """
    Uploads files.

    :param client: a client of the service, which defines the steps of an upload
    :param log: where progress is logged
    :param fail_if_killed: called before each piece that is sent; what it raises ends the upload
    """

    client: LumaClient
    log: Logger
    fail_if_killed: Callable[[], None]

    def run(self, file: StoredFile) -> LumaUpload:
        """
        Upload a file, and retry while the service is unavailable.

        :raises LumaValidationError: the service does not take this file
        :raises LumaError: any other refusal
        :raises AirflowException: the file could not be read, or changed meanwhile
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
        """Take the service's steps, once."""
        progress = _Progress(file, self.log, self.fail_if_killed)
        steps = self.client.connection.service.upload(file.name, file.size, datetime.now(UTC))
        try:
            step = next(steps)
            while True:
                try:
                    response = self._take(step, file, progress)
                except LumaError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            upload: LumaUpload = end.value
            return upload

    def _take(self, step: UploadStep, file: StoredFile, progress: _Progress) -> Response:
        self.fail_if_killed()
        if isinstance(step, SendForm):
            return self.client.send_form(step.path, FileForm(file, step.fields, progress.add))
        if isinstance(step, SendFile):
            return put(self.client.connection, step, FileBody(file, progress.add))
        progress.wait(step.delay)
        return self.client.call(step.request)

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        self.log.warning("Upload failed: %s. Starting over in %.0f s", error, seconds)


class _Progress:
    """Logs the progress of an upload every few seconds."""

    def __init__(self, file: StoredFile, log: Logger, fail_if_killed: Callable[[], None]) -> None:
        self._file, self._log, self._fail_if_killed = file, log, fail_if_killed
        self._done, self._waited = 0, 0.0
        self._logged_at = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that are about to be sent."""
        self._fail_if_killed()
        self._done += count
        if self._is_due():
            done, size = megabytes(self._done), megabytes(self._file.size)
            self._log.info("Uploaded %s of %s, %.0f %%", done, size, 100 * self._done / self._file.size)

    def wait(self, seconds: float) -> None:
        """Wait between two calls, for a service that checks the file before it accepts it."""
        if seconds and (self._is_due() or not self._waited):
            self._log.info("Waiting until Luma has checked %s (%.0f s so far)", self._file.shown, self._waited)
        self._waited += seconds
        wait_until = time.monotonic() + seconds
        while (remaining := wait_until - time.monotonic()) > 0:
            time.sleep(min(remaining, KILL_CHECK_INTERVAL))
            self._fail_if_killed()

    def _is_due(self) -> bool:
        if time.monotonic() - self._logged_at < PROGRESS_INTERVAL:
            return False
        self._logged_at = time.monotonic()
        return True


class FileBody:
    """
    A file as the body of a request, read piece by piece as it is sent.

    It has a length, so it is sent with a Content-Length.

    :param file: what to send
    :param on_piece: called with the size of each piece before it is sent; what it raises ends the request
    """

    def __init__(self, file: StoredFile, on_piece: Callable[[int], None]) -> None:
        self._file, self._on_piece = file, on_piece

    def __len__(self) -> int:
        return self._file.size

    def __iter__(self) -> Iterator[bytes]:
        with self._file.open() as source:
            remaining = self._file.size
            while remaining:
                piece = self._read(source, min(BLOCK_SIZE, remaining))
                self._on_piece(len(piece))
                remaining -= len(piece)
                yield piece

    def _read(self, source: IO[bytes], size: int) -> bytes:
        try:
            piece = source.read(size)
        except Exception as error:
            # Not an OSError: that would count as a failure of the connection to the service.
            raise AirflowException(f"{self._file.parameter}: {self._file.shown} could not be read: {error}") from error
        if not piece:
            self._file.check_unchanged()
            raise AirflowException(f"{self._file.parameter}: {self._file.shown} is shorter than its storage says")
        return piece


class FileForm:
    """
    A multipart form that holds one file (RFC 7578).

    It has a length, too. HTTP clients would send a form without a length, or read the whole file into memory.

    :param file: what to send
    :param fields: the other fields of the form
    :param on_piece: as for :class:`FileBody`
    """

    def __init__(self, file: StoredFile, fields: Mapping[str, str], on_piece: Callable[[int], None]) -> None:
        boundary = choose_boundary()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [RequestField(name, value) for name, value in fields.items()]
        for part in parts:
            part.make_multipart()
        head = RequestField("file", b"", filename=file.name)
        head.make_multipart(content_type="application/octet-stream")
        lines = [f"--{boundary}\r\n{part.render_headers()}{part.data!s}\r\n" for part in parts]
        self._start = "".join([*lines, f"--{boundary}\r\n{head.render_headers()}"]).encode()
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._body = FileBody(file, on_piece)

    def __len__(self) -> int:
        return len(self._start) + len(self._body) + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        yield self._start
        yield from self._body
        yield self._end

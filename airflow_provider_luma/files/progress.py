# SPDX-License-Identifier: Apache-2.0
"""The progress of a download over all its connections: when to resume it, to start over, and to give up."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_luma.core.backoff import backoff_delay
from airflow_provider_luma.core.redaction import without_secrets
from airflow_provider_luma.exceptions import LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.source import content_length, ends_by_itself, new_throughput, strong_validator
from airflow_provider_luma.media.file_structure import Boxes, Extent

if TYPE_CHECKING:
    import requests
    from airflow.sdk.types import Logger

    from airflow_provider_luma.transport.adapter import Throughput

#: Bytes of the largest file that is downloaded.
MAX_SIZE = 10 * 1024**3

#: Attempts in a row without a new byte, and restarts from the first byte, after which a download is given up.
MAX_ATTEMPTS_WITHOUT_PROGRESS, MAX_RESTARTS = 5, 5

#: Seconds between two log lines about a download's progress.
PROGRESS_INTERVAL = 10.0


@dataclass
class Transfer:
    """
    The progress of a download, and its failures so far.

    :param original_url: the file's own address
    :param url: where it is fetched from
    :param log: where progress is logged
    """

    original_url: str
    url: str
    log: Logger
    done: int = 0
    total: int | None = None
    version: str | None = None
    boxes: Boxes = field(default_factory=Boxes)
    ends_by_itself: bool = False
    interruption: str = "it keeps changing"
    failures: int = 0
    restarts: int = 0
    renewed_at: int | None = None
    throughput: Throughput = field(default_factory=new_throughput)
    logged_at: float = field(default_factory=time.monotonic)

    @property
    def is_complete(self) -> bool:
        """
        Whether all bytes have arrived, provided that the connection ended cleanly.

        If its length is unknown, the boxes of an MP4 or MOV show where it ends; for other files, the last chunk does.
        Without either, only another request can show that nothing follows.
        """
        if self.total is not None:
            return self.done == self.total
        extent = self.boxes.extent()
        return extent is Extent.WHOLE or (extent is Extent.UNKNOWN and self.ends_by_itself and self.done > 0)

    @property
    def can_continue(self) -> bool:
        """Whether the next bytes can be requested: without a version, they might be those of another file."""
        return self.done == 0 or (self.version is not None and (self.total is None or self.done <= self.total))

    def continues_with(self, response: requests.Response) -> bool:
        """
        Return whether a response continues the same file where the last one ended.

        :raises LumaValidationError: the file is too large
        """
        self.ends_by_itself = response.status_code == 200 and ends_by_itself(response)
        if self.done == 0:
            self.total, self.version, self.boxes = content_length(response), strong_validator(response), Boxes()
            self._check_size(self.total or 0)
            return True
        part = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip(), re.ASCII
        )
        if response.status_code != 206 or part is None or strong_validator(response) != self.version:
            return False
        first, last, total = int(part[1]), int(part[2]), None if part[3] == "*" else int(part[3])
        if self.total is None:
            self.total = total
        return first == self.done <= last and total in (None, self.total) and (total is None or last < total)

    def ends_with(self, response: requests.Response) -> bool:
        """Return whether a response says that nothing follows the bytes of a file of unknown length."""
        length = response.headers.get("Content-Range", "").strip()
        is_same = strong_validator(response) in (None, self.version)
        if self.total is None and response.status_code == 416 and is_same and length == f"bytes */{self.done}":
            self.total = self.done
            return True
        return False

    def add(self, data: bytes, seconds: float) -> None:
        """
        Count bytes that have arrived.

        :param seconds: how long they took
        :raises LumaUnavailableError: they arrive too slowly
        :raises LumaValidationError: the file is too large
        """
        self.done += len(data)
        self.boxes.feed(data)
        self.failures = 0
        self._check_size(self.done)
        self.throughput.add(len(data), seconds)
        if self.throughput.is_stalled:
            raise LumaUnavailableError(None, "the server sends next to nothing")
        if time.monotonic() - self.logged_at >= PROGRESS_INTERVAL:
            self.logged_at = time.monotonic()
            share = f" of {megabytes(self.total)}, {self.done / self.total:.0%}" if self.total else ""
            self.log.info("Downloaded %s%s of %s", megabytes(self.done), share, without_secrets(self.url))

    def on_end(self) -> None:
        """
        Wait before the next attempt, after a connection that ended, or may have ended, before the file did.

        :raises LumaUnavailableError: as for :meth:`on_interruption`
        """
        is_certain = self.total is not None or self.boxes.extent() is Extent.CUT_OFF
        self.on_interruption(
            "the connection ended before the file" if is_certain else "the server does not say where the file ends"
        )

    def on_interruption(self, reason: str) -> None:
        """
        Wait before the next attempt.

        :raises LumaUnavailableError: too many attempts brought no byte, or too few bytes arrive
        """
        self.failures += 1
        self.interruption = reason
        self._give_up_if(self.throughput.is_stalled or self.failures >= MAX_ATTEMPTS_WITHOUT_PROGRESS, reason)
        seconds = backoff_delay(self.failures)
        self.log.warning("Download interrupted (%s); resuming in %.0f s", reason, seconds)
        time.sleep(seconds)
        self.throughput.add(0, seconds)

    def start_over(self) -> None:
        """
        Start again at the first byte.

        :raises LumaUnavailableError: this has happened too often
        """
        self.restarts += 1
        self._give_up_if(self.restarts > MAX_RESTARTS, f"{self.interruption}, and it cannot be resumed")
        self.log.info("The server cannot resume the download; starting over")
        self.done = 0

    def _check_size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise LumaValidationError(
                None,
                f"urls: {without_secrets(self.original_url)} is larger than {megabytes(MAX_SIZE)}, "
                "the limit for a download",
            )

    def _give_up_if(self, hopeless: bool, reason: str) -> None:
        if hopeless:
            raise LumaUnavailableError(
                None, f"{without_secrets(self.original_url)} could not be downloaded in one piece: {reason}"
            )


def megabytes(size: int | None) -> str:
    """Return a number of bytes as messages show it."""
    return f"{(size or 0) / 1e6:.1f} MB"

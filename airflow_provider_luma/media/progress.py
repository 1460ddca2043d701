# SPDX-License-Identifier: Apache-2.0
"""Progress of splitting and joining films."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

#: Seconds between two lines about the progress of a film.
PROGRESS_INTERVAL = 10.0

#: Called with the frames that are done, and with how many there are.
OnProgress = Callable[[int, int], None]


class FilmProgress:
    """
    Tells how far the making of a film is, every few seconds.

    :param done: what is done, for the log
    :param seconds: the length of the film
    :param log: where it is told
    """

    def __init__(self, done: str, seconds: float, log: Logger) -> None:
        self._done, self._seconds, self._log = done, seconds, log
        self._started_at = self._logged_at = time.monotonic()

    def __call__(self, frames: int, of_frames: int) -> None:
        """Take the number of frames that are done."""
        now = time.monotonic()
        if now - self._logged_at < PROGRESS_INTERVAL:
            return
        self._logged_at = now
        share = frames / of_frames
        speed = share * self._seconds / (now - self._started_at)
        self._log.info("%s %.0f %% of the film, at %.1f times its speed", self._done, 100 * share, speed)

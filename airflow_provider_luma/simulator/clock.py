# SPDX-License-Identifier: Apache-2.0
"""The clock of the simulated services, which a test can move forward."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

#: Seconds since the epoch at the end of the year 9000. Python's last year is 9999, and addresses and files must be able
#: to expire after the clock's last time.
_END_OF_TIME = 221_876_323_199.0


class Clock:
    """
    The system's time, plus the seconds by which it was moved. Its methods are thread-safe.

    Whatever the services measure or expire goes by it: jobs, records, files, addresses and rate limits.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []

    def time(self) -> float:
        """Return the time in seconds since the epoch."""
        return time.time() + self._offset

    def move(self, seconds: float) -> None:
        """
        Move the time forward.

        :raises TypeError, ValueError: if seconds is not a number, or negative, or leads beyond the year 9000
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds must be a number, not {seconds!r}")
        with self._lock:
            if not 0 <= seconds <= _END_OF_TIME - self.time():
                raise ValueError("seconds must not be negative, or lead beyond the year 9000")
            self._offset += seconds
        self.wake()

    def reset(self) -> None:
        """Return to the system's time."""
        with self._lock:
            self._offset = 0.0

    def wake(self) -> None:
        """Have everything that sleeps check whether its sleep is over."""
        with self._lock:
            wakers = tuple(self._wakers)
        for wake in wakers:
            wake()

    async def sleep_until(self, end: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """
        Sleep until a time in seconds since the epoch.

        :param is_over: whether the sleep is over before that; checked at each :meth:`wake`
        """
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._lock:
            self._wakers.append(wake)
        try:
            while not is_over() and (remaining := end - self.time()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining):
                        await woken.wait()
                woken.clear()
        finally:
            with self._lock:
                self._wakers.remove(wake)

    async def sleep(self, seconds: float) -> None:
        """Sleep for this many seconds."""
        await self.sleep_until(self.time() + seconds)

# SPDX-License-Identifier: Apache-2.0
"""Event loop in simulated time: where it would sleep, its clock is advanced instead."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """A selector that does not wait for a timeout, but adds it to the simulated time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Advance the time; without a timeout, wait for I/O."""
        self.now += max(0.0, timeout or 0.0)
        return super().select(None if timeout is None else 0.0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop for what does no I/O."""

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        """Return the simulated time, in seconds from the start."""
        return self._simulated.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)

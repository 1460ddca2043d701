# SPDX-License-Identifier: Apache-2.0
"""An event loop in simulated time: instead of sleeping, it advances its clock."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """A selector that adds timeouts to the simulated time instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Advance the time; without a timeout, wait for I/O."""
        self.now += max(0.0, timeout or 0.0)
        return super().select(None if timeout is None else 0.0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop for coroutines without I/O."""

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

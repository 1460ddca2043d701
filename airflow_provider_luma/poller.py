# SPDX-License-Identifier: Apache-2.0
"""
Looking at many jobs from one event loop, within the service's rate limit.

All triggers of a triggerer share one event loop, and those that use the same connection share one :class:`Poller`:
one hook with its kept connections, and one queue for *turns*. A trigger asks for a turn, takes its look in it, and
hands it back, so that everything it logs lands in its own task's log, and whatever happens to it (an error, a
cancellation) happens to nobody else. The queue is served in the order in which looks are due: with more jobs than the
rate allows, every round takes longer for all, and none is left behind.

Turns are handed out at an even pace, never in bursts (:class:`Pace`): a thousand triggers that start in the same
second take their first looks one after the other. A refusal by the service slows the whole connection down.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_luma.exceptions import LumaRateLimitError
from airflow_provider_luma.hooks.luma import LumaAsyncHook
from airflow_provider_luma.protocol import LumaTask
from airflow_provider_luma.waiting import LONGEST_RETRY_AFTER, Watch

#: Of the rate that is allowed, how much is used: calls sent evenly do not arrive quite so evenly.
SHARE = 0.98

#: The fewest calls a second that refusals can bring the pace down to.
SLOWEST = 0.1

#: Seconds without a refusal after which the pace is raised by a tenth of the full rate.
RECOVERY_STEP = 5.0


class Pace:
    """
    When the next call may leave. Calls are spaced evenly; no clock of its own.

    :param rate: calls a second
    """

    def __init__(self, rate: float) -> None:
        self.full = rate * SHARE
        self.rate = self.full
        self._next = 0.0
        self._halved = -math.inf
        self._changed = 0.0

    def allow(self, rate: float) -> None:
        """Take up another rate, if it is another one."""
        if rate * SHARE != self.full:
            self.full = rate * SHARE
            self.rate = min(self.rate, self.full)

    def wait(self, now: float) -> float:
        """Return the seconds until a call may leave; 0 if one may leave now."""
        return max(0.0, self._next - now)

    def left(self, now: float) -> None:
        """Take note that a call leaves now."""
        if self.rate < self.full and now - self._changed >= RECOVERY_STEP:
            self.rate = min(self.full, self.rate + self.full / 10)
            self._changed = now
        self._next = now + 1 / self.rate

    def refused(self, now: float, retry_after: float | None) -> None:
        """Take note of a refusal: halve the pace, and honour the pause that the service asked for."""
        # All calls that were under way together are refused together, and count as one refusal.
        if now - self._halved >= max(1.0, 2 / self.rate):
            self.rate = max(min(SLOWEST, self.full), self.rate / 2)
            self._halved = now
        self._changed = now
        asked_for = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
        self._next = max(self._next, now + max(asked_for, 1 / self.rate))


class Poller:
    """
    The shared way to the service of all triggers that wait in one event loop over one connection.

    :param luma_conn_id: the connection that holds the API key
    """

    def __init__(self, luma_conn_id: str) -> None:
        self.luma_conn_id = luma_conn_id
        self.users = 0
        self._hook = LumaAsyncHook(luma_conn_id)
        self._queue: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._has_more = asyncio.Event()
        self._pace: Pace | None = None
        self._slots: asyncio.Semaphore | None = None
        self._handing_out: asyncio.Task[None] | None = None

    async def wait_for(self, watch: Watch) -> LumaTask:
        """
        Look at a job, in turn with all the others, until it has ended well.

        :raises LumaError: what the watch decided to end with
        """
        due = time.monotonic()
        while True:
            async with self._turn(due):
                Stats.timing("luma.look.lateness", max(0.0, time.monotonic() - due) * 1000)
                try:
                    outcome = await self._hook.look(watch)
                finally:
                    self._count(watch)
            if isinstance(outcome, LumaTask):
                return outcome
            due = time.monotonic() + outcome

    async def close(self) -> None:
        """Stop handing out turns, and close the connections."""
        if self._handing_out is not None:
            self._handing_out.cancel()
            self._handing_out = None
        await self._hook.close()

    @asynccontextmanager
    async def _turn(self, due: float) -> AsyncIterator[None]:
        """Wait until a look is due, and it is its turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (due, next(self._numbers), turn))
        self._has_more.set()
        if self._handing_out is None or self._handing_out.done():
            self._handing_out = asyncio.create_task(self._hand_out())
            self._handing_out.add_done_callback(self._stopped)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()  # it was handed out in the very moment in which the trigger was stopped
            raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        assert self._slots is not None, "only what was handed out comes back"
        self._slots.release()

    async def _hand_out(self) -> None:
        """Give turns to those who are due, the one that was due first first, at the connection's pace."""
        if self._pace is None or self._slots is None:
            rate = await self._hook.get_requests_per_second()
            self._pace, self._slots = Pace(rate), asyncio.Semaphore(max(1, int(rate)))
        while True:
            await self._slots.acquire()
            self._pace.allow(await self._hook.get_requests_per_second())
            turn = await self._next_due()
            self._pace.left(time.monotonic())
            turn.set_result(None)

    async def _next_due(self) -> asyncio.Future[None]:
        """Wait until a turn is due, and may be given; forget those that nobody waits for any more."""
        assert self._pace is not None
        while True:
            while self._queue and self._queue[0][2].done():
                heapq.heappop(self._queue)
            now = time.monotonic()
            wait = max(self._queue[0][0] - now, self._pace.wait(now)) if self._queue else None
            if wait is not None and wait <= 0:
                return heapq.heappop(self._queue)[2]
            self._has_more.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._has_more.wait()
            except TimeoutError:
                continue

    def _stopped(self, handing_out: asyncio.Task[None]) -> None:
        """Pass on what has ended the handing out, e.g. a connection that cannot be read, to all who wait."""
        if handing_out.cancelled() or (error := handing_out.exception()) is None:
            return
        waiting, self._queue = self._queue, []
        for _, _, turn in waiting:
            if not turn.done():
                turn.set_exception(error)

    def _count(self, watch: Watch) -> None:
        """Count a look, and let a refusal slow down everybody."""
        Stats.incr("luma.look")
        if isinstance(watch.trouble, LumaRateLimitError):
            Stats.incr("luma.look.refused")
            assert self._pace is not None, "there is no look without a turn"
            self._pace.refused(time.monotonic(), watch.trouble.retry_after)


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_poller(luma_conn_id: str) -> AsyncIterator[Poller]:
    """Return this event loop's poller for a connection: made for its first user, closed by its last."""
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    if luma_conn_id not in pollers:
        pollers[luma_conn_id] = Poller(luma_conn_id)
    poller = pollers[luma_conn_id]
    poller.users += 1
    Stats.gauge("luma.waiting", poller.users, tags={"conn_id": luma_conn_id})
    try:
        yield poller
    finally:
        poller.users -= 1
        Stats.gauge("luma.waiting", poller.users, tags={"conn_id": luma_conn_id})
        if not poller.users:
            pollers.pop(luma_conn_id, None)
            await poller.close()

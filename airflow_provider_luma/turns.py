# SPDX-License-Identifier: Apache-2.0
"""
Whose turn it is to call the service, and when. No I/O.

All triggers of a triggerer share one event loop. Those that call the service over the same connection take
:class:`Turns`, at an even pace, never in bursts: a thousand triggers that start in the same second make their first
calls one after the other. A refusal by the service slows all of them down (:class:`Pace`).

With more jobs waiting than the rate allows looks, not every look that is due can be taken at once, and the order
decides how late a finish is seen. What jobs that have ended took (:class:`Durations`) tells how long it is worth
letting a running one go on unseen; whoever's time is up first has the next turn. None is left behind: its time does
come, and only those whose time came earlier are served before.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from airflow_provider_luma.waiting import LONGEST_RETRY_AFTER

#: The fewest calls a second that refusals can bring the pace down to.
SLOWEST = 0.1

#: Seconds without a refusal after which the pace is raised by a tenth of the full rate.
RECOVERY_STEP = 5.0

#: Seconds within which calls leave together: to wake up for each of them would cost as much as the call itself.
GRAIN = 0.01

#: Seconds by which a call that leaves too late, as timers are, is made up for by the next one.
CATCH_UP = 0.1

#: Seconds that a call is taken to have been on its way at most for longer than the fastest of the last hundred: enough
#: for the making of a connection. What takes longer to be answered, has arrived long before.
LONGEST_DELAY = 0.5

#: How many of the last jobs that have ended are looked back at, and how many of them say enough.
MEMORY, ENOUGH = 200, 20

#: Seconds for which a job may be expected to lie finished and unseen, before it claims a turn.
EXPECTED_DELAY = 1.0


class Pace:
    """
    When the next call may leave. No clock of its own.

    Calls leave evenly, but do not arrive so. Each is therefore counted until a second after the service can have seen
    it, which its answer tells: it arrived before that by the way home at least. Of calls that count there are never
    more than a second allows.

    :param rate: calls a second that the service allows
    :param share: how much of that is used
    """

    def __init__(self, rate: float, share: float = 1.0) -> None:
        self.full = self.rate = rate * share
        self._allowed = rate
        self._share = share
        self._next = -math.inf
        self._halved = -math.inf
        self._changed = -math.inf
        self._under_way = 0
        #: Until when each call that is no longer under way counts.
        self._counted: list[float] = []
        # As long as the fastest is not known, a call may have arrived just before its answer left.
        self._round_trips = deque([0.0] * 100, maxlen=100)

    def allow(self, rate: float) -> None:
        """Take up another rate; a pace that was slowed down stays so in proportion."""
        if rate != self._allowed:
            self.rate *= rate / self._allowed
            self.full = rate * self._share
            self._allowed = rate

    @property
    def _most(self) -> int:
        """How many calls count at most: those of a second, or of a little more if that is no whole number."""
        return math.ceil(self._allowed)

    @property
    def _leave_together(self) -> bool:
        return self.rate * GRAIN > 1

    def wait(self, now: float) -> float:
        """Return the seconds until a call may leave: 0 if one may leave now, infinite if one has to come back first."""
        while self._counted and self._counted[0] <= now:
            heapq.heappop(self._counted)
        seconds = self._next - now
        seconds = seconds if seconds > (GRAIN if self._leave_together else 0.0) else 0.0
        if self._under_way + len(self._counted) < self._most:
            return seconds
        return max(seconds, self._counted[0] - now) if self._counted else math.inf

    def left(self, now: float) -> None:
        """Take note that a call leaves now."""
        if self.rate < self.full and now - self._changed >= RECOVERY_STEP:
            self.rate = min(self.full, self.rate + self.full / 10)
            self._changed = now
        # A moment too late is made up for; a pause is not saved up.
        self._next = (self._next if now - self._next <= CATCH_UP else now) + 1 / self.rate
        self._under_way += 1

    def back(self, now: float, *, left: float, is_answered: bool = True) -> float:
        """
        Take note that a call is no longer under way.

        :param left: when it had left
        :param is_answered: whether it has come back, rather than been given up
        :returns: until when it counts
        """
        self._under_way -= 1
        delay = LONGEST_DELAY
        if is_answered:
            self._round_trips.append(now - left)
            # Another one may be faster still than the fastest, by a grain.
            delay = min(delay, now - left - max(0.0, min(self._round_trips) - GRAIN))
        until = left + delay + self._most / self._allowed
        if self._leave_together:
            until = math.ceil(until / GRAIN) * GRAIN
        heapq.heappush(self._counted, until)
        return until

    def refused(self, now: float, retry_after: float | None = None, *, left: float) -> None:
        """
        Take note of a refusal: halve the pace, and honour the pause that the service asked for.

        :param left: when the refused call had left. One from before the pace was last halved says nothing about the
            pace since
        """
        if left > self._halved:
            self.rate = max(min(SLOWEST, self.full), self.rate / 2)
            self._halved = now
        self._changed = now
        self.pause(now, retry_after)
        self._next = max(self._next, now + 1 / self.rate)

    def pause(self, now: float, seconds: float | None) -> None:
        """Let no call leave for so many seconds, as the service has asked; five minutes at most."""
        self._next = max(self._next, now + min(seconds or 0.0, LONGEST_RETRY_AFTER))


class Durations:
    """How long jobs have taken lately, and what follows for one that is still running."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Learn from a job that has ended."""
        self._latest.append(seconds)
        insort(self._sorted, seconds)
        if len(self._latest) > MEMORY:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]

    def worth_a_look(self, age: float) -> float | None:
        """
        Return the age at which a job, still running at this age, may be expected to have ended a second ago.

        That is, at which those of the jobs looked back at that took longer than ``age`` had ended a second earlier
        on average, where one that had not ended counts as zero.

        :returns: seconds, or None if too few jobs have taken that long
        """
        first = bisect_right(self._sorted, age)
        longer = len(self._sorted) - first
        if longer < ENOUGH:
            return None
        wanted, total = EXPECTED_DELAY * longer, 0.0
        for ended in range(1, longer):
            total += self._sorted[first + ended - 1]
            if ended * self._sorted[first + ended] - total >= wanted:
                return (wanted + total) / ended
        return (wanted + total + self._sorted[-1]) / longer

    def patience(self, age: float, seconds: float) -> float:
        """
        Return for how many seconds a look that is due can give way to others, as it most likely comes too early.

        :param age: the age at which the job was last seen running
        :param seconds: how long after that the look is due
        """
        worth = self.worth_a_look(age)
        return max(0.0, worth - age - seconds) if worth is not None else 0.0


class _Place(NamedTuple):
    """A place in the queue."""

    at: float
    number: int
    turn: asyncio.Future[None]
    claim: float


class Turns:
    """
    Turns to call the service, for all who call it in one event loop over one connection.

    :param rate: tells how many calls a second are allowed; asked before every turn
    :param share: how much of that is used
    """

    def __init__(self, rate: Callable[[], Awaitable[float]], share: float = 1.0) -> None:
        self._rate = rate
        self._numbers = itertools.count()
        #: Those whose call is not due yet, by when it is; and the others, by their claim.
        self._coming: list[_Place] = []
        self._due: list[_Place] = []
        self._sleeps_until = math.inf
        self._woken = asyncio.Event()
        self._pace = Pace(1.0, share)
        self._handing_out: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(self, due: float, claim: float | None = None) -> AsyncIterator[None]:
        """
        Wait until it is due, and one's turn.

        :param due: the earliest time, by the event loop's clock
        :param claim: of those who are due, the one with the earliest claim has the next turn; ``due`` if not given
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._coming, _Place(due, next(self._numbers), turn, due if claim is None else claim))
        if due < self._sleeps_until:
            self._woken.set()
        if self._handing_out is None or self._handing_out.done():
            self._handing_out = asyncio.create_task(self._hand_out())
            self._handing_out.add_done_callback(self._stopped)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._back(_now(), is_answered=False)  # handed out in the very moment in which the trigger was stopped
            raise
        left, is_answered = _now(), True
        try:
            yield
        except asyncio.CancelledError:
            is_answered = False
            raise
        finally:
            self._back(left, is_answered=is_answered)

    @property
    def length(self) -> int:
        """How many wait for a turn."""
        return sum(not place.turn.done() for place in self._coming + self._due)

    def refused(self, retry_after: float | None, *, left: float) -> None:
        """
        Slow down, as the service has refused a call that had a turn.

        :param left: when it left, by the event loop's clock
        """
        self._pace.refused(_now(), retry_after, left=left)

    def pause(self, seconds: float | None) -> None:
        """Give no turn for so many seconds."""
        self._pace.pause(_now(), seconds)

    def close(self) -> None:
        """Stop handing out turns."""
        if self._handing_out is not None:
            self._handing_out.cancel()
            self._handing_out = None

    def _back(self, left: float, *, is_answered: bool) -> None:
        if self._pace.back(_now(), left=left, is_answered=is_answered) < self._sleeps_until:
            self._woken.set()

    async def _hand_out(self) -> None:
        """Give turns to those who are due, at the connection's pace."""
        while True:
            self._pace.allow(await self._rate())
            turn = await self._next_turn()
            self._pace.left(_now())
            turn.set_result(None)

    async def _next_turn(self) -> asyncio.Future[None]:
        """Wait until a turn is due, and may be given; forget those that nobody waits for any more."""
        while True:
            now = _now()
            while self._coming and (self._coming[0].at <= now + GRAIN or self._coming[0].turn.done()):
                place = heapq.heappop(self._coming)
                heapq.heappush(self._due, place._replace(at=place.claim))
            while self._due and self._due[0].turn.done():
                heapq.heappop(self._due)
            if self._due and not (wait := self._pace.wait(now)):
                return heapq.heappop(self._due).turn
            if self._due:
                self._sleeps_until = now + wait
            else:
                self._sleeps_until = self._coming[0].at if self._coming else math.inf
            self._woken.clear()
            try:
                async with asyncio.timeout(self._sleeps_until - now if self._sleeps_until < math.inf else None):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _stopped(self, handing_out: asyncio.Task[None]) -> None:
        """Pass on what has ended the handing out, e.g. a connection that cannot be read, to all who wait."""
        if handing_out.cancelled() or (error := handing_out.exception()) is None:
            return
        waiting, self._coming, self._due = self._coming + self._due, [], []
        for place in waiting:
            if not place.turn.done():
                place.turn.set_exception(error)


def _now() -> float:
    return asyncio.get_running_loop().time()

# SPDX-License-Identifier: Apache-2.0
"""
Adaptive (AIMD) rate limiter with a priority queue, for all requests of one event loop over one connection. No I/O.

Like TCP's congestion window, it lets several event loops share an account's limit, even though only 429s show them
that there are others. That takes most of the code.

:class:`RequestRate` decides when the next request may be sent: evenly spaced, and never more in any second than the
service allows. It slows down after a 429, then speeds up step by step (additive increase, multiplicative decrease).
:class:`RateLimiter` queues the requests. Of those that are due, the one with the earliest priority is sent first. No
request starves, because a priority is a point in time: only requests with an earlier one go first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from airflow_provider_luma.core.backoff import MAX_RETRY_AFTER

#: The lowest rate, in requests per second: 429s never reduce it further.
MIN_RATE = 0.1

#: Maximum seconds from a 429 until the rate is raised, and seconds between further raises until the next 429. So each
#: rate limiter of an account gets about one 429 per :data:`RAISE_AFTER`, and uses the whole limit a minute after the
#: others have stopped.
RAISE_AFTER, RAISE_INTERVAL = 45.0, 3.0

#: Requests due within this many seconds are sent together: a timer for each would cost as much as the request itself.
TIMER_RESOLUTION = 0.01

#: Maximum delay of a timer, in seconds, that the next request makes up for.
MAX_CATCH_UP = 0.1

#: Seconds by which a request can arrive later than the fastest of the last hundred: the time to open a connection.
#: If a response takes longer, its request arrived long before the response was sent, or will never arrive.
MAX_TRANSIT_DELAY = 0.5

#: Maximum number of requests in flight, unless the limit is higher. Each holds a socket, and many systems allow a
#: process a thousand. If ten requests count at a time, for 1.5 seconds each, and time out after 30, 200 are in flight.
MAX_UNANSWERED = 200


class RequestRate:
    """
    Decides when the next request may be sent. The caller passes all times, in seconds of its own clock.

    Requests that are sent evenly do not arrive evenly. A request therefore counts until one second after the latest
    time at which it may have arrived: when it is answered, or :data:`MAX_TRANSIT_DELAY` after it was sent, whichever is
    earlier. So requests that hang until their timeout do not delay others. No more requests count at a time than the
    service allows per second.

    Several event loops may use the same account, and only 429s show them that there are others. So the rate is a share
    of the limit: how many requests may count at a time. Shares are whole numbers, because whole shares that add up to
    the limit fit into every second, whenever their requests are sent. After a 429, a share above half the limit drops
    to half the limit. A smaller one drops to what the service accepted in the last second, but by at least one request
    and at most half. Nothing is sent for a second, so that one 429 is enough. After 30 to 45 s, and then every 3 s
    until the next 429, the share is raised by a tenth of the limit, but at least by one request. After each raise, the
    next request is sent at once: if the limit is used up, the service usually refuses this one, not another event
    loop's, and the raise is undone. A share above half the limit then gives up one more request; a smaller one does so
    one time in four at half the limit, one time in 25 at a fifth. So large shares shrink and small ones grow.

    :param limit: requests per second that the service allows
    :param usable: the fraction of the limit to use
    :param raise_after: maximum seconds from a 429 until the rate is raised
    """

    def __init__(self, limit: float, usable: float = 1.0, raise_after: float = RAISE_AFTER) -> None:
        self._usable = usable
        self._raise_after = raise_after
        self._take_limit(limit)
        #: How many requests may count at a time. Below one, a single request may, but only part of the time.
        self._share: float = self._max_share
        self._share_before_raise: float = self._share
        self._raised_at = self._reduced_at = self._next_at = -math.inf
        self._raise_at = math.inf
        #: How many requests are in flight, and when those that still count were sent.
        self._unanswered = 0
        self._sent: deque[float] = deque()
        #: When each answered request stops counting.
        self._counted_until: list[float] = []
        # Until the fastest is known, a request may have arrived just before its response was sent.
        self._round_trips = deque([0.0] * 100, maxlen=100)

    @property
    def rate(self) -> float:
        """The current rate in requests per second."""
        return self.full_rate * self._share / self._max_share

    def set_limit(self, limit: float) -> None:
        """Change the limit; a reduced share keeps its proportion."""
        if limit != self._limit:
            max_share = self._max_share
            self._take_limit(limit)
            share = self._share * self._max_share / max_share
            self._share = self._share_before_raise = math.floor(share) if share >= 1 else share

    def _take_limit(self, limit: float) -> None:
        self._limit = limit
        #: Requests per second, if nobody else uses the account.
        self.full_rate = limit * self._usable
        #: The largest share: as many requests as the service allows per second, rounded up; and the seconds in which
        #: it allows that many.
        self._max_share = math.ceil(limit)
        self._period = self._max_share / limit
        self._max_unanswered = max(MAX_UNANSWERED, self._max_share)

    @property
    def _sends_in_batches(self) -> bool:
        return self.rate * TIMER_RESOLUTION > 1

    def delay(self, now: float) -> float:
        """Return the seconds until a request may be sent; infinite if another must be answered first."""
        while self._counted_until and self._counted_until[0] <= now:
            heapq.heappop(self._counted_until)
        while self._sent and self._counts_until(self._sent[0]) <= now:
            self._sent.popleft()
        if self._unanswered >= self._max_unanswered:
            return math.inf
        delay = self._next_at - now
        delay = delay if delay > (TIMER_RESOLUTION if self._sends_in_batches else 0.0) else 0.0
        if self._counted < max(1, self._share):
            return delay
        first_end = min(
            self._counted_until[0] if self._counted_until else math.inf,
            self._counts_until(self._sent[0]) if self._sent else math.inf,
        )
        return max(delay, first_end - now)

    def on_request_sent(self, now: float) -> None:
        """Count a request that is being sent."""
        # Make up for a late timer, but do not save up idle time.
        self._next_at = (self._next_at if now - self._next_at <= MAX_CATCH_UP else now) + 1 / self.rate
        self._unanswered += 1
        self._sent.append(now)
        if now >= self._raise_at:
            self._raise(now)

    def on_response(self, now: float, *, sent_at: float, is_answered: bool = True) -> float:
        """
        Record that a request has ended.

        :param sent_at: when it was sent
        :param is_answered: whether it was answered, rather than cancelled
        :returns: when it stops counting
        """
        self._unanswered -= 1
        if sent_at in self._sent:
            self._sent.remove(sent_at)
        transit_delay = MAX_TRANSIT_DELAY
        if is_answered:
            self._round_trips.append(now - sent_at)
            # The fastest round trip is known only to the timer's resolution.
            fastest = max(0.0, min(self._round_trips) - TIMER_RESOLUTION)
            transit_delay = min(transit_delay, now - sent_at - fastest)
        until = self._counts_until(sent_at, transit_delay)
        heapq.heappush(self._counted_until, until)
        return until

    @property
    def _counted(self) -> int:
        return len(self._sent) + len(self._counted_until)

    def _counts_until(self, sent_at: float, transit_delay: float = MAX_TRANSIT_DELAY) -> float:
        until = sent_at + transit_delay + self._period
        return math.ceil(until / TIMER_RESOLUTION) * TIMER_RESOLUTION if self._sends_in_batches else until

    def on_rate_limited(self, now: float, retry_after: float | None = None, *, sent_at: float) -> None:
        """
        Reduce the rate after a 429, and honour its Retry-After.

        :param sent_at: when the refused request was sent; if that was before the last reduction, it says nothing about
            the current rate
        """
        if sent_at > self._reduced_at:
            if sent_at <= self._raised_at + self._period:
                self._take_back_raise()
            else:
                self._reduce()
                self._next_at = max(self._next_at, now + self._period)
            self._reduced_at, self._raised_at = now, -math.inf
            # Rate limiters that were refused together must not raise their rates together.
            wait = self._raise_after * random.uniform(0.7, 1.0) if self._share >= 1 else RAISE_INTERVAL
            self._raise_at = now + wait
        self.block(now, retry_after)
        self._next_at = max(self._next_at, now + 1 / self.rate)

    def block(self, now: float, seconds: float | None) -> None:
        """Send nothing for this many seconds, as the service has asked; at most five minutes."""
        self._next_at = max(self._next_at, now + min(seconds or 0.0, MAX_RETRY_AFTER))

    def _raise(self, now: float) -> None:
        """Raise the share, and let the additional request be sent at once."""
        self._share_before_raise, self._raised_at = self._share, now
        step = max(1, self._max_share // 10) if self._share >= 1 else min(self._share, 1 - self._share)
        self._share = min(self._max_share, self._share + step)
        self._raise_at = now + RAISE_INTERVAL if self._share < self._max_share else math.inf
        self._next_at = now

    def _take_back_raise(self) -> None:
        self._share = self._share_before_raise
        part = self._share / self._max_share
        if self._share > 1 and (part > 0.5 or random.random() < part**2):
            self._share -= 1

    def _reduce(self) -> None:
        if self._share > self._max_share / 2 > 1:
            self._share = self._max_share // 2
        elif self._share > 1:
            self._share = max(1, self._share // 2, min(self._counted - 1, self._share - 1))
        else:
            self._share = max(self._max_share * min(1.0, MIN_RATE / self.full_rate), self._share / 2)


class _Queued(NamedTuple):
    """A queued request. Queues sort by ``order``, a time."""

    order: float
    number: int
    permit: asyncio.Future[float | None]
    priority: float


class RateLimiter:
    """
    The queue of all requests of one event loop over one connection.

    :param limit: requests per second that the service allows
    :param usable: the fraction of the limit to use
    :param raise_after: maximum seconds from a 429 until the rate is raised
    """

    def __init__(self, limit: float, usable: float = 1.0, raise_after: float = RAISE_AFTER) -> None:
        self._numbers = itertools.count()
        #: Requests that are not due yet, by due time; and those that are, by priority.
        self._scheduled: list[_Queued] = []
        self._due: list[_Queued] = []
        self._wakes_at = math.inf
        self._wake = asyncio.Event()
        self._rate = RequestRate(limit, usable, raise_after)
        self._dispatcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def request(self, due: float, priority: float | None = None, until: float = math.inf) -> AsyncIterator[bool]:
        """
        Wait until a request may be sent, and send it within the ``with`` block.

        :param due: the earliest time, by the event loop's clock
        :param priority: of the requests that are due, the one with the earliest is sent next; ``due`` if not given
        :param until: the latest time to send it
        :returns: whether the request may be sent; False if ``until`` has passed
        """
        # When the request was permitted; None if ``until`` has passed.
        permit: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        heapq.heappush(
            self._scheduled, _Queued(due, next(self._numbers), permit, due if priority is None else priority)
        )
        if due < self._wakes_at:
            self._wake.set()
        if self._dispatcher is None:
            self._dispatcher = asyncio.create_task(self._dispatch())
        expiry = permit.get_loop().call_at(until, _refuse, permit) if until < math.inf else None
        try:
            sent_at = await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled() and (sent_at := permit.result()) is not None:
                self._on_response(sent_at, is_answered=False)  # permitted just as it was cancelled
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
        if sent_at is None:
            yield False
            return
        is_answered = True
        try:
            yield True
        except asyncio.CancelledError:
            is_answered = False
            raise
        finally:
            self._on_response(sent_at, is_answered=is_answered)

    @property
    def queue_length(self) -> int:
        """How many requests are waiting to be sent."""
        return sum(not queued.permit.done() for queued in self._scheduled + self._due)

    def on_rate_limited(self, retry_after: float | None, *, sent_at: float) -> None:
        """
        Reduce the rate after a 429.

        :param sent_at: when the refused request was sent, by the event loop's clock
        """
        self._rate.on_rate_limited(_now(), retry_after, sent_at=sent_at)

    def block(self, seconds: float | None) -> None:
        """Send nothing for this many seconds."""
        self._rate.block(_now(), seconds)

    def set_limit(self, limit: float) -> None:
        """Change how many requests per second the service allows."""
        self._rate.set_limit(limit)

    def close(self) -> None:
        """Send nothing more."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            self._dispatcher = None

    def _on_response(self, sent_at: float, *, is_answered: bool) -> None:
        if self._rate.on_response(_now(), sent_at=sent_at, is_answered=is_answered) < self._wakes_at:
            self._wake.set()

    async def _dispatch(self) -> None:
        """Permit due requests one by one, at the current rate."""
        while True:
            permit, now = await self._next_permit(), _now()
            self._rate.on_request_sent(now)
            permit.set_result(now)

    async def _next_permit(self) -> asyncio.Future[float | None]:
        """Wait until a request is due and may be sent; drop cancelled ones."""
        while True:
            now = _now()
            self._move_due(now)
            if self._due and not (delay := self._rate.delay(now)):
                return heapq.heappop(self._due).permit
            if self._due:
                self._wakes_at = now + delay
            else:
                self._wakes_at = self._scheduled[0].order if self._scheduled else math.inf
            self._wake.clear()
            try:
                async with asyncio.timeout(self._wakes_at - now if self._wakes_at < math.inf else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _move_due(self, now: float) -> None:
        """Move due or cancelled requests from the schedule to the priority queue."""
        while self._scheduled and (
            self._scheduled[0].order <= now + TIMER_RESOLUTION or self._scheduled[0].permit.done()
        ):
            queued = heapq.heappop(self._scheduled)
            heapq.heappush(self._due, queued._replace(order=queued.priority))
        while self._due and self._due[0].permit.done():
            heapq.heappop(self._due)


def _refuse(permit: asyncio.Future[float | None]) -> None:
    if not permit.done():
        permit.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()

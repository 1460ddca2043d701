# SPDX-License-Identifier: Apache-2.0
"""
Shared poller: the status checks of all triggers that wait in one event loop over one connection.

They share one client with its keep-alive connections, one rate limiter, and one sample of job durations, which decides
whose check goes first. Each trigger sends its own requests, so that its log lines belong to its own task, and an error
or a cancellation affects no other trigger.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from airflow_provider_luma import metrics
from airflow_provider_luma.core.durations import JobDurations
from airflow_provider_luma.core.job import LumaTask
from airflow_provider_luma.core.poll_state import Failed, Finished, PollAgain, PollOutcome, PollState
from airflow_provider_luma.core.rate_limit import RateLimiter
from airflow_provider_luma.exceptions import LumaError, LumaRateLimitError, LumaUnavailableError
from airflow_provider_luma.metrics import Stats
from airflow_provider_luma.services import SERVICES, kie

if TYPE_CHECKING:
    from airflow_provider_luma.async_client import LumaAsyncClient

#: The metric that counts the triggers waiting for a job.
WAITING_GAUGE = "luma.waiting"

#: Seconds after a job's deadline for which the rate limiter may hold back its last status check.
LAST_CHECK_TIMEOUT = 30.0

#: Minimum seconds between two status checks of a job, even if it has likely ended.
SHORTEST_INTERVAL = 5.0

#: Seconds by which a status check can be put off in favour of others if the job's last one got no response.
UNANSWERED_SLACK = 60.0


class Poller:
    """
    The status checks of one event loop over one connection.

    :param client: sends the status checks; closed with the poller
    """

    def __init__(self, client: LumaAsyncClient) -> None:
        self._client = client
        self._limiter = RateLimiter(kie.requests_per_second)
        self._durations = JobDurations()

    async def wait_for(self, state: PollState) -> Finished | Failed:
        """Poll a job until the wait has ended, within the rate limit that all jobs share."""
        clock = asyncio.get_running_loop().time
        due, last, running_at, is_completed = clock(), None, None, False
        while True:
            unreadable = await self._open(state)
            outcome = unreadable or await self._check_in_turn(state, due, last)
            if not is_completed:
                is_completed = self._on_completed(state, outcome.task, running_at)
            if not isinstance(outcome, PollAgain):
                return outcome
            if outcome.is_running:
                running_at = time.time()
            due, last = clock() + outcome.delay, outcome
            if unreadable is not None:
                await asyncio.sleep(outcome.delay)

    async def _open(self, state: PollState) -> PollOutcome | None:
        """
        Read the connection unless it is open, so that the next request is sent as soon as the rate limiter permits it.

        :returns: None, or the outcome for a job whose connection cannot be read
        """
        try:
            self._limiter.set_limit(await self._client.get_requests_per_second())
        except Exception as error:
            return self._client.on_unreadable(state, error)
        return None

    async def _check_in_turn(self, state: PollState, due: float, last: PollAgain | None) -> PollOutcome:
        """
        Check the status of a job once the check is due and the rate limit permits it.

        :param last: the outcome of the last status check; None before the first
        """
        priority = due + self._slack(state, last)
        # Checks of jobs whose deadline has passed come first.
        now = asyncio.get_running_loop().time()
        deadline = math.inf if state.end_time is None else now + state.end_time - time.time()
        until = max(due, deadline) + LAST_CHECK_TIMEOUT
        earliest = self._earliest(state, due, last)
        async with self._limiter.request(earliest, min(priority, deadline), until) as is_permitted:
            return await self._check(state, due) if is_permitted else state.on_unsent(time.time())

    async def _check(self, state: PollState, due: float) -> PollOutcome:
        sent_at = asyncio.get_running_loop().time()
        Stats.timing("luma.poll.lateness", max(0.0, sent_at - due) * 1000)
        Stats.incr("luma.poll")
        outcome = await self._client.poll(state)
        if not isinstance(outcome, Finished):
            self._on_error(outcome.error, sent_at)
        return outcome

    async def close(self) -> None:
        """Send no more status checks, and close the connections."""
        self._limiter.close()
        await self._client.close()

    def _slack(self, state: PollState, last: PollAgain | None) -> float:
        """
        Return how many seconds the next status check of a job can be put off in favour of others.

        :param last: the outcome of the last one; None before the first
        """
        if last is not None and isinstance(last.error, LumaUnavailableError) and last.error.code is None:
            return UNANSWERED_SLACK
        if state.created_at is None or not (last is None or last.is_running):
            return 0.0
        now = time.time()
        age, delay = max(0.0, now - state.created_at), last.delay if last is not None else 0.0
        # Before the first check, all we know about a job is when it was created.
        slack = self._durations.slack(age, delay) if last is not None else self._durations.slack(0.0, age)
        return slack if state.end_time is None else max(0.0, min(slack, state.end_time - now - delay))

    def _earliest(self, state: PollState, due: float, last: PollAgain | None) -> float:
        """
        Return the earliest time for the next status check of a job: when it has likely ended.

        If the service has callbacks, that is never before the poll interval has passed.

        :param last: the outcome of the last status check; None before the first
        """
        if last is None or not last.is_running or state.created_at is None or not _is_only_polled(state):
            return due
        age = time.time() - state.created_at
        likely_end = self._durations.likely_end(age)
        if likely_end is None:
            return due
        return min(due, asyncio.get_running_loop().time() + max(SHORTEST_INTERVAL, likely_end - age))

    def _on_error(self, error: LumaError | None, sent_at: float) -> None:
        """Reduce the rate for all jobs if the service refused this check with a 429."""
        if isinstance(error, LumaRateLimitError):
            Stats.incr("luma.poll.refused")
            self._limiter.on_rate_limited(error.retry_after, sent_at=sent_at)

    def _on_completed(self, state: PollState, task: LumaTask | None, running_at: float | None) -> bool:
        """
        If a job has ended, record how long it took; return whether it has ended.

        :param running_at: when a status check last saw it running, in seconds since the epoch; None if none did
        """
        if task is None or not task.is_finished:
            return False
        metrics.job_ended(task)
        if task.created_at is not None and task.completed_at is not None:
            seconds = (task.completed_at - task.created_at).total_seconds()
            if running_at is not None and _is_only_polled(state):
                # The service does not report the end: assume that it was midway between the last two status checks.
                seconds -= (task.completed_at.timestamp() - running_at) / 2
            self._durations.add(seconds)
        return True


def _is_only_polled(state: PollState) -> bool:
    """Return whether the job's service has no callbacks. Such a service does not report when a job ended, either."""
    service = SERVICES.get(state.service or "")
    return service is not None and not service.has_callbacks

# SPDX-License-Identifier: Apache-2.0
"""
Queue of refused submissions: the deferred tasks of one event loop that wait to submit over one connection.

The service does not queue submissions that exceed its limits. Here, the task that has waited longest tries again first.
The two limits are handled differently:

* Too many requests: they are sent at just below the rate that the service accepts, and more slowly while it refuses.
* Too many jobs at a time: the next one is accepted once another has ended. So each refusal doubles the pause after a
  submission, and each submission shortens it, until the rate matches that at which jobs end.
"""

from __future__ import annotations

import asyncio
import math
import time

from airflow_provider_luma.core.rate_limit import RateLimiter
from airflow_provider_luma.services import SERVICES

#: The metric that counts the tasks waiting to submit.
WAITING_GAUGE = "luma.submission.waiting"

#: Seconds until the first task is permitted: kie.ai counts submissions over this period, and sends no Retry-After.
SUBMISSION_WINDOW = 10.0

#: The fraction of the service's rate to use, because the time a worker takes to start and submit varies.
USABLE_PART = 0.9

#: Maximum seconds from a refusal until the rate is raised. Most refusals last until a job ends, which is
#: unpredictable.
RAISE_AFTER = 10.0

#: Maximum pause in seconds after a permitted submission, and the factor by which each submission reduces it.
MAX_PAUSE, PART_OF_PAUSE = 60.0, 0.9


class SubmissionQueue:
    """
    The deferred tasks waiting to submit, in order of their first attempts.

    :param service: the name of their service
    """

    def __init__(self, service: str) -> None:
        self._rate = SERVICES[service].submissions_per_second
        self._limiter = RateLimiter(self._rate, USABLE_PART, RAISE_AFTER)
        # A task only gets here once the limit of the last window has been used up.
        self._limiter.block(SUBMISSION_WINDOW)
        #: Seconds to wait after the next submission, and when a refusal last increased them.
        self._pause, self._slowed_at = 0.0, -math.inf

    async def wait(self, first_attempt_at: float) -> None:
        """
        Wait until this task may submit.

        :param first_attempt_at: when the task first tried to submit, in seconds since the epoch
        """
        async with self._limiter.request(asyncio.get_running_loop().time(), first_attempt_at):
            self._limiter.block(self._pause)
            self._pause *= PART_OF_PAUSE

    @property
    def length(self) -> int:
        """How many tasks are waiting."""
        return self._limiter.queue_length

    def on_refused(
        self,
        not_before: float,
        *,
        permitted_at: float | None,
        has_too_many_jobs: bool = False,
        requests_per_minute: int | None = None,
    ) -> None:
        """
        Record a refused submission.

        :param not_before: the earliest time at which the service accepts another one, in seconds since the epoch
        :param permitted_at: when this queue permitted the submission, in seconds since the epoch; None if it did not
        :param has_too_many_jobs: whether it was refused because too many jobs are running
        :param requests_per_minute: the account's limit, if the service stated it
        """
        now = time.time()
        retry_after = max(0.0, not_before - now)
        if requests_per_minute is not None:
            self._rate = requests_per_minute / 60
            self._limiter.set_limit(self._rate)
        if permitted_at is None:
            self._limiter.block(retry_after)
        elif has_too_many_jobs:
            self._limiter.block(retry_after)
            self._slow_down(now, permitted_at)
        else:
            age = now - permitted_at
            self._limiter.on_rate_limited(retry_after, sent_at=asyncio.get_running_loop().time() - age)

    def _slow_down(self, now: float, permitted_at: float) -> None:
        """Double the pause, unless the submission was permitted before the pause was last doubled."""
        if permitted_at > self._slowed_at:
            self._pause = min(MAX_PAUSE, 2 * max(self._pause, 1 / self._rate))
            self._slowed_at = now

    async def close(self) -> None:
        """Permit no more submissions."""
        self._limiter.close()

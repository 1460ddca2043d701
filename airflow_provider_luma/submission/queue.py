# SPDX-License-Identifier: Apache-2.0
"""
Queue of refused submissions: the deferred tasks of one event loop that wait to submit over one connection.

Luma does not queue submissions that exceed its rate limit. Here, the task that has waited longest tries again first, at
just below the rate that Luma accepts, and more slowly while Luma keeps refusing.
"""

from __future__ import annotations

import asyncio
import time

from airflow_provider_luma.core.rate_limit import RateLimiter

#: The metric that counts the tasks waiting to submit.
WAITING_GAUGE = "luma.submission.waiting"

#: The service's limit per account, according to https://docs.kie.ai: 20 submissions in 10 seconds.
SUBMISSIONS_PER_SECOND, SUBMISSION_WINDOW = 2.0, 10.0

#: The fraction of that rate to use, because the time a worker takes to start and submit varies.
USABLE_PART = 0.9

#: Maximum seconds from a refusal until the rate is raised: most refusals end when a job does, which may be any moment.
RAISE_AFTER = 10.0


class SubmissionQueue:
    """The deferred tasks waiting to submit, in order of their first attempts."""

    def __init__(self) -> None:
        self._limiter = RateLimiter(SUBMISSIONS_PER_SECOND, USABLE_PART, RAISE_AFTER)
        # A task only gets here once the limit of the last window has been used up.
        self._limiter.block(SUBMISSION_WINDOW)

    async def wait(self, first_attempt_at: float) -> None:
        """
        Wait until this task may submit.

        :param first_attempt_at: when the task first tried to submit, in seconds since the epoch
        """
        async with self._limiter.request(asyncio.get_running_loop().time(), first_attempt_at):
            pass

    @property
    def length(self) -> int:
        """How many tasks are waiting."""
        return self._limiter.queue_length

    def on_refused(self, not_before: float, *, permitted_at: float | None) -> None:
        """
        Record a refused submission.

        :param not_before: the earliest time at which the service wants another one, in seconds since the epoch
        :param permitted_at: when this queue permitted the submission, in seconds since the epoch; None if it did not
        """
        now = time.time()
        retry_after = max(0.0, not_before - now)
        if permitted_at is None:
            self._limiter.block(retry_after)
        else:
            age = now - permitted_at
            self._limiter.on_rate_limited(retry_after, sent_at=asyncio.get_running_loop().time() - age)

    async def close(self) -> None:
        """Permit no more submissions."""
        self._limiter.close()

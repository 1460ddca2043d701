# SPDX-License-Identifier: Apache-2.0
"""
Queue of refused submissions: the deferred tasks of one event loop that wait to submit over one connection.

Luma does not queue what it refuses as too many. The task that has waited longest tries again first, at just below the
rate that Luma accepts, and more slowly while it keeps refusing.
"""

from __future__ import annotations

import asyncio
import time

from airflow_provider_luma.core.rate_limit import RateLimiter

#: The metric of how many tasks wait to submit.
WAITING_GAUGE = "luma.submission.waiting"

#: What the service accepts of an account, says https://docs.kie.ai: 20 submissions in 10 seconds.
SUBMISSIONS_PER_SECOND, SUBMISSION_WINDOW = 2.0, 10.0

#: The part of that rate that is used, because a worker takes an uncertain time to start and submit.
USABLE_PART = 0.9

#: Seconds after a refusal until the rate is raised: most refusals end when a job does, which is any moment.
RAISE_AFTER = 10.0


class SubmissionQueue:
    """The deferred tasks that wait to submit, first the one with the earliest first attempt."""

    def __init__(self) -> None:
        self._limiter = RateLimiter(SUBMISSIONS_PER_SECOND, USABLE_PART, RAISE_AFTER)
        # No task would be here if the submissions of the last window had not been used up.
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
        """How many tasks wait."""
        return self._limiter.queue_length

    def on_refused(self, not_before: float, *, permitted_at: float | None) -> None:
        """
        Take note of a submission that was refused.

        :param not_before: until when the service wants no submissions, in seconds since the epoch
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

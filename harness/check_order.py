# SPDX-License-Identifier: Apache-2.0
"""
Status checks ordered by due time, or by the likely end of the job: the rate limiter in simulated time.

More jobs wait than the rate limit allows status checks for, so the order decides how late the end of a job is noticed.
Each scenario defines when jobs arrive and how long they take. A job's status check is due every five seconds.
"""

from __future__ import annotations

import asyncio
import random

from airflow_provider_luma.core.durations import JobDurations
from airflow_provider_luma.core.rate_limit import RateLimiter

REQUESTS_PER_SECOND = 10
POLL_INTERVAL = 5.0

#: When each job is created, and how long it takes, in seconds.
Jobs = list[tuple[float, float]]


def at_once(rng: random.Random) -> Jobs:
    """Create 500 jobs of 60 to 120 seconds at once: all have the same age, so no order is better than another."""
    return [(0.0, rng.uniform(60, 120)) for _ in range(500)]


def steady(rng: random.Random) -> Jobs:
    """Create two jobs of two to five minutes per second, as many as kie.ai accepts: about 420 wait."""
    return [(i / 2, rng.uniform(120, 300)) for i in range(2000)]


def five_hundred(rng: random.Random) -> Jobs:
    """Create jobs of two to five minutes at such a rate that 500 wait."""
    return [(i * 210 / 500, rng.uniform(120, 300)) for i in range(2500)]


def a_thousand(rng: random.Random) -> Jobs:
    """Create jobs of two to five minutes at such a rate that 1000 wait."""
    return [(i * 210 / 1000, rng.uniform(120, 300)) for i in range(5000)]


def three_kinds(rng: random.Random) -> Jobs:
    """Create two jobs per second: 70 % take two to five minutes, 20 % five to fifteen, 10 % ten to twenty."""
    kinds = rng.choices([(120, 300), (300, 900), (600, 1200)], [7, 2, 1], k=2500)
    return [(i / 2, rng.uniform(*kind)) for i, kind in enumerate(kinds)]


def slower_at_half_time(rng: random.Random) -> Jobs:
    """Create two jobs per second; the second half of them takes twice as long."""
    return [(i / 2, rng.uniform(120, 300) * (1 if i < 1000 else 2)) for i in range(2000)]


async def lateness(jobs: Jobs, *, by_likely_end: bool) -> list[float]:
    """
    Return how late the end of each job was noticed, in seconds.

    :param by_likely_end: postpone the status check of a job that has most likely not ended; otherwise, the check that
        has been due the longest is sent first
    """
    clock = asyncio.get_running_loop().time
    limiter, durations = RateLimiter(REQUESTS_PER_SECOND), JobDurations()

    def slack(age: float, delay: float) -> float:
        return durations.slack(age, delay) if by_likely_end else 0.0

    async def wait(created_at: float, duration: float) -> float:
        await asyncio.sleep(created_at)
        due = clock()
        priority = due + slack(0.0, 0.0)
        while True:
            async with limiter.request(due, priority):
                now = clock()
            if now >= created_at + duration:
                durations.add(duration)
                return now - created_at - duration
            due = now + POLL_INTERVAL
            priority = due + slack(now - created_at, POLL_INTERVAL)

    try:
        return await asyncio.gather(*(wait(*job) for job in jobs))
    finally:
        limiter.close()

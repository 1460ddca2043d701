# SPDX-License-Identifier: Apache-2.0
"""
In which order to check jobs: by due time, or by likely end. The package's own rate limiter, in simulated time.

More jobs wait than the rate limit allows status checks, so that the order decides how late the end of a job is seen.
Each scenario is one of how jobs arrive and how long they take; a job's status check is due every five seconds.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable

from airflow_provider_luma.polling.durations import JobDurations
from airflow_provider_luma.polling.rate_limiter import RateLimiter
from benchmarks.simulated_clock import run

REQUESTS_PER_SECOND = 10
POLL_INTERVAL = 5.0

#: When each job is created, and how long it takes, in seconds.
Jobs = list[tuple[float, float]]


def at_once(rng: random.Random) -> Jobs:
    """Create five hundred jobs at once, of 60 to 120 seconds: all of one age, so that no order is better."""
    return [(0.0, rng.uniform(60, 120)) for _ in range(500)]


def steady(rng: random.Random) -> Jobs:
    """Create two jobs a second, as many as Luma accepts, of two to five minutes: about 420 wait."""
    return [(i / 2, rng.uniform(120, 300)) for i in range(2000)]


def five_hundred(rng: random.Random) -> Jobs:
    """Create jobs of two to five minutes at such a rate that five hundred wait."""
    return [(i * 210 / 500, rng.uniform(120, 300)) for i in range(2500)]


def a_thousand(rng: random.Random) -> Jobs:
    """Create them so often that a thousand wait."""
    return [(i * 210 / 1000, rng.uniform(120, 300)) for i in range(5000)]


def three_kinds(rng: random.Random) -> Jobs:
    """Create two jobs a second: 70 % of two to five minutes, 20 % of five to fifteen, 10 % of ten to twenty."""
    kinds = rng.choices([(120, 300), (300, 900), (600, 1200)], [7, 2, 1], k=2500)
    return [(i / 2, rng.uniform(*kind)) for i, kind in enumerate(kinds)]


def slower_at_half_time(rng: random.Random) -> Jobs:
    """Create two jobs a second, which from one minute to the next take twice as long."""
    return [(i / 2, rng.uniform(120, 300) * (1 if i < 1000 else 2)) for i in range(2000)]


SCENARIOS: dict[str, Callable[[random.Random], Jobs]] = {
    "500 created at once": at_once,
    "420 waiting, 2 a second": steady,
    "500 waiting": five_hundred,
    "1,000 waiting": a_thousand,
    "three kinds of jobs": three_kinds,
    "twice as slow at half time": slower_at_half_time,
}


async def lateness(jobs: Jobs, *, by_likely_end: bool) -> list[float]:
    """
    Return how late the end of each job was seen, in seconds.

    :param by_likely_end: whether a status check is put off while its job has most likely not ended; otherwise the one
        that has been due the longest is sent first
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


def main() -> None:
    """Simulate, and print a table."""
    print(f"Seconds from a job's end to the status check that sees it, {REQUESTS_PER_SECOND} a second, simulated:\n")
    print(
        "| | by due time: mean | p50 / p95 / p99 | longest | by likely end: mean | p50 / p95 / p99 | longest | mean |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, scenario in SCENARIOS.items():
        cells, means = [], []
        for by_likely_end in (False, True):
            late = run(lateness(scenario(random.Random(name)), by_likely_end=by_likely_end))
            quantiles = statistics.quantiles(late, n=100)
            means.append(statistics.mean(late))
            cells.append(
                f"{means[-1]:.1f} | {quantiles[49]:.0f} / {quantiles[94]:.0f} / {quantiles[98]:.0f} | {max(late):.0f}"
            )
        print(f"| {name} | {' | '.join(cells)} | {100 * (means[1] / means[0] - 1):+.0f} % |", flush=True)


if __name__ == "__main__":
    main()

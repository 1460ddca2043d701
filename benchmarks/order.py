# SPDX-License-Identifier: Apache-2.0
"""
Whom to look at next: by turns, or where finishing is likely. The package's own turns, in simulated time.

More jobs wait than the rate allows looks for, so that the order decides how late a finish is seen. Each scene is one
of how jobs come and how long they take; looks at a job are due every five seconds.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable

from airflow_provider_luma.turns import Durations, Turns
from benchmarks.simulated_clock import run

CALLS_PER_SECOND = 10
LOOK_EVERY = 5.0

#: When each job is made, and how long it takes, in seconds.
Jobs = list[tuple[float, float]]


def at_once(chance: random.Random) -> Jobs:
    """Make five hundred jobs at once, of 60 to 120 seconds: all the same age, so nobody can know better."""
    return [(0.0, chance.uniform(60, 120)) for _ in range(500)]


def steady(chance: random.Random) -> Jobs:
    """Make two jobs a second, as many as Luma accepts, of two to five minutes: about 420 wait."""
    return [(i / 2, chance.uniform(120, 300)) for i in range(2000)]


def five_hundred(chance: random.Random) -> Jobs:
    """Make jobs of two to five minutes at such a rate that five hundred wait."""
    return [(i * 210 / 500, chance.uniform(120, 300)) for i in range(2500)]


def a_thousand(chance: random.Random) -> Jobs:
    """Make them so often that a thousand wait."""
    return [(i * 210 / 1000, chance.uniform(120, 300)) for i in range(5000)]


def three_kinds(chance: random.Random) -> Jobs:
    """Make two jobs a second: 70 % of two to five minutes, 20 % of five to fifteen, 10 % of ten to twenty."""
    kinds = chance.choices([(120, 300), (300, 900), (600, 1200)], [7, 2, 1], k=2500)
    return [(i / 2, chance.uniform(*kind)) for i, kind in enumerate(kinds)]


def slower_at_noon(chance: random.Random) -> Jobs:
    """Make two jobs a second, which from one minute to the next take twice as long."""
    return [(i / 2, chance.uniform(120, 300) * (1 if i < 1000 else 2)) for i in range(2000)]


SCENES: dict[str, Callable[[random.Random], Jobs]] = {
    "500 made at once": at_once,
    "420 waiting, 2 a second": steady,
    "500 waiting": five_hundred,
    "1,000 waiting": a_thousand,
    "three kinds of jobs": three_kinds,
    "twice as slow at half time": slower_at_noon,
}


async def lateness(jobs: Jobs, *, by_turns: bool) -> list[float]:
    """Return how late each finish was seen, in seconds."""
    clock = asyncio.get_running_loop().time
    turns, durations = Turns(_rate), Durations()

    async def wait(made: float, takes: float) -> float:
        await asyncio.sleep(made)
        due = clock()
        claim = due if by_turns else due + durations.patience(0.0, 0.0)
        while True:
            async with turns.turn(due, claim):
                now = clock()
            if now >= made + takes:
                durations.add(takes)
                return now - made - takes
            due = now + LOOK_EVERY
            claim = due if by_turns else due + durations.patience(now - made, LOOK_EVERY)

    try:
        return await asyncio.gather(*(wait(*job) for job in jobs))
    finally:
        turns.close()


async def _rate() -> float:
    return CALLS_PER_SECOND


def main() -> None:
    """Simulate, and print a table."""
    print(f"Seconds from a job's end to the look that sees it, {CALLS_PER_SECOND} calls a second, simulated:\n")
    print("| | by turns: mean | p50 / p95 / p99 | longest | by likelihood: mean | p50 / p95 / p99 | longest | mean |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, scene in SCENES.items():
        cells, means = [], []
        for by_turns in (True, False):
            late = run(lateness(scene(random.Random(name)), by_turns=by_turns))
            quantiles = statistics.quantiles(late, n=100)
            means.append(statistics.mean(late))
            cells.append(
                f"{means[-1]:.1f} | {quantiles[49]:.0f} / {quantiles[94]:.0f} / {quantiles[98]:.0f} | {max(late):.0f}"
            )
        print(f"| {name} | {' | '.join(cells)} | {100 * (means[1] / means[0] - 1):+.0f} % |", flush=True)


if __name__ == "__main__":
    main()

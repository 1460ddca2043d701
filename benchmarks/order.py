# SPDX-License-Identifier: Apache-2.0
"""In which order to check jobs, by due time or by likely end: how late ends are seen, in simulated time."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

from harness.check_order import (
    REQUESTS_PER_SECOND,
    Jobs,
    a_thousand,
    at_once,
    five_hundred,
    lateness,
    slower_at_half_time,
    steady,
    three_kinds,
)
from harness.simulated_clock import run

SCENARIOS: dict[str, Callable[[random.Random], Jobs]] = {
    "500 created at once": at_once,
    "420 waiting, 2 a second": steady,
    "500 waiting": five_hundred,
    "1,000 waiting": a_thousand,
    "three kinds of jobs": three_kinds,
    "twice as slow at half time": slower_at_half_time,
}


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

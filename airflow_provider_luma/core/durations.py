# SPDX-License-Identifier: Apache-2.0
"""
A sliding sample of job durations, and the slack that it gives each status check. No I/O, no wall clock.

When more jobs wait than the rate limit allows status checks for, the order of the checks decides how late the end of a
job is noticed. The slack is how long a check can be put off because its job has most likely not ended yet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

#: How many of the latest finished jobs the sample holds, and how many an estimate needs.
SAMPLE_SIZE, MIN_SAMPLES = 200, 20

#: A status check becomes urgent once its job is expected to have ended this many seconds ago.
EXPECTED_LATENESS = 1.0


class JobDurations:
    """How long the latest jobs took, and what that implies for one that is still running."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Add the duration of a job that has ended."""
        self._latest.append(seconds)
        insort(self._sorted, seconds)
        if len(self._latest) > SAMPLE_SIZE:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]

    def likely_end(self, age: float) -> float | None:
        """
        Return the age at which a status check of a job, last seen running at ``age``, comes a second late on average.

        The average is taken over the sampled jobs that took longer than ``age``. For a job that would still be running,
        the check counts as zero seconds late.

        :param age: seconds since the job was created
        :returns: seconds since the job was created; None if too few sampled jobs took that long
        """
        first = bisect_right(self._sorted, age)
        longer = len(self._sorted) - first
        if longer < MIN_SAMPLES:
            return None
        wanted, total = EXPECTED_LATENESS * longer, 0.0
        for ended in range(1, longer):
            total += self._sorted[first + ended - 1]
            if ended * self._sorted[first + ended] - total >= wanted:
                return (wanted + total) / ended
        return (wanted + total + self._sorted[-1]) / longer

    def slack(self, age: float, delay: float) -> float:
        """
        Return for how many seconds a status check can be put off because it would most likely come too early.

        :param age: the job's age in seconds when it was last seen running
        :param delay: seconds from then until the check is due
        """
        likely_end = self.likely_end(age)
        return max(0.0, likely_end - age - delay) if likely_end is not None else 0.0

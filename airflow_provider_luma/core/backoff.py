# SPDX-License-Identifier: Apache-2.0
"""
Exponential backoff with jitter and Retry-After, and the retry options that are built on it.

No I/O and no clock of its own.
"""

from __future__ import annotations

import random
from typing import Any

import tenacity

from airflow_provider_luma.exceptions import TRANSIENT, LumaUnavailableError

#: Seconds before the first retry at most, and between two later ones at most.
FIRST_DELAY, MAX_DELAY = 1.0, 60.0

#: Seconds for which a Retry-After is honoured at most.
MAX_RETRY_AFTER = 300.0

#: Seconds for which a read that is not part of a wait is repeated.
READ_RETRY_TIMEOUT = 60.0

#: Seconds for which a submission is repeated while the service is unavailable.
OUTAGE_TIMEOUT = 120.0


def backoff_delay(failures: int, retry_after: float | None = None) -> float:
    """
    Return the seconds to wait after so many failed calls in a row.

    Doubles from one second to a minute, and is shortened by up to a half at random, so that many clients do not
    retry together. A longer Retry-After is honoured, up to five minutes.

    :param failures: failed calls in a row, the last one included
    :param retry_after: the seconds that the service asked for, if it did
    """
    longest = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return max(min(retry_after or 0.0, MAX_RETRY_AFTER), longest * random.uniform(0.5, 1.0))


def retry_options(timeout: float) -> dict[str, Any]:
    """
    Return tenacity's options for repeating a call that fails with a transient error.

    :param timeout: seconds after which the last error is raised
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return backoff_delay(state.attempt_number, getattr(error, "retry_after", None))

    return {
        "retry": tenacity.retry_if_exception_type(TRANSIENT),
        "wait": wait,
        "stop": tenacity.stop_before_delay(timeout),
        "reraise": True,
    }


def submission_retry_options(timeout: float) -> dict[str, Any]:
    """
    Return tenacity's options for repeating a submission that was surely not accepted.

    An outage of the service is waited out for :data:`OUTAGE_TIMEOUT` at most, counted from its beginning.

    :param timeout: seconds after which the last error is raised in any case
    """
    return {**retry_options(timeout), "stop": _StopSubmission(timeout)}


class _StopSubmission:
    """Tenacity's stop condition of :func:`submission_retry_options`."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._outage_since: float | None = None

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        elapsed = state.seconds_since_start or 0.0
        timeout = self._timeout
        if state.outcome is not None and isinstance(state.outcome.exception(), LumaUnavailableError):
            self._outage_since = elapsed if self._outage_since is None else self._outage_since
            timeout = min(timeout, self._outage_since + OUTAGE_TIMEOUT)
        else:
            self._outage_since = None
        return elapsed + state.upcoming_sleep >= timeout

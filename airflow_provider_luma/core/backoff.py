# SPDX-License-Identifier: Apache-2.0
"""
Exponential backoff with jitter and Retry-After, and the tenacity options built on it.

No I/O, no wall clock.
"""

from __future__ import annotations

import random
from typing import Any

import tenacity

from airflow_provider_luma.exceptions import TRANSIENT, LumaUnavailableError

#: Longest delays in seconds: before the first retry, and between later ones.
FIRST_DELAY, MAX_DELAY = 1.0, 60.0

#: The longest Retry-After that is honoured, in seconds.
MAX_RETRY_AFTER = 300.0

#: Retry timeout, in seconds, of a read that is not part of a wait.
READ_RETRY_TIMEOUT = 60.0

#: Retry timeout, in seconds, of a submission while the service is unavailable.
OUTAGE_TIMEOUT = 120.0


def backoff_delay(failures: int, retry_after: float | None = None) -> float:
    """
    Return the seconds to wait before the next call after consecutive failures.

    The delay doubles from one second up to a minute. Random jitter shortens it by up to half, so that many clients do
    not retry at once. A longer Retry-After is honoured, up to five minutes.

    :param failures: consecutive failed calls, including the last
    :param retry_after: the seconds that the service asked for, if any
    """
    longest = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return max(min(retry_after or 0.0, MAX_RETRY_AFTER), longest * random.uniform(0.5, 1.0))


def retry_options(timeout: float) -> dict[str, Any]:
    """
    Return tenacity options for retrying a call that fails with a transient error.

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
    Return tenacity options for retrying a submission that is known not to have been accepted.

    During a service outage, retries stop :data:`OUTAGE_TIMEOUT` seconds after its start.

    :param timeout: seconds after which the last error is raised in any case
    """
    return {**retry_options(timeout), "stop": _StopSubmission(timeout)}


class _StopSubmission:
    """The tenacity stop condition of :func:`submission_retry_options`."""

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

# SPDX-License-Identifier: Apache-2.0
"""Exponential backoff with jitter and Retry-After, and how long reads and submissions are retried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.backoff import (
    MAX_DELAY,
    MAX_RETRY_AFTER,
    OUTAGE_TIMEOUT,
    backoff_delay,
    retry_options,
    submission_retry_options,
)
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
)


class TestBackoffDelay:
    @given(failures=st.integers(1, 10_000))
    def test_delay_doubles_from_a_second_to_a_minute_less_up_to_half(self, failures):
        longest = min(60.0, 2.0 ** (failures - 1)) if failures < 100 else 60.0
        assert longest / 2 <= backoff_delay(failures) <= longest

    def test_delay_is_jittered(self):
        assert len({backoff_delay(10) for _ in range(20)}) > 1

    @given(failures=st.integers(1, 50), retry_after=st.floats(0, 300))
    def test_retry_after_is_honoured(self, failures, retry_after):
        assert max(retry_after, 0.5) <= backoff_delay(failures, retry_after) <= max(retry_after, 60.0)

    def test_retry_after_is_honoured_for_five_minutes_at_most(self):
        assert backoff_delay(1, 86_400.0) == 300.0

    def test_a_retry_after_shorter_than_the_backoff_does_not_shorten_it(self):
        assert backoff_delay(10, 0.0) >= 30.0


class FakeTime:
    """Tenacity's clock; sleeping advances it at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    clock = FakeTime()
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def call(clock: FakeTime, options: dict[str, Any], *errors: LumaError) -> str:
    """Make a call that fails with these errors, one after the other, before it succeeds."""
    remaining = list(errors)

    def attempt() -> str:
        if remaining:
            raise remaining.pop(0)
        return "done"

    return tenacity.Retrying(**options, sleep=clock.sleep)(attempt)


class TestRetryOptions:
    def test_transient_errors_are_waited_out(self, clock):
        errors = LumaRateLimitError(429, "slow", retry_after=2.5), LumaUnavailableError(500, "down")
        assert call(clock, retry_options(60), *errors) == "done"
        assert clock.slept[0] == 2.5
        assert 1.0 <= clock.slept[1] <= 2.0

    @pytest.mark.parametrize("kind", [LumaAuthError, LumaInsufficientCreditsError, LumaNotFoundError, LumaTimeoutError])
    def test_other_errors_are_raised_at_once(self, clock, kind):
        with pytest.raises(kind, match="why"):
            call(clock, retry_options(60), kind(400, "why"))
        assert clock.slept == []

    def test_a_delay_that_would_exceed_the_timeout_is_not_begun(self, clock):
        with pytest.raises(LumaRateLimitError, match="slow"):
            call(clock, retry_options(60), LumaRateLimitError(429, "slow", retry_after=61))
        assert clock.slept == []

    def test_the_last_error_is_raised_when_the_timeout_is_reached(self, clock):
        errors = [LumaUnavailableError(500, f"down {n}") for n in range(100)]
        with pytest.raises(LumaUnavailableError) as caught:
            call(clock, retry_options(60), *errors)
        assert caught.value is errors[len(clock.slept)]
        assert 60 - MAX_DELAY < sum(clock.slept) < 60


def refused() -> LumaError:
    return LumaRateLimitError(429, "slow", retry_after=MAX_RETRY_AFTER / 10)


def unavailable() -> LumaError:
    return LumaUnavailableError(455, "maintenance", retry_after=OUTAGE_TIMEOUT / 4)


class TestSubmissionRetryOptions:
    """Refusals are retried until the timeout, an outage for two minutes from its beginning at most."""

    def test_refusals_are_retried_until_the_timeout(self, clock):
        with pytest.raises(LumaRateLimitError):
            call(clock, submission_retry_options(1800), *[refused() for _ in range(1000)])
        assert 1800 - MAX_DELAY <= sum(clock.slept) < 1800

    def test_an_outage_is_retried_for_two_minutes(self, clock):
        with pytest.raises(LumaUnavailableError):
            call(clock, submission_retry_options(1800), *[unavailable() for _ in range(100)])
        assert 60 <= sum(clock.slept) < 120

    def test_the_timeout_also_limits_an_outage(self, clock):
        with pytest.raises(LumaUnavailableError):
            call(clock, submission_retry_options(40), *[unavailable() for _ in range(100)])
        assert sum(clock.slept) < 40

    def test_the_two_minutes_count_from_the_beginning_of_the_outage(self, clock):
        errors = [*[refused() for _ in range(10)], unavailable(), unavailable()]
        assert call(clock, submission_retry_options(1800), *errors) == "done"
        assert sum(clock.slept) > OUTAGE_TIMEOUT

    def test_the_two_minutes_count_anew_after_a_refusal(self, clock):
        errors = [unavailable(), unavailable(), refused(), unavailable(), unavailable(), refused()]
        assert call(clock, submission_retry_options(1800), *errors) == "done"
        assert sum(clock.slept) > OUTAGE_TIMEOUT

    def test_an_unknown_outcome_is_never_retried(self, clock):
        with pytest.raises(LumaSubmissionUnknownError):
            call(clock, submission_retry_options(1800), LumaSubmissionUnknownError(None, "no response arrived"))
        assert clock.slept == []

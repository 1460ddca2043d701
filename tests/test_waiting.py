# SPDX-License-Identifier: Apache-2.0
"""What each look at a job means, and when to look again, told by the clock of the caller."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma import waiting
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus
from airflow_provider_luma.waiting import Watch, pause

NOW = 1_800_000_000.0


def task(flag: int = 0, *, urls: tuple[str, ...] = ("https://e.com/r.mp4",), created: float | None = None) -> LumaTask:
    return LumaTask(
        "abc",
        LumaTaskStatus(flag),
        result_urls=urls if flag in (1, 4) else (),
        created_at=datetime.fromtimestamp(created, UTC) if created else None,
        error_code=501 if flag in (2, 3) else None,
        error_message="no people, please" if flag in (2, 3) else None,
    )


def watch(**options: float | None) -> Watch:
    return Watch("abc", **{"poll_interval": 30.0, **options})


class TestPause:
    @given(failures=st.integers(1, 10_000))
    def test_it_doubles_from_a_second_to_a_minute_less_up_to_half(self, failures):
        longest = min(60.0, 2.0 ** (failures - 1)) if failures < 100 else 60.0
        assert longest / 2 <= pause(failures) <= longest

    def test_it_is_jittered(self):
        assert len({pause(10) for _ in range(20)}) > 1

    @given(failures=st.integers(1, 50), retry_after=st.floats(0, 300))
    def test_the_wish_of_the_service_is_honoured(self, failures, retry_after):
        assert max(retry_after, 0.5) <= pause(failures, retry_after) <= max(retry_after, 60.0)

    def test_but_not_for_longer_than_five_minutes(self):
        assert pause(1, 86_400.0) == 300.0

    def test_nor_when_it_wishes_for_less_than_our_own_pause(self):
        assert pause(10, 0.0) >= 30.0


class TestPatience:
    """How a single call is repeated."""

    @staticmethod
    def call(seconds: float, *errors: LumaError) -> tuple[str, list[float]]:
        left, slept = list(errors), []

        def once() -> str:
            if left:
                raise left.pop(0)
            return "done"

        retrying = tenacity.Retrying(**waiting.patience(seconds), sleep=slept.append)
        return retrying(once), slept

    def test_passing_errors_are_waited_out(self):
        done, slept = self.call(60, LumaRateLimitError(429, "slow", retry_after=2.5), LumaUnavailableError(500, "down"))
        assert done == "done"
        assert slept[0] == 2.5
        assert 1.0 <= slept[1] <= 2.0

    @pytest.mark.parametrize("kind", [LumaAuthError, LumaInsufficientCreditsError, LumaNotFoundError, LumaTimeoutError])
    def test_others_are_not(self, kind):
        with pytest.raises(kind, match="why"):
            self.call(60, kind(400, "why"))

    def test_a_pause_beyond_the_patience_is_not_begun(self):
        with pytest.raises(LumaRateLimitError, match="slow"):
            self.call(60, LumaRateLimitError(429, "slow", retry_after=61))


class TestSaw:
    def test_a_running_job_is_looked_at_again_after_the_interval(self):
        assert watch(poll_interval=12.0).saw(task(), NOW) == 12.0

    @pytest.mark.parametrize("flag", [1, 4], ids=["SUCCESS", "CALLBACK_FAILED"])
    def test_a_job_with_a_video_is_finished(self, flag):
        assert watch().saw(task(flag), NOW) is None

    @pytest.mark.parametrize("flag", [2, 3], ids=["CREATE_TASK_FAILED", "GENERATE_FAILED"])
    def test_a_failed_job_is_an_error_with_lumas_code_and_words(self, flag):
        with pytest.raises(LumaGenerationError, match="no people, please") as caught:
            watch().saw(task(flag), NOW)
        assert (caught.value.code, caught.value.luma_task_id) == (501, "abc")

    @pytest.mark.parametrize("flag", [5, 9, -1, 10**6])
    def test_a_flag_nobody_knows_counts_as_running(self, flag):
        assert watch().saw(task(flag), NOW) == 30.0

    def test_a_success_without_a_video_is_looked_at_a_few_more_times(self):
        one = watch()
        delays = [one.saw(task(1, urls=()), NOW) for _ in range(waiting.LOOKS_FOR_MISSING_URLS)]
        assert all(0 < delay <= 30 for delay in delays)
        with pytest.raises(LumaGenerationError, match="no video") as caught:
            one.saw(task(1, urls=()), NOW)
        assert caught.value.luma_task_id == "abc"

    def test_a_video_that_comes_late_is_a_success(self):
        one = watch()
        one.saw(task(1, urls=()), NOW)
        assert one.saw(task(1), NOW + 1) is None


class TestCalledBack:
    """Where Luma calls back, a look is only for a callback that was lost."""

    @staticmethod
    def called(**options: float | None) -> Watch:
        one = watch(**options)
        one.is_called_back = True
        return one

    def test_nobody_calls_unless_told_so(self):
        assert watch().is_called_back is False

    @pytest.mark.parametrize("flag", [0, 9])
    def test_a_running_job_is_looked_at_ten_times_as_rarely(self, flag):
        assert self.called(poll_interval=12.0).saw(task(flag), NOW) == 120.0

    def test_as_soon_as_that_is_known_and_as_long(self):
        one = watch(poll_interval=12.0)
        assert one.saw(task(), NOW) == 12.0
        one.is_called_back = True
        assert one.saw(task(), NOW) == 120.0
        one.is_called_back = False
        assert one.saw(task(), NOW) == 12.0

    def test_but_not_later_than_at_the_deadline(self):
        assert self.called(end_time=NOW + 45).saw(task(), NOW) == 45.0

    def test_what_ends_the_wait_is_the_same(self):
        assert self.called().saw(task(1), NOW) is None
        with pytest.raises(LumaGenerationError, match="no people, please"):
            self.called().saw(task(3), NOW)
        with pytest.raises(LumaTimeoutError, match="still running"):
            self.called(end_time=NOW).saw(task(), NOW)

    def test_trouble_is_waited_out_as_ever(self):
        one = self.called()
        one.saw(task(), NOW)
        assert one.stumbled(LumaUnavailableError(500, "down"), NOW) <= 1.0
        assert 0 < one.saw(task(1, urls=()), NOW) <= 2.0

    def test_it_is_told(self):
        one = self.called()
        one.saw(task(), NOW)
        level, line = one.progress(NOW)
        assert level == logging.INFO
        assert "Luma calls back" in line

    def test_a_callback_that_could_not_be_delivered_is_warned_about(self):
        one = self.called()
        assert one.saw(task(4), NOW) is None
        level, line = one.progress(NOW)
        assert level == logging.WARNING
        assert "callback_base_url" in line

    @pytest.mark.parametrize(("flag", "calls"), [(1, True), (4, False)], ids=["delivered", "somebody else's"])
    def test_others_are_not(self, flag, calls):
        one = watch()
        one.is_called_back = calls
        one.saw(task(flag), NOW)
        level, line = one.progress(NOW)
        assert level == logging.INFO
        assert "callback_base_url" not in line


class TestStumbled:
    @pytest.mark.parametrize(
        "error",
        [
            LumaRateLimitError(429, "slow down"),
            LumaUnavailableError(455, "maintenance"),
            LumaUnavailableError(None, "x"),
        ],
        ids=["429", "455", "network"],
    )
    def test_a_passing_trouble_is_waited_out_with_growing_pauses(self, error):
        one = watch()
        delays = [one.stumbled(error, NOW + n) for n in range(12)]
        for n, delay in enumerate(delays):
            assert min(60, 2**n) / 2 <= delay <= min(60, 2**n)

    def test_as_long_as_the_service_asks(self):
        assert watch().stumbled(LumaRateLimitError(429, "slow down", retry_after=120.0), NOW) == 120.0

    def test_a_good_look_makes_the_pauses_short_again(self):
        one = watch()
        for n in range(10):
            one.stumbled(LumaUnavailableError(500, "down"), NOW + n)
        one.saw(task(), NOW + 10)
        assert one.stumbled(LumaUnavailableError(500, "down"), NOW + 40) <= 1.0

    @pytest.mark.parametrize(
        "kind",
        [
            LumaAuthError,
            LumaInsufficientCreditsError,
            LumaValidationError,
            LumaFeatureDisabledError,
            LumaGenerationError,
        ],
    )
    def test_what_waiting_cannot_mend_ends_it_and_names_the_job(self, kind):
        with pytest.raises(kind) as caught:
            watch().stumbled(kind(400, "why"), NOW)
        assert caught.value.luma_task_id == "abc"

    def test_an_unknown_id_may_be_too_new(self):
        one = watch()
        assert one.stumbled(LumaNotFoundError(404, "no such task"), NOW) <= 1.0
        assert one.stumbled(LumaNotFoundError(404, "no such task"), NOW + waiting.NOT_FOUND_GRACE - 0.1) > 0
        with pytest.raises(LumaNotFoundError, match="no such task") as caught:
            one.stumbled(LumaNotFoundError(404, "no such task"), NOW + waiting.NOT_FOUND_GRACE)
        assert caught.value.luma_task_id == "abc"
        for hint in ("luma_task_id", "luma_conn_id", "two months"):
            assert hint in str(caught.value)

    def test_a_job_that_was_seen_cannot_be_unknown(self):
        one = watch()
        one.stumbled(LumaNotFoundError(404, "no such task"), NOW)
        one.saw(task(), NOW + 20)
        for seconds in (100, 100 + waiting.NOT_FOUND_GRACE, 1000):
            assert one.stumbled(LumaNotFoundError(404, "no such task"), NOW + seconds) > 0

    @pytest.mark.parametrize(
        ("look", "settled"),
        [
            (lambda one: one.saw(task(), NOW), True),
            (lambda one: one.stumbled(LumaUnavailableError(500, "down"), NOW), True),
            (lambda one: one.stumbled(LumaNotFoundError(404, "no such task"), NOW), False),
            (lambda one: one.saw(task(1, urls=()), NOW), False),
        ],
        ids=["running", "not reachable", "unknown id", "no video yet"],
    )
    def test_settled(self, look, settled):
        one = watch()
        look(one)
        assert one.is_settled is settled


class TestDeadline:
    def test_the_last_pause_ends_at_the_deadline(self):
        assert watch(end_time=NOW + 5).saw(task(), NOW) == 5.0
        assert watch(end_time=NOW + 5).stumbled(LumaRateLimitError(429, "x", retry_after=60), NOW) == 5.0

    def test_still_running_at_the_deadline(self):
        with pytest.raises(LumaTimeoutError) as caught:
            watch(end_time=NOW).saw(task(), NOW)
        assert caught.value.luma_task_id == "abc"
        for hint in (
            "abc",
            "still running",
            "cannot cancel",
            "LumaTaskSensor",
            "GENERATING",
            "2027-01-15 08:00:00 UTC",
        ):
            assert hint in str(caught.value)

    def test_not_reachable_at_the_deadline(self):
        with pytest.raises(LumaTimeoutError, match="connection refused"):
            watch(end_time=NOW).stumbled(LumaUnavailableError(None, "connection refused"), NOW)

    @pytest.mark.parametrize("flag", [1, 4])
    def test_a_job_that_ended_before_a_late_last_look_is_a_success(self, flag):
        assert watch(end_time=NOW - 86_400).saw(task(flag), NOW) is None

    def test_a_job_that_failed_before_a_late_last_look_is_a_failure(self):
        with pytest.raises(LumaGenerationError):
            watch(end_time=NOW - 86_400).saw(task(3), NOW)

    def test_without_a_deadline_it_goes_on_for_ever(self):
        assert watch(end_time=None).saw(task(), NOW + 10**9) == 30.0

    @given(
        left=st.floats(0.001, 10_000),
        interval=st.floats(0.01, 10_000),
        looks=st.lists(
            st.sampled_from(["running", "new flag", "429", "500", "404", "no video"]), min_size=1, max_size=8
        ),
    )
    def test_no_delay_passes_the_deadline(self, left, interval, looks):
        one, now = watch(poll_interval=interval, end_time=NOW + left), NOW
        for look in looks:
            try:
                delay = _look(one, look, now)
            except LumaError:
                return
            assert delay > 0
            assert now + delay <= NOW + left + 1e-6
            now += delay

    @given(
        ahead=st.floats(0, 10_000),
        looks=st.lists(st.sampled_from(["running", "new flag", "429", "500", "404"]), min_size=1, max_size=300),
    )
    def test_every_wait_ends_soon_after_its_deadline(self, ahead, looks):
        one, now = watch(end_time=NOW + ahead), NOW
        with pytest.raises(LumaError):  # noqa: PT012
            for n in range(10_000):
                now += _look(one, looks[n % len(looks)], now)
        assert now <= NOW + ahead + 1e-3


def _look(one: Watch, look: str, now: float) -> float:
    if look == "running":
        delay = one.saw(task(), now)
    elif look == "new flag":
        delay = one.saw(task(9), now)
    elif look == "no video":
        delay = one.saw(task(1, urls=()), now)
    elif look == "404":
        delay = one.stumbled(LumaNotFoundError(404, "x"), now)
    else:
        delay = one.stumbled(LumaUnavailableError(int(look), "x", retry_after=9.0), now)
    assert delay is not None
    return delay


class TestProgress:
    """A line after the first look, after every change, and once a minute."""

    def test_the_first_look_is_told(self):
        one = watch()
        one.saw(task(created=NOW - 65), NOW)
        level, line = one.progress(NOW)
        assert level == logging.INFO
        assert "abc" in line
        assert "GENERATING" in line
        assert "0:01:05" in line

    def test_then_nothing_for_a_minute(self):
        one, lines = watch(poll_interval=10), []
        for seconds in range(0, 181, 10):
            one.saw(task(created=NOW), NOW + seconds)
            if one.progress(NOW + seconds):
                lines.append(seconds)
        assert lines == [0, 60, 120, 180]

    def test_a_change_is_told_at_once(self):
        one = watch()
        one.saw(task(), NOW)
        one.progress(NOW)
        one.stumbled(LumaUnavailableError(500, "the roof is on fire"), NOW + 1)
        level, line = one.progress(NOW + 1)
        assert level == logging.WARNING
        assert "the roof is on fire" in line
        one.saw(task(), NOW + 2)
        assert one.progress(NOW + 2)[0] == logging.INFO

    def test_an_unknown_flag_is_warned_about_once(self):
        one, told = watch(), []
        for seconds in range(0, 600, 30):
            one.saw(task(9), NOW + seconds)
            told.append(one.progress(NOW + seconds))
        warnings = [line for line in told if line and line[0] == logging.WARNING]
        assert len(warnings) == 1
        assert "UNDOCUMENTED_9" in warnings[0][1]

    def test_a_second_unknown_flag_is_news(self):
        one = watch()
        one.saw(task(9), NOW)
        one.progress(NOW)
        one.saw(task(8), NOW + 1)
        level, line = one.progress(NOW + 1)
        assert level == logging.WARNING
        assert "UNDOCUMENTED_8" in line

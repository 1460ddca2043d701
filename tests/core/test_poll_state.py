# SPDX-License-Identifier: Apache-2.0
"""What each status check of a job means, and when the next one is due, by the caller's clock."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.core.poll_state import (
    NOT_FOUND_GRACE,
    POLLS_FOR_MISSING_URLS,
    Failed,
    Finished,
    PollAgain,
    PollOutcome,
    PollState,
)
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)

NOW = 1_800_000_000.0


def job(flag: int = 0, *, urls: tuple[str, ...] = ("https://e.com/r.mp4",), created: float | None = None) -> LumaTask:
    return LumaTask(
        "abc",
        LumaTaskStatus(flag),
        result_urls=urls if flag in (1, 4) else (),
        created_at=datetime.fromtimestamp(created, UTC) if created else None,
        completed_at=datetime.fromtimestamp(NOW - 5, UTC) if flag in (1, 2, 3, 4) else None,
        error_code=501 if flag in (2, 3) else None,
        error_message="no people, please" if flag in (2, 3) else None,
    )


def poll_state(**options: float | None) -> PollState:
    return PollState("abc", **{"poll_interval": 30.0, **options})


def delay_of(outcome: PollOutcome) -> float:
    assert isinstance(outcome, PollAgain)
    return outcome.delay


def error_of(outcome: PollOutcome) -> LumaError:
    assert isinstance(outcome, Failed)
    assert outcome.reason.luma_task_id == "abc"
    return outcome.reason


class TestOnStatus:
    def test_a_running_job_is_checked_again_after_the_poll_interval(self):
        outcome = poll_state(poll_interval=12.0).on_status(job(), NOW)
        assert outcome == PollAgain(12.0, job())
        assert outcome.is_running

    @pytest.mark.parametrize("flag", [1, 4], ids=["SUCCESS", "CALLBACK_FAILED"])
    def test_a_job_with_a_video_is_finished(self, flag):
        assert poll_state().on_status(job(flag), NOW) == Finished(job(flag))

    @pytest.mark.parametrize("flag", [2, 3], ids=["CREATE_TASK_FAILED", "GENERATE_FAILED"])
    def test_a_failed_job_is_a_failure_with_lumas_code_and_message(self, flag):
        outcome = poll_state().on_status(job(flag), NOW)
        error = error_of(outcome)
        assert isinstance(error, LumaGenerationError)
        assert "no people, please" in error.msg
        assert error.code == 501
        assert outcome.task == job(flag)

    @pytest.mark.parametrize("flag", [5, 9, -1, 10**6])
    def test_an_undocumented_flag_counts_as_running(self, flag):
        assert poll_state().on_status(job(flag), NOW) == PollAgain(30.0, job(flag))

    def test_a_success_without_a_video_is_checked_a_few_more_times(self):
        state, task = poll_state(), job(1, urls=())
        outcomes = [state.on_status(task, NOW) for _ in range(POLLS_FOR_MISSING_URLS)]
        assert all(0 < delay_of(outcome) <= 30 for outcome in outcomes)
        last = state.on_status(task, NOW)
        assert isinstance(error_of(last), LumaResultMissingError)
        assert "no video" in error_of(last).msg
        assert last.task == task

    def test_a_video_that_is_listed_late_is_a_success(self):
        state = poll_state()
        state.on_status(job(1, urls=()), NOW)
        assert state.on_status(job(1), NOW + 1) == Finished(job(1))

    def test_a_job_is_known_once_a_status_check_has_shown_it(self):
        state = poll_state()
        state.on_error(LumaUnavailableError(500, "down"), NOW)
        assert not state.is_known
        state.on_status(job(), NOW)
        assert state.is_known

    @pytest.mark.parametrize(
        ("known", "reported", "created_at"),
        [(None, None, NOW), (NOW - 9, None, NOW - 9), (None, NOW - 5, NOW - 5), (NOW - 9, NOW - 5, NOW - 5)],
        ids=["the first status check", "what the caller knew", "Luma", "Luma rather than what the caller knew"],
    )
    def test_created_at_is_lumas_or_else_the_callers_or_else_that_of_the_first_check(self, known, reported, created_at):
        state = poll_state(created_at=known)
        state.on_status(job(created=reported), NOW)
        state.on_status(job(created=reported), NOW + 30)
        assert state.created_at == created_at


class TestExpectedCallback:
    """Where a callback is expected, polling only makes up for a lost one."""

    @pytest.mark.parametrize("flag", [0, 9])
    def test_a_running_job_is_checked_ten_times_less_often_if_a_callback_is_expected(self, flag):
        outcome = poll_state(poll_interval=12.0).on_status(job(flag), NOW, expects_callback=True)
        assert outcome == PollAgain(120.0, job(flag))

    def test_each_status_check_decides_anew_whether_a_callback_is_expected(self):
        state = poll_state(poll_interval=12.0)
        assert delay_of(state.on_status(job(), NOW)) == 12.0
        assert delay_of(state.on_status(job(), NOW, expects_callback=True)) == 120.0
        assert delay_of(state.on_status(job(), NOW, expects_callback=False)) == 12.0

    def test_a_check_is_not_put_off_beyond_the_deadline_for_an_expected_callback(self):
        state = poll_state(end_time=NOW + 45)
        assert delay_of(state.on_status(job(), NOW, expects_callback=True)) == 45.0

    def test_a_job_with_a_video_is_finished_though_a_callback_is_expected(self):
        assert poll_state().on_status(job(1), NOW, expects_callback=True) == Finished(job(1))

    def test_a_failed_job_is_a_failure_though_a_callback_is_expected(self):
        error = error_of(poll_state().on_status(job(3), NOW, expects_callback=True))
        assert isinstance(error, LumaGenerationError)
        assert "no people, please" in error.msg

    def test_a_job_running_at_the_deadline_is_a_timeout_though_a_callback_is_expected(self):
        error = error_of(poll_state(end_time=NOW).on_status(job(), NOW, expects_callback=True))
        assert isinstance(error, LumaTimeoutError)
        assert "still running" in error.msg

    def test_a_transient_error_is_retried_as_soon_as_without_an_expected_callback(self):
        state = poll_state()
        state.on_status(job(), NOW, expects_callback=True)
        assert delay_of(state.on_error(LumaUnavailableError(500, "down"), NOW)) <= 1.0

    def test_a_missing_video_is_checked_for_as_soon_as_without_an_expected_callback(self):
        state = poll_state()
        state.on_status(job(), NOW, expects_callback=True)
        assert 0 < delay_of(state.on_status(job(1, urls=()), NOW, expects_callback=True)) <= 2.0

    def test_the_log_says_that_a_callback_is_expected(self):
        state = poll_state()
        state.on_status(job(), NOW, expects_callback=True)
        level, text = state.progress(NOW)
        assert level == logging.INFO
        assert "a callback is expected" in text

    def test_a_callback_that_could_not_be_delivered_is_warned_about(self):
        state = poll_state()
        assert state.on_status(job(4), NOW, expects_callback=True) == Finished(job(4))
        level, text = state.progress(NOW)
        assert level == logging.WARNING
        assert "callback_base_url" in text

    @pytest.mark.parametrize(
        ("flag", "expects_callback"), [(1, True), (4, False)], ids=["delivered", "to another receiver"]
    )
    def test_a_callback_that_was_delivered_or_is_not_ours_is_not_warned_about(self, flag, expects_callback):
        state = poll_state()
        state.on_status(job(flag), NOW, expects_callback=expects_callback)
        level, text = state.progress(NOW)
        assert level == logging.INFO
        assert "callback_base_url" not in text


class TestOnError:
    @pytest.mark.parametrize(
        "error",
        [
            LumaRateLimitError(429, "slow down"),
            LumaUnavailableError(455, "maintenance"),
            LumaUnavailableError(None, "x"),
        ],
        ids=["429", "455", "network"],
    )
    def test_a_transient_error_is_waited_out_with_exponential_backoff(self, error):
        state = poll_state()
        for n in range(12):
            outcome = state.on_error(error, NOW + n)
            assert outcome == PollAgain(outcome.delay, None, error)
            assert min(60, 2**n) / 2 <= outcome.delay <= min(60, 2**n)

    def test_the_retry_after_of_a_refused_check_is_honoured(self):
        outcome = poll_state().on_error(LumaRateLimitError(429, "slow down", retry_after=120.0), NOW)
        assert delay_of(outcome) == 120.0

    def test_the_backoff_begins_anew_after_a_good_status_check(self):
        state = poll_state()
        for n in range(10):
            state.on_error(LumaUnavailableError(500, "down"), NOW + n)
        state.on_status(job(), NOW + 10)
        assert delay_of(state.on_error(LumaUnavailableError(500, "down"), NOW + 40)) <= 1.0

    def test_a_refused_api_key_ends_the_wait_and_names_the_job(self):
        error = LumaAuthError(401, "why")
        outcome = poll_state().on_error(error, NOW)
        assert outcome == Failed(error)
        assert error.luma_task_id == "abc"

    @pytest.mark.parametrize("known_by", ["its submission", "a status check"])
    def test_a_refused_api_key_is_waited_out_for_a_job_that_is_known(self, known_by):
        """A rotation in the wrong order must not take a task's retries within seconds: the job is paid for."""
        state = poll_state(end_time=NOW + 600, created_at=NOW if known_by == "its submission" else None)
        if known_by == "a status check":
            state.on_status(job(), NOW)
        for n in range(3):
            assert delay_of(state.on_error(LumaAuthError(401, "refused"), NOW + 30 * n)) == 30.0
            level, text = state.progress(NOW + 30 * n)
            assert level == logging.WARNING, "at each check"
            assert "abc" in text
            assert "paid for" in text
            assert "a valid API key into the connection" in text
        error = error_of(state.on_error(LumaAuthError(401, "refused"), NOW + 600))
        assert isinstance(error, LumaTimeoutError), "so that a retry may help"
        assert "refused" in str(error)
        assert isinstance(state.on_status(job(1), NOW + 700), Finished)

    @pytest.mark.parametrize(
        "kind", [LumaInsufficientCreditsError, LumaValidationError, LumaFeatureDisabledError, LumaGenerationError]
    )
    def test_an_error_that_says_nothing_of_the_job_is_waited_out(self, kind):
        outcome = poll_state().on_error(kind(400, "why"), NOW)
        assert 0 < delay_of(outcome) <= 1
        assert isinstance(outcome.error, LumaUnavailableError), "so that whoever asks once knows it as transient"

    def test_an_unknown_id_counts_as_unknown_after_a_grace_period_only(self):
        state = poll_state()
        assert delay_of(state.on_error(LumaNotFoundError(404, "no such task"), NOW)) <= 1.0
        assert delay_of(state.on_error(LumaNotFoundError(404, "no such task"), NOW + NOT_FOUND_GRACE - 0.1)) > 0
        error = error_of(state.on_error(LumaNotFoundError(404, "no such task"), NOW + NOT_FOUND_GRACE))
        assert isinstance(error, LumaNotFoundError)
        for hint in ("no such task", "luma_task_id", "luma_conn_id", "old jobs"):
            assert hint in str(error)

    def test_an_unknown_id_is_checked_again_at_the_end_of_the_grace_period_whatever_the_retry_after(self):
        state = poll_state()
        assert delay_of(state.on_error(LumaNotFoundError(422, "null", retry_after=300), NOW)) == NOT_FOUND_GRACE
        assert delay_of(state.on_error(LumaNotFoundError(422, "null", retry_after=300), NOW + 20)) == pytest.approx(
            NOT_FOUND_GRACE - 20
        )

    def test_a_job_that_was_shown_once_never_counts_as_unknown(self):
        state = poll_state()
        state.on_error(LumaNotFoundError(404, "no such task"), NOW)
        state.on_status(job(), NOW + 20)
        for seconds in (100, 100 + NOT_FOUND_GRACE, 1000):
            outcome = state.on_error(LumaNotFoundError(404, "no such task"), NOW + seconds)
            assert delay_of(outcome) > 0
            assert isinstance(outcome.error, LumaUnavailableError)
            assert outcome.error.code == 404


class TestPollAgain:
    """What a caller that checks once can report at once is told from what the next seconds will resolve."""

    def test_a_running_job_is_reported_as_running(self):
        outcome = poll_state().on_status(job(), NOW)
        assert (outcome.is_running, outcome.error) == (True, None)

    def test_an_unreachable_service_is_reported_as_an_error(self):
        error = LumaUnavailableError(500, "down")
        outcome = poll_state().on_error(error, NOW)
        assert (outcome.is_running, outcome.error) == (False, error)

    def test_an_id_that_may_be_too_new_is_reported_as_neither(self):
        outcome = poll_state().on_error(LumaNotFoundError(404, "no such task"), NOW)
        assert (outcome.is_running, outcome.error) == (False, None)

    def test_a_success_without_a_video_is_reported_as_neither(self):
        outcome = poll_state().on_status(job(1, urls=()), NOW)
        assert (outcome.is_running, outcome.error) == (False, None)


def poll(state: PollState, result: str, now: float) -> PollOutcome:
    """Tell a poll state one result of a status check."""
    if result == "running":
        return state.on_status(job(), now)
    if result == "undocumented flag":
        return state.on_status(job(9), now)
    if result == "no video":
        return state.on_status(job(1, urls=()), now)
    if result == "404":
        return state.on_error(LumaNotFoundError(404, "x"), now)
    return state.on_error(LumaUnavailableError(int(result), "x", retry_after=9.0), now)


RESULTS = ["running", "undocumented flag", "429", "500", "404"]


class TestEnd:
    def test_first_check_that_sees_the_end_dates_it_if_the_service_does_not(self):
        state = poll_state()
        state.on_status(replace(job(1, urls=()), completed_at=None), NOW)
        outcome = state.on_status(replace(job(1), completed_at=None), NOW + 9)
        assert isinstance(outcome, Finished)
        assert outcome.task.completed_at == datetime.fromtimestamp(NOW, UTC)


class TestDeadline:
    def test_the_last_status_check_is_at_the_deadline(self):
        refused = LumaRateLimitError(429, "x", retry_after=60)
        assert delay_of(poll_state(end_time=NOW + 5).on_status(job(), NOW)) == 5.0
        assert delay_of(poll_state(end_time=NOW + 5).on_error(refused, NOW)) == 5.0

    def test_a_job_that_is_running_at_the_deadline_is_a_timeout_that_says_what_to_do(self):
        outcome = poll_state(end_time=NOW).on_status(job(), NOW)
        error = error_of(outcome)
        assert isinstance(error, LumaTimeoutError)
        for hint in (
            "abc",
            "still running",
            "cannot cancel",
            "LumaTaskSensor",
            "GENERATING",
            "2027-01-15 08:00:00 UTC",
        ):
            assert hint in str(error)
        assert outcome.task == job()

    def test_a_service_that_is_unreachable_at_the_deadline_is_a_timeout_that_says_so(self):
        error = error_of(poll_state(end_time=NOW).on_error(LumaUnavailableError(None, "connection refused"), NOW))
        assert isinstance(error, LumaTimeoutError)
        assert "connection refused" in error.msg

    @pytest.mark.parametrize("flag", [1, 4])
    def test_a_job_that_finished_before_a_late_last_check_is_a_success(self, flag):
        assert poll_state(end_time=NOW - 86_400).on_status(job(flag), NOW) == Finished(job(flag))

    def test_a_job_that_failed_before_a_late_last_check_is_a_failure(self):
        error = error_of(poll_state(end_time=NOW - 86_400).on_status(job(3), NOW))
        assert isinstance(error, LumaGenerationError)

    def test_a_success_without_a_video_at_the_deadline_ends_the_wait(self):
        error = error_of(poll_state(end_time=NOW).on_status(job(1, urls=()), NOW))
        assert isinstance(error, LumaResultMissingError)

    def test_without_a_deadline_a_job_is_polled_for_ever(self):
        assert delay_of(poll_state(end_time=None).on_status(job(), NOW + 10**9)) == 30.0

    @given(
        seconds=st.floats(0.001, 10_000),
        interval=st.floats(0.01, 10_000),
        results=st.lists(st.sampled_from([*RESULTS, "no video"]), min_size=1, max_size=8),
    )
    def test_no_delay_exceeds_the_deadline(self, seconds, interval, results):
        state, now = poll_state(poll_interval=interval, end_time=NOW + seconds), NOW
        for result in results:
            outcome = poll(state, result, now)
            if isinstance(outcome, Failed):
                return
            assert delay_of(outcome) > 0
            now += delay_of(outcome)
            assert now <= NOW + seconds + 1e-6

    @settings(max_examples=40)
    @given(
        seconds=st.floats(0, 10_000),
        results=st.lists(st.sampled_from(RESULTS), min_size=1, max_size=100),
    )
    def test_every_wait_ends_at_its_deadline_at_the_latest(self, seconds, results):
        state, now = poll_state(end_time=NOW + seconds), NOW
        for n in range(10_000):
            outcome = poll(state, results[n % len(results)], now)
            if isinstance(outcome, Failed):
                break
            now += delay_of(outcome)
        assert isinstance(outcome, Failed)
        assert now <= NOW + seconds + 1e-3


class TestProgress:
    """What is logged: the first status check, every change, and the status about once a minute or less often."""

    def test_the_first_status_check_is_logged_with_the_age_of_the_job(self):
        state = poll_state()
        state.on_status(job(created=NOW - 65), NOW)
        level, text = state.progress(NOW)
        assert level == logging.INFO
        assert "abc" in text
        assert "GENERATING" in text
        assert "(age 0:01:05)" in text

    def test_an_unchanged_status_is_logged_once_a_minute_and_less_often_for_an_old_job(self):
        state, logged = poll_state(poll_interval=10), []
        for seconds in range(0, 1801, 10):
            state.on_status(job(created=NOW), NOW + seconds)
            if state.progress(NOW + seconds):
                logged.append(seconds)
        assert logged == [0, 60, 120, 180, 270, 410, 620, 930, 1400]

    def test_a_change_is_logged_at_once(self):
        state = poll_state()
        state.on_status(job(), NOW)
        state.progress(NOW)
        state.on_error(LumaUnavailableError(500, "the roof is on fire"), NOW + 1)
        level, text = state.progress(NOW + 1)
        assert level == logging.WARNING
        assert "could not be checked: the roof is on fire" in text
        state.on_status(job(), NOW + 2)
        assert state.progress(NOW + 2)[0] == logging.INFO

    def test_an_undocumented_flag_is_warned_about_once(self):
        state, logged = poll_state(), []
        for seconds in range(0, 600, 30):
            state.on_status(job(9), NOW + seconds)
            logged.append(state.progress(NOW + seconds))
        warnings = [entry for entry in logged if entry and entry[0] == logging.WARNING]
        assert len(warnings) == 1
        assert "UNDOCUMENTED_9" in warnings[0][1]

    def test_a_second_undocumented_flag_is_warned_about_too(self):
        state = poll_state()
        state.on_status(job(9), NOW)
        state.progress(NOW)
        state.on_status(job(8), NOW + 1)
        level, text = state.progress(NOW + 1)
        assert level == logging.WARNING
        assert "UNDOCUMENTED_8" in text

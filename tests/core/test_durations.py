# SPDX-License-Identifier: Apache-2.0
"""What is learnt from the durations of finished jobs, and that it lets ends of jobs be seen sooner."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.durations import EXPECTED_LATENESS, MIN_SAMPLES, SAMPLE_SIZE, JobDurations
from harness import check_order
from harness.simulated_clock import run


class TestJobDurations:
    def test_fewer_jobs_than_the_minimum_predict_nothing(self):
        durations = JobDurations()
        for _ in range(MIN_SAMPLES - 1):
            durations.add(100)
        assert durations.likely_end(0) is None
        durations.add(100)
        assert durations.likely_end(0) == 100 + EXPECTED_LATENESS

    def test_a_job_that_runs_longer_than_nearly_all_has_no_slack(self):
        durations = JobDurations()
        for seconds in range(100, 200):
            durations.add(seconds)
        assert durations.likely_end(190) is None
        assert durations.slack(190, 5) == 0

    def test_a_young_job_has_slack_until_its_likely_end(self):
        durations = JobDurations()
        for _ in range(50):
            durations.add(100)
        assert durations.slack(10, 5) == 85 + EXPECTED_LATENESS

    def test_only_the_latest_jobs_count(self):
        durations = JobDurations()
        for _ in range(SAMPLE_SIZE):
            durations.add(100)
        for _ in range(SAMPLE_SIZE):
            durations.add(300)
        assert durations.likely_end(0) == 300 + EXPECTED_LATENESS

    @given(st.lists(st.floats(0, 1000), min_size=MIN_SAMPLES, max_size=60), st.floats(0, 1000))
    def test_at_the_likely_end_the_job_has_ended_a_second_before_on_average(self, past, age):
        durations = JobDurations()
        for seconds in past:
            durations.add(seconds)
        longer = [seconds for seconds in past if seconds > age]
        likely_end = durations.likely_end(age)
        if likely_end is None:
            assert len(longer) < MIN_SAMPLES
        else:
            lateness = [max(0.0, likely_end - seconds) for seconds in longer]
            assert sum(lateness) / len(longer) == pytest.approx(EXPECTED_LATENESS, rel=1e-6)
            assert durations.slack(age, 0) >= 0


@pytest.mark.parametrize(
    ("scenario", "number", "at_most"),
    [(check_order.at_once, 500, 1.01), (check_order.steady, 800, 0.6), (check_order.three_kinds, 1000, 0.8)],
)
def test_ends_are_seen_sooner_by_likely_end_than_by_due_time_where_that_is_possible(scenario, number, at_most):
    jobs = scenario(random.Random(1))[:number]
    by_due_time, by_likely_end = (
        statistics.mean(run(check_order.lateness(jobs, by_likely_end=by_likely_end))) for by_likely_end in (False, True)
    )
    assert by_likely_end <= at_most * by_due_time

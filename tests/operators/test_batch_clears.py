# SPDX-License-Identifier: Apache-2.0
"""What a person does after a batch has failed, as the documentation and the errors say: nothing is paid again."""

from __future__ import annotations

import pytest

from airflow_provider_luma.compat import AirflowFailException
from tests.support.batch_run import MODIFY, PLAN, BatchRun, videos
from tests.support.submission_fixtures import ENDLESS


class TestVideoThatWasNotWritten:
    """It is paid for, so a Clear returns it: only what has been written is made anew."""

    @pytest.fixture(params=["task state", "folder"])
    def undelivered(self, request, batch, luma, tmp_path, set_connection) -> BatchRun:
        """A run whose jobs have all ended, and whose downloads have all failed."""
        if request.param == "folder":
            set_connection(luma.base_url, submission_store=f"file://{tmp_path}/store", requests_per_second=1000)
        luma.configure(faults=["file:refuse,code=404"])
        run = batch()
        with pytest.raises(AirflowFailException, match="No video for 3 of 3 clips"):
            run.run()
        luma.configure(faults=[])
        return run

    def test_is_written_after_a_clear_of_the_whole_run(self, undelivered, batch, luma):
        jobs = [job.task_id for job in luma.jobs]
        assert [row["luma_task_id"] for row in undelivered.run()] == jobs
        assert luma.accepted == 3
        assert batch("run_2").plan() == []

    def test_is_made_anew_once_it_was_written(self, undelivered, luma):
        undelivered.run()
        undelivered.clip(0)
        assert luma.accepted == 4

    def test_is_left_for_another_job_by_a_new_run_that_is_told_so(self, undelivered, batch, luma):
        assert videos(batch("run_2", retry_failed=True).run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 6


def test_job_is_continued_though_the_address_of_its_clip_was_signed_anew(batch, luma, tmp_path):
    luma.configure(processing_seconds=ENDLESS)
    run = batch(clips=[f"{luma.sample_url}?X-Amz-Signature=one"], allowed_failures=1)
    run.plan()
    run.dag.get_task(MODIFY).timeout = 0.05
    assert not run.execute(MODIFY, 0)
    luma.end_jobs()
    luma.configure(processing_seconds=0)
    run.dag.get_task(MODIFY).timeout = 60
    run.dag.get_task(PLAN).clips = [f"{luma.sample_url}?X-Amz-Signature=two"]
    assert videos(run.run()) == ["sample.mp4"]
    assert luma.accepted == 1

# SPDX-License-Identifier: Apache-2.0
"""What a batch refuses or keeps, although its own files seem to say that it may go on."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.models.taskinstance import TaskInstance

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files import storage
from airflow_provider_luma.files.batch_video import VideoClaim
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from tests.support.batch_run import COLLECT, DOWNLOAD, MODIFY, PLAN, claim_in, failure, files, videos
from tests.support.clips import clip as make_clip
from tests.support.submission_fixtures import ENDLESS
from tests.support.task_instance import Killed


@pytest.fixture
def submitted(only_a, luma) -> Any:
    """A run that has submitted its clip and given up waiting, while the job is still running."""
    luma.configure(processing_seconds=ENDLESS)
    run = only_a()
    run.plan()
    run.dag.get_task(MODIFY).timeout = 0.05
    assert not run.execute(MODIFY, 0)
    return run


class TestLostRecord:
    """Nothing keeps it, or a Clear has discarded it: then the claim is the only one that knows of the paid job."""

    def test_of_a_running_job_is_not_submitted_again(self, submitted, luma, tmp_path):
        submitted.forget_records()
        assert not submitted.execute(MODIFY, 0, is_retry=True)
        error = submitted.errors[MODIFY, 0]
        assert isinstance(error, AirflowFailException)
        assert f"{MODIFY} [0] has submitted it before (Luma task {luma.jobs[0].task_id})" in str(error)
        assert f"or remove {tmp_path}/videos/.a.mp4.luma-job.json if there is no such job" in str(error)
        assert "A LumaTaskSensor with this luma_task_id fetches its video" in str(error)
        assert luma.accepted == 1

    def test_of_a_job_that_has_failed_at_luma_does_not_matter(self, only_a, luma):
        luma.configure(outcome="generate_failed")
        run = only_a()
        run.plan()
        assert not run.execute(MODIFY, 0)
        run.forget_records()
        luma.configure(outcome="success")
        run.clip(0)
        assert videos(run.collect()) == ["a.mp4"]
        assert luma.accepted == 2

    def test_of_another_airflow_whose_run_has_the_same_id(self, submitted, only_a, luma):
        other = only_a()
        other.plan()
        for is_retry in (False, True):
            other.execute(MODIFY, 0, is_retry=is_retry)
        assert luma.accepted == 1


class TestRequestThatIsGivenUp:
    """A clip was changed, then changed back: the task goes on with its first job, and so does its claim."""

    @pytest.fixture
    def changed(self, submitted, luma, folder, tmp_path) -> Any:
        """The run after another submission was begun for the changed clip."""
        first = claim_in(tmp_path, "a.mp4")
        os.utime(folder / "a.mp4", (1, 1))
        luma.configure(faults=["submit:cut,times=1"])
        assert not submitted.execute(MODIFY, 0)
        assert claim_in(tmp_path, "a.mp4")["replaced"] == first
        return submitted

    @pytest.fixture
    def changed_back(self, changed, folder, luma) -> Any:
        clip = folder / "a.mp4"
        os.utime(clip, ns=(self.time_of_clip, self.time_of_clip))
        luma.end_jobs()
        luma.configure(processing_seconds=0)
        changed.dag.get_task(MODIFY).timeout = 60
        return changed

    @pytest.fixture(autouse=True)
    def time_of_the_clip(self, folder) -> None:
        self.time_of_clip = (folder / "a.mp4").stat().st_mtime_ns

    def test_its_video_is_described_as_what_it_is(self, changed_back, only_a, luma):
        changed_back.clip(0)
        assert only_a("run_2").plan() == []
        assert luma.accepted == 1

    def test_its_video_is_still_downloaded_after_a_clear_of_both_tasks(self, changed_back, only_a, luma):
        luma.configure(faults=["file:refuse,code=404"])
        changed_back.clip(0)
        assert changed_back.states[DOWNLOAD, 0] == "failed"
        luma.configure(faults=[])
        changed_back.clip(0)
        assert changed_back.states[DOWNLOAD, 0] == "success"
        assert only_a("run_2").plan() == []
        assert luma.accepted == 1

    def test_its_process_is_killed_before_the_record_is_written(self, only_a, luma, folder, monkeypatch, tmp_path):
        run = only_a()
        run.plan()
        assert run.execute(MODIFY, 0)
        first = claim_in(tmp_path, "a.mp4")
        os.utime(folder / "a.mp4", (1, 1))
        with monkeypatch.context() as patched:
            patched.setattr(TaskStateSubmissionStore, "begin", lambda *_: kill())
            assert not run.execute(MODIFY, 0)
        assert claim_in(tmp_path, "a.mp4")["replaced"] == first
        os.utime(folder / "a.mp4", ns=(self.time_of_clip, self.time_of_clip))
        run.clip(0)
        assert videos(run.collect()) == ["a.mp4"]
        assert luma.accepted == 1


def kill() -> None:
    raise Killed


class TestRetryFailed:
    def test_of_the_same_run_counts_though_a_map_index_has_moved(self, batch, luma, folder):
        luma.configure(processing_seconds=ENDLESS)
        run = batch(allowed_failures=3)
        run.plan()
        run.dag.get_task(MODIFY).timeout = 0.05
        assert not any(run.execute(MODIFY, index) for index in range(3))
        (folder / "a.mp4").unlink()
        run.dag.get_task(PLAN).retry_failed = True
        luma.configure(processing_seconds=0)
        luma.end_jobs()
        run.dag.get_task(MODIFY).timeout = 60
        assert videos(run.run()) == ["b.mp4", "c.mp4"]

    def test_puts_no_claim_back_whose_video_is_there_by_now(self, submitted, only_a, luma, tmp_path, frozen_before):
        def finish() -> None:
            luma.end_jobs()
            luma.configure(processing_seconds=0)
            submitted.dag.get_task(MODIFY).timeout = 60
            submitted.clip(0)

        luma.configure(faults=["submit:refuse,code=429"])
        run = only_a("run_2", retry_failed=True, deferrable=False, queue_timeout=0.5)
        run.plan()
        frozen_before(VideoClaim, "stake", finish)
        assert not run.execute(MODIFY, 0)
        assert files(tmp_path) == [".a.mp4.luma.json", "a.mp4"]

    def test_may_come_from_a_parameter_of_the_run(self, submitted, only_a, luma):
        for again, accepted in ((False, 1), ("false", 1), (True, 2)):
            run = only_a(f"run_{again}", retry_failed="{{ params.again }}", params={"again": again})
            luma.configure(processing_seconds=0)
            run.run()
            assert luma.accepted == accepted

    def test_that_renders_to_something_else_is_refused(self, only_a):
        run = only_a(retry_failed="{{ params.again }}", params={"again": "maybe"})
        assert "retry_failed is 'maybe': give True or False" in failure(run)

    def test_keeps_the_claim_that_it_could_not_replace(self, submitted, only_a, luma, tmp_path):
        claim = claim_in(tmp_path, "a.mp4")
        luma.configure(faults=["submit:refuse,code=402"])
        run = only_a("run_2", retry_failed=True)
        run.plan()
        assert claim_in(tmp_path, "a.mp4") == claim, "the plan itself takes nothing over"
        assert not run.execute(MODIFY, 0)
        assert claim_in(tmp_path, "a.mp4") == claim
        assert only_a("run_3").plan() == []
        assert luma.accepted == 1


class TestShare:
    def test_that_a_worker_does_not_have_is_noticed_before_anything_is_paid(self, only_a, luma, tmp_path):
        run = only_a()
        run.plan()
        (tmp_path / "videos").rmdir()
        assert not run.execute(MODIFY, 0)
        error = run.errors[MODIFY, 0]
        assert f"there is no folder '{tmp_path}/videos' on this machine" in str(error)
        assert not isinstance(error, AirflowFailException), "the next try may run on another worker"
        assert luma.accepted == 0


class TestFilesOfOthers:
    def test_that_appear_after_the_plan_are_not_replaced(self, only_a, luma, tmp_path):
        run = only_a()
        run.plan()
        (tmp_path / "videos" / "a.mp4").write_bytes(b"of somebody else")
        assert not run.execute(MODIFY, 0)
        assert "a.mp4 would be replaced, and no batch has written it: remove it" in str(run.errors[MODIFY, 0])
        assert (luma.accepted, files(tmp_path)) == (0, ["a.mp4"])

    def test_are_not_what_was_written_while_the_folder_was_listed(self, only_a, batch, luma, monkeypatch):
        only_a().run()
        listed = storage.files_in
        monkeypatch.setattr(
            storage, "files_in", lambda *of, **how: [name for name in listed(*of, **how) if not name.startswith(".")]
        )
        assert only_a("run_2").plan() == []


class TestClaimThatCannotBeRead:
    @pytest.mark.parametrize("content", [b"", b"{", b'{"run": {"run_id": "run_1"}}', b'{"reference": []}'])
    def test_keeps_a_run_that_has_planned_before_from_paying(self, only_a, luma, tmp_path, content):
        first, second = only_a(), only_a("run_2")
        assert len(first.plan()) == len(second.plan()) == 1
        assert first.execute(MODIFY, 0)
        (tmp_path / "videos" / ".a.mp4.luma-job.json").write_bytes(content)
        assert not second.execute(MODIFY, 0)
        assert isinstance(second.errors[MODIFY, 0], AirflowFailException)
        assert (tmp_path / "videos" / ".a.mp4.luma-job.json").read_bytes() == content
        assert luma.accepted == 1


class TestRunOfTheSameId:
    def test_pays_for_no_video_that_is_there_though_its_plan_is_retried(self, only_a, luma):
        only_a().run()
        again = only_a()
        again.plan()
        again.execute(PLAN, is_retry=True)
        assert again.todo == []
        assert videos(again.collect()) == ["a.mp4"]
        assert luma.accepted == 1


class TestSound:
    @pytest.fixture
    def with_sound(self, only_a, folder, luma, set_connection) -> Any:
        """A run whose video gets the clip's sound."""
        set_connection(luma.base_url, service="luma")
        (folder / "a.mp4").write_bytes(make_clip(sound="aac"))
        run = only_a(keep_sound=True)
        run.plan()
        return run

    def test_that_cannot_be_read_by_a_worker_is_noticed_before_anything_is_paid(self, with_sound, luma, monkeypatch):
        def unreadable(*_: Any) -> Any:
            raise LumaValidationError(None, "sound_from needs the extra media")

        monkeypatch.setattr(LumaHook, "open_sound", unreadable)
        assert not with_sound.execute(MODIFY, 0)
        assert "needs the extra media" in str(with_sound.errors[MODIFY, 0])
        assert luma.accepted == 0

    def test_of_a_clip_that_was_replaced_since_is_not_taken(self, with_sound, luma, folder, tmp_path):
        assert with_sound.execute(MODIFY, 0)
        (folder / "a.mp4").write_bytes(make_clip(seconds=2, sound="aac"))
        assert not with_sound.execute(DOWNLOAD, 0)
        assert "has changed since it was submitted, or is gone. Restore it" in str(with_sound.errors[DOWNLOAD, 0])
        assert files(tmp_path) == [".a.mp4.luma-job.json"]


def test_plan_that_a_person_has_marked_as_a_success_is_named(only_a):
    run = only_a()
    run.states[PLAN, -1] = "success"
    assert f"{PLAN} has returned no table: clear it" in failure(run, COLLECT)


@pytest.mark.parametrize("task_id", [MODIFY, DOWNLOAD])
def test_name_of_a_clip_fits_into_the_database_of_airflow(only_a, task_id):
    template = only_a().dag.get_task(task_id).map_index_template
    video = f"s3://bucket/{'long' * 200}.mp4"
    shown = jinja2.Template(template).render(task=SimpleNamespace(video=video, destination=video))
    assert shown.startswith("long")
    assert len(shown) <= TaskInstance.__table__.c.rendered_map_index.type.length

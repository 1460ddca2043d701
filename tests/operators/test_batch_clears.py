# SPDX-License-Identifier: Apache-2.0
"""What a person does after a batch has failed, as the documentation and the errors say: nothing is paid again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import s3fs

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.exceptions import RECOVERY_HINTS
from airflow_provider_luma.files.batch_video import BatchVideo
from tests.support.batch_run import DOWNLOAD, MODIFY, PLAN, BatchRun, failure, files, videos
from tests.support.clips import clip as make_clip
from tests.support.submission_fixtures import ENDLESS

pytestmark = pytest.mark.slow


class TestVideoThatWasNotWritten:
    """It is paid for, so a Clear returns it: only what has been written is made anew."""

    @pytest.fixture(params=["task state", "folder"])
    def undelivered(self, request, batch, luma, tmp_path, set_connection) -> BatchRun:
        """A run of one clip whose job has ended, and whose download has failed."""
        if request.param == "folder":
            set_connection(luma.base_url, submission_store=f"file://{tmp_path}/store", requests_per_second=1000)
        luma.configure(faults=["file:refuse,code=404"])
        run = batch(pattern="a.*")
        with pytest.raises(AirflowFailException, match="No video for 1 of 1 clips"):
            run.run()
        luma.configure(faults=[])
        return run

    def test_is_written_after_a_clear_of_the_whole_run(self, undelivered, batch, luma):
        jobs = [job.task_id for job in luma.jobs]
        assert [row["luma_task_id"] for row in undelivered.run()] == jobs
        assert luma.accepted == 1
        assert batch("run_2", pattern="a.*").plan() == []

    def test_is_made_anew_once_it_was_written(self, undelivered, luma):
        undelivered.run()
        undelivered.clip(0)
        assert luma.accepted == 2

    def test_is_left_for_another_job_by_a_new_run_that_is_told_so(self, undelivered, batch, luma):
        assert videos(batch("run_2", pattern="a.*", retry_failed=True).run()) == ["a.mp4"]
        assert luma.accepted == 2


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


def error_for_another_run(only_a) -> str:
    """Return what a later run says about a clip that it leaves to an earlier one."""
    [row] = only_a("later").run()
    assert row["video"] is None
    return str(row["error"])


class TestVideoOfAnotherClipOrBatch:
    """It is paid for, so it is not replaced: each batch has its own destination."""

    def test_of_the_same_name_in_another_folder_is_not_replaced(self, luma, luma_conn, tmp_path):
        for seconds, day in enumerate(("day1", "day2"), 1):
            (tmp_path / day).mkdir()
            (tmp_path / day / "1.mp4").write_bytes(make_clip(seconds=seconds))
        places = {"destination": f"{tmp_path}/videos"}
        BatchRun("day1", clips=f"{tmp_path}/day1", **places).run()
        before = (tmp_path / "videos" / "1.mp4").read_bytes()
        error = failure(BatchRun("day2", clips=f"{tmp_path}/day2", **places))
        assert f"{tmp_path}/day1/1.mp4, made by {MODIFY} of videos'. Choose another folder" in error
        assert ((tmp_path / "videos" / "1.mp4").read_bytes(), luma.accepted) == (before, 1)
        BatchRun("day2", clips=f"{tmp_path}/day2", destination=f"{tmp_path}/videos/day2").run()
        assert luma.accepted == 2

    def test_of_another_dag_is_not_replaced(self, only_a, luma):
        only_a(dag_id="rain", prompt="make it rain").run()
        assert f"made by {MODIFY} of rain" in failure(only_a(dag_id="snow"))
        assert f"made by {MODIFY} of rain" in failure(only_a(dag_id="snow", retry_failed=True))
        assert luma.accepted == 1

    def test_that_was_made_after_the_plan_is_not_replaced(self, only_a, luma, tmp_path):
        rain, snow = only_a(dag_id="rain", prompt="make it rain"), only_a(dag_id="snow")
        assert len(rain.plan()) == len(snow.plan()) == 1
        rain.clip(0)
        assert not snow.execute(MODIFY, 0)
        assert f"made by {MODIFY} of rain: choose another folder" in str(snow.errors[MODIFY, 0])
        assert (luma.accepted, files(tmp_path)) == (1, [".a.mp4.luma.json", "a.mp4"])

    def test_that_was_deleted_is_no_hindrance(self, only_a, luma, tmp_path):
        only_a(dag_id="rain", prompt="make it rain").run()
        (tmp_path / "videos" / "a.mp4").unlink()
        assert videos(only_a(dag_id="snow").run()) == ["a.mp4"]


class TestRunOfTheSameId:
    """A run may be deleted and created again, or two installations of Airflow may share a destination by mistake."""

    def test_pays_for_no_video_that_is_there(self, batch, luma):
        table = batch().run()
        assert batch().run() == table
        assert luma.accepted == 3

    def test_pays_for_no_job_that_is_running(self, only_a, luma, tmp_path):
        first = only_a()
        first.plan()
        assert first.execute(MODIFY, 0)
        [row] = only_a().run()
        assert "a run with the id of this one, deleted since or of another Airflow, has submitted it" in row["error"]
        assert first.execute(DOWNLOAD, 0)
        assert luma.accepted == 1

    def test_pays_for_no_job_that_was_submitted_after_the_plan(self, only_a, luma):
        first, second = only_a(), only_a()
        first.plan()
        second.plan()
        assert first.execute(MODIFY, 0)
        assert not second.execute(MODIFY, 0)
        assert "of another Airflow" in str(second.errors[MODIFY, 0])
        assert luma.accepted == 1


class TestWhatALaterRunSays:
    """It names the job, and what a Clear would pay for."""

    @pytest.fixture
    def stopped(self, only_a, luma) -> BatchRun:
        """A run that has waited too short a time for its job."""
        luma.configure(processing_seconds=ENDLESS)
        run: BatchRun = only_a()
        run.plan()
        run.dag.get_task(MODIFY).timeout = 0.05
        assert not run.execute(MODIFY, 0)
        luma.end_jobs()
        luma.configure(processing_seconds=0)
        run.dag.get_task(MODIFY).timeout = 60
        return run

    def test_names_the_job_and_what_fetches_its_video(self, stopped, only_a, luma):
        error = error_for_another_run(only_a)
        assert f"has submitted it (Luma task {luma.jobs[0].task_id}), and" in error
        assert "A LumaTaskSensor with this luma_task_id fetches its video" in error

    def test_warns_of_what_a_clear_would_submit_again(self, stopped, only_a, luma, folder):
        error = error_for_another_run(only_a)
        assert (
            "a Clear submits another job if the first has failed at Luma, if its outcome is unknown, or if the clip"
            in error
        )
        os.utime(folder / "a.mp4")
        stopped.clip(0)
        assert luma.accepted == 2

    def test_about_a_job_of_this_run_under_another_index_names_it(self, batch, luma, folder):
        run = batch(allowed_failures=3)
        run.plan()
        assert all(run.execute(MODIFY, index) for index in range(3))
        (folder / "a.mp4").unlink()
        error = next(row["error"] for row in run.run() if row["error"])
        assert f"this run has submitted it as {MODIFY} [2] (Luma task {luma.jobs[2].task_id})" in error
        assert "A LumaTaskSensor" in error
        assert luma.accepted == 3

    def test_about_a_claim_that_cannot_be_read_costs_nothing(self, only_a, luma, tmp_path):
        run = only_a()
        run.plan()
        assert run.execute(MODIFY, 0)
        claim = tmp_path / "videos" / ".a.mp4.luma-job.json"
        claim.write_bytes(claim.read_bytes()[:20])
        assert not run.execute(DOWNLOAD, 0)
        assert "cannot be read. Remove it, and clear this task: nothing is paid again" in str(run.errors[DOWNLOAD, 0])
        error = error_for_another_run(only_a)
        assert "remove the file, then clear the download of that run: nothing is paid again" in error
        claim.unlink()
        assert run.execute(DOWNLOAD, 0)
        assert videos(only_a("run_3").run()) == ["a.mp4"]
        assert luma.accepted == 1

    def test_has_nothing_in_it_that_somebody_else_has_written(self, only_a, tmp_path):
        names = {"dag_id": "x\n[2026] ERROR forged", "run_id": "\x1b[2J", "task_id": "t.modify", "map_index": 0}
        claim = {"run": names, "recovery": "Delete the bucket", "luma_task_id": "\u202eid" + "x" * 1000}
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos" / ".a.mp4.luma-job.json").write_text(json.dumps(claim))
        error = error_for_another_run(only_a)
        assert "Delete" not in error
        assert error.isprintable()
        assert len(error) < 1200

    def test_knows_every_hint_of_the_stores(self, only_a, luma):
        run = only_a()
        run.plan()
        assert run.execute(MODIFY, 0)
        assert any(f"{MODIFY} [0]: {hint}" in error_for_another_run(only_a) for hint in RECOVERY_HINTS)


class TestListThatHasChanged:
    """After a Clear of the plan alone, a map index may be that of another clip."""

    def test_video_is_not_written_under_the_name_of_another_clip(self, batch, luma, folder, tmp_path):
        run = batch(allowed_failures=3)
        run.plan()
        assert run.execute(MODIFY, 0)
        (folder / "a.mp4").unlink()
        assert [row["video"][-5:] for row in run.plan()] == ["b.mp4", "c.mp4"]
        assert not run.execute(DOWNLOAD, 0)
        assert f"Luma task {luma.jobs[0].task_id} is for" in str(run.errors[DOWNLOAD, 0])
        assert "Start a new run" in str(run.errors[DOWNLOAD, 0])
        assert files(tmp_path) == [".a.mp4.luma-job.json"]
        assert videos(batch("run_2").run()) == ["b.mp4", "c.mp4"]

    def test_video_of_another_clip_is_not_shown_as_that_of_this_one(self, batch, luma, folder):
        run = batch(allowed_failures=3)
        run.run()
        (folder / "a.mp4").unlink()
        run.plan()
        table = run.collect()
        assert videos(table) == ["b.mp4", None]
        assert f"{DOWNLOAD} [0] was for another clip: start a new run" in table[1]["error"]
        assert luma.accepted == 3


class TestClipLeftToAnotherRun:
    def test_is_found_by_a_new_run_once_it_has_its_video(self, only_a, batch, luma):
        first = only_a()
        first.plan()
        assert first.execute(MODIFY, 0)
        second = batch("run_2")
        with pytest.raises(
            AirflowFailException, match="start a new run, which does not pay again for videos that are already there"
        ) as failed:
            second.run()
        assert "Clearing this run's plan with its downstream tasks pays for its clips again" in str(failed.value)
        assert first.execute(DOWNLOAD, 0)
        assert videos(batch("run_3").run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 3


def test_service_that_ignores_the_condition_on_which_a_file_is_created(luma, luma_conn, bucket, monkeypatch):
    create = s3fs.S3FileSystem._pipe_file
    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", lambda *of, mode="", **options: create(*of, **options))
    runs = [BatchRun(name, clips=[luma.sample_url], destination=bucket.destination) for name in ("one", "two")]
    assert [len(run.plan()) for run in runs] == [1, 1]
    assert runs[0].execute(MODIFY, 0)
    assert not runs[1].execute(MODIFY, 0)
    assert runs[0].execute(DOWNLOAD, 0)
    assert luma.accepted == 1


def test_share_that_is_not_mounted_is_not_taken_for_an_empty_one(batch, luma, tmp_path):
    place = {"destination": f"{tmp_path}/share/videos/street"}
    (tmp_path / "share" / "videos").mkdir(parents=True)
    batch(**place).run()
    (tmp_path / "share").rename(tmp_path / "elsewhere")
    run = batch("run_2", **place)
    assert not run.execute(PLAN)
    assert "its disk may not be mounted on this machine" in str(run.errors[PLAN, -1])
    assert not isinstance(run.errors[PLAN, -1], AirflowFailException), "it may be on the next try's machine"
    assert luma.accepted == 3


def test_video_that_was_made_anew_but_not_downloaded_is_missed(only_a, luma):
    run = only_a(allowed_failures=0)
    run.run()
    assert run.execute(MODIFY, 0)
    with pytest.raises(AirflowFailException, match=rf"Luma task {luma.jobs[1].task_id}: clear {DOWNLOAD} \[0\]"):
        run.collect()
    assert run.execute(DOWNLOAD, 0)
    assert run.collect()[0]["luma_task_id"] == luma.jobs[1].task_id
    assert luma.accepted == 2


class TestFolderThatCannotBeListed:
    """It is not taken for an empty one: what is in it would be paid for again, or replaced."""

    @pytest.mark.parametrize("pattern", ["*.mp4", "**/*.mp4"])
    @pytest.mark.parametrize("denied", ["clips", "videos", "clips/deep"])
    def test_on_a_disk(self, batch, luma, folder, tmp_path, monkeypatch, denied, pattern):
        for name in ("clips/deep", "videos"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.mp4").write_bytes(make_clip())
        scan = os.scandir

        def scandir(path: Any) -> Any:
            if str(path) == f"{tmp_path}/{denied}":
                raise PermissionError(13, "not to be listed")
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        run = batch(pattern=pattern)
        if denied == "clips/deep" and pattern == "*.mp4":
            assert "no batch has written" in failure(run)
            return
        assert not run.execute(PLAN)
        assert "could not be listed: [Errno 13] not to be listed" in str(run.errors[PLAN, -1])

    @pytest.mark.parametrize("pattern", ["*.mp4", "**/*.mp4"])
    @pytest.mark.parametrize("denied", ["in", "videos"])
    def test_in_a_bucket(self, luma, luma_conn, bucket, monkeypatch, denied, pattern):
        bucket.s3.put_object(Bucket="films", Key="in/a.mp4", Body=make_clip())
        bucket.put("a.mp4", b"not of a batch")
        folders = {"in": "films/in", "videos": bucket.destination.partition("@")[2].rstrip("/")}
        list_folder = s3fs.S3FileSystem._lsdir

        async def listing(self: Any, path: str, *of: Any, **options: Any) -> Any:
            if path.strip("/") == folders[denied]:
                raise PermissionError("Access Denied")
            return await list_folder(self, path, *of, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", listing)
        run = BatchRun(clips="s3://my_s3@films/in/", destination=bucket.destination, pattern=pattern)
        assert not run.execute(PLAN)
        assert "could not be listed: Access Denied" in str(run.errors[PLAN, -1])

    def test_links_lead_to_clips(self, batch, folder, tmp_path):
        (folder / "a.mp4").rename(tmp_path / "elsewhere.mp4")
        (folder / "a.mp4").symlink_to(tmp_path / "elsewhere.mp4")
        (folder / "z.mp4").symlink_to(tmp_path / "nowhere.mp4")
        assert [row["video"][-5:] for row in batch().plan()] == ["a.mp4", "b.mp4", "c.mp4"]


class TestFilesThatAreDamaged:
    @pytest.mark.parametrize("name", [".a.mp4.luma-job.json", ".a.mp4.luma.json"])
    def test_empty_one_in_a_bucket_stops_no_other_clip(self, luma, luma_conn, bucket, name):
        for clip in ("a.mp4", "b.mp4"):
            bucket.s3.put_object(Bucket="films", Key=f"in/{clip}", Body=make_clip())
        bucket.put(name, b"")
        table = BatchRun(clips="s3://my_s3@films/in/", destination=bucket.destination, allowed_failures=1).run()
        assert videos(table)[1] == "b.mp4"

    def test_claim_beside_a_video_that_was_not_described_yet(self, only_a, luma, tmp_path, monkeypatch):
        run = only_a()
        run.plan()
        assert run.execute(MODIFY, 0)
        with monkeypatch.context() as patched:
            patched.setattr(BatchVideo, "finish", lambda *_: [][0])
            assert not run.execute(DOWNLOAD, 0)
        (tmp_path / "videos" / ".a.mp4.luma-job.json").write_bytes(b"")
        assert "cannot be read" in error_for_another_run(only_a)

    def test_description_of_no_video(self, only_a, luma, tmp_path):
        only_a().run()
        file = tmp_path / "videos" / ".a.mp4.luma.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "video_version": None}))
        (tmp_path / "videos" / "a.mp4").unlink()
        assert videos(only_a("run_2").run()) == ["a.mp4"]

    def test_long_id_is_cut_in_the_table(self, only_a, luma, tmp_path):
        only_a().run()
        file = tmp_path / "videos" / ".a.mp4.luma.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "luma_task_id": "x" * 200_000}))
        assert only_a("run_2").run()[0]["luma_task_id"] == "x" * 250

    @pytest.mark.timeout(30)
    def test_pipe_is_not_waited_for(self, only_a, tmp_path):
        (tmp_path / "videos").mkdir()
        os.mkfifo(tmp_path / "videos" / ".a.mp4.luma.json")
        assert len(only_a().plan()) == 1

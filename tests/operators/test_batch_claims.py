# SPDX-License-Identifier: Apache-2.0
"""The claim beside a video of a batch: whatever happens between runs, tries and crashes, only one job is paid for."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from airflow.sdk.io import store

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.files import creation
from airflow_provider_luma.files.batch_video import BatchVideo, Document
from airflow_provider_luma.files.download import Download
from airflow_provider_luma.operators.batch import BatchModifyOperator
from airflow_provider_luma.submission.claimed_store import ClaimedStore
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from airflow_provider_luma.triggers.luma import LumaSubmissionTrigger
from tests.support.batch_run import DOWNLOAD, MODIFY, BatchRun, claim_in, failure, files, videos
from tests.support.clips import clip as make_clip
from tests.support.storages import BUCKET, Bucket, SftpFileSystem
from tests.support.submission_fixtures import ENDLESS
from tests.support.task_instance import Killed, TaskRun, TaskStateStore, killed_at

pytestmark = pytest.mark.slow


@pytest.fixture
def one(luma, luma_conn, tmp_path) -> Callable[..., BatchRun]:
    """Makes a run with one public clip."""

    def _one(run_id: str = "run_1", **parameters: Any) -> BatchRun:
        run = BatchRun(run_id, **{"clips": [luma.sample_url], "destination": f"{tmp_path}/videos", **parameters})
        run.plan()
        return run

    return _one


def error_of(run: BatchRun, task_id: str = MODIFY, index: int = 0) -> str:
    """Return what a task of a clip fails with."""
    assert not run.execute(task_id, index)
    return str(run.errors[task_id, index])


class TestAdvice:
    """What the table of a later run says, followed to the letter, pays for nothing again."""

    def test_names_the_download_if_only_that_has_failed(self, batch, luma):
        run = batch()
        run.plan()
        assert run.execute(MODIFY, 0)
        error = batch("run_2", allowed_failures=1).run()[0]["error"]
        assert f"If only {DOWNLOAD} [0], clear that alone: nothing is paid again" in error
        assert luma.accepted == 3
        assert run.execute(DOWNLOAD, 0)
        assert videos(batch("run_3").run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 3


class TestTwoRuns:
    """Only one of the runs that find a clip without a video submits it."""

    @pytest.fixture(params=["local", "s3"])
    def runs(self, request, luma, luma_conn, tmp_path) -> list[BatchRun]:
        """Eight runs, each of which has planned the clip."""
        place = f"{tmp_path}/videos" if request.param == "local" else request.getfixturevalue("bucket").destination
        runs = [BatchRun(f"run_{number}", clips=[luma.sample_url], destination=place) for number in range(8)]
        assert [len(run.plan()) for run in runs] == [1] * 8
        return runs

    def test_that_start_at_the_same_time(self, luma, runs):
        with ThreadPoolExecutor(8) as threads:
            outcomes = Counter(threads.map(lambda run: run.execute(MODIFY, 0), runs))
        assert outcomes == {True: 1, False: 7}
        assert luma.accepted == 1

    def test_of_which_one_has_looked_before_the_other_has_claimed(self, luma, runs, frozen_before):
        is_in_bucket = runs[0].todo[0]["video"].startswith("s3:")
        looked = (Document, "create") if is_in_bucket else (creation, "_create_local")
        frozen_before(*looked, lambda: runs[1].execute(MODIFY, 0))
        assert "run run_1 of videos has submitted it" in error_of(runs[0])
        assert luma.accepted == 1

    def test_of_which_one_has_claimed_before_the_other_looks(self, luma, runs, frozen_before):
        frozen_before(TaskStateSubmissionStore, "begin", lambda: error_of(runs[1]))
        assert runs[0].execute(MODIFY, 0)
        assert "run run_0 of videos has submitted it" in str(runs[1].errors[MODIFY, 0])
        assert luma.accepted == 1

    def test_of_which_one_has_looked_before_the_other_has_its_video(self, luma, runs, frozen_before):
        frozen_before(Document, "create", lambda: runs[1].clip(0))
        assert "another run has just made" in error_of(runs[0])
        assert luma.accepted == 1
        later = BatchRun("later", clips=[luma.sample_url], destination=runs[0].todo[0]["video"].rpartition("/")[0])
        assert later.plan() == [], "the claim is withdrawn"
        assert videos(later.collect()) == ["sample.mp4"]


def test_storage_that_cannot_create_a_file_atomically(luma, luma_conn, monkeypatch):
    fs = SftpFileSystem()
    monkeypatch.setitem(store._STORE_CACHE, "sftp-my_sftp", store.ObjectStore("sftp", "my_sftp", fs=fs))
    runs = [BatchRun(name, clips=[luma.sample_url], destination="sftp://my_sftp@/videos") for name in ("one", "two")]
    assert [len(run.plan()) for run in runs] == [1, 1]
    assert runs[0].execute(MODIFY, 0)
    assert "run one of videos has submitted it" in error_of(runs[1])
    assert runs[0].execute(DOWNLOAD, 0)
    assert "another run has just made" in error_of(runs[1])
    assert runs[1].plan() == []
    assert set(fs.store) == {"/videos/sample.mp4", "/videos/.sample.mp4.luma.json"}
    assert luma.accepted == 1


class TestQueued:
    """A task holds no claim while it is queued, since Luma has refused its submission for now."""

    @pytest.fixture
    def queued(self, luma, luma_conn, tmp_path) -> TaskRun:
        """A task whose first submission is refused, so that it is queued."""
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        (tmp_path / "a.mp4").write_bytes(make_clip())
        (tmp_path / "videos").mkdir()
        given = {"video_url": f"{tmp_path}/a.mp4", "video": f"{tmp_path}/videos/a.mp4", "poll_interval": 0.02}
        new = partial(BatchModifyOperator, task_id=MODIFY, prompt="make it snow", timeout=60, **given)
        return TaskRun(new, TaskStateStore(), dag_id="videos", run_id="run_1", task_id=MODIFY, map_index=0)

    def test_so_another_run_may_submit_the_clip_and_it_does_not(self, batch, luma, tmp_path, queued, frozen_before):
        def submit() -> None:
            assert claim_in(tmp_path, "a.mp4") is None
            run = batch("run_2", clips=[f"{tmp_path}/a.mp4"])
            run.plan()
            assert run.execute(MODIFY, 0)

        frozen_before(LumaSubmissionTrigger, "serialize", submit)
        with pytest.raises(AirflowFailException, match="run run_2 of videos has submitted it"):
            queued.run_try()
        assert luma.accepted == 1

    def test_and_describes_the_clip_that_it_has_sent_if_that_was_replaced(
        self, batch, luma, tmp_path, queued, frozen_before
    ):
        another = make_clip(seconds=2)
        frozen_before(LumaSubmissionTrigger, "serialize", lambda: (tmp_path / "a.mp4").write_bytes(another))
        queued.run_try()
        assert claim_in(tmp_path, "a.mp4")["clip_version"].split()[0] == str(len(another))
        assert luma.jobs[0].input_digest == hashlib.sha256(another).hexdigest()


class TestTakenOver:
    """With ``retry_failed``, another run may take a clip over while its own is taken for dead."""

    def test_before_its_submission_is_sent(self, one, luma, frozen_before):
        run, later = one(), []

        def take_over() -> None:
            later.append(one("run_2", retry_failed=True))
            assert later[0].execute(MODIFY, 0)

        frozen_before(LumaClient, "submit", take_over)
        assert "Nothing was sent" in error_of(run)
        assert luma.accepted == 1
        assert later[0].execute(DOWNLOAD, 0)
        assert one("run_3").todo == []

    def test_before_it_withdraws_its_claim(self, one, luma, tmp_path, frozen_before):
        luma.configure(faults=["submit:refuse,code=402,times=1"])

        def take_over() -> None:
            assert one("run_2", retry_failed=True).execute(MODIFY, 0)

        frozen_before(TaskStateSubmissionStore, "forget", take_over)
        run = one()
        error_of(run)
        assert claim_in(tmp_path)["run"]["run_id"] == "run_2"
        assert "run run_2 of videos has submitted it" in error_of(run)
        assert luma.accepted == 1

    @pytest.mark.parametrize("is_made", [False, True], ids=["claimed", "made"])
    def test_before_its_video_is_downloaded(self, one, luma, tmp_path, is_made):
        run = one()
        assert run.execute(MODIFY, 0)
        later = one("run_2", retry_failed=True, prompt="make it rain")
        assert later.execute(MODIFY, 0)
        assert not is_made or later.execute(DOWNLOAD, 0)
        before = {name: (tmp_path / "videos" / name).read_bytes() for name in files(tmp_path)}
        assert "run run_2 of videos has since submitted another job" in error_of(run, DOWNLOAD)
        assert {name: (tmp_path / "videos" / name).read_bytes() for name in files(tmp_path)} == before
        assert is_made or later.execute(DOWNLOAD, 0)
        assert one("run_3", prompt="make it rain").todo == []

    def test_while_its_video_is_downloaded(self, one, luma, tmp_path, frozen_before):
        run = one()
        assert run.execute(MODIFY, 0)
        frozen_before(Download, "_fetch", lambda: one("run_2", retry_failed=True, prompt="make it rain").clip(0))
        assert "run run_2 of videos has since submitted another job" in error_of(run, DOWNLOAD)
        assert one("run_3", prompt="make it rain").todo == []

    def test_by_yet_another_run_that_found_the_first_claim(self, one, luma, tmp_path):
        assert one().execute(MODIFY, 0)
        second, third = one("run_2", retry_failed=True), one("run_3", retry_failed=True)
        assert second.execute(MODIFY, 0)
        assert claim_in(tmp_path)["run"]["run_id"] == "run_2"
        assert "run run_2 of videos has submitted it" in error_of(third)
        assert luma.accepted == 2


class TestClaimThatAPersonHasRemoved:
    def test_costs_nothing_before_the_download(self, one, luma, tmp_path):
        run = one()
        assert run.execute(MODIFY, 0)
        (tmp_path / "videos" / ".sample.mp4.luma-job.json").unlink()
        assert run.execute(DOWNLOAD, 0)
        assert files(tmp_path) == [".sample.mp4.luma.json", "sample.mp4"]
        assert one("run_2").todo == [], "the job's result says of what it was made"


class TestRefused:
    """A claim is withdrawn if it is certain that no job was accepted, and only by the try that has made it."""

    def test_after_a_try_that_may_be_paid_it_stays(self, one, luma, tmp_path):
        luma.configure(faults=["submit:cut,after_accept=true,times=1", "submit:refuse,code=402,skip=1,times=1"])
        run = one(resubmit_on_unknown=True)
        assert not run.execute(MODIFY, 0)
        claim = claim_in(tmp_path)
        assert not run.execute(MODIFY, 0, is_retry=True)
        assert claim_in(tmp_path) == claim, "as it was"
        assert one("run_2").todo == []
        assert luma.accepted == 1

    def test_after_a_clear_it_goes_though_there_is_an_earlier_job(self, one, luma, tmp_path):
        run = one()
        run.clip(0)
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        assert not run.execute(MODIFY, 0)
        assert claim_in(tmp_path) is None
        later = one("run_2")
        assert later.todo == []
        assert videos(later.collect()) == ["sample.mp4"]

    def test_video_of_a_crashed_download_is_still_known(self, one, luma, tmp_path, monkeypatch):
        run = one()
        assert run.execute(MODIFY, 0)
        with monkeypatch.context() as patched:
            patched.setattr(BatchVideo, "finish", lambda *_: _kill())
            assert not run.execute(DOWNLOAD, 0)
        later = one("run_2", prompt="make it rain", allowed_failures=1)
        assert later.todo == []
        assert "run run_1 of videos has submitted it" in later.collect()[0]["error"]
        run.clip(0)
        assert one("run_3").todo == []
        assert luma.accepted == 1

    def test_slot_of_the_run_is_free_even_if_the_claim_cannot_be_withdrawn(
        self, batch, luma, tmp_path, set_connection, monkeypatch
    ):
        set_connection(luma.base_url, submission_store=f"file://{tmp_path}/store", requests_per_second=1000)
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        run = batch(max_jobs_per_run=1)
        run.plan()
        with monkeypatch.context() as patched:
            patched.setattr("airflow_provider_luma.files.batch_video.remove_file", lambda *_: _fail())
            assert not run.execute(MODIFY, 0)
        assert claim_in(tmp_path, "a.mp4") is not None
        assert run.execute(MODIFY, 1)
        assert "max_jobs_per_run=1" in error_of(run, index=0)
        assert luma.accepted == 1

    def test_claim_that_could_not_be_withdrawn_is_taken_up_by_the_next_try(self, one, luma, tmp_path, monkeypatch):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        run = one()
        with monkeypatch.context() as patched:
            patched.setattr("airflow_provider_luma.files.batch_video.remove_file", lambda *_: _fail())
            assert not run.execute(MODIFY, 0)
        assert run.execute(MODIFY, 0, is_retry=True)
        assert run.execute(DOWNLOAD, 0)
        assert files(tmp_path) == [".sample.mp4.luma.json", "sample.mp4"]


def _kill() -> None:
    raise Killed


def _fail() -> None:
    raise OSError("the disk is full")


class TestDownloadThatFails:
    """It leaves no claim where there was none: other runs would wait for a video that nobody makes."""

    def test_after_a_clear(self, one, luma, tmp_path):
        run = one()
        run.clip(0)
        luma.configure(faults=["file:refuse,code=404"])
        assert not run.execute(DOWNLOAD, 0)
        assert files(tmp_path) == [".sample.mp4.luma.json", "sample.mp4"]

    def test_because_a_person_has_marked_the_job_as_a_success(self, one, luma, tmp_path):
        run = one()
        run.xcoms[MODIFY, 0, "return_value"] = "null"
        assert "urls" in error_of(run, DOWNLOAD)
        assert files(tmp_path) == []
        assert len(one("run_2").todo) == 1


class TestMapIndex:
    """After a Clear of the whole group, the list of clips may be another."""

    @pytest.fixture
    def running(self, batch, luma) -> BatchRun:
        """A run whose three jobs are running, although its tasks have given up."""
        luma.configure(processing_seconds=ENDLESS)
        run = batch(allowed_failures=3)
        run.plan()
        run.dag.get_task(MODIFY).timeout = 0.05
        for index in range(3):
            assert "not finished" in error_of(run, index=index)
        run.dag.get_task(MODIFY).timeout = 60
        luma.end_jobs()
        luma.configure(processing_seconds=0)
        assert luma.accepted == 3
        return run

    def test_of_each_clip_stays_if_clips_are_added(self, running, batch, luma, folder):
        jobs = [job.task_id for job in luma.jobs]
        for name in ("0.mp4", "a-2.mp4"):
            (folder / name).write_bytes(make_clip())
        table = running.run()
        assert videos(table) == ["0.mp4", "a-2.mp4", "a.mp4", "b.mp4", "c.mp4"]
        assert [table[row]["luma_task_id"] for row in (2, 3, 4)] == jobs
        assert luma.accepted == 5
        assert batch("run_2").plan() == []

    def test_that_cannot_stay_pays_for_nothing(self, running, batch, luma, folder):
        (folder / "a.mp4").unlink()
        table = running.run()
        assert videos(table) == ["b.mp4", None]
        assert f"this run has submitted it as {MODIFY} [2]" in table[1]["error"]
        assert table[0]["luma_task_id"] == luma.jobs[1].task_id
        assert luma.accepted == 3
        assert videos(batch("run_2", retry_failed=True).run()) == ["b.mp4", "c.mp4"]
        assert luma.accepted == 4

    def test_that_cannot_stay_is_no_hindrance_once_the_video_is_there(self, batch, luma, folder):
        run = batch()
        run.run()
        (folder / "a.mp4").unlink()
        assert videos(run.run()) == ["b.mp4", "c.mp4"]
        assert luma.accepted == 5, "a Clear makes the videos anew"
        assert batch("run_2").plan() == []


class TestDescription:
    def test_is_of_what_was_sent_even_if_the_clip_is_replaced_during_a_backoff(
        self, batch, luma, folder, tmp_path, frozen_before, short_backoff
    ):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        clip = (folder / "a.mp4").read_bytes()
        frozen_before(ClaimedStore, "forget", lambda: (folder / "a.mp4").write_bytes(make_clip(seconds=2)))
        run = batch(pattern="a.*")
        run.run()
        manifest = json.loads((tmp_path / "videos" / ".a.mp4.luma.json").read_text())
        assert manifest["clip_version"].split()[0] == str(len(clip))
        assert luma.jobs[0].input_digest == hashlib.sha256(clip).hexdigest()
        assert [row["clip"][-5:] for row in batch("run_2", pattern="a.*").plan()] == ["a.mp4"], "it is another clip"

    def test_is_short_and_has_no_signature_in_it_whatever_the_options_are(self, one, luma, tmp_path):
        def options(signature: str) -> dict[str, Any]:
            return {"note": "x" * 50_000, "picture": f"https://e.com/p.png?X-Amz-Signature={signature}"}

        run = one(options=options("not-to-be-shown-anywhere"))
        assert run.execute(MODIFY, 0)
        assert 0 < len(json.dumps(claim_in(tmp_path))) < 2000
        assert "not-to-be" not in json.dumps(claim_in(tmp_path))
        assert one("run_2", options=options("another")).todo == []
        assert run.execute(DOWNLOAD, 0)
        [manifest] = (tmp_path / "videos").glob(".*.luma.json")
        assert "not-to-be" not in manifest.read_text()
        assert manifest.stat().st_size < 2000
        assert one("run_3", options=options("another")).todo == []
        assert len(one("run_4", options={"note": "y"}).todo) == 1


class TestFolders:
    def test_named_like_a_video_is_refused_before_anything_is_paid(self, batch, luma, tmp_path):
        (tmp_path / "videos" / "b.mp4").mkdir(parents=True)
        assert "destination has folders where videos are to be written: 'b.mp4'. Rename" in failure(batch())
        assert luma.accepted == 0

    def test_named_like_a_video_in_a_bucket(self, luma, luma_conn, bucket: Bucket):
        bucket.put("a.mp4/something", b"else")
        bucket.s3.put_object(Bucket=BUCKET, Key="in/a.mp4", Body=make_clip())
        run = BatchRun(clips=f"s3://my_s3@{BUCKET}/in", destination=bucket.destination)
        assert "destination has folders where videos are to be written: 'a.mp4'" in failure(run)

    def test_that_a_clip_in_a_subfolder_would_make(self, luma, luma_conn, bucket: Bucket):
        for name in ("a.mp4", "a.mp4/x/b.mp4"):
            bucket.s3.put_object(Bucket=BUCKET, Key=f"in/{name}", Body=make_clip())
        run = BatchRun(clips=f"s3://my_s3@{BUCKET}/in", destination=bucket.destination, pattern="**/*.mp4")
        assert "destination has folders where videos are to be written: 'a.mp4'" in failure(run)


@pytest.mark.parametrize(
    "fault", [None, pytest.param("submit:refuse,code=402,times=1", marks=pytest.mark.long)], ids=["accepted", "refused"]
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 24))
def test_wherever_a_task_is_killed_nothing_is_paid_twice_or_lost_and_nobody_waits_for_ever(
    luma, one, tmp_path, set_connection, short_backoff, number, is_done, fault
):
    """Kills before and after each change of the small files and of the record, and before each is looked at."""
    set_connection(luma.base_url, submission_store=f"file://{tmp_path}/store", requests_per_second=1000)
    luma.configure(faults=[fault] if fault else [])
    run = one()
    methods = [(creation.WholeLocalFile, name) for name in ("__enter__", "__exit__")]
    methods += [(Document, name) for name in ("create", "read", "write", "remove")]
    with killed_at(number, *methods, is_done=is_done):
        run.clip(0)
    paid = luma.accepted
    assert paid <= 1
    other = one("run_2")
    if other.todo:
        other.clip(0)
    assert luma.accepted <= 1, "another run pays only for what is not paid"
    if run.states[MODIFY, 0] != "success":
        run.execute(MODIFY, 0, is_retry=True)
    assert luma.accepted <= 1
    if other.states.get((DOWNLOAD, 0)) == "success":
        assert run.states[MODIFY, 0] == "failed"
    else:
        if run.states[MODIFY, 0] != "success":
            # A person has looked for the job, or has topped up the account, and clears the task.
            assert re.search("log page|402", str(run.errors[MODIFY, 0]))
            assert run.execute(MODIFY, 0) or run.execute(MODIFY, 0, is_retry=True)
            assert luma.accepted <= paid + 1
        assert run.states.get((DOWNLOAD, 0)) == "success" or run.execute(DOWNLOAD, 0, is_retry=True)
    written = [name for name in files(tmp_path) if not name.endswith(".part")]
    assert written == [".sample.mp4.luma.json", "sample.mp4"]
    assert one("run_3").todo == []

# SPDX-License-Identifier: Apache-2.0
"""A batch of clips, from the folder to the table: what is paid for, and what is not paid for again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import ANY

import pytest
from airflow.sdk import Asset, literal
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_luma.compat import AirflowFailException, AirflowSkipException
from airflow_provider_luma.files.batch_video import BatchVideo, Document, request_hash
from airflow_provider_luma.files.storage import as_path
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from tests.support.batch_run import COLLECT, DOWNLOAD, MODIFY, PLAN, BatchRun, failure, files, videos
from tests.support.clips import clip as make_clip
from tests.support.clips import with_broken_sound
from tests.support.storages import BUCKET, Bucket
from tests.support.task_instance import killed_at

pytestmark = [pytest.mark.slow, pytest.mark.versions]

CLIP = make_clip()


def path_of(address: str) -> Path:
    """Return a path on this machine, which some versions of Airflow write with a scheme."""
    return Path(address.removeprefix("file://"))


def test_each_clip_becomes_a_video_of_the_same_name(batch, luma: Simulator, folder, tmp_path):
    run = batch()
    table = run.run()
    assert [path_of(row["clip"]) for row in table] == [folder / name for name in ("a.mp4", "b.mov", "c.mp4")]
    assert videos(table) == ["a.mp4", "b.mp4", "c.mp4"]
    assert {row["luma_task_id"] for row in table} == {job.task_id for job in luma.jobs}
    assert all(row["error"] is None and set(row) == {"clip", "video", "luma_task_id", "error"} for row in table)
    assert all(path_of(row["video"]).stat().st_size for row in table)
    assert luma.accepted == 3
    assert files(tmp_path) == [
        *(".a.mp4.luma.json", ".b.mp4.luma.json", ".c.mp4.luma.json"),
        *("a.mp4", "b.mp4", "c.mp4"),
    ]


def test_batch_in_a_bucket(luma: Simulator, luma_conn, bucket: Bucket):
    for name in ("a.mp4", "day 1/b #2.mp4", "c.txt"):
        bucket.s3.put_object(Bucket=BUCKET, Key=f"in/{name}", Body=CLIP)
    places = {"clips": f"s3://my_s3@{BUCKET}/in/", "destination": bucket.destination, "pattern": "**/*.mp4"}
    table = BatchRun(**places).run()
    assert [row["clip"] for row in table] == [f"s3://my_s3@{BUCKET}/in/{name}" for name in ("a.mp4", "day 1/b #2.mp4")]
    assert {name for name in bucket.files() if ".luma" not in name} == {"a.mp4", "day 1/b #2.mp4"}
    assert BatchRun("run_2", **places).run() == table
    assert luma.accepted == 2
    over_the_clips = failure(BatchRun("run_3", **{**places, "destination": f"s3://my_s3@{BUCKET}/in"}))
    assert "is the folder of the clips" in over_the_clips


class TestLaterRun:
    def test_modifies_new_clips_alone_even_if_their_contents_are_the_same(self, batch, luma, folder):
        first = batch().run()
        for name in ("d.mp4", "e.mp4", "f.mp4"):
            (folder / name).write_bytes(CLIP)
        run = batch("run_2")
        assert [row["clip"].rpartition("/")[2] for row in run.plan()] == ["d.mp4", "e.mp4", "f.mp4"]
        table = run.run()
        assert table[:3] == first
        assert videos(table) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
        assert luma.accepted == 6

    def test_without_new_clips_returns_the_table(self, batch, luma):
        table = batch().run()
        run = batch("run_2")
        assert run.run() == table
        assert (run.todo, luma.accepted) == ([], 3)

    def test_makes_a_deleted_video_anew(self, batch, luma, tmp_path):
        batch().run()
        (tmp_path / "videos" / "b.mp4").unlink()
        run = batch("run_2")
        table = run.run()
        assert ([row["clip"][-5:] for row in run.todo], luma.accepted) == (["b.mov"], 4)
        assert (tmp_path / "videos" / "b.mp4").exists()
        assert videos(table) == ["a.mp4", "b.mp4", "c.mp4"]

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": "make it rain"},
            {"watermark": "ours"},
            {"options": {"video": {"resolution": "360p"}}},
        ],
        ids=str,
    )
    def test_modifies_all_clips_if_the_request_is_another(self, batch, luma, folder, change, set_connection):
        if "options" in change:
            set_connection(luma.base_url, service="luma")
        batch().run()
        batch("run_2", **change).run()
        assert luma.accepted == 6

    def test_modifies_a_clip_whose_content_is_another(self, batch, luma, folder):
        batch().run()
        (folder / "c.mp4").write_bytes(make_clip(seconds=2))
        run = batch("run_2")
        run.run()
        assert [row["clip"][-5:] for row in run.todo] == ["c.mp4"]

    def test_neither_pays_for_nor_replaces_a_video_that_was_edited_since(self, batch, luma, tmp_path):
        first = batch()
        first.run()
        (tmp_path / "videos" / "a.mp4").write_bytes(b"graded by hand")
        os.utime(tmp_path / "videos" / "b.mp4", (1, 1))  # as restored from a backup
        assert batch("run_2").plan() == []
        assert "or that were changed since: 'a.mp4', 'b.mp4'. Remove" in failure(batch("run_3", prompt="make it rain"))
        assert "or that were changed since: 'a.mp4', 'b.mp4'. Remove" in failure(first)
        assert luma.accepted == 3

    def test_asks_a_storage_for_no_version_of_a_clip_that_has_no_video(self, batch, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.files.clip_list.version_of", None)
        assert len(batch().plan()) == 3


class TestJobOfAnotherRun:
    """Whatever became of it, it may be paid for: only one run has a job for a clip."""

    @pytest.fixture
    def failed(self, batch, luma, folder) -> BatchRun:
        """A run of which one job fails."""
        (folder / "b.mov").write_bytes(with_broken_sound(make_clip(sound="aac", kind="mov")))
        run = batch(allowed_failures=1, resubmit_on_failure=False)
        table = run.run()
        assert videos(table) == ["a.mp4", None, "c.mp4"]
        assert "GENERATE_FAILED" in table[1]["error"]
        assert table[1]["luma_task_id"] in {job.task_id for job in luma.jobs}
        assert luma.accepted == 3
        return run

    def test_that_failed_is_not_repeated_and_the_table_says_where_to_clear_it(self, failed, batch, luma):
        run = batch("run_2", allowed_failures=1)
        table = run.run()
        assert (run.todo, luma.accepted, videos(table)) == ([], 3, ["a.mp4", None, "c.mp4"])
        assert "run run_1 of videos has submitted it" in table[1]["error"]
        assert f"{MODIFY} [1]: {TaskStateSubmissionStore.recovery_hint}" in table[1]["error"]

    def test_is_repeated_if_the_dag_says_so(self, failed, batch, luma, folder):
        (run := batch("run_2", retry_failed=True, allowed_failures=1, resubmit_on_failure=False)).run()
        assert (len(run.todo), luma.accepted) == (1, 4)

    def test_is_left_to_that_run_even_if_the_clip_is_another(self, failed, batch, luma, folder):
        (folder / "b.mov").write_bytes(CLIP)
        assert batch("run_2", allowed_failures=1).plan() == []
        failed.clip(1)
        assert videos(failed.collect()) == videos(batch("run_3").run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 4

    def test_is_repeated_by_a_clear_of_its_own_task(self, failed, batch, luma):
        failed.clip(1)
        assert luma.accepted == 4
        (run := batch("run_2", allowed_failures=1)).run()
        assert (run.todo, luma.accepted) == ([], 4)

    def test_that_was_downloaded_after_all_counts(self, batch, luma, tmp_path):
        run = batch()
        run.plan()
        run.execute(MODIFY, 0)
        assert [row["video"][-5:] for row in batch("run_2").plan()] == ["b.mp4", "c.mp4"]
        run.execute(DOWNLOAD, 0)
        assert batch("run_2").run()[0]["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 3

    def test_that_begins_between_plan_and_submission_is_the_only_one(self, batch, luma):
        runs = [batch(run_id) for run_id in ("run_1", "run_2")]
        assert [len(run.plan()) for run in runs] == [3, 3]
        runs[0].execute(MODIFY, 0)
        assert not runs[1].execute(MODIFY, 0)
        assert "run run_1 of videos has submitted it" in str(runs[1].errors[MODIFY, 0])
        runs[0].execute(DOWNLOAD, 0)
        assert not runs[1].execute(MODIFY, 0)
        assert "another run has just made" in str(runs[1].errors[MODIFY, 0])
        assert luma.accepted == 1

    def test_that_was_refused_is_submitted_by_the_next(self, batch, luma, tmp_path):
        luma.configure(credits=0)
        with pytest.raises(AirflowFailException, match="No video for 3 of 3 clips"):
            batch().run()
        assert files(tmp_path) == []
        luma.configure(credits=1000)
        assert videos(batch("run_2").run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 3

    def test_whose_outcome_is_unknown_is_not_repeated(self, batch, luma):
        luma.configure(faults=["submit:cut,after_accept=true,times=1"])
        assert videos(batch(allowed_failures=1).run()) == [None, "b.mp4", "c.mp4"]
        (run := batch("run_2", allowed_failures=1)).run()
        assert (run.todo, luma.accepted) == ([], 3)


class TestClear:
    """It means what it always does."""

    def test_of_a_clip_makes_another_version(self, batch, luma, tmp_path):
        run = batch()
        run.run()
        before = (tmp_path / "videos" / "b.mp4").stat().st_mtime_ns
        run.clip(1)
        assert luma.accepted == 4
        assert (tmp_path / "videos" / "b.mp4").stat().st_mtime_ns > before
        assert run.collect()[1]["luma_task_id"] == luma.jobs[-1].task_id
        (later := batch("run_2")).run()
        assert (later.todo, luma.accepted) == ([], 4)

    def test_of_a_download_costs_nothing(self, batch, luma):
        run = batch()
        run.run()
        assert run.execute(DOWNLOAD, 1)
        (later := batch("run_2")).run()
        assert (later.todo, luma.accepted) == ([], 3)

    def test_of_all_tasks_makes_all_of_its_videos_anew_in_the_same_order(self, batch, luma, folder):
        batch().run()
        (folder / "b2.mp4").write_bytes(CLIP)
        run = batch("run_2")
        run.run()
        todo = run.todo
        run.run()
        assert run.todo == todo
        assert len(todo) == 1
        assert luma.accepted == 5

    def test_of_a_failed_clip_leaves_the_others_alone(self, batch, luma):
        luma.configure(faults=["submit:refuse,code=422,skip=1,times=1"])
        run = batch()
        with pytest.raises(AirflowFailException, match="No video for 1 of 3 clips"):
            run.run()
        run.clip(1)
        assert videos(run.collect()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 3


class TestTable:
    def test_is_matched_by_map_index_whatever_has_failed(self, batch, luma):
        luma.configure(faults=["submit:refuse,code=422,message=Not this.,times=1"])
        run = batch()
        with pytest.raises(AirflowFailException) as failed:
            run.run()
        assert "a.mp4: " in str(failed.value)
        assert "b.mov" not in str(failed.value)
        assert "clear the failed tasks" in str(failed.value)
        table = run.xcoms[COLLECT, -1, "return_value"]
        assert videos(json.loads(table)) == [None, "b.mp4", "c.mp4"], "it can be read even though the task has failed"
        assert [row["luma_task_id"] is None for row in json.loads(table)] == [True, False, False]

    def test_names_a_task_that_was_killed_without_a_word(self, batch):
        run = batch(allowed_failures=3)
        run.plan()
        run.states |= {(MODIFY, 0): "failed", (DOWNLOAD, 0): "upstream_failed"}
        assert f"{MODIFY} [0] is failed" in run.collect()[0]["error"]

    def test_does_not_take_a_video_of_an_earlier_try_for_one_of_this(self, batch, luma):
        run = batch(allowed_failures=1)
        run.run()
        luma.configure(faults=["submit:refuse,code=422,times=1"])
        run.clip(0)
        assert videos(run.collect()) == [None, "b.mp4", "c.mp4"]

    def test_has_the_planned_video_of_a_task_that_a_person_has_marked_as_a_success(self, batch):
        run = batch()
        run.plan()
        run.states |= {(step, index): "success" for step in (MODIFY, DOWNLOAD) for index in range(3)}
        assert videos(run.collect()) == ["a.mp4", "b.mp4", "c.mp4"]

    @pytest.mark.parametrize(
        ("allowed", "succeeds"),
        [(0, False), (1, False), (2, True), (0.5, False), (2 / 3, True), (1.0, True), (0.0, False)],
    )
    def test_fails_if_more_clips_than_allowed_have_no_video(self, batch, luma, allowed, succeeds):
        luma.configure(faults=["submit:refuse,code=422,times=2"])
        run = batch(allowed_failures=allowed)
        if succeeds:
            assert videos(run.run()) == [None, None, "c.mp4"]
        else:
            with pytest.raises(AirflowFailException, match="No video for 2 of 3 clips"):
                run.run()

    def test_lists_a_bounded_number_of_clips_in_its_error(self, batch, folder):
        for number in range(60):
            (folder / f"clip-{number}.mp4").write_bytes(CLIP)
        run = batch()
        run.plan()
        run.states |= {(MODIFY, index): "failed" for index in range(63)}
        assert "and 43 more" in failure(run, COLLECT)

    def test_tells_the_outlets_once_what_was_made(self, batch, luma, folder):
        batch().run()
        (folder / "d.mp4").write_bytes(CLIP)
        asset = Asset("videos")
        run = batch("run_2", outlets=[asset])
        run.outlet_events = OutletEventAccessors()
        table = run.run()
        extra = run.outlet_events[asset].extra
        assert extra["files"] == [table[3]["video"]]
        assert extra["luma_task_ids"] == [table[3]["luma_task_id"]]
        assert extra["prompts"] == ["make it snow"]
        assert extra["sources"] == [f"file://{folder}/d.mp4"], "as assets are named"
        assert run.dag.get_task(DOWNLOAD).outlets == run.dag.get_task(MODIFY).outlets == []

    def test_is_skipped_if_the_plan_was(self, batch):
        run = batch()
        run.states[PLAN, -1] = "skipped"
        assert not run.execute(COLLECT)
        assert isinstance(run.errors[COLLECT, -1], AirflowSkipException)

    def test_fails_if_the_plan_has(self, batch):
        run = batch(clips="/nowhere")
        assert "there is no folder" in failure(run)
        assert f"{PLAN} is failed" in failure(run, COLLECT)


class TestPlan:
    def test_of_an_empty_folder_is_empty(self, batch, luma, tmp_path):
        (tmp_path / "empty").mkdir()
        assert batch(clips=f"{tmp_path}/empty").run() == []

    def test_refuses_more_clips_than_airflow_maps(self, batch, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
        assert r"3 are to be modified, but [core] max_map_length lets Airflow map a task over at most 2" in failure(
            batch()
        )

    def test_counts_clips_that_have_their_video_for_nothing(self, batch, monkeypatch, folder):
        batch().run()
        (folder / "d.mp4").write_bytes(CLIP)
        monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
        assert len(batch("run_2").plan()) == 1

    @pytest.mark.parametrize("names", [("a.mp4", "a.mov"), ("a.MP4", "a.MP4")], ids=str)
    def test_refuses_two_clips_for_one_video(self, batch, tmp_path, names):
        for number, name in enumerate(names):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / name).write_bytes(CLIP)
        clips = [f"{tmp_path}/{number}/{name}" for number, name in enumerate(names)]
        assert f"{clips[0]} and {clips[1]} would both become" in failure(batch(clips=clips))

    def test_refuses_to_write_over_a_clip(self, batch, folder):
        assert "is the folder of the clips" in failure(batch(destination=f"{folder}/"))
        assert "would be overwritten" in failure(batch(clips=[f"{folder}/a.mp4"], destination=str(folder)))

    def test_refuses_to_write_over_a_file_that_no_batch_has_written(self, batch, tmp_path):
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos" / "b.mp4").write_bytes(b"mine")
        assert (
            "would be replaced, but that no batch has written, or that were changed since: 'b.mp4'. Remove"
            in failure(batch())
        )

    def test_never_takes_its_own_videos_for_clips(self, batch, luma, folder):
        places = {"pattern": "**/*.mp4", "destination": f"{folder}/out"}
        batch(**places).run()
        assert batch("run_2", **places).plan() == []

    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("*.mp4", ["a.mp4", "c.mp4"]),
            ("[ab].*", ["a.mp4", "b.mov"]),
            ("**/*.mp4", ["a.mp4", "c.mp4", "deep/er/d.mp4"]),
            ("deep/*/*.mp4", ["deep/er/d.mp4"]),
            ("*", ["a.mp4", "b.mov", "c.mp4", "notes.txt"]),
            ("x*", []),
        ],
    )
    def test_takes_the_files_that_match_the_pattern(self, batch, folder, pattern, found):
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "d.mp4").write_bytes(CLIP)
        planned = batch(pattern=pattern).plan()
        assert [str(path_of(row["clip"]).relative_to(folder)) for row in planned] == found

    def test_names_the_video_of_whatever_a_list_has(self, batch, luma, set_connection):
        set_connection(luma.base_url, service="luma")
        clips = [
            "https://e.com/x/Take%201.mov?sig=1",
            "https://e.com/v2.5",
            "luma-file:id_1",
            "/data/#1 {{ word }}.avi",
        ]
        run = batch(clips=[literal(clip) for clip in clips])
        assert [row["video"].rpartition("/")[2] for row in run.plan()] == [
            *("Take 1.mp4", "v2.5.mp4", "id_1.mp4", "#1 {{ word }}.mp4"),
        ]

    @pytest.mark.parametrize("name", ["..", "a/..", "", "a\\b.mp4", "x.mp4\ud800"])
    def test_refuses_a_clip_whose_name_would_lead_astray(self, batch, name):
        assert "clips" in failure(batch(clips=[literal(f"s3://bucket/{name}")]))

    @pytest.mark.parametrize(
        ("clips", "says"),
        [
            (5, "clips is of type int"),
            ({"a": "b"}, "clips is of type dict"),
            ([None], "clips contains None"),
            ("['a']", "text of a list"),
            ("https://e.com/videos", "not a folder"),
            ("s3://bucket/a.mp4", "not a folder"),
            ("clips/today", "not absolute"),
            ("", "not absolute"),
        ],
        ids=str,
    )
    def test_refuses_what_names_no_clips(self, batch, clips, says):
        assert says in failure(batch(clips=literal(clips)))

    def test_refuses_a_pattern_beside_a_list(self, batch):
        assert "pattern" in failure(batch(clips=["/data/a.mp4"], pattern="*.mp4"))

    def test_leaves_a_clip_that_is_not_there_to_its_task(self, batch, luma, folder):
        table = batch(clips=[f"{folder}/a.mp4", f"{folder}/nothing.mp4"], allowed_failures=1).run()
        assert videos(table) == ["a.mp4", None]
        assert "there is no such file" in table[1]["error"]


class TestPrompts:
    @pytest.mark.parametrize("kind", [list, dict])
    def test_one_for_each_clip(self, batch, luma, folder, kind):
        prompts = {"a.mp4": "make it snow", "b.mov": "make it rain", "c.mp4": "make it night"}
        each = prompts if kind is dict else list(prompts.values())
        clips = str(folder) if kind is dict else [f"{folder}/{name}" for name in prompts]
        batch(prompt=each, clips=clips).run()
        assert [job.prompt for job in luma.jobs] == list(prompts.values())
        (run := batch("run_2", prompt={**prompts, "b.mov": "make it hail"})).run()
        assert [row["prompt"] for row in run.todo] == ["make it hail"]

    @pytest.mark.parametrize(
        ("prompt", "says"),
        [
            (["x", "y"], "the clips of a folder have no order"),
            ({"a.mp4": "x"}, "no prompt for 'b.mov', 'c.mp4'"),
            ({"a.mp4": "x", "b.mov": "y", "c.mp4": ""}, "prompt is ''"),
            (literal("пусть идёт снег"), "English only"),
            (literal(""), "prompt is ''"),
            (literal(5), "prompt is 5"),
            (literal(["x", "y", "z"]), "prompt is ['x'"),
        ],
        ids=str,
    )
    def test_that_cannot_work_are_refused_before_anything_is_paid(self, batch, luma, prompt, says):
        assert says in failure(batch(prompt=prompt))
        assert luma.calls == []

    def test_must_be_as_many_as_clips(self, batch):
        assert "prompt contains 1 prompts for 2 clips" in failure(batch(clips=["/a.mp4", "/b.mp4"], prompt=["x"]))

    @pytest.mark.parametrize(("prompt", "expected"), [("say {{ word }}", "say SECRET"), ("notes.md", "from a file")])
    def test_of_the_dag_file_are_rendered(self, batch, luma, tmp_path, prompt, expected):
        (tmp_path / "notes.md").write_text("from a file\n")
        for given in (prompt, {"a.mp4": prompt, "b.mov": prompt, "c.mp4": prompt}):
            run = batch(prompt=given)
            run.dag.fileloc = str(tmp_path / "dag.py")
            run.plan()
            run.execute(MODIFY, 0)
        assert {job.prompt for job in luma.jobs} == {expected}


class TestUntrusted:
    """Clips, their names and prompts of another task are data: a template could read passwords."""

    def test_what_another_task_returns_is_not_rendered(self, batch, luma, folder, tmp_path):
        clip = folder / "{{ word }}.mp4"
        clip.write_bytes(CLIP)
        wild = {"clips": literal([str(clip)]), "prompt": [literal("say {{ word }}")]}
        run = BatchRun(destination=f"{tmp_path}/videos", **wild)
        [row] = run.run()
        assert row["clip"] == str(clip)
        assert row["video"].endswith("/{{ word }}.mp4")
        assert luma.jobs[0].prompt == "say {{ word }}"

    def test_neither_are_names_in_a_folder(self, batch, folder):
        (folder / "{{ word }}.mp4").write_bytes(CLIP)
        run = batch(pattern="{*.mp4")
        assert run.run()[0]["video"].endswith("/{{ word }}.mp4")

    def test_signature_of_a_clip_is_in_no_table_and_no_file(self, batch, luma, tmp_path):
        run = batch(clips=[f"{luma.sample_url}?signature=not-to-be-shown-anywhere"])
        [row] = run.run()
        assert row["clip"] == luma.sample_url
        assert not any(b"not-to-be" in path.read_bytes() for path in (tmp_path / "videos").glob(".*"))
        assert batch("run_2", clips=[f"{luma.sample_url}?signature=another"]).plan() == []

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"\xff", b'{"request": 5, "run": [1]}', b'{"run": "x"}', b"{" * 9999]
    )
    def test_manifest_that_is_none_is_taken_for_none(self, batch, luma, tmp_path, content):
        batch().run()
        (tmp_path / "videos" / ".a.mp4.luma.json").write_bytes(content)
        is_one = content in (b'{"request": 5, "run": [1]}', b'{"run": "x"}')
        assert ("other clips or batches" if is_one else "no batch has written") in failure(batch("run_2"))

    @pytest.mark.parametrize("content", [b"", b"[]", b"{" * 9999, b'{"run": [1]}', b'{"run": {"map_index": true}}'])
    def test_claim_that_cannot_be_read_keeps_others_from_paying(self, batch, luma, tmp_path, content):
        claim = tmp_path / "videos" / ".a.mp4.luma-job.json"
        claim.parent.mkdir()
        claim.write_bytes(content)
        table = batch(allowed_failures=1).run()
        assert videos(table) == [None, "b.mp4", "c.mp4"]
        assert (".a.mp4.luma-job.json" in table[0]["error"]) is (b"true" not in content)
        claim.unlink()
        assert videos(batch("run_2").run()) == ["a.mp4", "b.mp4", "c.mp4"]
        assert luma.accepted == 3


def test_manifest_says_how_the_video_was_made(batch, luma, tmp_path):
    batch(clips=[luma.sample_url]).run()
    [file] = (tmp_path / "videos").glob(".*.luma.json")
    manifest = json.loads(file.read_text())
    assert manifest == {
        "clip": luma.sample_url,
        "clip_version": luma.sample_url,
        "prompt": "make it snow",
        "request": request_hash(luma.sample_url, "make it snow", None, None, sound=False),
        "run": {"dag_id": "videos", "run_id": "run_1", "task_id": MODIFY, "map_index": 0},
        "reference": ANY,
        "luma_task_id": luma.jobs[0].task_id,
        "service": "kie",
        "video_version": BatchVideo(as_path(str(tmp_path / "videos" / "sample.mp4")), {}).version(),
    }


def test_sound_of_each_clip_is_put_under_its_video(batch, luma, folder, tmp_path):
    (folder / "a.mp4").write_bytes(make_clip(sound="aac"))
    alone = {"pattern": "a.*"}
    batch(keep_sound=True, **alone).run()
    assert b"mp4a" in (tmp_path / "videos" / "a.mp4").read_bytes()
    assert batch("run_2", keep_sound=True, **alone).plan() == []
    assert len(batch("run_3", **alone).plan()) == 1, "one without sound is another"


def test_sound_that_cannot_be_read_is_refused_before_anything_is_paid(batch, luma, set_connection):
    set_connection(luma.base_url, service="luma")
    assert "keep_sound" in failure(batch(clips=["luma-file:id"], keep_sound=True))


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("task_id", [MODIFY, DOWNLOAD])
def test_retry_after_a_kill_pays_for_nothing_again(batch, luma, task_id, number, is_done):
    """At each change of the small files beside the video."""
    run = batch(clips=[luma.sample_url])
    run.plan()
    if task_id == DOWNLOAD:
        run.execute(MODIFY, 0)
    with killed_at(number, *((Document, name) for name in ("create", "write", "remove")), is_done=is_done):
        assert not run.execute(task_id, 0)
    assert run.execute(task_id, 0, is_retry=True)
    assert run.execute(DOWNLOAD, 0, is_retry=task_id == DOWNLOAD)
    assert videos(run.collect()) == ["sample.mp4"]
    assert batch("run_2", clips=[luma.sample_url]).plan() == []
    assert luma.accepted == 1

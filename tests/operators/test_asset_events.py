# SPDX-License-Identifier: Apache-2.0
"""Asset events: what the outlets of tasks say about their videos, however the tasks are mapped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.lineage.entities import File
from airflow.sdk import DAG, Asset, AssetAlias, BaseOperator
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from tests.support.clips import clip as make_clip
from tests.support.task_instance import TaskInstance
from tests.support.task_logs import messages

VIDEO, ALIAS = Asset("video"), AssetAlias("videos")
COMPLETED_AT = "2026-11-25T10:00:00+00:00"


class XComs(TaskInstance):
    """A task instance that can pull what the tasks before have pushed: by task and key, a value for each map index."""

    def __init__(self, map_index: int = -1) -> None:
        super().__init__()
        self.map_index = map_index
        self.before: dict[tuple[str, str], dict[int, Any]] = {}
        self.error: Exception | None = None
        #: Questions for one XCom that is not there, each of which Airflow logs as an error.
        self.not_found = 0

    def add_job(self, task_id: str, map_index: int, *urls: str, **request: Any) -> None:
        request = {"prompt": "make it snow", "video_url": "https://e.com/in.mp4?sig=SECRET", **request}
        self.before.setdefault((task_id, "luma_request"), {})[map_index] = request
        result = {"luma_task_id": f"job-{map_index}", "result_urls": list(urls), "completed_at": COMPLETED_AT}
        self.before.setdefault((task_id, "return_value"), {})[map_index] = result

    def xcom_pull(self, *, task_ids: list[str], key: str, map_indexes: int | None = None) -> Any:
        if self.error:
            raise self.error
        [task_id] = task_ids
        pushed = self.before.get((task_id, key), {})
        if map_indexes is not None:
            self.not_found += map_indexes not in pushed
            return [pushed.get(map_indexes)]
        return [pushed[index] for index in sorted(pushed)] or [None]


@pytest.fixture
def web(wires, set_connection) -> str:
    """The address of a server that has a video at every path."""
    wire = wires.start(wires.answer(body=b"a video"))
    set_connection(wire.base_url)
    return wire.base_url


def download(ti: XComs, urls: Any, folder: Path, *outlets: Any) -> OutletEventAccessors:
    """Download what the task ``modify`` has returned; return the events of the outlets."""
    with DAG("d", schedule=None):
        other = BaseOperator(task_id="another")
        modify = BaseOperator(task_id="modify")
        operator = LumaDownloadOperator(task_id="download", urls=urls, destination=str(folder), outlets=list(outlets))
        [other, modify] >> operator
    events = OutletEventAccessors()
    operator.execute({"ti": ti, "outlet_events": events})  # type: ignore[typeddict-item]
    return events


def without_scheme(files: list[str]) -> list[str]:
    """Return paths on this machine, which some versions of Airflow write with a scheme."""
    return [file.removeprefix("file://") for file in files]


class TestDownload:
    def test_asset_is_told_of_the_file_the_job_the_prompt_the_source_and_the_end(self, web, tmp_path):
        ti = XComs()
        ti.add_job("modify", -1, f"{web}/a.mp4")
        extra = download(ti, [f"{web}/a.mp4"], tmp_path, VIDEO)[VIDEO].extra
        end = datetime.fromisoformat(extra.pop("results_expire_at"))
        assert end - datetime.fromisoformat(COMPLETED_AT) == timedelta(days=14)
        assert without_scheme(extra.pop("files")) == [f"{tmp_path}/a.mp4"]
        assert extra == {
            "luma_task_ids": ["job--1"],
            "prompts": ["make it snow"],
            "sources": ["https://e.com/in.mp4"],
        }
        assert ti.not_found == 0, "another task is before the download"

    @pytest.mark.parametrize(
        ("service", "kept"), [("kie", timedelta(days=14)), ("luma", timedelta(hours=1)), ("another", None)]
    )
    def test_results_expire_after_the_time_of_their_service(self, web, tmp_path, service, kept):
        ti = XComs()
        ti.add_job("modify", -1, f"{web}/a.mp4")
        result = ti.before["modify", "return_value"][-1]
        result["service"] = service
        extra = download(ti, result, tmp_path, VIDEO)[VIDEO].extra
        end = extra.get("results_expire_at")
        assert (end and datetime.fromisoformat(end) - datetime.fromisoformat(COMPLETED_AT)) == kept

    def test_job_of_a_result_is_found_by_its_id_although_all_addresses_are_alike(self, web, tmp_path):
        ti = XComs()
        for index in range(3):
            ti.add_job("modify", index, f"{web}/o.mp4", prompt=f"version {index}")
        results = [ti.before["modify", "return_value"][index] for index in (2, 0)]
        extra = download(ti, results, tmp_path, VIDEO)[VIDEO].extra
        assert extra["luma_task_ids"] == ["job-0", "job-2"]
        assert extra["prompts"] == ["version 0", "version 2"]

    def test_file_that_was_uploaded_is_the_source(self, web, tmp_path):
        ti = XComs()
        ti.add_job("modify", -1, f"{web}/a.mp4", source="s3://my_aws@bucket/in.mp4")
        extra = download(ti, f"{web}/a.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert extra["sources"] == ["s3://bucket/in.mp4"]

    @pytest.mark.parametrize("map_index", [0, 1, 2])
    def test_mapped_download_tells_of_the_job_of_its_own_result(self, web, tmp_path, map_index):
        """It is expanded over the results of the tasks 1, 3 and 5: the others have failed."""
        ti = XComs(map_index)
        for index in range(6):
            ti.add_job("modify", index, f"{web}/{index}.mp4")
        for index in (0, 2, 4):
            del ti.before["modify", "return_value"][index]
        job = 2 * map_index + 1
        extra = download(ti, f"{web}/{job}.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert extra["luma_task_ids"] == [f"job-{job}"]

    def test_prompt_is_left_out_where_it_may_be_of_another_job(self, web, tmp_path):
        ti = XComs(0)
        ti.add_job("modify", 0, f"{web}/0.mp4", prompt="make it rain")
        ti.add_job("modify", 1, f"{web}/1.mp4")
        del ti.before["modify", "return_value"][0]
        extra = download(ti, f"{web}/1.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert extra["luma_task_ids"] == ["job-1"]
        assert "prompts" not in extra

    def test_download_of_all_results_tells_of_all_jobs(self, web, tmp_path):
        ti = XComs()
        for index in range(3):
            ti.add_job("modify", index, f"{web}/{index}.mp4", prompt=f"version {index}")
        extra = download(ti, [f"{web}/{index}.mp4" for index in range(3)], tmp_path, VIDEO)[VIDEO].extra
        assert extra["luma_task_ids"] == ["job-0", "job-1", "job-2"]
        assert extra["prompts"] == ["version 0", "version 1", "version 2"]
        assert len(extra["files"]) == 3

    def test_alias_gets_an_event_for_each_file_of_the_job_that_made_it(self, web, tmp_path):
        ti = XComs()
        for index in range(2):
            ti.add_job("modify", index, f"{web}/{index}.mp4")
        events = download(ti, [f"{web}/{index}.mp4" for index in range(2)], tmp_path, ALIAS)[ALIAS].asset_alias_events
        for index, event in enumerate(events):
            assert event.dest_asset_key.uri == f"file://{tmp_path}/{index}.mp4"
            assert without_scheme(event.extra["files"]) == [f"{tmp_path}/{index}.mp4"]
            assert event.extra["luma_task_ids"] == [f"job-{index}"]
        assert len(events) == 2

    def test_file_that_is_of_no_task_before_is_told_of_alone(self, web, tmp_path):
        ti = XComs()
        ti.add_job("modify", -1, f"{web}/another.mp4")
        extra = download(ti, f"{web}/a.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert (list(extra), without_scheme(extra["files"])) == (["files"], [f"{tmp_path}/a.mp4"])

    def test_what_the_author_has_told_stays(self, web, tmp_path):
        events = OutletEventAccessors()
        events[VIDEO].extra = {"take": 7, "files": ["mine"]}
        operator = LumaDownloadOperator(
            task_id="download", urls=f"{web}/a.mp4", destination=str(tmp_path), outlets=[VIDEO]
        )
        operator.execute({"ti": XComs(), "outlet_events": events})  # type: ignore[typeddict-item]
        assert events[VIDEO].extra == {"take": 7, "files": ["mine"]}

    def test_xcoms_that_cannot_be_read_do_not_fail_a_download_that_is_done(self, web, tmp_path, task_log):
        ti = XComs()
        ti.error = OSError("the backend of XComs is away")
        extra = download(ti, f"{web}/a.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert (list(extra), without_scheme(extra["files"])) == (["files"], [f"{tmp_path}/a.mp4"])
        assert len(messages(task_log, "The asset events will omit")) == 1

    @pytest.mark.parametrize(
        ("request_", "result"),
        [
            ({"prompt": "a\x00\ud800b", "video_url": 7}, {"luma_task_id": "job\x00", "completed_at": "soon"}),
            ("no request", {"luma_task_id": "job\x00", "completed_at": 10**40}),
            ({"prompt": ["no", "text"]}, {"luma_task_id": "job\x00", "completed_at": "9999-12-31T00:00:00+00:00"}),
        ],
        ids=["unstorable", "no request", "no times"],
    )
    def test_what_is_no_valid_value_is_left_out_or_made_storable(self, web, tmp_path, request_, result):
        ti = XComs()
        ti.before["modify", "luma_request"] = {-1: request_}
        ti.before["modify", "return_value"] = {-1: {**result, "result_urls": [f"{web}/a.mp4", None]}}
        extra = download(ti, f"{web}/a.mp4", tmp_path, VIDEO)[VIDEO].extra
        assert extra["luma_task_ids"] == ["job\ufffd"]
        assert extra.get("prompts", ["a\ufffd\ufffdb"]) == ["a\ufffd\ufffdb"]
        assert "results_expire_at" not in extra and "sources" not in extra

    def test_without_outlets_no_xcom_is_read(self, web, tmp_path):
        ti = XComs()
        ti.error = AssertionError("an XCom was read")
        assert len(download(ti, f"{web}/a.mp4", tmp_path)) == 0


class TestJob:
    """Tasks that submit a job, or wait for one."""

    def facts(self, run: Any) -> dict[str, Any]:
        events = OutletEventAccessors()
        run({"ti": XComs(), "outlet_events": events})
        return dict(events[VIDEO].extra)

    def test_modify_that_waits_names_the_video_the_job_the_prompt_and_the_end(self, luma, modify):
        extra = self.facts(modify(deferrable=False, outlets=[VIDEO]).execute)
        job = luma.jobs[0]
        assert datetime.fromisoformat(extra.pop("results_expire_at")) > datetime.now(UTC)
        assert extra == {
            "files": job.result_urls,
            "luma_task_ids": [job.task_id],
            "prompts": ["make it a rainy night"],
            "sources": [luma.sample_url],
        }

    def test_modify_that_does_not_wait_names_the_job(self, luma, modify):
        extra = self.facts(modify(wait_for_completion=False, outlets=[VIDEO]).execute)
        assert extra == {
            "luma_task_ids": [luma.jobs[0].task_id],
            "prompts": ["make it a rainy night"],
            "sources": [luma.sample_url],
        }

    def test_modify_of_a_file_names_the_file_and_not_its_copy_at_luma(self, luma, modify, tmp_path):
        clip = tmp_path / "in.mp4"
        clip.write_bytes(make_clip(seconds=1))
        extra = self.facts(modify(video_url=str(clip), deferrable=False, outlets=[VIDEO]).execute)
        assert extra["sources"] == [f"file://{clip}"]

    def test_modify_that_a_trigger_resumed_names_the_job_that_the_trigger_saw(self, luma, modify):
        task = {"luma_task_id": "j", "result_urls": ["https://e.com/r.mp4?sig=SECRET"], "completed_at": COMPLETED_AT}
        event = {"task": task, "request": {"prompt": "as sent", "video_url": "https://e.com/copy.mp4"}}
        operator = modify(outlets=[VIDEO])
        extra = self.facts(lambda context: operator.execute_complete(context, event))
        assert (extra["files"], extra["prompts"]) == (["https://e.com/r.mp4"], ["as sent"])
        assert extra["sources"] == [luma.sample_url]

    def test_modify_with_a_limit_says_what_its_run_has_submitted(self, luma, modify, set_connection, tmp_path):
        set_connection(luma.base_url, service="luma", submission_store=str(tmp_path / "store"))
        (clip := tmp_path / "in.mp4").write_bytes(make_clip(seconds=1))
        limited = {"max_jobs_per_run": 9, "video_url": str(clip), "outlets": [VIDEO]}
        extra = self.facts(modify(deferrable=False, **limited).execute)
        assert (extra["jobs_in_run"], extra["run_us_dollars"]) == (1, 1.08)

        def resumed(context: Any) -> Any:
            task = {"luma_task_id": "j", "result_urls": [], "completed_at": COMPLETED_AT}
            return modify(**limited).execute_complete(context, {"task": task})

        extra = self.facts(resumed)
        assert (extra["jobs_in_run"], extra["run_us_dollars"]) == (1, 1.08), "another process reads it again"

    def test_modify_with_a_limit_leaves_out_a_price_that_is_unknown(self, luma, modify, set_connection, tmp_path):
        set_connection(luma.base_url, submission_store=str(tmp_path))
        extra = self.facts(modify(deferrable=False, max_jobs_per_run=9, outlets=[VIDEO]).execute)
        assert extra["jobs_in_run"] == 1
        assert "run_us_dollars" not in extra

    def test_count_that_cannot_be_read_does_not_fail_a_paid_job(self, luma, modify, set_connection, tmp_path, task_log):
        set_connection(luma.base_url, submission_store=str(tmp_path / "unmounted" / "store"))
        task = {"luma_task_id": "j", "result_urls": ["https://e.com/r.mp4"], "completed_at": COMPLETED_AT}
        operator = modify(max_jobs_per_run=9, outlets=[VIDEO])
        extra = self.facts(lambda context: operator.execute_complete(context, {"task": task}))
        assert extra["luma_task_ids"] == ["j"]
        assert "jobs_in_run" not in extra
        assert len(messages(task_log, "will omit the jobs of the DAG run")) == 1

    @pytest.mark.parametrize("is_deferred", [True, False])
    def test_sensor_names_what_luma_has_recorded(self, luma, modify, until, is_deferred):
        modify(wait_for_completion=False).execute({"ti": XComs()})
        job_id = luma.jobs[0].task_id
        until(lambda: luma.jobs[0].complete_time)
        sensor = LumaTaskSensor(task_id="wait", luma_task_id=job_id, deferrable=is_deferred, outlets=[VIDEO])
        task = LumaHook().get_task(job_id)
        event = {"task": task.as_dict(), "request": task.request()}
        run = (lambda context: sensor.execute_complete(context, event)) if is_deferred else sensor.poke
        extra = self.facts(run)
        assert extra["luma_task_ids"] == [job_id]
        assert extra["files"] == list(luma.jobs[0].result_urls)
        assert (extra["prompts"], extra["sources"]) == (["make it a rainy night"], [luma.sample_url])

    def test_no_query_of_an_address_of_luma_s_own_api_is_told(self, luma, modify):
        url = "https://e.com/r.mp4?key=SECRET"
        task = {"luma_task_id": "j", "result_urls": [url], "completed_at": COMPLETED_AT, "service": "luma"}
        operator = modify(outlets=[VIDEO])
        extra = self.facts(lambda context: operator.execute_complete(context, {"task": task}))
        assert extra["files"] == ["https://e.com/r.mp4"]
        end = datetime.fromisoformat(COMPLETED_AT) + timedelta(hours=1)
        assert datetime.fromisoformat(extra["results_expire_at"]) == end

    def test_alias_gets_the_video_at_luma_as_an_asset(self, luma, modify):
        events = OutletEventAccessors()
        modify(deferrable=False, outlets=[ALIAS]).execute({"ti": XComs(), "outlet_events": events})
        (event,) = events[ALIAS].asset_alias_events
        assert event.dest_asset_key.uri == luma.jobs[0].result_urls[0]
        assert event.extra["luma_task_ids"] == [luma.jobs[0].task_id]

    def test_outlet_for_openlineage_does_not_fail_a_paid_job(self, luma, modify, task_log):
        """A table or file of Airflow's lineage is no asset: it has no events."""
        extra = self.facts(modify(deferrable=False, outlets=[File("s3://bucket/out.mp4"), VIDEO]).execute)
        assert extra["luma_task_ids"] == [luma.jobs[0].task_id], "the other outlets have theirs"
        assert messages(task_log, "will not describe") == []

    @pytest.mark.parametrize("outlet", [VIDEO, ALIAS, Asset.ref(name="video")])
    def test_event_that_cannot_be_written_does_not_fail_a_paid_job(self, luma, modify, task_log, outlet):
        context = {"ti": XComs(), "outlet_events": {}}
        result = modify(deferrable=False, outlets=[outlet]).execute(context)
        assert result["result_urls"] == luma.jobs[0].result_urls
        assert len(messages(task_log, "will not describe the video")) == 1

    def test_address_that_is_too_long_for_an_asset_does_not_fail_a_paid_job(self, luma, modify, task_log):
        task = {"luma_task_id": "j", "result_urls": [f"https://e.com/{'a' * 1500}.mp4"], "completed_at": COMPLETED_AT}
        context = {"ti": XComs(), "outlet_events": OutletEventAccessors()}
        assert modify(outlets=[ALIAS]).execute_complete(context, {"task": task}) == task
        assert len(messages(task_log, "will not describe the video")) == 1


class TestJoin:
    @pytest.fixture
    def film(self, tmp_path) -> Path:
        path = tmp_path / "film.mp4"
        path.write_bytes(make_clip(seconds=4))
        return path

    def join(self, ti: XComs, film: Path, clips: list[str]) -> Any:
        with DAG("d", schedule=None):
            split, modify, fetch = (BaseOperator(task_id=task_id) for task_id in ("split", "modify", "download"))
            operator = VideoJoinOperator(
                task_id="join",
                clips=clips,
                source=str(film),
                destination=str(film.parent / "out.mp4"),
                outlets=[VIDEO],
            )
            split >> modify >> fetch >> operator
            split >> operator
        events = OutletEventAccessors()
        operator.execute({"ti": ti, "outlet_events": events})  # type: ignore[typeddict-item]
        return events[VIDEO].extra

    def clips(self, film: Path, count: int) -> list[str]:
        for number in range(count):
            (film.parent / f"{number}.mp4").write_bytes(make_clip(seconds=2))
        return [f"file://{film.parent}/{number}.mp4" for number in range(count)]

    def test_asset_is_told_of_the_film_and_of_the_jobs_of_its_clips(self, film):
        ti, clips = XComs(), self.clips(film, 2)
        ti.before["split", "return_value"] = {-1: ["file:///clips/0.mp4", "file:///clips/1.mp4"]}
        for index in range(3):
            ti.add_job("modify", index, f"https://e.com/{index}.mp4", source=f"file:///clips/{index}.mp4")
        returned = [[clips[0]], ["file:///elsewhere.mp4"], [clips[1]]]
        ti.before["download", "return_value"] = dict(enumerate(returned))
        extra = self.join(ti, film, clips)
        assert extra.pop("results_expire_at").startswith("2026-12-09T10:00:00")
        assert extra.pop("seconds") == pytest.approx(4, abs=0.1)
        assert without_scheme(extra.pop("files")) == [f"{film.parent}/out.mp4"]
        assert extra == {
            "luma_task_ids": ["job-0", "job-2"],
            "prompts": ["make it snow"],
            "sources": [f"file://{film}"],
        }

    def test_jobs_are_left_out_where_it_is_not_known_whose_clips_these_are(self, film):
        ti, clips = XComs(), self.clips(film, 2)
        for index in range(3):
            ti.add_job("modify", index, f"https://e.com/{index}.mp4")
        ti.before["download", "return_value"] = {0: [clips[0]], 1: [clips[1]]}
        extra = self.join(ti, film, clips)
        assert sorted(extra) == ["files", "seconds", "sources"]

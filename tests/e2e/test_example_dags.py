# SPDX-License-Identifier: Apache-2.0
"""The example DAGs, on a real Airflow."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import AIRFLOW
from tests.e2e.runs import finish, has_process
from tests.e2e.videos import assert_modified
from tests.support.clips import clip as make_clip
from tests.support.clips import with_broken_sound
from tests.support.file_server import FileServer, Reply

pytestmark = pytest.mark.xdist_group("runs")


@pytest.fixture
def web() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.mark.parametrize(
    # The demo runs luma_modify every time, and test_no_secrets luma_submit_and_wait.
    "dag_id",
    [
        pytest.param("luma_modify", marks=pytest.mark.long),
        pytest.param("luma_submit_and_wait", marks=pytest.mark.long),
        pytest.param("own_api_luma_submit_and_wait", marks=pytest.mark.long),
    ],
)
def test_example_dag_ends_with_a_playable_video(airflow: LocalAirflow, luma: Simulator, dag_id: str) -> None:
    luma.configure(processing_seconds=1)

    run_id = airflow.trigger(dag_id)

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    [file] = airflow.xcom(dag_id, run_id, "download")
    assert_modified(file, luma.sample_url)
    assert luma.accepted == 1


def test_video_is_downloaded_though_its_address_at_lumas_own_api_has_expired(
    airflow: LocalAirflow, luma: Simulator
) -> None:
    dag_id = "own_api_luma_modify"
    luma.configure(processing_seconds=1)
    run_id = airflow.trigger(dag_id)
    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    [file] = airflow.xcom(dag_id, run_id, "download")
    assert_modified(file, luma.sample_url)

    Path(file.removeprefix("file://")).unlink()
    luma.expire_urls()
    asked = len([call for call in luma.calls if call.on == "status"])
    clear = {"dag_run_id": run_id, "task_ids": ["download"], "only_failed": False, "dry_run": False}
    airflow.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=clear)
    airflow.wait_until(lambda: airflow.run_state(dag_id, run_id) == "success", "the second download")

    assert airflow.xcom(dag_id, run_id, "download") == [file]
    assert_modified(file, luma.sample_url)
    assert len([call for call in luma.calls if call.on == "status"]) == asked + 1, "which gave another address"
    assert not any(call.carried_authorization for call in luma.calls if call.on == "file")
    assert luma.accepted == 1


@pytest.mark.long
def test_batch_with_lumas_own_api_names_the_clip_that_fails_and_pays_for_the_others_once(
    airflow: LocalAirflow, luma: Simulator, tmp_path: Path
) -> None:
    dag_id = "own_api_luma_batch"
    luma.configure(processing_seconds=1, faults=["submit:refuse,code=429,limit=requests,retry_after=1,times=2"])
    good, too_long = (tmp_path / f"{name}.mp4" for name in ("good", "too-long"))
    good.write_bytes(make_clip())
    too_long.write_bytes(make_clip(seconds=20))
    clips = [luma.sample_url, str(too_long), luma.sample_url.replace("sample", "sample-2"), str(good)]

    run_id = airflow.trigger(dag_id, video_urls=clips)

    assert finish(airflow, dag_id, run_id) == "failed"
    log = airflow.wait_for_log("No video for 1 of 4 clips:", dag_id, run_id, "collect")
    assert re.search(re.escape(str(too_long)) + r": .*20.* s", log)
    assert luma.accepted == 3, "a clip that is too long is not submitted"

    too_long.write_bytes(make_clip())
    clear = {"dag_run_id": run_id, "only_failed": True, "dry_run": False}
    airflow.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=clear)

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    for file, clip in zip(airflow.xcom(dag_id, run_id, "collect"), clips, strict=True):
        assert_modified(file, clip)
    assert (luma.accepted, len(luma.uploads)) == (4, 2)


@pytest.mark.long
def test_batch_makes_the_videos_of_all_clips_but_those_that_fail_and_names_these(
    airflow: LocalAirflow, luma: Simulator, web: FileServer, tmp_path: Path
) -> None:
    luma.configure(processing_seconds=1)
    samples = [luma.sample_url.replace("sample", name) for name in ("sample", "sample-2", "sample-3")]
    good, too_long = (str(tmp_path / f"{name}.mp4") for name in ("good", "too-long"))
    Path(good).write_bytes(make_clip())
    Path(too_long).write_bytes(make_clip(seconds=12))
    broken = web.serve("/broken.mp4", Reply(with_broken_sound(make_clip(sound="aac"))))
    signature = "?signature=not-to-be-shown"
    clips = [samples[0], too_long, samples[1] + signature, broken + signature, samples[2], good]

    run_id = airflow.trigger("luma_batch", video_urls=clips)

    assert finish(airflow, "luma_batch", run_id) == "failed"
    for index in (0, 2, 4, 5):
        [file] = airflow.xcom("luma_batch", run_id, "clip.download", map_index=index)
        assert_modified(file, clips[index])
    log = airflow.wait_for_log("No video for", "luma_batch", run_id, "collect")
    assert "Videos (4):" in log
    assert "No video for 2 of 6 clips:" in log
    assert re.search(re.escape(too_long) + r": .*12.* s", log)
    assert f"{broken}: GENERATE_FAILED: The video could not be rendered" in log
    assert "XCom not found" not in log
    assert luma.accepted == 5, "a clip that is too long is not submitted"
    tasks = [task for task in airflow.tasks("luma_batch", run_id) if task["task_id"] == "clip.modify"]
    shown = {clip.removesuffix(signature).rsplit("/", 1)[-1] for clip in clips}
    assert {task["rendered_map_index"] for task in tasks} == shown

    Path(too_long).write_bytes(make_clip())
    web.serve("/broken.mp4", Reply(make_clip()))
    clear = {"dag_run_id": run_id, "only_failed": True, "dry_run": False}
    airflow.call("POST", "/dags/luma_batch/clearTaskInstances", json=clear)

    assert finish(airflow, "luma_batch", run_id) == "success", airflow.story("luma_batch", run_id)
    files = airflow.xcom("luma_batch", run_id, "collect")
    for file, clip in zip(files, clips, strict=True):
        assert_modified(file, clip)
    assert luma.accepted == 7, "only what has failed is paid for again"


@pytest.mark.versions
def test_decorator_example_dag_submits_what_its_functions_return_even_after_a_queue(
    airflow: LocalAirflow, luma: Simulator
) -> None:
    luma.configure(processing_seconds=1, faults=["submit:refuse,code=429,times=2"])

    run_id = airflow.trigger("luma_decorator", place="on the moon", weathers=["rain", "snow"])

    assert finish(airflow, "luma_decorator", run_id) == "success", airflow.story("luma_decorator", run_id)
    prompts = sorted(job.request["prompt"] for job in luma.jobs)
    assert prompts[1:] == ["Make it an evening in the rain on the moon", "Make it an evening in the snow on the moon"]
    assert re.fullmatch("Make it a day in (winter|spring|summer|autumn) on the moon", prompts[0])
    assert sorted(job.request.get("watermark", "") for job in luma.jobs) == ["", "rain", "snow"]
    [file] = airflow.xcom("luma_decorator", run_id, "download")
    assert_modified(file, luma.sample_url)
    tasks = [task for task in airflow.tasks("luma_decorator", run_id) if task["task_id"] == "weather"]
    assert {task["rendered_map_index"] for task in tasks} == {"rain", "snow"}
    assert {task["try_number"] for task in tasks} == {1}
    if AIRFLOW >= (3, 3):  # 3.1 and 3.2 show the fields as they were before the function was called
        assert {task["rendered_fields"]["prompt"] for task in tasks} == set(prompts[1:])


def test_running_job_holds_no_worker_slot_and_survives_the_triggerer(airflow: LocalAirflow, luma: Simulator) -> None:
    luma.configure(processing_seconds=600)

    def modify() -> dict[str, object]:
        return next(task for task in airflow.tasks("luma_modify", run_id) if task["task_id"] == "modify")

    run_id = airflow.trigger("luma_modify")
    airflow.wait_until(lambda: modify()["state"] == "deferred", "the task to be deferred")
    luma_task_id = airflow.xcom("luma_modify", run_id, "modify", "luma_task_id")
    assert luma_task_id == luma.jobs[-1].task_id, "the id is in XCom while the job is running"
    task_instance_id = modify()["id"]
    airflow.wait_until(lambda: not has_process(airflow, task_instance_id), "the task's process to end")

    airflow.stop("triggerer", signal.SIGKILL)
    airflow.start("triggerer")
    assert modify()["state"] == "deferred"
    luma.end_jobs()

    assert finish(airflow, "luma_modify", run_id) == "success"
    assert luma.accepted == 1
    assert modify()["try_number"] == 1


@pytest.mark.versions
def test_dag_scheduled_on_the_asset_of_a_video_is_told_what_was_made(airflow: LocalAirflow, luma: Simulator) -> None:
    luma.configure(processing_seconds=1)

    run_id = airflow.trigger("luma_asset")

    assert finish(airflow, "luma_asset", run_id) == "success", airflow.story("luma_asset", run_id)
    airflow.wait_until(lambda: bool(news_runs(airflow)), "luma_asset_news to run")
    [news] = news_runs(airflow)
    assert finish(airflow, "luma_asset_news", news) == "success", airflow.story("luma_asset_news", news)
    [video] = airflow.xcom("luma_asset_news", news, "tell")
    result = airflow.xcom("luma_asset", run_id, "modify")
    kept = datetime.fromisoformat(video.pop("results_expire_at")) - datetime.fromisoformat(result["completed_at"])
    assert kept == timedelta(days=14)
    assert video == {
        "files": airflow.xcom("luma_asset", run_id, "download"),
        "luma_task_ids": [result["luma_task_id"]],
        "prompts": ["Make it a rainy night with neon lights"],
        "sources": [luma.sample_url],
    }


def news_runs(airflow: LocalAirflow) -> list[str]:
    return [run["dag_run_id"] for run in airflow.call("GET", "/dags/luma_asset_news/dagRuns")["dag_runs"]]

# SPDX-License-Identifier: Apache-2.0
"""A film on a real Airflow, while its tasks are killed and its clips fail: the right film, and nothing paid twice."""

from __future__ import annotations

from pathlib import Path

import av
import psutil
import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import finish, task_processes
from tests.support.clips import clip as make_clip

pytestmark = pytest.mark.long


@pytest.fixture
def luma(lumas: dict[str, Simulator]) -> Simulator:
    luma = lumas["input_film"]
    luma.reset()
    return luma


def write_film(folder: Path, seconds: float) -> Path:
    film = folder / "source.mp4"
    film.write_bytes(make_clip(seconds=seconds, size=(640, 360), rate=25, sound="aac"))
    return film


def seconds_of(film: Path) -> float:
    with av.open(str(film)) as container:
        return float(container.duration / av.time_base)


def makers(airflow: LocalAirflow) -> list[psutil.Process]:
    """Return the task processes that have a temporary file of ours open."""
    found = []
    for process in task_processes(airflow):
        try:
            if any("/luma-" in file.path for file in process.open_files()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended just now
    return found


def kill_maker(airflow: LocalAirflow, what: str) -> None:
    """Kill the task process that makes a video, as soon as there is one."""
    found: list[psutil.Process] = []
    airflow.wait_until(lambda: bool(found.extend(makers(airflow)) or found), what, every=0.05)
    found[0].kill()


@pytest.mark.parametrize("dag_id", ["film", "film_luma"])
def test_film_whose_split_and_join_are_killed_is_right_and_paid_once(
    airflow: LocalAirflow, luma: Simulator, tmp_path: Path, dag_id: str
) -> None:
    luma.configure(processing_seconds=1)
    source = write_film(tmp_path, 60)
    run_id = airflow.trigger(dag_id, source=str(source), folder=str(tmp_path))
    kill_maker(airflow, "the film to be split")
    airflow.wait_until(lambda: luma.accepted == 6, "all clips to be submitted")
    kill_maker(airflow, "the film to be joined")

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    tries = {task["task_id"]: task["try_number"] for task in airflow.tasks(dag_id, run_id) if task["map_index"] < 0}
    assert (tries["film.split"], tries["film.join"]) == (2, 2), "both were killed"
    assert luma.accepted == 6
    assert abs(seconds_of(tmp_path / "film.mp4") - 60) < 0.1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["film.mp4", "source.mp4"]


def test_prompts_of_another_task_reach_luma_as_text(
    airflow: LocalAirflow, luma: Simulator, dags: Path, tmp_path: Path
) -> None:
    luma.configure(processing_seconds=1)
    (dags / "As in notes.txt").write_text("the content of a file, which Airflow reads for a field that ends so")
    source = write_film(tmp_path, 15)
    run_id = airflow.trigger("film_with_prompts", source=str(source), folder=str(tmp_path))
    assert finish(airflow, "film_with_prompts", run_id) == "success", airflow.story("film_with_prompts", run_id)
    assert {job.prompt for job in luma.jobs} == {"{{ conn.luma_default.password }}", "As in notes.txt"}
    assert luma.accepted == 2


@pytest.mark.parametrize("dag_id", ["film", "film_luma"])
def test_clip_that_fails_is_retried_alone(airflow: LocalAirflow, luma: Simulator, tmp_path: Path, dag_id: str) -> None:
    luma.configure(processing_seconds=2, outcome="generate_failed")
    source = write_film(tmp_path, 25)
    run_id = airflow.trigger(dag_id, source=str(source), folder=str(tmp_path))
    airflow.wait_until(lambda: luma.accepted > 0, "the first clip to be submitted")
    luma.configure(outcome="success")

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    failed = sum(job.outcome == "generate_failed" for job in luma.jobs)
    assert 1 <= failed <= 3
    assert luma.accepted == 3 + failed, "one more for each that failed"
    tries = [task["try_number"] for task in airflow.tasks(dag_id, run_id) if task["task_id"] == "film.modify"]
    assert sorted(tries) == [1] * (3 - failed) + [2] * failed
    assert abs(seconds_of(tmp_path / "film.mp4") - 25) < 0.1

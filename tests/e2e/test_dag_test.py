# SPDX-License-Identifier: Apache-2.0
"""
``dag.test()``, with which people develop DAGs: every deferral survives it, without a scheduler or a triggerer.

Airflow 3.1 to 3.3 resume a task there with nothing but the trigger's event, whatever the deferral handed over.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from airflow_provider_luma.simulator import Settings, Simulator
from harness.local_airflow import AirflowProblem, LocalAirflow
from tests.e2e.conftest import AIRFLOW, API_KEY, REPOSITORY
from tests.support.file_server import FileServer, Reply
from tests.support.films import clicks, film

pytestmark = [
    pytest.mark.xdist_group("dag_test"),
    pytest.mark.skipif(AIRFLOW == (3, 2), reason="dag.test() of Airflow 3.2 asks its own API before that is ready"),
]

#: Nothing listens there, so no callback ever comes.
CALLBACK_BASE_URL = "http://127.0.0.1:9"

IMPATIENT = """
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaModifyOperator

with DAG(dag_id="impatient", schedule=None):
    LumaModifyOperator(
        task_id="modify",
        prompt="make it snow",
        video_url="{video_url}",
        luma_conn_id="luma_with_callbacks",
        poll_interval=1,
        timeout=12,
    )
"""


@pytest.fixture(scope="module")
def luma() -> Iterator[Simulator]:
    """A Luma service whose jobs have ended by their first status check."""
    with Simulator(Settings(api_key=API_KEY, processing_seconds=0)) as luma:
        yield luma


@pytest.fixture(scope="module")
def unstarted(luma: Simulator, tmp_path_factory: pytest.TempPathFactory) -> LocalAirflow:
    """An Airflow with a database and the DAGs in it, of which no component runs."""
    home = tmp_path_factory.mktemp("dag_test")
    dags = home / "dags"
    shutil.copytree(REPOSITORY / "dags", dags)
    for file in dags.glob("*.py"):
        # As they are, but polling every second: the default of 30 would only make this test slow.
        file.write_text(file.read_text().replace('task_id="modify",', 'task_id="modify", poll_interval=1,'))
    (dags / "impatient.py").write_text(IMPATIENT.format(video_url=luma.sample_url))
    address = luma.base_url.removeprefix("http://")
    clip = home / "clip.mp4"
    clip.write_bytes(requests.get(luma.sample_url, timeout=30).content)
    extra = f"?callback_base_url={CALLBACK_BASE_URL.replace(':', '%3A').replace('/', '%2F')}"
    local = LocalAirflow(
        home,
        dags,
        {
            "AIRFLOW_CONN_LUMA_DEFAULT": f"luma://:{API_KEY}@{address}/http",
            "AIRFLOW_CONN_LUMA_AGENTS": json.dumps(
                {"conn_type": "luma", "host": luma.base_url, "password": API_KEY, "extra": {"service": "luma"}}
            ),
            "AIRFLOW_CONN_LUMA_WITH_CALLBACKS": f"luma://:{API_KEY}@{address}/http{extra}",
            "LUMA_VIDEO_URL": luma.sample_url,
            "LUMA_VIDEO": str(clip),
            "LUMA_DESTINATION": f"file://{home}/videos",
        },
    )
    local.run("db", "migrate")
    local.run("dags", "reserialize")
    local.run("pools", "set", "--include-deferred", "luma", "20", "Jobs running at Luma")
    return local


@pytest.mark.long
@pytest.mark.parametrize("dag_id", ["luma_modify", "luma_asset", "luma_batch", "luma_submit_and_wait"])
def test_example_dag_succeeds_under_dag_test(unstarted: LocalAirflow, luma: Simulator, dag_id: str) -> None:
    def videos() -> set[Path]:
        return {path for path in (unstarted.home / "videos" / dag_id).rglob("*.mp4") if path.stat().st_size}

    luma.reset()
    before = videos()
    unstarted.run("dags", "test", dag_id)
    assert luma.accepted == (3 if dag_id == "luma_batch" else 1)
    assert len(videos() - before) == luma.accepted


@pytest.mark.long
def test_variations_of_one_clip_succeed_under_dag_test(unstarted: LocalAirflow, luma: Simulator) -> None:
    luma.reset()
    unstarted.run("dags", "test", "luma_variations")
    assert (luma.accepted, len(luma.uploads)) == (3, 1)


@pytest.mark.long
def test_decorated_functions_succeed_under_dag_test_even_after_a_queue(
    unstarted: LocalAirflow, luma: Simulator
) -> None:
    luma.reset()
    luma.configure(faults=["submit:refuse,code=429,times=1"])
    unstarted.run("dags", "test", "luma_decorator")
    assert luma.accepted == len({job.request["prompt"] for job in luma.jobs}) == 3


@pytest.mark.long
def test_new_clips_of_a_folder_are_modified_under_dag_test(
    unstarted: LocalAirflow, luma: Simulator, tmp_path: Path
) -> None:
    luma.reset()
    places = json.dumps({"clips": str(tmp_path), "destination": f"{tmp_path}/videos"})
    for clips, accepted in ((["a", "b"], 2), ([], 2), (["c"], 3)):
        for name in clips:
            (tmp_path / f"{name}.mp4").write_bytes((unstarted.home / "clip.mp4").read_bytes())
        output = unstarted.run("dags", "test", "luma_folder", "--conf", places)
        assert luma.accepted == accepted, output
    assert sorted(path.name for path in (tmp_path / "videos").rglob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.long
def test_film_is_modified_under_dag_test(unstarted: LocalAirflow, luma: Simulator) -> None:
    luma.reset()
    unstarted.run("dags", "test", "luma_long_video")
    assert luma.accepted == 1, "what is short enough is one clip"
    assert len(list((unstarted.home / "videos" / "luma_long_video").rglob("film.mp4"))) == 1


@pytest.mark.long
def test_restyled_clip_has_its_own_sound_under_dag_test(unstarted: LocalAirflow, luma: Simulator) -> None:
    luma.reset()
    source, server = film(frames=60, sound="aac"), FileServer()
    try:
        params = {"video_url": server.serve("/clip.mp4", Reply(source)), "strength": "adhere_1"}
        unstarted.run("dags", "test", "luma_restyle", "--conf", json.dumps(params))
    finally:
        server.close()
    [job] = luma.jobs
    assert job.request["video"] == {"resolution": "360p", "edit": {"strength": "adhere_1"}}
    [video] = (unstarted.home / "videos" / "luma_restyle").rglob("*.mp4")
    assert clicks(video.read_bytes()) == pytest.approx(clicks(source), abs=0.03)


@pytest.mark.versions
def test_submission_that_is_queued_twice_and_then_waited_for_succeeds_under_dag_test(
    unstarted: LocalAirflow, luma: Simulator
) -> None:
    luma.reset()
    luma.configure(faults=["submit:refuse,code=429,times=1", "submit:refuse,code=455,times=1"])
    output = unstarted.run("dags", "test", "luma_modify")
    assert luma.accepted == 1
    assert "Rate limited by Luma; queued in the triggerer" in output
    assert "Luma is unavailable; queued in the triggerer" in output


@pytest.mark.long
def test_submission_whose_callback_never_comes_fails_as_unknown_under_dag_test(
    unstarted: LocalAirflow, luma: Simulator
) -> None:
    luma.reset()
    luma.configure(faults=["submit:cut,after_accept=true"])
    with pytest.raises(AirflowProblem) as failed:
        unstarted.run("dags", "test", "impatient")
    said = re.sub(r"\s+", " ", str(failed.value))
    assert "no callback arrived within 12 s. A job may have been accepted" in said
    assert "TypeError" not in said
    assert luma.accepted == len([call for call in luma.calls if call.on == "submit"]) == 1


def test_files_of_the_example_dags_are_all_run() -> None:
    """Those in which a person is asked are run in a browser."""
    assert sorted(file.stem for file in Path(REPOSITORY / "dags").glob("*.py")) == [
        "luma_asset",
        "luma_batch",
        "luma_decorator",
        "luma_folder",
        "luma_long_video",
        "luma_modify",
        "luma_restyle",
        "luma_review",
        "luma_review_versions",
        "luma_submit_and_wait",
        "luma_variations",
    ]

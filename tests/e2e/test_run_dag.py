# SPDX-License-Identifier: Apache-2.0
"""The fixtures for tests of DAGs, in a test session that has imported Airflow with another home itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.testing import AirflowProblem, AirflowProcess, DagRunner
from tests.conftest import until
from tests.e2e.conftest import AIRFLOW, REPOSITORY
from tests.support.films import film, stream_seconds

pytest_plugins = ["airflow_provider_luma.testing"]

pytestmark = [
    pytest.mark.xdist_group("dag_test"),
    pytest.mark.skipif(AIRFLOW == (3, 2), reason="dag.test() of Airflow 3.2 asks its own API before that is ready"),
]

HELPED = """
from airflow.sdk import DAG, Variable, task
from a_module_of_ours import SECONDS
from dataclasses import dataclass
from datetime import UTC, datetime
import os, pathlib, subprocess, sys, time

@task
def variables(params):
    found = {name: os.environ.get(name) for name in params["names"]}
    return {**found, "home": os.environ["AIRFLOW_HOME"], "stored": Variable.get("stored", default=None)}

@task
def store():
    Variable.set("stored", "by a run")

@task(retries=1)
def fail_once(params):
    mark = pathlib.Path(params["folder"], "tried")
    if not mark.exists():
        mark.touch()
        raise RuntimeError("the first try")
    return (mark.name, datetime(2026, 11, 30, tzinfo=UTC))

@task
def hang():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    child.wait()

@task
def crash():
    print("gone", flush=True)
    os._exit(3)

@dataclass
class Thing:
    number: int

@task
def unknown_class():
    return Thing(1)

for function in (variables, store, fail_once, hang, crash, unknown_class):
    with DAG(dag_id=function.__name__, schedule=None, params={"names": [], "folder": "", "count": 1}):
        function()
"""

WAITING = """
from airflow.sdk import DAG
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

with DAG(dag_id="make_video", schedule=None, params={"video_url": ""}):
    LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="{{ params.video_url }}")

with DAG(dag_id="fetch_video", schedule=None, params={"result": {}}, render_template_as_native_obj=True):
    LumaDownloadOperator(task_id="download", urls="{{ params.result }}", destination="{{ params.folder }}/")

with DAG(dag_id="poking", schedule=None, params={"video_url": ""}):
    submit = LumaModifyOperator(
        task_id="submit", prompt="make it snow", video_url="{{ params.video_url }}", wait_for_completion=False
    )
    LumaTaskSensor(task_id="wait", luma_task_id=submit.output["luma_task_id"], deferrable=False)
"""


@pytest.fixture(scope="session")
def luma_dags_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example DAGs, and ours."""
    folder = tmp_path_factory.mktemp("dags")
    for file in (REPOSITORY / "dags").glob("*.py"):
        shutil.copy(file, folder)
    (folder / "a_module_of_ours.py").write_text("SECONDS = 600\n")
    (folder / "helped.py").write_text(HELPED)
    (folder / "waiting.py").write_text(WAITING)
    (folder / "broken.py").write_text("from airflow.sdk import DAG\nimport a_module_that_nobody_has\n")
    return folder


@pytest.mark.versions
def test_run_has_states_xcoms_submissions_and_a_log(
    run_dag: DagRunner, luma_simulator: Simulator, tmp_path: Path
) -> None:
    prompt, url = "Make it snow", luma_simulator.sample_url
    run = run_dag("luma_modify", {"prompt": prompt, "video_url": url, "destination": f"file://{tmp_path}"})
    assert (run.state, run.states) == ("success", {"modify": "success", "download": "success"})
    [job] = run.submissions
    assert (job.service, job.prompt, job.video_url) == ("kie", prompt, url)
    assert run.xcom("modify")["luma_task_id"] == run.xcom("modify", "luma_task_id") == job.task_id
    [address] = run.xcom("download")
    video = Path(address.removeprefix("file://"))
    assert video.is_relative_to(tmp_path)
    assert video.stat().st_size > 0
    assert f"Luma task {job.task_id}" in run.log
    with pytest.raises(LookupError, match=r"no XCom modify\[0\] return_value; XComs pushed: .*modify\[-1\] luma_task"):
        run.xcom("modify", map_index=0)


def test_submissions_are_those_of_the_run_and_of_the_service_of_its_connection(
    run_dag: DagRunner, luma_simulator: Simulator
) -> None:
    params = {"video_url": luma_simulator.sample_url}
    first = run_dag("make_video", params)
    own_api = run_dag("make_video", params, connections={"luma_default": luma_simulator.connection_uri("luma")})
    assert [[job.service for job in run.submissions] for run in (first, own_api)] == [["kie"], ["luma"]]
    assert luma_simulator.accepted == 2


def test_clip_on_the_disk_is_uploaded_and_modified_by_either_service(
    run_dag: DagRunner, luma_simulator: Simulator, luma_clip: Path
) -> None:
    for service in ("kie", "luma"):
        given = {"luma_default": luma_simulator.connection_uri(service)}
        run = run_dag("make_video", {"video_url": luma_clip}, connections=given)
        assert run.state == "success"
    assert [upload.size for upload in luma_simulator.uploads] == [luma_clip.stat().st_size] * 2


def test_run_that_fails_raises_nothing(run_dag: DagRunner, luma_simulator: Simulator) -> None:
    luma_simulator.configure(outcome="generate_failed", error_message="Too dark.")
    run = run_dag("luma_modify", {"video_url": luma_simulator.sample_url})
    assert (run.state, run.states) == ("failed", {"modify": "failed", "download": "upstream_failed"})
    assert "Too dark." in run.xcom("modify", "luma_error")["msg"]


def test_refusals_retries_and_sensors_do_not_make_a_test_wait(
    run_dag: DagRunner, luma_simulator: Simulator, tmp_path: Path
) -> None:
    """By default, the waits would be 25 s in the queue, five minutes before the retry, and a minute between pokes."""
    luma_simulator.configure(faults=["submit:refuse,code=429,times=1", "status:html,times=3"], processing_seconds=1)
    started = time.monotonic()
    assert run_dag("make_video", {"video_url": luma_simulator.sample_url}).state == "success"
    assert run_dag("poking", {"video_url": luma_simulator.sample_url}).state == "success"
    retried = run_dag("fail_once", {"folder": tmp_path})
    assert retried.state == "success"
    assert retried.xcom("fail_once") == ["tried", "2026-11-30 00:00:00+00:00"]
    assert luma_simulator.accepted == 2
    assert time.monotonic() - started < 240, "less than the delay of the retry alone"


def test_run_sees_variables_of_the_test_but_no_settings_or_connections_of_another_airflow(
    run_dag: DagRunner, luma_airflow: AirflowProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMS", "/films")
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_PAID", "luma://:a-real-key@")
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", "nowhere.Backend")
    names = ["FILMS", "AIRFLOW_CONN_LUMA_PAID", "AIRFLOW__CORE__XCOM_BACKEND", "AIRFLOW_CONN_MINE"]
    seen = run_dag("variables", {"names": names}, connections={"mine": {"conn_type": "http", "host": "x"}})
    assert [seen.xcom("variables")[name] for name in names] == [
        "/films", None, None, '{"conn_type": "http", "host": "x"}'
    ]  # fmt: skip
    assert seen.xcom("variables")["home"] == str(luma_airflow.home) != os.environ["AIRFLOW_HOME"]


def test_next_test_finds_nothing_of_earlier_runs(run_dag: DagRunner, luma_airflow: AirflowProcess) -> None:
    run_dag("store")
    assert run_dag("variables").xcom("variables")["stored"] == "by a run"
    luma_airflow.reset()
    assert run_dag("variables").xcom("variables")["stored"] is None


def test_dag_whose_file_cannot_be_imported_is_an_error_that_names_the_file(
    run_dag: DagRunner, luma_dags_folder: Path
) -> None:
    with pytest.raises(AirflowProblem, match="There is no DAG 'broken'") as raised:
        run_dag("broken")
    assert f"{luma_dags_folder / 'broken.py'} cannot be imported" in str(raised.value)
    assert "No module named 'a_module_that_nobody_has'" in str(raised.value)
    assert "DAGs there: crash, fail_once," in str(raised.value)


def test_invalid_params_are_an_error(run_dag: DagRunner, luma_simulator: Simulator) -> None:
    with pytest.raises(AirflowProblem, match="ParamValidationError.*prompt"):
        run_dag("luma_modify", {"prompt": ""})
    with pytest.raises(TypeError):
        run_dag("luma_modify", {"prompt": object()})
    assert luma_simulator.accepted == 0


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_run_that_does_not_end_is_killed_with_its_child_processes_and_the_next_one_runs(run_dag: DagRunner) -> None:
    run_dag("variables")
    with pytest.raises(AirflowProblem, match="hang: not done after 20 s") as raised:
        run_dag("hang", timeout=20)
    child = re.search(r"\bchild (\d+)", str(raised.value))
    assert child
    until(lambda: not is_running(int(child[1])))
    assert run_dag("variables").state == "success"


@pytest.mark.long
def test_next_test_finds_nothing_of_a_run_that_was_killed(run_dag: DagRunner, luma_airflow: AirflowProcess) -> None:
    run_dag("store")
    with pytest.raises(AirflowProblem, match="crash: its process has ended"):
        run_dag("crash")
    luma_airflow.reset()
    assert run_dag("variables").xcom("variables")["stored"] is None


def test_value_of_a_class_that_airflow_may_not_import_spoils_no_run(run_dag: DagRunner) -> None:
    run = run_dag("unknown_class")
    assert run.state == "success"
    assert "Thing" in str(run.xcom("unknown_class"))


def test_threads_of_one_test_take_turns(run_dag: DagRunner, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        runs = [*threads.map(lambda dag_id: run_dag(dag_id, {"folder": tmp_path}), ("variables", "fail_once"))]
    assert [[*run.states] for run in runs] == [["variables"], ["fail_once"]]


def test_airflow_ends_with_the_process_of_the_tests(luma_dags_folder: Path, tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from airflow_provider_luma.testing import AirflowProcess
with AirflowProcess(Path({str(tmp_path)!r}), Path({str(luma_dags_folder)!r}), {{}}) as airflow:
    print(airflow._process.pid, flush=True)
    airflow.run("hang", {{}}, {{}}, 600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not is_running(pid))


@pytest.mark.long
def test_run_whose_process_ends_is_an_error_with_its_log_and_the_next_one_runs(run_dag: DagRunner) -> None:
    with pytest.raises(AirflowProblem, match=r"crash: its process has ended(?s:.*)gone"):
        run_dag("crash")
    assert run_dag("variables").state == "success"


def example(name: str) -> Callable[..., None]:
    """Return a test that the how-to shows."""
    page = (REPOSITORY / "docs" / "how-to.md").read_text()
    [block] = [block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if name in block]
    names: dict[str, Any] = {}
    exec(block, names)
    return names[name]


def test_example_of_the_how_to_fails_one_clip_of_three(
    run_dag: DagRunner, luma_simulator: Simulator, tmp_path: Path
) -> None:
    example("test_one_clip_of_three_fails")(luma_simulator, run_dag, tmp_path)
    assert luma_simulator.accepted == 3


def test_example_of_the_how_to_fetches_a_result_after_its_address_has_expired(
    run_dag: DagRunner, luma_simulator: Simulator, tmp_path: Path
) -> None:
    example("test_result_is_fetched_an_hour_later")(luma_simulator, run_dag, tmp_path)
    assert [call.http_status for call in luma_simulator.calls if call.on == "file"] == [403, 200]
    assert len(list(tmp_path.glob("*.mp4"))) == luma_simulator.accepted == 1


@pytest.mark.long
def test_film_is_joined_although_a_clip_waits_for_61_minutes(
    run_dag: DagRunner, luma_simulator: Simulator, tmp_path: Path
) -> None:
    """The address of the first clip's result has expired before the second clip's job has ended."""
    luma_simulator.configure(processing_seconds=600)
    source = tmp_path / "film.mp4"
    source.write_bytes(film(frames=24 * 30))

    def let_time_pass() -> None:
        for jobs in (1, 2):
            until(lambda jobs=jobs: luma_simulator.accepted == jobs, seconds=240)
            luma_simulator.move_time(3661)

    passing = threading.Thread(target=let_time_pass)
    passing.start()
    run = run_dag(
        "luma_long_video",
        {"source": str(source), "destination": f"file://{tmp_path}"},
        connections={"luma_default": luma_simulator.connection_uri("luma")},
    )
    passing.join()

    assert run.state == "success"
    assert len(run.submissions) == 2, "nothing is paid for again"
    assert "The file is no longer at its address; continuing at a new one from Luma" in run.log
    [made] = (tmp_path / "luma_long_video").rglob("film.mp4")
    assert stream_seconds(made.read_bytes())[0] == pytest.approx(24, abs=0.1)

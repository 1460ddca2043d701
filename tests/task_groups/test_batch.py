# SPDX-License-Identifier: Apache-2.0
"""Many clips as one line of a DAG: which tasks that makes, who gets which parameter, and what is refused at parsing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, TaskGroup, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.task_groups.batch import GOES_TO, modify_videos
from airflow_provider_luma.task_groups.parameters import NOT_TAKEN
from tests.support import fresh_python
from tests.task_groups.test_long_video_parameters import OF_EVERY_OPERATOR, VALUES, value_of

BATCH: dict[str, Any] = {
    "group_id": "batch",
    "clips": "s3://my_aws@clips/",
    "prompt": "make it snow",
    "destination": "s3://my_aws@videos/",
}
TASKS = ["clip.download", "clip.modify", "collect", "plan"]


def tasks_of(**parameters: Any) -> dict[str, Any]:
    with DAG("videos", schedule=None) as dag:
        modify_videos(**{**BATCH, **parameters})
    return {name: dag.get_task(f"batch.{name}") for name in TASKS}


def documented() -> dict[str, set[str]]:
    """Return the parameters of the table in the documentation, by the tasks that get them."""
    text = (Path(__file__).parents[2] / "docs/batches.md").read_text()
    section = text.partition("## Which task gets which parameter")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `?(all|plan|collect|modify)`? \| (.*) \|$", section, re.MULTILINE)
    return {tasks: set(re.findall(r"`(\w+)`", names)) for tasks, names in rows}


def test_tasks_and_their_order():
    with DAG("videos", schedule=None) as dag:

        @task
        def publish(table: Any) -> None: ...

        publish(modify_videos(**BATCH).output)
    order = sorted((before, after) for before in dag.task_ids for after in dag.get_task(before).downstream_task_ids)
    assert order == [
        ("batch.clip.download", "batch.collect"),
        ("batch.clip.modify", "batch.clip.download"),
        ("batch.collect", "publish"),
        ("batch.plan", "batch.clip.download"),
        ("batch.plan", "batch.clip.modify"),
        ("batch.plan", "batch.collect"),
    ]
    rules = {
        name: one.trigger_rule.value for name, one in tasks_of(default_args={"trigger_rule": "one_failed"}).items()
    }
    assert rules == dict(zip(TASKS, ("all_success", "all_success", "all_done", "one_failed"), strict=True))


def test_two_batches_in_two_groups_of_one_dag():
    with DAG("videos", schedule=None) as dag:
        for name in ("one", "two"):
            with TaskGroup(name):
                modify_videos(**BATCH)
    for name in ("one", "two"):
        collect = dag.get_task(f"{name}.batch.collect")
        ids = {collect.plan_task_id, collect.modify_task_id, collect.download_task_id}
        assert ids == {f"{name}.batch.{step}" for step in ("plan", "clip.modify", "clip.download")}
        assert ids <= set(dag.task_ids)
        assert {dag.get_task(task).modify_task_id for task in ids - {collect.modify_task_id}} == {
            collect.modify_task_id
        }


def test_documentation_says_what_the_code_does():
    table = documented()
    assert {tasks: table[tasks] for tasks in GOES_TO} == GOES_TO
    assert set(OF_EVERY_OPERATOR) <= set().union(*table.values())
    assert sum(map(len, table.values())) == len(set().union(*table.values())), "each is in one row"


@pytest.mark.filterwarnings("ignore:Setting email")
@pytest.mark.parametrize("name", OF_EVERY_OPERATOR)
def test_parameter_of_every_operator_goes_where_the_documentation_says(name):
    before, after = tasks_of(), tasks_of(**{name: VALUES.get(name, "mine")})
    (where,) = (tasks for tasks, names in documented().items() if name in names)
    expected = TASKS if where == "all" else [name for name in TASKS if name.rpartition(".")[2] == where]
    if name == "params":  # which Airflow merges into those of the DAG
        assert [one for one in TASKS if "key" in after[one].params] == expected
    elif name in ("sla", "logger_name"):  # which no task shows
        assert expected == ["clip.modify"]
    else:
        assert [one for one in TASKS if value_of(before[one], name) != value_of(after[one], name)] == expected


@pytest.mark.parametrize("name", ["luma_connection_id", "sound_from", "video", "modify_task_id", *sorted(NOT_TAKEN)])
def test_unknown_parameter_is_refused_when_the_dag_is_parsed(name):
    with pytest.raises(TypeError, match=rf"modify_videos\(\) has no parameter '{name}'; docs/batches.md"):
        tasks_of(**{name: "mine"})


@pytest.mark.parametrize("place", ["the call", "default_args"])
def test_lumas_own_parameters(place):
    own = {
        **{"luma_conn_id": "studio", "watermark": "ours", "options": {"a": 1}, "timeout": 60},
        **{"keep_sound": True, "retry_failed": True, "pattern": "*.mov", "allowed_failures": 0.5},
    }
    tasks = tasks_of(**(own if place == "the call" else {"default_args": own}))
    modify, download, collect, plan = (tasks[name] for name in ("clip.modify", "clip.download", "collect", "plan"))
    assert {modify.luma_conn_id, download.luma_conn_id, plan.luma_conn_id} == {"studio"}
    assert {modify.watermark, plan.watermark} == {"ours"}
    assert modify.options == plan.options == {"a": 1}
    assert (modify.timeout, modify.keep_sound, plan.keep_sound) == (60, True, True)
    assert (plan.retry_failed, plan.pattern, collect.allowed_failures) == (True, "*.mov", 0.5)


def test_without_anything_given_the_operators_defaults_apply():
    tasks = tasks_of()
    assert {tasks[name].luma_conn_id for name in ("clip.modify", "clip.download", "plan")} == {"luma_default"}
    assert (tasks["plan"].pattern, tasks["plan"].retry_failed, tasks["collect"].allowed_failures) == (None, False, 0)


def test_clip_is_always_waited_for_and_its_video_replaced():
    tasks = tasks_of(default_args={"wait_for_completion": False, "overwrite": False})
    assert tasks["clip.modify"].wait_for_completion is True
    assert tasks["clip.download"].overwrite is True


@pytest.mark.parametrize("name", ["clip.modify", "clip.download"])
def test_callback_is_not_copied(name):
    class Notifier:
        def __init__(self) -> None:
            self.lines = (line for line in "ab")  # which cannot be copied

        def __call__(self, _: Any) -> None: ...

    notifier = Notifier()
    assert list(tasks_of(on_failure_callback=notifier)[name].on_failure_callback) == [notifier]


def test_outlets_are_those_of_the_last_task():
    assert [name for name, one in tasks_of(outlets=[Asset("videos")]).items() if one.outlets] == ["collect"]
    by_default = tasks_of(default_args={"outlets": [Asset("videos")]})
    assert [name for name, one in by_default.items() if one.outlets] == ["collect"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"destination": ""}, "destination"),
        ({"destination": "videos"}, "destination"),
        ({"destination": "/data/video.mp4"}, "destination is a file"),
        ({"destination": " /data"}, "destination"),
        ({"destination": "https://e.com/videos"}, "destination"),
        ({"allowed_failures": -1}, "allowed_failures"),
        ({"allowed_failures": 1.5}, "allowed_failures"),
        ({"allowed_failures": True}, "allowed_failures"),
        ({"allowed_failures": "5 %"}, "allowed_failures"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"keep_sound": "no"}, "keep_sound is 'no': give True or False"),
        ({"retry_failed": "no"}, "retry_failed is 'no': give True or False"),
        ({"retry_failed": 0}, "retry_failed is 0: give True or False"),
    ],
    ids=str,
)
def test_invalid_parameter_is_refused_when_the_dag_is_parsed(changes, names):
    with pytest.raises(LumaValidationError, match=names):
        tasks_of(**changes)


@pytest.mark.xdist_group("fresh Python")
def test_dag_file_that_imports_it_loads_neither_http_libraries_nor_what_reads_files():
    modules = fresh_python.run("""
import sys
before = set(sys.modules)
import airflow_provider_luma.task_groups.batch
result = sorted(set(sys.modules) - before)
""")
    assert "airflow_provider_luma.operators.batch" in modules
    heavy = {"requests", "aiohttp", "tenacity", "av", "fsspec", "airflow_provider_luma.hooks.luma"}
    assert set(modules) & heavy == set()
    own = {name for name in modules if name.startswith("airflow_provider_luma.files.")}
    assert own == {"airflow_provider_luma.files.destination_names"}

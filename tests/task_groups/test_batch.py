# SPDX-License-Identifier: Apache-2.0
"""Many clips as one line of a DAG: which tasks that makes, who gets which parameter, and what is refused at parsing."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, Asset, TaskGroup, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.task_groups.batch import modify_videos
from tests.support import fresh_python
from tests.support.task_groups import BATCH


def test_tasks_and_their_order():
    with DAG("videos", schedule=None) as dag:

        @task
        def publish(table: Any) -> None: ...

        publish(modify_videos(**BATCH.parameters).output)
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
        name: one.trigger_rule.value
        for name, one in BATCH.tasks_of(default_args={"trigger_rule": "one_failed"}).items()
    }
    assert rules == dict(zip(BATCH.tasks, ("all_success", "all_success", "all_done", "one_failed"), strict=True))


def test_two_batches_in_two_groups_of_one_dag():
    with DAG("videos", schedule=None) as dag:
        for name in ("one", "two"):
            with TaskGroup(name):
                modify_videos(**BATCH.parameters)
    for name in ("one", "two"):
        collect = dag.get_task(f"{name}.batch.collect")
        ids = {collect.plan_task_id, collect.modify_task_id, collect.download_task_id}
        assert ids == {f"{name}.batch.{step}" for step in ("plan", "clip.modify", "clip.download")}
        assert ids <= set(dag.task_ids)
        assert {dag.get_task(task).modify_task_id for task in ids - {collect.modify_task_id}} == {
            collect.modify_task_id
        }


@pytest.mark.parametrize("place", ["the call", "default_args"])
def test_lumas_own_parameters(place):
    own = {
        **{"luma_conn_id": "studio", "watermark": "ours", "options": {"a": 1}, "timeout": 60},
        **{"keep_sound": True, "retry_failed": True, "pattern": "*.mov", "allowed_failures": 0.5},
    }
    tasks = BATCH.tasks_of(**(own if place == "the call" else {"default_args": own}))
    modify, download, collect, plan = (tasks[name] for name in ("clip.modify", "clip.download", "collect", "plan"))
    assert {modify.luma_conn_id, download.luma_conn_id, plan.luma_conn_id} == {"studio"}
    assert {modify.watermark, plan.watermark} == {"ours"}
    assert modify.options == plan.options == {"a": 1}
    assert (modify.timeout, modify.keep_sound, plan.keep_sound) == (60, True, True)
    assert (plan.retry_failed, plan.pattern, collect.allowed_failures) == (True, "*.mov", 0.5)


def test_without_anything_given_the_operators_defaults_apply():
    tasks = BATCH.tasks_of()
    assert {tasks[name].luma_conn_id for name in ("clip.modify", "clip.download", "plan")} == {"luma_default"}
    assert (tasks["plan"].pattern, tasks["plan"].retry_failed, tasks["collect"].allowed_failures) == (None, False, 0)


def test_clip_is_always_waited_for_and_its_video_replaced():
    tasks = BATCH.tasks_of(default_args={"wait_for_completion": False, "overwrite": False})
    assert tasks["clip.modify"].wait_for_completion is True
    assert tasks["clip.download"].overwrite is True


def test_outlets_are_those_of_the_last_task():
    assert [name for name, one in BATCH.tasks_of(outlets=[Asset("videos")]).items() if one.outlets] == ["collect"]
    by_default = BATCH.tasks_of(default_args={"outlets": [Asset("videos")]})
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
        BATCH.tasks_of(**changes)


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

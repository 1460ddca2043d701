# SPDX-License-Identifier: Apache-2.0
"""Parameters of a film: defaults, and what is refused when the DAG is parsed."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.operators.video import FILM_KEY
from airflow_provider_luma.task_groups.video import modify_long_video
from tests.support.task_groups import FILM


def unmapped(operator: Any, **mapped: Any) -> Any:
    return operator.unmap(mapped) if operator.is_mapped else operator


def test_parameter_of_luma_goes_to_each_clip():
    modify = FILM.tasks_of(watermark="mine", timeout=60)["modify"]
    assert (modify.partial_kwargs["watermark"], modify.partial_kwargs["timeout"]) == ("mine", 60)


DEFAULTS = {"luma_conn_id": "studio", "clip_seconds": 5, "detect_scenes": True, "max_clips": 3, "timeout": 60}


class TestDefaultArgs:
    @pytest.fixture(params=["the DAG", "a group around it", "the call"])
    def film(self, request: pytest.FixtureRequest) -> Any:
        """Return what makes a film whose defaults are given at one of three places."""

        def _film(defaults: dict[str, Any], **parameters: Any) -> dict[str, Any]:
            places = {request.param: {"default_args": defaults}}
            with (
                DAG("films", schedule=None, **places.get("the DAG", {})) as dag,
                TaskGroup("around", prefix_group_id=False, **places.get("a group around it", {})),
            ):
                modify_long_video(**{**FILM.parameters, **places.get("the call", {}), **parameters})
            tasks = {name: dag.get_task(f"film.{name}") for name in FILM.tasks}
            mapped = {
                "modify": {"video_url": "s3://b/c.mp4", "prompt": "rain"},
                "download": {"urls": "https://e.com/v"},
            }
            return {name: unmapped(operator, **mapped.get(name, {})) for name, operator in tasks.items()}

        return _film

    def test_apply_to_lumas_parameters(self, film):
        tasks = film(DEFAULTS)
        assert (tasks["modify"].luma_conn_id, tasks["download"].luma_conn_id) == ("studio", "studio")
        assert tasks["modify"].timeout == 60
        split = tasks["split"]
        assert (split.clip_seconds, split.detect_scenes, split.max_clips) == (5, True, 3)

    def test_come_after_what_the_call_says(self, film):
        tasks = film(DEFAULTS, luma_conn_id="mine", clip_seconds=4, detect_scenes=False, max_clips=2, timeout=50)
        assert (tasks["modify"].luma_conn_id, tasks["download"].luma_conn_id) == ("mine", "mine")
        assert tasks["modify"].timeout == 50
        split = tasks["split"]
        assert (split.clip_seconds, split.detect_scenes, split.max_clips) == (4, False, 2)

    def test_apply_to_every_task(self, film):
        tasks = film({"retries": 5, "queue": "video"}, queue="gpu")
        assert {name: (one.retries, one.queue) for name, one in tasks.items()} == dict.fromkeys(FILM.tasks, (5, "gpu"))

    def test_do_not_break_the_chain(self, film):
        assert film({"wait_for_completion": False})["modify"].wait_for_completion is True

    @pytest.mark.parametrize("rule", ["all_done", "none_failed", "one_failed"])
    def test_remove_no_clip_of_a_film_that_has_failed(self, film, rule):
        """Clips cut anew count as others, and would be paid for again."""
        rules = {name: one.trigger_rule for name, one in film({"trigger_rule": rule}).items()}
        assert rules.pop("split") == rule, "it says when the group may begin"
        assert rules == dict.fromkeys(rules, "all_success")


def test_without_anything_given_the_operators_defaults_apply():
    tasks = FILM.tasks_of()
    modify = unmapped(tasks["modify"], video_url="s3://b/c.mp4", prompt="rain")
    alone = LumaModifyOperator(task_id="modify", video_url="s3://b/c.mp4", prompt="rain")
    assert (modify.luma_conn_id, modify.retries) == (alone.luma_conn_id, alone.retries)
    assert (tasks["split"].clip_seconds, tasks["split"].max_clips) == (None, None)
    assert tasks["split"].luma_conn_id == alone.luma_conn_id


class TestDestination:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"destination": " /data/film.mp4"}, "destination starts or ends with whitespace"),
            ({"destination": "s3://b/films/"}, "destination is a folder or a bucket"),
            ({"destination": "s3://b/film.avi"}, "destination does not end in .mp4"),
            ({"destination": "https://e.com/film.mp4"}, "destination is a web address"),
            ({"destination": "film.mp4"}, "destination must be absolute"),
            ({"destination": None}, "destination is None"),
            ({"work_dir": " /data/tmp"}, "work_dir starts or ends with whitespace"),
        ],
    )
    def test_that_cannot_work_is_refused_when_the_dag_is_parsed(self, changes, says):
        with pytest.raises(LumaValidationError, match=f"^{re.escape(says)}"):
            FILM.tasks_of(**changes)

    def test_is_checked_by_the_split(self):
        split = FILM.tasks_of(destination="{{ params.film }}")["split"]
        folder = split.destination.removesuffix("/clips")
        assert (split.film_destination, split.work_dir) == ("{{ params.film }}", folder)

    @pytest.mark.parametrize(
        ("pushed", "film"),
        [("s3://b/12:00.mp4", "s3://b/12:00.mp4"), (None, "s3://b/12:05.mp4")],
        ids=["as the split has rendered it", "of a run that version 1.1.0 has split"],
    )
    def test_of_the_join(self, pushed, film):
        with DAG("films", schedule=None, user_defined_macros={"now": lambda: "12:05"}) as dag:
            modify_long_video(**{**FILM.parameters, "destination": "s3://b/{{ now() }}.mp4"})
        join = dag.get_task("film.join")
        xcoms = {("film.split", FILM_KEY): pushed}
        ti = SimpleNamespace(xcom_pull=lambda task_ids, key: xcoms[task_ids, key])
        assert join.render_template(join.destination, {"ti": ti}, dag.get_template_env()) == film

    def test_may_be_another_tasks_output(self):
        with DAG("films", schedule=None) as dag:
            path = task(task_id="path")(lambda: "/data/film.mp4")()
            modify_long_video(**{**FILM.parameters, "destination": path})
        assert dag.get_task("path").downstream_task_ids == {"film.split", "film.join"}

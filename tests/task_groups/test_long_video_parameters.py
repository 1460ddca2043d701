# SPDX-License-Identifier: Apache-2.0
"""Which task of a film gets which parameter: of the call, and of default_args."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, BaseOperator, TaskGroup, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.operators.video import FILM_KEY
from airflow_provider_luma.task_groups.parameters import NOT_TAKEN
from airflow_provider_luma.task_groups.video import GOES_TO, modify_long_video

FILM = {
    "group_id": "film",
    "source": "s3://my_aws@films/street.mov",
    "prompt": ["make it snow", "make it rain"],
    "destination": "s3://my_aws@films/street-at-night.mp4",
    "work_dir": "s3://my_aws@films/tmp/",
}
TASKS = ["clean_up", "download", "join", "modify", "prompts", "split"]


def callback(_: Any) -> None: ...


#: A value of each parameter that is not its default.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("retries", "pool_slots", "max_active_tis_per_dag", "max_active_tis_per_dagrun"), 7),
    **dict.fromkeys(("retry_delay", "max_retry_delay", "execution_timeout"), timedelta(seconds=77)),
    **dict.fromkeys(("start_date", "end_date"), datetime(2020, 1, 1, tzinfo=UTC)),
    **{name: [Asset("film")] for name in ("inlets", "outlets")},
    **dict.fromkeys(("depends_on_past", "wait_for_downstream", "ignore_first_depends_on_past"), True),
    **dict.fromkeys(("wait_for_past_depends_before_skipping", "render_template_as_native_obj"), True),
    **dict.fromkeys(("allow_nested_operators", "email_on_failure", "email_on_retry", "multiple_outputs"), False),
    **dict.fromkeys(("pre_execute", "post_execute"), callback),
    **{f"on_{event}_callback": callback for event in ("execute", "failure", "retry", "skipped", "success")},
    "executor_config": {"key": "value"},
    "params": {"key": "value"},
    "priority_weight": 7,
    "resources": {"cpus": 7},
    "retry_exponential_backoff": True,
    "trigger_rule": "all_done",
    "weight_rule": "absolute",
}


def tasks_of(**parameters: Any) -> dict[str, Any]:
    with DAG("films", schedule=None) as dag:
        modify_long_video(**{**FILM, **parameters})
    return {name: dag.get_task(f"film.{name}") for name in TASKS}


def value_of(operator: Any, name: str) -> Any:
    if operator.is_mapped and name in operator.partial_kwargs:
        return operator.partial_kwargs[name]
    attribute = f"_{name}_hook" if name.endswith("_execute") else name
    return getattr(operator, attribute, None)


def unmapped(operator: Any, **mapped: Any) -> Any:
    return operator.unmap(mapped) if operator.is_mapped else operator


def documented() -> dict[str, set[str]]:
    """Return the parameters of the table in the documentation, by the tasks that get them."""
    text = (Path(__file__).parents[2] / "docs/long-videos.md").read_text()
    section = text.partition("## Which task gets which parameter")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `?(all|split|join|modify)`? \| (.*) \|$", section, re.MULTILINE)
    return {tasks: set(re.findall(r"`(\w+)`", names)) for tasks, names in rows}


#: The parameters that every operator of this version of Airflow takes, and a film as well.
OF_EVERY_OPERATOR = sorted(
    name
    for name, parameter in inspect.signature(BaseOperator.__init__).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name not in {"self", "default_args", *NOT_TAKEN}
)


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
    expected = TASKS if where == "all" else [where]
    if name == "params":  # which Airflow merges into those of the DAG
        assert [one for one in TASKS if "key" in after[one].params] == expected
    else:
        assert [one for one in TASKS if value_of(before[one], name) != value_of(after[one], name)] == expected


def test_parameter_of_luma_goes_to_each_clip():
    modify = tasks_of(watermark="mine", timeout=60)["modify"]
    assert (modify.partial_kwargs["watermark"], modify.partial_kwargs["timeout"]) == ("mine", 60)


@pytest.mark.parametrize("name", ["luma_connection_id", "retrys", "clips", "sound_from", *sorted(NOT_TAKEN)])
def test_unknown_parameter_is_refused_when_the_dag_is_parsed(name):
    with pytest.raises(TypeError, match=rf"modify_long_video\(\) has no parameter '{name}'"):
        tasks_of(**{name: "mine"})


def test_callback_is_not_copied():
    class Notifier:
        def __init__(self) -> None:
            self.lines = (line for line in "ab")  # which cannot be copied

        def __call__(self, _: Any) -> None: ...

    notifier = Notifier()
    for operator in tasks_of(on_failure_callback=notifier, default_args={"on_retry_callback": notifier}).values():
        assert list(value_of(operator, "on_failure_callback")) == [notifier]
        assert list(value_of(operator, "on_retry_callback")) == [notifier]


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
                modify_long_video(**{**FILM, **places.get("the call", {}), **parameters})
            tasks = {name: dag.get_task(f"film.{name}") for name in TASKS}
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
        assert {name: (one.retries, one.queue) for name, one in tasks.items()} == dict.fromkeys(TASKS, (5, "gpu"))

    def test_do_not_break_the_chain(self, film):
        assert film({"wait_for_completion": False})["modify"].wait_for_completion is True

    @pytest.mark.parametrize("rule", ["all_done", "none_failed", "one_failed"])
    def test_remove_no_clip_of_a_film_that_has_failed(self, film, rule):
        """Clips cut anew count as others, and would be paid for again."""
        rules = {name: one.trigger_rule for name, one in film({"trigger_rule": rule}).items()}
        assert rules.pop("split") == rule, "it says when the group may begin"
        assert rules == dict.fromkeys(rules, "all_success")


def test_without_anything_given_the_operators_defaults_apply():
    tasks = tasks_of()
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
            tasks_of(**changes)

    def test_is_checked_by_the_split(self):
        split = tasks_of(destination="{{ params.film }}")["split"]
        folder = split.destination.removesuffix("/clips")
        assert (split.film_destination, split.work_dir) == ("{{ params.film }}", folder)

    @pytest.mark.parametrize(
        ("pushed", "film"),
        [("s3://b/12:00.mp4", "s3://b/12:00.mp4"), (None, "s3://b/12:05.mp4")],
        ids=["as the split has rendered it", "of a run that version 1.1.0 has split"],
    )
    def test_of_the_join(self, pushed, film):
        with DAG("films", schedule=None, user_defined_macros={"now": lambda: "12:05"}) as dag:
            modify_long_video(**{**FILM, "destination": "s3://b/{{ now() }}.mp4"})
        join = dag.get_task("film.join")
        xcoms = {("film.split", FILM_KEY): pushed}
        ti = SimpleNamespace(xcom_pull=lambda task_ids, key: xcoms[task_ids, key])
        assert join.render_template(join.destination, {"ti": ti}, dag.get_template_env()) == film

    def test_may_be_another_tasks_output(self):
        with DAG("films", schedule=None) as dag:
            path = task(task_id="path")(lambda: "/data/film.mp4")()
            modify_long_video(**{**FILM, "destination": path})
        assert dag.get_task("path").downstream_task_ids == {"film.split", "film.join"}

# SPDX-License-Identifier: Apache-2.0
"""A film as one line of a DAG: which tasks that makes, and what is refused when the DAG is parsed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup, literal, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.task_groups.video import _pairs, modify_long_video

FILM = {
    "group_id": "film",
    "source": "s3://my_aws@films/street.mov",
    "destination": "s3://my_aws@films/street-at-night.mp4",
    "work_dir": "s3://my_aws@films/tmp/",
}


def order(dag: DAG) -> list[tuple[str, str]]:
    return sorted((before, after) for before in dag.task_ids for after in dag.get_task(before).downstream_task_ids)


def test_one_prompt_for_all_clips():
    with DAG("x", schedule=None) as dag:
        modify_long_video(prompt="make it a rainy night", **FILM)
    assert order(dag) == [
        ("film.download", "film.join"),
        ("film.join", "film.clean_up"),
        ("film.modify", "film.download"),
        ("film.split", "film.join"),
        ("film.split", "film.modify"),
    ]


@pytest.mark.parametrize("kind", ["a list", "a task's output"])
def test_one_prompt_for_each_clip(kind):
    with DAG("x", schedule=None) as dag:

        @task
        def prompts() -> list[str]:
            return ["make it snow", "make it rain"]

        modify_long_video(prompt=["make it snow", "make it rain"] if kind == "a list" else prompts(), **FILM)
    assert {("film.split", "film.prompts"), ("film.prompts", "film.modify")} <= set(order(dag))


def test_clean_up_removes_what_the_run_has_written_and_nothing_else(tmp_path):
    with DAG("x", schedule=None) as dag:
        modify_long_video(prompt="rain", **{**FILM, "work_dir": f"{tmp_path}/tmp [1]"})
    clean_up = dag.get_task("film.clean_up")
    [folder] = clean_up.op_args
    mine, another = (folder.replace("{{ dag.dag_id }}", "x").replace("{{ run_id }}", run) for run in ("run", "run2"))
    for file in (f"{mine}/clips/clip-0000.mp4", f"{another}/clips/clip-0000.mp4", f"{tmp_path}/tmp 1/mine.mp4"):
        Path(file).parent.mkdir(parents=True)
        Path(file).write_bytes(b"clip")
    clean_up.python_callable(mine)
    assert not Path(mine).parent.exists(), "an empty folder of the run is left"
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 2


def test_clean_up_keeps_what_another_film_of_the_run_has_written(tmp_path):
    with DAG("x", schedule=None) as dag:
        modify_long_video(prompt="rain", **{**FILM, "work_dir": str(tmp_path)})
    clean_up = dag.get_task("film.clean_up")
    [folder] = clean_up.op_args
    others = Path(folder).parent / "another_film" / "clips" / "clip-0000.mp4"
    for file in (Path(folder) / "clips" / "clip-0000.mp4", others):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"clip")
    clean_up.python_callable(folder)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [others]


def test_tasks_after_the_group_get_the_film_and_wait_for_it():
    with DAG("x", schedule=None) as dag:

        @task
        def publish(film: str) -> None: ...

        group = modify_long_video(prompt="make it a rainy night", **FILM)
        publish(group.output)
    assert ("film.join", "publish") in order(dag)


def test_join_knows_the_task_that_modifies_its_clips():
    with DAG("x", schedule=None) as dag:
        modify_long_video(prompt="make it a rainy night", **FILM)
        modify_long_video(prompt="make it a rainy night", **{**FILM, "group_id": "another"})
    assert dag.get_task("film.join")._modify_task_ids() == ["film.modify"]


def test_two_films_in_one_dag_have_folders_of_their_own():
    with DAG("x", schedule=None) as dag:
        for name in ("one", "two"):
            modify_long_video(prompt="make it a rainy night", **{**FILM, "group_id": name})
    folders = {dag.get_task(f"{name}.split").destination for name in ("one", "two")}
    assert folders == {
        f"s3://my_aws@films/tmp/{{{{ dag.dag_id }}}}/{{{{ run_id }}}}/{name}/clips" for name in ("one", "two")
    }


def test_parameters_of_the_modify_operator_are_passed_on():
    with DAG("x", schedule=None) as dag:
        modify_long_video(
            **{"prompt": "make it snow", "luma_conn_id": "mine", "pool": "luma", "retries": 2},
            **{"timeout": 60, "queue_timeout": 90, "max_jobs_per_run": 7},
            **FILM,
        )
    passed = dag.get_task("film.modify").partial_kwargs
    assert (passed["luma_conn_id"], passed["pool"], passed["retries"], passed["timeout"]) == ("mine", "luma", 2, 60)
    assert (passed["queue_timeout"], passed["max_jobs_per_run"]) == (90, 7)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"prompt": []}, "prompt"),
        ({"clip_seconds": 19}, "clip_seconds"),
        ({"clip_seconds": 0}, "clip_seconds"),
        ({"source": "https://example.com/film.mp4"}, "source"),
        ({"source": "film.mp4"}, "source"),
    ],
)
def test_invalid_parameter_is_refused_when_the_dag_is_parsed(changes, names):
    with DAG("x", schedule=None), pytest.raises(LumaValidationError, match=names):
        modify_long_video(**{"prompt": "make it snow", **FILM, **changes})


@pytest.mark.parametrize("place", ["the call", "default_args"])
def test_film_is_split_for_the_options_with_which_its_clips_are_modified(place):
    options = {"options": {"video": {"resolution": "360p"}}}
    with DAG("x", schedule=None) as dag:
        modify_long_video(prompt="snow", **FILM, **(options if place == "the call" else {"default_args": options}))
    modify = dag.get_task("film.modify").unmap({"video_url": "/data/a.mp4"})
    assert dag.get_task("film.split").options == modify.options == options["options"]


CLIPS = ["/data/a.mp4", "/data/b.mp4"]


def test_prompts_that_are_not_one_for_each_clip_are_refused_before_anything_is_paid(luma_conn):
    pair = _pairs.function
    assert pair(CLIPS, ["x", "y"], luma_conn) == [
        {"video_url": "/data/a.mp4", "prompt": "x"},
        {"video_url": "/data/b.mp4", "prompt": "y"},
    ]
    with pytest.raises(LumaValidationError, match="prompt contains 1 prompts, but the film makes 2 clips"):
        pair(CLIPS, ["x"], luma_conn)


@pytest.mark.parametrize(
    "prompts",
    ["ab", {"a": "make it snow", "b": "x"}, None, 5, ["make it snow", ""], ["make it snow", None], ["x", ["y"]]],
)
def test_prompts_that_luma_would_not_take_are_refused_before_anything_is_paid(luma_conn, prompts):
    with pytest.raises(LumaValidationError, match="prompt"):
        _pairs.function(CLIPS, prompts, luma_conn)


def test_prompt_that_the_connections_service_would_not_take_is_refused_before_anything_is_paid(luma_conn):
    with pytest.raises(LumaValidationError, match="English only"):
        _pairs.function(CLIPS, ["make it snow", "пусть идёт снег"], luma_conn)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({}, "luma_default"),
        ({"dag": "of_the_dag"}, "of_the_dag"),
        ({"dag": "of_the_dag", "around": "of_the_group"}, "of_the_group"),
        ({"dag": "of_the_dag", "call_defaults": "of_the_call"}, "of_the_call"),
        ({"dag": "of_the_dag", "call": "mine"}, "mine"),
    ],
)
def test_prompts_are_checked_with_the_connection_of_the_task_that_submits(places, expected):
    def default_args(place: str) -> dict[str, Any]:
        return {"default_args": {"luma_conn_id": places[place]}} if place in places else {}

    with DAG("x", schedule=None, **default_args("dag")) as dag, TaskGroup("around", **default_args("around")):
        modify_long_video(
            prompt=["make it snow"], luma_conn_id=places.get("call"), **default_args("call_defaults"), **FILM
        )
    assert dag.get_task("around.film.prompts").op_kwargs["luma_conn_id"] == expected
    assert dag.get_task("around.film.split").luma_conn_id == expected
    pair = {"video_url": CLIPS[0], "prompt": "make it snow"}
    assert dag.get_task("around.film.modify").unmap(pair).luma_conn_id == expected


def test_films_of_the_same_name_in_two_groups_have_folders_of_their_own():
    with DAG("x", schedule=None) as dag:
        for name in ("one", "two"):
            with TaskGroup(name):
                modify_long_video(prompt="make it a rainy night", **FILM)
    assert dag.get_task("one.film.split").destination != dag.get_task("two.film.split").destination


class TestPromptOfAnotherTask:
    """It may come from anywhere, and a template can read passwords and files: it is data."""

    @pytest.fixture
    def modify(self, tmp_path: Path, luma_conn: str) -> Any:
        """Render, as Airflow does when it runs, the task that modifies the clip with a prompt."""
        (tmp_path / "notes.txt").write_text("the content of a file")

        def _modify(prompt: str, given: Any = None) -> Any:
            with DAG("films", schedule=None) as dag:
                dag.fileloc = str(tmp_path / "films.py")
                modify_long_video(prompt=given or task(task_id="write")(lambda: [prompt])(), **FILM)
            dag.resolve_template_files()
            context = {"dag": dag, "params": {}, "dag_run": SimpleNamespace(conf={}), "word": "SECRET"}
            pairs = dag.get_task("film.prompts")
            context["ti"] = SimpleNamespace(task=pairs, map_index=0, xcom_pull=lambda task_ids, **_: [prompt])
            prompts = [pairs.render_template(one, context) for one in pairs.op_args][1]
            made = _pairs.function(["s3://b/{{ word }}.mp4"], prompts, luma_conn)
            modify = dag.get_task("film.modify")
            context["ti"] = SimpleNamespace(task=modify, map_index=0, xcom_pull=lambda task_ids, **_: made)
            modify.render_template_fields(context)
            return context["task"]

        return _modify

    @pytest.mark.parametrize(
        "prompt",
        ["say {{ word }}", "{% include 'notes.txt' %}", "{{ conn.luma_default.password }}", "{{ broken"],
    )
    def test_is_not_rendered(self, modify, prompt):
        assert modify(prompt).prompt == prompt

    def test_is_not_taken_for_the_name_of_a_file(self, modify):
        with pytest.raises(LumaValidationError, match="the name of a file"):
            modify("notes.txt")

    def test_neither_is_the_address_of_a_clip(self, modify):
        assert modify("make it snow").video_url == "s3://b/{{ word }}.mp4"

    def test_literal_for_all_clips_is_not_rendered(self, modify):
        with DAG("films", schedule=None) as dag:
            modify_long_video(prompt=literal("say {{ word }}"), **FILM)
        assert "film.prompts" not in dag.task_ids
        context = {"dag": dag, "params": {}, "dag_run": SimpleNamespace(conf={}), "word": "SECRET"}
        modified = dag.get_task("film.modify")
        context["ti"] = SimpleNamespace(map_index=0, task=modified, xcom_pull=lambda task_ids, **_: ["s3://b/a.mp4"])
        modified.render_template_fields(context)
        assert context["task"].prompt == "say {{ word }}"

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (["say {{ word }}"], "say SECRET"),
            (["notes.txt"], "the content of a file"),
            ([literal("say {{ word }}")], "say {{ word }}"),
        ],
    )
    def test_prompt_in_the_dag_file_is_rendered_once(self, modify, given, expected):
        assert modify("", given).prompt == expected

# SPDX-License-Identifier: Apache-2.0
"""A prompt in a file beside the DAG: read when the DAG is parsed or the task mapped, and no other field is a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, BaseOperator, literal, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.task_groups.video import modify_long_video
from tests.support.operator_fixtures import VALID_PARAMETERS

NIGHT = "Make it a night\nby the {{ place }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the DAG file, with files in it."""
    (tmp_path / "prompts").mkdir()
    for name, text in {
        "prompts/night.md": f"\n{NIGHT}\n\n",
        "marked.txt": "\ufeffMake it a day",
        "day.txt": "Make it a day",
        "empty.md": " \n",
        "names_a_file.md": "Make it look like README.md",
        "includes.md": "{% include 'prompts/night.md' %} and {% include 'gone.md' %}",
    }.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "latin1.md").write_bytes("Café by night".encode("latin-1"))
    return tmp_path


@pytest.fixture
def dag(folder: Path) -> DAG:
    """A DAG in that folder."""
    dag = DAG("films", schedule=None)
    dag.fileloc = str(folder / "films.py")
    return dag


@pytest.fixture
def parsed(dag: DAG) -> Any:
    """Makes a task, and does to the DAG what Airflow does when it has parsed the file."""

    def _parsed(**changes: Any) -> LumaModifyOperator:
        with dag:
            operator = LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, **changes})
        dag.resolve_template_files()
        return operator

    return _parsed


def rendered(operator: Any, **context: Any) -> Any:
    operator.render_template_fields({"place": "sea", **context})
    return operator


class TestFile:
    def test_file_beside_the_dag_is_read_and_rendered_without_the_blanks_around_it(self, parsed):
        assert rendered(parsed(prompt="prompts/night.md")).prompt == "Make it a night\nby the sea"

    def test_file_in_the_search_path_of_the_dag_is_read(self, tmp_path_factory, dag, parsed):
        other = tmp_path_factory.mktemp("other")
        (other / "rain.txt").write_text("Make it rain")
        dag.template_searchpath = [str(other)]
        assert rendered(parsed(prompt="rain.txt")).prompt == "Make it rain"

    def test_text_of_a_file_that_ends_like_a_file_name_is_a_text(self, parsed):
        assert rendered(parsed(prompt="names_a_file.md")).prompt == "Make it look like README.md"

    def test_file_is_read_by_a_task_whose_dag_was_not_parsed_by_airflow(self, dag):
        with dag:
            operator = LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, "prompt": "day.txt"})
        assert rendered(operator).prompt == "Make it a day"

    def test_template_includes_a_file(self, parsed):
        prompt = "{% include 'prompts/' ~ style ~ '.md' %}, in black and white"
        assert rendered(parsed(prompt=prompt), style="night").prompt.endswith("by the sea\n, in black and white")

    def test_byte_order_mark_of_a_file_is_dropped(self, parsed):
        assert rendered(parsed(prompt="marked.txt")).prompt == "Make it a day"

    def test_native_rendering_reads_the_file(self, dag, parsed):
        dag.render_template_as_native_obj = True
        assert rendered(parsed(prompt="day.txt")).prompt == "Make it a day"

    @pytest.mark.parametrize(
        ("prompt", "named"),
        [
            ("gone.md", "'gone.md'.*not found. Searched in .*template_searchpath"),
            ("../gone.md", "not found"),
            ("{{ place }}.md", "not found"),
            ("Make it look like README.md", "not found.*full stop"),
            ("empty.md", "'empty.md', which is empty"),
            ("latin1.md", "'latin1.md', which cannot be read"),
        ],
    )
    def test_file_that_gives_no_prompt_is_refused_when_the_dag_is_parsed(self, parsed, folder, prompt, named):
        with pytest.raises(LumaValidationError, match=named) as caught:
            parsed(prompt=prompt)
        assert "not found" not in named or str(folder) in str(caught.value)

    def test_missing_file_fails_the_task_before_anything_is_sent_if_the_dag_was_not_parsed_by_airflow(self, dag):
        with dag:
            operator = LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, "prompt": "gone.md"})
        with pytest.raises(AirflowFailException, match=r"'gone.md'.*not found"):
            rendered(operator)

    def test_file_without_a_dag_to_search_in_is_refused(self):
        with pytest.raises(LumaValidationError, match="there is no DAG"):
            LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, "prompt": "day.txt"}).resolve_template_files()

    def test_invalid_rendered_text_of_a_file_fails_the_task_before_anything_is_sent(
        self, luma, luma_conn, parsed, context
    ):
        operator = rendered(parsed(prompt="prompts/night.md"), place="море")
        with pytest.raises(AirflowFailException, match="English only"):
            operator.execute(context)
        assert luma.calls == []

    @pytest.mark.parametrize("prompt", ["night.md", "prompts/night.txt\n"])
    def test_name_of_a_file_that_a_template_or_a_task_gives_is_not_read_and_not_paid_for(
        self, luma, luma_conn, parsed, context, prompt
    ):
        operator = rendered(parsed(prompt="{{ name }}"), name=prompt)
        with pytest.raises(AirflowFailException, match="include"):
            operator.execute(context)
        assert luma.calls == []


class TestNoFile:
    @pytest.mark.parametrize("prompt", ["Make it look like README.md ", "Like README.md.", "md", "Say it in markdown"])
    def test_text_is_no_file(self, parsed, prompt):
        assert rendered(parsed(prompt=prompt)).prompt == prompt

    def test_other_fields_are_no_files(self, parsed):
        operator = parsed(
            watermark="prompts/night.md", callback_url="https://e.com/cb.md", luma_conn_id="day.txt", video_url="/v.md"
        )
        fields = (operator.watermark, operator.callback_url, operator.luma_conn_id, operator.video_url)
        assert fields == ("prompts/night.md", "https://e.com/cb.md", "day.txt", "/v.md")
        rendered(operator)
        assert fields == (operator.watermark, operator.callback_url, operator.luma_conn_id, operator.video_url)

    def test_nothing_is_added_where_the_dag_keeps_newlines(self, dag, parsed):
        dag.jinja_environment_kwargs = {"keep_trailing_newline": True}
        operator = rendered(parsed(watermark="day.txt", callback_url="https://e.com/cb.md"))
        assert (operator.watermark, operator.callback_url) == ("day.txt", "https://e.com/cb.md")

    def test_other_field_that_ends_like_a_file_is_rendered(self, parsed):
        assert rendered(parsed(watermark="{{ place }}.md")).watermark == "sea.md"


class TestMapped:
    @pytest.fixture
    def unmapped(self, dag, context):
        """Renders one of a mapped task's instances, as Airflow does when it runs."""

        def _unmapped(mapped: Any, map_index: int) -> LumaModifyOperator:
            dag.resolve_template_files()
            context["ti"].map_index = map_index
            context.update(dag=dag, place="sea", params={}, dag_run=SimpleNamespace(conf={}))
            mapped.render_template_fields(context)
            return context["task"]

        return _unmapped

    def test_each_mapped_prompt_may_be_in_a_file(self, dag, unmapped):
        with dag:
            mapped = LumaModifyOperator.partial(task_id="m", video_url="https://e.com/v.mp4").expand(
                prompt=["prompts/night.md", "Make it {{ place }}"]
            )
        assert unmapped(mapped, 0).prompt == "Make it a night\nby the sea"
        assert unmapped(mapped, 1).prompt == "Make it sea"

    def test_prompt_of_all_mapped_videos_may_be_in_a_file(self, dag, unmapped):
        with dag:
            mapped = LumaModifyOperator.partial(task_id="m", prompt="day.txt").expand(video_url=["/1.mp4", "/2.mp4"])
        assert unmapped(mapped, 1).prompt == "Make it a day"

    def test_missing_file_fails_the_mapped_task(self, dag, unmapped):
        with dag:
            mapped = LumaModifyOperator.partial(task_id="m", prompt="gone.md").expand(video_url=["/1.mp4"])
        with pytest.raises(AirflowFailException, match=r"'gone.md'.*not found"):
            unmapped(mapped, 0)


class TestDecorator:
    @pytest.fixture
    def modify(self, dag, luma, luma_conn, context):
        """Runs the task of a decorated function, and returns the prompt that Luma got."""

        def _modify(returned: Any, **arguments: Any) -> str:
            with dag:
                decorator = task.luma_modify(task_id="m", video_url=luma.sample_url, wait_for_completion=False)
                operator = decorator(lambda **_: returned)(**arguments).operator
            dag.resolve_template_files()
            rendered(operator, **context).execute({"place": "sea", **context})
            return luma.jobs[-1].request["prompt"]

        return _modify

    @pytest.mark.parametrize("returned", ["prompts/night.md", {"prompt": "prompts/night.md", "watermark": "day.txt"}])
    def test_file_whose_name_the_function_returns_is_read_and_rendered(self, luma, modify, returned):
        assert modify(returned) == "Make it a night\nby the sea"
        assert luma.jobs[0].request.get("watermark") in (None, "day.txt")

    def test_other_field_that_names_the_same_file_is_a_text(self, luma, modify):
        modify({"prompt": "day.txt", "watermark": "day.txt"})
        assert luma.jobs[0].request["watermark"] == "day.txt"

    @pytest.mark.parametrize("returned", ["gone.md", literal("day.txt"), {"prompt": literal("day.txt")}, "empty.md"])
    def test_what_is_no_prompt_is_refused_before_anything_is_sent(self, luma, modify, returned):
        with pytest.raises(AirflowFailException):
            modify(returned)
        assert luma.calls == []

    def test_argument_of_the_function_is_no_file(self, dag):
        with dag:
            operator = task.luma_modify(video_url="/v.mp4")(read)("prompts/night.md", {"a": "gone.md"}).operator
        dag.resolve_template_files()
        assert tuple(rendered(operator).op_args) == ("prompts/night.md", {"a": "gone.md"})


def read(name: str, more: dict[str, str]) -> str:
    return f"{name} {more}"


def test_prompts_of_a_long_video_may_be_in_files(dag, tmp_path):
    film: dict[str, Any] = {"source": "/film.mp4", "destination": "/out.mp4", "work_dir": str(tmp_path)}
    with dag:
        modify_long_video(group_id="one", prompt="day.txt", **film)
        modify_long_video(group_id="each", prompt=["prompts/night.md", "Make it {{ place }}"], **film)
    dag.resolve_template_files()
    assert dag.get_task("one.modify").partial_kwargs["prompt"] == "day.txt"
    prompts: Any = dag.get_task("each.prompts")
    _, given = prompts.op_args
    assert prompts.render_template(given, {"place": "sea"}) == ["Make it a night\nby the sea", "Make it sea"]


def test_operator_names_its_kinds_of_files_as_airflow_does():
    assert LumaModifyOperator.template_ext == (".txt", ".md")
    assert BaseOperator.template_ext == ()

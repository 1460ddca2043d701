# SPDX-License-Identifier: Apache-2.0
"""A literal is not rendered as a template, in any operator, also where ``expand_kwargs`` hands over another task's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, literal, task

from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator, LumaUploadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

TEXT = "{{ word }}"

OPERATORS: list[tuple[Any, dict[str, Any], str]] = [
    (LumaModifyOperator, {"video_url": "/clip.mp4"}, "prompt"),
    (LumaModifyOperator, {"prompt": "make it snow"}, "video_url"),
    (LumaModifyOperator, {"prompt": "make it snow", "video_url": "/clip.mp4"}, "watermark"),
    (LumaTaskSensor, {}, "luma_task_id"),
    (LumaUploadOperator, {}, "source"),
    (LumaDownloadOperator, {"destination": "/videos/"}, "urls"),
    (VideoSplitOperator, {"destination": "/clips"}, "source"),
    (VideoJoinOperator, {"source": "/film.mp4", "destination": "/new.mp4"}, "clips"),
]


def as_literals(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: literal(value) for name, value in parameters.items()}


@pytest.mark.parametrize("value", [TEXT, [TEXT]])
@pytest.mark.parametrize(("operator", "others", "name"), OPERATORS)
def test_literal_of_another_task_is_not_rendered_after_expand_kwargs(operator, others, name, value):
    with DAG("films", schedule=None) as dag:
        parameters: Any = task(task_id="write")(lambda: [{name: value}])()
        operator.partial(task_id="mapped", **others).expand_kwargs(parameters.map(as_literals))
    context: Any = {"dag": dag, "params": {}, "dag_run": SimpleNamespace(conf={}), "word": "SECRET"}
    mapped = dag.get_task("mapped")
    context["ti"] = SimpleNamespace(map_index=0, task=mapped, xcom_pull=lambda **_: [{name: value}])
    mapped.render_template_fields(context)
    assert getattr(context["task"], name) == value


@pytest.mark.parametrize(("operator", "others", "name"), OPERATORS)
def test_literal_in_the_dag_file_is_not_rendered(operator, others, name):
    with DAG("films", schedule=None):
        made = operator(task_id="one", **others, **{name: literal(TEXT)})
    made.render_template_fields({"word": "SECRET"})
    assert getattr(made, name) == TEXT

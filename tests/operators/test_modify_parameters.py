# SPDX-License-Identifier: Apache-2.0
"""LumaModifyOperator's parameters: literals are checked when the DAG is parsed, templates and outputs when rendered."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from tests.support import fresh_python
from tests.support.operator_fixtures import VALID_PARAMETERS

TEMPLATES = ["{{ params.x }}", "{% if x %}{% endif %}", "prefix {{ ti.xcom_pull('x') }}"]


class TestLiterals:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"video_url": ""}, "video_url"),
            ({"video_url": "clips/v.mp4"}, "video_url"),
            ({"video_url": "s3://bucket/v.wav"}, "video_url"),
            ({"video_url": "https://example.com/v.jpg"}, "video_url"),
            ({"callback_url": "example.com"}, "callback_url"),
            ({"poll_interval": 0}, "poll_interval"),
            ({"poll_interval": "30"}, "poll_interval"),
            ({"timeout": -1}, "timeout"),
            ({"timeout": None}, "timeout"),
            ({"queue_timeout": 0}, "queue_timeout"),
            ({"queue_timeout": "3600"}, "queue_timeout"),
            ({"max_jobs_per_run": 0}, "max_jobs_per_run"),
            ({"max_jobs_per_run": -1}, "max_jobs_per_run"),
            ({"max_jobs_per_run": True}, "max_jobs_per_run"),
            ({"max_jobs_per_run": 1.5}, "max_jobs_per_run"),
            ({"max_jobs_per_run": "50"}, "max_jobs_per_run"),
        ],
        ids=str,
    )
    def test_invalid_literal_is_refused_when_the_dag_is_parsed(self, changes, named):
        with pytest.raises(LumaValidationError, match=named):
            LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, **changes})

    def test_multiple_outputs_is_on_unless_switched_off(self, modify):
        assert modify().multiple_outputs is True
        assert modify(multiple_outputs=False).multiple_outputs is False


@pytest.mark.xdist_group("fresh Python")
@pytest.mark.parametrize("setting", ["True", "False", None])
def test_task_is_deferrable_whatever_airflow_takes_as_the_default(setting):
    """Airflow reads False where nobody has set it, so it says nothing about what a user wants."""
    script = """
from airflow.configuration import conf
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
modify = LumaModifyOperator(task_id="modify", prompt="Make it snow", video_url="https://example.com/v.mp4")
result = [
    conf.getboolean("operators", "default_deferrable", fallback=False),
    modify.deferrable,
    LumaTaskSensor(task_id="wait", luma_task_id="x").deferrable,
]
"""
    airflows, *ours = fresh_python.run(script, AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE=setting)
    assert airflows is (setting == "True")
    assert ours == [True, True]


class TestTemplates:
    def test_template_fields_are_the_documented_ones(self):
        assert set(LumaModifyOperator.template_fields) == {
            "prompt",
            "video_url",
            "watermark",
            "callback_url",
            "options",
            "luma_conn_id",
        }

    @pytest.mark.parametrize("field", ["prompt", "video_url", "callback_url", "watermark", "luma_conn_id"])
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_template_is_accepted_when_the_dag_is_parsed(self, field, template):
        operator = LumaModifyOperator(task_id="modify", **{**VALID_PARAMETERS, field: template})
        assert getattr(operator, field) == template

    def test_output_of_another_task_is_accepted_and_makes_it_upstream(self):
        with DAG("d", schedule=None):
            first = BaseOperator(task_id="first")
            operator = LumaModifyOperator(task_id="modify", prompt=first.output["p"], video_url=first.output["v"])
        assert operator.upstream_task_ids == {"first"}

    @pytest.mark.parametrize(
        ("field", "rendered"),
        [("prompt", ""), ("prompt", "雨"), ("video_url", "e.com/v.mp4"), ("callback_url", "nonsense")],
    )
    def test_invalid_rendered_value_fails_the_task_before_anything_is_sent(
        self, luma, modify, context, field, rendered
    ):
        operator = modify(**{field: "{{ params.x }}"})
        operator.render_template_fields({"params": {"x": rendered}})
        with pytest.raises(AirflowFailException, match=field):
            operator.execute(context)
        assert luma.calls == []

    def test_rendered_values_are_sent(self, luma, modify, context):
        operator = modify(
            prompt="make it {{ x }}", watermark="{{ x }}", luma_conn_id="luma_{{ y }}", wait_for_completion=False
        )
        operator.render_template_fields({"x": "snow", "y": "default"})
        operator.execute(context)
        assert luma.jobs[0].request["prompt"] == "make it snow"
        assert luma.jobs[0].request["watermark"] == "snow"


class TestMapping:
    @pytest.mark.parametrize(
        ("fixed", "mapped"),
        [
            ({"prompt": "rain"}, {"video_url": ["https://e.com/1.mp4", "https://e.com/2.mp4"]}),
            ({"video_url": "https://e.com/1.mp4", "poll_interval": 5}, {"prompt": ["a", "b"]}),
        ],
        ids=["over videos", "over prompts"],
    )
    def test_operator_can_be_mapped(self, fixed, mapped):
        with DAG("d", schedule=None):
            task = LumaModifyOperator.partial(task_id="mapped", **fixed).expand(**mapped)
        assert isinstance(task, MappedOperator)

    def test_limit_of_the_run_comes_from_default_args(self):
        with DAG("d", schedule=None, default_args={"max_jobs_per_run": 50}):
            mapped = LumaModifyOperator.partial(task_id="m", prompt="rain").expand(video_url=["https://e.com/1.mp4"])
            single = LumaModifyOperator(task_id="s", **VALID_PARAMETERS)
        assert mapped.unmap({"video_url": "https://e.com/1.mp4"}).max_jobs_per_run == single.max_jobs_per_run == 50

    def test_unmapped_task_is_an_ordinary_operator_with_multiple_outputs(self):
        with DAG("d", schedule=None):
            task = LumaModifyOperator.partial(task_id="m", prompt="rain").expand(video_url=["https://e.com/1.mp4"])
        unmapped = task.unmap({"video_url": "https://e.com/1.mp4"})
        assert isinstance(unmapped, LumaModifyOperator)
        assert unmapped.multiple_outputs is True

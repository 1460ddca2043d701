# SPDX-License-Identifier: Apache-2.0
"""``@task.luma_modify``: what a function returns is submitted, and it is called once in each try."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, BaseOperator, ObjectStoragePath, TaskGroup, literal, task
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION

from airflow_provider_luma.exceptions import LumaTimeoutError, LumaValidationError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from harness.deferrals import awaited_job, deferral_of, expiry_event, resume
from tests.support.operator_fixtures import RESULT_KEYS
from tests.support.task_instance import TaskRun, TaskStateStore

VIDEO_URL = "https://example.com/v.mp4"


class TestReturnValue:
    def test_string_is_the_prompt(self, luma, decorated, context):
        result = decorated(lambda: "make it snow", deferrable=False).execute(context)
        assert list(result) == RESULT_KEYS
        assert (luma.jobs[0].request["prompt"], luma.accepted) == ("make it snow", 1)

    def test_dict_holds_templated_parameters_of_the_operator(self, luma, decorated, context):
        returned = {
            "prompt": "make it snow",
            "video_url": luma.sample_url,
            "watermark": "mine",
            "callback_url": "http://127.0.0.1:9/cb",
            "luma_conn_id": "luma_default",
        }
        decorated(lambda: returned, video_url=VIDEO_URL, luma_conn_id="none", wait_for_completion=False).execute(
            context
        )
        assert luma.jobs[0].request == {
            "prompt": "make it snow",
            "videoUrl": luma.sample_url,
            "watermark": "mine",
            "callBackUrl": "http://127.0.0.1:9/cb",
        }

    def test_prompt_given_to_the_decorator_is_used_if_the_function_returns_none(self, luma, decorated, context):
        decorated(lambda: {"watermark": "w"}, prompt="make it snow", wait_for_completion=False).execute(context)
        assert luma.jobs[0].request["prompt"] == "make it snow"

    def test_path_of_an_object_storage_is_taken_as_a_video(self, decorated, context):
        returned = {"prompt": "make it snow", "video_url": ObjectStoragePath("file:///missing/clip.mp4")}
        with pytest.raises(AirflowFailException, match="/missing/clip.mp4"):
            decorated(lambda: returned).execute(context)

    @pytest.mark.parametrize(
        ("returned", "named"),
        [
            (None, "NoneType"),
            (["make it snow"], "list"),
            ({}, "no prompt"),
            ({"watermark": "w"}, "no prompt"),
            ({"prompt": "a", "timeout": 5, "pool": "p"}, "'timeout', 'pool'"),
            ({"prompt": "a", 5: "b"}, "5"),
            ("", "prompt"),
            (" \n", "prompt"),
            ("雨", "English"),
            ({"prompt": None}, "prompt"),
            ({"prompt": ["a"]}, "prompt"),
            ({"prompt": "a", "video_url": None}, "video_url"),
            ({"prompt": "a", "video_url": "clip.mp4"}, "video_url"),
            ({"prompt": "a", "watermark": 5}, "watermark"),
            ({"prompt": "a", "callback_url": "nonsense"}, "callback_url"),
            ({"prompt": "a", "luma_conn_id": None}, "luma_conn_id"),
            ({"prompt": "a", "luma_conn_id": 5}, "luma_conn_id"),
        ],
        ids=repr,
    )
    def test_invalid_return_value_fails_the_task_before_anything_is_sent(
        self, luma, decorated, context, returned, named
    ):
        with pytest.raises(AirflowFailException, match=named):
            decorated(lambda: returned, retries=2).execute(context)
        assert luma.calls == []

    @pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
    def test_async_function_is_refused(self, luma, decorated, context):
        async def write():
            return "make it snow"

        with pytest.raises(AirflowFailException, match="coroutine"):
            decorated(write).execute(context)
        assert luma.calls == []

    def test_missing_video_is_named_with_the_function(self, luma, decorated, context):
        def write():
            return "make it snow"

        with DAG("films", schedule=None):
            operator = task.luma_modify(write)().operator
        with pytest.raises(AirflowFailException, match="function write returned no video_url"):
            operator.execute(context)

    def test_error_of_the_function_is_raised_and_nothing_is_sent(self, luma, decorated, context):
        def write():
            raise ZeroDivisionError("no prompt today")

        with pytest.raises(ZeroDivisionError, match="no prompt today"):
            decorated(write).execute(context)
        assert luma.calls == []

    def test_invalid_return_value_is_told_on_the_result_page(self, decorated, context):
        with pytest.raises(AirflowFailException):
            decorated(lambda: None).execute(context)
        assert "NoneType" in context["ti"].pushed["luma_error"]["msg"]

    @pytest.mark.parametrize("in_dict", [False, True])
    def test_member_of_an_enumeration_of_texts_is_its_text(self, luma, decorated, context, in_dict):
        class Style(str, Enum):  # noqa: UP042  (a StrEnum already renders as its text)
            SNOW = "make it snow"

        returned = {"prompt": Style.SNOW, "watermark": Style.SNOW} if in_dict else Style.SNOW
        decorated(lambda: returned, wait_for_completion=False).execute(context)
        assert {luma.jobs[0].request[name] for name in ("prompt", "watermark")[: 1 + in_dict]} == {"make it snow"}

    def test_lineage_names_no_source_that_the_function_has_not_returned(self, decorated, context):
        def write():
            raise ZeroDivisionError

        operator = decorated(write, video_url=SET_DURING_EXECUTION)
        with pytest.raises(ZeroDivisionError):
            operator.execute(context)
        assert operator.get_openlineage_facets_on_complete(None).inputs == []


class TestTemplates:
    def test_what_the_function_returns_is_rendered(self, luma, decorated, context):
        context["season"] = "snow"
        returned = {"prompt": "make it {{ season }}", "watermark": "{{ by }}"}
        decorated(lambda by: returned, {"by": "me"}, wait_for_completion=False).execute(context)
        request = luma.jobs[0].request
        assert (request["prompt"], request["watermark"]) == ("make it snow", "me")

    @pytest.mark.parametrize("in_dict", [False, True])
    def test_literal_is_not_rendered(self, luma, decorated, context, in_dict):
        prompt = literal("say {{ secret }}")
        decorated(lambda: {"prompt": prompt} if in_dict else prompt, wait_for_completion=False).execute(context)
        assert luma.jobs[0].request["prompt"] == "say {{ secret }}"

    def test_example_renders_nothing_that_somebody_types_in(self, luma, luma_conn, context):
        typed_in = "{{ conn.luma_default.password }}"
        context |= {
            "params": {"place": typed_in},
            "dag_run": SimpleNamespace(run_after=datetime(2026, 1, 1, tzinfo=UTC)),
            "conn": SimpleNamespace(luma_default=SimpleNamespace(password="SECRET")),
        }
        dag_file = runpy.run_path(str(Path(__file__).parents[2] / "dags" / "luma_decorator.py"))
        season = dag_file["modified"].operator
        weather = dag_file["versions"].operator.unmap({"op_kwargs": {"kind": typed_in, "place": typed_in}})
        for operator in (season, weather):
            operator.wait_for_completion = False
            context["params"]["video_url"] = operator.video_url = luma.sample_url
            operator.execute(context)
            context["task_state_store"].delete("luma_submission")
        requests = [job.request for job in luma.jobs]
        assert [request["prompt"].count(typed_in) for request in requests] == [1, 2]
        assert requests[1]["watermark"] == typed_in

    def test_parameters_of_the_decorator_and_arguments_are_rendered_once(self, luma, decorated, context):
        operator = decorated(
            lambda text: {"prompt": literal(text)}, {"text": "{{ x }}"}, watermark="{{ x }}", wait_for_completion=False
        )
        operator.render_template_fields({"x": "{{ 1 + 1 }}"})
        operator.execute(context)
        request = luma.jobs[0].request
        assert (request["prompt"], request["watermark"]) == ("{{ 1 + 1 }}", "{{ 1 + 1 }}")

    def test_rendered_values_replace_the_placeholder_for_the_ui(self, decorated, context):
        operator = decorated(lambda: "make it {{ 'snow' }}")
        assert operator.prompt.serialize() == "DYNAMIC (set during execution)"
        deferral_of(operator.execute, context)
        assert operator.overwrite_rtif_after_execution
        assert operator.prompt == "make it snow"


class TestDeferral:
    @pytest.fixture
    def prompts(self) -> list[str]:
        """The prompts that the function has returned, another one each time."""
        return []

    @pytest.fixture
    def write(self, prompts: list[str]) -> Any:
        """A function that never returns the same prompt."""

        def _write() -> dict[str, str]:
            prompts.append(f"make it snow for {len(prompts) + 1} days")
            return {"prompt": prompts[-1], "watermark": "w"}

        return _write

    @pytest.mark.parametrize("passes_kwargs", [True, False], ids=["with kwargs", "with the event alone"])
    def test_function_is_called_once_in_a_try_that_is_queued_and_deferred(
        self, luma, decorated, write, prompts, passes_kwargs
    ):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        run = TaskRun(lambda: decorated(write), TaskStateStore(), passes_kwargs=passes_kwargs)
        result = run.run_try()
        (job,) = luma.jobs
        assert result["luma_task_id"] == job.task_id
        assert (job.request["prompt"], job.request["watermark"]) == (prompts[0], "w")
        assert len(prompts) == 1

    def test_resumed_task_has_the_parameters_that_it_was_deferred_with(self, luma, decorated, context, write, prompts):
        deferred = deferral_of(decorated(write).execute, context)
        resumed = decorated(write)
        event = {"task": {"luma_task_id": awaited_job(deferred), "result_urls": []}, "request": {}}
        resume(resumed, deferred, context, event)
        assert (resumed.prompt, resumed.watermark, resumed.video_url) == (prompts[0], "w", luma.sample_url)
        resumed.on_result_stored(context)
        assert context["task_state_store"].record["delivered"] == "result"

    def test_task_resumed_too_early_is_deferred_again_with_its_parameters(self, luma, decorated, context, write):
        luma.configure(processing_seconds=60)
        first = deferral_of(decorated(write).execute, context)
        event = {"callback": {"luma_task_id": awaited_job(first)}}
        again = deferral_of(resume, decorated(write), first, context, event)
        assert again.kwargs["parameters"] == first.kwargs["parameters"]

    def test_queued_task_submits_what_the_function_has_returned(self, luma, decorated, context, write, prompts):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        deferred = deferral_of(decorated(write).execute, context)
        deferral_of(resume, decorated(write), deferred, context, expiry_event(deferred))
        assert [job.request["prompt"] for job in luma.jobs] == prompts
        assert len(prompts) == 1

    def test_chosen_connection_survives_a_deferral(self, luma, decorated, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])

        def operator():
            return decorated(lambda: {"prompt": "a", "luma_conn_id": "luma_default"}, luma_conn_id="missing")

        queued = deferral_of(operator().execute, context)
        waiting = deferral_of(resume, operator(), queued, context, expiry_event(queued))
        assert waiting.kwargs["luma_conn_id"] == "luma_default"
        event = {"task": {"luma_task_id": awaited_job(waiting), "result_urls": []}, "request": {}}
        resumed = operator()
        resume(resumed, waiting, context, event)
        resumed.on_result_stored(context)
        assert context["task_state_store"].record["delivered"] == "result"

    def test_chosen_connection_is_known_after_execution_timeout(self, luma, decorated, context):
        def operator():
            return decorated(
                lambda: {"prompt": "a", "luma_conn_id": "luma_default"},
                luma_conn_id="missing",
                execution_timeout=timedelta(seconds=1),
            )

        job = awaited_job(deferral_of(operator().execute, context))
        with pytest.raises(LumaTimeoutError, match=job):
            operator().resume_execution("__fail__", {"error": "Trigger timeout"}, context)


class TestRetries:
    def test_retry_with_the_same_prompt_continues_the_job(self, luma, decorated):
        luma.configure(processing_seconds=60)
        run = TaskRun(lambda **changes: decorated(lambda: "make it snow", **changes), TaskStateStore())
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        luma.configure(processing_seconds=0)
        deferral_of(decorated(lambda: "make it snow").execute, {"ti": run.ti, "task_state_store": run.store})
        assert luma.accepted == 1

    def test_retry_with_another_prompt_is_another_request(self, luma, decorated):
        luma.configure(processing_seconds=60)
        prompts = iter(["make it snow", "make it rain"])
        run = TaskRun(lambda **changes: decorated(lambda: next(prompts), **changes), TaskStateStore())
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        luma.configure(processing_seconds=0)
        assert run.run_try()["luma_task_id"] == luma.jobs[1].task_id
        assert [job.request["prompt"] for job in luma.jobs] == ["make it snow", "make it rain"]

    def test_retry_with_another_prompt_does_not_submit_while_the_first_outcome_is_unknown(self, luma, decorated):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        prompts = iter(["make it snow", "make it rain"])
        run = TaskRun(lambda: decorated(lambda: next(prompts)), TaskStateStore())
        for _ in range(2):
            with pytest.raises(AirflowFailException):
                run.run_try()
        assert luma.accepted == 1

    def test_try_whose_function_fails_does_not_lose_the_job_of_an_earlier_try(self, luma, decorated):
        luma.configure(processing_seconds=60)
        answers = iter(["make it snow", None, "make it snow"])
        run = TaskRun(lambda **changes: decorated(lambda: next(answers), **changes), TaskStateStore())
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        with pytest.raises(AirflowFailException):
            run.run_try()
        luma.configure(processing_seconds=0)
        deferral_of(decorated(lambda: next(answers)).execute, {"ti": run.ti, "task_state_store": run.store})
        assert luma.accepted == 1


class TestInADag:
    def test_result_is_pushed_key_by_key(self):
        with DAG("films", schedule=None):

            @task.luma_modify(video_url=VIDEO_URL)
            def modify() -> str:
                return "make it snow"

            result = modify()
            download = BaseOperator(task_id="download")
            result["result_urls"] >> download
        assert result.operator.multiple_outputs is True
        assert download.upstream_task_ids == {"modify"}

    @pytest.mark.parametrize("is_mapped", [False, True])
    def test_multiple_outputs_can_be_switched_off(self, is_mapped):
        with DAG("films", schedule=None):
            modify = task.luma_modify(task_id="m", video_url=VIDEO_URL, multiple_outputs=False)(lambda prompt: prompt)
            result = modify.expand(prompt=["a"]) if is_mapped else modify("a")
        assert result.operator.multiple_outputs is False

    def test_operator_parameters_and_task_parameters_reach_the_task(self):
        with DAG("films", schedule=None):
            limits = {"queue_timeout": 600, "max_jobs_per_run": 50}

            @task.luma_modify(video_url=VIDEO_URL, retries=4, pool="luma", resubmit_on_failure=False, **limits)
            def modify():
                """Write a prompt."""

            operator = modify().operator
        assert isinstance(operator, LumaModifyOperator)
        assert (operator.retries, operator.pool, operator.resubmit_on_failure) == (4, "luma", False)
        assert (operator.queue_timeout, operator.max_jobs_per_run) == (600, 50)
        assert [link.name for link in operator.operator_extra_links] == ["Luma result"]
        assert operator.doc_md == "Write a prompt."
        assert operator.operator_name == "@task.luma_modify"

    def test_invalid_parameter_is_refused_when_the_dag_is_parsed(self):
        with DAG("films", schedule=None), pytest.raises(LumaValidationError, match="timeout"):
            task.luma_modify(task_id="m", video_url=VIDEO_URL, timeout=0)(lambda: "a")()

    def test_override_in_a_task_group_names_the_task(self):
        with DAG("films", schedule=None), TaskGroup("nights"):

            @task.luma_modify(video_url=VIDEO_URL)
            def modify(prompt):
                return prompt

            names = [
                modify("a").operator.task_id,
                modify.override(task_id="again", retries=1)("b").operator.task_id,
                modify("c").operator.task_id,
            ]
        assert names == ["nights.modify", "nights.again", "nights.modify__1"]

    def test_output_of_another_task_is_an_argument(self):
        with DAG("films", schedule=None):
            first = BaseOperator(task_id="first")
            modify = task.luma_modify(task_id="m", video_url=first.output["url"])(lambda prompt: prompt)
            operator = modify(first.output["p"]).operator
        assert operator.upstream_task_ids == {"first"}

    @pytest.mark.parametrize(
        "function",
        [lambda **context: f"try {context['ti'].try_number}", lambda ti: f"try {ti.try_number}"],
        ids=["**context", "ti"],
    )
    def test_function_gets_the_context(self, luma, decorated, context, function):
        decorated(function, wait_for_completion=False).execute(context)
        assert luma.jobs[0].request["prompt"] == "try 1"

    def test_argument_named_like_a_context_key_does_not_change_the_context_of_the_task(self, luma, decorated, context):
        decorated(lambda ti: ti, {"ti": "make it snow"}, wait_for_completion=False).execute(context)
        assert context["ti"].pushed["luma_task_id"] == luma.jobs[0].task_id

    def test_mapped_task_submits_what_its_function_returns_for_its_argument(self, luma, luma_conn, context):
        with DAG("films", schedule=None):
            modify = task.luma_modify(task_id="m", video_url=luma.sample_url, wait_for_completion=False)
            mapped = modify(lambda style, place: f"{style} in {place}").partial(style="snow").expand(place=["a", "b"])
        for place in ("a", "b"):
            operator = mapped.operator.unmap({"op_kwargs": {"place": place}})
            assert operator.multiple_outputs is True
            result = operator.execute(context)
            assert result["luma_task_id"] == luma.jobs[-1].task_id
            context["task_state_store"].delete("luma_submission")
        assert [job.request["prompt"] for job in luma.jobs] == ["snow in a", "snow in b"]

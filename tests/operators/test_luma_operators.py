# SPDX-License-Identifier: Apache-2.0
"""The operators, without a running Airflow: what they send, how they defer, and how they end."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException, TaskDeferred

from airflow_provider_luma import protocol
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.triggers.luma import LumaTaskTrigger

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]
GOOD = {"prompt": "make it a rainy night", "video_url": "https://example.com/v.mp4"}


class TaskInstance:
    """What of Airflow's task instance the operators use."""

    task_id = "modify"
    map_index = -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.pushed.get(key)


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance()}


@pytest.fixture
def modify(luma, luma_conn):
    def _modify(**changes: Any) -> LumaModifyOperator:
        arguments = {**GOOD, "video_url": luma.sample_url, "poll_interval": 0.05, "timeout": 20, **changes}
        return LumaModifyOperator(task_id="modify", **arguments)

    return _modify


def submissions(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "submit"]


class TestModify:
    def test_it_defers_to_the_trigger(self, luma, modify, context):
        operator = modify(poll_interval=12, timeout=600)
        before = time.time()
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context)
        (job,) = luma.jobs
        assert context["ti"].pushed == {"luma_task_id": job.task_id}
        assert isinstance(deferred.value.trigger, LumaTaskTrigger)
        _, arguments = deferred.value.trigger.serialize()
        end_time = arguments.pop("end_time")
        assert before + 600 <= end_time <= time.time() + 600
        assert arguments == {"luma_task_id": job.task_id, "luma_conn_id": "luma_default", "poll_interval": 12}
        assert deferred.value.method_name == "execute_complete"
        assert deferred.value.timeout is None
        assert callable(getattr(operator, deferred.value.method_name))

    def test_the_deferral_ends_with_execution_timeout(self, modify, context):
        with pytest.raises(TaskDeferred) as deferred:
            modify(execution_timeout=timedelta(minutes=5)).execute(context)
        assert deferred.value.timeout == timedelta(minutes=5)

    def test_it_waits_in_the_worker(self, luma, modify, context):
        result = modify(deferrable=False).execute(context)
        assert list(result) == KEYS
        assert (result["luma_task_id"], result["status"]) == (luma.jobs[0].task_id, "SUCCESS")
        assert len(result["result_urls"]) == 1
        assert context["ti"].pushed == {"luma_task_id": luma.jobs[0].task_id}

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_it_does_not_wait(self, luma, modify, context, deferrable):
        result = modify(wait_for_completion=False, deferrable=deferrable).execute(context)
        assert result == {
            "luma_task_id": luma.jobs[0].task_id,
            "status": "GENERATING",
            "result_urls": [],
            "origin_urls": [],
            "created_at": None,
            "completed_at": None,
        }
        assert list(result) == KEYS
        assert [call for call in luma.calls if call.on == "status"] == []

    def test_optional_keys(self, luma, modify, context):
        modify(wait_for_completion=False, watermark="mine", callback_url="http://127.0.0.1:9/cb").execute(context)
        modify(wait_for_completion=False, watermark="", callback_url="").execute(context)
        assert luma.jobs[0].request["watermark"] == "mine"
        assert luma.jobs[0].request["callBackUrl"] == "http://127.0.0.1:9/cb"
        assert sorted(luma.jobs[1].request) == ["prompt", "videoUrl"]

    def test_multiple_outputs(self, modify):
        assert modify().multiple_outputs is True
        assert modify(multiple_outputs=False).multiple_outputs is False

    def test_template_fields(self):
        assert set(LumaModifyOperator.template_fields) == {
            "prompt",
            "video_url",
            "watermark",
            "callback_url",
            "luma_conn_id",
        }

    @pytest.mark.parametrize("code", [401, 404, 422, 505])
    def test_a_permanent_refusal_uses_no_retries(self, luma, modify, context, code):
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(AirflowFailException, match=str(code)) as caught:
            modify().execute(context)
        assert isinstance(caught.value.__cause__, LumaError)
        assert len(submissions(luma)) == 1
        assert context["ti"].pushed == {}

    def test_too_few_credits_leave_retrying_to_airflow(self, luma, modify, context):
        luma.configure(credits=0)
        with pytest.raises(LumaInsufficientCreditsError) as caught:
            modify().execute(context)
        assert not isinstance(caught.value, AirflowFailException)

    @pytest.mark.parametrize(("code", "kind"), [(429, LumaRateLimitError), (455, LumaUnavailableError)])
    def test_passing_trouble_that_lasts_leaves_retrying_to_airflow(
        self, luma, modify, context, monkeypatch, code, kind
    ):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.1)
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(kind):
            modify().execute(context)

    def test_an_unknown_outcome_uses_no_retries(self, luma, modify, context):
        luma.configure(faults=["submit:cut,after_accept"])
        with pytest.raises(AirflowFailException, match="log page") as caught:
            modify().execute(context)
        assert isinstance(caught.value.__cause__, LumaSubmissionUnknownError)
        assert luma.accepted == 1

    def test_an_unknown_outcome_may_be_submitted_again_by_a_retry(self, luma, modify, context):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        operator = modify(resubmit_on_unknown=True, wait_for_completion=False)
        with pytest.raises(LumaSubmissionUnknownError):
            operator.execute(context)
        assert len(submissions(luma)) == 1
        assert operator.execute(context)["luma_task_id"] == luma.jobs[1].task_id

    @pytest.mark.parametrize(
        ("outcome", "kind"), [("generate_failed", LumaGenerationError), ("create_failed", LumaGenerationError)]
    )
    def test_a_failed_job_in_the_worker(self, luma, modify, context, outcome, kind):
        luma.configure(outcome=outcome, error_message="no people, please")
        with pytest.raises(kind, match="no people, please") as caught:
            modify(deferrable=False).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_a_time_out_in_the_worker(self, luma, modify, context):
        luma.configure(processing_seconds=60)
        with pytest.raises(LumaTimeoutError) as caught:
            modify(deferrable=False, timeout=0.2).execute(context)
        assert luma.jobs[0].task_id in str(caught.value)

    def test_a_missing_connection(self, context):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
            LumaModifyOperator(task_id="modify", luma_conn_id="nowhere", **GOOD).execute(context)


class TestExecuteComplete:
    def test_the_result(self, modify, context):
        result = {**dict.fromkeys(KEYS), "luma_task_id": "abc", "status": "SUCCESS", "result_urls": ["https://e.com/r"]}
        assert modify().execute_complete(context, {"task": result}) == result

    @pytest.mark.parametrize("kind", ["LumaGenerationError", "LumaTimeoutError", "LumaAuthError", "LumaError"])
    def test_an_error(self, modify, context, kind):
        event = {"error": {"type": kind, "code": 501, "msg": "no people, please", "luma_task_id": "abc"}}
        with pytest.raises(LumaError, match="no people, please") as caught:
            modify().execute_complete(context, event)
        assert type(caught.value).__name__ == kind
        assert "abc" in str(caught.value)

    def test_execution_timeout_names_the_job(self, luma, modify, context):
        operator = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        resumed = modify(execution_timeout=timedelta(seconds=7))
        with pytest.raises(LumaTimeoutError, match="execution_timeout") as caught:
            resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert caught.value.luma_task_id == luma.jobs[0].task_id
        assert "0:00:07" in str(caught.value)
        assert "still running" in str(caught.value)

    def test_resuming_goes_to_execute_complete(self, modify, context):
        result = {**dict.fromkeys(KEYS), "luma_task_id": "abc", "result_urls": []}
        assert modify().resume_execution("execute_complete", {"event": {"task": result}}, context) == result


class TestOnKill:
    def test_before_anything_was_sent(self, modify, task_log):
        modify().on_kill()
        (entry,) = task_log
        assert entry["log_level"] == "warning"
        assert "Luma account" in entry["event"]

    def test_while_a_job_runs(self, luma, modify, context, task_log):
        operator = modify()
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        said = task_log[-1]["event"]
        for hint in (luma.jobs[0].task_id, "cannot cancel", "billed", "LumaTaskSensor"):
            assert hint in said


TEMPLATES = ["{{ params.x }}", "{% if x %}{% endif %}", "prefix {{ ti.xcom_pull('x') }}"]


class TestParseTime:
    """Mistakes in literals are told when the DAG is parsed; templates and outputs are judged once rendered."""

    @pytest.mark.parametrize(
        ("changes", "names"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"prompt": "сделай дождь"}, "prompt"),
            ({"video_url": ""}, "video_url"),
            ({"video_url": "s3://bucket/v.mp4"}, "video_url"),
            ({"video_url": "https://example.com/v.webm"}, "video_url"),
            ({"callback_url": "example.com"}, "callback_url"),
            ({"poll_interval": 0}, "poll_interval"),
            ({"poll_interval": "30"}, "poll_interval"),
            ({"timeout": -1}, "timeout"),
            ({"timeout": None}, "timeout"),
        ],
        ids=str,
    )
    def test_literal_mistakes(self, changes, names):
        with pytest.raises(LumaValidationError, match=names):
            LumaModifyOperator(task_id="modify", **{**GOOD, **changes})

    @pytest.mark.parametrize("field", ["prompt", "video_url", "callback_url", "watermark", "luma_conn_id"])
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_templates(self, field, template):
        operator = LumaModifyOperator(task_id="modify", **{**GOOD, field: template})
        assert getattr(operator, field) == template

    def test_outputs_of_other_tasks(self):
        with DAG("d", schedule=None):
            first = BaseOperator(task_id="first")
            operator = LumaModifyOperator(task_id="modify", prompt=first.output["p"], video_url=first.output["v"])
        assert operator.upstream_task_ids == {"first"}

    @pytest.mark.parametrize(
        ("field", "rendered"),
        [("prompt", ""), ("prompt", "雨"), ("video_url", "ftp://e.com/v.mp4"), ("callback_url", "nonsense")],
    )
    def test_mistakes_after_rendering(self, luma, modify, context, field, rendered):
        operator = modify(**{field: "{{ params.x }}"})
        operator.render_template_fields({"params": {"x": rendered}})
        with pytest.raises(AirflowFailException, match=field):
            operator.execute(context)
        assert luma.calls == []

    def test_rendered_fields_are_sent(self, luma, modify, context):
        operator = modify(
            prompt="make it {{ x }}", watermark="{{ x }}", luma_conn_id="luma_{{ y }}", wait_for_completion=False
        )
        operator.render_template_fields({"x": "snow", "y": "default"})
        operator.execute(context)
        assert luma.jobs[0].request["prompt"] == "make it snow"
        assert luma.jobs[0].request["watermark"] == "snow"

    @pytest.mark.parametrize(
        ("operator", "fixed", "mapped"),
        [
            (LumaModifyOperator, {"prompt": "rain"}, {"video_url": ["https://e.com/1.mp4", "https://e.com/2.mp4"]}),
            (LumaModifyOperator, {"video_url": "https://e.com/1.mp4", "poll_interval": 5}, {"prompt": ["a", "b"]}),
            (LumaDownloadOperator, {"destination": "/tmp/x"}, {"urls": [["https://e.com/1.mp4"]]}),
        ],
    )
    def test_mapping(self, operator, fixed, mapped):
        with DAG("d", schedule=None):
            task = operator.partial(task_id="mapped", **fixed).expand(**mapped)
        assert isinstance(task, MappedOperator)

    def test_a_mapped_task_is_the_same_operator(self):
        with DAG("d", schedule=None):
            task = LumaModifyOperator.partial(task_id="m", prompt="rain").expand(video_url=["https://e.com/1.mp4"])
        unmapped = task.unmap({"video_url": "https://e.com/1.mp4"})
        assert isinstance(unmapped, LumaModifyOperator)
        assert unmapped.multiple_outputs is True


class TestDownload:
    """Where files go. How the bytes get there is the hook's affair."""

    @pytest.fixture
    def download(self, wires, set_connection, context, tmp_path):
        """Download paths of a web server to a place in a new folder, and return what was written, relative to it."""
        wire = wires.start(wires.answer(body=b"a video"))
        set_connection(wire.base_url)

        def _download(paths: Any, destination: str) -> list[str]:
            one = isinstance(paths, str)
            urls = wire.base_url + paths if one else type(paths)(wire.base_url + path for path in paths)
            operator = LumaDownloadOperator(task_id="download", urls=urls, destination=f"{tmp_path}/{destination}")
            written = operator.execute(context)
            assert all(isinstance(path, str) for path in written)
            there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
            relative = [path.removeprefix("file://").removeprefix(f"{tmp_path}/") for path in written]
            assert set(relative) == there
            return relative

        return _download

    def test_template_fields(self):
        assert set(LumaDownloadOperator.template_fields) == {"urls", "destination", "luma_conn_id"}

    @pytest.mark.parametrize(
        ("paths", "destination", "files"),
        [
            ("/a.mp4", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/", ["data/a.mp4"]),
            ("/a.mp4?signature=1", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/b.mp4", ["data/b.mp4"]),
            (["/a.mp4"], "data/b.mp4", ["data/b.mp4"]),
            (("/a.mp4", "/b.mp4"), "data", ["data/a.mp4", "data/b.mp4"]),
            (["/1/a.mp4", "/2/a.mp4", "/3/a.mp4"], "data", ["data/a.mp4", "data/2-a.mp4", "data/3-a.mp4"]),
        ],
        ids=str,
    )
    def test_the_plan(self, download, paths, destination, files):
        assert download(paths, destination) == files

    def test_the_plan_is_the_same_at_every_try(self, download):
        paths = [f"/{n}/v.mp4" for n in range(4)]
        assert download(paths, "data") == download(paths, "data")

    @pytest.mark.parametrize(
        "paths",
        [
            ["/2-a.mp4", "/a.mp4", "/x/a.mp4"],
            ["/a.mp4", "/x/a.mp4", "/2-a.mp4"],
            ["/1/a.mp4", "/2/a.mp4", "/1/a.mp4", "/2/a.mp4"],
            ["/", "/x/", "/video.mp4"],
        ],
        ids=["a name like ours first", "a name like ours last", "the same twice", "no names"],
    )
    def test_no_two_addresses_share_a_file(self, download, paths):
        assert len(set(download(paths, "data"))) == len(set(paths))

    @pytest.mark.parametrize(
        ("urls", "destination", "names"),
        [
            ([], "/data", "urls"),
            (None, "/data", "urls"),
            ("", "/data", "urls"),
            ("https://e.com/a.mp4", "", "destination"),
            ("https://e.com/a.mp4", "  ", "destination"),
            ("https://e.com/a.mp4", None, "destination"),
            (["https://e.com/a.mp4", "https://e.com/b.mp4"], "/data/one.mp4", "destination"),
            (["ftp://e.com/a.mp4"], "/data", "urls"),
            ([None], "/data", "urls"),
        ],
        ids=str,
    )
    def test_mistakes_use_no_retries(self, luma_conn, context, urls, destination, names, tmp_path):
        if destination == "/data":
            destination = str(tmp_path)
        with pytest.raises(AirflowFailException, match=names):
            LumaDownloadOperator(task_id="download", urls=urls, destination=destination).execute(context)

    def test_a_result(self, luma, modify, context, tmp_path):
        urls = modify(deferrable=False).execute(context)["result_urls"]
        written = LumaDownloadOperator(task_id="download", urls=urls, destination=str(tmp_path)).execute(context)
        assert len(written) == 1
        assert all(isinstance(one, str) for one in written)
        assert [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True]


def test_the_dict_is_the_same_everywhere(luma, modify, context):
    waited = modify(deferrable=False).execute(context)
    not_waited = modify(wait_for_completion=False).execute(context)
    assert list(waited) == list(not_waited) == KEYS
    assert protocol.LumaTaskStatus[waited["status"]].name == "SUCCESS"

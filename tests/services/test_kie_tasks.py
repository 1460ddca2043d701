# SPDX-License-Identifier: Apache-2.0
"""LumaTask: what a status check says of a job, and the dict that operators and sensors return."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus, Response
from airflow_provider_luma.exceptions import LumaGenerationError, LumaUnavailableError
from airflow_provider_luma.services import kie
from tests.support.luma_answers import enveloped

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]


def read_task(response: Response) -> LumaTask:
    return kie.read_status(response, "abc")


def record(**changes: Any) -> Response:
    """Return the service's answer to a status check of a finished job."""
    data = {
        "taskId": "abc",
        "paramJson": '{"prompt": "make it snow", "waterMark": "mine"}',
        "createTime": 1755599634000,
        "completeTime": 1755599734000,
        "response": {
            "taskId": "abc",
            "originUrls": ["https://e.com/origin.mp4"],
            "resultUrls": ["https://e.com/result.mp4", "https://e.com/result2.mp4"],
        },
        "successFlag": 1,
        "errorCode": None,
        "errorMessage": None,
    }
    return enveloped({**data, **changes})


class TestTask:
    """What a status check says of a job."""

    def test_finished_job_is_read_with_all_its_fields(self):
        assert read_task(record()) == LumaTask(
            luma_task_id="abc",
            status=LumaTaskStatus.SUCCESS,
            result_urls=("https://e.com/result.mp4", "https://e.com/result2.mp4"),
            origin_urls=("https://e.com/origin.mp4",),
            created_at=datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC),
            completed_at=datetime(2025, 8, 19, 10, 35, 34, tzinfo=UTC),
            prompt="make it snow",
        )

    def test_recorded_request_is_read_and_the_callback_token_is_in_no_repr(self):
        asked = {"prompt": "make it snow", "videoUrl": "https://e.com/v.mp4", "callBackUrl": "https://e.com/cb?token=t"}
        task = read_task(record(paramJson=json.dumps(asked)))
        assert task.request() == {"prompt": "make it snow", "video_url": "https://e.com/v.mp4"}
        assert task.callback_url == "https://e.com/cb?token=t"
        assert "token" not in repr(task)

    @pytest.mark.parametrize(
        "broken", [None, "", "{", "[]", "null", '{"prompt": 1, "videoUrl": null, "callBackUrl": []}']
    )
    def test_unreadable_recorded_request_leaves_the_job_readable(self, broken):
        task = read_task(record(paramJson=broken))
        assert (task.prompt, task.video_url, task.callback_url) == (None, None, None)
        assert task.is_successful

    @pytest.mark.parametrize(
        ("flag", "name", "is_finished", "is_successful"),
        [
            (0, "GENERATING", False, False),
            (1, "SUCCESS", True, True),
            (2, "CREATE_TASK_FAILED", True, False),
            (3, "GENERATE_FAILED", True, False),
            (4, "CALLBACK_FAILED", True, True),
            (5, "UNDOCUMENTED_5", False, False),
            (9, "UNDOCUMENTED_9", False, False),
            (-1, "UNDOCUMENTED_-1", False, False),
            ("1", "SUCCESS", True, True),
            ("3", "GENERATE_FAILED", True, False),
        ],
    )
    def test_each_flag_becomes_its_status(self, flag, name, is_finished, is_successful):
        task = read_task(record(successFlag=flag))
        assert task.status.name == name
        assert task.status == int(flag)
        assert (task.is_finished, task.is_successful) == (is_finished, is_successful)

    @pytest.mark.parametrize("flag", [0, 1, 2, 3, 4])
    def test_documented_flag_is_documented(self, flag):
        assert LumaTaskStatus(flag).is_documented

    def test_undocumented_flag_is_not_documented(self):
        assert not LumaTaskStatus(5).is_documented

    def test_running_job_has_no_urls_and_no_time_of_completion(self):
        task = read_task(record(successFlag=0, response=None, completeTime=None))
        assert (task.result_urls, task.origin_urls, task.completed_at) == ((), (), None)
        assert task.created_at is not None

    def test_job_of_which_only_the_flag_is_given_is_read(self):
        assert read_task(enveloped({"successFlag": 0})) == LumaTask("abc", LumaTaskStatus.GENERATING)

    def test_response_of_a_job_may_be_a_json_string(self):
        response = {"taskId": "abc", "originUrls": ["https://e.com/o"], "resultUrls": ["https://e.com/r"]}
        task = read_task(record(response=json.dumps(response)))
        assert (task.result_urls, task.origin_urls) == (("https://e.com/r",), ("https://e.com/o",))

    @pytest.mark.parametrize(
        "response",
        ["", "null", "[]", "not json", "{", [], 5, True, pytest.param("[" * 100_000, id="nested without end")],
    )
    def test_response_of_another_form_has_no_urls(self, response):
        task = read_task(record(response=response))
        assert (task.result_urls, task.origin_urls) == ((), ())

    @pytest.mark.parametrize(
        ("urls", "expected"),
        [
            (["https://e.com/r"], ("https://e.com/r",)),
            ("https://e.com/r", ("https://e.com/r",)),
            ([], ()),
            (None, ()),
            ("", ()),
            ([None, "", 5, "https://e.com/r"], ("https://e.com/r",)),
            ({"a": "b"}, ()),
        ],
    )
    def test_urls_are_read_from_a_list_or_a_single_text(self, urls, expected):
        task = read_task(record(response={"resultUrls": urls, "originUrls": urls}))
        assert task.result_urls == task.origin_urls == expected

    @pytest.mark.parametrize(
        ("milliseconds", "expected"),
        [
            (1755599634000, datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC)),
            (1755599634250, datetime(2025, 8, 19, 10, 33, 54, 250000, tzinfo=UTC)),
            ("1755599634000", datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC)),
            (None, None),
            ("", None),
            ("yesterday", None),
            (10**30, None),
            (-(10**30), None),
            pytest.param(10**400, None, id="too large"),
            (True, None),
        ],
    )
    def test_times_are_read_from_milliseconds_and_others_are_absent(self, milliseconds, expected):
        task = read_task(record(createTime=milliseconds, completeTime=milliseconds))
        assert task.created_at == task.completed_at == expected

    def test_failure_carries_lumas_code_and_message(self):
        task = read_task(record(successFlag=3, response=None, errorCode=501, errorMessage="no people, please"))
        error = task.failure()
        assert isinstance(error, LumaGenerationError)
        assert (error.code, error.luma_task_id) == (501, "abc")
        assert "no people, please" in str(error)
        assert "GENERATE_FAILED" in str(error)

    def test_failure_without_a_message_says_that_no_reason_was_given(self):
        error = read_task(record(successFlag=2, errorCode=None, errorMessage=None)).failure()
        assert error.code is None
        assert "no reason" in error.msg

    @pytest.mark.parametrize("told", ["mine", " MINE "])
    def test_id_of_a_job_is_the_one_that_was_asked_for(self, told):
        assert kie.read_status(record(taskId=told), "mine").luma_task_id == "mine"

    @pytest.mark.parametrize("told", [None, "", " "])
    def test_answer_that_names_no_job_ends_none(self, told):
        """A running job is no news; an end that is another job's would lose a video that is paid for, or its money."""
        assert not kie.read_status(record(taskId=told, successFlag=0), "mine").is_finished
        for flag in (1, 2, 3, 4):
            with pytest.raises(LumaUnavailableError, match="does not show the job's status"):
                kie.read_status(record(taskId=told, successFlag=flag), "mine")

    def test_answer_about_another_job_says_nothing_of_the_one_that_was_asked_for(self):
        with pytest.raises(LumaUnavailableError, match="does not show the job's status"):
            kie.read_status(record(taskId="another"), "mine")

    def test_task_is_immutable(self):
        with pytest.raises(AttributeError):
            read_task(record()).status = LumaTaskStatus.GENERATING


class TestAsDict:
    """What operators and sensors return."""

    def test_finished_job_is_a_dict_of_json_values(self):
        assert read_task(record()).as_dict() == {
            "luma_task_id": "abc",
            "status": "SUCCESS",
            "result_urls": ["https://e.com/result.mp4", "https://e.com/result2.mp4"],
            "origin_urls": ["https://e.com/origin.mp4"],
            "created_at": "2025-08-19T10:33:54+00:00",
            "completed_at": "2025-08-19T10:35:34+00:00",
        }

    def test_status_of_a_job_whose_callback_failed_reads_success(self):
        assert read_task(record(successFlag=4)).as_dict()["status"] == "SUCCESS"

    @given(
        status=st.integers(-5, 20).map(LumaTaskStatus),
        urls=st.lists(st.text()).map(tuple),
        at=st.none() | st.datetimes(timezones=st.just(UTC)),
        error=st.none() | st.text(),
    )
    def test_every_job_has_the_same_six_keys_with_json_values(self, status, urls, at, error):
        task = LumaTask("abc", status, urls, urls, at, at, error_code=500, error_message=error)
        result = task.as_dict()
        assert list(result) == KEYS
        assert json.loads(json.dumps(result)) == result
        for key in ("created_at", "completed_at"):
            assert result[key] is None if at is None else datetime.fromisoformat(result[key]) == at

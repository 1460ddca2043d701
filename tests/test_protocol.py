# SPDX-License-Identifier: Apache-2.0
"""The Luma Modify API, answer by answer and value by value, without any I/O."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma import protocol
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus, Response

KEYS = ["luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"]

#: What each code of the service means.
CODES = [
    (401, LumaAuthError),
    (402, LumaInsufficientCreditsError),
    (404, LumaNotFoundError),
    (422, LumaValidationError),
    (429, LumaRateLimitError),
    (455, LumaUnavailableError),
    (500, LumaUnavailableError),
    (501, LumaGenerationError),
    (505, LumaFeatureDisabledError),
]


def enveloped(data: Any = None, *, code: Any = 200, msg: Any = "said", status: int = 200, **kwargs: Any) -> Response:
    return Response(status, json.dumps({"code": code, "msg": msg, "data": data}).encode(), **kwargs)


def read_task(response: Response) -> LumaTask:
    return protocol.read_task(response, "abc")


READERS = {
    "submission": protocol.read_submission,
    "task": read_task,
    "credits": protocol.read_credits,
    "download_url": protocol.read_download_url,
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
every_look = pytest.mark.parametrize(
    "read", [read for name, read in READERS.items() if name != "submission"], ids=[*READERS][1:]
)

#: Bodies that no service wrote on purpose.
BROKEN = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>",
    "truncated": b'{"code": 200, "msg": "success", "data": {"taskId": "0123',
    "not JSON": b"upstream connect error",
    "not text": b"\xff\xfe\x00\x80",
    "a list": b"[]",
    "a text": b'"ok"',
    "null": b"null",
    "no code": b'{"msg": "Internal server error"}',
    "code null": b'{"code": null, "msg": "", "data": {"taskId": "abc"}}',
    "code true": b'{"code": true, "data": {"taskId": "abc"}}',
    "code in words": b'{"code": "ok", "data": {"taskId": "abc"}}',
    "code a list": b'{"code": [200], "data": {"taskId": "abc"}}',
    "nested without end": b"[" * 100_000,
    "a number of 5000 digits": b'{"code": ' + b"9" * 5000 + b"}",
}
every_broken_body = pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)

WRONG_DATA = {
    "null": None,
    "a number": 7.5,
    "true": True,
    "a list": [],
    "a list of objects": [{"taskId": "abc", "successFlag": 1}],
    "an empty object": {},
    "nulls": {"taskId": None, "successFlag": None},
    "objects": {"taskId": {}, "successFlag": {}},
    "flag true": {"taskId": True, "successFlag": True},
    "blank": {"taskId": "  ", "successFlag": ""},
    "fractions": {"taskId": 1.5, "successFlag": 1.5},
}


class TestRequests:
    """What is sent."""

    def test_a_submission_is_what_the_service_wants(self):
        request = protocol.modify_request(
            "make it snow", "https://e.com/v.mp4", callback_url="https://e.com/cb", watermark="mine"
        )
        assert (request.method, request.path, request.query) == ("POST", "/api/v1/modify/generate", None)
        assert request.json == {
            "prompt": "make it snow",
            "videoUrl": "https://e.com/v.mp4",
            "callBackUrl": "https://e.com/cb",
            "watermark": "mine",
        }

    @pytest.mark.parametrize("unset", [None, ""], ids=["None", "empty"])
    def test_optional_keys_are_left_out_when_unset(self, unset):
        request = protocol.modify_request("make it snow", "https://e.com/v.mp4", callback_url=unset, watermark=unset)
        assert request.json == {"prompt": "make it snow", "videoUrl": "https://e.com/v.mp4"}

    def test_a_look_asks_for_the_id_as_it_is(self):
        request = protocol.task_request("a/b c&d=ü")
        assert (request.method, request.path) == ("GET", "/api/v1/modify/record-info")
        assert request.query == {"taskId": "a/b c&d=ü"}
        assert request.json is None

    def test_credits(self):
        request = protocol.credits_request()
        assert (request.method, request.path, request.json) == ("GET", "/api/v1/chat/credit", None)

    def test_a_download_url(self):
        request = protocol.download_url_request("https://e.com/r.mp4")
        assert (request.method, request.path) == ("POST", "/api/v1/common/download-url")
        assert request.json == {"url": "https://e.com/r.mp4"}


class TestRefusals:
    """A refusal is an HTTP status, or HTTP 200 with the code in the body; both mean the same."""

    @every_reader
    @pytest.mark.parametrize("by_status", [True, False], ids=["by HTTP status", "in the body"])
    @pytest.mark.parametrize(("code", "kind"), CODES)
    def test_each_code_has_its_error(self, read, code, kind, by_status):
        with pytest.raises(LumaError) as caught:
            read(enveloped(code=code, msg="because of that", status=code if by_status else 200))
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert caught.value.msg == "because of that"

    @every_look
    @pytest.mark.parametrize(("code", "kind"), [pair for pair in CODES if pair[0] < 500])
    def test_a_status_without_an_envelope_means_its_code_too(self, read, code, kind):
        if read is read_task and code in (402, 404, 422):
            kind = LumaUnavailableError  # what an edge says of a page is not the service's word on a job
        with pytest.raises(kind) as caught:
            read(Response(code, b"<h1>no</h1>"))
        assert caught.value.code == code

    @every_reader
    def test_the_code_may_be_written_as_text(self, read):
        with pytest.raises(LumaInsufficientCreditsError):
            read(enveloped(code="402"))

    @every_reader
    @pytest.mark.parametrize("msg", [None, "", 5, ["a"]])
    def test_a_refusal_without_words_says_so(self, read, msg):
        with pytest.raises(LumaAuthError) as caught:
            read(enveloped(code=401, msg=msg))
        assert caught.value.msg

    @every_reader
    def test_the_words_of_the_body_win_over_those_of_the_status(self, read):
        with pytest.raises(LumaInsufficientCreditsError):
            read(enveloped(code=402, status=400))

    @every_look
    def test_a_body_that_says_200_does_not_make_an_error_status_a_success(self, read):
        good = {"taskId": "abc", "successFlag": 1}
        for data in (good, 5, "https://e.com/f"):
            with pytest.raises(LumaUnavailableError):
                read(enveloped(data, code=200, status=500))

    @pytest.mark.parametrize("status", [200, 201, 202, 299])
    def test_every_2xx_with_code_200_is_a_success(self, status):
        assert protocol.read_credits(enveloped(5, status=status)) == 5.0

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            (None, None),
            ("7", 7.0),
            (" 7 ", 7.0),
            ("0", 0.0),
            ("1.5", 1.5),
            ("", None),
            ("-3", None),
            ("soon", None),
            ("inf", None),
            ("nan", None),
            ("1e9", None),
            ("٣", None),
            pytest.param("9" * 400, None, id="too long"),
        ],
    )
    @every_reader
    def test_retry_after(self, read, header, seconds):
        with pytest.raises(LumaRateLimitError) as caught:
            read(enveloped(code=429, status=429, retry_after=header))
        assert caught.value.retry_after == seconds

    @pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
    @pytest.mark.parametrize(("ahead", "seconds"), [(90, 90.0), (0, 0.0), (-3600, 0.0)])
    def test_retry_after_may_be_a_time(self, form, ahead, seconds):
        header = (datetime.now(UTC) + timedelta(seconds=ahead)).strftime(form)
        with pytest.raises(LumaUnavailableError) as caught:
            read_task(enveloped(code=503, status=503, retry_after=header))
        assert caught.value.retry_after == pytest.approx(seconds, abs=5)

    @pytest.mark.parametrize(
        "header", ["Mon, 32 Mar 2026 12:00:00 GMT", "Mon, 02 Mar 99999 12:00:00 GMT", "Mon, 02 Mar", "1, 2 3 4 5 6"]
    )
    def test_a_time_that_there_is_not_asks_for_nothing(self, header):
        with pytest.raises(LumaUnavailableError) as caught:
            read_task(enveloped(code=503, status=503, retry_after=header))
        assert caught.value.retry_after is None

    @pytest.mark.parametrize("code", [502, 503, 504, 599])
    @pytest.mark.parametrize("status", [200, 504])
    def test_a_gateways_code_in_an_envelope_tells_nothing_of_what_is_behind_it(self, code, status):
        with pytest.raises(LumaUnavailableError):
            read_task(enveloped(code=code, status=status))
        with pytest.raises(LumaSubmissionUnknownError):
            protocol.read_submission(enveloped(code=code, status=status))

    @pytest.mark.parametrize("code", [429, 455, 500, 503])
    def test_retry_after_is_read_of_every_passing_refusal(self, code):
        with pytest.raises(LumaError) as caught:
            read_task(enveloped(code=code, status=code, retry_after="9"))
        assert caught.value.retry_after == 9.0

    def test_a_refused_look_names_the_job(self):
        with pytest.raises(LumaNotFoundError) as caught:
            read_task(enveloped(code=404))
        assert caught.value.luma_task_id == "abc"


class TestBrokenAnswers:
    """What stands in front of the service answers with anything, and no reader is surprised by it."""

    @every_look
    @every_broken_body
    @pytest.mark.parametrize("status", [200, 500, 502, 503])
    def test_a_broken_answer_to_a_look_is_a_passing_trouble(self, read, body, status):
        with pytest.raises(LumaUnavailableError):
            read(Response(status, body))

    @every_broken_body
    @pytest.mark.parametrize("status", [200, 201, 500, 502, 503, 504, 520])
    def test_a_broken_answer_to_a_submission_is_unknown(self, body, status):
        with pytest.raises(LumaSubmissionUnknownError) as caught:
            protocol.read_submission(Response(status, body))
        assert str(status) in caught.value.msg

    @every_look
    @pytest.mark.parametrize("data", WRONG_DATA.values(), ids=WRONG_DATA)
    def test_data_of_the_wrong_type_is_a_passing_trouble(self, read, data):
        if read is protocol.read_credits and data == 7.5:
            pytest.skip("that is a number of credits")
        with pytest.raises(LumaUnavailableError):
            read(enveloped(data))

    @pytest.mark.parametrize("data", [*WRONG_DATA.values(), "abc"], ids=[*WRONG_DATA, "a text"])
    def test_an_acceptance_without_an_id_is_unknown(self, data):
        with pytest.raises(LumaSubmissionUnknownError):
            protocol.read_submission(enveloped(data))

    @every_reader
    def test_an_unreadable_answer_is_quoted_briefly(self, read):
        with pytest.raises(LumaError) as caught:
            read(Response(502, b"<h1>Bad\n\n Gateway</h1>" + b"x" * 10_000))
        assert "Bad Gateway" in str(caught.value)
        assert len(caught.value.msg) < 500

    @every_reader
    @given(status=st.integers(100, 599), body=st.binary(), retry_after=st.none() | st.text())
    @example(200, b'{"code": 200, "data": 1e999}', None)
    @example(200, b'{"code": 200, "data": ' + b"9" * 400 + b"}", None)
    @example(200, b"[" * 100_000, None)
    @example(200, b'{"code": 200, "data": {"taskId": "a", "successFlag": ' + b"9" * 400 + b"}}", None)
    @example(200, b'{"code": 200, "data": {"successFlag": 1, "response": "' + b"[" * 100_000 + b'"}}', None)
    @example(200, b'{"code": 200, "data": {"successFlag": 1, "createTime": ' + b"9" * 400 + b"}}", None)
    def test_no_bytes_make_a_reader_raise_anything_else(self, read, status, body, retry_after):
        _read_or_luma_error(read, Response(status, body, retry_after))

    @every_reader
    @given(data=st.data())
    def test_no_json_makes_a_reader_raise_anything_else(self, read, data):
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        )
        fields = ["taskId", "successFlag", "response", "createTime", "completeTime", "errorCode", "errorMessage"]
        record = st.fixed_dictionaries({}, optional=dict.fromkeys([*fields, "resultUrls", "originUrls"], values))
        answer = {
            "code": data.draw(st.sampled_from([200, "200", 402, 500, None]) | values),
            "msg": data.draw(values),
            "data": data.draw(values | record | record.map(lambda inner: {"successFlag": 1, "response": inner})),
        }
        body = json.dumps(answer).encode()
        _read_or_luma_error(read, Response(data.draw(st.sampled_from([200, 201, 404, 429, 500])), body))


def _read_or_luma_error(read: Any, response: Response) -> None:
    try:
        read(response)
    except LumaError as error:
        str(error)
        json.dumps(error.as_dict())


class TestSubmission:
    """What was surely refused may be sent again; what may have been accepted may not."""

    @pytest.mark.parametrize(
        "luma_task_id", ["774d9a7dd608a0e49293903095e45a4c", "luma-42", "x", "42", "ä/ö?ü", "0" * 500]
    )
    def test_the_id_is_opaque(self, luma_task_id):
        assert protocol.read_submission(enveloped({"taskId": luma_task_id})) == luma_task_id

    def test_what_else_the_answer_holds_does_not_matter(self):
        body = b'{"code": 200, "success": true, "data": {"taskId": "abc", "new": [1]}, "extra": null}'
        assert protocol.read_submission(Response(200, body)) == "abc"

    @pytest.mark.parametrize("code", [429, 455, 500])
    @pytest.mark.parametrize("by_status", [True, False], ids=["by HTTP status", "in the body"])
    def test_an_enveloped_refusal_with_a_passing_reason_is_no_unknown(self, code, by_status):
        with pytest.raises((LumaRateLimitError, LumaUnavailableError)):
            protocol.read_submission(enveloped(code=code, status=code if by_status else 200))

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 429, 455])
    @pytest.mark.parametrize("body", [b"", b"<h1>no</h1>", b"{}"], ids=["empty", "html", "an empty object"])
    def test_a_plain_4xx_did_not_accept_anything(self, status, body):
        with pytest.raises(LumaError) as caught:
            protocol.read_submission(Response(status, body))
        assert not isinstance(caught.value, LumaSubmissionUnknownError)
        assert caught.value.code == status

    def test_a_500_whose_body_says_accepted_is_unknown(self):
        with pytest.raises(LumaSubmissionUnknownError):
            protocol.read_submission(enveloped({"taskId": "abc"}, status=500))

    @pytest.mark.parametrize("code", [0, 1, 201, 202, 206])
    def test_a_code_that_is_no_refusal_next_to_an_id_is_unknown(self, code):
        with pytest.raises(LumaSubmissionUnknownError):
            protocol.read_submission(enveloped({"taskId": "abc"}, code=code))

    @given(
        status=st.integers(200, 599),
        code=st.none() | st.integers(0, 999) | st.text(max_size=4),
        luma_task_id=st.none() | st.text() | st.integers(),
    )
    def test_only_an_acceptance_gives_an_id(self, status, code, luma_task_id):
        try:
            given_id = protocol.read_submission(enveloped({"taskId": luma_task_id}, code=code, status=status))
        except LumaError:
            return
        assert 200 <= status < 300
        assert code in (200, "200")
        assert given_id == luma_task_id

    @given(status=st.integers(500, 599) | st.integers(200, 299), body=st.binary())
    def test_a_bare_5xx_and_an_unreadable_2xx_are_always_unknown(self, status, body):
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if isinstance(document, dict):
            return
        with pytest.raises(LumaSubmissionUnknownError):
            protocol.read_submission(Response(status, body))


def record(**changes: Any) -> Response:
    """A finished job as record-info tells it."""
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
    """What a look tells of a job."""

    def test_a_success(self):
        assert read_task(record()) == LumaTask(
            luma_task_id="abc",
            status=LumaTaskStatus.SUCCESS,
            result_urls=("https://e.com/result.mp4", "https://e.com/result2.mp4"),
            origin_urls=("https://e.com/origin.mp4",),
            created_at=datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC),
            completed_at=datetime(2025, 8, 19, 10, 35, 34, tzinfo=UTC),
            prompt="make it snow",
        )

    def test_what_was_asked_for(self):
        asked = {"prompt": "make it snow", "videoUrl": "https://e.com/v.mp4", "callBackUrl": "https://e.com/cb?token=t"}
        task = read_task(record(paramJson=json.dumps(asked)))
        assert task.request() == {"prompt": "make it snow", "video_url": "https://e.com/v.mp4"}
        assert task.callback_url == "https://e.com/cb?token=t"
        assert "token" not in repr(task)

    @pytest.mark.parametrize(
        "broken", [None, "", "{", "[]", "null", '{"prompt": 1, "videoUrl": null, "callBackUrl": []}']
    )
    def test_what_was_asked_for_is_not_readable(self, broken):
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
    def test_each_flag(self, flag, name, is_finished, is_successful):
        task = read_task(record(successFlag=flag))
        assert task.status.name == name
        assert task.status == int(flag)
        assert (task.is_finished, task.is_successful) == (is_finished, is_successful)

    @pytest.mark.parametrize("flag", [0, 1, 2, 3, 4])
    def test_documented_flags_are_known_as_such(self, flag):
        assert LumaTaskStatus(flag).is_documented

    def test_undocumented_flags_too(self):
        assert not LumaTaskStatus(5).is_documented

    def test_a_running_job(self):
        task = read_task(record(successFlag=0, response=None, completeTime=None))
        assert (task.result_urls, task.origin_urls, task.completed_at) == ((), (), None)
        assert task.created_at is not None

    def test_keys_that_are_missing_altogether(self):
        assert read_task(enveloped({"successFlag": 0})) == LumaTask("abc", LumaTaskStatus.GENERATING)

    def test_the_response_may_be_a_json_string(self):
        response = {"taskId": "abc", "originUrls": ["https://e.com/o"], "resultUrls": ["https://e.com/r"]}
        task = read_task(record(response=json.dumps(response)))
        assert (task.result_urls, task.origin_urls) == (("https://e.com/r",), ("https://e.com/o",))

    @pytest.mark.parametrize(
        "response",
        ["", "null", "[]", "not json", "{", [], 5, True, pytest.param("[" * 100_000, id="nested without end")],
    )
    def test_a_response_of_another_form_is_one_without_urls(self, response):
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
    def test_lists_of_urls(self, urls, expected):
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
    def test_times(self, milliseconds, expected):
        task = read_task(record(createTime=milliseconds, completeTime=milliseconds))
        assert task.created_at == task.completed_at == expected

    def test_a_failure_carries_lumas_code_and_words(self):
        task = read_task(record(successFlag=3, response=None, errorCode=501, errorMessage="no people, please"))
        error = task.failure()
        assert isinstance(error, LumaGenerationError)
        assert (error.code, error.luma_task_id) == (501, "abc")
        assert "no people, please" in str(error)
        assert "GENERATE_FAILED" in str(error)

    def test_a_failure_without_words_says_so(self):
        error = read_task(record(successFlag=2, errorCode=None, errorMessage=None)).failure()
        assert error.code is None
        assert "no reason" in error.msg

    def test_the_id_is_the_one_asked_for(self):
        assert protocol.read_task(record(taskId="another"), "mine").luma_task_id == "mine"

    def test_a_task_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            read_task(record()).status = LumaTaskStatus.GENERATING


class TestAsDict:
    """What the tasks after get."""

    def test_a_success(self):
        assert read_task(record()).as_dict() == {
            "luma_task_id": "abc",
            "status": "SUCCESS",
            "result_urls": ["https://e.com/result.mp4", "https://e.com/result2.mp4"],
            "origin_urls": ["https://e.com/origin.mp4"],
            "created_at": "2025-08-19T10:33:54+00:00",
            "completed_at": "2025-08-19T10:35:34+00:00",
        }

    def test_a_video_whose_callback_failed_is_a_success(self):
        assert read_task(record(successFlag=4)).as_dict()["status"] == "SUCCESS"

    @given(
        status=st.integers(-5, 20).map(LumaTaskStatus),
        urls=st.lists(st.text()).map(tuple),
        at=st.none() | st.datetimes(timezones=st.just(UTC)),
        error=st.none() | st.text(),
    )
    def test_always_the_same_six_keys_in_json(self, status, urls, at, error):
        task = LumaTask("abc", status, urls, urls, at, at, error_code=500, error_message=error)
        told = task.as_dict()
        assert list(told) == KEYS
        assert json.loads(json.dumps(told)) == told
        for key in ("created_at", "completed_at"):
            assert told[key] is None if at is None else datetime.fromisoformat(told[key]) == at


class TestCreditsAndDownloadUrl:
    @pytest.mark.parametrize(("data", "credits"), [(0, 0.0), (100, 100.0), (12.5, 12.5), (-3, -3.0)])
    def test_credits(self, data, credits):
        remaining = protocol.read_credits(enveloped(data))
        assert (remaining, type(remaining)) == (credits, float)

    @pytest.mark.parametrize(
        "data", [None, True, "100", [], {}, 10**400], ids=["null", "true", "a text", "a list", "an object", "too large"]
    )
    def test_credits_that_are_no_number(self, data):
        with pytest.raises(LumaUnavailableError):
            protocol.read_credits(enveloped(data))

    def test_a_download_url(self):
        assert protocol.read_download_url(enveloped("https://e.com/t?x=1")) == "https://e.com/t?x=1"

    @pytest.mark.parametrize("data", [None, "", 5, [], {"url": "https://e.com"}])
    def test_a_download_url_that_is_none(self, data):
        with pytest.raises(LumaUnavailableError):
            protocol.read_download_url(enveloped(data))


class TestPrompt:
    """English only; what is English cannot be told, but what is not Latin can."""

    @pytest.mark.parametrize(
        "prompt",
        [
            "make it a rainy night",
            "x",
            "  surrounded by blanks\n",
            "café, naïve, Straße, señor, Łódź, İstanbul",
            "𝓼𝓽𝔂𝓵𝓮𝓭 𝖋𝖔𝖓𝖙𝖘",
            "ｆｕｌｌ ｗｉｄｔｈ",
            "ﬁre and ﬂames",
            "🌧️ 🎬 rain",
            "🌧️",
            "24",
            "1980s film look, 50% slower, €5, № 5, ½",
            "“quotes” — dashes … and 100°",
            "a 5 µm macro shot",
        ],
    )
    def test_allowed(self, prompt):
        protocol.check_prompt(prompt)

    @pytest.mark.parametrize(
        "prompt", [None, "", " ", "\n\t", "\u3000", 5, [], b"rain"], ids=lambda prompt: ascii(prompt)
    )
    def test_blank(self, prompt):
        with pytest.raises(LumaValidationError, match="prompt") as caught:
            protocol.check_prompt(prompt)
        assert "English" in str(caught.value)
        assert caught.value.code is None

    @pytest.mark.parametrize(
        ("prompt", "quoted"),
        [
            ("сделай дождь", "сделай"),
            ("让它下雨", "让它下雨"),
            ("雨にして", "雨にして"),
            ("비가 오게", "비가"),
            ("اجعلها تمطر", "اجعلها"),
            ("בגשם", "בגשם"),
            ("κάνε βροχή", "κ"),
            ("बारिश", "ब"),
            ("make it раin", "ра"),
        ],
    )
    def test_another_script(self, prompt, quoted):
        with pytest.raises(LumaValidationError, match="prompt") as caught:
            protocol.check_prompt(prompt)
        assert quoted in str(caught.value)
        assert "translate" in str(caught.value)

    def test_a_long_foreign_prompt_is_not_quoted_whole(self):
        with pytest.raises(LumaValidationError) as caught:
            protocol.check_prompt("雨" * 5000)
        assert len(str(caught.value)) < 300

    @given(st.text())
    def test_nothing_else_is_raised(self, prompt):
        try:
            protocol.check_prompt(prompt)
        except LumaValidationError:
            assert not prompt.isascii() or not prompt.strip()


CHECKS = {"video_url": protocol.check_video_url, "callback_url": protocol.check_callback_url}


@pytest.mark.parametrize(("parameter", "check"), CHECKS.items(), ids=CHECKS)
class TestUrls:
    """Addresses that Luma shall fetch or call."""

    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com/v.mp4",
            "http://example.com/v.mp4",
            "HTTPS://EXAMPLE.COM/v.mp4",
            "https://example.com",
            "https://example.com:8443/v.mp4",
            "https://user:secret@example.com/v.mp4",
            "https://bucket.s3.amazonaws.com/v.mp4?X-Amz-Signature=a%20b&x=1#t=3",
            "https://93.184.215.14/v.mp4",
            "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/v.mp4",
            "https://exämple.com/vidéo.mp4",
            "https://example.com./v.mp4",
        ],
    )
    def test_public_addresses(self, parameter, check, url):
        check(url, service_is_public=True)

    @pytest.mark.parametrize(
        ("url", "remedy"),
        [
            (None, "give a public"),
            ("", "give a public"),
            ("  ", "give a public"),
            (5, "give a public"),
            (["https://example.com"], "give a public"),
            ("ftp://example.com/v.mp4", "http:// or https://"),
            ("s3://bucket/v.mp4", "http:// or https://"),
            ("file:///etc/passwd", "http:// or https://"),
            ("javascript:alert(1)", "http:// or https://"),
            ("example.com/v.mp4", "http:// or https://"),
            ("/videos/v.mp4", "http:// or https://"),
            ("//example.com/v.mp4", "http:// or https://"),
            ("http://", "no host"),
            ("http:///v.mp4", "no host"),
            ("https://:8080/v.mp4", "no host"),
            ("https://example.com/a b.mp4", "blanks"),
            (" https://example.com/v.mp4", "blanks"),
            ("https://example.com/v.mp4\n", "blanks"),
            ("https://example.com/\tv.mp4", "blanks"),
            ("https://example.com/\x00", "blanks"),
            ("https://example.com:99999/v.mp4", "no valid address"),
            ("https://example.com:port/v.mp4", "no valid address"),
            ("https://[::1/v.mp4", "no valid address"),
        ],
        ids=repr,
    )
    def test_what_is_no_web_address(self, parameter, check, url, remedy):
        with pytest.raises(LumaValidationError) as caught:
            check(url)
        assert parameter in str(caught.value)
        assert remedy in str(caught.value)
        assert caught.value.code is None

    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "sub.localhost",
            "intranet",
            "minio",
            "files.local",
            "files.internal",
            "nas.lan",
            "nas.home.arpa",
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "0x7f.1",
            "0X7F000001",
            "2130706433",
            "017700000001",
            "0.0.0.0",
            "10.0.0.5",
            "10.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "[fc00::1]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[::ffff:a00:1]",
            "127。0。0。1",
            "ｌｏｃａｌｈｏｓｔ",
        ],
    )
    def test_private_hosts(self, parameter, check, host):
        url = f"http://{host}/v.mp4"
        check(url, service_is_public=False)
        with pytest.raises(LumaValidationError) as caught:
            check(url, service_is_public=True)
        assert parameter in str(caught.value)
        assert "public" in str(caught.value)

    @pytest.mark.parametrize(
        "host",
        [
            "example.com",
            "localhost.example.com",
            "internal.example.com",
            "10.0.0.5.example.com",
            "8.8.8.8",
            "[::ffff:8.8.8.8]",
            "face.cafe",
            "1.local.example.org",
        ],
    )
    def test_hosts_that_only_look_private(self, parameter, check, host):
        check(f"http://{host}/v.mp4", service_is_public=True)

    @given(url=st.text() | st.text().map("https://{}".format) | st.text().map("http://[{}".format))
    def test_nothing_else_is_raised(self, parameter, check, url):
        with suppress(LumaValidationError):
            check(url, service_is_public=True)


class TestVideoExtension:
    @pytest.mark.parametrize(
        "path",
        [
            "v.mp4",
            "V.MP4",
            "v.mov",
            "v.Mov",
            "v.avi",
            "v.AVI",
            "v%2Emp4",
            "video.php",
            "video.php?name=v.webm",
            "video",
            "",
            "watch?v=abc.webm",
            "v.mp4#x.webm",
            "api/v1.2/video",
            "folder.webm/video",
            ".hidden",
        ],
    )
    def test_allowed(self, path):
        protocol.check_video_url(f"https://example.com/{path}")

    @pytest.mark.parametrize(
        "path", ["v.webm", "V.WEBM", "v.mkv", "v.gif", "pic.jpg", "PIC.JPEG", "s.mp3", "v%2Ewebm", "v.mp4.zip"]
    )
    def test_another_kind_of_file(self, path):
        with pytest.raises(LumaValidationError, match="video_url") as caught:
            protocol.check_video_url(f"https://example.com/{path}")
        for word in ("MP4", "MOV", "AVI", "convert"):
            assert word in str(caught.value)

    def test_a_callback_may_end_as_it_likes(self):
        protocol.check_callback_url("https://example.com/hook.json")


class TestOtherChecks:
    @pytest.mark.parametrize("luma_task_id", ["774d9a7dd608a0e49293903095e45a4c", "x", "luma-42"])
    def test_an_id_is_opaque(self, luma_task_id):
        protocol.check_luma_task_id(luma_task_id)

    @pytest.mark.parametrize("luma_task_id", [None, "", "  ", 5, [], {"luma_task_id": "x"}])
    def test_no_id(self, luma_task_id):
        with pytest.raises(LumaValidationError, match="luma_task_id"):
            protocol.check_luma_task_id(luma_task_id)

    @pytest.mark.parametrize("seconds", [1, 0.1, 1e9])
    def test_seconds(self, seconds):
        protocol.check_positive("timeout", seconds)

    @pytest.mark.parametrize("seconds", [0, -1, None, "30", True, float("nan"), float("inf"), [], 0.0])
    def test_no_seconds(self, seconds):
        with pytest.raises(LumaValidationError, match="timeout"):
            protocol.check_positive("timeout", seconds)

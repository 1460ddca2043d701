# SPDX-License-Identifier: Apache-2.0
"""The Luma Modify API: what is sent for each call, and how each answer becomes a value or a typed error."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.core.job import LumaTask, ModifyRequest, Response
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaKeyLimitError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.services import kie
from tests.support.hostile_answers import responses
from tests.support.luma_answers import enveloped

#: What each code of the service means.
CODES = [
    (401, LumaAuthError),
    (402, LumaInsufficientCreditsError),
    (404, LumaNotFoundError),
    (422, LumaValidationError),
    (429, LumaRateLimitError),
    (433, LumaKeyLimitError),
    (455, LumaUnavailableError),
    (500, LumaUnavailableError),
    (501, LumaGenerationError),
    (505, LumaFeatureDisabledError),
]

#: What the service's codes mean in answer to a status check. No other says anything of the job or the key.
TASK_CODES = {401: LumaAuthError, 404: LumaNotFoundError, 422: LumaNotFoundError, 429: LumaRateLimitError}


def read_task(response: Response) -> LumaTask:
    return kie.read_status(response, "abc")


READERS = {
    "submission": kie.read_submission,
    "task": read_task,
    "credits": kie.read_balance,
    "download_url": kie.read_renewal,
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
every_reader_but_submission = pytest.mark.parametrize(
    "read", [read for name, read in READERS.items() if name != "submission"], ids=[*READERS][1:]
)

#: Bodies that are no envelope of the service.
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
    "code a word": b'{"code": "ok", "data": {"taskId": "abc"}}',
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
OTHER_WRONG_DATA = {name: data for name, data in WRONG_DATA.items() if name != "a number"}


class TestRequests:
    """What is sent."""

    def test_submission_is_written_with_the_keys_of_the_service(self):
        wanted = ModifyRequest("make it snow", "https://e.com/v.mp4", callback_url="https://e.com/cb", watermark="mine")
        request = kie.submission(wanted, "our-name")
        assert (request.method, request.path, request.query) == ("POST", "/api/v1/modify/generate", None)
        assert request.json == {
            "prompt": "make it snow",
            "videoUrl": "https://e.com/v.mp4",
            "callBackUrl": "https://e.com/cb",
            "watermark": "mine",
        }

    @pytest.mark.parametrize("unset", [None, ""], ids=["None", "empty"])
    def test_optional_keys_of_a_submission_are_left_out_when_unset(self, unset):
        wanted = ModifyRequest("make it snow", "https://e.com/v.mp4", callback_url=unset, watermark=unset)
        request = kie.submission(wanted, "our-name")
        assert request.json == {"prompt": "make it snow", "videoUrl": "https://e.com/v.mp4"}

    @pytest.mark.parametrize(
        ("changes", "names"),
        [
            ({"prompt": " "}, "prompt"),
            ({"video_url": "e.com/v.mp4"}, "video_url"),
            ({"watermark": 5}, "watermark"),
            ({"callback_url": "e.com"}, "callback_url"),
        ],
        ids=str,
    )
    def test_request_with_an_invalid_parameter_is_refused(self, changes, names):
        valid = {"prompt": "make it snow", "video_url": "https://e.com/v.mp4", "watermark": "mine"}
        kie.check(ModifyRequest(**valid), is_public=True)
        with pytest.raises(LumaValidationError, match=names):
            kie.check(ModifyRequest(**{**valid, **changes}), is_public=True)

    @pytest.mark.parametrize("parameter", ["video_url", "callback_url"])
    def test_request_with_a_private_address_is_refused_only_for_the_public_service(self, parameter):
        addresses = {"video_url": "https://e.com/v.mp4", parameter: "http://10.0.0.5/x"}
        request = ModifyRequest("make it snow", **addresses)
        kie.check(request, is_public=False)
        with pytest.raises(LumaValidationError, match=parameter):
            kie.check(request, is_public=True)

    def test_callback_url_is_in_no_repr_of_a_request(self):
        request = ModifyRequest("make it snow", "https://e.com/v.mp4", callback_url="https://e.com/cb?token=t")
        assert "token" not in repr(request)

    def test_status_check_asks_for_the_id_as_it_is(self):
        request = kie.status("a/b c&d=ü")
        assert (request.method, request.path) == ("GET", "/api/v1/modify/record-info")
        assert request.query == {"taskId": "a/b c&d=ü"}
        assert request.json is None

    def test_credits_are_requested_with_a_get(self):
        request = kie.balance()
        assert (request.method, request.path, request.json) == ("GET", "/api/v1/chat/credit", None)

    def test_download_address_is_requested_with_the_results_url(self):
        request = kie.renewal("https://e.com/r.mp4")
        assert (request.method, request.path) == ("POST", "/api/v1/common/download-url")
        assert request.json == {"url": "https://e.com/r.mp4"}


class TestRefusals:
    """A refusal is an HTTP status, or HTTP 200 with the code in the body; both have the same meaning."""

    @every_reader
    @pytest.mark.parametrize("by_status", [True, False], ids=["by HTTP status", "in the body"])
    @pytest.mark.parametrize(("code", "kind"), CODES)
    def test_each_code_becomes_its_error(self, read, code, kind, by_status):
        answer = enveloped(code=code, msg="because of that", status=code if by_status else 200)
        if read is kie.read_submission and code in (500, 501):
            with pytest.raises(LumaSubmissionUnknownError, match="because of that"):
                read(answer)
            return
        kind = TASK_CODES.get(code, LumaUnavailableError) if read is read_task else kind
        with pytest.raises(LumaError) as caught:
            read(answer)
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert caught.value.msg == "because of that"

    @every_reader_but_submission
    @pytest.mark.parametrize(("code", "kind"), [pair for pair in CODES if pair[0] < 500])
    def test_http_status_without_an_envelope_becomes_the_error_of_that_code(self, read, code, kind):
        if read is read_task and code != 429:
            kind = LumaUnavailableError  # what an edge says of a page is not the service's word on a job
        with pytest.raises(kind) as caught:
            read(Response(code, b"<h1>no</h1>"))
        assert caught.value.code == code

    @every_reader
    def test_code_may_be_written_as_text(self, read):
        with pytest.raises(LumaAuthError):
            read(enveloped(code="401"))

    @every_reader
    @pytest.mark.parametrize("msg", [None, "", 5, ["a"]])
    def test_refusal_without_a_message_gets_one(self, read, msg):
        with pytest.raises(LumaAuthError) as caught:
            read(enveloped(code=401, msg=msg))
        assert caught.value.msg

    @every_reader
    def test_code_of_the_body_takes_precedence_over_the_http_status(self, read):
        with pytest.raises(LumaAuthError):
            read(enveloped(code=401, status=400))

    @pytest.mark.parametrize("code", [401, 404, 422])
    @pytest.mark.parametrize("status", [301, 500, 502, 504])
    def test_refusal_that_an_edge_has_passed_on_with_its_own_status_ends_no_wait(self, code, status):
        with pytest.raises(LumaUnavailableError) as caught:
            read_task(enveloped(code=code, status=status))
        assert caught.value.code == code

    @pytest.mark.parametrize("status", [401, 404, 422])
    def test_code_200_with_a_refusing_http_status_ends_no_wait(self, status):
        with pytest.raises(LumaUnavailableError):
            read_task(enveloped({"successFlag": 0}, status=status))

    def test_status_check_of_a_job_only_just_made_is_not_found(self):
        with pytest.raises(LumaNotFoundError, match="recordInfo is null") as caught:
            read_task(enveloped(code=422, msg="recordInfo is null"))
        assert (caught.value.code, caught.value.luma_task_id) == (422, "abc")

    @every_reader_but_submission
    def test_code_200_in_the_body_does_not_make_an_error_status_a_success(self, read):
        good = {"taskId": "abc", "successFlag": 1}
        for data in (good, 5, "https://e.com/f"):
            with pytest.raises(LumaUnavailableError):
                read(enveloped(data, code=200, status=500))

    @pytest.mark.parametrize("status", [200, 201, 202, 299])
    def test_every_2xx_status_with_code_200_is_a_success(self, status):
        assert kie.read_balance(enveloped(5, status=status)) == 5.0

    @every_reader
    @pytest.mark.parametrize("seconds", [None, 7.0])
    def test_every_reader_takes_retry_after(self, read, seconds):
        with pytest.raises(LumaRateLimitError) as caught:
            read(enveloped(code=429, status=429, retry_after=seconds))
        assert caught.value.retry_after == seconds

    @pytest.mark.parametrize("code", [502, 503, 504, 599])
    @pytest.mark.parametrize("status", [200, 504])
    def test_gateway_code_in_an_envelope_leaves_a_submission_unknown_and_a_status_check_unavailable(self, code, status):
        with pytest.raises(LumaUnavailableError):
            read_task(enveloped(code=code, status=status))
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped(code=code, status=status))

    @pytest.mark.parametrize("code", [429, 455, 500, 503])
    def test_retry_after_is_read_from_every_transient_refusal(self, code):
        with pytest.raises(LumaError) as caught:
            read_task(enveloped(code=code, status=code, retry_after=9.0))
        assert caught.value.retry_after == 9.0

    def test_refused_status_check_names_the_job(self):
        with pytest.raises(LumaNotFoundError) as caught:
            read_task(enveloped(code=404))
        assert caught.value.luma_task_id == "abc"


class TestBrokenAnswers:
    """What is in front of the service may answer with anything; no reader raises anything but a LumaError."""

    @every_reader_but_submission
    @every_broken_body
    @pytest.mark.parametrize("status", [200, 500, 502, 503])
    def test_broken_answer_to_a_read_is_a_transient_error(self, read, body, status):
        with pytest.raises(LumaUnavailableError):
            read(Response(status, body))

    @every_broken_body
    @pytest.mark.parametrize("status", [200, 201, 500, 502, 503, 504, 520])
    def test_broken_answer_to_a_submission_leaves_it_unknown(self, body, status):
        with pytest.raises(LumaSubmissionUnknownError) as caught:
            kie.read_submission(Response(status, body))
        assert str(status) in caught.value.msg

    @every_reader_but_submission
    @pytest.mark.parametrize("data", OTHER_WRONG_DATA.values(), ids=OTHER_WRONG_DATA)
    def test_data_of_the_wrong_type_is_a_transient_error(self, read, data):
        with pytest.raises(LumaUnavailableError):
            read(enveloped(data))

    @pytest.mark.parametrize("read", [read_task, kie.read_renewal])
    def test_number_as_data_is_a_transient_error_except_for_credits(self, read):
        with pytest.raises(LumaUnavailableError):
            read(enveloped(7.5))

    @pytest.mark.parametrize("data", [*WRONG_DATA.values(), "abc"], ids=[*WRONG_DATA, "a text"])
    def test_acceptance_without_an_id_leaves_the_submission_unknown(self, data):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped(data))

    @every_reader
    def test_unreadable_answer_is_quoted_briefly(self, read):
        with pytest.raises(LumaError) as caught:
            read(Response(502, b"<h1>Bad\n\n Gateway</h1>" + b"x" * 10_000))
        assert "Bad Gateway" in str(caught.value)
        assert len(caught.value.msg) < 500

    @every_reader
    @given(status=st.integers(100, 599), body=st.binary(), retry_after=st.none() | st.floats(0, 1e9))
    @example(200, b'{"code": 200, "data": 1e999}', None)
    @example(200, b'{"code": 200, "data": "\\ud83d \\u0000"}', None)
    @example(200, b'{"code": 200, "data": {"taskId": "\xed\xa0\xbd"}}', None)
    @example(200, b'{"code": 422, "msg": "\\ud83d", "data": null}', None)
    @example(200, b'{"code": ' + b"9" * 25 + b', "msg": "x"}', None)
    @example(407, b"<p>\x00</p>", None)
    @example(200, b'{"code": 200, "data": ' + b"9" * 400 + b"}", None)
    @example(200, b"[" * 100_000, None)
    @example(200, b'{"code": 200, "data": {"taskId": "a", "successFlag": ' + b"9" * 400 + b"}}", None)
    @example(200, b'{"code": 200, "data": {"successFlag": 1, "response": "' + b"[" * 100_000 + b'"}}', None)
    @example(200, b'{"code": 200, "data": {"successFlag": 1, "createTime": ' + b"9" * 400 + b"}}", None)
    def test_any_bytes_give_a_plain_value_or_a_plain_luma_error(self, read, status, body, retry_after):
        assert_plain(read_or_luma_error(read, Response(status, body, retry_after)))

    @every_reader
    @given(response=responses)
    def test_any_json_gives_a_plain_value_or_a_plain_luma_error(self, read, response):
        assert_plain(read_or_luma_error(read, response))


def read_or_luma_error(read: Any, response: Response) -> Any:
    try:
        return read(response)
    except LumaError as error:
        return error


def assert_plain(read: Any) -> None:
    """Check that all that a trigger's event or an XCom takes of a value or an error can be written down."""
    values = [read]
    if isinstance(read, LumaTask):
        values = [read.as_dict(), read.request(), read.failure().as_dict(), str(read.failure())]
    elif isinstance(read, LumaError):
        values = [read.as_dict(), str(read), read.retry_after]
    msgspec.msgpack.encode(values)
    assert_no_nul(values)
    written = json.dumps(values, allow_nan=False, ensure_ascii=False).encode("utf-8")
    json.loads(written, object_pairs_hook=lambda pairs: [assert_no_nul(item) for pair in pairs for item in pair])


def assert_no_nul(value: Any) -> None:
    for text in value if isinstance(value, list) else [value]:
        assert not isinstance(text, str) or "\x00" not in text


class TestSubmission:
    """A submission that was surely refused may be sent again; one that may have been accepted may not."""

    @pytest.mark.parametrize(
        "luma_task_id", ["774d9a7dd608a0e49293903095e45a4c", "luma-42", "x", "42", "ä/ö?ü", "0" * 500]
    )
    def test_task_id_may_be_any_text(self, luma_task_id):
        assert kie.read_submission(enveloped({"taskId": luma_task_id})) == luma_task_id

    def test_further_keys_in_the_answer_to_a_submission_are_ignored(self):
        body = b'{"code": 200, "success": true, "data": {"taskId": "abc", "new": [1]}, "extra": null}'
        assert kie.read_submission(Response(200, body)) == "abc"

    @pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 422, 429, 455, 498, 505])
    @pytest.mark.parametrize("by_status", [True, False], ids=["by HTTP status", "in the body"])
    def test_enveloped_4xx_455_and_505_refuse_a_submission(self, code, by_status):
        with pytest.raises(LumaError) as caught:
            kie.read_submission(enveloped(code=code, status=code if by_status else 200))
        assert not isinstance(caught.value, LumaSubmissionUnknownError)
        assert caught.value.code == code

    @pytest.mark.parametrize("code", [500, 501, 502, 503, 504, 599])
    @pytest.mark.parametrize("status", [200, 500, 504])
    def test_enveloped_5xx_leaves_the_submission_unknown(self, code, status):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped(code=code, status=status))

    @pytest.mark.parametrize("status", [301, 303, 307, 500, 502, 504])
    def test_refusal_in_an_envelope_that_an_edge_has_passed_on_with_its_own_status_is_unknown(self, status):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped(code=429, status=status))

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 429, 455])
    @pytest.mark.parametrize("body", [b"", b"<h1>no</h1>", b"{}"], ids=["empty", "html", "an empty object"])
    def test_4xx_status_without_an_envelope_leaves_the_submission_unknown(self, status, body):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(Response(status, body))

    @pytest.mark.parametrize("status", [404, 410])
    def test_missing_page_leaves_the_submission_unknown_and_says_that_the_endpoint_may_be_gone(self, status):
        with pytest.raises(LumaSubmissionUnknownError, match="The address.* has no Luma endpoint"):
            kie.read_submission(Response(status, b"404 page not found"))

    @pytest.mark.parametrize("style", [200, 404])
    def test_refusal_404_says_that_the_endpoint_may_be_gone(self, style):
        with pytest.raises(LumaNotFoundError, match="No such endpoint.*has no Luma endpoint"):
            kie.read_submission(enveloped(code=404, status=style, msg="No such endpoint."))

    def test_refusal_422_of_a_model_that_has_moved_says_that_the_endpoint_may_be_gone(self):
        with pytest.raises(LumaNotFoundError, match="has no Luma endpoint"):
            kie.read_submission(enveloped(code=422, msg="The page does not exist or is not published"))

    def test_refusal_of_parameters_does_not_doubt_the_endpoint(self):
        with pytest.raises(LumaValidationError) as caught:
            kie.read_submission(enveloped(code=422, msg="videoUrl is not reachable"))
        assert "endpoint" not in str(caught.value)

    def test_reached_limit_of_the_key_is_no_outage_and_names_the_remedy(self):
        msg = "The current number of points used by apiKey has exceeded the daily limit"
        with pytest.raises(LumaInsufficientCreditsError, match="daily limit.*Raise the limit of this API key"):
            kie.read_submission(enveloped(code=433, msg=msg))

    @pytest.mark.parametrize("code", [1006, 1010, 1020])
    def test_call_that_the_edge_has_refused_was_not_accepted_and_its_key_is_not_the_reason(self, code):
        refused = Response(403, f"error code: {code}\n".encode())
        for read in (kie.read_submission, read_task):
            with pytest.raises(LumaUnavailableError, match=f"does not look at the API key.*error code: {code}"):
                read(refused)

    @pytest.mark.parametrize("code", [1101, 1102, 1200])
    def test_edge_that_has_run_code_of_its_own_may_have_passed_the_submission_on(self, code):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(Response(403, f"error code: {code}".encode()))

    @pytest.mark.parametrize("status", [408, 409, 499])
    def test_refusal_under_a_status_that_says_too_late_leaves_the_submission_unknown(self, status):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped(code=400, status=status))

    @pytest.mark.parametrize("name", ["taskId", "task_id"])
    def test_refusal_that_names_a_job_leaves_the_submission_unknown(self, name):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped({name: "abc"}, code=430))

    def test_edge_that_wants_fewer_calls_has_accepted_none(self):
        for read in (kie.read_submission, read_task):
            with pytest.raises(LumaRateLimitError):
                read(Response(429, b"error code: 1015", retry_after=7.0))

    @pytest.mark.parametrize("status", [200, 404, 502, 520, 524])
    def test_code_of_an_edge_beside_another_status_leaves_the_submission_unknown(self, status):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(Response(status, b"error code: 1010"))

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirected_submission_is_unknown_and_says_where_the_redirect_leads(self, status):
        with pytest.raises(LumaSubmissionUnknownError, match="'https://elsewhere.example.com/'.*Host"):
            kie.read_submission(Response(status, b"", location="https://elsewhere.example.com/"))

    def test_status_500_whose_body_says_accepted_leaves_the_submission_unknown(self):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped({"taskId": "abc"}, status=500))

    @pytest.mark.parametrize("code", [0, 1, 201, 202, 206])
    def test_undocumented_code_beside_an_id_leaves_the_submission_unknown(self, code):
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(enveloped({"taskId": "abc"}, code=code))

    @given(
        status=st.integers(200, 599),
        code=st.none() | st.integers(0, 999) | st.text(max_size=4),
        luma_task_id=st.none() | st.text() | st.integers(),
    )
    def test_only_code_200_with_a_2xx_status_gives_an_id(self, status, code, luma_task_id):
        try:
            given_id = kie.read_submission(enveloped({"taskId": luma_task_id}, code=code, status=status))
        except LumaError:
            return
        assert 200 <= status < 300
        assert code in (200, "200")
        assert given_id == luma_task_id

    @given(status=st.integers(500, 599) | st.integers(200, 299), body=st.binary())
    def test_5xx_without_an_envelope_and_unreadable_2xx_leave_the_submission_unknown(self, status, body):
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if isinstance(document, dict):
            return
        with pytest.raises(LumaSubmissionUnknownError):
            kie.read_submission(Response(status, body))


class TestCreditsAndDownloadUrl:
    @pytest.mark.parametrize(("data", "credits"), [(0, 0.0), (100, 100.0), (12.5, 12.5), (-3, -3.0)])
    def test_credits_are_read_as_a_float(self, data, credits):
        remaining = kie.read_balance(enveloped(data))
        assert (remaining, type(remaining)) == (credits, float)

    @pytest.mark.parametrize(
        "data", [None, True, "100", [], {}, 10**400], ids=["null", "true", "a text", "a list", "an object", "too large"]
    )
    def test_credits_that_are_no_number_are_a_transient_error(self, data):
        with pytest.raises(LumaUnavailableError):
            kie.read_balance(enveloped(data))

    def test_download_address_is_read(self):
        assert kie.read_renewal(enveloped("https://e.com/t?x=1")) == "https://e.com/t?x=1"

    @pytest.mark.parametrize("data", [None, "", 5, [], {"url": "https://e.com"}])
    def test_download_address_that_is_none_is_a_transient_error(self, data):
        with pytest.raises(LumaUnavailableError):
            kie.read_renewal(enveloped(data))


class TestEndpoint:
    """Whether the Luma endpoint is there, by the status of a job that cannot exist."""

    @pytest.mark.parametrize("status", [200, 404, 422])
    @pytest.mark.parametrize(("code", "msg"), [(404, "No such task."), (422, "recordInfo is null")])
    def test_endpoint_that_does_not_know_the_job_is_there(self, status, code, msg):
        kie.read_liveness(enveloped(code=code, status=status, msg=msg))

    def test_endpoint_that_answers_without_data_is_there(self):
        kie.read_liveness(enveloped(None))

    @pytest.mark.parametrize(
        "response",
        [
            Response(404, b"404 page not found"),
            Response(404, b'{"status": 404, "error": "Not Found", "path": "/api/v1/modify/record-info"}'),
            Response(410, b""),
            enveloped(code=422, msg="The page does not exist or is not published"),
        ],
        ids=["text", "JSON of a framework", "gone", "moved"],
    )
    def test_endpoint_that_is_gone(self, response):
        with pytest.raises(LumaNotFoundError, match="documentation since April 2026"):
            kie.read_liveness(response)

    @pytest.mark.parametrize(
        ("response", "error"),
        [
            (enveloped(code=401), LumaAuthError),
            (enveloped(code=429), LumaRateLimitError),
            (enveloped(code=455), LumaUnavailableError),
            (Response(502, b"<h1>Bad Gateway</h1>"), LumaUnavailableError),
            (Response(403, b"error code: 1010"), LumaUnavailableError),
        ],
        ids=["key", "rate", "maintenance", "edge", "user agent"],
    )
    def test_other_answers_do_not_say(self, response, error):
        with pytest.raises(error):
            kie.read_liveness(response)

# SPDX-License-Identifier: Apache-2.0
"""Luma's own API: what is sent for each call, and how each response becomes a value or a typed error."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus, LumaUpload, ModifyRequest, Request, Response
from airflow_provider_luma.exceptions import (
    PERMANENT,
    TRANSIENT,
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaRequestFailedError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.services import kie, luma
from airflow_provider_luma.services.base import Call, SendFile, UploadStep
from tests.support.hostile_answers import generations, responses

JOB = "0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11"
RESULT = "https://s3.example.com/o.mp4?X-Amz-Signature=abc&X-Amz-Expires=3600"


def response(http_status: int, document: Any, **more: Any) -> Response:
    return Response(http_status, json.dumps(document).encode(), **more)


def job(**changes: Any) -> dict[str, Any]:
    return {
        "id": JOB,
        "type": "video_edit",
        "state": "completed",
        "model": "ray-3.2",
        "created_at": "2026-11-28T12:00:00Z",
        "output": [{"type": "video", "url": RESULT}],
        "failure_reason": None,
        "failure_code": None,
        **changes,
    }


def read(**changes: Any) -> LumaTask:
    return luma.read_status(response(200, job(**changes)), JOB)


def request(**changes: Any) -> ModifyRequest:
    return ModifyRequest(**{"prompt": "make it snow", "video_url": "https://example.com/a.mp4", **changes})


def body(**changes: Any) -> dict[str, Any]:
    return dict(luma.submission(request(**changes), "our-name").json or {})


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


# -- prices ----------------------------------------------------------------------------------------------------


def test_prices_are_those_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "services.md").read_text()
    for seconds in (5, 10):
        row = [f"{luma.price(seconds, {'video': {'resolution': resolution}}):.2f}" for resolution in luma.RESOLUTIONS]
        assert f"| {seconds} s | {' | '.join(row)} |" in page


@pytest.mark.parametrize(
    ("seconds", "video", "dollars"),
    [
        (0.5, {}, 1.08),
        (5, {}, 1.08),
        (5.1, {}, 2.16),
        (10.1, {}, 4.32),
        (18, {"resolution": "1080p"}, 8.64),
        (10, {"hdr": True}, 4.32),
        (10, {"hdr": True, "exr_export": True}, 6.48),
        (18.1, {}, None),
        (5, {"resolution": "8k"}, None),
        (5, {"resolution": ["720p"]}, None),
        (5, "720p", None),
    ],
)
def test_price_depends_on_length_and_options(seconds, video, dollars):
    price = luma.price(seconds, {"video": video})
    assert price == (None if dollars is None else pytest.approx(dollars))


def test_price_of_another_model_is_unknown():
    assert luma.price(5, {"model": "ray-4"}) is None
    assert luma.price(5, None) == luma.price(5, {"model": luma.DEFAULT_MODEL}) == 1.08


# -- submitting -------------------------------------------------------------------------------------------------


def test_submission_lets_the_model_choose_its_controls():
    assert body() == {
        "model": "ray-3.2",
        "type": "video_edit",
        "prompt": "make it snow",
        "source": {"url": "https://example.com/a.mp4", "media_type": "video/mp4"},
        "video": {"edit": {"auto_controls": True}},
    }


def test_submission_carries_our_name_for_the_support():
    assert luma.submission(request(), "our-name").headers == {"X-Request-Id": "our-name"}


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("a.mov?x=1", "video/quicktime"), ("a.WEBM", "video/webm"), ("a%2Emov", "video/quicktime"), ("a", "video/mp4")],
)
def test_media_type_follows_the_extension(name, media_type):
    assert body(video_url=f"https://example.com/{name}")["source"]["media_type"] == media_type


def test_result_of_another_job_can_be_the_source():
    luma.check(request(video_url=f"luma-job:{JOB}"), is_public=True)
    assert body(video_url=f"luma-job:{JOB}")["source"] == {"generation_id": JOB}


def test_options_are_merged_into_the_request():
    options = {"model": "ray-9", "user_id": "af", "video": {"resolution": "1080p", "edit": {"strength": "flex_2"}}}
    sent = body(options=options)
    assert (sent["model"], sent["user_id"]) == ("ray-9", "af")
    assert sent["video"] == {"resolution": "1080p", "edit": {"strength": "flex_2"}}


def test_keyframes_alone_keep_automatic_controls():
    edit = {"keyframes": [{"url": "https://example.com/k.png"}], "keyframe_indexes": [3]}
    assert body(options={"video": {"edit": edit}})["video"]["edit"] == {"auto_controls": True, **edit}


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "another"},
        {"source": {"url": "https://example.com/b.mp4"}},
        {"type": "image"},
        {"duration": 5},
        {"video": {"aspect_ratio": "16:9"}},
        {"video": "1080p"},
        {"video": {"edit": None}},
        {"video": {"resolution": "4k"}},
        {"video": {"hdr": True, "resolution": "540p"}},
        {"video": {"exr_export": True}},
        {"video": {"edit": {"strength": "flex_4"}}},
        {"video": {"edit": {"strength": "flex_2", "auto_controls": True}}},
        {"video": {"edit": {"auto_controls": False}}},
        {"video": {"edit": {"keyframes": [{}], "keyframe_indexes": [1, 2]}}},
        {"video": {"edit": {"keyframes": [{}, {}], "keyframe_indexes": [1, 1]}}},
        {"video": {"edit": {"keyframes": [{}], "keyframe_indexes": [-1]}}},
        {"video": {"edit": {"keyframes": [{}] * 65, "keyframe_indexes": list(range(65))}}},
        {"video": {"seed": float("nan")}},
        {"video": {"seed": {1: 2}}},
        ["video"],
        {"note": "half \ud83d"},
        {"user_id": 2**64},
        {"video": {"__classname__": "airflow.sdk.Connection"}},
        {"__var": 1, "__type": "dict"},
        {"note": 10**5000},
        {"note": nested(17)},
        {"note": nested(5000)},
    ],
    ids=lambda options: ascii(options)[:40] if "note" not in options else None,
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(LumaValidationError, match="options"):
        luma.check(request(options=options), is_public=True)


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"prompt": "x" * 6001}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"watermark": "me"}, "watermark"),
        ({"callback_url": "https://example.com/hook"}, "callback_url"),
        ({"video_url": "http://example.com/a.mp4"}, "video_url"),
        ({"video_url": "https://example.com/a.avi"}, "video_url"),
        ({"video_url": "https://10.0.0.1/a.mp4"}, "video_url"),
    ],
)
def test_what_the_service_cannot_do_is_refused(changes, parameter):
    with pytest.raises(LumaValidationError) as caught:
        luma.check(request(**changes), is_public=True)
    assert caught.value.msg.startswith(parameter)


def test_prompt_in_another_language_is_left_to_the_service():
    luma.check(request(prompt="сделай снег"), is_public=True)


def test_accepted_job_is_known_by_its_id():
    assert luma.read_submission(response(201, job(state="queued", output=[]))) == JOB


@pytest.mark.parametrize(
    ("http_status", "kind"),
    [
        (400, LumaValidationError),
        (401, LumaAuthError),
        (402, LumaInsufficientCreditsError),
        (403, LumaFeatureDisabledError),
        (404, LumaNotFoundError),
        (413, LumaValidationError),
        (422, LumaValidationError),
        (429, LumaRateLimitError),
    ],
)
@pytest.mark.parametrize("content", [b'{"detail": "no"}', b"<html>no</html>", b"", b'{"detail": [{"loc": [1]}]}'])
def test_refusal_is_decided_by_the_status_alone(http_status, kind, content):
    with pytest.raises(kind):
        luma.read_submission(Response(http_status, content))


def rate_limited(read=luma.read_submission, detail: str = "no", retry_after: float | None = 60.0, **headers: str):
    named = {f"x-ratelimit-{name}": value for name, value in headers.items()}
    with pytest.raises(LumaRateLimitError) as caught:
        read(response(429, {"detail": detail}, retry_after=retry_after, headers=named))
    return caught.value


def test_refusal_by_the_limit_of_requests_says_how_many_are_allowed_a_minute():
    refusal = rate_limited(retry_after=12.0, limit="30", remaining="0", reset="1800000012")
    assert (refusal.requests_per_minute, refusal.has_too_many_jobs, refusal.retry_after) == (30, False, 12.0)
    assert refusal.msg == "limit of 30 requests a minute reached: no"


def test_refusal_by_the_limit_of_jobs_has_none_of_its_headers():
    refusal = rate_limited()
    assert (refusal.requests_per_minute, refusal.has_too_many_jobs, refusal.retry_after) == (None, True, 60.0)
    assert refusal.msg == "limit of jobs at a time reached: no"


def test_refusal_with_requests_remaining_is_by_the_limit_of_jobs():
    refusal = rate_limited(limit="30", remaining="19", reset="1800000012")
    assert (refusal.requests_per_minute, refusal.has_too_many_jobs) == (None, True)


@pytest.mark.parametrize(("reset", "expected"), [("7", 7.0), ("1800000012", 60.0), ("-3", 60.0), ("soon", 60.0)])
def test_refusal_by_the_limit_of_requests_without_retry_after_lasts_until_the_reset_and_at_most_a_minute(
    reset, expected
):
    assert rate_limited(retry_after=None, limit="30", reset=reset).retry_after == expected


@pytest.mark.parametrize("limit", ["0", "-1", "6001", "1e3", "30, 30;w=60", "9" * 400, "", "NaN"])
def test_limit_of_requests_that_cannot_be_is_not_believed(limit):
    refusal = rate_limited(limit=limit, remaining="0", reset="1800000012")
    assert (refusal.requests_per_minute, refusal.has_too_many_jobs) == (None, False)
    assert refusal.msg == "limit of requests reached: no"


def test_edge_that_refuses_a_submission_names_no_limit():
    with pytest.raises(LumaRateLimitError) as caught:
        luma.read_submission(Response(429, b"error code: 1015", retry_after=7.0))
    assert (caught.value.requests_per_minute, caught.value.has_too_many_jobs) == (None, False)


def test_refused_status_check_is_not_about_the_limit_of_jobs():
    refusal = rate_limited(lambda response: luma.read_status(response, JOB))
    assert (refusal.has_too_many_jobs, refusal.msg, refusal.retry_after) == (False, "no", 60.0)


@pytest.mark.parametrize("http_status", [200, 201, 202, 302, 405, 408, 409, 410, 418, 500, 502, 503, 504, 520])
@pytest.mark.parametrize(
    "content", [b'{"detail": "busy"}', b"<html>source</html>", b"", b'{"id": 7}', b'{"id": "../a"}']
)
def test_anything_else_may_have_been_accepted(http_status, content):
    with pytest.raises(LumaSubmissionUnknownError):
        luma.read_submission(Response(http_status, content))


@pytest.mark.parametrize("http_status", [502, 503])
def test_source_that_the_service_cannot_fetch_is_a_refusal(http_status):
    with pytest.raises(LumaUnavailableError, match="source"):
        luma.read_submission(response(http_status, {"detail": "Could not fetch source url"}))


@pytest.mark.parametrize("http_status", [502, 503])
@pytest.mark.parametrize(
    "document",
    [
        {"detail": "Insufficient resources"},
        {"detail": "Could not fetch a resource"},
        {"detail": "The source of this error is unknown"},
        {"detail": [{"loc": ["body", "source"], "msg": "timed out"}]},
        {"id": JOB, "detail": "Could not fetch the source yet"},
    ],
    ids=repr,
)
def test_other_words_of_an_unavailable_service_leave_the_outcome_open(http_status, document):
    with pytest.raises(LumaSubmissionUnknownError):
        luma.read_submission(response(http_status, document))


def test_unknown_outcome_names_the_request_and_its_time():
    told = luma.unknown_outcome_remedy("our-name", datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp())
    assert "X-Request-Id our-name, sent at 2026-11-28 12:00:00 UTC" in told


def test_validation_of_a_framework_is_readable():
    detail = [{"loc": ["body", "video", "resolution"], "msg": "Input should be '360p'", "type": "enum"}]
    with pytest.raises(LumaValidationError, match=r"body\.video\.resolution: Input should be '360p'"):
        luma.read_submission(response(422, {"detail": detail}))


# -- status -----------------------------------------------------------------------------------------------------


def test_completed_job_lists_its_video():
    task = read()
    assert (task.status, task.result_urls, task.service) == (LumaTaskStatus.SUCCESS, (RESULT,), "luma")
    assert task.created_at == datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert task.completed_at is None


def test_result_names_the_service():
    assert read().as_dict()["service"] == "luma"


def test_only_the_video_of_the_output_counts():
    output = [
        {"type": "exr", "url": "https://example.com/x"},
        None,
        {"type": "video"},
        {"type": "video", "url": RESULT},
    ]
    assert read(output=output).result_urls == (RESULT,)


@pytest.mark.parametrize("state", ["queued", "processing", "paused", ""])
def test_other_states_keep_the_wait(state):
    for output in ([], None):
        assert not read(state=state, output=output).is_finished


@pytest.mark.parametrize("state", ["queued", "processing"])
def test_documented_state_is_not_reported_as_undocumented(state):
    assert read(state=state, output=None).status is LumaTaskStatus.GENERATING


def test_unknown_state_has_a_name_for_the_log():
    assert read(state="paused").status.name == "UNDOCUMENTED_paused"


@pytest.mark.parametrize("code", luma.FAILURES)
def test_failure_tells_reason_code_and_charge(code):
    failure = read(state="failed", output=[], failure_reason="no luck", failure_code=code).failure()
    assert f"no luck ({code}: {luma.FAILURES[code].advice})" in failure.msg
    assert isinstance(failure, LumaRequestFailedError) is luma.FAILURES[code].is_request_at_fault


@pytest.mark.parametrize("code", [None, "brand_new", 7])
def test_failure_of_an_unknown_kind_may_be_tried_again(code):
    failure = read(state="failed", failure_reason=None, failure_code=code).failure()
    assert type(failure) is LumaGenerationError


@pytest.mark.parametrize("changes", [{"id": None}, {"id": "another"}, {"state": None}, {"state": 4}])
def test_response_that_does_not_name_the_job_ends_no_wait(changes):
    with pytest.raises(LumaUnavailableError, match="does not show the job"):
        read(**changes)


@pytest.mark.parametrize(
    ("http_status", "kind"),
    [(401, LumaAuthError), (404, LumaNotFoundError), (429, LumaRateLimitError), (403, LumaUnavailableError)],
)
def test_refused_status_check(http_status, kind):
    with pytest.raises(LumaError) as caught:
        luma.read_status(response(http_status, {"detail": "no"}, retry_after=7.0), JOB)
    assert type(caught.value) is kind
    assert (caught.value.retry_after, caught.value.luma_task_id) == (7.0, JOB)


@pytest.mark.parametrize("http_status", [401, 404])
def test_page_of_an_edge_ends_no_wait(http_status):
    with pytest.raises(LumaUnavailableError):
        luma.read_status(Response(http_status, b"<html>not here</html>"), JOB)


@pytest.mark.parametrize("luma_task_id", ["../files", "a/b", "a?b", "", "x" * 129, "a\n"])
def test_id_that_would_lead_elsewhere_is_not_asked_for(luma_task_id):
    with pytest.raises(LumaNotFoundError):
        luma.status(luma_task_id)


# -- other calls ------------------------------------------------------------------------------------------------


def test_liveness_is_a_free_list_of_files():
    asked = luma.liveness()
    assert (asked.method, asked.path, asked.query) == ("GET", "/v1/files", {"limit": "1"})
    luma.read_liveness(response(200, {"data": [], "has_more": False}))


@pytest.mark.parametrize(("http_status", "kind"), [(401, LumaAuthError), (404, LumaNotFoundError), (200, LumaError)])
def test_liveness_that_shows_nothing_is_an_error(http_status, kind):
    with pytest.raises(kind):
        luma.read_liveness(Response(http_status, b"<html></html>"))


def test_balance_is_not_told():
    with pytest.raises(LumaFeatureDisabledError, match="balance"):
        luma.balance()


def test_result_is_renewed_by_asking_for_its_job():
    assert luma.renewal(RESULT, JOB) == luma.status(JOB)
    fresh = RESULT.replace("abc", "def")
    assert luma.read_renewal(response(200, job(output=[{"type": "video", "url": fresh}])), RESULT, JOB) == fresh


@pytest.mark.parametrize(
    ("paths", "renewed"),
    [(["/o.mp4"], 0), (["/moved.mp4"], 0), (["/2.mp4", "/o.mp4"], 1), (["/1.mp4", "/2.mp4"], None), ([], None)],
    ids=str,
)
def test_renewed_address_is_that_of_the_same_video_or_of_the_only_one(paths, renewed):
    urls = [f"https://s3.example.com{path}?X-Amz-Signature=new" for path in paths]
    answer = response(200, job(output=[{"type": "video", "url": url} for url in urls]))
    old = "https://s3.example.com/o.mp4?X-Amz-Signature=old"
    if renewed is None:
        with pytest.raises(LumaNotFoundError, match="no longer lists this video"):
            luma.read_renewal(answer, old, JOB)
    else:
        assert luma.read_renewal(answer, old, JOB) == urls[renewed]


def test_invalid_address_in_a_job_does_not_keep_another_result_from_being_renewed():
    output = [{"type": "video", "url": url} for url in ("https://[", "https://[x]/o.mp4", RESULT)]
    assert luma.read_renewal(response(200, job(output=output)), RESULT, JOB) == RESULT
    with pytest.raises(LumaNotFoundError):
        luma.read_renewal(response(200, job(output=output[:2])), RESULT, JOB)


def test_result_without_its_job_cannot_be_renewed():
    with pytest.raises(LumaValidationError, match=r"urls=modify\.output"):
        luma.renewal(RESULT, None)


@given(responses | generations(JOB))
def test_any_response_becomes_a_value_or_a_typed_error(answer):
    for reader in (luma.read_submission, lambda got: luma.read_status(got, JOB), luma.read_liveness):
        try:
            value = reader(answer)
        except LumaError as error:
            msgspec.json.encode(error.as_dict())
        else:
            msgspec.json.encode(value.as_dict() if isinstance(value, LumaTask) else value)


# -- uploads ----------------------------------------------------------------------------------------------------

FILE = "3f1c7a90-8d2b-4b7e-a5c1-6f0e9d8b7a65"
PUT = "https://s3.example.com/inputs/f?X-Amz-Signature=0123456789abcdef"
NOW = datetime(2026, 11, 28, 12, 0, 0, 5, tzinfo=UTC)


def announced(**changes: Any) -> Response:
    upload = {"method": "PUT", "url": PUT, "headers": {"Content-Type": "video/mp4"}, "expires_at": None}
    return response(201, {"id": FILE, "state": "pending", "file": {}, "upload": {**upload, **changes}})


def file(state: str, **changes: Any) -> Response:
    return response(200, {"id": FILE, "state": state, "failure_reason": None, **changes})


STORED, COMPLETED = Response(200, b""), Response(200, b"")


def upload(*answers: Response | LumaError, name: str = "0123.mp4") -> tuple[LumaUpload, list[UploadStep]]:
    """Take the steps of an upload, each with the next answer, or the error that there was none."""
    generator, steps = luma.upload(name, 1000, NOW), []
    steps.append(next(generator))
    for answer in answers[:-1]:
        steps.append(generator.throw(answer) if isinstance(answer, LumaError) else generator.send(answer))
    with pytest.raises(StopIteration) as ended:
        generator.send(answers[-1])
    return ended.value.value, steps


def test_file_is_announced_put_completed_and_waited_for():
    uploaded, steps = upload(announced(), STORED, COMPLETED, file("pending"), file("ready"))
    announcement = {
        "mime_type": "video/mp4",
        "size_bytes": 1000,
        "purpose": "input",
        "filename": "0123.mp4",
        "expires_at": "2026-11-30T12:00:00Z",
    }
    check = Request("GET", f"/v1/files/{FILE}")
    assert steps == [
        Call(Request("POST", "/v1/files", json=announcement)),
        SendFile(PUT, {"Content-Type": "video/mp4"}),
        Call(Request("POST", f"/v1/files/{FILE}/complete")),
        Call(check),
        Call(check, 1.0),
    ]
    assert uploaded == LumaUpload(f"luma-file:{FILE}", 1000, datetime(2026, 11, 30, 12, tzinfo=UTC))


def test_file_is_kept_as_long_as_the_service_says():
    uploaded, _ = upload(announced(), STORED, COMPLETED, file("ready", expires_at="2026-12-24T20:00:00+02:00"))
    assert uploaded.as_dict()["expires_at"] == "2026-12-24T18:00:00+00:00"


@pytest.mark.parametrize("expires_at", [None, "soon", 5, [], "0001-01-01T00:00:00+23:59"])
def test_file_is_kept_as_long_as_asked_for_if_the_service_does_not_say(expires_at):
    uploaded, _ = upload(announced(), STORED, COMPLETED, file("ready", expires_at=expires_at))
    assert uploaded.expires_at == datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_media_type_of_a_file_follows_its_extension():
    _, steps = upload(announced(), STORED, COMPLETED, file("ready"), name="0123.mov")
    assert steps[0].request.json["mime_type"] == "video/quicktime"


def test_headers_are_those_that_the_service_names_without_credentials_and_what_the_client_sets():
    named = {
        "x-amz-meta-a": "1",
        "Authorization": "Bearer x",
        "Host": "internal",
        "content-length": "5",
        "Cookie": "a=b",
        "Transfer-Encoding": "chunked",
        "Proxy-Authorization": "x",
    }
    _, steps = upload(announced(headers=named), STORED, COMPLETED, file("ready"))
    assert steps[1].headers == {"x-amz-meta-a": "1"}


@pytest.mark.parametrize(
    "changes",
    [
        {"url": None},
        {"url": ""},
        {"url": "ftp://s3.example.com/x"},
        {"url": "file:///etc/passwd"},
        {"url": "https://s3.example.com/a b"},
        {"url": "https://s3.example.com/\r\nHost: x"},
        {"url": "https://s3.example.com/é"},
        {"url": "https://s3.example.com/" + "a" * 9000},
        {"method": "POST"},
        {"headers": ["a"]},
        {"headers": "a: b"},
        {"headers": {"a": 1}},
        {"headers": {"a": None}},
        {"headers": {"a": "b\r\nHost: x"}},
        {"headers": {"a\r\nHost": "x"}},
        {"headers": {"a b": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"a": "\x00"}},
        {"headers": {"a": "x" * 5000}},
        {"headers": {f"x-{number}": "" for number in range(40)}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_answer_that_does_not_say_where_to_put_a_file_is_an_error_without_its_words(changes):
    with pytest.raises(LumaUnavailableError, match="no usable address") as caught:
        upload(announced(**changes), STORED)
    assert "example.com" not in str(caught.value)


@pytest.mark.parametrize("file_id", [None, "", "../generations", "a?b", "x" * 200])
def test_id_that_fits_into_no_path_is_an_error(file_id):
    document = json.loads(announced().body)
    with pytest.raises(LumaUnavailableError):
        upload(response(201, {**document, "id": file_id}), STORED)


@pytest.mark.parametrize(
    ("http_status", "error"),
    [
        (400, LumaValidationError),
        (401, LumaAuthError),
        (402, LumaInsufficientCreditsError),
        (413, LumaValidationError),
        (422, LumaValidationError),
        (429, LumaRateLimitError),
        (500, LumaUnavailableError),
    ],
)
@pytest.mark.parametrize("answers", [(), (announced(), STORED)], ids=["announcing", "completing"])
def test_refusal_of_a_file_depends_on_the_status(http_status, error, answers):
    with pytest.raises(error, match="no such thing"):
        upload(*answers, response(http_status, {"detail": "no such thing"}), STORED)


@pytest.mark.parametrize("http_status", [307, 400, 403, 500, 503])
def test_storage_that_does_not_take_the_file_is_a_passing_error_without_the_signature(http_status):
    said = b"<Error><Code>SignatureDoesNotMatch</Code><SignatureProvided>0123456789abcdef</SignatureProvided></Error>"
    with pytest.raises(LumaUnavailableError, match=rf"HTTP {http_status} \(SignatureDoesNotMatch\)") as caught:
        upload(announced(), Response(http_status, said, location=PUT), STORED)
    assert "0123456789abcdef" not in str(caught.value)


def test_file_that_is_refused_is_a_permanent_error_in_the_words_of_the_service():
    with pytest.raises(LumaValidationError, match="Luma refused the uploaded file: contains a celebrity"):
        upload(announced(), STORED, COMPLETED, file("failed", failure_reason="contains a celebrity"), STORED)


@pytest.mark.parametrize(
    "trouble",
    [
        LumaUnavailableError(None, "did not answer"),
        response(500, {"detail": "busy"}),
        response(404, {"detail": "not found"}),
        response(200, {"id": "another", "state": "ready"}),
        response(200, {"id": FILE}),
        Response(200, b"<html>"),
        file("scanning"),
    ],
    ids=lambda trouble: str(trouble)[:40],
)
def test_check_that_fails_is_repeated(trouble):
    uploaded, _ = upload(announced(), STORED, COMPLETED, trouble, file("ready"))
    assert uploaded.url == f"luma-file:{FILE}"


def test_checks_become_rarer_and_honour_retry_after():
    limited = response(429, {"detail": "slow down"}, retry_after=60.0)
    checks = [file("pending")] * 5 + [limited, file("pending"), file("ready")]
    _, steps = upload(announced(), STORED, COMPLETED, *checks)
    assert [step.delay for step in steps[3:]] == [0, 1, 2, 4, 8, 15, 60, 15]


def test_wait_for_a_file_ends_after_ten_minutes_with_an_error_that_starts_nothing_anew():
    generator = luma.upload("0123.mp4", 1000, NOW)
    next(generator)
    for answer in (announced(), STORED, COMPLETED):
        generator.send(answer)
    delays: list[float] = []

    def check_until_it_ends() -> None:
        while True:
            delays.append(generator.send(file("pending")).delay)

    with pytest.raises(LumaError, match="not ready after 600 s: its state is 'pending'") as caught:
        check_until_it_ends()
    assert not isinstance(caught.value, (*TRANSIENT, *PERMANENT))
    assert 570 < sum(delays) <= 600


@given(st.lists(responses, min_size=1, max_size=4))
def test_upload_takes_whatever_comes(answers):
    generator = luma.upload("0123.mp4", 1000, NOW)
    next(generator)
    try:
        for answer in answers:
            generator.send(answer)
    except LumaError as error:
        msgspec.msgpack.encode(error.as_dict())


# -- files as the source of a job -------------------------------------------------------------------------------


def test_uploaded_file_is_named_by_its_id():
    assert body(video_url=f"luma-file:{FILE}")["source"] == {"file_id": FILE}
    luma.check(request(video_url=f"luma-file:{FILE}"), is_public=True)


@pytest.mark.parametrize("video_url", ["luma-file:", "luma-file:a/b", "luma-file:a b"])
def test_address_that_names_no_uploaded_file_is_refused(video_url):
    with pytest.raises(LumaValidationError, match="video_url"):
        luma.check(request(video_url=video_url), is_public=True)


def test_uploaded_file_is_refused_by_another_service():
    with pytest.raises(LumaValidationError, match="at Luma's own API, but the connection leads to another"):
        kie.check(request(video_url=f"luma-file:{FILE}"), is_public=True)

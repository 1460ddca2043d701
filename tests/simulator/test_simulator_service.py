# SPDX-License-Identifier: Apache-2.0
"""The documented service: keys, forms, credits, limits, records, and both ways of refusing."""

from __future__ import annotations

import json
import re
import time

import pytest

SUBMIT = "/api/v1/modify/generate"
STATUS = "/api/v1/modify/record-info"


@pytest.mark.parametrize(
    "authorization", [None, "", "simulator-key", "Bearer wrong", "Bearer simulator-keyx", "Bearer é"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", SUBMIT), ("GET", STATUS), ("GET", "/api/v1/chat/credit")])
def test_no_key_no_answer(client, method, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    answer = client.plain.request(method, client.luma.base_url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == 401
    assert answer.json()["data"] is None


def test_a_job_from_submit_to_success(client):
    task_id = client.submitted(watermark="mine")
    assert re.fullmatch("[0-9a-f]{32}", task_id)
    data = client.finished(task_id)
    assert set(data) == {
        "taskId", "paramJson", "createTime", "completeTime", "response", "successFlag", "errorCode", "errorMessage",
    }  # fmt: skip
    assert data["taskId"] == task_id
    assert data["successFlag"] == 1
    assert data["errorCode"] is data["errorMessage"] is None
    assert set(data["response"]) == {"taskId", "originUrls", "resultUrls"}
    assert data["response"]["originUrls"] == [client.luma.sample_url]
    assert json.loads(data["paramJson"]) == {
        "prompt": "Make it snow", "videoUrl": client.luma.sample_url, "waterMark": "mine",
    }  # fmt: skip
    assert data["createTime"] <= data["completeTime"] <= time.time() * 1000
    assert client.luma.accepted == 1
    job = client.luma.jobs[0]
    assert (job.task_id, job.flag, job.complete_time) == (task_id, 1, data["completeTime"])


def test_a_running_job_has_neither_response_nor_end(start):
    client = start(processing_seconds=60)
    data = client.status(client.submitted()).json()["data"]
    assert data["successFlag"] == 0
    assert data["response"] is data["completeTime"] is None


def test_a_job_takes_its_processing_time(start):
    client = start(processing_seconds=0.7)
    data = client.finished(client.submitted())
    assert 700 <= data["completeTime"] - data["createTime"] < 5000


@pytest.mark.parametrize("key", ["prompt", "videoUrl"])
@pytest.mark.parametrize("value", [None, "", "  ", 7, ["x"]])
def test_required_texts(client, key, value):
    answer = client.submit(**{key: value})
    assert answer.status_code == 422
    assert key in answer.json()["msg"]
    assert client.luma.accepted == 0


@pytest.mark.parametrize("key", ["callBackUrl", "watermark"])
def test_optional_keys_may_be_missing_but_not_null(client, key):
    answer = client.submit(**{key: None})
    assert answer.status_code == 422
    assert key in answer.json()["msg"]


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'"text"', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 99999])
def test_a_body_that_is_no_object(client, body):
    assert client.post(SUBMIT, content=body).json()["code"] == 422


@pytest.mark.parametrize("prompt", ["Сделай снег", "下雪", "snow और", "χιόνι"])
def test_a_prompt_that_is_not_english(client, prompt):
    assert client.submit(prompt=prompt).json()["code"] == 422


def test_accents_digits_and_symbols_are_english_enough(client):
    assert client.submit(prompt="A café, 5°C — “naïve” ❄ µ").json()["code"] == 200


def test_credits_are_taken_and_run_out(start):
    client = start(credits=25, cost=10)
    client.submitted()
    client.submitted()
    assert client.get("/api/v1/chat/credit").json()["data"] == 5
    answer = client.submit()
    assert (answer.status_code, answer.json()["code"]) == (402, 402)
    client.luma.configure(credits=10)
    client.submitted()
    assert client.luma.accepted == 3


def test_submissions_over_the_rate_are_not_queued(start):
    client = start(submissions_per_10_seconds=2, retry_after=7)
    client.submitted()
    client.submitted()
    answer = client.submit()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert client.luma.accepted == 2
    assert client.luma.credits == 980


def test_too_many_running(start):
    client = start(max_running=1, processing_seconds=60)
    client.submitted()
    answer = client.submit()
    assert answer.status_code == 429
    assert "Retry-After" not in answer.headers


def test_status_calls_are_limited_by_the_second(start, until):
    client = start(status_calls_per_second=3)
    task_id = client.submitted()
    codes = [client.status(task_id).json()["code"] for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    until(lambda: client.status(task_id).json()["code"] == 200)


def test_refusing_by_turns(start):
    client = start(refusal_style="alternate")
    answers = [client.status("f" * 32) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [404, 200, 404, 200]
    assert {answer.json()["code"] for answer in answers} == {404}


def test_refusing_in_the_body(start):
    client = start(refusal_style="body", retry_after=7, submissions_per_10_seconds=0)
    answer = client.submit()
    assert (answer.status_code, answer.json()["code"]) == (200, 429)
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/modify/generate"])
def test_unknown_endpoint(client, path):
    assert client.get(path).json() == {"code": 404, "msg": "No such endpoint.", "data": None}


def test_a_status_call_without_an_id(client):
    assert client.get(STATUS).json()["code"] == 422


def test_records_are_forgotten(start):
    client = start(record_ttl=0)
    assert client.status(client.submitted()).json()["code"] == 404


@pytest.mark.parametrize(
    ("outcome", "flag", "code"), [("create_failed", 2, 500), ("generate_failed", 3, 501), ("generate_failed", 3, 77)]
)
def test_jobs_that_fail(start, outcome, flag, code):
    client = start(outcome=outcome, error_message="Too dark.", error_code=code if code == 77 else None)
    data = client.finished(client.submitted())
    assert (data["successFlag"], data["errorCode"], data["errorMessage"]) == (flag, code, "Too dark.")
    assert data["response"] is None
    assert data["completeTime"] is not None


def test_callback_failed_has_the_video_all_the_same(start):
    client = start(outcome="callback_failed")
    data = client.finished(client.submitted())
    assert data["successFlag"] == 4
    assert client.plain.get(data["response"]["resultUrls"][0]).status_code == 200


def test_a_success_without_urls(start):
    client = start(outcome="no_urls")
    data = client.finished(client.submitted())
    assert data["successFlag"] == 1
    assert data["response"] == {"taskId": data["taskId"], "originUrls": [], "resultUrls": []}


def test_a_seed_makes_ids_repeatable(start):
    assert start(seed=5).submitted() == start(seed=5).submitted() != start(seed=6).submitted()

# SPDX-License-Identifier: Apache-2.0
"""Specification of the simulated API: keys, validation, credits, rate limits, records and refusal styles."""

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
def test_api_calls_with_a_missing_or_wrong_key_are_refused_with_401(client, method, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    response = client.anonymous.request(method, client.luma.base_url + path, headers=headers)
    assert response.status_code == 401
    assert response.json()["code"] == 401
    assert response.json()["data"] is None


def test_a_successful_job_has_the_documented_record(client):
    task_id = client.submit_and_get_id(watermark="mine")
    assert re.fullmatch("[0-9a-f]{32}", task_id)
    data = client.wait_for_end(task_id)
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


def test_a_running_job_has_neither_response_nor_complete_time(make_client):
    client = make_client(processing_seconds=60)
    data = client.status(client.submit_and_get_id()).json()["data"]
    assert data["successFlag"] == 0
    assert data["response"] is data["completeTime"] is None


def test_a_job_ends_after_its_processing_time(make_client):
    client = make_client(processing_seconds=0.7)
    data = client.wait_for_end(client.submit_and_get_id())
    assert data["completeTime"] - data["createTime"] >= 700


def test_end_jobs_ends_those_that_run_and_none_that_come_later(make_client):
    client = make_client(processing_seconds=600)
    running = [client.submit_and_get_id() for _ in range(2)]
    client.luma.end_jobs()
    assert [client.wait_for_end(task_id)["successFlag"] for task_id in running] == [1, 1]
    assert client.status(client.submit_and_get_id()).json()["data"]["successFlag"] == 0


@pytest.mark.parametrize("key", ["prompt", "videoUrl"])
@pytest.mark.parametrize("value", [None, "", "  ", 7, ["x"]])
def test_a_submission_without_a_required_text_is_refused_with_422(client, key, value):
    response = client.submit(**{key: value})
    assert response.status_code == 422
    assert key in response.json()["msg"]
    assert client.luma.accepted == 0


@pytest.mark.parametrize("key", ["callBackUrl", "watermark"])
def test_an_optional_key_that_is_null_is_refused_with_422(client, key):
    response = client.submit(**{key: None})
    assert response.status_code == 422
    assert key in response.json()["msg"]


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'"text"', b"\xff", b'{"prompt": "\\ud800"}', b"[" * 99999])
def test_a_submission_body_that_is_no_json_object_is_refused_with_422(client, body):
    assert client.post(SUBMIT, content=body).json()["code"] == 422


@pytest.mark.parametrize("prompt", ["Сделай снег", "下雪", "snow और", "χιόνι"])
def test_a_prompt_that_is_not_english_is_refused_with_422(client, prompt):
    assert client.submit(prompt=prompt).json()["code"] == 422


def test_a_prompt_may_hold_accents_digits_and_symbols(client):
    assert client.submit(prompt="A café, 5°C — “naïve” ❄ µ").json()["code"] == 200


def test_each_job_costs_credits_and_a_low_balance_is_refused_with_402(make_client):
    client = make_client(credits=25, cost=10)
    client.submit_and_get_id()
    client.submit_and_get_id()
    assert client.get("/api/v1/chat/credit").json()["data"] == 5
    response = client.submit()
    assert (response.status_code, response.json()["code"]) == (402, 402)
    client.luma.configure(credits=10)
    client.submit_and_get_id()
    assert client.luma.accepted == 3


def test_submissions_above_the_rate_limit_are_refused_with_429_and_not_billed(make_client):
    client = make_client(submissions_per_10_seconds=2, retry_after=7)
    client.submit_and_get_id()
    client.submit_and_get_id()
    response = client.submit()
    assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
    assert client.luma.accepted == 2
    assert client.luma.credits == 980


def test_submissions_above_the_limit_of_running_jobs_are_refused_with_429(make_client):
    client = make_client(max_running=1, processing_seconds=60)
    client.submit_and_get_id()
    response = client.submit()
    assert response.status_code == 429
    assert "Retry-After" not in response.headers


def test_status_calls_above_the_limit_per_second_are_refused_with_429(make_client, wait_until):
    client = make_client(status_calls_per_second=3)
    task_id = client.submit_and_get_id()
    codes = [client.status(task_id).json()["code"] for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    wait_until(lambda: client.status(task_id).json()["code"] == 200)


def test_refusal_style_alternate_refuses_alternately_by_http_status_and_in_the_body(make_client):
    client = make_client(refusal_style="alternate")
    responses = [client.status("f" * 32) for _ in range(4)]
    assert [response.status_code for response in responses] == [404, 200, 404, 200]
    assert {response.json()["code"] for response in responses} == {404}


def test_refusal_style_body_refuses_with_http_200_and_no_retry_after(make_client):
    client = make_client(refusal_style="body", retry_after=7, submissions_per_10_seconds=0)
    response = client.submit()
    assert (response.status_code, response.json()["code"]) == (200, 429)
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/modify/generate"])
def test_an_unknown_endpoint_is_refused_with_404(client, path):
    assert client.get(path).json() == {"code": 404, "msg": "No such endpoint.", "data": None}


def test_a_status_call_without_a_task_id_is_refused_with_422(client):
    assert client.get(STATUS).json()["code"] == 422


def test_records_expire_after_record_ttl(make_client):
    client = make_client(record_ttl=0)
    assert client.status(client.submit_and_get_id()).json()["code"] == 404


@pytest.mark.parametrize(
    ("outcome", "flag", "code"), [("create_failed", 2, 500), ("generate_failed", 3, 501), ("generate_failed", 3, 77)]
)
def test_a_failed_job_has_a_flag_an_error_and_no_response(make_client, outcome, flag, code):
    client = make_client(outcome=outcome, error_message="Too dark.", error_code=code if code == 77 else None)
    data = client.wait_for_end(client.submit_and_get_id())
    assert (data["successFlag"], data["errorCode"], data["errorMessage"]) == (flag, code, "Too dark.")
    assert data["response"] is None
    assert data["completeTime"] is not None


def test_a_job_with_outcome_callback_failed_still_has_its_video(make_client):
    client = make_client(outcome="callback_failed")
    data = client.wait_for_end(client.submit_and_get_id())
    assert data["successFlag"] == 4
    assert client.anonymous.get(data["response"]["resultUrls"][0]).status_code == 200


def test_a_job_with_outcome_no_urls_succeeds_with_empty_url_lists(make_client):
    client = make_client(outcome="no_urls")
    data = client.wait_for_end(client.submit_and_get_id())
    assert data["successFlag"] == 1
    assert data["response"] == {"taskId": data["taskId"], "originUrls": [], "resultUrls": []}


def test_a_seed_makes_task_ids_repeatable(make_client):
    assert (
        make_client(seed=5).submit_and_get_id()
        == make_client(seed=5).submit_and_get_id()
        != make_client(seed=6).submit_and_get_id()
    )

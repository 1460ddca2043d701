# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what is posted, signed or not, how often it is tried, and what becomes of the job."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time

import pytest


@pytest.mark.parametrize(
    ("outcome", "code", "flag"), [("success", 200, 1), ("create_failed", 500, 2), ("generate_failed", 501, 3)]
)
def test_a_callback_when_the_job_ends(start, web, until, outcome, code, flag):
    client = start(outcome=outcome, error_message="Too dark.")
    task_id = client.submitted(callBackUrl=web.url("/hook"), watermark="mine")
    until(lambda: web.posts)
    headers, body = web.posts[0]
    content = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert not {"Authorization", "X-Webhook-Signature", "X-Webhook-Timestamp"} & set(headers)
    assert content["code"] == code
    assert content["msg"] == "Too dark." or flag == 1
    assert content["data"]["taskId"] == task_id
    assert json.loads(content["data"]["promptJson"])["callBackUrl"] == web.url("/hook")
    record = client.finished(task_id)
    assert record["successFlag"] == flag
    assert content["data"]["resultUrls"] == (record["response"]["resultUrls"] if flag == 1 else [])


def test_the_signature(start, web, until):
    client = start(webhook_secret="hush")
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    headers, _ = until(lambda: web.posts)[0]
    timestamp = headers["X-Webhook-Timestamp"]
    assert abs(int(timestamp) - time.time()) < 20
    expected = hmac.new(b"hush", f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    assert base64.b64decode(headers["X-Webhook-Signature"]) == expected


def test_three_failures_make_flag_4(client, web, until):
    web.answers = [500, 201, 302]
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    until(lambda: client.status(task_id).json()["data"]["successFlag"] == 4)
    assert len(web.posts) == client.luma.jobs[0].callback_tries == 3
    url = client.status(task_id).json()["data"]["response"]["resultUrls"][0]
    assert client.plain.get(url).status_code == 200


def test_two_failures_do_not(client, web, until):
    web.answers = [500, 500, 200]
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert client.finished(task_id)["successFlag"] == 1


def test_a_failed_job_stays_failed_when_nobody_listens(start, until):
    client = start(outcome="generate_failed")
    task_id = client.submitted(callBackUrl="http://127.0.0.1:1/hook")
    until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert client.finished(task_id)["successFlag"] == 3


def test_duplicates(start, web, until):
    client = start(callback_copies=3)
    client.submitted(callBackUrl=web.url("/hook"))
    until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert len({body for _, body in web.posts}) == 1
    assert len(web.posts) == 3


def test_dropped(start, web):
    client = start(callback_copies=0, callback_early=True)
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    assert client.finished(task_id)["successFlag"] == 1
    assert web.posts == []


def test_delayed(start, web, until):
    client = start(callback_delay=0.5)
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    ended = client.finished(task_id)["completeTime"]
    until(lambda: web.posts)
    assert time.time() * 1000 - ended >= 500


def test_before_the_submit_answers(start, web):
    client = start(callback_early=True, processing_seconds=0.1)
    task_id = client.submitted(callBackUrl=web.url("/hook"))
    assert json.loads(web.posts[0][1])["data"]["taskId"] == task_id


def test_a_receiver_that_takes_too_long_counts_as_a_failure(start, until):
    client = start(callback_timeout=0.1)
    # Connections are made, since the system takes them in, but nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client.submitted(callBackUrl=f"http://127.0.0.1:{silent.getsockname()[1]}/hook")
        until(lambda: client.luma.jobs[0].flag == 4)
    job = client.luma.jobs[0]
    assert job.callback_tries == 3
    assert time.time() * 1000 - job.complete_time >= 300

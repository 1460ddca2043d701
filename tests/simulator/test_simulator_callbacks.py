# SPDX-License-Identifier: Apache-2.0
"""Specification of callbacks: body, signature, number of attempts, and their effect on the job's flag."""

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
def test_a_callback_with_the_outcome_is_posted_when_the_job_ends(
    make_client, web_server, wait_until, outcome, code, flag
):
    client = make_client(outcome=outcome, error_message="Too dark.")
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"), watermark="mine")
    wait_until(lambda: web_server.posts)
    headers, body = web_server.posts[0]
    content = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert not {"Authorization", "X-Webhook-Signature", "X-Webhook-Timestamp"} & set(headers)
    assert content["code"] == code
    assert content["msg"] == "Too dark." or flag == 1
    assert content["data"]["taskId"] == task_id
    assert json.loads(content["data"]["promptJson"])["callBackUrl"] == web_server.url("/hook")
    record = client.wait_for_end(task_id)
    assert record["successFlag"] == flag
    assert content["data"]["resultUrls"] == (record["response"]["resultUrls"] if flag == 1 else [])


def test_the_callback_signature_is_the_hmac_sha256_of_task_id_and_timestamp(make_client, web_server, wait_until):
    client = make_client(webhook_secret="hush")
    before = int(time.time())
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    headers, _ = wait_until(lambda: web_server.posts)[0]
    timestamp = headers["X-Webhook-Timestamp"]
    assert before <= int(timestamp) <= time.time()
    expected = hmac.new(b"hush", f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    assert base64.b64decode(headers["X-Webhook-Signature"]) == expected


def test_three_failed_callback_attempts_set_flag_4_and_keep_the_video(client, web_server, wait_until):
    web_server.post_statuses = [500, 201, 302]
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    wait_until(lambda: client.status(task_id).json()["data"]["successFlag"] == 4)
    assert len(web_server.posts) == client.luma.jobs[0].callback_tries == 3
    url = client.status(task_id).json()["data"]["response"]["resultUrls"][0]
    assert client.anonymous.get(url).status_code == 200


def test_a_callback_delivered_at_the_third_attempt_keeps_flag_1(client, web_server, wait_until):
    web_server.post_statuses = [500, 500, 200]
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    wait_until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert client.wait_for_end(task_id)["successFlag"] == 1


def test_a_failed_job_keeps_its_flag_when_its_callback_cannot_be_delivered(make_client, wait_until):
    client = make_client(outcome="generate_failed")
    task_id = client.submit_and_get_id(callBackUrl="http://127.0.0.1:1/hook")
    wait_until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert client.wait_for_end(task_id)["successFlag"] == 3


def test_callback_copies_delivers_the_same_callback_that_many_times(make_client, web_server, wait_until):
    client = make_client(callback_copies=3)
    client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    wait_until(lambda: client.luma.jobs[0].callback_tries == 3)
    assert len({body for _, body in web_server.posts}) == 1
    assert len(web_server.posts) == 3


def test_callback_copies_zero_delivers_no_callback_and_the_job_still_succeeds(make_client, web_server):
    client = make_client(callback_copies=0, callback_early=True)
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    assert client.wait_for_end(task_id)["successFlag"] == 1
    assert web_server.posts == []


def test_callback_delay_postpones_the_callback_after_the_end_of_the_job(make_client, web_server, wait_until):
    client = make_client(callback_delay=0.5)
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    ended = client.wait_for_end(task_id)["completeTime"]
    wait_until(lambda: web_server.posts)
    assert time.time() * 1000 - ended >= 500


def test_callback_early_delivers_the_callback_before_the_submit_response(make_client, web_server):
    client = make_client(callback_early=True, processing_seconds=0.1)
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    assert json.loads(web_server.posts[0][1])["data"]["taskId"] == task_id


def test_a_callback_receiver_that_exceeds_the_timeout_counts_as_a_failed_attempt(make_client, wait_until):
    client = make_client(callback_timeout=0.1)
    # The operating system accepts connections to a listening socket, but nothing ever responds on them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client.submit_and_get_id(callBackUrl=f"http://127.0.0.1:{silent.getsockname()[1]}/hook")
        wait_until(lambda: client.luma.jobs[0].flag == 4)
    job = client.luma.jobs[0]
    assert job.callback_tries == 3
    assert time.time() * 1000 - job.complete_time >= 300

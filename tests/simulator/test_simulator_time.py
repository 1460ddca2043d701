# SPDX-License-Identifier: Apache-2.0
"""Specification of the simulator's clock: it can be moved forward, and whatever takes time or expires goes by it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import httpx
import pytest

from airflow_provider_luma.simulator import Settings, Simulator

HOUR, DAY = 3600.0, 86400.0


def test_a_job_whose_time_is_over_has_ended_when_move_time_returns(make_client):
    client = make_client(processing_seconds=300)
    task_id = client.submit_and_get_id()
    client.luma.move_time(299)
    assert client.status(task_id).json()["data"]["successFlag"] == 0
    client.luma.move_time(2)
    data = client.status(task_id).json()["data"]
    assert data["successFlag"] == 1
    assert data["completeTime"] - data["createTime"] >= 300_000


def test_a_job_goes_on_by_itself_after_its_time_was_shortened(make_client):
    client = make_client(processing_seconds=300)
    task_id = client.submit_and_get_id()
    client.luma.move_time(299.5)
    assert client.wait_for_end(task_id)["successFlag"] == 1


def test_a_job_that_is_submitted_after_the_move_takes_its_time(make_client):
    client = make_client(processing_seconds=300)
    client.luma.move_time(HOUR)
    task_id = client.submit_and_get_id()
    assert client.status(task_id).json()["data"]["successFlag"] == 0
    client.luma.move_time(300)
    assert client.status(task_id).json()["data"]["successFlag"] == 1


def test_result_files_records_and_temporary_addresses_of_kie_expire(client):
    task_id = client.submit_and_get_id()
    url = client.wait_for_end(task_id)["response"]["resultUrls"][0]

    def temporary() -> str:
        return client.post("/api/v1/common/download-url", json={"url": url}).json()["data"]

    first = temporary()
    assert client.anonymous.get(first).status_code == 200
    client.luma.move_time(1201)
    assert client.anonymous.get(first).status_code == 404
    assert client.anonymous.get(temporary()).status_code == 200
    client.luma.move_time(14 * DAY)
    assert client.anonymous.get(url).status_code == 404
    assert client.status(task_id).json()["data"]["successFlag"] == 1
    client.luma.move_time(46 * DAY)
    assert client.status(task_id).json()["code"] == 404


def test_a_result_url_of_luma_expires_after_an_hour_and_the_next_status_call_has_another(luma_client):
    generation_id = luma_client.submit_and_get_id()
    url = luma_client.wait_for_end(generation_id)["output"][0]["url"]
    luma_client.luma.move_time(HOUR - 10)
    assert luma_client.anonymous.get(url).status_code == 200
    luma_client.luma.move_time(11)
    response = luma_client.anonymous.get(url)
    assert (response.status_code, "Request has expired" in response.text) == (403, True)
    assert luma_client.anonymous.get(luma_client.status(generation_id).json()["output"][0]["url"]).status_code == 200


def test_a_job_of_luma_is_queued_then_processing_then_given_up_after_an_hour(make_luma):
    client = make_luma(queued_seconds=5, processing_seconds=4000)
    generation_id = client.submit_and_get_id()
    states = []
    for seconds in (0, 6, HOUR):
        client.luma.move_time(seconds)
        states.append(client.status(generation_id).json()["state"])
    assert states == ["queued", "processing", "failed"]
    assert client.status(generation_id).json()["failure_code"] == "generation_failed"


def test_files_of_luma_are_ingested_and_expire_and_so_do_their_addresses(make_luma):
    client = make_luma(ingest_seconds=60)
    expires_at = datetime.fromtimestamp(time.time() + DAY, UTC).isoformat()
    created = client.create_file(1, expires_at=expires_at)
    file_id = created["id"]
    assert client.put_content(created["upload"], b"x").status_code == 200
    client.post(f"/files/{file_id}/complete")
    states = []
    for seconds in (0, 61, DAY):
        client.luma.move_time(seconds)
        states.append(client.get(f"/files/{file_id}").json()["state"])
    assert states == ["pending", "failed", "deleted"]
    assert client.put_content(created["upload"], b"x").status_code == 403
    body = {"mime_type": "video/mp4", "size_bytes": 1, "expires_at": expires_at}
    assert client.post("/files", json=body).status_code == 422


def test_uploads_to_kie_expire(client):
    form = {"uploadPath": "films"}
    upload = client.post("/api/file-stream-upload", data=form, files={"file": ("film.mp4", b"x")}).json()["data"]
    assert client.anonymous.get(upload["downloadUrl"]).status_code == 200
    client.luma.move_time(3 * DAY + 1)
    assert client.anonymous.get(upload["downloadUrl"]).status_code == 404


def test_rate_limits_are_over_when_their_window_is(make_client, make_luma):
    client = make_client(submissions_per_10_seconds=1)
    assert [client.submit().json()["code"] for _ in range(2)] == [200, 429]
    client.luma.move_time(11)
    assert client.submit().json()["code"] == 200
    luma = make_luma(requests_per_minute=1)
    assert [luma.submit().status_code for _ in range(2)] == [201, 429]
    luma.luma.move_time(61)
    assert luma.submit().status_code == 201


def test_a_delayed_callback_is_sent_when_its_time_has_come_with_a_signature_of_now(make_client, web_server, wait_until):
    client = make_client(processing_seconds=60, callback_delay=600, webhook_secret="hush")
    task_id = client.submit_and_get_id(callBackUrl=web_server.url("/hook"))
    client.luma.move_time(61)
    assert web_server.posts == []
    client.luma.move_time(601)
    headers, body = wait_until(lambda: web_server.posts)[0]
    assert json.loads(body)["data"]["taskId"] == task_id
    assert int(headers["X-Webhook-Timestamp"]) <= time.time(), "a receiver refuses what was signed in its future"


def test_a_reset_returns_to_the_time_of_the_system(client):
    client.luma.move_time(DAY)
    client.submit_and_get_id()
    assert client.luma.jobs[0].create_time / 1000 > time.time() + DAY / 2
    client.luma.reset()
    client.submit_and_get_id()
    assert client.luma.jobs[0].create_time / 1000 <= time.time()


@pytest.mark.parametrize(
    ("seconds", "problem"),
    [
        *(
            (seconds, "negative, or lead beyond the year 9000")
            for seconds in (-1, 1e12, 10**400, *map(float, ("inf", "nan")))
        ),
        *((seconds, "number") for seconds in ("60", True)),
    ],
)
def test_time_moves_forward_by_a_number_only(client, seconds, problem):
    with pytest.raises((TypeError, ValueError), match=problem):
        client.luma.move_time(seconds)


def test_the_control_endpoint_moves_the_time(make_client):
    client = make_client(processing_seconds=300)
    task_id = client.submit_and_get_id()
    moved = client.post("/simulator/move-time", json={"seconds": 300})
    assert moved.json()["time"] > time.time() + 200
    assert client.wait_for_end(task_id)["successFlag"] == 1
    for content in ({"seconds": -1}, {"seconds": 10**400}, {"seconds": "60"}, {"seconds": None}, {}, []):
        response = client.post("/simulator/move-time", json=content)
        assert (response.status_code, "seconds" in response.json()["msg"]) == (422, True)


def test_moving_the_time_of_a_stopped_simulator_does_not_wait_for_its_jobs():
    simulator = Simulator(Settings(processing_seconds=300))
    with simulator as luma:
        httpx.post(
            f"{luma.base_url}/api/v1/modify/generate",
            json={"prompt": "Make it snow", "videoUrl": luma.sample_url},
            headers={"Authorization": "Bearer simulator-key"},
            timeout=60,
        )
        assert luma.accepted == 1
    simulator.move_time(300)

# SPDX-License-Identifier: Apache-2.0
"""Specification of Luma's own API in the simulator: keys, requests, states, results, limits, and what a job costs."""

from __future__ import annotations

import base64
import io
import re
import time
import uuid

import av
import httpx
import numpy as np
import pytest

LOOPBACK_PORT_WITHOUT_SERVER = "http://127.0.0.1:1/clip.mp4"


def first_frame(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.int16)


def seconds_of(video: bytes) -> float:
    with av.open(io.BytesIO(video)) as container:
        return container.duration / av.time_base


def places(response: httpx.Response) -> list[str]:
    """Return where a 422 found problems."""
    assert response.status_code == 422, response.text
    return [".".join(map(str, problem["loc"])) for problem in response.json()["detail"]]


# -- every call


@pytest.mark.parametrize("authorization", [None, "", "simulator-key", "Bearer wrong"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/generations"), ("GET", "/generations/x"), ("GET", "/files"), ("GET", "/nothing")]
)
def test_a_call_with_a_missing_or_wrong_key_is_refused_with_401(luma_client, method, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    response = luma_client.anonymous.request(method, luma_client.luma.luma_base_url + path, headers=headers)
    assert response.status_code == 401
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/files", 200),
        ("GET", "/generations/0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11", 404),
        ("GET", "/generations/no-uuid", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/generations", 405),
        ("POST", "/generations", 422),
    ],
)
def test_each_response_has_the_version_and_echoes_the_request_id(luma_client, method, path, status):
    response = luma_client.request(method, path, headers={"X-Request-Id": "mine"})
    assert response.status_code == status
    assert (response.headers["X-Request-Id"], response.headers["X-API-Version"]) == ("mine", "2026-04-01")
    assert uuid.UUID(luma_client.request(method, path).headers["X-Request-Id"])


# -- a job


def test_a_submission_is_answered_with_201_and_becomes_a_completed_generation(luma_client):
    response = luma_client.submit()
    submitted = response.json()
    assert response.status_code == 201
    assert str(uuid.UUID(submitted["id"])) == submitted["id"]
    ended = luma_client.wait_for_end(submitted["id"])
    assert ended == {
        "id": submitted["id"],
        "type": "video_edit",
        "state": "completed",
        "model": "ray-3.2",
        "created_at": submitted["created_at"],
        "output": ended["output"],
        "failure_reason": None,
        "failure_code": None,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ended["created_at"])
    assert [entry["type"] for entry in ended["output"]] == ["video"]


def test_a_job_is_queued_then_processing_and_its_output_is_null_or_empty_until_it_ends(make_luma):
    client = make_luma(processing_seconds=600, queued_seconds=600)
    generation_id = client.submit_and_get_id()
    queued = client.status(generation_id).json()
    client.luma.configure(queued_seconds=0)
    processing = client.status(generation_id).json()
    assert (queued["state"], queued["output"]) == ("queued", None)
    assert (processing["state"], processing["output"]) == ("processing", [])
    client.luma.end_jobs()
    assert client.wait_for_end(generation_id)["state"] == "completed"


def test_jobs_of_both_services_are_counted_alike_and_neither_knows_those_of_the_other(client, luma_client):
    other = luma_client.luma  # luma_client has another simulator, so both clients are made for this one
    task_id = client.submit_and_get_id()
    with httpx.Client(base_url=client.luma.luma_base_url, headers=dict(client.headers)) as own:
        generation_id = own.post("/generations", json=luma_client.body).json()["id"]
        assert own.get(f"/generations/{task_id}").status_code == 404
    assert client.status(generation_id).json()["code"] == 404
    assert client.luma.accepted == 2
    assert client.luma.credits == 980
    assert [(job.service, job.task_id) for job in client.luma.jobs] == [("kie", task_id), ("luma", generation_id)]
    submissions = [(call.service, call.task_id) for call in client.luma.calls if call.on == "submit"]
    assert submissions == [("kie", task_id), ("luma", generation_id)]
    assert other.accepted == 0


def test_the_journal_records_calls_with_operation_status_and_generation(luma_client):
    generation_id = luma_client.submit_and_get_id()
    luma_client.wait_for_end(generation_id)
    submit, status, *_ = luma_client.luma.calls
    assert (submit.service, submit.on, submit.http_status, submit.code) == ("luma", "submit", 201, 201)
    assert (status.service, status.on, status.http_status, status.code) == ("luma", "status", 200, 200)
    assert submit.task_id == status.task_id == generation_id


def test_a_seed_makes_ids_repeatable(make_luma):
    one, same, other = (make_luma(seed=seed).submit_and_get_id() for seed in (5, 5, 6))
    assert one == same != other


# -- the request


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "x" * 6000},
        {"prompt": "下雪"},
        {"user_id": ...},
        {"video__resolution": ...},
        {"video__resolution": "1080p", "video__hdr": True, "video__exr_export": True},
        {"video__edit": {"strength": "flex_2"}},
        {"video__edit": {"controls": {"pose": {"strength": "coarse"}, "depth": {"blur": 0.5}, "face": {}}}},
        {"video__edit__keyframes": [{"url": "https://example.com/a.png"}], "video__edit__keyframe_indexes": [74]},
    ],
)
def test_a_request_with_what_the_documentation_lists_is_accepted(luma_client, changes):
    assert luma_client.submit(**changes).status_code == 201


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"model": ...}, "body.model"),
        ({"model": "uni-1"}, "body.model"),
        ({"type": ...}, "body.type"),
        ({"type": "video"}, "body.type"),
        ({"prompt": ...}, "body.prompt"),
        ({"prompt": ""}, "body.prompt"),
        ({"prompt": "x" * 6001}, "body.prompt"),
        ({"prompt": 7}, "body.prompt"),
        ({"prompt": None}, "body.prompt"),
        ({"user_id": None}, "body.user_id"),
        ({"aspect_ratio": "16:9"}, "body.aspect_ratio"),
        ({"watermark": "mine"}, "body.watermark"),
        ({"source": ...}, "body.source"),
        ({"source": {}}, "body.source"),
        ({"source__file_id": "x"}, "body.source"),
        ({"source__media_type": ...}, "body.source"),
        ({"source__media_type": "image/png"}, "body.source"),
        ({"source__url": "http://example.com/a.mp4"}, "body.source"),
        ({"source__url": "file:///etc/passwd"}, "body.source"),
        ({"source": {"data": "AAAA"}}, "body.source"),
        ({"source": {"file_id": "x", "media_type": "video/mp4"}}, "body.source"),
        ({"video": ...}, "body.video"),
        ({"video__duration": "5s"}, "body.video.duration"),
        ({"video__resolution": "480p"}, "body.video.resolution"),
        ({"video__resolution": "540p", "video__hdr": True}, "body.video"),
        ({"video__exr_export": True}, "body.video"),
        ({"video__edit": ...}, "body.video.edit"),
        ({"video__edit": {}}, "body.video.edit"),
        ({"video__edit__auto_controls": False}, "body.video.edit.auto_controls"),
        ({"video__edit__strength": "flex_2"}, "body.video.edit"),
        ({"video__edit": {"strength": "flex_4"}}, "body.video.edit.strength"),
        ({"video__edit": {"controls": {"pose": {"sparsity": 1}}}}, "body.video.edit.controls.pose.sparsity"),
        ({"video__edit": {"controls": {"depth": {"blur": 1.5}}}}, "body.video.edit.controls.depth.blur"),
        ({"video__edit__keyframe_indexes": [0]}, "body.video.edit"),
        ({"video__edit__keyframes": [{"url": "https://x/a"}], "video__edit__keyframe_indexes": []}, "body.video.edit"),
        (
            {"video__edit__keyframes": [{"url": "https://x/a"}] * 2, "video__edit__keyframe_indexes": [1, 1]},
            "body.video.edit",
        ),
        (
            {"video__edit__keyframes": [{"url": "https://x/a"}], "video__edit__keyframe_indexes": [-1]},
            "body.video.edit.keyframe_indexes.0",
        ),
        (
            {"video__edit__keyframes": [{"url": "https://x/a"}] * 65, "video__edit__keyframe_indexes": [*range(65)]},
            "body.video.edit.keyframes",
        ),
    ],
)
def test_a_request_is_refused_with_422_that_lists_where_it_is_wrong(luma_client, changes, place):
    assert place in places(luma_client.submit(**changes))
    assert luma_client.luma.accepted == 0
    assert luma_client.luma.credits == 1000


def test_null_is_refused_wherever_it_is(luma_client):
    response = luma_client.submit(user_id=None, video__hdr=None, video__edit__keyframes=[None])
    assert sorted(places(response)) == ["body.user_id", "body.video.edit.keyframes.0", "body.video.hdr"]


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b"\xff", b"[" * 99999])
def test_a_body_that_is_not_a_json_object_is_refused_with_422(luma_client, content):
    assert luma_client.post("/generations", content=content).status_code == 422


def test_a_keyframe_cannot_be_a_video_of_an_earlier_generation(luma_client):
    keyframes = [{"generation_id": luma_client.submit_and_get_id()}]
    response = luma_client.submit(video__edit__keyframes=keyframes, video__edit__keyframe_indexes=[0])
    assert (response.status_code, luma_client.luma.accepted) == (422, 1)


def test_a_keyframe_beyond_the_last_frame_of_the_source_is_refused(luma_client):
    changes = {"video__edit__keyframes": [{"url": "https://example.com/a.png"}], "video__edit__keyframe_indexes": [75]}
    response = luma_client.submit(**changes)
    assert (response.status_code, luma_client.luma.accepted) == (422, 0)
    assert "below 75" in response.json()["detail"]


# -- the source


def test_a_source_that_cannot_be_fetched_is_refused_with_a_502_or_503_that_names_the_fetching(make_luma, web_server):
    client = make_luma()
    for url in (LOOPBACK_PORT_WITHOUT_SERVER, web_server.url("/nothing")):
        response = client.submit(source__url=url)
        assert response.status_code == 502
        assert response.json()["detail"].startswith("Failed to fetch the source: source is not reachable")
    client.luma.configure(fetch_timeout=1e-9)
    response = client.submit()
    assert response.status_code == 503
    assert response.json()["detail"].startswith("Failed to fetch the source: source could not be fetched")
    assert client.luma.accepted == 0


@pytest.mark.parametrize(("seconds", "status"), [(18.0, 201), (18.4, 201), (18.8, 422)])
def test_a_source_may_last_18_seconds_with_half_a_second_of_tolerance(
    luma_client, web_server, make_clip, seconds, status
):
    response = luma_client.submit(source__url=web_server.serve("/clip", make_clip(seconds=seconds)))
    assert response.status_code == status
    assert status == 201 or f"lasts {seconds} seconds" in response.json()["detail"]


def test_a_source_above_200_mb_is_refused_with_413(luma_client, web_server, make_clip, monkeypatch):
    monkeypatch.setattr("airflow_provider_luma.simulator.services.luma.MAX_VIDEO_BYTES", 400)
    clip = make_clip()
    assert luma_client.submit(source__url=web_server.serve("/clip", clip)).status_code == 413
    data = {"data": base64.b64encode(clip).decode(), "media_type": "video/mp4"}
    assert luma_client.submit(source=data).status_code == 413
    assert luma_client.luma.accepted == 0


def test_a_source_that_is_not_a_video_is_refused_with_422(luma_client, web_server):
    assert luma_client.submit(source__url=web_server.serve("/page", b"<html>" * 100)).status_code == 422


def test_a_source_can_be_sent_as_base64_which_is_not_kept_in_the_job(luma_client, make_clip):
    data = base64.b64encode(make_clip()).decode()
    luma_client.result_url(source={"data": data, "media_type": "video/mp4"})
    assert data not in str(luma_client.luma.jobs[0])
    assert luma_client.submit(source={"data": "no base64!", "media_type": "video/mp4"}).status_code == 422


def test_a_source_can_be_a_completed_generation(make_luma):
    client = make_luma()
    first = client.submit_and_get_id()
    client.wait_for_end(first)
    chained = client.submit_and_get_id(source={"generation_id": first})
    assert client.wait_for_end(chained)["state"] == "completed"
    assert client.luma.jobs[1].input_digest != client.luma.jobs[0].input_digest
    client.luma.configure(processing_seconds=600)
    for not_completed in (client.submit_and_get_id(), str(uuid.uuid4())):
        assert client.submit(source={"generation_id": not_completed}).status_code == 422


# -- the result


def test_the_result_is_a_silent_mp4_of_the_same_length_that_visibly_differs_from_the_source(luma_client):
    before = luma_client.anonymous.get(luma_client.luma.sample_url).content
    response = luma_client.anonymous.get(luma_client.result_url())
    after = response.content
    assert (response.status_code, response.headers["Content-Type"]) == (200, "video/mp4")
    assert np.abs(first_frame(before) - first_frame(after)).mean() > 40
    assert seconds_of(after) == pytest.approx(3.0, abs=0.1)
    with av.open(io.BytesIO(after)) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 0)
        assert container.streams.video[0].codec_context.name == "h264"


def test_both_services_render_the_same_clip_and_prompt_each_with_its_own_sound(client, luma_client):
    with httpx.Client(base_url=client.luma.luma_base_url, headers=dict(client.headers)) as own:
        body = {**luma_client.body, "source": {"url": client.luma.sample_url, "media_type": "video/mp4"}}
        own.post("/generations", json=body)
    with av.open(io.BytesIO(client.anonymous.get(client.result_url()).content)) as container:
        assert len(container.streams.audio) == 1


def test_each_status_call_mints_a_new_presigned_url_and_all_of_them_work(luma_client):
    generation_id = luma_client.submit_and_get_id()
    luma_client.wait_for_end(generation_id)
    urls = [luma_client.status(generation_id).json()["output"][0]["url"] for _ in range(3)]
    assert len(set(urls)) == 3
    assert all("X-Amz-Expires=3600&" in url for url in urls)
    assert [luma_client.anonymous.get(url).status_code for url in urls] == [200] * 3
    part = luma_client.anonymous.get(urls[0], headers={"Range": "bytes=10-19"})
    assert (part.status_code, len(part.content)) == (206, 10)


def test_a_stale_or_altered_result_url_is_refused_with_403_in_xml_and_a_new_one_works(luma_client):
    generation_id = luma_client.submit_and_get_id()
    url = luma_client.wait_for_end(generation_id)["output"][0]["url"]
    luma_client.luma.expire_urls()
    refused = [url, url + "0", url.partition("?")[0], url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")]
    for address in refused:
        response = luma_client.anonymous.get(address)
        assert (response.status_code, response.headers["Content-Type"]) == (403, "application/xml")
        assert response.text.startswith("<?xml")
    assert luma_client.anonymous.get(luma_client.status(generation_id).json()["output"][0]["url"]).status_code == 200


def test_a_result_url_expires_after_result_url_ttl(luma_client):
    url = luma_client.result_url()
    luma_client.luma.configure(result_url_ttl=0)
    response = luma_client.anonymous.get(url)
    assert (response.status_code, "Request has expired" in response.text) == (403, True)


def test_a_result_url_refuses_the_key_and_other_methods(luma_client):
    url = luma_client.result_url()
    response = luma_client.get(url)
    assert (response.status_code, "Only one auth mechanism" in response.text) == (400, True)
    assert luma_client.anonymous.head(url).status_code == 403
    assert luma_client.anonymous.put(url).status_code == 405


# -- the end of a job


@pytest.mark.parametrize(
    ("code", "is_refunded"),
    [
        ("content_moderated", True),
        ("generation_failed", True),
        ("output_not_found", True),
        ("budget_exhausted", False),
        ("rate_limited", False),
        ("image_too_large", False),
        ("unsupported_format", False),
        ("corrupt_input", False),
        ("invalid_request", False),
    ],
)
def test_a_failed_job_has_a_code_and_a_reason_and_some_are_refunded(make_luma, code, is_refunded):
    client = make_luma(outcome="generate_failed", failure_code=code, error_message="Too dark.")
    ended = client.wait_for_end(client.submit_and_get_id())
    assert (ended["state"], ended["failure_code"], ended["failure_reason"]) == ("failed", code, "Too dark.")
    assert ended["output"] == []
    assert client.luma.credits == (1000 if is_refunded else 990)
    assert client.luma.accepted == 1


def test_a_job_that_runs_for_an_hour_fails_with_generation_failed(make_luma):
    client = make_luma(processing_seconds=4000, job_time_limit=0)
    ended = client.wait_for_end(client.submit_and_get_id())
    assert (ended["state"], ended["failure_code"]) == ("failed", "generation_failed")
    assert client.luma.settings.job_time_limit == 0
    assert type(client.luma.settings)().job_time_limit == 3600


def test_a_job_with_outcome_no_urls_is_completed_without_output(make_luma):
    client = make_luma(outcome="no_urls")
    ended = client.wait_for_end(client.submit_and_get_id())
    assert (ended["state"], ended["output"]) == ("completed", [])


def test_a_low_balance_is_refused_with_402(make_luma):
    client = make_luma(credits=5)
    response = client.submit()
    assert response.status_code == 402
    assert "Credits insufficient" in response.json()["detail"]


# -- limits


def test_the_limit_of_requests_a_minute_counts_all_calls_but_status_calls(make_luma):
    client = make_luma(requests_per_minute=2)
    generation_id = client.submit_and_get_id()
    client.get("/files")
    for response in (client.submit(), client.get("/files")):
        assert response.status_code == 429
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert response.headers["X-RateLimit-Limit"] == "2"
        assert response.headers["X-RateLimit-Remaining"] == "0"
        assert int(response.headers["X-RateLimit-Reset"]) > time.time()
    assert client.status(generation_id).status_code == 200
    assert client.luma.accepted == 1


def test_the_limit_of_jobs_at_a_time_asks_for_a_minute_without_rate_limit_headers(make_luma):
    client = make_luma(jobs_at_a_time=1, processing_seconds=600)
    client.submit_and_get_id()
    response = client.submit()
    assert (response.status_code, response.headers["Retry-After"]) == (429, "60")
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]
    assert client.luma.accepted == 1


def test_the_default_limits_are_30_requests_a_minute_and_10_jobs():
    from airflow_provider_luma.simulator import Settings

    assert (Settings().requests_per_minute, Settings().jobs_at_a_time) == (30, 10)


def test_status_calls_have_a_limit_of_their_own(make_luma):
    client = make_luma(status_calls_per_second=0)
    response = client.status(client.submit_and_get_id())
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")


def test_the_overview_page_links_results_by_urls_that_work(luma_client):
    luma_client.result_url()
    page = luma_client.anonymous.get(luma_client.luma.base_url).text
    url = re.search(r'href="([^"]*/bucket/[^"]*)"', page)[1].replace("&amp;", "&")
    assert luma_client.anonymous.get(url).status_code == 200

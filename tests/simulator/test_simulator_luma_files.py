# SPDX-License-Identifier: Apache-2.0
"""Specification of the Files API in the simulator: announcing, presigned upload, ingest, listing, deletion."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from airflow_provider_luma.simulator.services import luma as luma_service

MISSING = "0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11"


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


@pytest.fixture
def clip(make_clip) -> bytes:
    return make_clip()


def test_a_file_is_announced_put_completed_ingested_and_edited(luma_client, clip):
    expires_at = in_days(1)
    created = luma_client.create_file(len(clip), purpose="input", filename="a.mp4", expires_at=expires_at)
    assert created.keys() == {"id", "state", "file", "upload"}
    assert created["state"] == "pending"
    assert created["file"] == {
        "id": created["id"],
        "state": "pending",
        "mime_type": "video/mp4",
        "size_bytes": len(clip),
        "purpose": "input",
        "filename": "a.mp4",
        "user_id": None,
        "created_at": created["file"]["created_at"],
        "expires_at": expires_at,
        "deleted_at": None,
        "failure_reason": None,
    }
    assert created["upload"]["method"] == "PUT"
    stored = luma_client.put_content(created["upload"], clip)
    assert (stored.status_code, stored.content) == (200, b"")
    completed = luma_client.post(f"/files/{created['id']}/complete")
    assert (completed.status_code, completed.json()["id"]) == (200, created["id"])
    assert luma_client.wait_for_file(created["id"])["state"] == "ready"
    generation_id = luma_client.submit_and_get_id(source={"file_id": created["id"]})
    assert luma_client.wait_for_end(generation_id)["state"] == "completed"
    upload = luma_client.luma.uploads[0]
    assert (upload.service, upload.key, upload.sha256) == ("luma", created["id"], hashlib.sha256(clip).hexdigest())
    assert luma_client.luma.jobs[0].video_url == f"luma-file:{created['id']}"


def test_a_file_is_pending_until_ingest_seconds_after_it_was_completed(make_luma, clip):
    client = make_luma(ingest_seconds=600)
    file_id = client.upload(clip)
    assert client.get(f"/files/{file_id}").json()["state"] == "pending"
    response = client.submit(source={"file_id": file_id})
    assert (response.status_code, client.luma.accepted) == (422, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"mime_type": None},
        {"mime_type": "text/plain"},
        {"size_bytes": 0},
        {"size_bytes": "7"},
        {"size_bytes": 5 * 1024**3 + 1},
        {"purpose": "output"},
        {"filename": None},
        {"expires_at": "tomorrow"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"expires_at": in_days(-1)},
        {"sha256": "x"},
    ],
)
def test_an_invalid_announcement_is_refused_with_422(luma_client, fields):
    body = {"mime_type": "video/mp4", "size_bytes": 7, **fields}
    response = luma_client.post("/files", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][1] == next(iter(fields))


def test_the_multipart_form_is_refused(luma_client):
    assert luma_client.post("/files", files={"file": b"film"}).status_code == 415


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (lambda named: named, 200, ""),
        (lambda named: {**named, "Authorization": "Bearer simulator-key"}, 400, "InvalidArgument"),
        (lambda named: {"Content-Type": named["Content-Type"]}, 403, "SignatureDoesNotMatch"),
        (lambda named: {**named, "Content-Type": "video/quicktime"}, 403, "SignatureDoesNotMatch"),
        (lambda named: {**named, "x-amz-acl": "public-read"}, 403, "AccessDenied"),
    ],
    ids=["exact", "with the key", "one missing", "one changed", "one more"],
)
def test_a_put_must_carry_the_named_headers_and_no_key(luma_client, clip, headers, status, code):
    upload = luma_client.create_file(len(clip))["upload"]
    response = luma_client.put_content(upload, clip, headers=headers(upload["headers"]))
    assert response.status_code == status
    assert code in response.text
    assert len(luma_client.luma.uploads) == (1 if status == 200 else 0)


def test_a_put_to_an_expired_or_altered_address_or_by_another_method_is_refused_with_403(luma_client, clip):
    upload = luma_client.create_file(len(clip))["upload"]
    other = luma_client.create_file(len(clip))["upload"]
    moved = {**upload, "url": other["url"].partition("?")[0] + "?" + upload["url"].partition("?")[2]}
    assert luma_client.put_content(moved, clip).status_code == 403
    assert luma_client.anonymous.post(upload["url"], content=clip).status_code == 405
    luma_client.luma.configure(upload_url_ttl=0)
    assert "Request has expired" in luma_client.put_content(upload, clip).text
    luma_client.luma.configure(upload_url_ttl=3600)
    luma_client.luma.expire_urls()
    assert luma_client.put_content(upload, clip).status_code == 403
    assert luma_client.luma.uploads == []


def test_a_put_without_content_length_is_refused_with_411(luma_client, clip):
    upload = luma_client.create_file(len(clip))["upload"]
    response = luma_client.put_content(upload, iter([clip]))
    assert (response.status_code, "MissingContentLength" in response.text) == (411, True)


def test_a_file_can_be_completed_once_and_only_after_it_was_put(luma_client, clip):
    created = luma_client.create_file(len(clip))
    path = f"/files/{created['id']}/complete"
    assert luma_client.post(path).status_code == 400
    luma_client.put_content(created["upload"], clip)
    assert luma_client.post(path, json={}).status_code == 422
    assert [luma_client.post(path).status_code for _ in range(2)] == [200, 409]
    assert luma_client.post(f"/files/{MISSING}/complete").status_code == 404


@pytest.mark.parametrize(
    ("content", "size", "reason"),
    [(b"no video", 8, "cannot be decoded"), (b"no video", 9, "has 8 bytes; size_bytes was 9")],
)
def test_a_file_fails_at_ingest_with_a_reason(luma_client, content, size, reason):
    created = luma_client.create_file(size)
    luma_client.put_content(created["upload"], content)
    luma_client.post(f"/files/{created['id']}/complete")
    failed = luma_client.wait_for_file(created["id"])
    assert failed["state"] == "failed"
    assert reason in failed["failure_reason"]
    assert luma_client.submit(source={"file_id": created["id"]}).status_code == 422


def test_every_file_fails_at_ingest_with_ingest_failure(make_luma, clip):
    client = make_luma(ingest_failure="Refused by moderation.")
    failed = client.wait_for_file(client.upload(clip))
    assert (failed["state"], failed["failure_reason"]) == ("failed", "Refused by moderation.")


def test_a_file_may_be_larger_than_a_source_by_url_but_not_longer(luma_client, make_clip, monkeypatch):
    monkeypatch.setattr(luma_service, "MAX_VIDEO_BYTES", 400)
    assert luma_client.submit(source={"file_id": luma_client.upload(make_clip())}).status_code == 201
    response = luma_client.submit(source={"file_id": luma_client.upload(make_clip(seconds=19))})
    assert (response.status_code, "lasts 19.0 seconds" in response.json()["detail"]) == (422, True)


def test_pictures_can_be_uploaded_for_keyframes_and_not_as_a_source(luma_client):
    picture = luma_client.upload(b"picture", mime_type="image/png", purpose="reference")
    changes: dict[str, Any] = {"video__edit__keyframes": [{"file_id": picture}], "video__edit__keyframe_indexes": [0]}
    assert luma_client.submit(**changes).status_code == 201
    assert luma_client.submit(source={"file_id": picture}).status_code == 422
    changes["video__edit__keyframes"] = [{"file_id": MISSING}]
    assert luma_client.submit(**changes).status_code == 422


def test_files_are_listed_newest_first_page_by_page(luma_client):
    ids = [luma_client.create_file(7, purpose=purpose)["id"] for purpose in ("input", "reference", "input")]
    first = luma_client.get("/files", params={"limit": 2}).json()
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    second = luma_client.get("/files", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [file["id"] for file in second["data"]] == [ids[0]]
    assert (second["has_more"], second["next_cursor"]) == (False, None)
    reference = luma_client.get("/files", params={"purpose": "reference", "state": "pending"}).json()
    assert [file["id"] for file in reference["data"]] == [ids[1]]


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 101}, {"limit": "many"}, {"cursor": "x"}])
def test_an_invalid_page_is_refused_with_422(luma_client, params):
    assert luma_client.get("/files", params=params).status_code == 422


def test_a_deleted_file_keeps_its_record_and_can_no_longer_be_used(luma_client, clip):
    file_id = luma_client.upload(clip)
    response = luma_client.delete(f"/files/{file_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["X-API-Version"]
    assert luma_client.get(f"/files/{file_id}").json()["state"] == "deleted"
    assert luma_client.get("/files").json()["data"] == []
    assert [file["id"] for file in luma_client.get("/files?state=deleted").json()["data"]] == [file_id]
    assert luma_client.delete(f"/files/{file_id}").status_code == 404
    assert luma_client.submit(source={"file_id": file_id}).status_code == 422


def test_a_file_is_gone_after_its_expires_at(luma_client, clip, wait_until):
    file_id = luma_client.upload(clip, expires_at=in_days(1 / 86400))
    wait_until(lambda: luma_client.get(f"/files/{file_id}").json()["state"] == "deleted")
    assert luma_client.submit(source={"file_id": file_id}).status_code == 422


def test_an_unknown_file_is_not_found(luma_client):
    assert luma_client.get(f"/files/{MISSING}").status_code == 404
    assert luma_client.delete(f"/files/{MISSING}").status_code == 404
    assert luma_client.submit(source={"file_id": MISSING}).status_code == 422


def test_a_reset_deletes_all_files(luma_client, clip):
    created = luma_client.create_file(len(clip))
    luma_client.luma.reset()
    assert luma_client.get("/files").json()["data"] == []
    assert luma_client.put_content(created["upload"], clip).status_code == 404


# -- faults


def test_an_upload_whose_connection_is_cut_is_stored_only_with_after_accept(make_luma, clip):
    client = make_luma(faults=["upload:cut,times=1", "upload:cut,after_accept,skip=1,times=1"])
    upload = client.create_file(len(clip))["upload"]
    for stored in (0, 1):
        with pytest.raises(httpx.RemoteProtocolError):
            client.put_content(upload, clip)
        assert len(client.luma.uploads) == stored


def test_a_refused_upload_is_answered_in_xml(make_luma, clip):
    client = make_luma(faults=["upload:refuse,code=503,times=1"])
    upload = client.create_file(len(clip))["upload"]
    assert client.put_content(upload, clip).text.startswith("<?xml")
    assert client.put_content(upload, clip).status_code == 200


@pytest.mark.parametrize("on", ["file_create", "file_complete", "file_status", "file_list", "file_delete"])
def test_faults_hit_each_call_of_the_files_api(make_luma, clip, on):
    client = make_luma()
    created = client.create_file(len(clip))
    client.put_content(created["upload"], clip)
    path = f"/files/{created['id']}"
    client.luma.configure(faults=[f"{on}:refuse,code=500,times=1"])
    calls = {
        "file_create": lambda: client.post("/files", json={"mime_type": "video/mp4", "size_bytes": 7}),
        "file_complete": lambda: client.post(f"{path}/complete"),
        "file_status": lambda: client.get(path),
        "file_list": lambda: client.get("/files"),
        "file_delete": lambda: client.delete(path),
    }
    response = calls[on]()
    assert (response.status_code, list(response.json())) == (500, ["detail"])
    last = client.luma.calls[-1]
    assert (last.service, last.on, last.fault, last.code) == ("luma", on, "refuse", 500)
    assert calls[on]().status_code < 300

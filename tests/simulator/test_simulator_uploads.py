# SPDX-License-Identifier: Apache-2.0
"""Specification of uploads: both shapes of the response, refusals, expiry, and faults while a body is on its way."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime

import httpx
import psutil
import pytest

STREAM = "/api/file-stream-upload"
FROM_URL = "/api/file-url-upload"
FORM = {"uploadPath": "in/clips", "fileName": "a b.mp4"}


def upload(client, content: bytes = b"film", **form: str) -> httpx.Response:
    return client.post(STREAM, data={**FORM, **form}, files={"file": ("x.mp4", content)})


def seconds_of(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


def test_an_uploaded_file_is_served_and_can_be_overwritten(client, make_clip):
    clip = make_clip()
    content = upload(client, clip).json()
    assert (content["success"], content["code"]) == (True, 200)
    data = content["data"]
    assert data.keys() == {"fileName", "filePath", "downloadUrl", "fileSize", "mimeType", "uploadedAt"}
    assert (data["fileName"], data["filePath"], data["fileSize"]) == ("a b.mp4", "in/clips/a b.mp4", len(clip))
    assert data["mimeType"] == "video/mp4"
    assert abs(seconds_of(data["uploadedAt"]) - time.time()) < 60
    assert client.anonymous.get(data["downloadUrl"]).content == clip
    assert client.submit(videoUrl=data["downloadUrl"]).json()["code"] == 200
    upload(client, b"new")
    assert client.anonymous.get(data["downloadUrl"]).content == b"new"


def test_an_upload_is_answered_in_the_other_shape_with_upload_answer_file_id(make_client):
    client = make_client(upload_answer="file_id", upload_ttl=3600)
    data = upload(client).json()["data"]
    assert data.keys() == {"fileId", "fileUrl", "downloadUrl", "uploadTime", "expiresAt"}
    assert seconds_of(data["expiresAt"]) - seconds_of(data["uploadTime"]) == pytest.approx(3600, abs=0.01)
    assert client.anonymous.get(data["fileUrl"]).content == client.anonymous.get(data["downloadUrl"]).content == b"film"


def test_an_upload_expires_after_upload_ttl_and_can_no_longer_be_submitted(client, make_clip):
    url = upload(client, make_clip()).json()["data"]["downloadUrl"]
    assert client.submit(videoUrl=url).json()["code"] == 200
    client.luma.configure(upload_ttl=0)
    assert client.anonymous.get(url).status_code == 404
    response = client.submit(videoUrl=url)
    assert (response.status_code, client.luma.accepted) == (422, 1)
    assert "HTTP 404" in response.json()["msg"]


def test_uploads_are_listed_with_size_and_digest_until_a_reset(client):
    for content in (b"one", b"other"):
        upload(client, content)
    digests = [hashlib.sha256(content).hexdigest() for content in (b"one", b"other")]
    assert [one.sha256 for one in client.luma.uploads] == digests
    listed = client.get("/simulator/state").json()["uploads"]
    assert [(one["key"], one["size"], one["sha256"]) for one in listed] == [
        ("in/clips/a b.mp4", 3, digests[0]),
        ("in/clips/a b.mp4", 5, digests[1]),
    ]
    client.luma.reset()
    assert client.luma.uploads == []
    assert client.anonymous.get(f"{client.luma.base_url}/files/uploads/in/clips/a%20b.mp4").status_code == 404


def test_a_file_is_uploaded_from_a_url(client, web_server):
    body = {"fileUrl": web_server.serve("/page.txt", b"text"), "uploadPath": "in"}
    data = client.post(FROM_URL, json=body).json()["data"]
    assert data["fileName"] == "page.txt"
    assert client.anonymous.get(data["downloadUrl"]).content == b"text"
    body["fileUrl"] = web_server.url("/nothing")
    assert client.post(FROM_URL, json=body).json()["code"] == 400


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "/"])
def test_an_upload_whose_file_name_is_a_path_is_refused(client, name):
    content = upload(client, fileName=name).json()
    assert (content["code"], content["success"]) == (400, False)


@pytest.mark.parametrize(
    ("method", "path", "arguments", "code"),
    [
        ("POST", STREAM, {"data": FORM}, 400),
        ("POST", STREAM, {"files": {"file": ("x", b"1")}}, 400),
        ("POST", STREAM, {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
        ("POST", STREAM, {"content": b"x", "headers": {"Authorization": "Bearer wrong"}}, 401),
        ("GET", STREAM, {}, 405),
        ("PUT", FROM_URL, {}, 405),
        ("POST", FROM_URL, {"content": b"no json"}, 400),
        ("POST", FROM_URL, {"json": {"fileUrl": "file:///etc/passwd"}}, 400),
    ],
)
def test_a_refused_upload_says_so_in_success_too(client, method, path, arguments, code):
    response = client.request(method, path, **arguments)
    assert response.status_code == code
    assert response.json() == {"code": code, "msg": response.json()["msg"], "data": None, "success": False}
    assert client.luma.uploads == []


def test_refusals_of_other_calls_do_not_speak_of_success(client):
    assert "success" not in client.submit(prompt="").json()


def test_an_upload_without_content_length_is_refused_by_the_edge(client):
    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n1\r\n--b--\r\n'

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = client.post(STREAM, content=form(), headers=headers)
    assert response.status_code == 411
    assert response.headers["Content-Type"].startswith("text/html")
    assert client.luma.uploads == []


def test_a_large_upload_goes_through_files_and_not_through_memory(client, tmp_path):
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    before = psutil.Process().memory_info().rss
    peak = 0
    with path.open("rb") as content:

        def body() -> Iterator[bytes]:
            nonlocal peak
            yield head
            while chunk := content.read(1 << 20):
                peak = max(peak, psutil.Process().memory_info().rss)
                yield chunk
            yield tail

        head, tail = multipart()
        length = str(len(head) + 100_000_000 + len(tail))
        headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": length}
        assert client.post(STREAM, content=body(), headers=headers, timeout=60).json()["success"] is True
    peak = max(peak, psutil.Process().memory_info().rss)
    assert client.luma.uploads[0].size == 100_000_000
    assert peak - before < 50_000_000


def multipart() -> tuple[bytes, bytes]:
    """Return what stands before and behind a file in a form."""
    head = b'--b\r\nContent-Disposition: form-data; name="uploadPath"\r\n\r\nin\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="film.mp4"\r\n\r\n'
    return head, b"\r\n--b--\r\n"


class UnfinishedUpload:
    """A connection on which the beginning of an upload of a megabyte was sent."""

    def __init__(self, client, sent: int) -> None:
        host, port = client.luma.base_url.removeprefix("http://").split(":")
        self.head, self.tail = multipart()
        self.content = self.head + bytes(1_000_000) + self.tail
        self.connection = socket.create_connection((host, int(port)), timeout=60)
        self.connection.sendall(
            f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.luma.settings.api_key}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(self.content)}\r\n\r\n".encode()
            + self.content[:sent]
        )
        self.sent = sent

    def finish(self) -> None:
        self.connection.sendall(self.content[self.sent :])

    def answer(self) -> bytes:
        """Return what comes first; nothing if the connection was closed."""
        try:
            return self.connection.recv(65536)
        except ConnectionResetError:
            return b""


def test_upload_is_refused_while_its_body_is_on_its_way(make_client):
    client = make_client(faults=["upload:refuse,code=500,after_bytes=1000,times=1"])
    unfinished = UnfinishedUpload(client, 2000)
    assert unfinished.answer().startswith(b"HTTP/1.1 500 ")
    assert upload(client).json()["success"] is True


@pytest.mark.parametrize("after_bytes", [0, 1000])
def test_upload_is_cut_while_its_body_is_on_its_way(make_client, after_bytes):
    client = make_client(faults=[f"upload:cut,after_bytes={after_bytes},times=1"])
    assert UnfinishedUpload(client, 2000).answer() == b""
    assert client.luma.uploads == []
    assert upload(client).json()["success"] is True


def test_upload_hangs_in_the_middle_of_its_body_and_goes_on(make_client):
    client = make_client(faults=["upload:hang,after_bytes=1000,seconds=0.5,times=1"])
    began = time.monotonic()
    unfinished = UnfinishedUpload(client, 2000)
    unfinished.finish()
    assert unfinished.answer().startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - began >= 0.5
    assert client.luma.uploads[0].sha256 == hashlib.sha256(bytes(1_000_000)).hexdigest()


def test_upload_that_the_client_gives_up_is_not_stored(client, wait_until):
    unfinished = UnfinishedUpload(client, 2000)
    wait_until(lambda: client.luma.calls)
    unfinished.connection.close()
    assert upload(client).json()["success"] is True
    assert len(client.luma.uploads) == 1


@pytest.mark.parametrize(("style", "status"), [("status", 500), ("body", 200)])
def test_a_refuse_fault_on_an_upload_has_success_false(make_client, style, status):
    client = make_client(faults=[f"upload:refuse,code=500,style={style},times=1"])
    response = upload(client)
    assert (response.status_code, response.json()["code"], response.json()["success"]) == (status, 500, False)
    assert client.luma.uploads == []
    assert upload(client).json()["success"] is True


@pytest.mark.parametrize(
    "kind", ["html", "empty", "truncated", "null_data", "wrong_data", "hang,seconds=0.1", "cut", "cut_body"]
)
@pytest.mark.parametrize("after_accept", [False, True])
def test_faults_hit_the_response_to_an_upload(make_client, kind, after_accept):
    client = make_client(faults=[f"upload:{kind},after_accept={after_accept},times=1"])
    try:
        response = upload(client)
    except httpx.RemoteProtocolError:
        assert "cut" in kind
    else:
        assert "hang" in kind or not is_intact(response)
    stored = after_accept or kind not in ("html", "empty", "cut")
    assert len(client.luma.uploads) == int(stored)
    assert client.luma.calls[-1].fault == kind.partition(",")[0]


def is_intact(response: httpx.Response) -> bool:
    try:
        return isinstance(response.json()["data"], dict)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False

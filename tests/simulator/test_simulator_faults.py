# SPDX-License-Identifier: Apache-2.0
"""Faults: each kind on the wire, which calls they hit, and what they leave behind."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from pydantic import ValidationError

from airflow_provider_luma.simulator import Fault, Settings

CREDIT = "/api/v1/chat/credit"


def fault(text: str) -> Fault:
    return Fault.model_validate(text)


def raw_get(client, path: str) -> bytes:
    """Ask over a bare socket and return every byte that came back."""
    host, port = client.luma.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        key = client.luma.settings.api_key
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def received(client, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Read until the connection breaks, which it must."""
    got = b""
    with client.plain.stream("GET", url, headers=headers) as stream:
        chunks = stream.iter_raw()
        try:
            for chunk in chunks:
                got += chunk
        except httpx.RemoteProtocolError:
            return stream.status_code, got
    raise AssertionError("the answer came whole")


@pytest.mark.parametrize(
    ("style", "status", "retry_after"), [("status", 455, "3"), ("body", 200, None), (None, 455, "3")]
)
def test_refuse(start, style, status, retry_after):
    client = start(faults=[Fault(on="credit", kind="refuse", code=455, style=style, retry_after=3)])
    answer = client.get(CREDIT)
    assert answer.status_code == status
    assert answer.json()["code"] == 455
    assert answer.headers.get("Retry-After") == retry_after
    last = client.luma.calls[-1]
    assert (last.on, last.fault, last.http_status, last.code) == ("credit", "refuse", status, 455)


@pytest.mark.parametrize(("text", "status"), [("credit:html", 500), ("credit:html,code=502", 502)])
def test_html(start, text, status):
    answer = start(faults=[text]).get(CREDIT)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_empty(start):
    answer = start(faults=["credit:empty"]).get(CREDIT)
    assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (200, b"", "0")


def test_truncated(start):
    client = start(faults=["credit:truncated,times=1"])
    half = client.get(CREDIT)
    whole = client.get(CREDIT)
    assert half.status_code == 200
    assert half.content == whole.content[: len(whole.content) // 2]
    assert int(half.headers["Content-Length"]) == len(half.content)


def test_cut(start):
    client = start(faults=["credit:cut,times=1"])
    assert raw_get(client, CREDIT) == b""
    last = client.luma.calls[-1]
    assert (last.fault, last.http_status, last.code) == ("cut", None, None)
    assert client.get(CREDIT).json()["code"] == 200


@pytest.mark.parametrize(("kind", "share"), [("cut_body", 0.5), ("wrong_length", 1.0)])
def test_less_than_was_announced(start, kind, share):
    client = start(faults=[f"credit:{kind},times=1"])
    head, _, body = raw_get(client, CREDIT).partition(b"\r\n\r\n")
    whole = client.get(CREDIT).content
    announced = int(head.lower().split(b"content-length: ")[1].split()[0])
    assert body == whole[: int(len(whole) * share)]
    assert announced == len(whole) + (1000 if kind == "wrong_length" else 0)


def test_hang_then_the_normal_answer(start):
    client = start(faults=["credit:hang,seconds=0.5"])
    before = time.monotonic()
    assert client.get(CREDIT).json()["code"] == 200
    assert time.monotonic() - before >= 0.5


def test_a_submission_given_up_while_it_hangs_leaves_no_job(start, until):
    client = start(faults=["submit:hang,seconds=60,times=1"])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/v1/modify/generate", json={"prompt": "x", "videoUrl": client.luma.sample_url}, timeout=0.3)
    client.submitted()
    assert client.luma.accepted == 1


def test_null_and_wrong_data(start):
    client = start(faults=["credit:null_data,times=1", "credit:wrong_data,skip=1"])
    assert client.get(CREDIT).json() == {"code": 200, "msg": "success", "data": None}
    assert client.get(CREDIT).json()["data"] == "unexpected"


def test_an_unknown_flag_and_a_response_in_a_string(start):
    client = start()
    true = client.finished(client.submitted())
    client.luma.configure(faults=["status:unknown_flag,flag=8,times=1", "status:response_string,skip=1"])
    assert client.status(true["taskId"]).json()["data"] == {**true, "successFlag": 8}
    shown = client.status(true["taskId"]).json()["data"]["response"]
    assert json.loads(shown) == true["response"]


def test_faults_on_files(start):
    client = start()
    url = client.result_url()
    whole = client.plain.get(url).content
    half = len(whole) // 2
    client.luma.configure(faults=["file:no_range,times=1", "file:cut_body,skip=1"])
    answer = client.plain.get(url, headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.content) == (200, whole)
    assert "Accept-Ranges" not in answer.headers

    assert received(client, url, {}) == (200, whole[:half])
    quarter = (len(whole) - half) // 2
    assert received(client, url, {"Range": f"bytes={half}-"}) == (206, whole[half : half + quarter])


def test_the_samples_are_not_files_for_faults(start):
    client = start(faults=["file:cut"])
    assert client.plain.get(client.luma.sample_url).status_code == 200
    assert client.submit().json()["code"] == 200


@pytest.mark.parametrize(
    "text",
    ["refuse,code=429", "html", "empty", "truncated", "cut", "cut_body", "wrong_length", "null_data", "wrong_data"],
)
@pytest.mark.parametrize("after_accept", [False, True])
def test_a_spoilt_submission_is_accepted_only_if_told_so(start, text, after_accept):
    client = start(faults=[f"submit:{text},after_accept={after_accept}"])
    try:
        answer = client.submit()
        task_id = client.luma.jobs[0].task_id if after_accept else None
        assert task_id is None or task_id not in answer.text
    except httpx.RemoteProtocolError:
        assert "cut" in text or text == "wrong_length"
    assert client.luma.accepted == int(after_accept)
    assert client.luma.credits == (990 if after_accept else 1000)
    if after_accept:
        assert client.finished(client.luma.jobs[0].task_id)["successFlag"] == 1


def test_which_calls_are_hit(start):
    client = start(faults=["credit:refuse,code=500,skip=2,every=3,times=2", "credit:refuse,code=455,every=5"])
    codes = [client.get(CREDIT).json()["code"] for _ in range(15)]
    assert codes == [200, 200, 200, 200, 500, 200, 200, 500, 200, 455, 200, 200, 200, 200, 455]


def test_the_first_two_submissions(start):
    client = start(faults=["submit:refuse,code=429,times=2"])
    assert [client.submit().json()["code"] for _ in range(3)] == [429, 429, 200]
    assert client.luma.accepted == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("status", "ON:KIND"),
        (":html", "ON:KIND"),
        ("nothing:html", "submit"),
        ("status:nothing", "refuse"),
        ("status:html,every", "every needs a value"),
        ("status:html,every=0", "greater than or equal to 1"),
        ("status:html,every=2,every=3", "given twice"),
        ("status:html,evry=2", "'evry' is unknown"),
        ("status:refuse", "code=N"),
        ("status:html,after_accept", "submit only"),
        ("submit:unknown_flag", "only on status"),
        ("status:no_range", "only on file"),
        ("file:null_data", "cannot happen on file"),
    ],
)
def test_faults_that_make_no_sense(text, problem):
    with pytest.raises(ValidationError, match=problem):
        fault(text)


def test_the_written_form_and_the_object_are_the_same():
    written = fault("submit:hang,seconds=2,every=3,skip=1,times=4,after_accept")
    assert written == Fault(on="submit", kind="hang", seconds=2, every=3, skip=1, times=4, after_accept=True)
    assert Settings.model_validate({"faults": ["status:html"]}).faults == [Fault(on="status", kind="html")]

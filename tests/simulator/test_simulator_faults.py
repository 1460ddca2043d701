# SPDX-License-Identifier: Apache-2.0
"""Specification of faults: the response of each kind, the calls they hit, and whether a job is created."""

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
    """Send a GET request over a plain socket and return every byte of the response."""
    host, port = client.luma.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        key = client.luma.settings.api_key
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def read_until_cut(client, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Return the status and the bytes received before the connection broke; fail if the response was complete."""
    received = b""
    with client.anonymous.stream("GET", url, headers=headers) as stream:
        chunks = stream.iter_raw()
        try:
            for chunk in chunks:
                received += chunk
        except httpx.RemoteProtocolError:
            return stream.status_code, received
    raise AssertionError("the response was complete")


@pytest.mark.parametrize(
    ("style", "status", "retry_after"), [("status", 455, "3"), ("body", 200, None), (None, 455, "3")]
)
def test_a_refuse_fault_sends_its_code_in_the_set_style_and_is_journaled(make_client, style, status, retry_after):
    client = make_client(faults=[Fault(on="credit", kind="refuse", code=455, style=style, retry_after=3)])
    response = client.get(CREDIT)
    assert response.status_code == status
    assert response.json()["code"] == 455
    assert response.headers.get("Retry-After") == retry_after
    last = client.luma.calls[-1]
    assert (last.on, last.fault, last.http_status, last.code) == ("credit", "refuse", status, 455)


@pytest.mark.parametrize(("text", "status"), [("credit:html", 500), ("credit:html,code=502", 502)])
def test_an_html_fault_sends_an_error_page_with_the_set_http_status(make_client, text, status):
    response = make_client(faults=[text]).get(CREDIT)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.text.startswith("<!DOCTYPE html>")


def test_an_edge_block_fault_refuses_as_the_edge_does_which_passes_nothing_on(make_client):
    response = make_client(faults=["credit:edge_block"]).get(CREDIT)
    assert (response.status_code, response.text) == (403, "error code: 1010")


@pytest.mark.parametrize(("text", "status"), [("submit:redirect", 303), ("submit:redirect,code=307", 307)])
def test_a_redirect_fault_leads_back_to_the_call_after_it_was_accepted(make_client, text, status):
    client = make_client(faults=[f"{text},after_accept=true"])
    response = client.post("/api/v1/modify/generate", json={"prompt": "x", "videoUrl": client.luma.sample_url})
    assert (response.status_code, response.headers["Location"]) == (status, "/api/v1/modify/generate")
    assert client.luma.accepted == 1


def test_an_empty_fault_sends_http_200_without_a_body(make_client):
    response = make_client(faults=["credit:empty"]).get(CREDIT)
    assert (response.status_code, response.content, response.headers["Content-Length"]) == (200, b"", "0")


def test_a_truncated_fault_sends_half_of_the_body_with_a_matching_content_length(make_client):
    client = make_client(faults=["credit:truncated,times=1"])
    half = client.get(CREDIT)
    whole = client.get(CREDIT)
    assert half.status_code == 200
    assert half.content == whole.content[: len(whole.content) // 2]
    assert int(half.headers["Content-Length"]) == len(half.content)


def test_a_cut_fault_closes_the_connection_without_sending_a_byte(make_client):
    client = make_client(faults=["credit:cut,times=1"])
    assert raw_get(client, CREDIT) == b""
    last = client.luma.calls[-1]
    assert (last.fault, last.http_status, last.code) == ("cut", None, None)
    assert client.get(CREDIT).json()["code"] == 200


@pytest.mark.parametrize(("kind", "share"), [("cut_body", 0.5), ("wrong_length", 1.0)])
def test_cut_body_and_wrong_length_faults_send_less_than_content_length_announces(make_client, kind, share):
    client = make_client(faults=[f"credit:{kind},times=1"])
    head, _, body = raw_get(client, CREDIT).partition(b"\r\n\r\n")
    whole = client.get(CREDIT).content
    announced = int(head.lower().split(b"content-length: ")[1].split()[0])
    assert body == whole[: int(len(whole) * share)]
    assert announced == len(whole) + (1000 if kind == "wrong_length" else 0)


def test_a_hang_fault_delays_the_normal_response(make_client):
    client = make_client(faults=["credit:hang,seconds=0.5"])
    before = time.monotonic()
    assert client.get(CREDIT).json()["code"] == 200
    assert time.monotonic() - before >= 0.5


def test_a_submission_that_the_client_abandons_during_a_hang_fault_creates_no_job(make_client):
    client = make_client(faults=["submit:hang,seconds=60,times=1"])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/v1/modify/generate", json={"prompt": "x", "videoUrl": client.luma.sample_url}, timeout=0.3)
    client.submit_and_get_id()
    assert client.luma.accepted == 1


def test_null_data_and_wrong_data_faults_replace_the_data_of_the_envelope(make_client):
    client = make_client(faults=["credit:null_data,times=1", "credit:wrong_data,skip=1"])
    assert client.get(CREDIT).json() == {"code": 200, "msg": "success", "data": None}
    assert client.get(CREDIT).json()["data"] == "unexpected"


def test_hostile_text_fault_puts_into_the_record_what_databases_and_serialisers_refuse(make_client):
    client = make_client()
    luma_task_id = client.submit_and_get_id()
    client.luma.configure(faults=["status:hostile_text"])
    response = client.status(luma_task_id)
    data = response.json()["data"]
    assert data["errorMessage"] == json.loads(data["paramJson"])["prompt"] == "The model \ud83d said \x00 no"
    assert data["errorCode"] >= 2**64
    assert "NaN" in response.text


def test_unknown_flag_and_response_string_faults_change_the_status_record(make_client):
    client = make_client()
    record = client.wait_for_end(client.submit_and_get_id())
    client.luma.configure(faults=["status:unknown_flag,flag=8,times=1", "status:response_string,skip=1"])
    assert client.status(record["taskId"]).json()["data"] == {**record, "successFlag": 8}
    response = client.status(record["taskId"]).json()["data"]["response"]
    assert json.loads(response) == record["response"]


def test_no_range_and_cut_body_faults_hit_result_files(make_client):
    client = make_client()
    url = client.result_url()
    whole = client.anonymous.get(url).content
    half = len(whole) // 2
    client.luma.configure(faults=["file:no_range,times=1", "file:cut_body,skip=1"])
    response = client.anonymous.get(url, headers={"Range": "bytes=10-"})
    assert (response.status_code, response.content) == (200, whole)
    assert "Accept-Ranges" not in response.headers

    assert read_until_cut(client, url, {}) == (200, whole[:half])
    quarter = (len(whole) - half) // 2
    assert read_until_cut(client, url, {"Range": f"bytes={half}-"}) == (206, whole[half : half + quarter])


def test_file_faults_do_not_hit_sample_clips(make_client):
    client = make_client(faults=["file:cut"])
    assert client.anonymous.get(client.luma.sample_url).status_code == 200
    assert client.submit().json()["code"] == 200


@pytest.mark.parametrize(
    "text",
    [
        "refuse,code=429",
        "html",
        "edge_block",
        "empty",
        "redirect",
        "truncated",
        "cut",
        "cut_body",
        "wrong_length",
        "null_data",
        "wrong_data",
    ],
)
@pytest.mark.parametrize("after_accept", [False, True])
def test_a_submission_hit_by_a_fault_creates_a_job_only_with_after_accept(make_client, text, after_accept):
    client = make_client(faults=[f"submit:{text},after_accept={after_accept}"])
    try:
        response = client.submit()
        task_id = client.luma.jobs[0].task_id if after_accept else None
        assert task_id is None or task_id not in response.text
    except httpx.RemoteProtocolError:
        assert "cut" in text or text == "wrong_length"
    assert client.luma.accepted == int(after_accept)
    assert client.luma.credits == (990 if after_accept else 1000)
    if after_accept:
        assert client.wait_for_end(client.luma.jobs[0].task_id)["successFlag"] == 1


def test_skip_every_and_times_select_the_calls_that_a_fault_hits(make_client):
    client = make_client(faults=["credit:refuse,code=500,skip=2,every=3,times=2", "credit:refuse,code=455,every=5"])
    codes = [client.get(CREDIT).json()["code"] for _ in range(15)]
    assert codes == [200, 200, 200, 200, 500, 200, 200, 500, 200, 455, 200, 200, 200, 200, 455]


def test_a_refuse_fault_with_times_2_refuses_only_the_first_two_submissions(make_client):
    client = make_client(faults=["submit:refuse,code=429,times=2"])
    assert [client.submit().json()["code"] for _ in range(3)] == [429, 429, 200]
    assert client.luma.accepted == 1


def test_a_fault_on_job_decides_how_single_jobs_end_in_the_order_in_which_they_were_accepted(make_client):
    client = make_client(
        error_message="From the settings.",
        faults=["submit:refuse,code=429,times=1", "job:generate_failed,every=3,message=Too dark.,code=577"],
    )
    client.submit()  # refused, so it is no job
    ended = [client.wait_for_end(client.submit_and_get_id()) for _ in range(6)]
    assert [data["successFlag"] for data in ended] == [1, 1, 3, 1, 1, 3]
    assert (ended[2]["errorCode"], ended[2]["errorMessage"]) == (577, "Too dark.")
    assert [job.outcome for job in client.luma.jobs].count("generate_failed") == 2


@pytest.mark.parametrize(
    ("kind", "flag", "code"), [("create_failed", 2, 500), ("callback_failed", 4, None), ("no_urls", 1, None)]
)
def test_a_fault_on_job_takes_what_it_leaves_out_from_the_settings(make_client, kind, flag, code):
    client = make_client(error_message="From the settings.", faults=[f"job:{kind},times=1"])
    ended = client.wait_for_end(client.submit_and_get_id())
    assert (ended["successFlag"], ended["errorCode"]) == (flag, code)
    assert ended["errorMessage"] == ("From the settings." if flag == 2 else None)
    assert client.wait_for_end(client.submit_and_get_id())["successFlag"] == 1


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
        ("status:html,after_accept", "after_accept is for submit, upload"),
        ("upload:truncated,after_bytes=1", "refuse, html, edge_block, empty, redirect, cut and hang only"),
        ("upload:cut,after_bytes=1,after_accept", "without after_accept"),
        ("submit:unknown_flag", "only on status"),
        ("status:no_range", "only on file"),
        ("file:null_data", "cannot happen on file"),
        ("job:cut", "cannot happen on job"),
        ("submit:generate_failed", "only on job"),
        ("job:generate_failed,failure_code=luck", "failure_code"),
    ],
)
def test_an_invalid_fault_is_rejected_with_an_explanation(text, problem):
    with pytest.raises(ValidationError, match=problem):
        fault(text)


def test_the_text_form_of_a_fault_parses_to_the_equal_object():
    written = fault("submit:hang,seconds=2,every=3,skip=1,times=4,after_accept")
    assert written == Fault(on="submit", kind="hang", seconds=2, every=3, skip=1, times=4, after_accept=True)
    assert Settings.model_validate({"faults": ["status:html"]}).faults == [Fault(on="status", kind="html")]

# SPDX-License-Identifier: Apache-2.0
"""Specification of faults that hit Luma's own API: refusals, lost responses, and bodies that clients do not expect."""

from __future__ import annotations

import json
import time

import httpx
import pytest


def rate_limit_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("x-ratelimit")}


def is_generation(response: httpx.Response) -> bool:
    try:
        content = response.json()
    except ValueError:
        return False
    return isinstance(content, dict) and "id" in content


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 408, 409, 413, 422, 500, 502, 503])
def test_a_refuse_fault_sends_its_code_as_http_status_with_a_detail(make_luma, code):
    client = make_luma(faults=[f"submit:refuse,code={code},times=1"])
    response = client.submit()
    assert response.status_code == code
    assert response.json() == {"detail": "This refusal is simulated."}
    assert response.headers["X-API-Version"] == "2026-04-01"
    assert client.luma.accepted == 0
    assert (client.luma.calls[-1].fault, client.luma.calls[-1].code) == ("refuse", code)
    assert client.submit().status_code == 201


def test_a_refuse_fault_can_name_its_reason(make_luma):
    client = make_luma(faults=["submit:refuse,code=502,message=Failed to fetch the source"])
    assert client.submit().json() == {"detail": "Failed to fetch the source"}


def test_a_refuse_fault_with_429_names_either_limit(make_luma):
    client = make_luma(
        faults=[
            "submit:refuse,code=429,times=1",
            "submit:refuse,code=429,limit=requests,skip=1,times=1",
            "submit:refuse,code=429,limit=requests,retry_after=3,skip=2,times=1",
        ]
    )
    jobs, requests, shorter = (client.submit() for _ in range(3))
    assert [response.status_code for response in (jobs, requests, shorter)] == [429] * 3
    assert (jobs.headers["Retry-After"], rate_limit_headers(jobs)) == ("60", set())
    assert rate_limit_headers(requests) == {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
    assert (requests.headers["Retry-After"], shorter.headers["Retry-After"]) == ("60", "3")
    assert client.luma.accepted == 0


@pytest.mark.parametrize(
    "text",
    [
        "refuse,code=503",
        "html,code=502",
        "edge_block",
        "empty",
        "empty,code=503",
        "redirect,code=307",
        "truncated",
        "cut",
        "cut_body",
        "wrong_length",
        "null_data",
        "wrong_data",
    ],
)
@pytest.mark.parametrize("after_accept", [False, True])
def test_a_submission_hit_by_a_fault_is_paid_for_only_with_after_accept(make_luma, text, after_accept):
    client = make_luma(faults=[f"submit:{text},after_accept={after_accept}"])
    try:
        assert not is_generation(client.submit())
    except httpx.RemoteProtocolError:
        assert "cut" in text or text == "wrong_length"
    assert client.luma.accepted == int(after_accept)
    assert client.luma.credits == (990 if after_accept else 1000)
    if after_accept:
        assert client.wait_for_end(client.luma.jobs[0].task_id)["state"] == "completed"


@pytest.mark.parametrize("after_accept", [False, True])
def test_a_submission_that_times_out_is_paid_for_only_with_after_accept(make_luma, wait_until, after_accept):
    client = make_luma(faults=[f"submit:hang,seconds=60,times=1,after_accept={after_accept}"])
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generations", json=client.body, timeout=0.3)
    client.submit_and_get_id()
    wait_until(lambda: client.luma.accepted == 1 + after_accept)


def test_an_empty_fault_has_the_set_http_status(make_luma):
    response = make_luma(faults=["submit:empty,code=503"]).submit()
    assert (response.status_code, response.content) == (503, b"")


def test_a_hang_fault_delays_a_status_call(make_luma):
    client = make_luma(faults=["status:hang,seconds=0.3,times=1"])
    generation_id = client.submit_and_get_id()
    began = time.monotonic()
    assert client.status(generation_id).status_code == 200
    assert time.monotonic() - began >= 0.3


def test_faults_change_the_body_of_a_status_call(make_luma):
    client = make_luma()
    ended = client.wait_for_end(client.submit_and_get_id())
    kinds = ["null_data", "wrong_data", "unknown_flag,flag=7", "response_string", "hostile_text"]
    client.luma.configure(faults=[f"status:{kind},skip={index},times=1" for index, kind in enumerate(kinds)])
    null, wrong, unknown, string, hostile = (client.status(ended["id"]) for _ in kinds)
    assert (null.json(), wrong.json()) == (None, "unexpected")
    assert unknown.json()["state"] == "state_7"
    assert [entry["type"] for entry in json.loads(string.json()["output"])] == ["video"]
    assert hostile.json()["failure_reason"] == "The model \ud83d said \x00 no"
    assert "NaN" in hostile.text
    assert client.status(ended["id"]).json()["state"] == "completed"


def test_a_stale_result_address_is_simulated_by_a_403_on_file(make_luma):
    client = make_luma(faults=["file:refuse,code=403,times=1"])
    url = client.result_url()
    stale = client.anonymous.get(url)
    assert (stale.status_code, stale.headers["Content-Type"]) == (403, "application/xml")
    assert "<Code>AccessDenied</Code>" in stale.text
    assert client.anonymous.get(url).status_code == 200


def test_a_download_is_cut_half_way_and_can_be_resumed(make_luma):
    client = make_luma()
    url = client.result_url()
    whole = client.anonymous.get(url).content
    client.luma.configure(faults=["file:cut_body,times=1"])
    with pytest.raises(httpx.RemoteProtocolError):
        client.anonymous.get(url)
    rest = client.anonymous.get(url, headers={"Range": f"bytes={len(whole) // 2}-"})
    assert (rest.status_code, rest.content) == (206, whole[len(whole) // 2 :])

# SPDX-License-Identifier: Apache-2.0
"""
The event of LumaTaskTrigger can always be stored, whatever the service, a proxy or a library has said.

One that cannot be ends the whole triggerer, and with it the wait of every other job.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from airflow_provider_luma.core import poll_state
from airflow_provider_luma.triggers.luma import LumaTaskTrigger


async def event_of(luma_task_id: str, seconds: float = 20) -> dict[str, Any]:
    """Run a trigger; return its event after writing it as the triggerer and a database do."""
    trigger = LumaTaskTrigger(luma_task_id, poll_interval=0.02, end_time=time.time() + seconds)
    (event,) = [event.payload async for event in trigger.run()]
    document = json.dumps(event, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in document
    document.encode("utf-8")
    return msgspec.msgpack.decode(msgspec.msgpack.encode(event))


async def test_event_of_a_success_with_a_hostile_prompt_can_be_stored(submit):
    event = await event_of(submit(faults=["status:hostile_text"]))
    assert event["task"]["status"] == "SUCCESS"
    assert event["request"]["prompt"] == "The model \ufffd said \ufffd no"


async def test_event_of_a_failure_with_a_hostile_message_can_be_stored(submit):
    luma_task_id = submit(outcome="generate_failed", error_message="half \ud83d, NUL \x00" + "x" * 5000)
    error = (await event_of(luma_task_id))["error"]
    assert error["msg"].startswith("GENERATE_FAILED: half \ufffd, NUL \ufffd")
    assert (len(error["msg"]), error["code"]) == (2000, 501)


async def test_event_of_a_failure_with_a_code_beyond_64_bits_can_be_stored(submit):
    error = (await event_of(submit(outcome="generate_failed", faults=["status:hostile_text"])))["error"]
    assert (error["msg"], error["code"]) == ("GENERATE_FAILED: The model \ufffd said \ufffd no", None)


@pytest.mark.parametrize("code", [401, 404, 422, 500, 429])
async def test_event_of_a_refusal_with_a_hostile_message_can_be_stored(
    wires, set_connection, short_backoff, monkeypatch, code
):
    monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.1)
    set_connection(wires.start(wires.envelope(code, msg="half \ud83d, NUL \x00")).base_url)
    assert "half \ufffd, NUL \ufffd" in (await event_of("abc", seconds=0.2))["error"]["msg"]


async def test_event_of_a_wait_that_ended_at_a_redirect_can_be_stored(wires, set_connection, short_backoff):
    answer = wires.answer(302, headers={"Location": "https://user:secret@e.com/\xed\xa0\xbd"})
    set_connection(wires.start(answer).base_url)
    error = (await event_of("abc", seconds=0.2))["error"]
    assert "e.com" in error["msg"]
    assert "secret" not in error["msg"]


async def test_event_of_a_wait_that_a_proxy_refused_does_not_hold_its_password(
    wires, set_connection, short_backoff, monkeypatch
):
    proxy = wires.start(wires.answer(407))
    address = proxy.base_url.replace("//", "//user:secret@")
    set_connection("https://luma.example.com:443", proxies={"https": address})
    error = (await event_of("abc", seconds=0.2))["error"]
    assert "407" in error["msg"]
    assert "secret" not in error["msg"]
    assert len(proxy.received) > 0

# SPDX-License-Identifier: Apache-2.0
"""Luma's official SDK as a client of the simulator that we did not write, and what its retries cost."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import luma_agents
import pytest
from luma_agents import Luma

from airflow_provider_luma.simulator import Simulator

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "simulator.md"

#: Rows of the documented table: what happens to each POST, and the faults that do it.
FAULTS = {
    "400, 401, 402, 403, 404, 413, 422": [f"refuse,code={code}" for code in (400, 401, 402, 403, 404, 413, 422)],
    "429": ["refuse,code=429,retry_after=0.001"],
    "408": ["refuse,code=408,after_accept"],
    "409": ["refuse,code=409,after_accept"],
    "500": ["refuse,code=500,after_accept"],
    "502": ["refuse,code=502,after_accept", "html,code=502,after_accept"],
    "503": ["refuse,code=503,after_accept", "empty,code=503,after_accept"],
    "connection cut, before or within the response": ["cut,after_accept", "cut_body,after_accept"],
    "time-out": ["hang,seconds=60,after_accept"],
    "201, truncated or empty": ["truncated,after_accept", "empty,code=201,after_accept"],
    "307 to the same address": ["redirect,code=307,after_accept"],
}


@pytest.fixture
def luma(make_simulator) -> Simulator:
    return make_simulator()


@pytest.fixture
def sdk(luma: Simulator) -> Iterator[Luma]:
    with Luma(base_url=luma.luma_base_url, auth_token=luma.settings.api_key) as client:
        yield client


@pytest.fixture
def submit(luma: Simulator, sdk: Luma) -> Callable[..., Any]:
    def _submit(client: Luma = sdk, **changes: Any) -> Any:
        arguments = {
            "model": "ray-3.2",
            "type": "video_edit",
            "prompt": "Make it snow",
            "source": {"url": luma.sample_url, "media_type": "video/mp4"},
            "video": {"resolution": "720p", "edit": {"auto_controls": True}},
        }
        return client.generations.create(**{**arguments, **changes})

    return _submit


def test_sdk_submits_a_generation_and_polls_it_to_its_result(luma, sdk, submit, wait_until):
    submitted = submit()
    assert submitted.state in ("queued", "processing")
    ended = wait_until(lambda: (now := sdk.generations.get(submitted.id)).state == "completed" and now)
    assert ended.output[0].type == "video"
    assert httpx.get(ended.output[0].url).headers["Content-Type"] == "video/mp4"
    assert luma.accepted == 1


def test_sdk_uploads_a_file_and_edits_it(luma, sdk, submit, wait_until, make_clip):
    clip = make_clip()
    expires_at = datetime.now(UTC) + timedelta(days=2)
    created = sdk.files.create(
        mime_type="video/mp4", size_bytes=len(clip), purpose="input", filename="a.mp4", expires_at=expires_at
    )
    assert created.state == created.file.state == "pending"
    upload = created.upload
    assert httpx.request(upload.method, upload.url, headers=upload.headers, content=clip).status_code == 200
    sdk.files.complete(created.id)
    ready = wait_until(lambda: (now := sdk.files.get(created.id)).state != "pending" and now)
    assert (ready.state, ready.size_bytes, ready.filename) == ("ready", len(clip), "a.mp4")
    assert ready.expires_at == expires_at
    assert [file.id for file in sdk.files.list(limit=1).data] == [created.id]
    generation = submit(source={"file_id": created.id})
    wait_until(lambda: sdk.generations.get(generation.id).state == "completed")
    sdk.files.delete(created.id)
    assert sdk.files.get(created.id).state == "deleted"


def test_sdk_raises_the_errors_that_it_has_for_the_simulators_refusals(luma, sdk, submit):
    with pytest.raises(luma_agents.UnprocessableEntityError):
        submit(aspect_ratio="16:9")
    with pytest.raises(luma_agents.NotFoundError):
        sdk.generations.get("0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11")
    with pytest.raises(luma_agents.AuthenticationError):
        sdk.copy(auth_token="wrong").files.list(limit=1)
    luma.configure(credits=0)
    with pytest.raises(luma_agents.APIStatusError, match="402"):
        submit()


def table() -> dict[str, tuple[int, int]]:
    """Return the documented numbers of POSTs and of jobs paid for."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    return {row[0]: (int(row[1]), int(row[2])) for row in rows}


def test_the_documented_table_lists_what_is_measured():
    assert table().keys() == FAULTS.keys()


@pytest.mark.parametrize(("row", "fault"), [(row, fault) for row, faults in FAULTS.items() for fault in faults])
def test_sdk_sends_as_many_posts_and_pays_for_as_many_jobs_as_documented(
    luma, sdk, submit, monkeypatch, wait_until, row, fault
):
    # Shortens only the SDK's waits between its attempts.
    monkeypatch.setattr("luma_agents._base_client.INITIAL_RETRY_DELAY", 0.001)
    luma.configure(faults=[f"submit:{fault}"])
    client = sdk.with_options(timeout=1.0) if "hang" in fault else sdk
    with contextlib.suppress(luma_agents.LumaError, json.JSONDecodeError):
        # An empty response becomes an empty text in place of a generation.
        assert not submit(client)
    posts, paid = table()[row]
    # A POST that the client has given up may still be on its way to being accepted.
    wait_until(lambda: luma.accepted >= paid)
    received = [call for call in luma.calls if call.on == "submit"]
    assert (len(received), luma.accepted) == (posts, paid)
    assert not [name for call in received for name in call.headers if "idempotency" in name]

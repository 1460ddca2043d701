# SPDX-License-Identifier: Apache-2.0
"""The check against the real service, run against the simulated ones."""

from __future__ import annotations

import json

import pytest

from harness import live_check


@pytest.fixture(params=["kie", "luma"])
def service(request, luma, set_connection):
    set_connection(luma.base_url, requests_per_second=1000, service=request.param)
    return request.param


@pytest.mark.parametrize("runs_job", [False, True], ids=["free", "one job"])
def test_check_writes_a_transcript_without_secrets(luma, service, tmp_path, api_key, runs_job):
    said: list[str] = []
    transcript = live_check.check(tmp_path, runs_job=runs_job, say=said.append)
    assert luma.accepted == int(runs_job)
    calls = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert {call["request"]["method"] for call in calls} >= ({"GET", "POST"} if runs_job else {"GET"})
    assert all("response" in call for call in calls)
    assert api_key not in transcript.read_text()
    assert "X-Amz-Signature" not in transcript.read_text()
    assert (tmp_path / f"luma-live-{service}.mp4").exists() is runs_job
    assert any("NotFound" in line for line in said)


@pytest.mark.parametrize("mode", ["", "0", "yes"])
def test_nothing_is_called_unless_asked_for(luma, luma_conn, monkeypatch, mode):
    monkeypatch.setenv("LUMA_LIVE", mode)
    with pytest.raises(SystemExit, match="calls the real service"):
        live_check.main()
    assert luma.calls == []

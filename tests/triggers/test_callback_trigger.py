# SPDX-License-Identifier: Apache-2.0
"""LumaCallbackTrigger keeps a task deferred that waits for a callback, and fires to let it check for a missed one."""

from __future__ import annotations

import asyncio
import json

import pytest

from airflow_provider_luma.core import deferral
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger
from harness.simulated_clock import run

STATE = {"reference": "a-reference", "end_time": 1_800_000_600.0, "execution_deadline": 1_800_000_900.0}


class TestSerialize:
    def test_a_stored_trigger_is_created_anew_with_the_same_arguments(self):
        path, arguments = LumaCallbackTrigger(STATE, 1_800_000_000.0).serialize()
        assert path == "airflow_provider_luma.triggers.luma.LumaCallbackTrigger"
        assert arguments == {"state": STATE, "until": 1_800_000_000.0}
        assert LumaCallbackTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


class TestRun:
    def test_a_callback_trigger_fires_at_its_time_without_asking_luma(self, luma, luma_conn, start, only_event):
        event = run(only_event(LumaCallbackTrigger(STATE, start + 300)))
        assert event["at"] == pytest.approx(start + 300)
        assert luma.calls == []

    def test_the_event_repeats_the_state_for_a_task_that_is_given_nothing_else(self, start, only_event):
        event = run(only_event(LumaCallbackTrigger(STATE, start)))
        assert event["state"] == STATE
        assert DeferralState.read({}, event) == DeferralState(**STATE)

    def test_a_callback_trigger_fires_at_once_if_its_time_has_passed(self, start, only_event):
        assert run(only_event(LumaCallbackTrigger(STATE, start - 86_400)))["at"] == pytest.approx(start)

    def test_a_callback_trigger_fires_no_sooner_than_the_shortest_deferral(self, start, only_event, monkeypatch):
        shortest = deferral.SHORTEST_DEFERRAL
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_DEFERRAL", shortest)
        event = run(only_event(LumaCallbackTrigger(STATE, start - 86_400)))
        assert event["at"] == pytest.approx(start + shortest)

    async def test_a_callback_trigger_can_be_cancelled(self, only_event):
        waiting = asyncio.create_task(only_event(LumaCallbackTrigger(STATE, 4_000_000_000.0)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

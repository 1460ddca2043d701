# SPDX-License-Identifier: Apache-2.0
"""DeferralState: a resumed task gets the state it was deferred with, and a callback resumes the task it is for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.deferral import RESUMABLE_TRIGGERS, DeferralState
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger, LumaTaskTrigger

ids = st.none() | st.text(max_size=40)
times = st.none() | st.floats(0, 1e11)
states = st.builds(
    DeferralState,
    luma_task_id=ids,
    reference=ids,
    callback_task_id=ids,
    end_time=times,
    execution_deadline=times,
    first_attempt_at=times,
    outage_since=times,
    upload=st.none() | st.fixed_dictionaries({"file": st.text(max_size=40), "url": st.text(max_size=40)}),
    luma_conn_id=ids,
    parameters=st.none() | st.dictionaries(st.sampled_from(["prompt", "video_url"]), st.text(max_size=40)),
    created_at=times,
)

AWAITS_CALLBACK = DeferralState(reference="a-reference", end_time=2000.0, execution_deadline=3000.0)
CALLBACK = {"luma_task_id": "abc", "reference": "a-reference", "luma_conn_id": "luma_default"}
QUEUED = DeferralState(first_attempt_at=1000.0, outage_since=1100.0, execution_deadline=3000.0)


class TestKwargs:
    @given(states)
    def test_state_survives_the_database(self, state):
        assert DeferralState.read(json.loads(json.dumps(state.as_kwargs()))) == state

    @given(states)
    def test_state_survives_the_database_in_an_event_where_kwargs_are_missing(self, state):
        event = json.loads(json.dumps({"state": state.as_kwargs(), "at": 1.0}))
        assert DeferralState.read({}, event) == state

    def test_unset_fields_are_left_out_of_the_kwargs(self):
        assert DeferralState().as_kwargs() == {}
        assert DeferralState(luma_task_id="abc").as_kwargs() == {"luma_task_id": "abc"}

    def test_zero_is_kept_in_the_kwargs(self):
        assert DeferralState(execution_deadline=0.0).as_kwargs() == {"execution_deadline": 0.0}

    def test_kwargs_take_precedence_over_the_event(self):
        event = {"state": AWAITS_CALLBACK.as_kwargs(), "at": 1.0}
        assert DeferralState.read(QUEUED.as_kwargs(), event) == QUEUED

    def test_kwargs_of_another_version_are_ignored(self):
        assert DeferralState.read({**QUEUED.as_kwargs(), "added": 1}) == QUEUED

    @pytest.mark.parametrize(
        "event",
        [
            None,
            {"task": {"luma_task_id": "abc"}, "request": {}},
            {"error": {"type": "LumaError", "code": None, "msg": "", "luma_task_id": "abc"}},
            {"callback": {"luma_task_id": "abc"}},
        ],
        ids=["no event", "job finished", "wait failed", "callback received"],
    )
    def test_state_is_empty_if_neither_kwargs_nor_event_hold_it(self, event):
        assert DeferralState.read({}, event) == DeferralState()


class TestEventsOfTriggers:
    @pytest.mark.parametrize(
        ("trigger", "state"),
        [
            (LumaCallbackTrigger(AWAITS_CALLBACK.as_kwargs(), until=0.0), AWAITS_CALLBACK),
            (LumaSubmissionTrigger("luma_default", QUEUED.as_kwargs(), until=0.0), QUEUED),
        ],
        ids=["callback", "submission"],
    )
    async def test_state_is_recovered_from_the_event_of_a_trigger_that_only_waits(self, trigger, state):
        _, arguments = trigger.serialize()
        stored = type(trigger)(**json.loads(json.dumps(arguments)))
        (event,) = [event.payload async for event in stored.run()]
        assert DeferralState.read({}, json.loads(json.dumps(event))) == state


class TestIsResumedBy:
    def test_callback_resumes_a_task_that_waits_for_its_job(self):
        kwargs = DeferralState(luma_task_id="abc", end_time=2000.0).as_kwargs()
        assert DeferralState.is_resumed_by(kwargs, **CALLBACK)

    def test_callback_resumes_a_task_that_waits_for_the_callback_of_its_submission(self):
        assert DeferralState.is_resumed_by(AWAITS_CALLBACK.as_kwargs(), **CALLBACK)

    def test_callback_resumes_a_task_of_its_connection(self):
        kwargs = DeferralState(luma_task_id="abc", luma_conn_id="luma_default").as_kwargs()
        assert DeferralState.is_resumed_by(kwargs, **CALLBACK)

    @pytest.mark.parametrize(
        "kwargs",
        [
            DeferralState(luma_task_id="abc", luma_conn_id="luma_other").as_kwargs(),
            AWAITS_CALLBACK._replace(luma_conn_id="luma_other").as_kwargs(),
            DeferralState(luma_task_id="another").as_kwargs(),
            DeferralState(reference="another").as_kwargs(),
            DeferralState(luma_task_id="a-reference").as_kwargs(),
            DeferralState(reference="abc").as_kwargs(),
            DeferralState(reference="another", callback_task_id="abc").as_kwargs(),
            QUEUED.as_kwargs(),
            {},
            None,
        ],
        ids=[
            "its job over another connection",
            "its submission over another connection",
            "another job",
            "another submission",
            "a job named like the submission",
            "a submission named like the job",
            "named by a callback of another submission",
            "queued for submission",
            "no kwargs",
            "None",
        ],
    )
    def test_callback_does_not_resume_any_other_task(self, kwargs):
        assert not DeferralState.is_resumed_by(kwargs, **CALLBACK)


def test_triggers_that_a_callback_resumes_are_named_as_they_are_stored():
    stored = [
        LumaTaskTrigger("abc").serialize()[0],
        LumaCallbackTrigger({"reference": "a-reference"}, 0.0).serialize()[0],
    ]
    assert list(RESUMABLE_TRIGGERS) == stored

# SPDX-License-Identifier: Apache-2.0
"""LumaSubmissionTrigger queues a task whose submission Luma has refused for now, until it may submit again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_luma.core import deferral
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.services import kie, luma
from airflow_provider_luma.submission import queue
from airflow_provider_luma.submission.queue import USABLE_PART
from airflow_provider_luma.triggers.luma import LumaSubmissionTrigger
from airflow_provider_luma.waiting import per_loop as shared_module
from harness.simulated_clock import run

#: Seconds between two permissions at the full rate.
GAP = 1 / (kie.submissions_per_second * USABLE_PART)


@pytest.fixture
def trigger(start: float) -> Callable[..., LumaSubmissionTrigger]:
    """Creates the trigger of a task that first tried to submit some seconds before the start."""

    def _trigger(age: float = 0.0, seconds: float = 3600, **arguments: Any) -> LumaSubmissionTrigger:
        return LumaSubmissionTrigger("luma_default", {"first_attempt_at": start - age}, start + seconds, **arguments)

    return _trigger


@pytest.fixture
def fire(start: float, only_event) -> Callable[..., list[tuple[LumaSubmissionTrigger, float]]]:
    """Runs triggers in one simulated event loop; returns them as they fire, each with the seconds since the start."""

    def _fire(*triggers: LumaSubmissionTrigger) -> list[tuple[LumaSubmissionTrigger, float]]:
        fired = []

        async def fire_one(trigger: LumaSubmissionTrigger) -> None:
            event = await only_event(trigger)
            fired.append((trigger, event["at"] - start))

        async def fire_all() -> None:
            await asyncio.gather(*(fire_one(trigger) for trigger in triggers))
            assert shared_module._users[asyncio.get_running_loop()] == {}

        run(fire_all())
        return fired

    return _fire


def gaps(fired: list[tuple[LumaSubmissionTrigger, float]]) -> list[float]:
    return [later - earlier for (_, earlier), (_, later) in pairwise(fired)]


class TestSerialize:
    def test_a_stored_trigger_is_created_anew_with_the_same_arguments(self):
        state = {"first_attempt_at": 1.5, "outage_since": 1.75, "execution_deadline": 9.5}
        path, arguments = LumaSubmissionTrigger("my_luma", state, 2.5, 3.5, 4.5).serialize()
        assert path == "airflow_provider_luma.triggers.luma.LumaSubmissionTrigger"
        assert arguments == {
            "luma_conn_id": "my_luma",
            "state": state,
            "until": 2.5,
            "permitted_at": 3.5,
            "not_before": 4.5,
        }
        assert LumaSubmissionTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)

    @pytest.mark.parametrize("limit", [{"has_too_many_jobs": True}, {"requests_per_minute": 30}])
    def test_the_limit_that_a_service_names_is_stored_too(self, limit):
        path, arguments = LumaSubmissionTrigger("my_luma", {}, 2.5, 3.5, 4.5, **limit).serialize()
        assert limit.items() <= arguments.items()
        assert LumaSubmissionTrigger(**arguments).serialize() == (path, arguments)


#: The state of a task whose service is Luma's own API.
OWN = {"service": "luma"}

#: Seconds between two permissions on the smallest plan of Luma's own API.
OWN_GAP = 1 / (luma.submissions_per_second * USABLE_PART)


class TestPlan:
    """The limits of Luma's own API depend on the account's plan."""

    @pytest.fixture
    def trigger(self, start: float) -> Callable[..., LumaSubmissionTrigger]:
        def _trigger(**arguments: Any) -> LumaSubmissionTrigger:
            return LumaSubmissionTrigger("luma_default", {**OWN, "first_attempt_at": start}, start + 3600, **arguments)

        return _trigger

    def test_tasks_are_permitted_at_the_rate_of_the_smallest_plan_unless_the_service_tells_another(self, trigger, fire):
        assert gaps(fire(*(trigger() for _ in range(4)))) == pytest.approx([OWN_GAP] * 3, abs=0.02)

    def test_tasks_are_permitted_at_the_rate_that_a_refusal_has_told(self, trigger, fire):
        fired = fire(trigger(requests_per_minute=60), *(trigger() for _ in range(3)))
        assert gaps(fired) == pytest.approx([1 / USABLE_PART] * 3, abs=0.02)

    def test_refused_by_the_limit_of_jobs_they_pause_twice_as_long_and_less_after_each_submission(
        self, trigger, fire, start
    ):
        limited = {"permitted_at": start, "has_too_many_jobs": True}
        fired = fire(*(trigger(**limited) for _ in range(2)), *(trigger() for _ in range(3)))
        first = 2 / luma.submissions_per_second
        expected = [max(OWN_GAP, first * queue.PART_OF_PAUSE**number) for number in range(4)]
        assert gaps(fired) == pytest.approx(expected, abs=0.02)

    def test_first_attempt_that_is_refused_by_the_limit_of_jobs_lengthens_no_pause(self, trigger, fire):
        fired = fire(*(trigger(has_too_many_jobs=True) for _ in range(3)))
        assert gaps(fired) == pytest.approx([OWN_GAP] * 2, abs=0.02)

    def test_retry_after_is_waited_for_by_all(self, trigger, fire, start):
        fired = fire(trigger(not_before=start + 60, has_too_many_jobs=True), trigger())
        assert fired[0][1] == pytest.approx(60, abs=0.02)

    def test_retry_after_is_believed_for_five_minutes_at_most(self, trigger, fire, start):
        fired = fire(trigger(not_before=start + 3000, has_too_many_jobs=True))
        assert fired[0][1] == pytest.approx(300, abs=0.02)


class TestRun:
    def test_the_event_repeats_the_state_for_a_task_that_is_given_nothing_else(self, start, only_event):
        state = {"first_attempt_at": start - 9, "outage_since": start - 5, "execution_deadline": start + 900}
        event = run(only_event(LumaSubmissionTrigger("luma_default", state, start + 60)))
        assert event["state"] == state
        assert DeferralState.read({}, event) == DeferralState(**state)

    def test_tasks_are_permitted_one_by_one_in_the_order_of_their_first_attempts(self, trigger, fire):
        waiting = [trigger(age) for age in (3, 1, 4, 2)]
        fired = fire(*waiting)
        assert [one for one, _ in fired] == [waiting[2], waiting[0], waiting[3], waiting[1]]
        assert gaps(fired) == pytest.approx([GAP] * 3, abs=0.02)

    def test_the_first_task_waits_for_the_end_of_the_window_that_is_used_up(self, trigger, fire, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.submission.queue.SUBMISSION_WINDOW", 10.0)
        assert [at for _, at in fire(trigger(2), trigger(1))] == pytest.approx([10, 10 + GAP], abs=0.02)

    def test_the_refusal_of_a_permitted_submission_halves_the_rate(self, trigger, fire, start):
        fired = fire(*(trigger(permitted_at=start) for _ in range(3)))
        assert gaps(fired) == pytest.approx([2 * GAP] * 2, abs=0.02)

    def test_the_refusal_of_a_first_attempt_does_not_reduce_the_rate(self, trigger, fire):
        fired = fire(*(trigger() for _ in range(3)))
        assert gaps(fired) == pytest.approx([GAP] * 2, abs=0.02)

    def test_not_before_delays_all_tasks(self, trigger, fire, start):
        fired = fire(trigger(not_before=start + 150), trigger())
        assert fired[0][1] == pytest.approx(150, abs=0.02)

    def test_a_not_before_in_the_past_delays_nothing(self, trigger, fire, start):
        assert fire(trigger(not_before=start - 1))[0][1] == pytest.approx(0, abs=0.02)

    def test_a_task_is_permitted_at_its_time_limit_in_any_case_and_the_log_says_so(
        self, trigger, fire, start, task_log
    ):
        assert fire(trigger(seconds=20, not_before=start + 60))[0][1] == pytest.approx(20, abs=0.02)
        assert any("trying one last time" in entry["event"] for entry in task_log)

    def test_a_task_is_permitted_no_sooner_than_the_shortest_deferral(self, trigger, fire, monkeypatch):
        shortest = deferral.SHORTEST_DEFERRAL
        monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_DEFERRAL", shortest)
        assert fire(trigger())[0][1] == pytest.approx(shortest, abs=0.02)

    def test_a_cancelled_trigger_leaves_the_queue(self, trigger, only_event, start):
        async def main() -> dict[str, Any]:
            cancelled = asyncio.create_task(only_event(trigger(9, not_before=start + 5)))
            other = asyncio.create_task(only_event(trigger()))
            await asyncio.sleep(1)
            cancelled.cancel()
            event = await other
            assert cancelled.cancelled()
            assert shared_module._users[asyncio.get_running_loop()] == {}
            return event

        assert run(main())["at"] == pytest.approx(start + 5, abs=0.02)

    def test_the_age_of_the_first_attempt_and_the_length_of_the_queue_are_logged_once_a_minute(
        self, trigger, fire, start, task_log
    ):
        fire(trigger(90, not_before=start + 150))
        logged = [entry["event"] % entry.get("positional_args", ()) for entry in task_log]
        assert [text.partition("for submission for ")[2][:7] for text in logged] == ["0:02:30", "0:03:30"]
        assert all("tasks in this queue: 1" in text for text in logged)

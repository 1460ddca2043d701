# SPDX-License-Identifier: Apache-2.0
"""Which deferred tasks a callback resumes, when, and with what."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver import resume
from harness.api_server import ENDED, proof
from harness.metadata_db import (
    JOB,
    another_providers_task,
    operator_awaiting_callback,
    operator_awaiting_job,
    sensor_awaiting_job,
)

#: The event with which a task is resumed.
EVENT = {"callback": {"luma_task_id": JOB}}


class TestResumedTasks:
    async def test_task_that_waits_for_the_job_is_resumed_with_its_deferral_state(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        before = metadata_db.states([task])[0]
        answer = await api_server.callback(proof())
        assert (answer.status_code, answer.text) == (200, "OK")
        after = metadata_db.states([task])[0]
        assert (after.state, after.trigger_id) == ("scheduled", None)
        assert after.next_method == before.next_method == "execute_complete"
        assert after.next_kwargs == {**before.next_kwargs, "event": EVENT}, "the deadlines stay as they were"

    async def test_all_tasks_that_wait_for_the_job_are_resumed_in_all_dags(self, metadata_db, api_server):
        films = metadata_db.defer(operator_awaiting_job(), sensor_awaiting_job(), dag_id="films")
        others = [*metadata_db.defer(sensor_awaiting_job(), dag_id="others")]
        others += metadata_db.defer(sensor_awaiting_job(), dag_id="others")
        await api_server.callback(proof())
        assert metadata_db.resumed() == {*films, *others}
        assert [state.next_kwargs["event"] for state in metadata_db.states([*films, *others])] == [EVENT] * 4

    async def test_tasks_that_wait_for_something_else_stay_deferred(self, metadata_db, api_server):
        bystanders = metadata_db.defer(
            operator_awaiting_job("another-job"),
            sensor_awaiting_job(JOB[:-1]),
            operator_awaiting_callback(new_reference()),
            another_providers_task(),
            another_providers_task(luma_task_id=JOB, end_time=0),
            another_providers_task(reference="0" * 32),
        )
        before = metadata_db.states(bystanders)
        (task,) = metadata_db.defer(sensor_awaiting_job())
        await api_server.callback(proof("0" * 32))
        assert metadata_db.resumed() == {task}
        assert metadata_db.states(bystanders) == before

    @pytest.mark.parametrize("luma_task_id", ["50%", "a_b", 'a"b', "a\\b", "a'b", "ünï 雨 🎬", "x" * 250, "__var", "7"])
    async def test_job_is_found_whatever_its_id(self, metadata_db, api_server, luma_task_id):
        task, _ = metadata_db.defer(operator_awaiting_job(luma_task_id), operator_awaiting_job("another-job"))
        await api_server.callback(proof(), {"data": {"taskId": luma_task_id}})
        assert metadata_db.resumed() == {task}

    async def test_tasks_that_wait_for_something_else_are_not_read(self, metadata_db, api_server, monkeypatch):
        read, is_resumed_by = [], DeferralState.is_resumed_by

        def on_read(kwargs, **callback):
            read.append(kwargs["luma_task_id"])
            return is_resumed_by(kwargs, **callback)

        monkeypatch.setattr(DeferralState, "is_resumed_by", staticmethod(on_read))
        metadata_db.defer(*(operator_awaiting_job(f"job-{number}") for number in range(20)), another_providers_task())
        await api_server.callback(proof(), {"data": {"taskId": "job-7"}})
        assert read == ["job-7"]

    async def test_callback_resumes_whoever_waits_for_the_job_not_only_the_try_that_submitted(
        self, metadata_db, api_server
    ):
        tasks = metadata_db.defer(sensor_awaiting_job(), operator_awaiting_job("another-job"))
        await api_server.callback(proof(submitted_by=tasks[1]))
        assert metadata_db.resumed() == {tasks[0]}

    @pytest.mark.parametrize("state", ["running", "scheduled", "success", "failed", "up_for_retry"])
    async def test_task_that_is_not_deferred_is_left_as_it_is(self, metadata_db, api_server, state):
        tasks = metadata_db.defer(operator_awaiting_job(), state=state)
        before = metadata_db.states(tasks)
        assert (await api_server.callback(proof())).status_code == 200
        assert metadata_db.states(tasks) == before

    async def test_task_that_waits_for_the_callback_of_its_submission_is_resumed(self, metadata_db, api_server):
        reference = new_reference()
        task, other = metadata_db.defer(
            operator_awaiting_callback(reference), operator_awaiting_callback(new_reference())
        )
        await api_server.callback(proof(reference))
        assert metadata_db.resumed() == {task}
        after = metadata_db.states([task, other])
        assert after[0].next_kwargs["event"] == EVENT
        assert (after[0].state, after[0].next_method) == ("scheduled", "execute_with_callback")
        assert after[0].next_kwargs["reference"] == reference
        assert after[1].state == "deferred"

    async def test_token_of_an_ended_job_wakes_no_task_that_waits_for_another_one(self, metadata_db, api_server):
        """Whoever has read it in a proxy's log could have every job of the connection checked again and again."""
        own, ended = new_reference(), new_reference()
        (task,) = metadata_db.defer(operator_awaiting_job(reference=own))
        for _ in range(2):
            assert (await api_server.callback(proof(ended))).status_code == 200
        assert metadata_db.resumed() == set()
        await api_server.callback(proof(own))
        assert metadata_db.resumed() == {task}

    async def test_callback_of_a_submission_that_names_another_job_than_the_known_one_resumes_nothing(
        self, metadata_db, api_server
    ):
        own = new_reference()
        metadata_db.defer(operator_awaiting_job("another-job", own))
        await api_server.callback(proof(own))
        assert metadata_db.resumed() == set()

    async def test_callback_of_a_failed_job_resumes_too(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        await api_server.callback(proof(), {"code": 501, "msg": "no people, please", "data": {"taskId": JOB}})
        assert metadata_db.resumed() == {task}

    async def test_nothing_of_the_body_but_the_task_id_reaches_the_task(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        data = {**ENDED["data"], "resultUrls": ["https://evil.example.com"]}
        await api_server.callback(proof(), {"data": data, "event": 1})
        assert metadata_db.states([task])[0].next_kwargs["event"] == EVENT

    async def test_repeated_callbacks_resume_a_task_once(self, metadata_db, api_server):
        tasks = metadata_db.defer(operator_awaiting_job(), sensor_awaiting_job())
        query = proof()
        await api_server.callback(query)
        after = metadata_db.states(tasks)
        assert [(await api_server.callback(query)).status_code for _ in range(4)] == [200] * 4
        assert metadata_db.states(tasks) == after

    async def test_concurrent_callbacks_resume_each_task_once(self, metadata_db, api_server):
        tasks = metadata_db.defer(*(operator_awaiting_job() for _ in range(5)))
        query = proof()
        answers = await asyncio.gather(*(api_server.callback(query) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert metadata_db.resumed() == set(tasks)
        assert [state.next_kwargs["event"] for state in metadata_db.states(tasks)] == [EVENT] * 5

    async def test_callback_of_a_job_that_no_task_waits_for_is_taken(self, metadata_db, api_server):
        (bystander,) = metadata_db.defer(operator_awaiting_job("another-job"))
        assert (await api_server.callback(proof())).status_code == 200
        assert metadata_db.resumed() == set()
        assert metadata_db.states([bystander])[0].state == "deferred"

    async def test_connection_id_with_special_characters_is_found(self, metadata_db, api_server, connect):
        connect("luma/eu (1)", key="another-key")
        (task,) = metadata_db.defer(operator_awaiting_job(luma_conn_id="luma/eu (1)"))
        assert (await api_server.callback(proof(conn_id="luma/eu (1)", key="another-key"))).status_code == 200
        assert metadata_db.resumed() == {task}

    async def test_callback_over_another_connection_resumes_nobody(self, metadata_db, api_server, connect):
        connect("luma_other", key="another-key")
        reference = new_reference()
        tasks = metadata_db.defer(operator_awaiting_job(), sensor_awaiting_job(), operator_awaiting_callback(reference))
        query = proof(reference, conn_id="luma_other", key="another-key")
        assert (await api_server.callback(query)).status_code == 200
        assert metadata_db.resumed() == set()
        await api_server.callback(proof(reference))
        assert metadata_db.resumed() == set(tasks)

    async def test_task_is_resumed_by_a_callback_over_its_own_connection(self, metadata_db, api_server, connect):
        connect("luma_other", key="another-key")
        reference = new_reference()
        tasks = metadata_db.defer(
            operator_awaiting_job(luma_conn_id="luma_other"),
            operator_awaiting_callback(reference, luma_conn_id="luma_other"),
        )
        await api_server.callback(proof(reference, conn_id="luma_other", key="another-key"))
        assert metadata_db.resumed() == set(tasks)

    async def test_one_task_among_many_is_resumed_in_less_than_a_second_of_computing(self, metadata_db, api_server):
        tasks = metadata_db.defer(*(operator_awaiting_job(f"job-{number}") for number in range(300)))
        before = time.process_time()
        answer = await api_server.callback(proof(), {"data": {"taskId": "job-214"}})
        assert time.process_time() - before < 1
        assert answer.status_code == 200
        assert metadata_db.resumed() == {tasks[214]}


class Clock:
    """Tells the receiver when a deferral is old enough; until then, it sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_sleeping, self._has_passed = asyncio.Event(), asyncio.Event()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(resume, "SHORTEST_DEFERRAL", 600.0)
        monkeypatch.setattr(receiver_app, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": self._sleep}))

    async def _sleep(self, _seconds: float) -> None:
        self._is_sleeping.set()
        await self._has_passed.wait()

    async def until_receiver_sleeps(self) -> None:
        """Wait until the receiver waits for a deferral to be old enough."""
        await asyncio.wait_for(self._is_sleeping.wait(), 60)

    def pass_shortest_deferral(self) -> None:
        """Let the time pass for which no task is resumed after its deferral."""
        self._monkeypatch.setattr(resume, "SHORTEST_DEFERRAL", 0.0)
        self._has_passed.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the time since a deferral; the test advances it."""
    return Clock(monkeypatch)


class TestOneResumption:
    """One callback resumes a task once, even if the job is still running and the task is deferred again."""

    @pytest.fixture
    async def tasks(self, metadata_db, api_server, clock):
        """A task that a callback has resumed, and one deferred too recently for that, when the callback has come."""
        (earlier,) = metadata_db.defer(operator_awaiting_job(), seconds=3600)
        (recent,) = metadata_db.defer(operator_awaiting_job(), seconds=0)
        assert (await api_server.request("POST", f"/luma/callback?{proof()}", json=ENDED)).status_code == 200
        await clock.until_receiver_sleeps()
        assert metadata_db.resumed() == {earlier}
        return earlier, recent

    async def test_resumed_task_that_is_deferred_again_is_not_resumed_again(
        self, metadata_db, api_server, tasks, clock
    ):
        earlier, recent = tasks
        metadata_db.defer_again(earlier)
        clock.pass_shortest_deferral()
        await api_server.tasks_resumed()
        assert metadata_db.resumed() == {recent}

    @pytest.mark.parametrize("id_is_used_again", [False, True])
    async def test_task_that_waits_with_another_trigger_meanwhile_is_not_resumed(
        self, metadata_db, api_server, tasks, clock, id_is_used_again
    ):
        earlier, recent = tasks
        metadata_db.defer_again(recent, metadata_db.states([recent])[0].trigger_id if id_is_used_again else None)
        clock.pass_shortest_deferral()
        await api_server.tasks_resumed()
        assert metadata_db.resumed() == {earlier}
        assert metadata_db.states([recent])[0].state == "deferred"

    async def test_the_next_callback_resumes_a_task_that_was_deferred_again(
        self, metadata_db, api_server, tasks, clock
    ):
        earlier, recent = tasks
        metadata_db.defer_again(earlier)
        clock.pass_shortest_deferral()
        await api_server.tasks_resumed()
        await api_server.callback(proof())
        assert metadata_db.resumed() == {earlier, recent}


class TestShortestDeferral:
    """Airflow fails a task that is resumed before the scheduler has noticed its deferral."""

    async def test_task_deferred_just_now_is_resumed_after_the_shortest_deferral(
        self, metadata_db, api_server, monkeypatch
    ):
        monkeypatch.setattr(resume, "SHORTEST_DEFERRAL", 0.3)
        (recent,) = metadata_db.defer(operator_awaiting_job(), seconds=0)
        (earlier,) = metadata_db.defer(operator_awaiting_job(), seconds=60)
        assert (await api_server.callback(proof())).status_code == 200
        assert metadata_db.resumed() == {recent, earlier}
        assert metadata_db.resumed_after(recent) >= 0.3

    async def test_task_deferred_long_ago_is_resumed_without_waiting_for_one_deferred_just_now(
        self, metadata_db, api_server, clock
    ):
        (recent,) = metadata_db.defer(operator_awaiting_job(), seconds=0)
        (earlier,) = metadata_db.defer(operator_awaiting_job(), seconds=3600)
        answer = await api_server.request("POST", f"/luma/callback?{proof()}", json=ENDED)
        assert answer.status_code == 200
        await clock.until_receiver_sleeps()
        assert metadata_db.resumed() == {earlier}
        assert metadata_db.states([recent])[0].state == "deferred"
        clock.pass_shortest_deferral()

    async def test_luma_is_answered_before_a_task_deferred_just_now_is_resumed(self, metadata_db, api_server, clock):
        """Luma gives up after 15 seconds."""
        (recent,) = metadata_db.defer(operator_awaiting_job(), seconds=0)
        answer = await api_server.request("POST", f"/luma/callback?{proof()}", json=ENDED)
        assert answer.status_code == 200
        assert receiver_app._running
        clock.pass_shortest_deferral()
        await api_server.tasks_resumed()
        assert metadata_db.resumed() == {recent}

# SPDX-License-Identifier: Apache-2.0
"""A submission is paid for once, wherever its process is killed and whenever the task state store fails."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
import tenacity
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_provider_luma.exceptions import LumaRateLimitError, LumaTimeoutError
from airflow_provider_luma.submission.workflow import SubmissionAttempt
from tests.support.calls import submissions
from tests.support.task_instance import Killed, TaskRun, TaskStateStore, assert_result_is_of
from tests.support.task_logs import messages

#: At which call of set(), whether before or after it took effect; what is accepted, and what is recorded, by then.
CRASHES = [
    pytest.param(1, False, 0, "nothing", id="before the intent is recorded"),
    pytest.param(1, True, 0, "intent", id="after the intent is recorded"),
    pytest.param(2, False, 1, "intent", id="before the id is recorded"),
    pytest.param(2, True, 1, "id", id="after the id is recorded"),
]


def fail(*_: object) -> None:
    raise ConnectionError("the API server is down")


class TestOrderOfRecordAndRequest:
    def test_intent_is_recorded_before_the_request_is_sent_and_the_id_after_its_answer(self, relay, luma, task):
        seen = []
        relay.before_forwarding = relay.before_answering = lambda: seen.append(task.store.record)
        task.run_try()
        assert len(seen) == 2
        for record in seen:
            assert (record["luma_task_id"], record["try_number"], record["max_tries"]) == (None, 1, 2)
        assert task.store.record == {**seen[0], "luma_task_id": luma.jobs[0].task_id, "delivered": "result"}

    def test_intent_is_recorded_before_each_repeated_request(self, relay, luma, task, short_backoff):
        seen = []
        relay.before_forwarding = lambda: seen.append(task.store.record)
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        task.run_try()
        assert [record["luma_task_id"] for record in seen] == [None, None, None]
        job = luma.jobs[0].task_id
        refused = [("set", None), "delete"]
        assert task.store.operations == [*refused, *refused, ("set", None), ("set", job), ("set", "delivered")]

    def test_no_intent_is_recorded_during_the_backoff_after_a_refusal(self, relay, luma, sync_task, monkeypatch):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        during_backoff = []

        def sleep(_seconds: float) -> None:
            during_backoff.append(sync_task.store.record)

        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=sleep))  # no other thread's time
        sync_task.run_try(wait_for_completion=False)
        assert during_backoff == [None]


class TestKilled:
    @pytest.fixture
    def kill(self) -> Iterator[Callable[[type[BaseException]], Callable[[], None]]]:
        """Creates a function that ends what the main thread does, as Airflow's own timeout does: by a signal."""
        before = signal.getsignal(signal.SIGUSR1)

        def _kill(kind: type[BaseException]) -> Callable[[], None]:
            has_struck = threading.Event()

            def end(*_: object) -> None:
                if not has_struck.is_set():
                    has_struck.set()
                    raise kind

            def strike() -> None:
                # A signal that arrives just before the main thread waits for the network does not interrupt that.
                os.kill(os.getpid(), signal.SIGUSR1)
                while not has_struck.wait(0.05):
                    os.kill(os.getpid(), signal.SIGUSR1)

            signal.signal(signal.SIGUSR1, end)
            return strike

        yield _kill
        signal.signal(signal.SIGUSR1, before)

    @pytest.mark.parametrize(("number", "is_done", "accepted", "recorded"), CRASHES)
    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_retry_of_a_try_killed_at_a_write_to_the_store_pays_for_no_second_job_unasked(
        self, luma, task, number, is_done, accepted, recorded, resubmit_on_unknown
    ):
        task.store.crash_at((number, is_done))
        with pytest.raises(Killed):
            task.run_try(resubmit_on_unknown=resubmit_on_unknown)
        task.store.crash_at(None)
        assert luma.accepted == accepted
        if recorded == "intent" and not resubmit_on_unknown:
            with pytest.raises(AirflowFailException, match="log page"):
                task.run_try(resubmit_on_unknown=resubmit_on_unknown)
            assert luma.accepted == accepted
            return
        result = task.run_try(resubmit_on_unknown=resubmit_on_unknown)
        assert luma.accepted == (1 if recorded == "id" else accepted + 1)
        assert_result_is_of(luma.jobs[-1].task_id, task, result)

    @pytest.mark.parametrize("kind", [Killed, AirflowTaskTimeout])
    @pytest.mark.parametrize(("moment", "accepted"), [("before_forwarding", 0), ("before_answering", 1)])
    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    def test_retry_of_a_try_killed_during_the_request_pays_for_no_second_job_unasked(
        self, relay, luma, task, kill, moment, accepted, kind, resubmit_on_unknown
    ):
        strike, is_over = kill(kind), threading.Event()

        def die() -> None:
            if not is_over.is_set():
                strike()
                is_over.wait(10)
                raise ConnectionAbortedError

        setattr(relay, moment, die)
        with pytest.raises(kind):
            task.run_try(resubmit_on_unknown=resubmit_on_unknown)
        is_over.set()
        assert task.store.operations == [("set", None)]
        assert luma.accepted == accepted
        if resubmit_on_unknown:
            assert_result_is_of(task.run_try(resubmit_on_unknown=True)["luma_task_id"], task, task.ti.pushed)
            assert luma.accepted == accepted + 1
        else:
            with pytest.raises(AirflowFailException, match="log page"):
                task.run_try()
            assert luma.accepted == accepted

    @pytest.mark.parametrize("retries", [1, 2, pytest.param(3, marks=pytest.mark.long)])
    def test_no_sequence_of_killed_tries_pays_for_two_jobs(self, luma, modify, retries):
        luma.configure(processing_seconds=0)
        moments = [None, *((number, is_done) for number in (1, 2) for is_done in (False, True))]
        for crashes in itertools.product(moments, repeat=retries):
            task = TaskRun(
                lambda **changes: modify(deferrable=False, check_video=False, poll_interval=0.005, **changes),
                TaskStateStore(),
            )
            before = luma.accepted
            for crash in (*crashes, None):
                task.store.crash_at(crash)
                with suppress(Killed, AirflowFailException):
                    task.run_try()
            assert luma.accepted - before <= 1, crashes
            assert task.store.record is not None

    def test_retry_fails_if_the_intent_of_a_refused_submission_could_not_be_deleted(self, luma, sync_task, monkeypatch):
        """To the next try that submission is unknown."""
        luma.configure(faults=["submit:refuse,code=402,times=1"])

        def die(_key: str) -> None:
            raise Killed

        monkeypatch.setattr(sync_task.store, "delete", die)
        with pytest.raises(Killed):
            sync_task.run_try()
        with pytest.raises(AirflowFailException, match="log page"):
            sync_task.run_try()
        assert luma.accepted == 0

    def test_retry_submits_nothing_after_a_kill_during_the_submission_of_a_replacement(self, luma, task, leave_ended):
        leave_ended(task, outcome="generate_failed")
        task.store.crash_at((2, False))
        with pytest.raises(Killed):
            task.run_try()
        assert luma.accepted == 2
        with pytest.raises(AirflowFailException, match="Try 2 "):
            task.run_try()
        assert luma.accepted == 2

    @pytest.mark.parametrize("is_done", [False, True])
    def test_retry_waits_for_the_running_job_after_a_kill_of_the_cleared_try_that_took_it_over(
        self, luma, task, leave_running, is_done
    ):
        job = leave_running(task)
        task.store.crash_at((1, is_done))
        with pytest.raises(Killed):
            task.clear_and_run()
        task.store.crash_at(None)
        with suppress(LumaTimeoutError):
            task.run_try(timeout=0.05)
        assert (task.ti.pushed["luma_task_id"], luma.accepted) == (job, 1)


@pytest.fixture
def immediate_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a write to the store at once."""
    monkeypatch.setattr(SubmissionAttempt._save.retry, "wait", tenacity.wait_none())


class TestStoreFails:
    def test_nothing_is_submitted_if_the_intent_cannot_be_recorded(self, luma, task):
        task.store.around_set = fail
        with pytest.raises(ConnectionError):
            task.run_try()
        assert submissions(luma) == []

    def test_id_is_logged_if_it_cannot_be_recorded(self, luma, task, immediate_saves, task_log):
        def fail_after_the_intent(number: int, is_done: bool) -> None:
            if number > 1:
                fail()

        task.store.around_set = fail_after_the_intent
        with suppress(ConnectionError):
            task.run_try()
        assert luma.accepted == 1
        assert task.store.record["luma_task_id"] is None
        task.store.crash_at(None)
        assert len(messages(task_log, "accepted", luma.jobs[0].task_id)) == 1
        with suppress(AirflowFailException):
            task.run_try()
        assert luma.accepted == 1

    def test_refusal_is_raised_although_its_intent_cannot_be_deleted(self, luma, sync_task, monkeypatch):
        luma.configure(faults=["submit:refuse,code=422,times=1"])
        monkeypatch.setattr(sync_task.store, "delete", fail)
        with pytest.raises(AirflowFailException, match="422"):
            sync_task.run_try()

    def test_refused_submission_is_not_queued_if_its_intent_cannot_be_deleted(self, luma, modify, context, monkeypatch):
        monkeypatch.setattr(context["task_state_store"], "delete", fail)
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        with pytest.raises(LumaRateLimitError):
            modify().execute(context)


def test_id_that_could_not_be_written_at_once_is_written_a_moment_later(luma, modify, immediate_saves):
    task = TaskRun(lambda **changes: modify(wait_for_completion=False, **changes), TaskStateStore())

    def fail_once(number: int, is_done: bool) -> None:
        if (number, is_done) == (2, False):
            raise ConnectionError("the API server restarts")

    task.store.around_set = fail_once
    job = task.run_try()["luma_task_id"]
    assert task.store.record["luma_task_id"] == job
    assert task.run_try()["luma_task_id"] == job
    assert luma.accepted == 1

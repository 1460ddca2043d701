# SPDX-License-Identifier: Apache-2.0
"""LumaAsyncHook keeps one HTTP connection for all status checks, and follows changes of the Airflow connection."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

from airflow_provider_luma import async_client
from airflow_provider_luma.core.poll_state import Failed, PollAgain, PollState
from airflow_provider_luma.exceptions import LumaAuthError, LumaNotFoundError, LumaTimeoutError, LumaUnavailableError
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.hooks.luma import LumaAsyncHook
from airflow_provider_luma.services import kie
from tests.support.calls import status_checks


def new_state(luma_task_id: str = "abc") -> PollState:
    return PollState(luma_task_id, poll_interval=1)


@pytest.fixture
def connection_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the connections that LumaAsyncHook has read from Airflow, one for each time."""
    reads: list[str] = []
    read = hooks.get_async_connection

    async def _count_and_read(conn_id: str) -> object:
        reads.append(conn_id)
        return await read(conn_id)

    monkeypatch.setattr(hooks, "get_async_connection", _count_and_read)
    return reads


class TestHttpConnection:
    async def test_all_status_checks_share_one_http_connection(self, luma, luma_conn):
        async with LumaAsyncHook() as hook:
            for _ in range(5):
                with pytest.raises(LumaNotFoundError):
                    await hook.get_task("nobody-knows")
        assert luma.connections == 1

    async def test_closed_hook_opens_a_new_http_connection_when_it_is_used_again(self, luma, luma_conn):
        hook = LumaAsyncHook()
        for _ in range(2):
            with pytest.raises(LumaNotFoundError):
                await hook.get_task("nobody-knows")
            await hook.close()
        await hook.close()
        assert luma.connections == 2


class TestAirflowConnection:
    async def test_connection_is_read_once_for_many_status_checks(self, luma, submit, connection_reads):
        luma_task_id = submit(processing_seconds=60)
        async with LumaAsyncHook() as hook:
            for _ in range(5):
                await hook.client.poll(new_state(luma_task_id))
        assert len(status_checks(luma)) == 5
        assert connection_reads == ["luma_default"]

    async def test_connection_is_read_again_after_its_ttl(self, submit, connection_reads, monkeypatch):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        luma_task_id = submit(processing_seconds=60)
        async with LumaAsyncHook() as hook:
            async with asyncio.timeout(20):
                while len(connection_reads) < 3:
                    await hook.client.poll(new_state(luma_task_id))

    async def test_connection_is_read_to_its_end_although_the_status_check_is_cancelled(self, luma_conn, monkeypatch):
        """A callback resumes the task and cancels its trigger at any time; Airflow 3.1 must get rid of its answer."""
        begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def read(_: str) -> None:
            begun.set()
            await may_end.wait()
            ended.set()

        monkeypatch.setattr(hooks, "get_async_connection", read)
        check = asyncio.create_task(LumaAsyncHook().client.poll(new_state()))
        await begun.wait()
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        may_end.set()
        async with asyncio.timeout(5):
            await ended.wait()

    async def test_wrong_api_key_that_was_not_replaced_ends_the_wait(self, luma, set_connection):
        set_connection(luma.base_url, key="another-key")
        async with LumaAsyncHook() as hook:
            outcome = await hook.client.poll(new_state())
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.reason, LumaAuthError)
        assert len(status_checks(luma)) == 1

    async def test_wrong_api_key_that_was_replaced_is_retried_with_the_new_one(self, luma, set_connection):
        set_connection(luma.base_url, key="another-key")
        async with LumaAsyncHook() as hook:
            with pytest.raises(LumaAuthError):
                await hook.get_task("abc")
            set_connection(luma.base_url)
            outcome = await hook.client.poll(new_state())
            assert outcome == PollAgain(0.0)
            assert [call.code for call in status_checks(luma)] == [401, 401]  # one request a permission to send
            assert isinstance(await hook.client.poll(new_state()), PollAgain)
        assert [call.code for call in status_checks(luma)] == [401, 401, 404]

    async def test_connection_is_read_again_while_status_checks_use_the_old_one(
        self, luma, submit, set_connection, monkeypatch
    ):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        luma_task_id = submit(processing_seconds=60)
        read, begun, may_end = hooks.get_async_connection, asyncio.Event(), asyncio.Event()

        async def read_slowly(conn_id: str) -> object:
            begun.set()
            await may_end.wait()
            return await read(conn_id)

        async with LumaAsyncHook() as hook:
            assert await hook.client.get_requests_per_second() == 1000
            monkeypatch.setattr(hooks, "get_async_connection", read_slowly)
            set_connection(luma.base_url, requests_per_second=7)
            for _ in range(3):
                assert (await hook.client.poll(new_state(luma_task_id))).is_running
            assert begun.is_set()
            assert await hook.client.get_requests_per_second() == 1000
            may_end.set()
            async with asyncio.timeout(20):
                while await hook.client.get_requests_per_second() != 7:
                    await asyncio.sleep(0.01)

    async def test_connection_that_cannot_be_read_again_is_used_as_it_was(self, submit, monkeypatch, caplog):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        luma_task_id, reads = submit(processing_seconds=60), itertools.count()

        async def fail(_: str) -> object:
            next(reads)
            raise OSError("the secrets backend is down")

        async with LumaAsyncHook() as hook:
            await hook.client.poll(new_state(luma_task_id))
            monkeypatch.setattr(hooks, "get_async_connection", fail)
            for _ in range(4):
                assert (await hook.client.poll(new_state(luma_task_id))).is_running
        assert next(reads) > 1
        assert "never retrieved" not in caplog.text

    async def test_one_reading_serves_all_status_checks_that_were_refused_meanwhile(
        self, luma, set_connection, monkeypatch
    ):
        set_connection(luma.base_url, key="another-key")
        read, reads, may_end = hooks.get_async_connection, itertools.count(), asyncio.Event()

        async def read_slowly(conn_id: str) -> object:
            next(reads)
            await may_end.wait()
            return await read(conn_id)

        async with LumaAsyncHook() as hook:
            await hook.client.get_requests_per_second()
            monkeypatch.setattr(hooks, "get_async_connection", read_slowly)
            checks = [asyncio.create_task(hook.client.poll(new_state(f"job-{i}"))) for i in range(20)]
            while len(status_checks(luma)) < 20:
                await asyncio.sleep(0.01)
            set_connection(luma.base_url)
            may_end.set()
            assert await asyncio.gather(*checks) == [PollAgain(0.0)] * 20
        # Those whose refusal came after the reading had begun need another: the key may have been replaced in between.
        assert next(reads) <= 2

    async def test_reading_that_began_before_the_refusal_is_not_taken_for_the_current_connection(
        self, luma, set_connection, monkeypatch
    ):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        set_connection(luma.base_url, key="another-key")
        read, held, may_end = hooks.get_async_connection, [], asyncio.Event()

        async def read_before_the_change(conn_id: str) -> object:
            connection = await read(conn_id)
            if not held:
                held.append(connection)
                await may_end.wait()
            return connection

        async with LumaAsyncHook() as hook:
            await hook.client.get_requests_per_second()
            monkeypatch.setattr(hooks, "get_async_connection", read_before_the_change)
            check = asyncio.create_task(
                hook.client.poll(new_state())
            )  # its reading begins, and so its answer is awaited
            while not (held and status_checks(luma)):
                await asyncio.sleep(0.01)
            set_connection(luma.base_url)
            may_end.set()
            assert await check == PollAgain(0.0)

    async def test_connection_that_cannot_be_read_just_after_its_key_was_replaced_is_waited_out(
        self, luma, set_connection, monkeypatch
    ):
        set_connection(luma.base_url, key="another-key")
        read, reads = hooks.get_async_connection, itertools.count(1)

        async def fail_once(conn_id: str) -> object:
            if next(reads) == 2:
                raise OSError("the secrets backend is down")
            return await read(conn_id)

        monkeypatch.setattr(hooks, "get_async_connection", fail_once)
        async with LumaAsyncHook() as hook:
            with pytest.raises(LumaAuthError):
                await hook.client._get_status("abc", await hook.client._get_opened())
            set_connection(luma.base_url)
            outcomes = [await hook.client.poll(new_state()) for _ in range(2)]
        assert all(isinstance(outcome, PollAgain) for outcome in outcomes)
        assert "secrets backend" in str(outcomes[0].error)

    async def test_connection_that_is_never_read_to_its_end_holds_up_no_deadline(self, luma_conn, monkeypatch):
        monkeypatch.setattr(async_client, "READING_TIMEOUT", 0.01)
        monkeypatch.setattr(hooks, "get_async_connection", lambda _: asyncio.Event().wait())
        async with asyncio.timeout(20), LumaAsyncHook() as hook:
            outcome = await hook.client.poll(new_state())
            assert "could not be read: no response after 0.01 s" in outcome.error.msg
            overdue = await hook.client.poll(PollState("abc", poll_interval=1, end_time=time.time() - 1))
        assert isinstance(overdue, Failed)
        assert isinstance(overdue.reason, LumaTimeoutError)

    async def test_refused_key_is_reported_in_time_although_the_connection_is_not_read(
        self, luma, set_connection, monkeypatch
    ):
        set_connection(luma.base_url, key="another-key")
        async with asyncio.timeout(20), LumaAsyncHook() as hook:
            await hook.client.get_requests_per_second()
            monkeypatch.setattr(async_client, "READING_TIMEOUT", 0.01)
            monkeypatch.setattr(hooks, "get_async_connection", lambda _: asyncio.Event().wait())
            assert "could not be read" in (await hook.client.poll(new_state())).error.msg

    async def test_slow_reading_serves_who_asks_later(self, luma, luma_conn, monkeypatch):
        monkeypatch.setattr(async_client, "READING_TIMEOUT", 0.01)
        read, may_end, reads = hooks.get_async_connection, asyncio.Event(), itertools.count()

        async def read_slowly(conn_id: str) -> object:
            next(reads)
            await may_end.wait()
            return await read(conn_id)

        monkeypatch.setattr(hooks, "get_async_connection", read_slowly)
        async with LumaAsyncHook() as hook:
            for _ in range(3):
                assert (await hook.client.poll(new_state())).error is not None
            may_end.set()
            monkeypatch.setattr(async_client, "READING_TIMEOUT", 20.0)
            assert await hook.client.get_requests_per_second() == 1000
        assert next(reads) == 1

    async def test_key_that_is_another_one_at_each_reading_is_not_tried_without_a_pause(
        self, luma, set_connection, monkeypatch, task_log
    ):
        read, keys = hooks.get_async_connection, itertools.count()

        async def read_another(conn_id: str) -> object:
            set_connection(luma.base_url, key=f"another-key-{next(keys)}")
            return await read(conn_id)

        monkeypatch.setattr(hooks, "get_async_connection", read_another)
        state = PollState("abc", poll_interval=30, created_at=time.time(), end_time=time.time() + 60)
        async with LumaAsyncHook() as hook:
            assert await hook.client.poll(state) == PollAgain(0.0)
            assert (await hook.client.poll(state)).delay >= 30
            assert "refused" in str(task_log)
            state.end_time = time.time() - 1
            assert isinstance(await hook.client.poll(state), Failed)

    async def test_sessions_of_replaced_connections_are_closed_once_unused(self, luma, set_connection):
        async with LumaAsyncHook() as hook:
            sessions = []
            for number in range(6):
                set_connection(luma.base_url, timeout=0.001 if number < 4 else 60, requests_per_second=number + 1)
                opened = await hook.client._read_again()
                sessions.append(opened.session)
                await asyncio.sleep(0.002)
            assert [session.closed for session in sessions] == [True] * 4 + [False] * 2
        assert all(session.closed for session in sessions)

    async def test_missing_connection_is_waited_for_until_it_is_created(self, luma, set_connection):
        state = new_state()
        async with LumaAsyncHook() as hook:
            outcome = await hook.client.poll(state)
            assert isinstance(outcome, PollAgain)
            assert "luma_default" in str(outcome.error)
            set_connection(luma.base_url)
            assert isinstance(await hook.client.poll(state), PollAgain)
        assert len(status_checks(luma)) == 1


class TestLongAnswers:
    """The event loop is that of all triggers of all DAGs: whatever Luma answers must not hold it up."""

    @pytest.mark.parametrize(("numbers", "is_long"), [(10, False), (50_000, True)])
    async def test_long_answer_is_read_in_a_thread(self, wires, set_connection, monkeypatch, numbers, is_long):
        set_connection(wires.start(wires.envelope(200, {"successFlag": 0, "more": [1] * numbers})).base_url)
        read_task, threads = kie.read_status, []

        def read(*arguments):
            threads.append(threading.current_thread())
            return read_task(*arguments)

        monkeypatch.setattr(kie, "read_status", read)
        async with LumaAsyncHook() as hook:
            assert (await hook.get_task("abc")).luma_task_id == "abc"
        assert [thread is not threading.current_thread() for thread in threads] == [is_long]

    async def test_answer_beyond_a_quarter_of_a_megabyte_is_not_read(self, wires, set_connection, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.core.backoff.READ_RETRY_TIMEOUT", 0.01)
        set_connection(wires.start(wires.envelope(200, {"successFlag": 0, "more": "x" * 256 * 1024})).base_url)
        async with LumaAsyncHook() as hook:
            with pytest.raises(LumaUnavailableError, match="not a response from Luma"):
                await hook.get_task("abc")

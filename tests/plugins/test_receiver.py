# SPDX-License-Identifier: Apache-2.0
"""The receiver of callbacks, before a real metadata database: who may ring, whom it wakes, and what it never does."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
import pytest
import structlog
from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk.execution_time.task_runner import _defer_task
from airflow.serialization.serialized_objects import BaseSerialization
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import OperationalError

from airflow_provider_luma.callbacks import callback_url
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.plugins import doorbell, web
from airflow_provider_luma.plugins.luma import LumaPlugin
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.simulator.callbacks import signature
from airflow_provider_luma.submission import CALLBACK_KEY, STORE_KEY, Record, new_reference

try:
    from airflow.models.task_state_store import TaskStateStoreModel
except ImportError:  # Airflow below 3.3
    TaskStateStoreModel = None

try:
    from airflow.api_fastapi.common.http_access_log import HttpAccessLogMiddleware
except ImportError:  # Airflow below 3.2
    HttpAccessLogMiddleware = None

KEY = "sk-of-the-receiver-0123456789"
SECRET = "whsec-of-the-receiver"
JOB = "6b7e5e3f2a1d4c0b9a8f7e6d5c4b3a29"
CALLED = {"callback": {"luma_task_id": JOB}}
ENDED = {"code": 200, "msg": "Video modified successfully.", "data": {"taskId": JOB, "resultUrls": []}}

needs_task_state = pytest.mark.skipif(TaskStateStoreModel is None, reason="Airflow below 3.3 keeps no task state")


# -- Airflow's side ---------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What of a task instance a callback may change."""

    state: str
    trigger_id: int | None
    next_method: str
    next_kwargs: dict[str, Any]


class Airflow:
    """The metadata database, with tasks that wait, written there as worker and API server do it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def defer(
        self, *waits: TaskDeferred, dag_id: str = "films", seconds: float = 60, state: str = "deferred"
    ) -> list[Any]:
        """Let tasks of a new run be deferred, for so many seconds now; return the task instances' ids."""
        run_id, since = f"manual__{next(self._numbers)}", datetime.now(UTC) - timedelta(seconds=seconds)
        triggers, tasks = [], []
        for number, wait in enumerate(waits):
            task_id = f"task_{number}"
            sent, _ = _defer_task(
                wait, SimpleNamespace(dag_id=dag_id, run_id=run_id, task_id=task_id), structlog.get_logger()
            )
            # Through JSON, as on the way from the worker to the API server.
            sent = json.loads(
                sent.model_dump_json(include={"classpath", "trigger_kwargs", "next_method", "next_kwargs"})
            )
            if "__var" in sent["next_kwargs"]:  # below Airflow 3.2 the API server decodes it again
                sent["next_kwargs"] = BaseSerialization.deserialize(sent["next_kwargs"])
            triggers.append(Trigger(classpath=sent["classpath"], kwargs={}, created_date=since))
            triggers[-1].encrypted_kwargs = json.dumps(sent["trigger_kwargs"])
            tasks.append({"task_id": task_id, "next_method": sent["next_method"], "next_kwargs": sent["next_kwargs"]})
        with create_session() as session:
            session.execute(
                insert(DagRun).values(
                    dag_id=dag_id, run_id=run_id, run_type="manual", state="running", run_after=since, clear_number=0
                )
            )
            session.add_all(triggers)
            session.flush()
            same = {"dag_id": dag_id, "run_id": run_id, "map_index": -1, "pool": "default_pool", "state": state}
            session.execute(
                insert(TaskInstance),
                [{**same, **task, "trigger_id": trigger.id} for task, trigger in zip(tasks, triggers, strict=True)],
            )
            ids = session.execute(
                select(TaskInstance.task_id, TaskInstance.id).where(
                    TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id
                )
            ).all()
        found = {row.task_id: row.id for row in ids}
        return [found[task["task_id"]] for task in tasks]

    def states(self, ids: list[Any]) -> list[State]:
        columns = [getattr(TaskInstance, name) for name in State._fields]
        with create_session() as session:
            return [State(*session.execute(select(*columns).where(TaskInstance.id == one)).one()) for one in ids]

    def resumed(self) -> set[Any]:
        """The ids of all task instances that no longer wait."""
        with create_session() as session:
            return set(session.scalars(select(TaskInstance.id).where(TaskInstance.state != "deferred")))

    def resumed_after(self, task_instance_id: Any) -> float:
        """Seconds from the deferral of a task to its end."""
        with create_session() as session:
            scheduled, created = session.execute(
                select(TaskInstance.scheduled_dttm, DagRun.run_after)
                .join(DagRun, (DagRun.dag_id == TaskInstance.dag_id) & (DagRun.run_id == TaskInstance.run_id))
                .where(TaskInstance.id == task_instance_id)
            ).one()
        return (scheduled - created).total_seconds()

    # -- the task state store

    def remember(self, task_instance_id: Any, record: Record, **changes: Any) -> None:
        """Keep a record, as a task does, through the Execution API."""
        from airflow.state.metastore import MetastoreBackend

        MetastoreBackend().set(self._scope(task_instance_id), STORE_KEY, json.dumps(record.as_dict()), **changes)

    def note(self, task_instance_id: Any) -> Any:
        """What a callback has left for a task."""
        from airflow.state.metastore import MetastoreBackend

        stored = MetastoreBackend().get(self._scope(task_instance_id), CALLBACK_KEY)
        return stored and json.loads(stored)

    @staticmethod
    def _scope(task_instance_id: Any) -> Any:
        from airflow.state.metastore import TaskScope

        with create_session() as session:
            row = session.execute(
                select(TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index).where(
                    TaskInstance.id == task_instance_id
                )
            ).one()
        return TaskScope(*row)

    @staticmethod
    def empty() -> None:
        with create_session() as session:
            for model in filter(None, (TaskStateStoreModel, TaskInstance, Trigger, DagRun)):
                session.execute(delete(model))


@pytest.fixture(scope="session")
def _metadata() -> None:
    # Tables are made, and emptied: that must be nobody's but the tests'.
    assert str(settings.engine.url).startswith(f"sqlite:///{os.environ['AIRFLOW_HOME']}/")
    initdb()


@pytest.fixture
def airflow(_metadata: None) -> Iterator[Airflow]:
    """Airflow's database, without any tasks."""
    Airflow.empty()
    yield Airflow()
    Airflow.empty()


def job_waiter(luma_task_id: str = JOB) -> TaskDeferred:
    """How an operator is deferred that has submitted a job."""
    operator = LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="https://e.com/v.mp4")
    with pytest.raises(TaskDeferred) as deferred:
        operator._defer_for_job(luma_task_id, poll_interval=30, end_time=time.time() + 1800)
    return deferred.value


def sensor_waiter(luma_task_id: str = JOB) -> TaskDeferred:
    """How a sensor is deferred."""
    sensor = LumaTaskSensor(task_id="wait", luma_task_id=luma_task_id, execution_timeout=timedelta(hours=1))
    with pytest.raises(TaskDeferred) as deferred:
        sensor._defer_for_job(luma_task_id, poll_interval=30, end_time=time.time() + 1800)
    return deferred.value


def callback_waiter(reference: str) -> TaskDeferred:
    """How an operator is deferred that has lost the answer to its submission."""
    operator = LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="https://e.com/v.mp4")
    with pytest.raises(TaskDeferred) as deferred:
        operator._await_callback(reference, time.time() + 1800)
    return deferred.value


def stranger(**kwargs: Any) -> TaskDeferred:
    """How some other task is deferred."""
    return TaskDeferred(
        trigger=TimeDeltaTrigger(timedelta(hours=1)), method_name="execute_complete", kwargs=kwargs or None
    )


# -- the API server's side --------------------------------------------------------------------------------------


class Server:
    """An application that mounts the plugin's as the API server does, and those who call it."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.app = FastAPI()
        for mounted in LumaPlugin.fastapi_apps:
            self.app.mount(mounted["url_prefix"], mounted["app"])
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(self._outermost), base_url="http://airflow")

    async def _outermost(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await self.app(scope, receive, send)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._client.request(method, path, **options)

    async def call(self, query: str, body: Any = ENDED, **options: Any) -> httpx.Response:
        """Call back as Luma does, and let the bell ring out."""
        content = body if not isinstance(body, (dict, list)) else json.dumps(body).encode()
        answer = await self.ask("POST", f"/luma/callback?{query}", content=content, **options)
        await self.rung()
        return answer

    @staticmethod
    async def rung() -> None:
        while web._ringing:
            await asyncio.gather(*web._ringing)

    async def raw(self, scope: dict[str, Any], chunks: list[bytes], *, is_whole: bool = True) -> int:
        """
        Send a request byte by byte as it is, then be gone.

        :returns: the status of the answer, or 0 if none came
        """
        statuses: list[int] = []
        bodies = [
            {"type": "http.request", "body": chunk, "more_body": not is_whole or number < len(chunks)}
            for number, chunk in enumerate(chunks or [b""], start=1)
        ]

        async def receive() -> dict[str, Any]:
            return bodies.pop(0) if bodies else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        start = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "server": ("airflow", 80),
            "client": ("192.0.2.1", 4711),
            "root_path": "",
            "headers": [],
        }
        path = {"raw_path": scope["path"].encode("utf-8", "replace")}
        await self._outermost({**start, **path, **scope}, receive, send)
        return statuses[0] if statuses else 0

    async def close(self) -> None:
        await self.rung()
        await self._client.aclose()


@pytest.fixture
async def server(airflow: Airflow) -> AsyncIterator[Server]:
    """The API server. It has read no connection yet, and is closed when all bells have rung out."""
    web._connections.clear()
    server = Server()
    yield server
    await server.close()
    web._connections.clear()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give Airflow a connection."""

    def _connect(conn_id: str, key: str = KEY, kind: str = "luma", **extra: Any) -> None:
        values = {"conn_type": kind, "host": "http://127.0.0.1:9", "password": key, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(values))

    return _connect


@pytest.fixture(autouse=True)
def _luma_default(connect: Callable[..., None]) -> None:
    connect("luma_default")


def proof(reference: str | None = None, *, conn_id: str = "luma_default", key: str = KEY) -> str:
    """The query of the address that a submission gives to Luma."""
    connection = LumaConnection("http://127.0.0.1:9", key, callback_base_url="http://airflow")
    url = callback_url(connection, conn_id, reference or new_reference())
    assert url is not None
    return url.partition("?")[2]


def record(reference: str, luma_task_id: str | None = None, **changes: Any) -> Record:
    return Record(reference, "f" * 64, luma_task_id, max_tries=2, try_number=1, calls_back=True, **changes)


class TestWhoIsWoken:
    async def test_a_task_that_waits_for_the_job(self, airflow, server):
        (waiter,) = airflow.defer(job_waiter())
        before = airflow.states([waiter])[0]
        answer = await server.call(proof())
        assert (answer.status_code, answer.text) == (200, "OK")
        after = airflow.states([waiter])[0]
        assert (after.state, after.trigger_id) == ("scheduled", None)
        assert after.next_method == before.next_method == "execute_complete"
        assert after.next_kwargs == {**before.next_kwargs, "event": CALLED}, "the deadlines stay as they were"

    async def test_every_such_task_in_every_dag(self, airflow, server):
        films = airflow.defer(job_waiter(), sensor_waiter(), dag_id="films")
        others = airflow.defer(sensor_waiter(), dag_id="others") + airflow.defer(sensor_waiter(), dag_id="others")
        await server.call(proof())
        assert airflow.resumed() == {*films, *others}
        assert [one.next_kwargs["event"] for one in airflow.states([*films, *others])] == [CALLED] * 4

    async def test_and_nobody_else(self, airflow, server):
        bystanders = airflow.defer(
            job_waiter("another-job"),
            sensor_waiter(JOB[:-1]),
            callback_waiter(new_reference()),
            stranger(),
            stranger(luma_task_id=JOB, end_time=0),
            stranger(reference="0" * 32),
        )
        before = airflow.states(bystanders)
        (waiter,) = airflow.defer(sensor_waiter())
        await server.call(proof("0" * 32))
        assert airflow.resumed() == {waiter}
        assert airflow.states(bystanders) == before

    @pytest.mark.parametrize("state", ["running", "scheduled", "success", "failed", "up_for_retry"])
    async def test_nobody_who_is_not_asleep(self, airflow, server, state):
        tasks = airflow.defer(job_waiter(), state=state)
        before = airflow.states(tasks)
        assert (await server.call(proof())).status_code == 200
        assert airflow.states(tasks) == before

    async def test_a_task_that_waits_for_the_callback_of_its_submission(self, airflow, server):
        reference = new_reference()
        waiter, other = airflow.defer(callback_waiter(reference), callback_waiter(new_reference()))
        await server.call(proof(reference))
        assert airflow.resumed() == {waiter}
        after = airflow.states([waiter, other])
        assert after[0].next_kwargs["event"] == CALLED
        assert (after[0].state, after[0].next_method) == ("scheduled", "execute_called_back")
        assert after[0].next_kwargs["reference"] == reference
        assert after[1].state == "deferred"

    async def test_a_job_that_failed_rings_too(self, airflow, server):
        (waiter,) = airflow.defer(job_waiter())
        await server.call(proof(), {"code": 501, "msg": "no people, please", "data": {"taskId": JOB}})
        assert airflow.resumed() == {waiter}

    async def test_nothing_of_the_body_but_the_id_gets_through(self, airflow, server):
        (waiter,) = airflow.defer(job_waiter())
        await server.call(proof(), {"data": {**ENDED["data"], "resultUrls": ["https://evil.example.com"]}, "event": 1})
        assert airflow.states([waiter])[0].next_kwargs["event"] == CALLED

    async def test_five_calls_are_as_good_as_one(self, airflow, server):
        waiters = airflow.defer(job_waiter(), sensor_waiter())
        query = proof()
        await server.call(query)
        after = airflow.states(waiters)
        assert [(await server.call(query)).status_code for _ in range(4)] == [200] * 4
        assert airflow.states(waiters) == after

    async def test_five_calls_at_once_too(self, airflow, server):
        waiters = airflow.defer(*(job_waiter() for _ in range(5)))
        query = proof()
        answers = await asyncio.gather(*(server.call(query) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert airflow.resumed() == set(waiters)
        assert {one.next_kwargs["event"]["callback"]["luma_task_id"] for one in airflow.states(waiters)} == {JOB}

    async def test_a_job_that_nobody_waits_for(self, airflow, server):
        (bystander,) = airflow.defer(job_waiter("another-job"))
        assert (await server.call(proof())).status_code == 200
        assert airflow.resumed() == set()
        assert airflow.states([bystander])[0].state == "deferred"

    async def test_over_a_connection_with_a_name_of_its_own(self, airflow, server, connect):
        connect("luma/eu (1)", key="another-key")
        (waiter,) = airflow.defer(job_waiter())
        assert (await server.call(proof(conn_id="luma/eu (1)", key="another-key"))).status_code == 200
        assert airflow.resumed() == {waiter}

    async def test_one_among_a_thousand_in_less_than_a_second(self, airflow, server):
        waiters = airflow.defer(*(job_waiter(f"job-{number}") for number in range(1000)))
        started = time.monotonic()
        answer = await server.call(proof(), {"data": {"taskId": "job-714"}})
        assert time.monotonic() - started < 1
        assert answer.status_code == 200
        assert airflow.resumed() == {waiters[714]}


class TestThoseWhoHaveOnlyJustLainDown:
    async def test_they_are_given_time(self, airflow, server, monkeypatch):
        """Airflow fails a task that is resumed before the scheduler has taken note of its deferral."""
        monkeypatch.setattr(doorbell, "SHORTEST_WAIT", 0.6)
        (late,) = airflow.defer(job_waiter(), seconds=0)
        (early,) = airflow.defer(job_waiter(), seconds=60)
        assert (await server.call(proof())).status_code == 200
        assert airflow.resumed() == {late, early}
        assert airflow.resumed_after(late) >= 0.6

    async def test_others_do_not_wait_for_them(self, airflow, server, monkeypatch, until):
        monkeypatch.setattr(doorbell, "SHORTEST_WAIT", 600)
        (late,) = airflow.defer(job_waiter(), seconds=0)
        (early,) = airflow.defer(job_waiter(), seconds=3600)
        answer = await server.ask("POST", f"/luma/callback?{proof()}", json=ENDED)
        assert answer.status_code == 200
        await asyncio.to_thread(until, airflow.resumed)
        assert airflow.resumed() == {early}
        assert airflow.states([late])[0].state == "deferred"
        for ringing in web._ringing:
            ringing.cancel()
        with suppress(asyncio.CancelledError):
            await server.rung()

    async def test_luma_does_not_wait_for_them_either(self, airflow, server, monkeypatch):
        """It gives up after 15 seconds."""
        monkeypatch.setattr(doorbell, "SHORTEST_WAIT", 1.5)
        (late,) = airflow.defer(job_waiter(), seconds=0)
        answer = await server.ask("POST", f"/luma/callback?{proof()}", json=ENDED)
        assert answer.status_code == 200
        assert web._ringing
        await server.rung()
        assert airflow.resumed() == {late}


@needs_task_state
class TestWhatIsRemembered:
    async def test_which_job_a_lost_submission_has_become(self, airflow, server):
        reference = new_reference()
        (task,) = airflow.defer(stranger(), state="failed")
        airflow.remember(task, record(reference))
        assert (await server.call(proof(reference))).status_code == 200
        assert airflow.note(task) == {"reference": reference, "luma_task_id": JOB}

    async def test_the_note_is_kept_as_long_as_the_record(self, airflow, server):
        reference, expires_at = new_reference(), datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
        (task,) = airflow.defer(stranger(), state="failed")
        airflow.remember(task, record(reference), expires_at=expires_at)
        await server.call(proof(reference))
        with create_session() as session:
            rows = session.scalars(select(TaskStateStoreModel.expires_at)).all()
        assert rows == [expires_at, expires_at]

    async def test_nothing_where_the_task_knows(self, airflow, server):
        reference = new_reference()
        (task,) = airflow.defer(job_waiter())
        airflow.remember(task, record(reference, JOB))
        await server.call(proof(reference))
        assert airflow.note(task) is None
        assert airflow.resumed() == {task}

    async def test_nothing_of_other_submissions(self, airflow, server):
        tasks = airflow.defer(stranger(), stranger(), state="failed")
        for task in tasks:
            airflow.remember(task, record(new_reference()))
        assert (await server.call(proof())).status_code == 200
        assert [airflow.note(task) for task in tasks] == [None, None]

    async def test_only_for_the_one_it_belongs_to(self, airflow, server):
        reference = new_reference()
        lost, other = airflow.defer(stranger(), stranger(), state="failed")
        airflow.remember(lost, record(reference))
        airflow.remember(other, record(new_reference()))
        await server.call(proof(reference))
        assert (airflow.note(lost)["luma_task_id"], airflow.note(other)) == (JOB, None)

    async def test_before_who_waits_for_it_is_woken(self, airflow, server, monkeypatch):
        """The woken task must find it, should the event be lost."""
        reference, seen = new_reference(), []
        (task,) = airflow.defer(callback_waiter(reference))
        airflow.remember(task, record(reference))
        ring = doorbell.ring

        def look_first(*arguments: Any) -> Any:
            seen.append(airflow.note(task))
            return ring(*arguments)

        monkeypatch.setattr(doorbell, "ring", look_first)
        await server.call(proof(reference))
        assert seen == [{"reference": reference, "luma_task_id": JOB}]
        assert airflow.resumed() == {task}

    async def test_five_times_is_once(self, airflow, server):
        reference = new_reference()
        (task,) = airflow.defer(stranger(), state="failed")
        airflow.remember(task, record(reference))
        for _ in range(5):
            assert (await server.call(proof(reference))).status_code == 200
        with create_session() as session:
            assert sorted(session.scalars(select(TaskStateStoreModel.key))) == sorted([STORE_KEY, CALLBACK_KEY])

    @pytest.mark.parametrize("kept", ["[]", '"{reference}"', "{reference}", '{{"other": "{reference}"}}'])
    async def test_a_record_that_makes_no_sense_is_left_alone(self, airflow, server, kept):
        from airflow.state.metastore import MetastoreBackend

        reference = new_reference()
        (task,) = airflow.defer(stranger(), state="failed")
        MetastoreBackend().set(airflow._scope(task), STORE_KEY, kept.format(reference=reference))
        assert (await server.call(proof(reference))).status_code == 200
        assert airflow.note(task) is None


REFUSED = {
    "no query": lambda: "",
    "a wrong token": lambda: proof()[:-64] + "0" * 64,
    "a token cut short": lambda: proof()[:-1],
    "the token of another submission": lambda: proof().replace("reference=", "reference=0")[:-1],
    "the token of another connection": lambda: proof(conn_id="luma_default", key="the-key-of-luma_other"),
    "the name of another connection": lambda: proof(conn_id="luma_other", key=KEY),
    "a connection of another type": lambda: proof(conn_id="a_database", key=KEY),
    "a connection without a key": lambda: proof(conn_id="luma_keyless", key=KEY),
    "a connection that makes no sense": lambda: proof(conn_id="luma_nonsense", key=KEY),
    "a missing connection": lambda: proof(conn_id="luma_nowhere", key=KEY),
    "an empty key": lambda: proof(conn_id="luma_keyless", key=""),
    "a field twice": lambda: proof() + "&conn_id=luma_default",
    "a field more": lambda: proof() + "&more=1",
    "a field less": lambda: proof().partition("&")[2],
    "a name with a zero byte": lambda: proof(conn_id="luma_default\0", key=KEY),
    "no text": lambda: proof().replace("luma_default", "%ff%fe"),
}


class TestWhoIsTurnedAway:
    @pytest.fixture(autouse=True)
    def _connections(self, connect):
        connect("luma_other", key="the-key-of-luma_other")
        connect("a_database", kind="postgres")
        connect("luma_keyless", key="")
        connect("luma_nonsense", timeout="soon")

    @pytest.mark.parametrize("query", REFUSED.values(), ids=REFUSED)
    async def test_without_proof(self, airflow, server, query):
        airflow.defer(job_waiter())
        answer = await server.call(query())
        assert (answer.status_code, answer.content) == (403, b"")
        assert airflow.resumed() == set()

    async def test_all_get_the_same_answer(self, server):
        answers = [await server.call(query()) for query in REFUSED.values()]
        assert len({(answer.status_code, str(answer.headers), answer.content) for answer in answers}) == 1

    async def test_their_body_is_not_even_read(self, server):
        async def endless() -> AsyncIterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        assert (await server.call("", endless())).status_code == 403

    async def test_proof_in_the_body_or_a_header_is_none(self, airflow, server):
        airflow.defer(job_waiter())
        fields = dict(pair.split("=") for pair in proof().split("&"))
        for options in ({"json": {**ENDED, **fields}}, {"data": fields}, {"headers": fields, "json": ENDED}):
            assert (await server.ask("POST", "/luma/callback", **options)).status_code == 403
        await server.rung()
        assert airflow.resumed() == set()

    async def test_a_connection_is_not_read_at_every_call(self, server, monkeypatch):
        reads = []
        read = web._connection
        monkeypatch.setattr(web, "_connection", lambda conn_id: reads.append(conn_id) or read(conn_id))
        for _ in range(3):
            assert (await server.call(proof(conn_id="luma_nowhere"))).status_code == 403
            assert (await server.call(proof())).status_code == 200
        assert reads == ["luma_nowhere", "luma_default"]

    async def test_whoever_names_many_fills_no_memory(self, server, monkeypatch):
        monkeypatch.setattr(web, "MOST_CONNECTIONS", 10)
        for number in range(25):
            await server.call(proof(conn_id=f"luma_{number}"))
            assert len(web._connections) <= 10
        assert (await server.call(proof())).status_code == 200

    async def test_a_new_key_holds_soon(self, server, connect, monkeypatch):
        monkeypatch.setattr(web, "CONNECTION_TTL", 0.0)
        old, new = proof(), proof(key="the-new-key")
        assert (await server.call(old)).status_code == 200
        connect("luma_default", key="the-new-key")
        assert (await server.call(old)).status_code == 403
        assert (await server.call(new)).status_code == 200


class TestSignature:
    @pytest.fixture(autouse=True)
    def _secret(self, connect):
        connect("luma_default", webhook_secret=SECRET)

    @staticmethod
    def signed(at: float | None = None, *, luma_task_id: str = JOB, secret: str = SECRET) -> dict[str, str]:
        timestamp = str(int(time.time() if at is None else at))
        return {
            "X-Webhook-Timestamp": timestamp,
            "X-Webhook-Signature": signature(luma_task_id, timestamp, secret),
        }

    async def test_the_right_one(self, airflow, server):
        (waiter,) = airflow.defer(job_waiter())
        assert (await server.call(proof(), headers=self.signed())).status_code == 200
        assert airflow.resumed() == {waiter}

    @pytest.mark.parametrize("what", ["missing", "wrong", "stale", "early", "of another job", "no ASCII", "no time"])
    async def test_others(self, airflow, server, what):
        airflow.defer(job_waiter())
        given = {
            "missing": {},
            "wrong": self.signed(secret="another"),
            "stale": self.signed(time.time() - 310),
            "early": self.signed(time.time() + 310),
            "of another job": self.signed(luma_task_id="another-job"),
            "no ASCII": {**self.signed(), "X-Webhook-Signature": "ÿ".encode("latin-1")},
            "no time": {**self.signed(), "X-Webhook-Timestamp": "now"},
        }[what]
        answer = await server.call(proof(), headers=given)
        assert (answer.status_code, answer.content) == (403, b"")
        assert airflow.resumed() == set()

    async def test_the_token_is_needed_all_the_same(self, airflow, server):
        airflow.defer(job_waiter())
        assert (await server.call("", headers=self.signed())).status_code == 403
        assert airflow.resumed() == set()

    async def test_where_no_secret_is_known_it_is_not_looked_at(self, server, connect):
        connect("luma_default")
        assert (await server.call(proof(), headers=self.signed(secret="another"))).status_code == 200


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"OK",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            {"data": None},
            {"data": {"taskId": None}},
            {"data": {"taskId": "a\ud800b"}},
            {"data": {"taskId": "a\0b"}},
            {"taskId": JOB},
            [ENDED],
        ],
        ids=lambda body: repr(body)[:30],
    )
    async def test_without_an_id(self, airflow, server, body):
        airflow.defer(job_waiter())
        answer = await server.call(proof(), body)
        assert (answer.status_code, answer.content) == (400, b"")
        assert airflow.resumed() == set()

    async def test_of_any_content_type(self, airflow, server):
        (waiter,) = airflow.defer(job_waiter())
        assert (await server.call(proof(), headers={"Content-Type": "text/plain"})).status_code == 200
        assert airflow.resumed() == {waiter}

    async def test_too_large(self, airflow, server):
        airflow.defer(job_waiter())
        answer = await server.call(proof(), b'{"data": {"taskId": "' + b"x" * 10_000_000 + b'"}}')
        assert (answer.status_code, answer.content) == (413, b"")
        assert airflow.resumed() == set()

    async def test_too_large_in_pieces(self, server):
        """Of which no more are taken than it takes to see that."""
        taken = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal taken
            for _ in range(10_000):
                taken += 1
                yield b" " * 1000

        answer = await server.call(proof(), pieces())
        assert (answer.status_code, answer.content) == (413, b"")
        assert "content-length" not in answer.request.headers
        assert taken <= web.LARGEST_BODY // 1000 + 2

    async def test_the_largest(self, server):
        text = json.dumps(ENDED).encode()
        assert (await server.call(proof(), text + b" " * (web.LARGEST_BODY - len(text)))).status_code == 200
        assert (await server.call(proof(), text + b" " * (web.LARGEST_BODY - len(text) + 1))).status_code == 413

    async def test_too_slow(self, airflow, server, monkeypatch):
        monkeypatch.setattr(web, "SLOWEST_BODY", 0.1)
        airflow.defer(job_waiter())

        async def stuck() -> AsyncIterator[bytes]:
            yield b'{"data":'
            await asyncio.Event().wait()

        answer = await server.call(proof(), stuck())
        assert (answer.status_code, answer.content) == (408, b"")
        assert airflow.resumed() == set()

    async def test_broken_off(self, airflow, server):
        airflow.defer(job_waiter())
        scope = {"method": "POST", "path": "/luma/callback", "query_string": proof().encode()}
        await server.raw(scope, [json.dumps(ENDED).encode()], is_whole=False)
        await server.rung()
        assert airflow.resumed() == set()


class TestTrouble:
    async def test_a_database_that_fails_is_told_to_luma_so_that_it_calls_again(
        self, airflow, server, monkeypatch, caplog
    ):
        def fail(*_: Any) -> bool:
            raise OperationalError("SELECT", {}, Exception("the database is away"))

        airflow.defer(job_waiter())
        monkeypatch.setattr(doorbell, "remember", fail)
        answer = await server.call(proof())
        assert (answer.status_code, answer.content) == (503, b"")
        (line,) = [one for one in caplog.records if one.name == web.__name__]
        assert line.levelno == logging.ERROR
        assert JOB in line.getMessage()
        assert "the database is away" in caplog.text
        assert airflow.resumed() == set()

    async def test_a_bell_that_does_not_ring_leaves_a_line(self, airflow, server, monkeypatch, caplog):
        def fail(*_: Any) -> Any:
            raise OperationalError("SELECT", {}, Exception("the database is away"))

        (waiter,) = airflow.defer(job_waiter())
        with monkeypatch.context() as patched:
            patched.setattr(doorbell, "ring", fail)
            assert (await server.call(proof())).status_code == 200
        (line,) = [one for one in caplog.records if one.name == web.__name__ and one.levelno == logging.ERROR]
        assert JOB in line.getMessage()
        assert airflow.resumed() == set()
        await server.call(proof())
        assert airflow.resumed() == {waiter}, "the next call rings"


class TestSecrecy:
    async def test_the_access_log_does_not_get_to_see_the_token(self, server):
        for query in (proof(), proof()[:-64] + "0" * 64, "token=abc"):
            await server.call(query)
        assert [scope["query_string"] for scope in server.scopes] == [b"", b"", b""]

    @pytest.mark.skipif(HttpAccessLogMiddleware is None, reason="this Airflow has no access log of its own")
    async def test_nor_does_airflows(self, server, task_log):
        server.app.add_middleware(HttpAccessLogMiddleware)
        query = proof()
        await server.call(query)
        (entry,) = [one for one in task_log if one["event"] == "request finished"]
        assert (entry["path"], entry["query"], entry["status_code"]) == ("/luma/callback", "", 200)
        assert query[-64:] not in repr(task_log)

    async def test_no_line_of_any_log_holds_it(self, airflow, server, connect, caplog, monkeypatch):
        connect("luma_default", webhook_secret=SECRET)
        airflow.defer(job_waiter())
        queries = [proof(), proof(conn_id="luma_nowhere"), proof()[:-64] + "f" * 64, proof() + "&x=1"]
        with caplog.at_level(logging.DEBUG):
            for query in queries:
                await server.call(query)
                await server.call(query, headers=TestSignature.signed())
                await server.call(query, b"nonsense")
            with monkeypatch.context() as patched:
                patched.setattr(doorbell, "remember", lambda *_: 1 / 0)
                await server.call(queries[0], headers=TestSignature.signed())
        said = "\n".join(
            logging.Formatter("%(message)s").format(one)
            for one in caplog.records
            if not one.name.startswith(("httpx", "httpcore"))  # the caller's own
        )
        assert JOB in said
        for secret in (KEY, SECRET, *(query[-64:] for query in queries)):
            assert secret not in said


class TestTheRest:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def test_callbacks_are_posted(self, airflow, server, method):
        airflow.defer(job_waiter())
        answer = await server.ask(method, f"/luma/callback?{proof()}")
        await server.rung()
        assert answer.status_code == 405
        assert answer.content == b""
        assert airflow.resumed() == set()
        assert server.scopes[-1]["query_string"] == b"", "it is not for the access log, whoever has opened the address"

    @pytest.mark.parametrize(
        "path",
        ["/", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/callback/", "/static", "/static/"],
    )
    async def test_there_is_nothing_else(self, server, path):
        answer = await server.ask("GET", f"/luma{path}")
        assert answer.status_code == 404

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/result?dag_id=films", "text/html"),
            ("/static/result.css", "text/css"),
            ("/static/result.js", "text/javascript"),
        ],
    )
    async def test_the_page(self, server, path, kind):
        answer = await server.ask("GET", f"/luma{path}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert len(answer.content) > 500
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in str(policy) and "*" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"

    @pytest.mark.parametrize("path", ["../web.py", "%2e%2e/web.py", "..%2fweb.py", "result.html", "/etc/passwd"])
    async def test_of_the_files_beside_it_none_is_served(self, server, path):
        scope = {"method": "GET", "path": f"/luma/static/{path}", "query_string": b""}
        assert await server.raw(scope, [b""]) == 404


# -- anything ---------------------------------------------------------------------------------------------------

OURS = ["/luma/callback", "/luma/result", "/luma/static/result.css", "/luma/static/result.js", "/luma/"]
HEADERS = [
    *(b"content-type", b"content-length", b"range", b"if-range", b"if-none-match", b"if-modified-since", b"accept"),
    *(b"x-webhook-timestamp", b"x-webhook-signature", b"authorization", b"cookie", b"origin", b"host", b"expect"),
]
VALUES = [
    b"bytes=0-",
    b"bytes=9999999-",
    b"bytes=-1",
    b"bytes=5-1,0-0",
    b"bytes=a-b",
    b"-1",
    b"1e9",
    b"text/html",
    b"*",
]
FORGED = [query() for query in REFUSED.values()]

fields = st.dictionaries(
    st.sampled_from(["conn_id", "reference", "token", "x"]),
    st.one_of(st.text(max_size=70), st.sampled_from(["luma_default", "a_database", "0" * 32, "0" * 64])),
)
queries = st.one_of(
    st.just(b""),
    st.binary(max_size=120),
    st.sampled_from(FORGED).map(str.encode),
    fields.map(lambda some: urlencode(some, errors="surrogatepass").encode()),
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.just(json.dumps(ENDED).encode()),
    st.sampled_from([b"[" * 5000, b"\xff" * 10, b"x" * 300_000]),
)


class TestAnything:
    @hypothesis_settings(
        max_examples=2000,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        method=st.sampled_from(
            ["POST", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "QUERY", "", "post"]
        ),
        path=st.one_of(st.sampled_from(OURS), st.text(max_size=30).map(lambda text: f"/luma/{text}")),
        query=queries,
        headers=st.lists(
            st.tuples(st.sampled_from(HEADERS), st.one_of(st.sampled_from(VALUES), st.binary(max_size=30))), max_size=4
        ),
        chunks=st.lists(bodies, max_size=3),
    )
    async def test_without_proof_nothing_breaks_and_nobody_is_woken(
        self, airflow, server, method, path, query, headers, chunks
    ):
        with create_session() as session:
            waits = session.scalar(select(TaskInstance.id).limit(1)) is not None
        if not waits:
            airflow.defer(job_waiter(), callback_waiter("0" * 32), callback_waiter(""))
        server.scopes.clear()
        scope = {"method": method, "path": path, "query_string": query, "headers": headers}
        status = await server.raw(scope, chunks)
        assert 200 <= status < 500
        if path == "/luma/callback":
            assert status in (403, 405)
        assert not web._ringing
        assert airflow.resumed() == set()

    @hypothesis_settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        headers=st.lists(
            st.tuples(st.sampled_from(HEADERS), st.one_of(st.sampled_from(VALUES), st.binary(max_size=30))), max_size=4
        ),
        chunks=st.lists(
            st.one_of(bodies, st.builds(lambda text: json.dumps({"data": {"taskId": text}}).encode(), st.text())),
            max_size=3,
        ),
    )
    async def test_with_proof_nothing_breaks_either(self, server, headers, chunks):
        scope = {"method": "POST", "path": "/luma/callback", "query_string": proof().encode(), "headers": headers}
        assert await server.raw(scope, chunks) in (200, 400, 413)
        await server.rung()

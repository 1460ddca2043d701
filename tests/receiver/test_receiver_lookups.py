# SPDX-License-Identifier: Apache-2.0
"""Callbacks without proof cost next to nothing, and hold nobody up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from sqlalchemy import delete

from airflow_provider_luma.receiver import lookups
from harness.api_server import ENDED, KEY, api_server_process, proof
from harness.metadata_db import operator_awaiting_job
from tests.support.secrets_backend import BACKEND, SecretsBackend

pytestmark = [pytest.mark.slow, pytest.mark.versions]

#: What the secrets backend holds; what other tests use, it does not.
KEPT_SECRET = {"kept_secret": f"luma://:{KEY}@", "hanging_secret": f"luma://:{KEY}@"}


@pytest.fixture(autouse=True)
def secrets_backend(monkeypatch) -> type[SecretsBackend]:
    """A secrets backend with a connection that cannot be listed."""
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", BACKEND)
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND_KWARGS", json.dumps({"connections": KEPT_SECRET}))
    SecretsBackend.asked.clear()
    SecretsBackend.may_answer.set()
    return SecretsBackend


@pytest.fixture
async def proven(api_server, monkeypatch) -> str:
    """The name of a connection that a valid token has named, and that is not cached."""
    monkeypatch.setattr(lookups, "CONNECTION_TTL", 0.0)
    assert (await api_server.callback(proof(conn_id="kept_secret"))).status_code == 200
    return "kept_secret"


@pytest.fixture
def deferred(metadata_db) -> object:
    """A deferred task, whose connection is in the secrets backend."""
    return metadata_db.defer(operator_awaiting_job(luma_conn_id="kept_secret"))[0]


@pytest.fixture
async def hanging_lookups(api_server, secrets_backend) -> AsyncIterator[list[asyncio.Task]]:
    """As many callbacks that name invented connections as are looked up; none of them gets an answer."""
    secrets_backend.may_answer.clear()
    names = [f"hanging_{number}" for number in range(lookups.MAX_UNKNOWN_LOOKUPS)]
    callbacks = [asyncio.create_task(api_server.callback(proof(conn_id=name))) for name in names]
    while len(secrets_backend.asked) < lookups.LOOKUP_THREADS:
        await asyncio.sleep(0.01)
    yield callbacks
    secrets_backend.may_answer.set()
    assert {(await callback).status_code for callback in callbacks} == {403}


@pytest.fixture
def stored(metadata_db) -> Iterator[str]:
    """The name of a connection in the metadata database."""
    with create_session() as session:
        session.add(Connection(conn_id="stored", conn_type="luma", password=KEY))
    yield "stored"
    with create_session() as session:
        session.execute(delete(Connection))


async def test_connection_is_cached_whether_it_exists_or_not(api_server, secrets_backend):
    for _ in range(3):
        assert (await api_server.callback(proof(conn_id="luma_nowhere"))).status_code == 403
        assert (await api_server.callback(proof())).status_code == 200
    assert secrets_backend.asked == ["luma_nowhere", "luma_default"]


async def test_callbacks_for_the_same_connection_share_a_lookup(api_server, secrets_backend):
    secrets_backend.may_answer.clear()
    callbacks = [asyncio.create_task(api_server.callback(proof(conn_id="hanging_secret"))) for _ in range(20)]
    while not secrets_backend.asked:
        await asyncio.sleep(0.01)
    callbacks.append(asyncio.create_task(api_server.callback(proof(conn_id="hanging_secret"))))
    callbacks[0].cancel()
    await asyncio.wait(callbacks[:1])
    secrets_backend.may_answer.set()
    assert [(await callback).status_code for callback in callbacks[1:]] == [200] * 20
    assert secrets_backend.asked == ["hanging_secret"]


async def test_lookup_that_takes_too_long_is_given_up(api_server, secrets_backend, monkeypatch):
    monkeypatch.setattr(lookups, "LOOKUP_TIMEOUT", 0.1)
    secrets_backend.may_answer.clear()
    assert (await api_server.callback(proof(conn_id="hanging_1"))).status_code == 503
    secrets_backend.may_answer.set()


async def test_too_many_invented_names_are_refused_without_a_lookup(api_server, hanging_lookups):
    assert (await api_server.callback(proof(conn_id="one_too_many"))).status_code == 503
    assert not any(callback.done() for callback in hanging_lookups)


async def test_connection_that_can_be_listed_does_not_wait_for_invented_names(api_server, stored, hanging_lookups):
    for conn_id in ("luma_default", stored):
        assert (await api_server.callback(proof(conn_id=conn_id))).status_code == 200
    assert not any(callback.done() for callback in hanging_lookups)


async def test_connection_of_a_deferred_task_does_not_wait_for_invented_names(
    metadata_db, api_server, deferred, hanging_lookups
):
    assert (await api_server.callback(proof(conn_id="kept_secret"))).status_code == 200
    assert metadata_db.resumed() == {deferred}
    assert not any(callback.done() for callback in hanging_lookups)


async def test_flood_of_forged_callbacks_keeps_no_genuine_one_from_its_answer(
    api_server, secrets_backend, proven, stored, hanging_lookups
):
    flood = []
    for number in range(60):
        forged = proof(conn_id=f"hanging_more_{number}")
        flood.append(asyncio.create_task(api_server.callback(forged)))
        genuine = proof(conn_id=("luma_default", stored, proven)[number % 3])
        assert (await api_server.callback(genuine)).status_code == 200
    assert not any(callback.done() for callback in hanging_lookups)
    assert {(await callback).status_code for callback in flood} == {503}


async def test_proven_connection_is_read_again_without_waiting_for_invented_names(
    api_server, secrets_backend, proven, hanging_lookups
):
    secrets_backend.asked.clear()
    assert (await api_server.callback(proof(conn_id=proven))).status_code == 200
    assert secrets_backend.asked.count(proven) == 1
    assert not any(callback.done() for callback in hanging_lookups)


async def test_connection_that_a_forged_token_names_is_not_proven(api_server, secrets_backend, hanging_lookups):
    for _ in range(2):
        assert (await api_server.callback(proof(conn_id="kept_secret", key="forged"))).status_code == 503


async def test_invented_names_do_not_evict_a_proven_connection(api_server, secrets_backend, monkeypatch):
    monkeypatch.setattr(lookups, "CONNECTION_CACHE_SIZE", 10)
    for _ in range(2):  # the first one proves it
        assert (await api_server.callback(proof(conn_id="kept_secret"))).status_code == 200
    for number in range(25):
        assert (await api_server.callback(proof(conn_id=f"invented_{number}"))).status_code == 403
    secrets_backend.asked.clear()
    assert (await api_server.callback(proof(conn_id="kept_secret"))).status_code == 200
    assert secrets_backend.asked == []
    await api_server.callback(proof(conn_id="invented_0"))
    assert secrets_backend.asked == ["invented_0"], "the cache is bounded"


async def _answer(port: int, query: str) -> tuple[int, float]:
    """Send a callback over a new connection; return the answer's status, and the seconds until it came."""
    body, started = json.dumps(ENDED), time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /luma/callback?{query} HTTP/1.1\r\nHost: airflow\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status, time.monotonic() - started


async def _send(port: int, queries: list[str], per_second: float) -> list[tuple[int, float]]:
    """Send callbacks at a steady rate, whether or not earlier ones have been answered; return all answers."""
    started, sent = time.monotonic(), []
    for number, query in enumerate(queries):
        await asyncio.sleep(started + number / per_second - time.monotonic())
        sent.append(asyncio.create_task(_answer(port, query)))
    return await asyncio.gather(*sent)


async def _slowest_genuine_in_a_flood() -> float:
    """Flood an API server that has just started; return the seconds that the slowest genuine callback took."""
    # As if the secrets backend were asked over a network.
    kwargs = json.dumps({"seconds": 0.05, "connections": KEPT_SECRET})
    forged = [proof(conn_id=f"invented_{number}") for number in range(1500)]
    genuine = [proof(conn_id=("luma_default", "kept_secret", "luma_second")[number % 3]) for number in range(30)]
    with api_server_process(AIRFLOW__SECRETS__BACKEND_KWARGS=kwargs) as port:
        assert (await _answer(port, proof(conn_id="kept_secret")))[0] == 200  # once it has started
        flood, answers = await asyncio.gather(_send(port, forged, 500), _send(port, genuine, 10))
    assert {status for status, _ in flood} == {403, 503}
    assert {status for status, _ in answers} == {200}
    return max(seconds for _, seconds in answers)


@pytest.mark.long
async def test_flood_of_forged_callbacks_keeps_no_genuine_one_from_its_answer_in_time(metadata_db, connect):
    connect("luma_second")
    # A fifth of a second on a quiet machine, and 19 with look-ups in the way; the service gives up after 15.
    assert await _slowest_genuine_in_a_flood() < 15

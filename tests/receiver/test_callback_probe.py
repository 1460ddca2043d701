# SPDX-License-Identifier: Apache-2.0
"""A probe finds out whether callbacks arrive: answered only with proof of its own, for minutes, and without effect."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import callback_probe
from airflow_provider_luma.core.callback_probe import Probe
from airflow_provider_luma.core.callback_token import CallbackProof
from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver import resume
from airflow_provider_luma.receiver.lookups import ConnectionLookups
from harness.api_server import ENDED, KEY, proof
from harness.metadata_db import operator_awaiting_job

CONNECTION = LumaConnection("http://127.0.0.1:9", KEY)


def made(conn_id: str = "luma_default", key: str = KEY, at: float | None = None) -> Probe:
    return Probe.make(replace(CONNECTION, api_key=key), conn_id, time.time() if at is None else at)


async def send(api_server, probe: Probe, *, query: str | None = None, body: bytes | None = None, **headers: str):
    content = probe.body if body is None else body
    return await api_server.callback(probe.query if query is None else query, content, headers=headers)


class TestAnswer:
    async def test_receiver_answers_a_probe_that_has_arrived_whole_with_proof(self, api_server):
        probe = made()
        answer = await send(api_server, probe)
        assert answer.status_code == 200
        assert probe.read_answer(CONNECTION, answer.text) == []

    async def test_answer_is_proof_for_one_probe_and_one_key_only(self, api_server):
        probe = made()
        answer = (await send(api_server, probe)).text
        assert made().read_answer(CONNECTION, answer) is None
        assert probe.read_answer(replace(CONNECTION, api_key="another-key"), answer) is None
        for forged in ("", "whole", " ", f"body{answer}", answer[:-1], "ÿ ÿ", f" {probe.token}", probe.query):
            assert probe.read_answer(CONNECTION, forged) is None

    @pytest.mark.parametrize("query", ["", "conn_id=luma_default", "x=1"])
    async def test_probe_whose_query_is_cut_is_recognised_by_its_header(self, api_server, query):
        probe = made()
        answer = await send(api_server, probe, query=query, **{callback_probe.HEADER: probe.query})
        assert probe.read_answer(CONNECTION, answer.text) == [callback_probe.QUERY]

    async def test_query_of_another_probe_counts_as_changed(self, api_server):
        probe = made()
        answer = await send(api_server, probe, query=made().query, **{callback_probe.HEADER: probe.query})
        assert probe.read_answer(CONNECTION, answer.text) == [callback_probe.QUERY]

    @pytest.mark.parametrize("body", [b"", made().body, b"{}"], ids=["none", "of another probe", "another"])
    async def test_body_that_has_not_arrived_whole_is_told(self, api_server, body):
        probe = made()
        answer = await send(api_server, probe, body=body)
        assert probe.read_answer(CONNECTION, answer.text) == [callback_probe.BODY]

    async def test_signature_is_checked_as_that_of_a_callback(self, api_server, connect):
        connect("luma_default", webhook_secret="whsec")
        probe, now = made(), time.time()
        with_secret, with_another = (replace(CONNECTION, webhook_secret=secret) for secret in ("whsec", "another"))
        answers = [
            await send(api_server, probe, **headers)
            for headers in ({}, probe.headers(with_another, now), probe.headers(with_secret, now))
        ]
        found = [probe.read_answer(CONNECTION, answer.text) for answer in answers]
        assert found == [[callback_probe.SIGNATURE], [callback_probe.SIGNATURE], []]

    async def test_probe_resumes_nothing_and_records_nothing(self, metadata_db, api_server, monkeypatch):
        metadata_db.defer(operator_awaiting_job())
        monkeypatch.setattr(resume, "record_callback", lambda *_: 1 / 0)
        monkeypatch.setattr(resume, "find_waiting", lambda *_: 1 / 0)
        for _ in range(2):
            assert (await send(api_server, made())).status_code == 200
        assert (await api_server.callback(made().query, ENDED)).status_code == 200
        assert not receiver_app._running
        assert metadata_db.resumed() == set()


FORGED_PROBES = {
    "another key": lambda: made(key="another-key").query,
    "another connection": lambda: made("luma_other").query,
    "a connection without a key": lambda: made("luma_keyless", key="").query,
    "a missing connection": lambda: made("luma_nowhere").query,
    "the name of another connection": lambda: made()._replace(conn_id="luma_other").query,
    "another nonce": lambda: made()._replace(probe=made().probe).query,
    "too old": lambda: made(at=time.time() - 310).query,
    "in the future": lambda: made(at=time.time() + 310).query,
    "another time": lambda: made(at=1e9)._replace(probe=f"{int(time.time())}-{'0' * 32}").query,
    "a field too many": lambda: made().query + "&x=1",
    "a field twice": lambda: made().query.replace("conn_id=", "token="),
    "a field too few": lambda: made().query.rpartition("&")[0],
    "a token cut short": lambda: made().query[:-1],
    "a zero byte": lambda: made("luma\0default").query,
    "bytes that are no text": lambda: made().query.replace("luma_default", "%ff%fe"),
    "the token of a callback": lambda: urlencode(
        {**made()._asdict(), "token": CallbackProof.read(proof()).token},
    ),
}


@pytest.mark.usefixtures("other_connections")
class TestProof:
    @pytest.mark.parametrize("place", ["query", "header"])
    async def test_probe_without_proof_gets_the_same_answer_as_any_other_request(self, api_server, place):
        answers = [await api_server.callback("", ENDED)]
        for forged in FORGED_PROBES.values():
            if place == "query":
                answers.append(await api_server.callback(forged(), ENDED))
            else:
                answers.append(await api_server.callback("", ENDED, headers={callback_probe.HEADER: forged()}))
        assert {answer.status_code for answer in answers} == {403}
        assert len({(str(answer.headers), answer.content) for answer in answers}) == 1

    async def test_token_of_a_probe_is_none_for_a_callback(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        for probe in (made(), made()._replace(probe=made().probe)):
            query = urlencode({"conn_id": "luma_default", "reference": probe.probe[-32:], "token": probe.token})
            assert (await api_server.callback(query)).status_code == 403
        assert metadata_db.resumed() == set()

    async def test_token_of_a_callback_is_none_for_a_probe(self, api_server):
        callback = CallbackProof.read(proof())
        for probe in (callback.reference, f"{int(time.time())}-{callback.reference}"):
            query = urlencode({"conn_id": "luma_default", "probe": probe, "token": callback.token})
            assert (await api_server.callback(query)).status_code == 403

    async def test_callback_that_bears_the_header_of_a_probe_is_still_a_callback(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        answer = await api_server.callback(proof(), headers={callback_probe.HEADER: made().query})
        assert (answer.status_code, answer.text) == (200, "OK")
        assert metadata_db.resumed() == {task}

    async def test_body_of_a_probe_is_limited_and_read_only_with_proof(self, api_server):
        async def unread():
            raise AssertionError("it was read")
            yield b""

        assert (await api_server.callback(made(key="another-key").query, unread())).status_code == 403
        assert (await send(api_server, made(), body=b" " * 300_000)).status_code == 413

    async def test_captured_probe_is_worthless_after_five_minutes(self, api_server, monkeypatch):
        probe = made()
        assert (await send(api_server, probe)).status_code == 200
        later = SimpleNamespace(time=lambda: time.time() + 301)
        monkeypatch.setattr(receiver_app, "time", later)
        assert (await send(api_server, probe)).status_code == 403
        assert (await send(api_server, probe, query="", **{callback_probe.HEADER: probe.query})).status_code == 403

    async def test_probe_that_is_too_old_looks_no_connection_up(self, api_server, monkeypatch):
        monkeypatch.setattr(ConnectionLookups, "get", lambda *_: 1 / 0)
        old = made(at=time.time() - 310)
        assert (await send(api_server, old)).status_code == 403

    async def test_query_is_removed_before_the_servers_access_log_reads_it(self, api_server):
        await send(api_server, made())
        assert [scope["query_string"] for scope in api_server.scopes] == [b""]

# SPDX-License-Identifier: Apache-2.0
"""A probe finds out whether callbacks arrive: it needs a proof that is valid for minutes, and has no other effect."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import CallbackProof, Probe
from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver import resume
from harness.api_server import ENDED, KEY, proof
from harness.metadata_db import operator_awaiting_job

CONNECTION = LumaConnection("http://127.0.0.1:9", KEY)


def made(conn_id: str = "luma_default", key: str = KEY, at: float | None = None) -> Probe:
    return Probe.make(replace(CONNECTION, api_key=key), conn_id, time.time() if at is None else at)


class TestAnswer:
    async def test_answer_proves_one_probe_and_one_key_only(self, api_server):
        probe = made()
        answer = await api_server.callback(probe.query, probe.body)
        assert (answer.status_code, answer.content) == (200, probe.answer(CONNECTION))
        assert answer.content not in (made().answer(CONNECTION), probe.answer(replace(CONNECTION, api_key="another")))

    async def test_probe_and_answer_are_those_of_version_1_1_0(self, api_server, connect, monkeypatch):
        connect("luma_default", webhook_secret="whsec")
        monkeypatch.setattr(receiver_app, "time", SimpleNamespace(time=lambda: 1_700_000_000.0))
        number = "1700000000-0123456789abcdef0123456789abcdef"
        token = "d83fcc66cabdc4f6c2d51ddc8a88c62be2bde29b854ed0aa57edce960aedfa2e"
        sent = f"conn_id=luma_default&probe={number}&token={token}"
        body = json.dumps({"code": 200, "msg": "probe", "data": {"taskId": number}}).encode().ljust(8192)
        headers = {
            "X-Webhook-Timestamp": "1700000000",
            "X-Webhook-Signature": "b5dQk5gkJRel2ZyOU2h5IuAb+79PD4kn3VD69Tt0O7s=",
        }
        answer = await api_server.callback(sent, body, headers={**headers, "X-Luma-Probe": sent})
        assert answer.text == " a7a67dd80fa4db658575c2152afc48caf0b944a8aca080107d9a9ea54ff75bd0"
        probe, connection = Probe("luma_default", number, token), replace(CONNECTION, webhook_secret="whsec")
        assert (probe.query, probe.body) == (sent, body)
        assert probe.headers(connection, 1_700_000_000.0) == {"Content-Type": "application/json", **headers}
        assert probe.is_valid_for(connection)

    async def test_probe_resumes_nothing_and_records_nothing(self, metadata_db, api_server, monkeypatch):
        metadata_db.defer(operator_awaiting_job())
        monkeypatch.setattr(resume, "record_callback", lambda *_: 1 / 0)
        monkeypatch.setattr(resume, "find_waiting", lambda *_: 1 / 0)
        probe = made()
        assert [(await api_server.callback(probe.query, probe.body)).status_code for _ in range(2)] == [200, 200]
        assert (await api_server.callback(probe.query, ENDED)).status_code == 400
        assert not receiver_app._running
        assert metadata_db.resumed() == set()


FORGED_PROBES = {
    "another key": lambda: made(key="another-key").query,
    "a connection without a key": lambda: made("luma_keyless", key="").query,
    "a missing connection": lambda: made("luma_nowhere").query,
    "the name of another connection": lambda: made()._replace(conn_id="luma_other").query,
    "too old": lambda: made(at=time.time() - 310).query,
    "in the future": lambda: made(at=time.time() + 310).query,
    "another time": lambda: made(at=1e9)._replace(probe=f"{int(time.time())}-{'0' * 32}").query,
    "a field too many": lambda: made().query + "&x=1",
    "a zero byte": lambda: made("luma\0default").query,
    "bytes that are no text": lambda: made().query.replace("luma_default", "%ff%fe"),
    "the token of a callback": lambda: made()._replace(token=CallbackProof.read(proof()).token).query,
}


@pytest.mark.usefixtures("other_connections")
class TestProof:
    async def test_probe_without_proof_gets_the_same_answer_as_any_other_request(self, api_server):
        answers = [await api_server.callback(query(), ENDED) for query in (str, *FORGED_PROBES.values())]
        assert {answer.status_code for answer in answers} == {403}
        assert len({(str(answer.headers), answer.content) for answer in answers}) == 1

    async def test_token_of_a_probe_is_not_valid_for_a_callback(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        probe = made()
        query = urlencode({"conn_id": "luma_default", "reference": probe.probe[-32:], "token": probe.token})
        assert (await api_server.callback(query)).status_code == 403
        assert metadata_db.resumed() == set()

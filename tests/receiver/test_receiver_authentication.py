# SPDX-License-Identifier: Apache-2.0
"""A callback is taken only with its token and, where the connection has a webhook secret, with Luma's signature."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator

import pytest

from airflow_provider_luma.receiver import lookups, resume
from airflow_provider_luma.simulator.callbacks import signature
from harness.api_server import ENDED, FORGED_QUERIES, KEY, proof
from harness.metadata_db import JOB, operator_awaiting_job

try:
    from airflow.api_fastapi.common.http_access_log import HttpAccessLogMiddleware
except ImportError:  # Airflow below 3.2
    HttpAccessLogMiddleware = None

SECRET = "whsec-of-the-receiver"


def signed(at: float | None = None, *, luma_task_id: str = JOB, secret: str = SECRET) -> dict[str, str]:
    """Return the headers with which Luma signs a callback."""
    timestamp = str(int(time.time() if at is None else at))
    return {
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": signature(luma_task_id, timestamp, secret),
    }


@pytest.fixture
def webhook_secret(connect) -> None:
    """Gives luma_default a webhook secret."""
    connect("luma_default", webhook_secret=SECRET)


@pytest.mark.usefixtures("other_connections")
class TestToken:
    @pytest.mark.parametrize("query", FORGED_QUERIES.values(), ids=FORGED_QUERIES)
    async def test_callback_without_a_valid_token_is_refused(self, metadata_db, api_server, query):
        metadata_db.defer(operator_awaiting_job())
        answer = await api_server.callback(query())
        assert (answer.status_code, answer.content) == (403, b"")
        assert metadata_db.resumed() == set()

    async def test_all_callbacks_without_a_valid_token_get_the_same_answer(self, api_server):
        answers = [await api_server.callback(query()) for query in FORGED_QUERIES.values()]
        assert len({(answer.status_code, str(answer.headers), answer.content) for answer in answers}) == 1

    async def test_body_of_a_callback_without_a_valid_token_is_not_read(self, api_server):
        async def unread() -> AsyncIterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        assert (await api_server.callback("", unread())).status_code == 403

    async def test_token_in_the_body_or_a_header_is_not_accepted(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        fields = dict(pair.split("=") for pair in proof().split("&"))
        for options in ({"json": {**ENDED, **fields}}, {"data": fields}, {"headers": fields, "json": ENDED}):
            assert (await api_server.request("POST", "/luma/callback", **options)).status_code == 403
        await api_server.tasks_resumed()
        assert metadata_db.resumed() == set()

    async def test_token_of_a_replaced_api_key_expires_with_the_connection_cache(
        self, api_server, connect, monkeypatch
    ):
        monkeypatch.setattr(lookups, "CONNECTION_TTL", 0.0)
        old, new = proof(), proof(key="the-new-key")
        assert (await api_server.callback(old)).status_code == 200
        connect("luma_default", key="the-new-key")
        assert (await api_server.callback(old)).status_code == 403
        assert (await api_server.callback(new)).status_code == 200


@pytest.mark.usefixtures("webhook_secret")
class TestSignature:
    async def test_callback_with_lumas_signature_resumes(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        assert (await api_server.callback(proof(), headers=signed())).status_code == 200
        assert metadata_db.resumed() == {task}

    @pytest.mark.parametrize(
        "fault", ["missing", "wrong", "too old", "in the future", "of another job", "no ASCII", "no time"]
    )
    async def test_callback_without_a_valid_signature_is_refused(self, metadata_db, api_server, fault):
        metadata_db.defer(operator_awaiting_job())
        headers = {
            "missing": {},
            "wrong": signed(secret="another"),
            "too old": signed(time.time() - 310),
            "in the future": signed(time.time() + 310),
            "of another job": signed(luma_task_id="another-job"),
            "no ASCII": {**signed(), "X-Webhook-Signature": "ÿ".encode("latin-1")},
            "no time": {**signed(), "X-Webhook-Timestamp": "now"},
        }[fault]
        answer = await api_server.callback(proof(), headers=headers)
        assert (answer.status_code, answer.content) == (403, b"")
        assert metadata_db.resumed() == set()

    async def test_signature_does_not_replace_the_token(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        assert (await api_server.callback("", headers=signed())).status_code == 403
        assert metadata_db.resumed() == set()

    async def test_signature_is_not_checked_without_a_webhook_secret(self, api_server, connect):
        connect("luma_default")
        assert (await api_server.callback(proof(), headers=signed(secret="another"))).status_code == 200


class TestSecrecy:
    async def test_query_is_removed_before_the_servers_access_log_reads_it(self, api_server):
        for query in (proof(), proof()[:-64] + "0" * 64, "token=abc"):
            await api_server.callback(query)
        assert [scope["query_string"] for scope in api_server.scopes] == [b"", b"", b""]

    @pytest.mark.skipif(HttpAccessLogMiddleware is None, reason="this Airflow writes no access log")
    async def test_token_is_not_in_airflows_own_access_log(self, api_server, task_log):
        api_server.app.add_middleware(HttpAccessLogMiddleware)
        query = proof()
        await api_server.callback(query)
        (entry,) = [entry for entry in task_log if entry["event"] == "request finished"]
        assert (entry["path"], entry["query"], entry["status_code"]) == ("/luma/callback", "", 200)
        assert query[-64:] not in repr(task_log)

    async def test_no_log_message_holds_a_token_the_api_key_or_the_webhook_secret(
        self, metadata_db, api_server, webhook_secret, caplog, monkeypatch
    ):
        metadata_db.defer(operator_awaiting_job())
        queries = [proof(), proof(conn_id="luma_nowhere"), proof()[:-64] + "f" * 64, proof() + "&x=1"]
        with caplog.at_level(logging.DEBUG):
            for query in queries:
                await api_server.callback(query)
                await api_server.callback(query, headers=signed())
                await api_server.callback(query, b"nonsense")
            with monkeypatch.context() as patched:
                patched.setattr(resume, "record_callback", lambda *_: 1 / 0)
                await api_server.callback(queries[0], headers=signed())
        logged = "\n".join(
            logging.Formatter("%(message)s").format(record)
            for record in caplog.records
            if not record.name.startswith(("httpx", "httpcore"))  # the caller's own
        )
        assert JOB in logged
        for secret in (KEY, SECRET, *(query[-64:] for query in queries)):
            assert secret not in logged

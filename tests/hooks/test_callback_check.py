# SPDX-License-Identifier: Apache-2.0
"""What the test of a connection says of its callback address: the API server, and whatever may stand in front of it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import requests
from airflow import settings
from airflow.utils.db import initdb
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from airflow_provider_luma.core.callback_probe import BODY_BYTES, HEADER
from airflow_provider_luma.hooks import callback_check
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver.lookups import ConnectionLookups
from harness.api_server import api_server_process, api_server_thread
from tests.support.reverse_proxy import Forwarded, reverse_proxy
from tests.support.tls import server_context

#: Starting an API server takes seconds.
pytestmark = pytest.mark.xdist_group("callback check")

KEY = "sk-of-the-callback-check-0123456789"
SECRET = "whsec-of-the-receiver-012345"


def connection(key: str = KEY, **extra: Any) -> str:
    return json.dumps({"conn_type": "luma", "password": key, "extra": extra})


@pytest.fixture(scope="module")
def api_server() -> Iterator[str]:
    """The address of an API server whose luma_default holds the same API key, and whose luma_signed a secret too."""
    assert str(settings.engine.url).startswith(f"sqlite:///{os.environ['AIRFLOW_HOME']}/")
    initdb()
    with api_server_process(
        AIRFLOW_CONN_LUMA_DEFAULT=connection(), AIRFLOW_CONN_LUMA_SIGNED=connection(webhook_secret=SECRET)
    ) as port:
        yield started(port)


def started(port: int) -> str:
    """Wait until an API server answers; return its address."""
    address = f"http://127.0.0.1:{port}"
    assert requests.get(f"{address}/luma/static/result.css", timeout=60).status_code == 200
    return address


@pytest.fixture
def check(luma, monkeypatch) -> Callable[..., tuple[bool, str]]:
    """Tests a connection with this callback address."""

    def _check(address: str, conn_id: str = "luma_default", key: str = KEY, **extra: Any) -> tuple[bool, str]:
        luma.configure(api_key=key)
        values = json.loads(connection(key, callback_base_url=address, **extra))
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**values, "host": luma.base_url}))
        is_ok, message = LumaHook(conn_id).test_connection()
        assert message.startswith(f"Connected to {luma.base_url}: 1000 credits left. Callbacks")
        assert key not in message
        assert "token=" not in message
        return is_ok, message.partition(" credits left. ")[2]

    return _check


@pytest.fixture
def public_luma(monkeypatch) -> None:
    """The service counts as one on the public Internet."""
    monkeypatch.setattr("airflow_provider_luma.connection.LumaConnection.is_public", True)


@pytest.fixture
def in_api_server(monkeypatch) -> str:
    """The test runs in the API server, under a name that Airflow's API has made up."""
    name = callback_check._CONNECTIONS_API
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return "aB3dE9xZ"


def _answer_once(server: socket.socket, answer: bytes) -> None:
    """Read a probe whole, and answer these bytes."""
    client = server.accept()[0]
    with client, client.makefile("rb") as request:
        while request.readline().strip():
            pass
        request.read(BODY_BYTES)
        client.sendall(answer + b"\r\n")


class TestThatReachesTheReceiver:
    def test_receiver_that_answers_makes_the_test_succeed(self, api_server, check):
        assert check(api_server) == (True, f"Callbacks arrive from here at {api_server}/luma/callback")

    def test_prefix_of_the_address_is_called_too(self, api_server, check):
        with reverse_proxy(api_server, prefix="/airflow") as address:
            assert check(address) == (True, f"Callbacks arrive from here at {address}/luma/callback")
            is_ok, message = check(address.removesuffix("/airflow") + "/wrong")
        assert not is_ok
        assert "correct the prefix in callback_base_url" in message

    def test_proxy_that_removes_unknown_headers_does_no_harm(self, api_server, check):
        with reverse_proxy(api_server, lambda request: request.headers.pop(HEADER.lower())) as address:
            assert check(address)[0]

    def test_webhook_secret_of_the_receiver_must_be_the_same(self, api_server, check):
        assert check(api_server, "luma_signed", webhook_secret=SECRET)[0]
        for secret in ({}, {"webhook_secret": "another"}):
            is_ok, message = check(api_server, "luma_signed", **secret)
            assert not is_ok
            assert "does not accept the signature" in message
            assert SECRET not in message

    def test_api_key_is_not_sent(self, wires, check):
        wire = wires.start(wires.answer(404))
        check(wire.base_url, webhook_secret=SECRET)
        (request,) = wire.received
        assert (request.method, request.path.partition("?")[0]) == ("POST", "/luma/callback")
        assert KEY not in repr(request)
        assert SECRET not in repr(request)
        assert "Authorization" not in request.headers

    def test_password_in_a_netrc_is_not_sent(self, wires, check, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password something")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        wire = wires.start(wires.answer(404))
        check(wire.base_url)
        assert "Authorization" not in wire.received[0].headers


class TestProxiesInFront:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda request: setattr(request, "query", ""), "cuts or changes the query"),
            (lambda request: setattr(request, "query", request.query[:100]), "cuts or changes the query"),
            (lambda request: setattr(request, "body", b""), "cuts or changes the body"),
            (lambda request: setattr(request, "body", request.body[:4096]), "cuts or changes the body"),
        ],
        ids=["query removed", "query cut", "body removed", "body cut"],
    )
    def test_what_does_not_arrive_whole_is_told(self, api_server, check, change, said):
        with reverse_proxy(api_server, change) as address:
            is_ok, message = check(address)
        assert not is_ok
        assert said in message

    def test_removed_headers_of_the_signature_are_told(self, api_server, check):
        def remove(request: Forwarded) -> None:
            del request.headers["x-webhook-signature"]

        with reverse_proxy(api_server, remove) as address:
            is_ok, message = check(address, "luma_signed", webhook_secret=SECRET)
        assert not is_ok
        assert "a proxy removes the X-Webhook headers" in message

    @pytest.mark.parametrize(
        ("status", "content_type", "body", "said"),
        [
            (200, "text/html; charset=utf-8", b"<html>Sign in!", "sign-in page; let POST /luma/callback through"),
            (200, "text/plain", b" " + b"f" * 64, "another server than Luma's receiver"),
            (200, "", b"", "another server than Luma's receiver"),
            (301, "", b"", "the address redirects"),
            (302, "text/html", b"see there", "the address redirects"),
            (401, "text/html", b"who?", "wants a sign-in"),
            (403, "text/html", b"<p>rejected", "a proxy in front denies"),
            (404, "text/html", b"<p>rejected", "without /luma/callback"),
            (404, "application/json", b'{"detail":"Not Found"}', "install this package where the API server runs"),
            (405, "application/json", b'{"detail":"Method Not Allowed"}', "install this package"),
            (413, "text/html", b"<p>rejected", "256 kB"),
            (429, "text/html", b"<p>rejected", "limits the rate"),
            (502, "text/html", b"<p>rejected", "does not reach the API server"),
            (503, "text/html", b"<p>rejected", "does not reach the API server"),
            (500, "text/plain", b"<p>rejected", "something else"),
        ],
    )
    def test_answer_of_something_else_fails_the_test_and_is_not_repeated(
        self, wires, check, status, content_type, body, said
    ):
        headers = {"Content-Type": content_type} if content_type else {}
        wire = wires.start(wires.answer(status, body, {**headers, "Location": "http://secret-place/"}))
        is_ok, message = check(wire.base_url)
        assert not is_ok
        assert said in message
        assert f"HTTP {status}" in message
        assert not body or body.decode() not in message
        assert "secret-place" not in message
        assert len(wire.received) == 1

    def test_content_type_is_repeated_only_in_its_form(self, wires, check):
        wire = wires.start(wires.answer(500, b"x", {"Content-Type": "<script>alert(1)</script>"}))
        assert check(wire.base_url)[1].endswith("HTTP 500)")


class TestThatReachesNobody:
    def test_address_at_which_nothing_listens_is_told(self, free_port, check):
        is_ok, message = check(f"http://127.0.0.1:{free_port}")
        assert not is_ok
        assert f"no connection from here to http://127.0.0.1:{free_port}/luma/callback" in message
        assert "refused" in message

    def test_name_that_does_not_resolve_is_told(self, check):
        is_ok, message = check("https://airflow.invalid")
        assert not is_ok
        assert "airflow.invalid has no address in the DNS as it is seen from here" in message

    def test_host_that_cannot_be_called_is_told_without_the_query(self, check):
        is_ok, message = check(f"https://{'a' * 70}.example.com")
        assert not is_ok
        assert "luma/callback" in message

    def test_failure_on_this_side_leaves_a_doubt(self, api_server, check, monkeypatch):
        monkeypatch.setattr(callback_check, "requests_session", lambda _: {}["HTTP_PROXY"])
        is_ok, message = check(api_server)
        assert is_ok
        assert "cannot be reached from here (KeyError)" in message

    @pytest.mark.parametrize("verify", [True, False])
    def test_certificate_that_nobody_trusts_is_told_even_if_the_connection_does_not_verify(
        self, wires, certificates, check, verify
    ):
        wire = wires.start(tls=server_context(certificates))
        is_ok, message = check(wire.base_url, verify=verify)
        assert not is_ok
        assert f"no TLS connection to {wire.base_url}/luma/callback" in message
        assert "certificate verify failed" in message

    def test_server_that_speaks_no_tls_is_told(self, wires, check):
        is_ok, message = check(wires.start().base_url.replace("http:", "https:"))
        assert not is_ok
        assert "no TLS connection" in message

    def test_connection_that_is_cut_is_told(self, wires, check):
        is_ok, message = check(wires.start(wires.answer(cut=True)).base_url)
        assert not is_ok
        assert "no connection from here" in message

    @pytest.mark.parametrize("answer", [b"-ERR secret-banner", b"HTTP/2secret-banner 200 OK"])
    def test_answer_in_another_protocol_is_told_and_not_repeated(self, check, answer):
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
            threads.submit(_answer_once, server, answer)
            is_ok, message = check(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not is_ok
        assert message.endswith("/luma/callback: the answer is not HTTP")

    def test_server_that_does_not_answer_leaves_a_doubt(self, wires, check, monkeypatch, task_log):
        monkeypatch.setattr(callback_check, "TIMEOUT", 0.2)
        is_ok, message = check(wires.start(wires.answer(hang=True)).base_url)
        assert is_ok
        assert "cannot be reached from here (no answer within 0.2 seconds). Luma may reach it all the same" in message
        assert message in [entry["event"] for entry in task_log], task_log

    def test_server_that_drips_is_given_up_at_the_deadline(self, check, monkeypatch):
        monkeypatch.setattr(callback_check, "DEADLINE", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            is_ok, message = check(f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert is_ok
        assert "no answer within 0.2 seconds" in message

    def test_proxy_for_calls_from_here_that_fails_leaves_a_doubt_and_is_not_named(self, wires, check, free_port):
        is_ok, message = check(
            "https://airflow.example.com", proxies={"https": f"http://user:pa55word@127.0.0.1:{free_port}"}
        )
        assert is_ok
        assert "the proxy for calls from here does not connect to it" in message
        assert "pa55word" not in message


class TestReceiverThatRefuses:
    def test_api_server_with_another_key_is_told(self, api_server, check):
        is_ok, message = check(api_server, key="the-key-of-another-environment")
        assert not is_ok
        assert "the API server there has none of this name and API key, or is another Airflow's" in message

    def test_api_server_without_the_connection_is_told(self, api_server, check):
        is_ok, message = check(api_server, "luma_elsewhere")
        assert not is_ok
        assert "the API server there has none of this name and API key" in message

    def test_api_server_whose_database_is_down_is_told(self, check, monkeypatch, tmp_path):
        nowhere = create_engine(f"sqlite:///{tmp_path}/nowhere/airflow.db")
        monkeypatch.setattr(settings, "Session", sessionmaker(nowhere))
        monkeypatch.setattr(receiver_app, "_connections", ConnectionLookups())
        with api_server_thread() as port:
            is_ok, message = check(started(port))
        assert not is_ok
        assert "the API server's database or secrets backend is down" in message


class TestMadeUpNames:
    """Airflow's API tests a connection under a name that only its own process knows."""

    def test_saved_connection_with_the_same_key_is_asked_for(self, api_server, check, in_api_server, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection())
        monkeypatch.setenv("AIRFLOW_CONN_A_DATABASE", "postgres://")
        assert check(api_server, in_api_server) == (True, f"Callbacks arrive from here at {api_server}/luma/callback")

    def test_saved_connection_with_the_same_webhook_secret_is_preferred(
        self, api_server, check, in_api_server, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection())
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_SIGNED", connection(webhook_secret=SECRET))
        with reverse_proxy(api_server, lambda request: request.headers.pop("x-webhook-signature", "")) as address:
            assert check(address, in_api_server)[0]
            assert not check(address, in_api_server, webhook_secret=SECRET)[0]

    def test_saved_connection_that_the_api_server_there_lacks_fails_the_test(
        self, api_server, check, in_api_server, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_OF_FILMS", connection())
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection("another"))
        is_ok, message = check(api_server, in_api_server)
        assert not is_ok
        assert "another Airflow's" in message

    def test_made_up_name_of_a_test_that_runs_beside_it_is_not_asked_for(
        self, api_server, check, in_api_server, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW_CONN_0AAAAAA0", connection())
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection())
        assert check(api_server, in_api_server)[0]

    def test_connection_that_is_not_saved_yet_leaves_a_doubt(self, api_server, check, in_api_server):
        is_ok, message = check(api_server, in_api_server)
        assert is_ok
        assert "does not know this connection. Save it and test it again" in message

    def test_test_goes_on_while_the_database_cannot_be_read(self, api_server, check, in_api_server, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.receiver.connections.listed_names", lambda: 1 / 0)
        assert "does not know this connection" in check(api_server, in_api_server)[1]


@pytest.mark.usefixtures("public_luma")
class TestPublicService:
    @pytest.mark.parametrize("address", ["http://127.0.0.1:9", "https://airflow.internal", "https://10.0.0.5"])
    def test_private_address_fails_the_test_without_being_called(self, check, address):
        is_ok, message = check(address)
        assert not is_ok
        assert "which Luma on the public Internet cannot reach" in message

    def test_name_that_leads_to_a_private_address_and_plain_http_leave_doubts(self, api_server, check, monkeypatch):
        resolve = socket.getaddrinfo

        def resolve_locally(host: Any, *arguments: Any, **options: Any) -> Any:
            return resolve("127.0.0.1" if host == "airflow.example.com" else host, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolve_locally)
        port = api_server.rpartition(":")[2]
        is_ok, message = check(f"http://airflow.example.com:{port}")
        assert is_ok
        assert "airflow.example.com leads from here to the private address 127.0.0.1" in message
        assert "use https" in message

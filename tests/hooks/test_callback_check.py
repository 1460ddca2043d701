# SPDX-License-Identifier: Apache-2.0
"""What the test of a connection says of its callback address: the API server, and whatever may stand in front of it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import requests
from airflow import settings
from airflow.utils.db import initdb

from airflow_provider_luma.hooks import callback_check
from airflow_provider_luma.hooks.luma import LumaHook
from harness.api_server import api_server_process
from tests.support.reverse_proxy import reverse_proxy
from tests.support.tls import server_context

#: Starting an API server takes seconds.
pytestmark = [pytest.mark.slow, pytest.mark.versions, pytest.mark.xdist_group("callback check")]

KEY = "sk-of-the-callback-check-0123456789"
SECRET = "whsec-of-the-receiver-012345"

OTHER = (
    "Callbacks do not arrive: the response from {}/luma/callback is not from the callback receiver ({}). Check that "
    "proxies pass on POST /luma/callback unchanged, without sign-in or redirect; that this package is installed on the "
    "API server; and that callback_base_url is correct"
)
REFUSED = (
    "Callbacks do not arrive: the receiver at {}/luma/callback refused the test callback ({}). Check that its API "
    "server can read this connection, with the same API key and webhook secret, and that proxies pass on the query, "
    "body and X-Webhook headers"
)


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
        address = f"http://127.0.0.1:{port}"
        assert requests.get(f"{address}/luma/static/result.css", timeout=60).status_code == 200
        yield address


@pytest.fixture
def check(luma, monkeypatch) -> Callable[..., tuple[bool, str]]:
    """Tests a connection with this callback address."""

    def _check(address: str, conn_id: str = "luma_default", key: str = KEY, **extra: Any) -> tuple[bool, str]:
        luma.configure(api_key=key)
        values = json.loads(connection(key, callback_base_url=address, **extra))
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**values, "host": luma.base_url}))
        is_ok, message = LumaHook(conn_id).test_connection()
        assert message.startswith(f"Connected to {luma.base_url}: 1000 credits left. Callbacks")
        assert not any(secret in message for secret in (key, SECRET, "token=", "pa55word"))
        return is_ok, message.partition(" credits left. ")[2]

    return _check


@pytest.fixture
def in_api_server(monkeypatch) -> str:
    """The test runs in the API server, under a name that Airflow has made up and only this process knows."""
    name = callback_check._CONNECTIONS_API
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return "aB3dE9xZ"


def reason(result: tuple[bool, str]) -> str:
    """Return why the callback address is not reached from here, which leaves a doubt."""
    text = r"Callbacks: could not reach \S+ from this machine \((.+)\)\. Luma may still be able to"
    found = re.fullmatch(text, result[1])
    assert result[0] and found, result
    return found[1]


class TestReached:
    def test_receiver_that_answers_makes_the_test_succeed(self, api_server, check):
        with reverse_proxy(api_server, prefix="/airflow") as address:
            assert check(address) == (True, f"Callbacks from this machine reach {address}/luma/callback")

    def test_neither_api_key_nor_secrets_nor_a_password_in_a_netrc_are_sent(self, wires, check, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password pa55word")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        wire = wires.start(wires.answer(404))
        check(wire.base_url, webhook_secret=SECRET)
        (request,) = wire.received
        assert (request.method, request.path.partition("?")[0]) == ("POST", "/luma/callback")
        assert not any(secret in repr(request) for secret in (KEY, SECRET, "Authorization"))


class TestAnsweredBySomethingElse:
    @pytest.mark.parametrize(
        ("status", "content_type", "said"),
        [
            (200, "text/html; charset=utf-8", "HTTP 200, text/html"),
            (302, "text/html", "HTTP 302, text/html"),
            (403, "text/html", "HTTP 403, text/html"),
            (404, "application/json", "HTTP 404, application/json"),
            (500, "<script>alert(1)</script>", "HTTP 500"),
            (503, "", "HTTP 503"),
        ],
    )
    def test_answer_fails_the_test_and_is_neither_followed_nor_repeated(self, wires, check, status, content_type, said):
        headers = {"Content-Type": content_type, "Location": "/secret-place"}
        wire = wires.start(wires.answer(status, b" " + b"f" * 64, headers))
        assert check(wire.base_url) == (False, OTHER.format(wire.base_url, said))
        assert len(wire.received) == 1


class TestNotReached:
    def test_reason_is_that_of_the_network(self, wires, check, free_port, task_log):
        assert "Connection refused" in reason(check(f"http://127.0.0.1:{free_port}"))
        assert "Failed to resolve 'airflow.invalid'" in reason(check("https://airflow.invalid"))
        assert "[SSL" in reason(check(wires.start().base_url.replace("http:", "https:")))
        assert reason(check(wires.start(wires.answer(raw=b"secret-banner\r\n")).base_url)) == "the response is not HTTP"
        assert sum("could not reach" in entry["event"] for entry in task_log) == 4

    def test_reason_quotes_no_token_and_no_password(self, check, free_port):
        assert reason(check(f"https://{'a' * 70}.example.com")) in ("InvalidURL", "LocationParseError")
        proxy = f"http://user:pa55word@127.0.0.1:{free_port}"
        assert "proxy" in reason(check("https://airflow.example.com", proxies={"https": proxy}))

    @pytest.mark.parametrize("verify", [True, False])
    def test_certificate_is_checked_however_the_connection_does(self, wires, certificates, check, verify):
        wire = wires.start(tls=server_context(certificates))
        assert "certificate verify failed" in reason(check(wire.base_url, verify=verify))
        assert not wire.received

    def test_server_that_does_not_answer_is_given_up_at_the_deadline(self, wires, check, monkeypatch):
        monkeypatch.setattr(callback_check, "DEADLINE", 0.2)
        for answer in (wires.answer(hang=True), wires.answer(raw=b"HTTP/1.1 200 OK\r\n\r\n", drip=b" ")):
            assert reason(check(wires.start(answer).base_url)) == "no response within 0.2 s"

    def test_failure_on_this_side_is_no_error(self, check, monkeypatch):
        monkeypatch.setattr(callback_check, "requests_session", lambda _: {}["HTTP_PROXY"])
        assert reason(check("http://127.0.0.1:9")) == "KeyError"


class TestReceiverThatRefuses:
    def test_connection_must_be_there_with_the_same_key_and_secret(self, api_server, wires, check):
        refused = False, REFUSED.format(api_server, "HTTP 403")
        assert check(api_server, "luma_elsewhere") == refused
        assert check(api_server, key="the-key-of-another-environment") == refused
        assert check(api_server, "luma_signed", webhook_secret="another") == refused
        assert check(api_server, "luma_signed", webhook_secret=SECRET)[0]
        unreadable = wires.start(wires.answer(503)).base_url
        assert check(unreadable) == (False, REFUSED.format(unreadable, "HTTP 503"))

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            (lambda request: setattr(request, "query", request.query[:100]), 403),
            (lambda request: setattr(request, "body", request.body[:4096]), 400),
            (lambda request: request.headers.pop("x-webhook-signature"), 403),
        ],
        ids=["query", "body", "signature"],
    )
    def test_proxy_must_pass_on_the_whole_probe(self, api_server, check, change, status):
        with reverse_proxy(api_server, change) as address:
            refused = False, REFUSED.format(address, f"HTTP {status}")
            assert check(address, "luma_signed", webhook_secret=SECRET) == refused


class TestMadeUpNames:
    def test_saved_connection_with_the_same_key_and_if_possible_secret_is_asked_for(
        self, api_server, check, in_api_server, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW_CONN_0AAAAAA0", connection())  # of a test that runs beside it
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection())
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_SIGNED", connection(webhook_secret=SECRET))
        with reverse_proxy(api_server, lambda request: request.headers.pop("x-webhook-signature", "")) as address:
            assert check(address, in_api_server)[0]
            assert not check(address, in_api_server, webhook_secret=SECRET)[0]

    def test_only_a_connection_that_is_not_saved_yet_leaves_a_doubt(
        self, api_server, check, in_api_server, monkeypatch
    ):
        doubt = check(api_server, in_api_server)
        assert doubt[0]
        assert "does not know this connection. Save it, then test it again" in doubt[1]
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_ELSEWHERE", connection())
        assert not check(api_server, in_api_server)[0]
        monkeypatch.setattr("airflow_provider_luma.receiver.connections.listed_names", lambda: 1 / 0)
        assert check(api_server, in_api_server) == doubt


def test_private_address_fails_the_test_of_the_public_service_without_being_called(wires, check, monkeypatch):
    monkeypatch.setattr("airflow_provider_luma.connection.LumaConnection.is_public", True)
    wire = wires.start()
    is_ok, message = check(wire.base_url)
    assert not is_ok
    assert "which Luma cannot reach from the public Internet" in message
    assert not wire.received

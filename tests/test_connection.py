# SPDX-License-Identifier: Apache-2.0
"""How an Airflow connection of type luma is read: address, API key and extra, and what is refused of each."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress
from typing import Any

import pytest
from airflow.sdk import Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.connection import LumaConnection, missing_connection
from airflow_provider_luma.exceptions import LumaAuthError, LumaError, LumaValidationError
from airflow_provider_luma.hooks.luma import LumaHook

KEY = "sk-distinctive-0123456789abcdef"


def connection(*, extra: Any = None, password: str | None = KEY, **fields: Any) -> Connection:
    if extra is not None and not isinstance(extra, str):
        extra = json.dumps(extra)
    return Connection(conn_id="my_luma", conn_type="luma", password=password, extra=extra, **fields)


def read(**fields: Any) -> LumaConnection:
    return LumaConnection.of(connection(**fields))


class TestAddress:
    @pytest.mark.parametrize(
        ("fields", "base_url"),
        [
            ({}, "https://api.kie.ai"),
            ({"host": ""}, "https://api.kie.ai"),
            ({"host": "  "}, "https://api.kie.ai"),
            ({"host": "luma.example.com"}, "https://luma.example.com"),
            ({"host": "luma.example.com", "schema": "http"}, "http://luma.example.com"),
            ({"host": "luma.example.com", "port": 8443}, "https://luma.example.com:8443"),
            ({"host": "127.0.0.1", "port": 8080, "schema": "http"}, "http://127.0.0.1:8080"),
            ({"host": "https://luma.example.com"}, "https://luma.example.com"),
            ({"host": "https://luma.example.com/"}, "https://luma.example.com"),
            ({"host": " https://luma.example.com "}, "https://luma.example.com"),
            ({"host": "http://luma.example.com:8080/base/"}, "http://luma.example.com:8080/base"),
            ({"host": "http://luma.example.com", "port": 8080}, "http://luma.example.com:8080"),
            ({"host": "http://luma.example.com:8080", "port": 9090}, "http://luma.example.com:8080"),
            ({"host": "http://luma.example.com", "schema": "https"}, "http://luma.example.com"),
            ({"host": "luma.example.com:8080", "schema": "http"}, "http://luma.example.com:8080"),
            ({"host": "luma.example.com/base", "port": 8080}, "https://luma.example.com:8080/base"),
            ({"host": "http://[::1]:8080"}, "http://[::1]:8080"),
            ({"host": "[::1]", "port": 8080, "schema": "http"}, "http://[::1]:8080"),
            ({"host": "::1", "port": 8080, "schema": "http"}, "http://[::1]:8080"),
        ],
        ids=str,
    )
    def test_host_schema_and_port_give_the_base_url(self, fields, base_url):
        assert read(**fields).base_url == base_url

    @pytest.mark.parametrize(
        ("uri", "base_url"),
        [
            (f"luma://:{KEY}@", "https://api.kie.ai"),
            (f"luma://:{KEY}@luma.example.com", "https://luma.example.com"),
            (f"luma://:{KEY}@127.0.0.1:8080/http", "http://127.0.0.1:8080"),
            (f"luma://:{KEY}@http%3A%2F%2F127.0.0.1%3A8080", "http://127.0.0.1:8080"),
            (f"luma://:{KEY}@[::1]:8080/http", "http://[::1]:8080"),
        ],
    )
    def test_uri_is_a_whole_connection(self, uri, base_url):
        read = LumaConnection.of(Connection.from_uri(uri, conn_id="my_luma"))
        assert (read.base_url, read.api_key) == (base_url, KEY)

    @pytest.mark.parametrize(
        "fields",
        [
            {"host": "ftp://luma.example.com"},
            {"host": "luma.example.com", "schema": "luma"},
            {"host": "https://"},
            {"host": "https://[::1"},
            {"host": "luma.example.com:port"},
            {"host": "https://luma.example.com?x=1"},
            {"host": "https://luma.example.com#x"},
            {"host": "https://user@luma.example.com"},
            {"host": "https://:secret@luma.example.com"},
            {"host": "https://luma example.com"},
        ],
        ids=str,
    )
    def test_host_that_is_no_http_address_is_refused(self, fields):
        with pytest.raises(LumaValidationError, match="my_luma") as caught:
            read(**fields)
        assert "host" in str(caught.value)

    @pytest.mark.parametrize("host", ["luma.example.com:s3cret", "https://luma.example.com:s3cret", "https://[s3cret"])
    def test_key_pasted_into_the_host_is_not_in_the_traceback(self, host):
        with pytest.raises(LumaValidationError) as caught:
            read(host=host)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        ("host", "is_public"),
        [
            (None, True),
            ("luma.example.com", True),
            ("http://127.0.0.1:8080", False),
            ("http://localhost:8080", False),
            ("http://[::1]:8080", False),
            ("http://simulator:8080", False),
            ("http://192.168.3.4", False),
        ],
    )
    def test_service_is_public_unless_its_host_is_private(self, host, is_public):
        assert read(host=host).is_public is is_public


class TestKey:
    @pytest.mark.parametrize("key", ["k", KEY, "a/b+c=", "~!@#$%^&*()"])
    def test_any_printable_ascii_text_is_an_api_key(self, key):
        assert read(password=key).api_key == key

    def test_blanks_around_the_api_key_are_removed(self):
        assert read(password=f" {KEY}\n").api_key == KEY

    @pytest.mark.parametrize("key", [None, "", " ", "\n"])
    def test_missing_api_key_is_refused(self, key):
        with pytest.raises(LumaAuthError, match="my_luma") as caught:
            read(password=key)
        assert "API key" in str(caught.value)

    @pytest.mark.parametrize("gap", ["\n", "\r\n", " ", "\t", "\x00", "ä", "\u2028", "😀"], ids=ascii)
    def test_api_key_that_no_header_can_carry_is_refused_without_being_quoted(self, gap):
        with pytest.raises(LumaAuthError, match="my_luma") as caught:
            read(password=f"sk-distinct{gap}ive-0123")
        assert "API key" in str(caught.value)
        assert "sk-distinct" not in str(caught.value)
        assert "ive-0123" not in str(caught.value)

    def test_api_key_and_proxies_are_in_no_repr(self):
        one = read(extra={"proxies": {"https": "http://user:hidden@proxy.example.com"}})
        assert KEY not in repr(one)
        assert KEY not in str(one)
        assert "hidden" not in repr(one)


class TestExtra:
    @pytest.mark.parametrize(
        ("extra", "expected"),
        [
            (None, {"timeout": 30.0, "proxies": {}, "verify": True, "cert": None, "trust_env": True}),
            ({}, {"timeout": 30.0, "allow_redirects": False}),
            ("", {"timeout": 30.0}),
            ({"timeout": 5}, {"timeout": 5.0}),
            ({"timeout": "2.5"}, {"timeout": 2.5}),
            ({"timeout": None}, {"timeout": 30.0}),
            ({"timeout": ""}, {"timeout": 30.0}),
            ({"proxies": {"https": "http://p:1"}}, {"proxies": {"https": "http://p:1"}}),
            ({"proxy": "http://p:1"}, {"proxies": {"all": "http://p:1"}}),
            ({"proxy": "p:1"}, {"proxies": {"all": "http://p:1"}}),
            ({"proxies": None}, {"proxies": {}}),
            ({"proxies": {"no_proxy": "a,b:1"}}, {"proxies": {"no_proxy": "a,b:1"}}),
            ({"verify": False}, {"verify": False}),
            ({"verify": "false"}, {"verify": False}),
            ({"verify": "True"}, {"verify": True}),
            ({"verify": None}, {"verify": True}),
            ({"verify": ""}, {"verify": True}),
            ({"verify_ssl": False}, {"verify": False}),
            ({"verify": __file__}, {"verify": __file__}),
            ({"cert": __file__}, {"cert": __file__}),
            ({"cert": [__file__, __file__]}, {"cert": (__file__, __file__)}),
            ({"cert": None}, {"cert": None}),
            ({"trust_env": False}, {"trust_env": False}),
            ({"trust_env": "false"}, {"trust_env": False}),
            ({"trust_env": None}, {"trust_env": True}),
            ({"allow_redirects": True}, {"allow_redirects": True}),
            ({"max_redirects": 3}, {"max_redirects": 3}),
            ({"max_redirects": None}, {"max_redirects": 10}),
            ({"something": "else", "requests_per_second": 3}, {"timeout": 30.0}),
            (
                {"callback_base_url": " https://airflow.example.com/here/ ", "webhook_secret": " s "},
                {"callback_base_url": "https://airflow.example.com/here", "webhook_secret": "s"},
            ),
            ({"callback_base_url": "", "webhook_secret": None}, {"callback_base_url": None, "webhook_secret": None}),
        ],
        ids=str,
    )
    def test_options_of_the_extra_are_read(self, extra, expected):
        one = read(extra=extra)
        assert {name: getattr(one, name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("extra", "names"),
        [
            ({"timeout": 0}, "timeout"),
            ({"timeout": -1}, "timeout"),
            ({"timeout": "soon"}, "timeout"),
            ({"timeout": True}, "timeout"),
            ({"timeout": [1, 2]}, "timeout"),
            ({"proxies": 5}, "proxies"),
            ({"proxies": ["http://p:1"]}, "proxies"),
            ({"proxies": {"https": 5}}, "proxies"),
            ({"max_redirects": "many"}, "max_redirects"),
            ({"cert": ["/only-one.pem"]}, "cert"),
            ({"cert": []}, "cert"),
            ({"cert": 5}, "cert"),
            ("[]", "extra"),
            ("5", "extra"),
            ('"text"', "extra"),
        ],
        ids=str,
    )
    def test_invalid_option_of_the_extra_is_refused_and_named(self, extra, names):
        with pytest.raises(LumaValidationError, match="my_luma") as caught:
            read(extra=extra)
        assert names in str(caught.value)

    @given(
        extra=st.dictionaries(
            st.sampled_from(
                "timeout proxies proxy verify verify_ssl cert trust_env allow_redirects max_redirects".split()
            ),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=3),
        )
    )
    def test_any_extra_is_read_or_refused_with_a_luma_error(self, extra):
        with suppress(LumaError):
            read(extra=extra)


def test_message_about_a_missing_connection_says_how_to_create_it():
    message = missing_connection("my_luma")
    for hint in ("luma_conn_id='my_luma'", "AIRFLOW_CONN_MY_LUMA", "luma://:", "API key"):
        assert hint in message
    assert "percent-encode" in message  # of a secrets backend's, Airflow does not say that there is one


@pytest.mark.parametrize("value", [0.5, 1, 59, 7 * 86_400 + 1, "1", "nan", float("nan"), float("inf"), -5, [], {}])
def test_signature_that_no_storage_or_no_job_can_use_is_refused(value):
    with pytest.raises(LumaValidationError, match="sign_inputs in its extra"):
        read(extra={"sign_inputs": value})


@pytest.mark.parametrize("value", ["nan", float("nan"), float("inf"), -5, [], True, {}, "-1", "1e3", "²"])
def test_credits_to_keep_that_are_no_number_are_refused(value):
    with pytest.raises(LumaValidationError, match="min_credits in its extra"):
        read(extra={"min_credits": value})


class TestService:
    @pytest.mark.parametrize(
        ("fields", "service", "base_url"),
        [
            ({}, "kie", "https://api.kie.ai"),
            ({"host": "agents.lumalabs.ai"}, "luma", "https://agents.lumalabs.ai"),
            ({"host": "agents.lumalabs.ai", "schema": "v1"}, "luma", "https://agents.lumalabs.ai"),
            ({"host": "agents.lumalabs.ai", "schema": "https"}, "luma", "https://agents.lumalabs.ai"),
            ({"host": "agents.lumalabs.ai/v1"}, "luma", "https://agents.lumalabs.ai"),
            ({"host": "https://AGENTS.lumalabs.ai/v1/"}, "luma", "https://AGENTS.lumalabs.ai"),
            ({"host": "https://agents.lumalabs.ai:443/v1"}, "luma", "https://agents.lumalabs.ai:443"),
            ({"extra": {"service": "luma"}}, "luma", "https://agents.lumalabs.ai"),
            ({"extra": {"service": " Luma "}}, "luma", "https://agents.lumalabs.ai"),
            ({"extra": {"service": None}}, "kie", "https://api.kie.ai"),
            ({"host": "gw.example.com/luma/v1", "extra": {"service": "luma"}}, "luma", "https://gw.example.com/luma"),
            ({"host": "agents.lumalabs.ai", "extra": {"service": "kie"}}, "kie", "https://agents.lumalabs.ai"),
            ({"host": "agents.lumalabs.ai.example.com"}, "kie", "https://agents.lumalabs.ai.example.com"),
        ],
        ids=str,
    )
    def test_service_follows_from_the_extra_or_else_the_host(self, fields, service, base_url):
        found = read(**fields)
        assert (found.service.name, found.base_url) == (service, base_url)

    @pytest.mark.parametrize(
        "uri", ["luma://:luma-api-K%2FEY@agents.lumalabs.ai", "luma://:luma-api-K%2FEY@agents.lumalabs.ai/v1"]
    )
    def test_uri_with_the_host_of_the_service_is_a_whole_connection(self, monkeypatch, uri):
        monkeypatch.setenv("AIRFLOW_CONN_MY_LUMA", uri)
        found = LumaHook("my_luma").get_luma_connection()
        assert (found.service.name, found.base_url, found.api_key) == (
            "luma",
            "https://agents.lumalabs.ai",
            "luma-api-K/EY",
        )

    @pytest.mark.parametrize("service", ["sora", 7, ["luma"], True])
    def test_unknown_service_is_refused(self, service):
        with pytest.raises(LumaValidationError, match="service in its extra .* kie, luma"):
            read(extra={"service": service})

    def test_reserve_of_a_service_without_a_balance_is_refused(self):
        with pytest.raises(LumaValidationError, match="min_credits"):
            read(host="agents.lumalabs.ai", extra={"min_credits": 5})

    def test_status_checks_are_as_frequent_as_the_service_allows(self):
        assert read().requests_per_second == 10
        assert read(host="agents.lumalabs.ai").requests_per_second == 1

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests that connect: a plain environment, and certificates for servers and clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.tls import make_certificates

#: Environment variables that decide how HTTP clients connect.
TRANSPORT_VARIABLES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away proxies, CA bundles and passwords that the environment may hold."""
    for name in TRANSPORT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder with the certificates of an authority, and of a server and a client that it has certified.

    Each is there as ``.crt`` (certificate), ``.key`` (private key) and ``.pem`` (both).
    """
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def connection_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the connections that LumaHook has read from Airflow, one for each time."""
    reads: list[str] = []
    read = LumaHook.get_connection

    def _count_and_read(_: type[LumaHook], conn_id: str) -> object:
        reads.append(conn_id)
        return read(conn_id)

    monkeypatch.setattr(LumaHook, "get_connection", classmethod(_count_and_read))
    return reads

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests that connect: a plain environment, and certificates for servers and clients."""

from __future__ import annotations

from pathlib import Path

import pytest

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

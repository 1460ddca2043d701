# SPDX-License-Identifier: Apache-2.0
"""
The proxy and certificates that a connection uses. The choice is that of ``requests``, but also applies to ``aiohttp``.

A worker submits a job with ``requests``, and the triggerer waits for it with ``aiohttp``. If ``requests`` alone trusted
the server or found the proxy, the triggerer could never see the end of a job that is paid for.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.exceptions import LumaValidationError

#: Address of a proxy: user and password, host, port, path. It does not match if the password is not percent-encoded.
_PROXY = re.compile(
    r"[a-z0-9+.-]+://([^\s/?#\\\[\]]*@)?(\[[0-9a-f:.]+\]|[^\s/?#\\@:\[\]]+)(:\d{1,5})?(/[^\s@]*)?", re.IGNORECASE
)

_File = tuple[str, tuple[int, int, int] | None]


class Session(requests.Session):
    """A session whose own proxies and certificates take precedence over the environment's."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the settings that a request uses."""
        own = {**self.proxies, **(proxies or {})}
        if (proxy := requests.utils.select_proxy(url, own)) is not None:
            # This key takes precedence over all others; "all" would lose to the environment's "https".
            parts = urlsplit(url)
            own.setdefault(f"{parts.scheme}://{parts.hostname}", proxy)
        return super().merge_environment_settings(url, own, stream, self.verify if verify is None else verify, cert)


def configure(session: requests.Session, connection: LumaConnection) -> None:
    """Apply a connection's options to a session, except for credentials and client certificates."""
    session.proxies = dict(connection.proxies)
    session.verify = connection.verify
    session.trust_env = connection.trust_env
    session.max_redirects = connection.max_redirects


def check_options(connection: LumaConnection) -> None:
    """
    Refuse options that cannot work on this machine. Reads files.

    :raises LumaValidationError: the certificates cannot be read, or the proxy's address is malformed
    """
    proxy_of(connection)
    certificates = Certificates.of(connection)
    if certificates.files:
        ssl_context(certificates)


def proxy_of(connection: LumaConnection) -> str | None:
    """
    Return the proxy to use for the service, chosen as requests does.

    :raises LumaValidationError: its address is malformed; HTTP clients' errors would quote it, password included
    """
    proxy: str | None = requests.utils.select_proxy(connection.base_url, _settings(connection)["proxies"])
    if proxy is None:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not _PROXY.fullmatch(proxy):
        raise LumaValidationError(
            None,
            "the proxy in the environment or the connection's extra is not a valid URL: percent-encode special "
            "characters in its password",
        )
    return proxy


def triggerer_proxy_of(connection: LumaConnection) -> str | None:
    """
    Return the proxy that the triggerer uses for the service.

    :raises LumaValidationError: its address is malformed, or aiohttp cannot use it
    """
    proxy = proxy_of(connection)
    scheme = proxy.partition("://")[0].lower() if proxy else "http"
    if scheme not in ("http", "https"):
        raise LumaValidationError(
            None,
            f"the environment sets a {scheme} proxy, which the triggerer does not support: set an http proxy as "
            "proxies in the connection's extra, or wait in the worker with deferrable=False",
        )
    return proxy


@dataclass(frozen=True)
class Certificates:
    """
    The certificates that a connection uses. If two of these are equal, the files need not be read again.

    :param verify: a file or folder of CA certificates; True for those bundled with requests; False to check none
    :param cert: a client certificate: one file, or certificate and key
    :param files: the chosen files, each with a version that changes when the file is replaced
    :param source: the setting that chose the CA certificates, for errors
    """

    verify: bool | str
    cert: str | tuple[str, str] | None
    files: tuple[_File, ...]
    source: str

    @classmethod
    def of(cls, connection: LumaConnection) -> Certificates:
        """Choose the certificates as requests does; read only the files' metadata."""
        verify, source = connection.verify, "verify or cert in the connection's extra"
        if _uses_tls(connection) and verify != (chosen := _settings(connection)["verify"]):
            verify = chosen
            source = "REQUESTS_CA_BUNDLE" if os.environ.get("REQUESTS_CA_BUNDLE") else "CURL_CA_BUNDLE"
            source += " in the environment" if connection.cert is None else " in the environment, or cert in the extra"
        client = (connection.cert,) if isinstance(connection.cert, str) else connection.cert or ()
        files = [*([verify] if isinstance(verify, str) else []), *client]
        return cls(verify, connection.cert, tuple((file, _version(file)) for file in files), source)


def triggerer_certificates(connection: LumaConnection) -> ssl.SSLContext | bool:
    """
    Return the certificates that the triggerer uses for the service, in the form that aiohttp expects. Reads files.

    :raises LumaValidationError: they cannot be read on this machine
    """
    certificates = Certificates.of(connection)
    return ssl_context(certificates) if certificates.files or _uses_tls(connection) else True


def ssl_context(certificates: Certificates) -> ssl.SSLContext:
    """
    Return an SSL context that verifies servers as requests does.

    :raises LumaValidationError: the files cannot be read on this machine
    """
    try:
        return _load(certificates)
    except OSError as error:
        names = ", ".join(name for name, _ in certificates.files)
        raise LumaValidationError(
            None, f"{certificates.source} cannot be read on this machine: {names} ({error})"
        ) from error


@lru_cache(maxsize=8)
def _load(certificates: Certificates) -> ssl.SSLContext:
    for name, version in certificates.files:
        if version is None:
            raise FileNotFoundError(f"no such file: {name}")
    context = _new_context(checks_servers=bool(certificates.verify))
    if isinstance(certificates.verify, str):
        is_folder = os.path.isdir(certificates.verify)  # noqa: PTH112  (the path as requests interprets it)
        context.load_verify_locations(**{"capath" if is_folder else "cafile": certificates.verify})
    elif certificates.verify:
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
        context.load_default_certs()  # aiohttp's default, including SSL_CERT_FILE; requests does not use it
    if certificates.cert is not None:
        certificate, key = (certificates.cert, None) if isinstance(certificates.cert, str) else certificates.cert
        # Without a password here, OpenSSL would prompt on the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    return context


def _new_context(*, checks_servers: bool) -> ssl.SSLContext:
    # Use the same flags as requests: those of Python's own context depend on its version.
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if checks_servers else ssl.CERT_NONE)
    if not isinstance(context, ssl.SSLContext):
        # Another library, such as google-auth for a client certificate, has patched pyOpenSSL into urllib3.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = checks_servers  # urllib3 before 2.0 checks host names itself; aiohttp does not
    context.verify_mode = ssl.CERT_REQUIRED if checks_servers else ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _settings(connection: LumaConnection) -> dict[str, Any]:
    session = Session()
    configure(session, connection)
    settings: dict[str, Any] = session.merge_environment_settings(connection.base_url, None, None, None, None)
    return settings


def _uses_tls(connection: LumaConnection) -> bool:
    return connection.base_url.startswith("https:") or (proxy_of(connection) or "").lower().startswith("https:")


def _version(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116  (the path as requests interprets it)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

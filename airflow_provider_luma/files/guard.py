# SPDX-License-Identifier: Apache-2.0
"""
Connections to servers that are not trusted: which addresses they may reach, and how long they may take.

A name can resolve to any address, so the address is checked once the connection has reached it, before the first byte
is sent. A server can also keep a reader busy indefinitely with headers, chunk sizes and trailers, which add no byte to
the file, so the time is measured against what arrives on the wire.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

import requests
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from airflow_provider_luma.core.addresses import is_private_host

#: A server counts as stalled if we wait longer than this for so many bytes.
MIN_PROGRESS, PROGRESS_TIMEOUT = 100_000, 300.0

#: The most bytes to read for headers, interim responses included, or for a piece of a body, trailers included.
MAX_READ_SIZE = 4_000_000


class PrivateAddressError(ValueError):
    """
    A connection has reached a private address.

    :param address: the IP address
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class Throughput:
    """Compares what arrives with the time spent waiting for it."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0, 0.0

    def add(self, count: int, seconds: float) -> None:
        """Count bytes, and the seconds until they arrived."""
        self._bytes += count
        self._seconds += seconds
        if self._bytes >= MIN_PROGRESS:
            self._bytes, self._seconds = 0, 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether the last :data:`MIN_PROGRESS` bytes have taken too long."""
        return self._seconds >= PROGRESS_TIMEOUT


class _Reader(io.RawIOBase):
    """Reads a socket until its peer is stalled."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._throughput = Throughput()
        self.read_size = 0  # bytes of the current read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        started = time.monotonic()
        count = self._raw.readinto(buffer)
        self._throughput.add(count or 0, time.monotonic() - started)
        if self._throughput.is_stalled:
            raise TimeoutError("the server is stalled")
        self.read_size += count or 0
        if self.read_size > MAX_READ_SIZE:
            raise OSError("the server keeps sending data that is not part of the file")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._reader = _Reader(self.fp.detach())
        self.fp = io.BufferedReader(self._reader)

    def read1(self, n: int = -1) -> bytes:
        self._reader.read_size = 0
        return super().read1(n)


class _HTTPConnection(HTTPConnection):
    response_class = _Response


class _HTTPSConnection(HTTPSConnection):
    response_class = _Response


class _PublicOnly(HTTPConnection):
    """Closes the connection before anything is sent if it has reached a private address."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        address = sock.getpeername()[0]
        if is_private_host(address):
            sock.close()
            raise PrivateAddressError(address)
        return sock


class _PublicHTTPConnection(_PublicOnly, _HTTPConnection):
    pass


class _PublicHTTPSConnection(_PublicOnly, _HTTPSConnection):
    pass


def _pools(
    http_connection: type[HTTPConnection], https_connection: type[HTTPSConnection]
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    return {
        "http": type("_HTTPPool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": http_connection}),
        "https": type("_HTTPSPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": https_connection}),
    }


_POOLS = _pools(_HTTPConnection, _HTTPSConnection)
_PUBLIC_POOLS = _pools(_PublicHTTPConnection, _PublicHTTPSConnection)


class UntrustedServerAdapter(requests.adapters.HTTPAdapter):
    """
    Connects to a server that is not trusted.

    :param public_only: refuse private addresses. With a proxy, only the proxy sees the server's address, and has to
        refuse it
    :raises PrivateAddressError: a private address was reached; nothing was sent
    """

    def __init__(self, *, public_only: bool) -> None:
        super().__init__()
        self.poolmanager.pool_classes_by_scheme = _PUBLIC_POOLS if public_only else _POOLS

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """Return the connections that go through a proxy."""
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        if isinstance(manager, urllib3.ProxyManager):  # a SOCKS proxy has pools of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager

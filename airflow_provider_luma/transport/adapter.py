# SPDX-License-Identifier: Apache-2.0
"""
Watches the connections of a session: which address they reach, when they send, how fast they receive.

A name can resolve to any address, so the address is checked once the connection has reached it, before the first byte
is sent. A server that sends a few bytes at a time never exceeds the socket's timeout, whether in headers, chunk sizes
or trailers, so what arrives on the wire is compared with the time it took.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter

#: The most bytes to read for headers, interim responses included, or for a piece of a body, trailers included.
MAX_READ_SIZE = 4_000_000


class Throughput:
    """
    Compares what arrives with the time spent waiting for it.

    :param size: bytes that must arrive within the timeout; infinite if the timeout is for the whole response
    :param timeout: seconds of waiting
    """

    def __init__(self, size: float, timeout: float) -> None:
        self.timeout = timeout
        self._size = size
        self._bytes, self._seconds = 0, 0.0

    def add(self, count: int, seconds: float) -> None:
        """Count bytes, and the seconds until they arrived."""
        self._bytes += count
        self._seconds += seconds
        if self._bytes >= self._size:
            self._bytes, self._seconds = 0, 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether bytes have taken too long."""
        return self._seconds >= self.timeout


def watch(
    session: requests.Session,
    throughput: Callable[[], Throughput],
    *,
    on_connected: Callable[[str], None] = lambda _address: None,
    before_send: Callable[[], None] = lambda: None,
) -> None:
    """
    Watch all connections of a session.

    :param throughput: creates the limit for each response, which applies from its first byte on
    :param on_connected: called with the IP address that a connection has reached, before anything is sent,
        even for TLS; if it raises, the connection is closed. Not called with a proxy: only the proxy sees the address
    :param before_send: called on the open connection, just before a request is sent; if it raises, the call ends
    """
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(throughput, on_connected, before_send))


class _Adapter(HTTPAdapter):
    def __init__(self, *watchers: Any) -> None:
        self._watchers = watchers
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        _watch_pools(self.poolmanager, *self._watchers)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if is_new:
            throughput, _, before_send = self._watchers
            _watch_pools(manager, throughput, lambda _address: None, before_send)
        return manager


def _watch_pools(manager: Any, *watchers: Any) -> None:
    pools = manager.pool_classes_by_scheme  # a SOCKS proxy has its own pools
    manager.pool_classes_by_scheme = {scheme: _watched(pool, *watchers) for scheme, pool in pools.items()}


def _watched(pool: Any, throughput: Any, on_connected: Any, before_send: Any) -> Any:
    class Response(HTTPResponse):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._reader = _Reader(self.fp.detach(), throughput())
            self.fp = io.BufferedReader(self._reader)

        def begin(self) -> None:
            super().begin()
            # urllib3 logs malformed header lines, which may echo our request headers and so the API key.
            self.msg.defects.clear()
            self.msg.set_payload("")

        def read1(self, n: int = -1) -> bytes:
            self._reader.size = 0
            return super().read1(n)

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        response_class = Response

        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            try:
                on_connected(sock.getpeername()[0])
            except BaseException:
                sock.close()
                raise
            return sock

        def endheaders(self, *arguments: Any, **options: Any) -> None:
            # Called once per request, but not for the CONNECT that opens a tunnel through a proxy.
            if self.sock is None:
                self.connect()
            before_send()
            super().endheaders(*arguments, **options)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


class _Reader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, throughput: Throughput) -> None:
        self._raw, self._throughput = raw, throughput
        self._has_begun = False
        self.size = 0  # bytes of the headers, or of the current piece of the body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._throughput.is_stalled:
            raise TimeoutError(f"response incomplete after {self._throughput.timeout:g} s")
        if self.size > MAX_READ_SIZE:
            raise OSError("the server keeps sending headers or trailers")
        started = time.monotonic()
        count = self._raw.readinto(buffer) or 0
        self._throughput.add(count, time.monotonic() - started if self._has_begun else 0.0)
        self._has_begun = True
        self.size += count
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()

# SPDX-License-Identifier: Apache-2.0
"""A proxy that tunnels: CONNECT, also over TLS, and SOCKS 5."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TunnelProxy:
    """
    Tunnels to any server, for clients that speak HTTP or SOCKS 5.

    :ivar targets: where its clients have asked to be led, such as ``127.0.0.1:443``
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.targets: list[str] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):  # of clients that do not trust this proxy
                    client = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                    proxy._tunnel(client)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _tunnel(self, client: socket.socket) -> None:
        is_socks = (first := client.recv(1)) == b"\x05"
        target, accepted = _socks_target(client) if is_socks else _connect_target(client, first)
        self.targets.append("{}:{}".format(*target))
        with socket.create_connection(target) as server:
            client.sendall(accepted)
            backwards = threading.Thread(target=_copy, args=(server, client), daemon=True)
            backwards.start()
            _copy(client, server)
            backwards.join()


def _socks_target(client: socket.socket) -> tuple[tuple[str, int], bytes]:
    client.recv(client.recv(1)[0])  # ways to authenticate
    client.sendall(b"\x05\x00")
    kind = client.recv(4)[3]
    host = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
    (port,) = struct.unpack("!H", client.recv(2))
    return (host, port), b"\x05\x00\x00\x01" + bytes(6)


def _connect_target(client: socket.socket, first: bytes) -> tuple[tuple[str, int], bytes]:
    head = first
    while not head.endswith(b"\r\n\r\n"):
        if not (byte := client.recv(1)):
            raise ConnectionAbortedError("the client has closed the connection")
        head += byte
    host, _, port = head.split()[1].decode().rpartition(":")
    return (host, int(port)), b"HTTP/1.1 200 OK\r\n\r\n"


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tunnel_proxy(tls: ssl.SSLContext | None = None) -> Iterator[TunnelProxy]:
    """Run such a proxy."""
    proxy = TunnelProxy(tls)
    try:
        yield proxy
    finally:
        proxy.close()

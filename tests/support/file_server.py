# SPDX-License-Identifier: Apache-2.0
"""A web server of files with scripted faults, which records every request; and a TCP relay that can be cut."""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Videos, long enough to break where whole pieces of them have been written.
FILM = random.Random(1).randbytes(3_000_000)
OTHER_FILM = random.Random(2).randbytes(3_000_000)
SHORT_FILM = OTHER_FILM[:900_000]

#: Bytes of a video after which a connection is cut.
CUT = 1_300_000

BLOCK = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Reply:
    """
    One answer.

    :param body: the whole file
    :param blocks: instead of a body: so many blocks of a mebibyte, made while they are sent
    :param ranges: whether it answers Range requests with a part
    :param stop_after: bytes of this answer's body after which the connection is cut; -1 for not even a status line
    :param announced: the Content-Length to announce instead of the true one; -1 for none
    :param content_range: what to say of a part instead of the truth
    :param raw: instead of all that: what to put on the wire, piece by piece
    :param halfway: called when half of this answer's body is on its way and the rest is not
    """

    body: bytes = b""
    blocks: int = 0
    status: int = 200
    etag: str | None = '"one"'
    ranges: bool = True
    stop_after: int | None = None
    announced: int | None = None
    content_type: str = "video/mp4"
    headers: dict[str, str] = field(default_factory=dict)
    content_range: str | None = None
    raw: Callable[[], Iterable[bytes]] | None = None
    halfway: Callable[[], object] | None = None

    @property
    def size(self) -> int:
        return self.blocks * len(BLOCK) or len(self.body)

    def pieces(self, start: int) -> Iterator[bytes]:
        if self.blocks:
            for _ in range(self.blocks - start // len(BLOCK)):
                yield BLOCK
        else:
            half = start + (len(self.body) - start) // 2
            yield self.body[start:half]
            yield self.body[half:]


@dataclass
class FileRequest:
    """One request, and how many bytes of a body it was sent."""

    path: str
    headers: dict[str, str]
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class FileServer:
    """Serves replies by path: the first request gets the first one, and so on; the last one stays."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.requests: list[FileRequest] = []
        self._replies: dict[str, list[Reply]] = {}
        self._connections: set[socket.socket] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                outer._connections.add(self.connection)
                # The connection ends when the client has read enough, or in close().
                with suppress(OSError):
                    outer._answer(self)
                outer._connections.discard(self.connection)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop the server, including answers that would go on for ever."""
        self._server.shutdown()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, *replies: Reply) -> str:
        """Answer requests for a path, or with ``*`` for any other, with these replies; return its address."""
        self._replies[path] = list(replies)
        return self.url(path)

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        """Redirect a path; return its address."""
        return self.serve(path, Reply(status=status, headers={"Location": location}))

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = FileRequest(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        self.requests.append(request)
        # As a proxy it is asked with the whole address.
        path = handler.path.split("?")[0]
        replies = (
            self._replies.get(path)
            or self._replies.get("*")
            or [Reply(b"no such file", status=404, content_type="text/plain")]
        )
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if reply.stop_after == -1:
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply.raw is not None:
            for piece in reply.raw():
                handler.connection.sendall(piece)
                request.sent += len(piece)
            return
        status, start = reply.status, 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.range or "")
        if asked and reply.ranges and status == 200:
            start = int(asked[1])
            status = 206 if start < reply.size else 416
        size = max(reply.size - start, 0)
        self._send_head(handler, reply, status, start, size)
        remaining = size if reply.stop_after is None else min(size, reply.stop_after)
        for number, piece in enumerate(reply.pieces(start) if size else ()):
            if number == 1 and reply.halfway:
                handler.wfile.flush()
                reply.halfway()
            handler.wfile.write(piece[:remaining])
            request.sent += len(piece[:remaining])
            remaining -= len(piece[:remaining])
        handler.wfile.flush()

    @staticmethod
    def _send_head(handler: BaseHTTPRequestHandler, reply: Reply, status: int, start: int, size: int) -> None:
        handler.send_response(status)
        if status == 206:
            truth = f"bytes {start}-{reply.size - 1}/{reply.size}"
            handler.send_header("Content-Range", truth if reply.content_range is None else reply.content_range)
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{reply.size}")
        if reply.announced != -1:
            handler.send_header("Content-Length", str(size if reply.announced is None else reply.announced))
        if reply.etag:
            handler.send_header("ETag", reply.etag)
        handler.send_header("Content-Type", reply.content_type)
        handler.send_header("Connection", "close")
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()


class TcpRelay:
    """Forwards connections to another server on this machine, until it is closed together with all of them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        for open_socket in (self._listener, *self._sockets):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

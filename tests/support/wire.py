# SPDX-License-Identifier: Apache-2.0
"""A web server that gives scripted answers, and records every request it has received."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One request as it came over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


@dataclass
class Answer:
    """
    What a :class:`Wire` answers: an HTTP answer, or, with ``cut`` or ``hang``, none; ``raw`` goes below any TLS.

    ``drip`` follows ``raw`` again and again, every hundredth of a second.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: bool = False
    raw: bytes = b""
    drip: bytes = b""


def envelope(code: int, data: Any = None, msg: str = "said by the service", *, status: int = 200) -> Answer:
    """Write an answer of the service."""
    return Answer(status, json.dumps({"code": code, "msg": msg, "data": data}).encode())


def running_job() -> Answer:
    """Write the service's answer to a status check of a job that is running."""
    return envelope(200, {"successFlag": 0})


class Wire:
    """
    A web server with scripted answers: each is given once, in order, and the last one from then on.

    It also stands in for a forward proxy: asked for a whole address, it answers by itself.
    """

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.answers = list(answers) or [envelope(200, 1000)]
        self.received: list[Received] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                wire._handle(self)

            do_GET = do_POST = do_PUT = do_CONNECT = _handle

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            self.received.append(Received(handler.command, handler.path, dict(handler.headers), body))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        handler.close_connection = True
        if answer.hang:
            self._closing.wait(30)
        if answer.raw:
            os.write(handler.connection.fileno(), answer.raw)
        while answer.drip and not self._closing.wait(0.01):
            os.write(handler.connection.fileno(), answer.drip)
        if answer.cut or answer.hang or answer.raw:
            return
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer.body)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Wires:
    """Starts web servers with scripted answers, and writes those answers."""

    answer = Answer
    envelope = staticmethod(envelope)
    running_job = staticmethod(running_job)

    def __init__(self) -> None:
        self.started: list[Wire] = []

    def start(self, *answers: Answer, **options: Any) -> Wire:
        self.started.append(Wire(*answers, **options))
        return self.started[-1]

    def close(self) -> None:
        for wire in self.started:
            wire.close()

# SPDX-License-Identifier: Apache-2.0
"""A reverse proxy in front of the API server, as an operator may set one up, rightly or not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass
class Forwarded:
    """One request, which a proxy may change before it passes it on."""

    path: str
    query: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


Change = Callable[[Forwarded], None]


@contextmanager
def reverse_proxy(target: str, change: Change = lambda _: None, *, prefix: str = "") -> Iterator[str]:
    """
    Run a proxy that passes POST requests on; yield its address.

    :param target: the address of the API server
    :param change: what it does to each request
    :param prefix: the path below which it serves the API server
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path, _, query = self.path.removeprefix(prefix).partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Forwarded(path, query, {name.lower(): value for name, value in self.headers.items()}, body)
            del request.headers["content-length"]
            change(request)
            url = f"{target}{request.path}?{request.query}".rstrip("?")
            answer = requests.post(url, data=request.body, headers=request.headers, timeout=20, allow_redirects=False)
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Location", "Allow"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of the simulator, with hooks before a submission is forwarded and before it is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


class Relay:
    """
    A proxy in front of the simulator.

    :param base_url: the simulator's address
    :ivar before_forwarding: called when a submission has arrived, before the service has it
    :ivar before_answering: called when the service has answered a submission, before the client has the answer
    :ivar instead: called with each request; what it returns is sent as it is, and the service is not asked
    """

    def __init__(self, base_url: str) -> None:
        self.before_forwarding: Callable[[], None] = lambda: None
        self.before_answering: Callable[[], None] = lambda: None
        self.instead: Callable[[BaseHTTPRequestHandler], bytes] = lambda _: b""
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
                if instead := relay.instead(self):
                    self.wfile.write(instead)
                    self.close_connection = True
                    return
                is_submission = self.command == "POST"
                if is_submission:
                    relay.before_forwarding()
                answer = requests.request(self.command, base_url + self.path, data=body, headers=headers, timeout=20)
                if is_submission:
                    relay.before_answering()
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = _forward

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

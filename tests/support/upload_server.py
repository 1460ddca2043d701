# SPDX-License-Identifier: Apache-2.0
"""Upload hosts: one that stores each form as it comes, so that another library can read it back, and one for PUTs."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from python_multipart.multipart import create_form_parser


@dataclass
class Upload:
    """One request: its headers, and the form as another library reads it."""

    path: str
    headers: dict[str, str]
    fields: dict[str, str] = field(default_factory=dict)
    file_name: str | None = None
    size: int = 0
    sha256: str = ""


class _Handler(BaseHTTPRequestHandler):
    def answer(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _HTTPServer(ThreadingHTTPServer):
    #: Closing waits for the requests: one that never ended would keep a processor busy for the rest of the session.
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # tests break uploads off
            super().handle_error(request, client_address)


def _body(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    remaining = int(request.headers["Content-Length"])
    while remaining:
        piece = request.rfile.read(min(1 << 20, remaining))
        if not piece:
            raise ConnectionAbortedError("the client has closed the connection")
        remaining -= len(piece)
        yield piece


class _Server:
    """A web server on this machine."""

    def _serve(self, handler: type[_Handler]) -> None:
        self._http = _HTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class UploadServer(_Server):
    """
    The host.

    :ivar uploads: what has come, in order
    :ivar answers: what is said next, each as HTTP status and JSON; the last one is repeated
    """

    def __init__(self) -> None:
        self.uploads: list[Upload] = []
        self.answers: list[tuple[int, Any]] = []
        server = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                upload = _read_form(self)
                server.uploads.append(upload)
                status, answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                self.answer(answer, status)

        self._serve(Handler)


def _read_form(request: BaseHTTPRequestHandler) -> Upload:
    upload = Upload(request.path, {name.lower(): value for name, value in request.headers.items()})
    digest = hashlib.sha256()

    def on_field(part: Any) -> None:
        upload.fields[part.field_name.decode()] = part.value.decode()

    def on_file(part: Any) -> None:
        upload.file_name, upload.size = part.file_name.decode(), part.size
        part.file_object.seek(0)
        while piece := part.file_object.read(1 << 20):
            digest.update(piece)
        part.close()

    headers = {name: value.encode() for name, value in request.headers.items()}
    parser = create_form_parser(headers, on_field, on_file)
    for piece in _body(request):
        parser.write(piece)
    parser.finalize()
    upload.sha256 = digest.hexdigest()
    return upload


class DiscardingService(_Server):
    """
    The Files API of Luma's own service, and its storage, which counts the bytes of each file and keeps none.

    :ivar sizes: how many bytes were put, file by file
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        service = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer({"id": "f", "state": "pending", "upload": {"url": f"{service.url}/put", "headers": {}}})

            def do_PUT(self) -> None:
                service.sizes.append(sum(map(len, _body(self))))
                self.answer({})

            def do_GET(self) -> None:
                self.answer({"id": "f", "state": "ready"})

        self._serve(Handler)

# SPDX-License-Identifier: Apache-2.0
"""What the tests share: a folder for Airflow of its own, a Luma service, and a web server that does as it is told."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Airflow reads these when it is first imported; nothing of the user's own Airflow may be touched.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="luma-tests-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import structlog.testing

from airflow_provider_luma.simulator import Settings, Simulator

#: A key that is found wherever it should not be.
API_KEY = "sk-distinctive-0123456789abcdef"


def connection_uri(base_url: str, key: str = API_KEY, **extra: Any) -> str:
    """Write a connection of type luma as one would put it into the environment."""
    parts = urlsplit(base_url)
    said = f"?__extra__={quote(json.dumps(extra), safe='')}" if extra else ""
    return f"luma://:{quote(key, safe='')}@{parts.hostname}:{parts.port}/{parts.scheme}{said}"


@pytest.fixture(scope="session")
def _simulator() -> Iterator[Simulator]:
    settings = Settings(
        api_key=API_KEY,
        processing_seconds=0.15,
        status_calls_per_second=1000,
        submissions_per_10_seconds=1000,
    )
    with Simulator(settings) as simulator:
        yield simulator


@pytest.fixture
def luma(_simulator: Simulator) -> Simulator:
    """A quick Luma service with limits out of the way; configure() it for more."""
    _simulator.reset()
    return _simulator


@pytest.fixture
def set_connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give Airflow the connection luma_default: a service's address, a key, and an extra."""

    def _set(base_url: str, key: str = API_KEY, **extra: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection_uri(base_url, key, **extra))

    return _set


@pytest.fixture
def luma_conn(luma: Simulator, set_connection: Callable[..., None]) -> str:
    """The id of a connection to the simulator."""
    set_connection(luma.base_url)
    return "luma_default"


@pytest.fixture
def submit(luma: Simulator, luma_conn: str) -> Callable[..., str]:
    """Submit a job to the simulator, with its settings changed before; return the job's id."""
    from airflow_provider_luma.hooks.luma import LumaHook

    def _submit(**changes: Any) -> str:
        luma.configure(**changes)
        return LumaHook().modify_video("make it snow", luma.sample_url)

    return _submit


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin pauses after a failed call at some hundredths of a second, for tests that are about what comes after."""
    monkeypatch.setattr("airflow_provider_luma.waiting._FIRST_PAUSE", 0.02)


@pytest.fixture(autouse=True)
def hurried_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trigger end as soon as it may: there is no scheduler here that must be given time, and no crowd."""
    monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_WAIT", 0.0)
    monkeypatch.setattr("airflow_provider_luma.poller.SUBMISSION_WINDOW", 0.0)


def until(look: Callable[[], Any], seconds: float = 15) -> Any:
    """Look again and again until there is something, and fail when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return seen


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
    """What a :class:`Wire` answers: an HTTP answer, or, with ``cut`` or ``hang``, none."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: bool = False


def envelope(code: int, data: Any = None, msg: str = "said by the service", *, status: int = 200) -> Answer:
    """Write an answer of the service."""
    return Answer(status, json.dumps({"code": code, "msg": msg, "data": data}).encode())


class Wire:
    """
    A web server that answers what it is told, in order, the last answer again and again, and keeps what it got.

    It also stands in for a forward proxy: asked for a whole address, it answers itself.
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

            do_GET = do_POST = do_CONNECT = _handle

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
        if answer.cut or answer.hang:
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
    """Starts web servers that do as they are told, and writes what to tell them."""

    answer = Answer
    envelope = staticmethod(envelope)

    def __init__(self) -> None:
        self.running: list[Wire] = []

    def start(self, *answers: Answer, **options: Any) -> Wire:
        self.running.append(Wire(*answers, **options))
        return self.running[-1]


@pytest.fixture
def wires() -> Iterator[Wires]:
    """Web servers that do as they are told."""
    wires = Wires()
    yield wires
    for one in wires.running:
        one.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture
def api_key() -> str:
    """The key in force, which is found wherever it should not be."""
    return API_KEY


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def task_log() -> Iterator[list[Any]]:
    """What hooks, triggers, operators and sensors log meanwhile, as a list of entries."""
    with structlog.testing.capture_logs() as entries:
        yield entries

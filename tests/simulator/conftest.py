# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the simulator's tests: clients of running simulators, video clips, and a web server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from airflow_provider_luma.simulator import Settings, Simulator
from tests.support.luma_client import LumaClient, SimulatorClient

#: Short times, and rate limits too high to be reached; a test of a limit sets its own.
FAST_SETTINGS: dict[str, Any] = {
    "processing_seconds": 0.0,
    "refusal_style": "status",
    "submissions_per_10_seconds": 1000,
    "status_calls_per_second": 1000,
    "callback_retry_seconds": 0.0,
    "requests_per_minute": 1000,
    "jobs_at_a_time": 1000,
    "queued_seconds": 0.0,
    "ingest_seconds": 0.0,
}


class Client(SimulatorClient):
    """Client of kie.ai's API."""

    def __init__(self, luma: Simulator) -> None:
        super().__init__(luma, luma.base_url)

    def submit(self, **changes: Any) -> httpx.Response:
        body = {"prompt": "Make it snow", "videoUrl": self.luma.sample_url, **changes}
        return self.post("/api/v1/modify/generate", json=body)

    def submit_and_get_id(self, **changes: Any) -> str:
        content = self.submit(**changes).json()
        assert content["code"] == 200, content
        return content["data"]["taskId"]

    def status(self, task_id: str) -> httpx.Response:
        return self.get("/api/v1/modify/record-info", params={"taskId": task_id})

    def wait_for_end(self, task_id: str) -> dict[str, Any]:
        """Poll the status until the job has ended, and return its record."""
        return wait_until(lambda: (data := self.status(task_id).json()["data"])["successFlag"] and data)

    def result_url(self, **changes: Any) -> str:
        return self.wait_for_end(self.submit_and_get_id(**changes))["response"]["resultUrls"][0]


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll a condition until it returns a true value, and return that; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} seconds"
        time.sleep(0.02)
    return value


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def _simulators() -> Iterator[list[Simulator]]:
    running: list[Simulator] = []
    yield running
    for simulator in running:
        simulator.stop()


@pytest.fixture
def make_simulator(_simulators: list[Simulator]) -> Callable[..., Simulator]:
    """
    Return a function that returns a simulator with the given settings, another one at each call.

    Simulators are shared by all tests and reset between them, because starting one is slow.
    """
    used = 0

    def _make(**changes: Any) -> Simulator:
        nonlocal used
        if used == len(_simulators):
            _simulators.append(Simulator(Settings(**FAST_SETTINGS)))
            _simulators[-1].start()
        simulator = _simulators[used]
        used += 1
        simulator.reset()
        simulator.configure(**changes)
        return simulator

    return _make


@pytest.fixture
def make_client(make_simulator: Callable[..., Simulator]) -> Iterator[Callable[..., Client]]:
    """Return a function that returns a client of kie.ai's API in another simulator at each call."""
    with ExitStack() as clients:
        yield lambda **changes: clients.enter_context(closing(Client(make_simulator(**changes))))


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@pytest.fixture
def make_luma(make_simulator: Callable[..., Simulator]) -> Iterator[Callable[..., LumaClient]]:
    """Return a function that returns a client of Luma's own API in another simulator at each call."""
    with ExitStack() as clients:
        yield lambda **changes: clients.enter_context(closing(LumaClient(make_simulator(**changes))))


@pytest.fixture
def luma_client(make_luma: Callable[..., LumaClient]) -> LumaClient:
    return make_luma()


class WebServer:
    """
    Web server that serves ``pages`` by path and records every POST.

    A POST is answered with the next of ``post_statuses``, and with 200 when there is none.
    """

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.post_statuses: list[int] = []
        web_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = web_server.pages.get(self.path)
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/clip")
                    body = b""
                else:
                    self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web_server.posts.append((dict(self.headers), body))
                self.send_response(web_server.post_statuses.pop(0) if web_server.post_statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def serve(self, path: str, body: bytes) -> str:
        self.pages[path] = body
        return self.url(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., bytes]:
    """Return a function that encodes a small clip; ``kind`` is the container, ``grey`` a constant level."""

    def _make(
        kind: str = "mp4",
        *,
        seconds: float = 1.0,
        size: tuple[int, int] = (64, 36),
        codec: str = "libx264",
        grey: int | None = None,
        sound: str | None = None,
    ) -> bytes:
        path = tmp_path / f"clip.{kind}"
        with av.open(str(path), "w") as out:
            video = out.add_stream(codec, rate=10)
            video.width, video.height = size
            video.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
            audio = out.add_stream(sound, rate=44100, layout="stereo") if sound else None
            for index in range(int(seconds * 10)):
                level = index * 20 % 256 if grey is None else grey
                picture = np.full((size[1], size[0], 3), level, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                out.mux(video.encode(frame))
                if audio:
                    silence = av.AudioFrame.from_ndarray(
                        np.zeros((2, 4410), dtype=np.float32), format="fltp", layout="stereo"
                    )
                    silence.sample_rate, silence.pts, silence.time_base = 44100, index * 4410, Fraction(1, 44100)
                    out.mux(audio.encode(silence))
            out.mux(video.encode(None))
            if audio:
                out.mux(audio.encode(None))
        return path.read_bytes()

    return _make

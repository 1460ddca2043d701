# SPDX-License-Identifier: Apache-2.0
"""What the simulator's tests share: a client on the wire, clips made to measure, and a web server of our own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from airflow_provider_luma.simulator import Settings, Simulator

#: Quick, and with limits out of the way of tests that are about something else.
QUICK: dict[str, Any] = {
    "processing_seconds": 0.0,
    "refusal_style": "status",
    "submissions_per_10_seconds": 1000,
    "status_calls_per_second": 1000,
    "callback_retry_seconds": 0.0,
}


class Client(httpx.Client):
    """Speaks to a simulator as a caller of the service would."""

    def __init__(self, luma: Simulator) -> None:
        super().__init__(
            base_url=luma.base_url,
            headers={"Authorization": f"Bearer {luma.settings.api_key}"},
            timeout=20,
            verify=False,
        )
        self.luma = luma
        #: A caller without the key.
        self.plain = httpx.Client(timeout=20, verify=False)

    def close(self) -> None:
        self.plain.close()
        super().close()

    def submit(self, **changes: Any) -> httpx.Response:
        body = {"prompt": "Make it snow", "videoUrl": self.luma.sample_url, **changes}
        return self.post("/api/v1/modify/generate", json=body)

    def submitted(self, **changes: Any) -> str:
        answer = self.submit(**changes).json()
        assert answer["code"] == 200, answer
        return answer["data"]["taskId"]

    def status(self, task_id: str) -> httpx.Response:
        return self.get("/api/v1/modify/record-info", params={"taskId": task_id})

    def finished(self, task_id: str) -> dict[str, Any]:
        """Look until the job has ended."""
        return until(lambda: (data := self.status(task_id).json()["data"])["successFlag"] and data)

    def result_url(self, **changes: Any) -> str:
        return self.finished(self.submitted(**changes))["response"]["resultUrls"][0]


def until(look: Callable[[], Any], seconds: float = 15) -> Any:
    """Look again and again until there is something, and fail when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return seen


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session")
def _simulators() -> Iterator[list[Simulator]]:
    running: list[Simulator] = []
    yield running
    for simulator in running:
        simulator.stop()


@pytest.fixture
def start(_simulators: list[Simulator]) -> Iterator[Callable[..., Client]]:
    """Have simulators with any settings, each reset rather than started anew, which is quicker."""
    clients: list[Client] = []

    def _start(**changes: Any) -> Client:
        if len(clients) == len(_simulators):
            _simulators.append(Simulator(Settings(**QUICK)))
            _simulators[-1].start()
        simulator = _simulators[len(clients)]
        simulator.reset()
        simulator.configure(**changes)
        clients.append(Client(simulator))
        return clients[-1]

    yield _start
    for client in clients:
        client.close()


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()


class Web:
    """A web server: serves what is put into pages, and writes down what is posted to it."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = web.pages.get(self.path)
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
                web.posts.append((dict(self.headers), body))
                self.send_response(web.answers.pop(0) if web.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def put(self, path: str, body: bytes) -> str:
        self.pages[path] = body
        return self.url(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., bytes]:
    """Make small clips in any container, of any length and size, with or without sound."""

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

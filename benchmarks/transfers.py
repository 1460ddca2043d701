# SPDX-License-Identifier: Apache-2.0
"""
Download of a large file to the disk, and its upload to kie.ai's upload endpoint: ours compared with ``curl``.

Ours is what the operators call: ``LumaHook.download``, and ``LumaHook.upload`` without the check of the video. Ours and
curl take turns, each transfer in a new process. The server is another process, which generates what it sends and
discards what it receives. Ours first transfers a small file, so that its seconds, its processor time and its memory are
those of the transfer alone. ``TRANSFER_MB=200`` sets the size.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

SIZE = round(float(os.environ.get("TRANSFER_MB", "200")) * 1e6)
RUNS = 5

#: Bytes of the file that is transferred before the measured one.
SMALL = 100_000

BLOCK = os.urandom(1 << 20)
KEY = "sk-benchmark-0123456789"
ANSWER = {"success": True, "code": 200, "msg": "ok", "data": {"downloadUrl": "https://files.example.com/clip.mp4"}}


@dataclass(frozen=True)
class Cost:
    """
    What a transfer cost its client.

    :param cpu: seconds of processor time
    :param megabytes: the most that the process held for it
    """

    seconds: float
    cpu: float
    megabytes: float

    @classmethod
    def median(cls, costs: list[Cost]) -> Cost:
        """Return the median of each figure."""
        return cls(*(statistics.median(getattr(cost, field.name) for cost in costs) for field in fields(cls)))

    def row(self, than: Cost) -> str:
        """Return the cells of the table."""
        return (
            f"| {self.seconds:.2f} | {SIZE / 1e6 / self.seconds:,.0f} | {self.seconds / than.seconds:.1f} "
            f"| {self.cpu:.2f} | {self.megabytes:.0f} |"
        )


def main() -> None:
    """Measure, and print a table."""
    print(f"A file of {SIZE / 1e6:.0f} MB; medians of {RUNS} runs:\n")
    print("| | seconds | MB/s | times curl's seconds | CPU seconds | MB of memory |")
    print("|---|---:|---:|---:|---:|---:|")
    with TemporaryDirectory() as name, _server() as url:
        folder = Path(name)
        environment = _environment(folder, url)
        source = folder / "source.mp4"
        _write(source, SIZE)
        _write(folder / "small.mp4", SMALL)
        for what, curl in {"download": _curl_get(url, folder), "upload": _curl_post(url, source)}.items():
            ways: dict[str, Callable[[], Cost]] = {
                "ours": partial(_ours, what, url, folder, environment),
                "curl": partial(_curl, what, curl, folder, environment),
            }
            costs: dict[str, list[Cost]] = {way: [] for way in ways}
            for _ in range(RUNS):
                for way, run in ways.items():
                    costs[way].append(run())
            medians = {way: Cost.median(each) for way, each in costs.items()}
            for way, median in medians.items():
                print(f"| {what}: {way} {median.row(medians['curl'])}", flush=True)


def _environment(folder: Path, url: str) -> dict[str, str]:
    connection = {"conn_type": "luma", "host": url, "password": KEY, "extra": {"upload_host": url}}
    return {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _write(file: Path, size: int) -> None:
    with file.open("wb") as out:
        for piece in _pieces(size):
            out.write(piece)


def _pieces(size: int) -> Iterator[bytes]:
    while size:
        piece = BLOCK[:size]
        size -= len(piece)
        yield piece


# -- the clients ----------------------------------------------------------------------------------------------------


def _ours(what: str, url: str, folder: Path, environment: dict[str, str]) -> Cost:
    command = [sys.executable, "-m", "benchmarks.transfers", what, url, str(folder)]
    output, _, peak = _run(command, environment)
    said = json.loads(output.splitlines()[-1])
    return Cost(said["seconds"], said["cpu"], peak - said["before"])


def _curl(what: str, options: list[str], folder: Path, environment: dict[str, str]) -> Cost:
    command = ["curl", "--silent", "--show-error", "--fail", "--write-out", r"\n%{time_total}", *options]
    output, cpu, peak = _run(command, environment)
    answer, _, seconds = output.rpartition("\n")
    if what == "download":
        _check_and_remove(folder / "curl.mp4")
    else:
        assert json.loads(answer) == ANSWER, output
    return Cost(float(seconds), cpu, peak)


def _curl_get(url: str, folder: Path) -> list[str]:
    return ["--output", str(folder / "curl.mp4"), f"{url}/{SIZE}/result.mp4"]


def _curl_post(url: str, source: Path) -> list[str]:
    form = ("uploadPath=airflow-provider-luma", f"fileName={source.name}")
    file = f"file=@{source};type=application/octet-stream"
    parts = [option for part in (*form, file) for option in ("--form", part)]
    # Without the last header, curl would first ask whether to send the body, which takes 40 ms here. Ours does not ask.
    headers = ["--header", f"Authorization: Bearer {KEY}", "--header", "Expect:"]
    return [*headers, *parts, f"{url}/api/file-stream-upload"]


def _check_and_remove(file: Path) -> None:
    assert file.stat().st_size == SIZE, file
    file.unlink()


def _run(command: list[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """Run a client; return its output, its CPU seconds, and the most MB that it held."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    # Not ru_maxrss, which starts at the memory of the process that started this one.
    peaks: list[float] = []
    sampler = threading.Thread(target=_sample, args=(process.pid, peaks))
    sampler.start()
    assert process.stdout is not None
    with process.stdout as stream:
        output = stream.read()
    sampler.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (command, output)
    return output, usage.ru_utime + usage.ru_stime, peaks[-1]


def _sample(pid: int, peaks: list[float]) -> None:
    """Note a process's peak every few milliseconds, until it has ended."""
    while (peak := _megabytes("VmHWM:", str(pid))) is not None:
        peaks.append(peak)
        time.sleep(0.005)


def _megabytes(name: str, pid: str = "self") -> float | None:
    """Return a figure of a process's memory; None if it has ended."""
    _, found, rest = Path(f"/proc/{pid}/status").read_text().partition(name)
    return int(rest.split()[0]) * 1024 / 1e6 if found else None


def client(what: str, url: str, folder: Path) -> None:
    """Transfer a small file, then a large one as the operators do, and print what that one took."""
    from airflow_provider_luma.hooks.luma import LumaHook

    hook = LumaHook()

    def download(size: int) -> Path:
        target, address = folder / "downloads", f"{url}/{size}/result.mp4"
        return Path(hook.download(address, str(target), luma_task_id="job", service="kie", overwrite=True).path)

    def upload(size: int) -> None:
        source = folder / ("source.mp4" if size == SIZE else "small.mp4")
        assert hook.upload(str(source)).size == size

    work = {"download": download, "upload": upload}[what]
    work(SMALL)
    before, started_at, cpu = _megabytes("VmRSS:"), time.perf_counter(), time.process_time()
    file = work(SIZE)
    took = {"seconds": time.perf_counter() - started_at, "cpu": time.process_time() - cpu, "before": before}
    if file is not None:
        _check_and_remove(file)
        shutil.rmtree(folder / "downloads")
    print(json.dumps(took))


# -- the server -----------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Sends a file of any size, and accepts an upload as kie.ai does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send ``/<size>/result.mp4``."""
        size = int(self.path.split("/")[1])
        self._begin("video/mp4", size)
        for piece in _pieces(size):
            self.wfile.write(piece)

    def do_POST(self) -> None:
        """Discard the form."""
        remaining, room = int(self.headers["Content-Length"]), memoryview(bytearray(len(BLOCK)))
        while remaining:
            count = self.rfile.readinto(room[: min(remaining, len(room))])
            if not count:
                raise ConnectionAbortedError("the client has closed the connection")
            remaining -= count
        answer = json.dumps(ANSWER).encode()
        self._begin("application/json", len(answer))
        self.wfile.write(answer)

    def _begin(self, kind: str, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _server() -> Iterator[str]:
    """Run the server in a separate process; yield its address."""
    command = [sys.executable, "-m", "benchmarks.transfers", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def serve() -> None:
    """Print the port, and serve until the process is ended."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    elif len(sys.argv) > 1:
        client(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main()

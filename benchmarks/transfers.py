# SPDX-License-Identifier: Apache-2.0
"""
How fast files are uploaded and downloaded, beside ``curl``.

A file of 200 MB goes to, and comes from, a server on this machine, which keeps nothing. Each transfer has a process of
its own: ours runs what a task runs, and takes its time from the first line of that. ``TRANSFER_MB=200`` sets the size,
``TRANSFER_ROUNDS=5`` how often.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

MEGABYTES = int(os.environ.get("TRANSFER_MB", "200"))
ROUNDS = int(os.environ.get("TRANSFER_ROUNDS", "5"))
SIZE = MEGABYTES * 1_000_000
BLOCK = bytes(1 << 20)
UPLOAD_PATH = "/api/file-stream-upload"


class Service(BaseHTTPRequestHandler):
    """Answers an upload as kie.ai does, and serves a file of zeros."""

    def do_GET(self) -> None:
        """Send the file."""
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        for start in range(0, SIZE, len(BLOCK)):
            self.wfile.write(BLOCK[: SIZE - start])

    def do_POST(self) -> None:
        """Receive a form."""
        remaining = int(self.headers["Content-Length"])
        while remaining and (piece := self.rfile.read(min(len(BLOCK), remaining))):
            remaining -= len(piece)
        data = {"downloadUrl": "https://files.example.com/clip.mp4", "fileSize": SIZE}
        body = json.dumps({"success": True, "code": 200, "msg": "ok", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def main() -> None:
    """Measure, and print a table."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    print(f"{MEGABYTES} MB, medians of {ROUNDS} transfers:\n")
    print("| | | seconds | MB/s | CPU seconds | MB of memory | times curl's seconds |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        file = Path(folder, "clip.mp4")
        with file.open("wb") as clip:
            clip.truncate(SIZE)
        extra = {"upload_host": url}
        connection = {"conn_type": "luma", "host": url, "password": "key", "extra": extra}
        environment = {
            **os.environ,
            "AIRFLOW_HOME": f"{folder}/airflow",
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection),
        }
        form = ["-F", "uploadPath=videos", "-F", "fileName=clip.mp4", "-F", f"file=@{file}"]
        for what, curl in {
            "download": ["-o", f"{folder}/by-curl.mp4", f"{url}/film.mp4"],
            "upload": [*form, "-H", "Authorization: Bearer key", url + UPLOAD_PATH],
        }.items():
            _compare(
                what, ["curl", "--silent", "--fail", "--header", "Expect:", *curl], [what, url, folder], environment
            )
    server.kill()


def _serve(started: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    started.send(server.server_address[1])
    server.serve_forever()


def _compare(what: str, curl: list[str], ours: list[str], environment: dict[str, str]) -> None:
    """Let both do the same in turn, and print a row for each."""
    programs = {"curl": curl, "ours": [sys.executable, "-m", "benchmarks.transfers", *ours]}
    rounds = [{name: _measured(program, environment) for name, program in programs.items()} for _ in range(ROUNDS)]
    medians = {
        name: [statistics.median(figures) for figures in zip(*(one[name] for one in rounds), strict=True)]
        for name in programs
    }
    for name, (seconds, cpu, memory) in medians.items():
        ratio = seconds / medians["curl"][0]
        print(
            f"| {what} | {name} | {seconds:.2f} | {MEGABYTES / seconds:.0f} | {cpu:.2f} | {memory:.0f} | {ratio:.1f} |"
        )


def _measured(program: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Return the seconds and CPU seconds of a transfer, and the megabytes of memory that its process took at most."""
    began = time.monotonic()
    process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, program
    if program[0] == "curl":
        return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    seconds, cpu = json.loads(said.splitlines()[-1])
    return seconds, cpu, used.ru_maxrss / 1024


def one(what: str, url: str, folder: str) -> None:
    """Transfer the file as a task does, and print the seconds and CPU seconds."""
    from airflow_provider_luma.hooks.luma import LumaHook

    hook = LumaHook()
    began, cpu = time.monotonic(), _cpu()
    if what == "upload":
        hook.upload(f"{folder}/clip.mp4")
    else:
        hook.download(f"{url}/film.mp4", f"{folder}/ours.mp4", overwrite=True)
    print(json.dumps([time.monotonic() - began, _cpu() - cpu]))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()

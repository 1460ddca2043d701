# SPDX-License-Identifier: Apache-2.0
"""
Runs a job on videos in a child process, :mod:`.child_jobs`, and serves its requests.

Videos come from outside, and may exploit a bug in the decoder. The child process gets no secret and opens no storage:
it reads files through its parent, and is killed when the call ends, for whatever reason. Its messages are not trusted.
:data:`_MESSAGES` lists them; each is a JSON list, and each answer is bytes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from airflow_provider_luma.core.wire import plain_text
from airflow_provider_luma.media.film_types import ClipFile, ClipOpener, OnProgress

_MODULE = "airflow_provider_luma.media.child_jobs"
_PACKAGE_FOLDER = str(Path(__file__).parents[2])  # an editable install may not have it in sys.path

#: Maximum bytes of a read, and of a message.
_MAX_READ = 1 << 20
_MAX_MESSAGE = 4 << 20

#: Seconds for the child process to exit once it has closed the connection.
_END_SECONDS = 10.0

#: Signals from someone who wants a process to end, or from a system out of memory. Any other means that it crashed.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The messages of the child process, and the types of what they hold.
_MESSAGES: dict[str, tuple[Any, ...]] = {
    # PyAV works; the job begins.
    "ready": (),
    # Open a file by its index, read from an offset, or close it. All three are answered.
    "open": (int,),
    "read": (int, int, int),
    "close": (int,),
    # Begin the clip with this index, or report it complete. Both are answered.
    "begin": (int,),
    "end": (int,),
    # The number of frames done, and of all frames.
    "progress": (int, int),
    # The result; or what went wrong.
    "done": (object,),
    "refused": (str,),
    "unusable": (str, str),
    "missing": (str,),
    "memory": (),
    "failed": (str, (int, type(None)), str, str),
}

_running: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """Kill all child processes when the task is killed. Their jobs fail as "killed"."""
    for process in tuple(_running):
        process.kill()


class ChildFailed(Exception):
    """
    The child process did not finish its job.

    The arguments are its last message ("refused" and the kinds that follow it in :data:`_MESSAGES`); or "nonsense",
    "slow" or "greedy"; or "crashed" or "killed", with the signal; or "ended", with the exit status.
    """

    def __str__(self) -> str:
        return str(self.args[-1])


class ChildProcess:
    """
    A child process that does one job.

    :param files: functions that open the files that it may read
    :param clip_file: a function that makes the files of clips
    :param on_progress: may raise to end the job
    """

    def __init__(
        self, files: Sequence[ClipOpener], clip_file: ClipFile | None = None, on_progress: OnProgress | None = None
    ) -> None:
        self._files, self._clip_file, self._on_progress = files, clip_file, on_progress
        #: The files that are open, or were when the job failed, by their index.
        self.open_files: dict[int, IO[bytes]] = {}
        #: Seconds for which we still wait for it, and bytes that it may still read.
        self.seconds_left = self.bytes_left = math.inf

    @contextmanager
    def running(self, job: str, arguments: dict[str, Any]) -> Iterator[None]:
        """
        Run it.

        :param arguments: JSON values
        :raises ChildFailed: it did not finish the job
        """
        ours, theirs = socket.socketpair()
        with theirs, Connection(ours.detach()) as self._channel:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-S", "-P", "-m", _MODULE, job],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
            try:
                _running.add(self._process)
                theirs.close()
                self._send(json.dumps(arguments).encode())
                yield
            finally:
                _running.discard(self._process)
                self._process.kill()
                self._process.wait()

    def serve(self, end: str) -> Any:
        """
        Answer the process's requests until it sends a message of one kind; return that message's value, if any.

        :param end: the kind of message
        :raises ChildFailed: it did not finish the job
        """
        while True:
            kind, *values = self._receive()
            if kind == end:
                return values[0] if values else None
            if kind == "read" and values[0] in self.open_files and values[1] >= 0:
                self._send(self._read(*values))
            elif kind == "open" and 0 <= values[0] < len(self._files):
                self._serve_file(values[0])
            elif kind == "begin" and self._clip_file:
                self._serve_clip(self._clip_file, values[0])
            elif kind == "progress" and values[1] > 0:
                if self._on_progress:
                    self._on_progress(*values)
            elif kind in ("refused", "unusable", "missing", "memory", "failed"):
                raise ChildFailed(kind, *values)
            else:
                raise ChildFailed("nonsense")

    def _read(self, index: int, offset: int, length: int) -> bytes:
        length = max(0, min(length, _MAX_READ))
        if length > self.bytes_left:
            raise ChildFailed("greedy")
        file = self.open_files[index]
        file.seek(offset)
        content = file.read(length)
        self.bytes_left -= len(content)
        return content

    def _serve_file(self, index: int) -> None:
        with self._files[index]() as file:
            self.open_files[index] = file
            self._send(b"%d" % file.seek(0, os.SEEK_END))
            self.serve("close")
            del self.open_files[index]
        self._send(b"")

    def _serve_clip(self, clip_file: ClipFile, index: int) -> None:
        with clip_file(index) as path:
            self._send(os.fsencode(path))
            self.serve("end")
        self._send(b"")

    def _send(self, message: bytes) -> None:
        try:
            self._channel.send_bytes(message)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> list[Any]:
        asked_at = time.monotonic()
        try:
            if self.seconds_left < math.inf and not self._channel.poll(max(0.0, self.seconds_left)):
                raise ChildFailed("slow")
            message = self._channel.recv_bytes(_MAX_MESSAGE)
        except (EOFError, OSError) as error:
            raise self._death() from error
        self.seconds_left -= time.monotonic() - asked_at
        try:
            said = json.loads(message)
        except (ValueError, RecursionError):
            said = None
        if not _is_message(said):
            raise ChildFailed("nonsense")
        return [plain_text(value) if isinstance(value, str) else value for value in said]

    def _death(self) -> ChildFailed:
        """Return the error for a process that ended without a result."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if status >= 0:
            return ChildFailed("ended", status)
        number = signal.Signals(-status)
        return ChildFailed("killed" if number in _FROM_OUTSIDE else "crashed", number.name)


def _environment() -> dict[str, str]:
    """Return the variables that a process needs to find PyAV, and no secret."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), _PACKAGE_FOLDER])}


def _is_message(said: Any) -> bool:
    """Return whether this is a valid message: a malicious film may have taken over the process."""
    if not isinstance(said, list) or not said or not isinstance(said[0], str):
        return False
    types, values = _MESSAGES.get(said[0]), said[1:]
    return types is not None and len(types) == len(values) and all(map(isinstance, values, types))

# SPDX-License-Identifier: Apache-2.0
"""
Plans, splits and joins films in a child process with limits, :mod:`.film_work_child`, and shows how far it is.

Films and clips come from outside. The child process decodes them, gets no secret and opens no storage: it asks here for
what it reads, and ends with the call, whatever ends that. What it does for a job is in :mod:`.split` and :mod:`.join`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow_provider_luma.core.wire import plain_text
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.child_process import environment
from airflow_provider_luma.media.film_types import ClipFile, ClipOpener, JoinedFilm, OnProgress
from airflow_provider_luma.media.opening import TOO_MUCH_MEMORY_REMEDY
from airflow_provider_luma.media.split_plan import SplitPlan

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

T = TypeVar("T")

_MODULE = "airflow_provider_luma.media.film_work_child"

#: Seconds between two lines about the progress of a film.
PROGRESS_INTERVAL = 10.0

#: Bytes that are read at a time, and of a message, at most.
_MAX_READ = 1 << 20
_MAX_MESSAGE = 4 << 20

#: Seconds in which a process that says nothing any more has to end.
_END_SECONDS = 10.0

#: Signals of somebody who wants a process to end, or of a system that lacks memory. All others mean that it crashed.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_REMEDY = "it is damaged, or made to do that. Convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4, or make it again"

#: The messages of the process, and the types of what they hold.
_MESSAGES: dict[str, tuple[Any, ...]] = {
    "open": (int,),
    "read": (int, int, int),
    "close": (int,),
    "begin": (int,),
    "end": (int,),
    "progress": (int, int),
    "done": (object,),
    "refused": (str,),
    "missing": (str,),
    "memory": (),
    "failed": (str, (int, type(None)), str, str),
}

_running: set[subprocess.Popen[bytes]] = set()


def plan_split(source: IO[bytes], clip_seconds: float, *, checks_sound: bool = False, shown: str = "") -> SplitPlan:
    """
    Find out how a film is to be split: see :func:`.split.plan_split`.

    :param checks_sound: refuse a film whose sound cannot be joined to it later: see :func:`.sound.check_sound`
    :raises LumaValidationError: the film cannot be split, crashes FFmpeg, or takes too much memory
    :raises ChildProcessError: the process was killed
    """
    work = _Work([_film(source, shown)])
    return work.run("plan_split", SplitPlan.load, clip_seconds=clip_seconds, checks_sound=checks_sound, shown=shown)


def move_cuts_to_scenes(
    source: IO[bytes],
    plan: SplitPlan,
    clip_seconds: float,
    on_progress: OnProgress | None = None,
    *,
    shown: str = "",
) -> SplitPlan:
    """
    Move the cuts to where the scene changes: see :func:`.split.move_cuts_to_scenes`.

    :raises LumaValidationError: the film cannot be decoded, crashes FFmpeg, or takes too much memory
    :raises ChildProcessError: the process was killed
    """
    work = _Work([_film(source, shown)], on_progress=on_progress)
    return work.run("move_cuts_to_scenes", SplitPlan.load, plan=plan.as_dict(), clip_seconds=clip_seconds, shown=shown)


def split(
    source: IO[bytes], plan: SplitPlan, clip_file: ClipFile, on_progress: OnProgress | None = None, *, shown: str = ""
) -> tuple[str, ...]:
    """
    Write a film's clips: see :func:`.split.split`. Return lines for the log.

    :raises LumaValidationError: the film cannot be decoded, crashes FFmpeg, or takes too much memory
    :raises ChildProcessError: the process was killed
    """
    work = _Work([_film(source, shown)], clip_file, on_progress)
    return work.run("split", _texts, plan=plan.as_dict(), shown=shown)


def join(
    clips: Sequence[ClipOpener],
    source: IO[bytes],
    plan: SplitPlan,
    output: Path,
    on_progress: OnProgress | None = None,
    *,
    names: Sequence[str] = (),
    shown: str = "",
) -> JoinedFilm:
    """
    Write the film that the clips make up: see :func:`.join.join`.

    :raises LumaValidationError: a clip cannot be used, crashes FFmpeg, or takes too much memory, or the film does
    :raises ChildProcessError: the process was killed
    """
    shown_clips = names or [""] * len(clips)
    files = [(_name(f"clips[{index}]", name), clips[index]) for index, name in enumerate(shown_clips)]
    return _Work([_film(source, shown), *files], on_progress=on_progress).run(
        "join",
        _joined,
        plan=plan.as_dict(),
        output=str(output),
        clips=len(clips),
        names=list(names),
        shown=shown,
    )


def _joined(made: Any) -> JoinedFilm:
    lacking = tuple(map(float, made["lacking"]))
    return JoinedFilm(float(made["seconds"]), plain_text(made["sound"]), lacking, _texts(made["warnings"]))


def _texts(lines: Any) -> tuple[str, ...]:
    return tuple(map(plain_text, lines))


def end_all() -> None:
    """End the processes of this one, for a task that is killed: what has called them raises ChildProcessError."""
    for process in tuple(_running):
        process.kill()


class FilmProgress:
    """
    Tells how far the making of a film is, every few seconds.

    :param done: what is done, for the log
    :param seconds: the length of the film
    :param log: where it is told
    """

    def __init__(self, done: str, seconds: float, log: Logger) -> None:
        self._done, self._seconds, self._log = done, seconds, log
        self._started_at = self._logged_at = time.monotonic()

    def __call__(self, frames: int, of_frames: int) -> None:
        """Take the number of frames that are done."""
        now = time.monotonic()
        if now - self._logged_at < PROGRESS_INTERVAL:
            return
        self._logged_at = now
        share = frames / of_frames
        speed = share * self._seconds / (now - self._started_at)
        self._log.info("%s %.0f %% of the film, at %.1f times its speed", self._done, 100 * share, speed)


class _Work:
    """
    Runs one job in a child process, and serves it.

    :param files: the film, and its clips, each with what to call it and what opens it
    """

    def __init__(
        self,
        files: Sequence[tuple[str, ClipOpener]],
        clip_file: ClipFile | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._files, self._clip_file, self._on_progress = files, clip_file, on_progress
        self._open: dict[int, IO[bytes]] = {}

    def run(self, job: str, load: Callable[[Any], T], **arguments: Any) -> T:
        """
        Return what comes of a job.

        :param load: reads it
        """
        ours, theirs = socket.socketpair()
        with theirs, Connection(ours.detach()) as self._channel:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-S", "-P", "-m", _MODULE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )
            try:
                _running.add(self._process)
                theirs.close()
                self._send(json.dumps((job, arguments)).encode())
                return self._loaded(self._serve("done"), load)
            finally:
                _running.discard(self._process)
                self._process.kill()
                self._process.wait()

    def _loaded(self, result: Any, load: Callable[[Any], T]) -> T:
        try:
            return load(result)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            self._fail(None)

    def _serve(self, end: str) -> Any:
        """Do what the process asks for, up to a message of a kind, and return what that says."""
        while True:
            kind, *values = self._receive()
            if kind == end:
                return values[0]
            if kind == "read" and values[0] in self._open and values[1] >= 0:
                index, offset, length = values
                file = self._open[index]
                file.seek(offset)
                self._send(file.read(max(0, min(length, _MAX_READ))))
            elif kind == "open" and 0 <= values[0] < len(self._files):
                self._serve_file(values[0])
            elif kind == "begin" and self._clip_file:
                self._serve_clip(values[0])
            elif kind == "progress" and values[1] > 0:
                if self._on_progress:
                    self._on_progress(*values)
            else:
                self._fail(kind, *values)

    def _serve_file(self, index: int) -> None:
        with self._files[index][1]() as file:
            self._open[index] = file
            self._send(b"%d" % file.seek(0, os.SEEK_END))
            self._serve("close")
            del self._open[index]
        self._send(b"")

    def _serve_clip(self, index: int) -> None:
        assert self._clip_file
        with self._clip_file(index) as path:
            self._send(os.fsencode(path))
            self._serve("end")
        self._send(b"")

    def _fail(self, kind: str | None, *values: Any) -> NoReturn:
        if kind == "refused":
            raise LumaValidationError(None, str(values[0]))
        if kind == "missing":  # or it is too old, or does not work on this worker
            raise LumaValidationError(
                None,
                f"Films cannot be split or joined here ({plain_text(values[0])}): install the extra media of "
                "airflow-provider-luma on the workers",
            )
        if kind == "memory":
            raise LumaValidationError(
                None, f"{self._names()} takes more memory than films of its size may: {TOO_MUCH_MEMORY_REMEDY}"
            )
        if kind != "failed":
            raise LumaValidationError(None, f"{self._names()} has upset the process that decodes it: {_REMEDY}")
        name, number, message, trace = values
        message = f"{self._names()} could not be processed: {plain_text(name)}: {plain_text(message)}"
        cause = _Traceback(plain_text(trace))
        raise (OSError(number, message) if isinstance(number, int) else RuntimeError(message)) from cause

    def _names(self) -> str:
        """Return what to call the files that are open, the last one first: it may be any of them."""
        return " or ".join(self._files[index][0] for index in reversed(self._open)) or self._files[0][0]

    def _send(self, message: bytes) -> None:
        try:
            self._channel.send_bytes(message)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> list[Any]:
        try:
            message = self._channel.recv_bytes(_MAX_MESSAGE)
        except (EOFError, OSError) as error:
            raise self._death() from error
        try:
            said = json.loads(message)
        except (ValueError, RecursionError):
            said = None
        return said if _is_message(said) else [None]

    def _death(self) -> Exception:
        """Return what to raise for a process that has ended without a result."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        if status >= 0:
            return ChildProcessError(f"{self._names()}: the process that decodes it ended without a result ({status})")
        number = signal.Signals(-status)
        if number in _FROM_OUTSIDE:
            return ChildProcessError(
                f"{self._names()}: the process that decodes it was killed ({number.name}), by the end of the task, or "
                "by the system if memory ran out: then give the worker more, or run fewer tasks at a time"
            )
        return LumaValidationError(None, f"{self._names()} crashes FFmpeg ({number.name}): {_REMEDY}")


def _is_message(said: Any) -> bool:
    """Tell whether this is a message that the process may send: a film may have made it write nonsense."""
    if not isinstance(said, list) or not said or not isinstance(said[0], str):
        return False
    types, values = _MESSAGES.get(said[0]), said[1:]
    return types is not None and len(types) == len(values) and all(map(isinstance, values, types))


class _Traceback(Exception):
    """The traceback of the other process."""


def _film(source: IO[bytes], shown: str) -> tuple[str, ClipOpener]:
    def opener() -> AbstractContextManager[IO[bytes]]:
        return nullcontext(source)

    return _name("source", shown), opener


def _name(parameter: str, shown: str) -> str:
    return f"{parameter} ({shown})" if shown else parameter

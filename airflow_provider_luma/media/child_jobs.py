# SPDX-License-Identifier: Apache-2.0
"""
The child process that does one of :data:`_JOBS` on videos for its parent, :mod:`.child_process`.

A malicious video can crash FFmpeg, or make it allocate memory or compute without end. In a child process, this does not
bring down the task. Standard input is a socket to the parent, whose first message holds the job's arguments as JSON.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from airflow_provider_luma.media.memory import is_exhausted, limit_memory
from airflow_provider_luma.media.opening import Unusable, open_video

#: The argument with which this program restarts itself, once it has set the limits that only apply from its start.
_LIMITED = "limited"

#: Bytes of a thread's stack. FFmpeg and x264 use a tenth of that. By default, a thread reserves eight times as many.
_STACK = 1 << 20

#: If memory runs out, the system kills this process first, and not the worker.
_OOM_SCORE = "1000"

#: Bytes of address space, and seconds of CPU time, that a probe may use.
_PROBE_MEMORY, _PROBE_CPU_SECONDS = 1 << 30, 10


class _RemoteFile(io.RawIOBase):
    """
    A file that is read through the parent process.

    :param ask: called with an offset and a length; returns at most that many bytes from the parent
    """

    def __init__(self, size: int, ask: Callable[[int, int], bytes]) -> None:
        self._size, self._ask = size, ask
        self._position = 0

    def read(self, length: int = -1) -> bytes:
        content = self._ask(self._position, length)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError("a position before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class _Parent:
    """The parent process."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._output: Path | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, *message: Any) -> None:
        """Send a message."""
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            self._leave()

    def ask(self, *message: Any) -> bytes:
        """Send a message, and return the answer."""
        self.tell(*message)
        try:
            return self._channel.recv_bytes()
        except (EOFError, OSError):
            self._leave()

    def report(self, done: int, frames: int) -> None:
        """Report how many frames are done."""
        self.tell("progress", done, frames)

    @contextmanager
    def opened(self, index: int) -> Iterator[IO[bytes]]:
        """Open a file by its index in the parent's list."""
        size = int(self.ask("open", index))
        yield cast("IO[bytes]", _RemoteFile(size, partial(self.ask, "read", index)))
        self.ask("close", index)

    @contextmanager
    def clip_file(self, index: int) -> Iterator[Path]:
        """Have the parent make the file of a clip. It counts as complete at the end of the context."""
        self._output = Path(self.ask("begin", index).decode())
        yield self._output
        self.ask("end", index)
        self._output = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the job."""
        arguments: dict[str, Any] = json.loads(self._channel.recv_bytes())
        if "output" in arguments:
            self._output = Path(arguments["output"])
        return arguments

    def _watch(self) -> None:
        """End this process when the parent has ended, even in the middle of a frame."""
        poll = select.poll()
        poll.register(self._channel.fileno(), 0)
        poll.poll()
        self._leave()

    def _leave(self) -> NoReturn:
        if self._output:
            # The parent may have been killed, and removed nothing.
            with suppress(OSError):
                self._output.unlink(missing_ok=True)
                self._output.parent.rmdir()
        os._exit(1)


def _probe(parent: _Parent, *, demuxers: str, max_seconds: float, tolerance: float) -> float:
    from airflow_provider_luma.media.probe import probe

    # If PyAV is missing or incompatible, it fails here, before "ready". Any later failure is due to the file.
    with suppress(Unusable):
        open_video(io.BytesIO(), demuxers)
    parent.tell("ready")
    with parent.opened(0) as file:
        return probe(file, demuxers, max_seconds, tolerance)


def _plan_split(parent: _Parent, *, clip_seconds: float, checks_sound: bool, shown: str) -> dict[str, Any]:
    from airflow_provider_luma.media.sound import check_sound
    from airflow_provider_luma.media.split import plan_split

    with parent.opened(0) as source:
        plan = plan_split(source, clip_seconds, shown=shown)
        if checks_sound:
            check_sound(source, plan.origin, plan.exact_seconds, shown=shown)
        return plan.as_dict()


def _move_cuts_to_scenes(parent: _Parent, *, plan: dict[str, Any], clip_seconds: float, shown: str) -> dict[str, Any]:
    from airflow_provider_luma.media.split import move_cuts_to_scenes
    from airflow_provider_luma.media.split_plan import SplitPlan

    with parent.opened(0) as source:
        moved = move_cuts_to_scenes(source, SplitPlan.load(plan), clip_seconds, parent.report, shown=shown)
        return moved.as_dict()


def _split(parent: _Parent, *, plan: dict[str, Any], shown: str) -> tuple[str, ...]:
    from airflow_provider_luma.media.split import split
    from airflow_provider_luma.media.split_plan import SplitPlan

    with parent.opened(0) as source:
        return split(source, SplitPlan.load(plan), parent.clip_file, parent.report, shown=shown)


def _join(
    parent: _Parent, *, plan: dict[str, Any], output: str, clips: int, names: list[str], shown: str
) -> dict[str, Any]:
    from airflow_provider_luma.media.join import join
    from airflow_provider_luma.media.split_plan import SplitPlan

    openers = [partial(parent.opened, 1 + index) for index in range(clips)]
    with parent.opened(0) as source:
        made = join(openers, source, SplitPlan.load(plan), Path(output), parent.report, names=names, shown=shown)
        return vars(made)


def _find_sound(parent: _Parent, *, shown: str) -> bool:
    from airflow_provider_luma.media.added_sound import find_sound

    with parent.opened(0) as source:
        return find_sound(source, shown=shown)


def _add_sound(parent: _Parent, *, output: str, mark: str, names: list[str]) -> dict[str, Any]:
    from airflow_provider_luma.media.added_sound import add_sound

    video, source = (partial(parent.opened, index) for index in range(2))
    return vars(add_sound(video, source, Path(output), mark, names=(names[0], names[1])))


def _read_mark(parent: _Parent) -> str:
    from airflow_provider_luma.media.added_sound import read_mark

    with parent.opened(0) as video:
        return read_mark(video)


_JOBS: dict[str, Callable[..., Any]] = {
    "probe": _probe,
    "plan_split": _plan_split,
    "move_cuts_to_scenes": _move_cuts_to_scenes,
    "split": _split,
    "join": _join,
    "find_sound": _find_sound,
    "add_sound": _add_sound,
    "read_mark": _read_mark,
}


def _work(parent: _Parent, job: str) -> None:
    """Do the job, and report how it ended."""
    arguments = parent.arguments()
    try:
        ending = "done", _JOBS[job](parent, **arguments)
    except Exception as error:
        ending = _failure(error)
    parent.tell(*ending)


def _failure(error: Exception) -> tuple[Any, ...]:
    """Return the message for a job that failed."""
    if isinstance(error, MemoryError):
        return ("memory",)
    # Not at the top: a probe starts faster without it.
    from airflow_provider_luma.exceptions import LumaValidationError

    if isinstance(error, LumaValidationError):
        return "refused", error.msg
    if isinstance(error, Unusable):
        return "unusable", *error.args
    if isinstance(error, ImportError):
        return "missing", str(error)
    if is_exhausted():
        return ("memory",)
    number = error.errno if isinstance(error, OSError) else None
    return "failed", type(error).__name__, number, str(error), "".join(traceback.format_exception(error))


def main(job: str, *limited: str) -> None:
    """Do the parent's job, within limits."""
    if job == "probe":
        limit_probe()
    elif limited:
        limit_memory()
    else:
        _limit_program()
        os.execv(sys.executable, [*sys.orig_argv, _LIMITED])  # noqa: S606
    _work(_Parent(Connection(os.dup(sys.stdin.fileno()))), job)


def limit_probe() -> None:
    """Limit the resources of a probe, as far as the system supports it."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, _PROBE_CPU_SECONDS)
    _limit(resource.RLIMIT_AS, _PROBE_MEMORY)


def _limit_program() -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, _STACK, resource.getrlimit(resource.RLIMIT_STACK)[1])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _limit(kind: int, limit: int, hard_limit: int | None = None) -> None:
    with suppress(OSError, ValueError):  # not every system can limit everything
        resource.setrlimit(kind, (limit, limit if hard_limit is None else hard_limit))


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""
The child process that plans, splits or joins one film for its parent, :mod:`.film_work`.

A film may be made to crash FFmpeg, or to let it allocate without end; here that ends no task. Standard input is a
socket to the parent. What is said there are messages, in this direction JSON lists: ``open``, ``read`` and ``close``
for files, ``begin`` and ``end`` for clips that are written, which are all answered; ``progress``; and at last ``done``,
``refused``, ``memory``, ``missing`` or ``failed``. The parent's first message is the job, JSON too.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.child_process import RemoteFile
from airflow_provider_luma.media.memory import is_exhausted, limit_memory
from airflow_provider_luma.media.split_plan import SplitPlan

#: Says, as an argument, that the limits are set that count from the start of a program on.
_LIMITED = "limited"

#: Bytes of a thread's stack. FFmpeg and x264 use a tenth of that; by default each reserves eight times as many.
_STACK = 1 << 20

#: The system ends this process first if memory runs out, and not the worker.
_OOM_SCORE = "1000"


class Parent:
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
        """Tell how many frames are done."""
        self.tell("progress", done, frames)

    @contextmanager
    def opened(self, index: int) -> Iterator[IO[bytes]]:
        """Let a file be opened: 0 is the film, and those behind it are its clips."""
        size = int(self.ask("open", index))
        yield cast("IO[bytes]", RemoteFile(size, lambda offset, length: self.ask("read", index, offset, length)))
        self.ask("close", index)

    @contextmanager
    def clip_file(self, index: int) -> Iterator[Path]:
        """Let a file be made for a clip, which is taken as whole at the end."""
        self._output = Path(self.ask("begin", index).decode())
        yield self._output
        self.ask("end", index)
        self._output = None

    def job(self) -> tuple[str, dict[str, Any]]:
        """Return what is to be done."""
        name, arguments = json.loads(self._channel.recv_bytes())
        if "output" in arguments:
            self._output = Path(arguments["output"])
        return name, arguments

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


def _plan_split(parent: Parent, *, clip_seconds: float, checks_sound: bool, shown: str) -> dict[str, Any]:
    from airflow_provider_luma.media.sound import check_sound
    from airflow_provider_luma.media.split import plan_split

    with parent.opened(0) as source:
        plan = plan_split(source, clip_seconds, shown=shown)
        if checks_sound:
            check_sound(source, plan.origin, plan.exact_seconds, shown=shown)
        return plan.as_dict()


def _move_cuts_to_scenes(parent: Parent, *, plan: dict[str, Any], clip_seconds: float, shown: str) -> dict[str, Any]:
    from airflow_provider_luma.media.split import move_cuts_to_scenes

    with parent.opened(0) as source:
        moved = move_cuts_to_scenes(source, SplitPlan.load(plan), clip_seconds, parent.report, shown=shown)
        return moved.as_dict()


def _split(parent: Parent, *, plan: dict[str, Any], shown: str) -> list[str]:
    from airflow_provider_luma.media.split import split

    with parent.opened(0) as source:
        return list(split(source, SplitPlan.load(plan), parent.clip_file, parent.report, shown=shown))


def _join(
    parent: Parent, *, plan: dict[str, Any], output: str, clips: int, names: list[str], shown: str
) -> dict[str, Any]:
    from airflow_provider_luma.media.join import join

    openers = [partial(parent.opened, 1 + index) for index in range(clips)]
    with parent.opened(0) as source:
        made = join(openers, source, SplitPlan.load(plan), Path(output), parent.report, names=names, shown=shown)
    return asdict(made)


_JOBS: dict[str, Callable[..., Any]] = {
    "plan_split": _plan_split,
    "move_cuts_to_scenes": _move_cuts_to_scenes,
    "split": _split,
    "join": _join,
}


def _work(parent: Parent) -> None:
    """Do the job, and tell how it has ended."""
    name, arguments = parent.job()
    try:
        parent.tell("done", _JOBS[name](parent, **arguments))
    except LumaValidationError as error:
        parent.tell("refused", error.msg)
    except MemoryError:
        parent.tell("memory")
    except ImportError as error:
        parent.tell("missing", str(error))
    except Exception as error:
        if is_exhausted():
            parent.tell("memory")
            return
        number = error.errno if isinstance(error, OSError) else None
        parent.tell("failed", type(error).__name__, number, str(error), traceback.format_exc())


def main() -> None:
    """Do the job of the parent process."""
    if sys.argv[1:] != [_LIMITED]:
        _limit_program()
        os.execv(sys.executable, [*sys.orig_argv, _LIMITED])  # noqa: S606
    limit_memory()
    _work(Parent(Connection(os.dup(sys.stdin.fileno()))))


def _limit_program() -> None:
    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_STACK, _STACK)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


if __name__ == "__main__":
    main()

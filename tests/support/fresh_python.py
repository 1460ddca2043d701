# SPDX-License-Identifier: Apache-2.0
"""
Run scripts in fresh Python processes that have imported ``airflow.sdk`` but nothing of this package.

Importing ``airflow.sdk`` takes seconds, so one process does it, and each script runs in a fork of that process.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from typing import Any


class Server:
    """The process that is forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._process.communicate)

    def run(self, script: str, environment: dict[str, str | None]) -> tuple[Any, str]:
        """Run a script; return what it has left in ``result``, and what it has printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([script, environment]), file=self._process.stdin, flush=True)
        status, result, printed = json.loads(self._process.stdout.readline())
        assert status == 0, printed
        return result, printed


@cache
def _server() -> Server:
    return Server()


def run(script: str, **environment: str | None) -> Any:
    """
    Run a script in a separate process; fail if it raises.

    :param environment: changes of the environment; None removes a variable
    :returns: what the script has left in ``result``, which has to be JSON
    """
    return run_and_read(script, **environment)[0]


def run_and_read(script: str, **environment: str | None) -> tuple[Any, str]:
    """Run a script as :func:`run` does; return its result, and all that it has printed or logged."""
    return _server().run(script, environment)


def _run_script(script: str, environment: dict[str, str | None], result_to: int) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    names: dict[str, Any] = {"__name__": "__main__", "result": None}
    exec(compile(script, "<script>", "exec"), names)
    os.write(result_to, json.dumps(names["result"]).encode())


def _fork(script: str, environment: dict[str, str | None]) -> tuple[int, Any, str]:
    """Run a script in a child; return its exit status, its result, and its output."""
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            status = 1
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            try:
                _run_script(script, environment, result.fileno())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        for file in (result, output):
            file.seek(0)
        return status, json.loads(result.read() or "null"), output.read().decode(errors="replace")


def _serve() -> None:
    from airflow.sdk import BaseOperator, BaseSensorOperator

    assert BaseOperator
    assert BaseSensorOperator
    # What Airflow prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_fork(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

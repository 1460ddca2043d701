# SPDX-License-Identifier: Apache-2.0
"""
The test's side of a separate Airflow process that runs DAGs, one after the other.

That process imports Airflow and migrates the database once. A run then costs what ``dag.test()`` costs. The other side
is :mod:`.dag_server`; requests and answers are JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Seconds in which Airflow has to be imported, and its database migrated.
START_TIMEOUT = 300.0

#: Variables that would lead to an Airflow, an account or a database of the person who runs the tests.
_NOT_INHERITED = ("AIRFLOW_HOME", "AIRFLOW_CONFIG", "AIRFLOW__", "AIRFLOW_CONN_")


_NO_PROXY = ("no_proxy", "NO_PROXY")

#: Settings of the secrets backends, which Airflow asks for connections before it reads environment variables.
_SECRETS_BACKENDS = ("AIRFLOW__SECRETS__BACKEND", "AIRFLOW__WORKERS__SECRETS_BACKEND")


class AirflowProblem(RuntimeError):
    """A DAG could not be run to its end; or Airflow could not be started, or has ended."""


class AirflowProcess:
    """
    Runs DAGs in a separate Airflow process during the ``with`` block.

    :param home: its folder
    :param dags_folder: the folder of the DAG files
    :param environment: further environment variables
    """

    def __init__(self, home: Path, dags_folder: Path, environment: Mapping[str, str]) -> None:
        if not dags_folder.is_dir():
            raise AirflowProblem(f"There is no folder {dags_folder}: override the fixture luma_dags_folder")
        for name in environment:
            if name.startswith(_SECRETS_BACKENDS):
                raise AirflowProblem(
                    f"luma_airflow_environment sets {name}. Airflow would ask that secrets backend for connections "
                    "first, and a test could spend credits: pass connections to run_dag instead"
                )
        self.home = home
        self.dags_folder = dags_folder
        self._settings = {
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            **environment,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection
        self._turn = threading.RLock()
        self._runs = 0

    def __enter__(self) -> Self:
        """Start the process, and migrate the database."""
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Kill the process."""
        self._kill()

    def reset(self) -> None:
        """Delete all runs, and whatever else was stored since the database was migrated."""
        self._ask({"do": "reset"}, START_TIMEOUT, self.home / "airflow.log")

    def run(
        self,
        dag_id: str,
        params: Mapping[str, Any],
        connections: Mapping[str, str | Mapping[str, Any]],
        timeout: float,
    ) -> tuple[dict[str, Any], str]:
        """Run a DAG; return what :func:`.dag_server.run` does, and the log."""
        self._runs += 1
        log = self.home / f"run-{self._runs}.log"
        given = {
            f"AIRFLOW_CONN_{conn_id.upper()}": value if isinstance(value, str) else json.dumps(value)
            for conn_id, value in connections.items()
        }
        environment = {**self._environment(), **given}
        request = {"do": "run", "dag_id": dag_id, "params": params, "environment": environment, "log": str(log)}
        return self._ask(request, timeout, log), _read(log)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        # The simulator is on this machine, which a proxy cannot reach.
        direct = {name: ",".join(filter(None, (kept.get(name), "127.0.0.1", "localhost"))) for name in _NO_PROXY}
        return {**kept, **direct, **self._settings}

    def _start(self) -> None:
        log = self.home / "airflow.log"
        self._channel, theirs = Pipe()
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603
                # By its path: as a module, it would import this package, and pytest with it.
                [
                    sys.executable,
                    "-P",
                    str(Path(__file__).with_name("dag_server.py")),
                    *map(str, (theirs.fileno(), os.getpid())),
                ],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._ask({"do": "start"}, START_TIMEOUT, log)
        except BaseException:
            self._kill()
            raise

    def _kill(self) -> None:
        """Kill the process, and the child processes of its tasks."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # they have ended by themselves
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._channel.close()

    def _ask(self, request: Mapping[str, Any], timeout: float, log: Path) -> dict[str, Any]:
        # Params are often paths, such as those in pytest's tmp_path.
        message = json.dumps(request, default=os.fspath).encode()
        with self._turn:  # threads of one test take turns
            if self._process is None:
                self._start()
            answer = self._answer(message, request.get("dag_id", "Airflow"), timeout, log)
        if "problem" in answer:
            raise AirflowProblem(answer["problem"])
        return answer

    def _answer(self, message: bytes, subject: str, timeout: float, log: Path) -> dict[str, Any]:
        try:
            return self._exchange(message, timeout)
        except (EOFError, OSError, TimeoutError) as error:
            self._kill()
            reason = f"not done after {timeout:g} s" if isinstance(error, TimeoutError) else "its process has ended"
            raise AirflowProblem(f"{subject}: {reason}. The log ends:\n{_tail(log)}") from None
        except BaseException:
            self._kill()  # what it answers later must not be taken for the answer to the next request
            raise

    def _exchange(self, message: bytes, timeout: float) -> dict[str, Any]:
        self._channel.send_bytes(message)
        if not self._channel.poll(timeout):
            raise TimeoutError
        answer: dict[str, Any] = json.loads(self._channel.recv_bytes())
        return answer


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _tail(log: Path) -> str:
    return "\n".join(_read(log).splitlines()[-30:])

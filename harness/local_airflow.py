# SPDX-License-Identifier: Apache-2.0
"""
A complete Airflow in its own folder: API server, scheduler, DAG processor and triggerer on SQLite.

Every component is a separate process, so that each can be killed and restarted. Each Airflow has its own ports,
secrets, database and logs. The demo, the benchmarks and the end-to-end tests run on it.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import psutil
import requests

#: The signals with which a terminal, a shell or a supervisor ends a process.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class AirflowProblem(RuntimeError):
    """An Airflow command, component or API call failed or took too long."""


class LocalAirflow:
    """
    An Airflow that runs for the duration of the ``with`` block.

    Its components are started in order, and stopped in reverse order.

    :param home: its folder; the database of an Airflow that ran there before is reused
    :param dags: the folder of the DAG files
    :param environment: further environment variables, e.g. connections
    """

    #: The arguments of ``airflow`` that start each component.
    components: Mapping[str, Sequence[str]] = MappingProxyType(
        {name: (name,) for name in ("api-server", "dag-processor", "triggerer", "scheduler")}
    )

    def __init__(self, home: Path, dags: Path, environment: Mapping[str, str]) -> None:
        self.home = home.absolute()
        self.logs = self.home / "logs"
        self.port, log_port, trigger_log_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""
        self.home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "AIRFLOW__"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags.absolute()),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__FERNET_KEY": self._secret("fernet-key"),
            # Writers wait for each other for up to a minute; by default, SQLite fails after five seconds.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db?timeout=60",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            # Five seconds by default. A task that gives up waiting fails or is retried, and tests count tries.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__API__SECRET_KEY": self._secret("api-secret-key"),
            "AIRFLOW__API_AUTH__JWT_SECRET": self._secret("jwt-secret"),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_log_port),
            **environment,
        }

    def __enter__(self) -> Self:
        self.run("db", "migrate")
        self.start_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_all()

    # -- processes --------------------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> str:
        """Run one ``airflow`` command and wait for it; return what it printed."""
        done = subprocess.run(
            ["airflow", *arguments], env=self.environment, cwd=self.home, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise AirflowProblem(f"airflow {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(self, component: str) -> None:
        """Start a component in its own process group; its output goes to ``logs/COMPONENT.txt``."""
        self.logs.mkdir(exist_ok=True)
        with (self.logs / f"{component}.txt").open("ab") as output, uninterrupted():
            self.processes[component] = subprocess.Popen(
                ["airflow", *self.components[component]],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_all(self) -> None:
        """Start every component, and wait until they are healthy."""
        try:
            for component in self.components:
                self.start(component)
            self.wait_until(self.is_healthy, "Airflow to be healthy")
        except BaseException:
            self.stop_all()
            raise

    def stop(self, component: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop a component and its child processes; kill those that do not end in time."""
        self._wait_for_end(component, self._signal(component, how))

    def stop_all(self) -> None:
        """Stop every component; the scheduler first, so that it starts no new task."""
        running = [component for component in reversed(self.components) if component in self.processes]
        # The API server has nothing to finish, and would use the processor for seconds only to free its memory.
        how = {component: signal.SIGKILL if component == "api-server" else signal.SIGTERM for component in running}
        with uninterrupted():
            families = {component: self._signal(component, how[component]) for component in running}
            for component, family in families.items():
                self._wait_for_end(component, family)

    def _signal(self, component: str, how: signal.Signals) -> list[psutil.Process]:
        """Send a signal to a component (SIGKILL to its child processes, too); return the component and its children."""
        process = self.processes[component]
        family = _family(process.pid)
        if how is signal.SIGKILL:
            for member in family:
                _send(member, how)
        else:
            process.send_signal(how)
        return family

    def _wait_for_end(self, component: str, family: list[psutil.Process], seconds: float = 5) -> None:
        """Wait for a component's processes to end; kill those that take too long."""
        _, alive = psutil.wait_procs(family, timeout=seconds)
        for member in alive:
            _send(member, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        self.processes.pop(component).wait()

    # -- REST API ---------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call Airflow's REST API; return the JSON of the response."""
        if not self._token:
            response = requests.get(f"{self.url}/auth/token", timeout=120)
            response.raise_for_status()
            self._token = response.json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"}
        response = requests.request(method, f"{self.url}/api/v2{path}", headers=headers, timeout=120, **arguments)
        if not response.ok:
            raise AirflowProblem(f"{method} {path}: HTTP {response.status_code}: {response.text[:500]}")
        return response.json() if response.content else None

    def is_healthy(self) -> bool:
        """Return whether every component reports that it is healthy."""
        for component, process in self.processes.items():
            if process.poll() is not None:
                raise AirflowProblem(
                    f"airflow {component} ended with {process.returncode}; see {self.logs}/{component}.txt"
                )
        try:
            health = requests.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
            # Airflow builds its Execution API at the first request. On a busy machine that takes longer than a task
            # waits, so it must not be a task that asks first.
            requests.get(f"{self.url}/execution/health", timeout=300).raise_for_status()
        except (requests.RequestException, ValueError):
            return False
        return all(
            (health.get(part) or {}).get("status") == "healthy"
            for part in ("metadatabase", "scheduler", "triggerer", "dag_processor")
        )

    def has_dag(self, dag_id: str) -> bool:
        """Return whether a DAG has been parsed; raise the error if a DAG file cannot be parsed."""
        errors = self.call("GET", "/importErrors")["import_errors"]
        if errors:
            raise AirflowProblem(f"{errors[0]['filename']} cannot be read:\n{errors[0]['stack_trace']}")
        # By its name: a page holds at most a hundred DAGs.
        found = self.call("GET", "/dags", params={"limit": 100, "dag_id_pattern": dag_id})["dags"]
        return any(dag["dag_id"] == dag_id for dag in found)

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run of a DAG with these params; return its run id."""
        self.wait_until(lambda: self.has_dag(dag_id), f"the DAG {dag_id} to be read")
        run = self.call("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a DAG run."""
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a DAG run, in the order they were started."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        tasks: list[dict[str, Any]] = []
        while page := self.call("GET", path, params={"limit": 100, "offset": len(tasks)})["task_instances"]:
            tasks += page
        return sorted(tasks, key=lambda task: task["start_date"] or "9")

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return the XCom that a task pushed under a key."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", path, params={"map_index": map_index, "deserialize": "true"})["value"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try of a task, as shown in the UI."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self.call("GET", path, params={"map_index": map_index, "full_content": "true"})["content"]
        return "\n".join(str(line.get("event", line)) + "".join(_details(line)) for line in content)

    def wait_for_log(
        self, words: str, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """Wait for words in a task's log, which may appear a moment after the task has ended; return the log."""
        log = ""

        def is_logged() -> bool:
            nonlocal log
            log = self.task_log(dag_id, run_id, task_id, try_number, map_index)
            return words in log

        try:
            self.wait_until(is_logged, f"{words!r} in the log of {dag_id}.{task_id}", seconds=120)
        except AirflowProblem as problem:
            raise AirflowProblem(f"{problem}; it ends:\n{log[-2000:]}") from None
        return log

    def story(self, dag_id: str, run_id: str, lines: int = 15) -> str:
        """Describe a DAG run: the state of every task, and the end of the log of each failed task."""
        described = []
        for task in self.tasks(dag_id, run_id):
            described.append(f"{task['task_id']}[{task['map_index']}]: {task['state']}")
            if task["state"] == "failed":
                log = self.task_log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
                described += [f"    {line}" for line in log.splitlines()[-lines:]]
        return "\n".join(described)

    @staticmethod
    def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 600, every: float = 1.5) -> None:
        """
        Wait until a condition is true.

        :param condition: returns whether the wait is over
        :param what: what is waited for, for the error
        :param seconds: maximum seconds to wait
        :param every: seconds between two checks; on a busy machine, a call to Airflow's API costs a tenth of a second
        :raises AirflowProblem: the condition is not true in time
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AirflowProblem(f"timed out after {seconds:g} s waiting for {what}")
            time.sleep(every)

    def _secret(self, name: str) -> str:
        """Return a secret that all components share; it is kept in a file."""
        file = self.home / "secrets" / name
        if not file.exists():
            file.parent.mkdir(mode=0o700, exist_ok=True)
            file.write_text(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
        return file.read_text()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Delay signals that would end this process until the block is done, so that no component is left running.

    For example, a user may press Ctrl-C a second time while the first one stops everything.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    held: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: held.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def free_ports(count: int) -> list[int]:
    """Return distinct free ports."""
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in with_port]
    for listening in with_port:
        listening.close()
    return ports


def _details(line: Mapping[str, Any]) -> list[str]:
    """Return the errors in an entry of a task's log, which are separate from its text."""
    errors = line.get("error_detail") or []
    return [f"\n{error.get('exc_type')}: {error.get('exc_value')}" for error in errors]


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, how: signal.Signals) -> None:
    try:
        process.send_signal(how)
    except psutil.NoSuchProcess:
        return

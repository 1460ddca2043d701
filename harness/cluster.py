# SPDX-License-Identifier: Apache-2.0
"""
An Airflow cluster on this machine: PostgreSQL, Redis, the Celery executor, two workers and two triggerers.

PostgreSQL and Redis come from Debian's packages, or from the ``PATH``.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from harness.local_airflow import AirflowProblem, LocalAirflow, free_ports
from harness.postgres import binaries, postgres

#: Number of tasks that a worker runs concurrently.
SLOTS = 4

WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")


class AirflowCluster(LocalAirflow):
    """
    A :class:`LocalAirflow` whose tasks run on two workers and wait in two triggerers.

    :param database: the address of an empty PostgreSQL database, see :func:`services`
    :param broker: the address of a Redis server
    """

    components = MappingProxyType(
        {
            "api-server": ("api-server",),
            "dag-processor": ("dag-processor",),
            # Each log server would need its own port; here, all logs are in one folder.
            **dict.fromkeys(TRIGGERERS, ("triggerer", "--skip-serve-logs")),
            **{
                name: ("celery", "worker", "--skip-serve-logs", "--celery-hostname", name, "--pid", f"{name}.pid")
                for name in WORKERS
            },
            "scheduler": ("scheduler",),
        }
    )

    def __init__(self, home: Path, dags: Path, environment: Mapping[str, str], database: str, broker: str) -> None:
        cluster = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW__CELERY__BROKER_URL": broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(SLOTS),
        }
        super().__init__(home, dags, {**cluster, **environment})


@contextmanager
def services() -> Iterator[tuple[str, str]]:
    """
    Run PostgreSQL and Redis; yield the addresses of an empty database and of the broker.

    :raises AirflowProblem: one of them is not on this machine
    """
    programs, redis = binaries(), shutil.which("redis-server")
    if programs is None or redis is None:
        raise AirflowProblem(
            "PostgreSQL and Redis are needed on this machine; on Debian or Ubuntu: "
            "apt-get install postgresql redis-server"
        )
    with postgres(programs) as database, _redis(redis) as broker:
        yield database, broker


@contextmanager
def _redis(program: str) -> Iterator[str]:
    [port] = free_ports(1)
    password = secrets.token_hex(16)
    settings = f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
    with tempfile.TemporaryDirectory(prefix="luma-redis-") as folder:
        server = subprocess.Popen(
            [program, "-"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            assert server.stdin is not None
            server.stdin.write(settings.encode())  # not as arguments, which all users of the machine can see
            server.stdin.close()
            LocalAirflow.wait_until(lambda: _listens(server, port), "Redis to start", seconds=30)
            yield f"redis://:{password}@127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _listens(server: subprocess.Popen[bytes], port: int) -> bool:
    if server.poll() is not None:
        raise AirflowProblem(f"redis-server ended with {server.returncode}")
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process(server.pid).net_connections("tcp")
    )

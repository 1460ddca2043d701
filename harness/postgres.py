# SPDX-License-Identifier: Apache-2.0
"""A temporary PostgreSQL server for an Airflow cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.local_airflow import LocalAirflow, free_ports


def binaries() -> Path | None:
    """Return the folder with the server's programs, which Debian keeps off the PATH; None if there is none."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *folders]
    needed = ("initdb", "postgres", "createdb")
    return next((folder for folder in folders if all((folder / program).exists() for program in needed)), None)


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Run a server on a free port; yield the address of an empty database."""
    [port] = free_ports(1)
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="luma-postgres-") as folder:
        home = Path(folder)
        (home / "password").write_text(password)
        as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            for path in (home, home / "password"):
                shutil.chown(path, "postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
        options = ["--username=airflow", "--auth=scram-sha-256", "--encoding=UTF8", f"--pwfile={home}/password"]
        subprocess.run(
            [*as_user, programs / "initdb", *options, f"--pgdata={home}/data"],
            cwd=home,
            check=True,
            capture_output=True,
        )
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(home), "fsync": "off"}
        server = subprocess.Popen(
            [
                *(*as_user, programs / "postgres", "-D", f"{home}/data", "-p", str(port)),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            cwd=home,
            stderr=subprocess.DEVNULL,
        )
        try:
            client = {**os.environ, "PGPASSWORD": password}
            where = ["--host=127.0.0.1", f"--port={port}", "--username=airflow"]

            def accepts() -> bool:
                command = [programs / "createdb", *where, "airflow"]
                return subprocess.run(command, env=client, check=False, capture_output=True).returncode == 0

            LocalAirflow.wait_until(accepts, "PostgreSQL to start", seconds=60)
            yield f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/airflow"
        finally:
            server.terminate()
            server.wait(timeout=30)

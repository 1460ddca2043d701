# SPDX-License-Identifier: Apache-2.0
"""A secrets backend, which Airflow asks for a connection before anything else."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

from airflow.secrets import BaseSecretsBackend

#: How Airflow is told to use it.
BACKEND = f"{__name__}.SecretsBackend"


class SecretsBackend(BaseSecretsBackend):
    """
    A secrets backend.

    :param seconds: how long it takes to answer
    :param connections: what it holds
    """

    #: Every name that it was asked for.
    asked: ClassVar[list[str]] = []
    #: While this is not set, there is no answer for names that begin with ``hanging``.
    may_answer: ClassVar[threading.Event] = threading.Event()

    def __init__(self, seconds: float = 0.0, connections: dict[str, str] | None = None) -> None:
        self._seconds = seconds
        self._connections = connections or {}

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        """Return a connection as a URI."""
        del team_name
        self.asked.append(conn_id)
        if conn_id.startswith("hanging"):
            self.may_answer.wait(30)
        time.sleep(self._seconds)
        return self._connections.get(conn_id)

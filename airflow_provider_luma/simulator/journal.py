# SPDX-License-Identifier: Apache-2.0
"""The journal: every call that came in, in order, so that a test can look at what really went over the wire."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Enough for hours of polling, and little enough to leave running over night.
KEPT_CALLS = 50_000


@dataclass
class Call:
    """One request; the answer's part stays None until the first byte of it is sent."""

    order: int
    at: float
    on: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    carried_authorization: bool
    client_port: int | None
    task_id: str | None = None
    fault: str | None = None
    http_status: int | None = None
    code: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the call as plain values."""
        return asdict(self)


@dataclass
class Journal:
    """All calls since the start or the last reset."""

    count: int = 0
    _calls: deque[Call] = field(default_factory=lambda: deque(maxlen=KEPT_CALLS))
    _connections: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(
        self,
        *,
        at: float,
        on: str,
        method: str,
        path: str,
        query: dict[str, str],
        headers: Iterable[tuple[bytes, bytes]],
        client_port: int | None,
        connection: int,
    ) -> Call:
        """Write a request down as it arrives. The key itself is not kept, only that one was sent."""
        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        authorization = named.pop("authorization", None)
        with self._lock:
            self.count += 1
            call = Call(
                order=self.count,
                at=at,
                on=on,
                method=method,
                path=path,
                query=query,
                headers=named,
                carried_authorization=authorization is not None,
                client_port=client_port,
                task_id=query.get("taskId"),
            )
            self._calls.append(call)
            self._connections.add(connection)
        return call

    @property
    def calls(self) -> list[Call]:
        """Copies of the calls, oldest first."""
        with self._lock:
            return [replace(call) for call in self._calls]

    @property
    def connections(self) -> int:
        """How many TCP connections carried at least one call."""
        with self._lock:
            return len(self._connections)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self.count = 0
            self._calls.clear()
            self._connections.clear()

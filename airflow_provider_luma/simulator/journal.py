# SPDX-License-Identifier: Apache-2.0
"""Request journal: every call in order of arrival, for tests that check what was sent."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Enough for hours of polling; bounds the memory of a simulator that runs overnight.
MAX_CALLS = 50_000


@dataclass
class Call:
    """
    One request and its response.

    :param order: its number, counted from 1
    :param at: when it arrived, in seconds since the Unix epoch
    :param on: the operation, as named in faults
    :param headers: the request's headers, without the API key
    :param carried_authorization: whether it had an Authorization header
    :param service: ``kie`` or ``luma``; None for a sample clip
    :param task_id: the id of the job that it is about, or has created
    :param fault: the kind of fault that hit it
    :param http_status: None until the response's headers are sent
    :param code: the code in kie.ai's envelope; for Luma's own API, the HTTP status
    """

    order: int
    at: float
    on: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    carried_authorization: bool
    client_port: int | None
    service: str | None = None
    task_id: str | None = None
    fault: str | None = None
    http_status: int | None = None
    code: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the call as plain values."""
        return asdict(self)


@dataclass
class Journal:
    """All calls received after the start or the last reset; the oldest are dropped beyond ``MAX_CALLS``."""

    count: int = 0
    _calls: deque[Call] = field(default_factory=lambda: deque(maxlen=MAX_CALLS))
    _connections: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(
        self,
        *,
        at: float,
        service: str | None,
        on: str,
        method: str,
        path: str,
        query: dict[str, str],
        headers: Iterable[tuple[bytes, bytes]],
        task_id: str | None,
        client_port: int | None,
        connection: int,
    ) -> Call:
        """Append a request when it arrives. The API key is not kept, only whether one was sent."""
        kept_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        authorization = kept_headers.pop("authorization", None)
        with self._lock:
            self.count += 1
            call = Call(
                order=self.count,
                at=at,
                on=on,
                method=method,
                path=path,
                query=query,
                headers=kept_headers,
                carried_authorization=authorization is not None,
                client_port=client_port,
                service=service,
                task_id=task_id,
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
        """The number of TCP connections that carried at least one call."""
        with self._lock:
            return len(self._connections)

    def clear(self) -> None:
        """Delete all calls and restart the count."""
        with self._lock:
            self.count = 0
            self._calls.clear()
            self._connections.clear()

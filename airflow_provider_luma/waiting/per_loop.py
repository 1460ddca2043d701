# SPDX-License-Identifier: Apache-2.0
"""
Reference-counted objects that all triggers of an event loop share, one per connection.

All triggers of a triggerer run in one event loop. A shared object is created for the first of them and closed after the
last, and its number of users is an Airflow metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_luma.metrics import Stats


class _Closable(Protocol):
    async def close(self) -> None: ...


S = TypeVar("S", bound=_Closable)


@dataclass
class _Users:
    shared: Any
    count: int = 0


_users: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], _Users]] = WeakKeyDictionary()


@asynccontextmanager
async def shared(create: Callable[[], S], gauge: str, luma_conn_id: str) -> AsyncIterator[S]:
    """
    Use this event loop's shared object for a connection.

    :param create: creates it for the first user
    :param gauge: the name of the metric that counts its users; with the connection, it also identifies the object
    :param luma_conn_id: the connection
    """
    of_loop = _users.setdefault(asyncio.get_running_loop(), {})
    key = (gauge, luma_conn_id)
    if key not in of_loop:
        of_loop[key] = _Users(create())
    users = of_loop[key]
    users.count += 1
    Stats.gauge(gauge, users.count, tags={"conn_id": luma_conn_id})
    try:
        yield users.shared
    finally:
        users.count -= 1
        Stats.gauge(gauge, users.count, tags={"conn_id": luma_conn_id})
        if not users.count:
            del of_loop[key]
            await users.shared.close()

# SPDX-License-Identifier: Apache-2.0
"""
Look-ups of the connections that callbacks name. Made-up names must not delay genuine callbacks.

Anyone can make up names, and a look-up takes 0.4 ms with everything on one machine, and some 50 ms with a secrets
backend on a network. So look-ups use a few dedicated threads, and names known to exist use other threads than names
that may be made up. A name is known if a valid token has named it, a deferred task uses it, or it can be listed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.receiver.connections import listed_names, read_connections
from airflow_provider_luma.receiver.resume import waiting_connections

#: Seconds for which a connection is cached, even a missing one.
CONNECTION_TTL = 10.0

#: Maximum number of connections in each cache.
CONNECTION_CACHE_SIZE = 256

#: Concurrent look-ups, of known names and of other names.
LOOKUP_THREADS = 2

#: Maximum number of look-ups of known names, including those that wait for a thread.
MAX_KNOWN_LOOKUPS = 256

#: Maximum number of look-ups of other names, including those that wait: at 50 ms each, the last takes 1.6 seconds.
MAX_UNKNOWN_LOOKUPS = 64

#: Seconds that a callback waits for a look-up; the service gives up after 15.
LOOKUP_TIMEOUT = 10.0

T = TypeVar("T")


class TooManyLookupsError(Exception):
    """Too many names are already being looked up."""


class Lookups(Generic[T]):
    """
    Cached look-ups by name, a few at a time. Concurrent callers with the same name share one look-up.

    :param read: looks up one name, in a thread
    :param max_lookups: maximum number of look-ups, including those that wait for a thread
    """

    def __init__(self, read: Callable[[str], T], max_lookups: int) -> None:
        self._read = read
        self._max_lookups = max_lookups
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="luma-connection")
        self._running: dict[str, asyncio.Task[T]] = {}
        # Each with the time at which it expires.
        self._cache: dict[str, tuple[float, T]] = {}

    async def get(self, name: str) -> T:
        """
        Look up a name.

        :raises TooManyLookupsError: too many names are already being looked up
        :raises TimeoutError: the look-up takes longer than a callback can wait
        :raises Exception: the look-up failed; failures are not cached
        """
        expires_at, cached = self._cache.get(name, (0.0, None))
        if cached is not None and time.monotonic() < expires_at:
            return cached
        if name not in self._running:
            if len(self._running) >= self._max_lookups:
                raise TooManyLookupsError
            self._running[name] = asyncio.create_task(self._look_up(name))
        return await asyncio.wait_for(asyncio.shield(self._running[name]), LOOKUP_TIMEOUT)

    async def _look_up(self, name: str) -> T:
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, name)
        finally:
            del self._running[name]
        _put(self._cache, name, (time.monotonic() + CONNECTION_TTL, value))
        return value


class ConnectionLookups:
    """The connections that callbacks name."""

    def __init__(self) -> None:
        self._proven: dict[str, None] = {}
        self._listed = Lookups(lambda _: listed_names() | waiting_connections(), max_lookups=1)
        self._known = Lookups(read_connections, MAX_KNOWN_LOOKUPS)
        self._unknown = Lookups(read_connections, MAX_UNKNOWN_LOOKUPS)

    async def get(self, conn_id: str) -> dict[str | None, LumaConnection]:
        """
        Return the connections of that name, by team, like :func:`read_connections`.

        :raises Exception: as :meth:`Lookups.get` does
        """
        is_known = conn_id in self._proven or conn_id in await self._listed.get("")
        return await (self._known if is_known else self._unknown).get(conn_id)

    def on_proven(self, conn_id: str) -> None:
        """Remember that a valid token named this connection, so its name is not made up."""
        _put(self._proven, conn_id, None)


def _put(cache: dict[str, T], name: str, value: T) -> None:
    """Add to a cache, and remove its oldest entry if it has become too large."""
    cache.pop(name, None)
    cache[name] = value
    if len(cache) > CONNECTION_CACHE_SIZE:
        del cache[next(iter(cache))]

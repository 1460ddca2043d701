# SPDX-License-Identifier: Apache-2.0
"""
Looking up the connections that callbacks name, so that names without proof hold nobody up.

Anybody can invent names, and to look one up takes 0.4 ms with everything on one machine, and some 50 ms where a secrets
backend is asked over a network. So look-ups have few threads of their own, and names that surely exist have others than
names that may be invented: those that a valid token has named, that a deferred task uses, or that can be listed.
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

#: Seconds for which a connection is cached, also one that does not exist.
CONNECTION_TTL = 10.0

#: How many connections each cache holds.
CONNECTION_CACHE_SIZE = 256

#: Look-ups at once, of names that exist and of other names.
LOOKUP_THREADS = 2

#: Look-ups of names that exist, those that wait for a thread included.
MAX_KNOWN_LOOKUPS = 256

#: Look-ups of other names, those that wait included: with 50 ms each, the last one takes 1.6 seconds.
MAX_UNKNOWN_LOOKUPS = 64

#: Seconds that a callback waits for a look-up; the service itself gives up after 15.
LOOKUP_TIMEOUT = 10.0

T = TypeVar("T")


class TooManyLookupsError(Exception):
    """Too many names are being looked up already."""


class Lookups(Generic[T]):
    """
    Cached look-ups by name: few at once, and one at a time for a name, which all its callers share.

    :param read: looks up one name, in a thread
    :param max_lookups: how many there may be, those that wait for a thread included
    """

    def __init__(self, read: Callable[[str], T], max_lookups: int) -> None:
        self._read = read
        self._max_lookups = max_lookups
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="luma-connection")
        self._running: dict[str, asyncio.Task[T]] = {}
        # With the time at which each expires.
        self._cache: dict[str, tuple[float, T]] = {}

    async def get(self, name: str) -> T:
        """
        Look a name up.

        :raises TooManyLookupsError: there are too many already
        :raises TimeoutError: a callback cannot wait that long
        :raises Exception: the look-up has failed; that is not cached
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
        Return the connections that a name stands for, as :func:`read_connections` does.

        :raises Exception: as :meth:`Lookups.get` does
        """
        is_known = conn_id in self._proven or conn_id in await self._listed.get("")
        return await (self._known if is_known else self._unknown).get(conn_id)

    def on_proven(self, conn_id: str) -> None:
        """Take note that a valid token has named a connection: nobody can invent that."""
        _put(self._proven, conn_id, None)


def _put(cache: dict[str, T], name: str, value: T) -> None:
    """Add to a cache, and remove from it what was added first if it has become too large."""
    cache.pop(name, None)
    cache[name] = value
    if len(cache) > CONNECTION_CACHE_SIZE:
        del cache[next(iter(cache))]

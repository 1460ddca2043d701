# SPDX-License-Identifier: Apache-2.0
"""Uvicorn server in a background thread, with access to the simulator's settings, jobs and journal."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, cast
from urllib.parse import quote

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .account import Account, Job
from .app import create_app
from .fault_middleware import FaultMiddleware
from .job_runner import create_internal_user_agent
from .journal import Call
from .services import open_services
from .settings import Settings
from .uploads import Upload

_connection_ids = itertools.count(1)


class _TransportInScopeProtocol(H11Protocol):
    """
    HTTP protocol that puts the transport and a connection id into the ASGI scope's state.

    ASGI hides the TCP connection on purpose, but a fault that cuts the connection needs its transport. The journal
    counts connections by id, because client ports are reused. Uvicorn copies ``app_state`` into each scope's state.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio sets TCP_NODELAY itself, but not on connections of a socket that was bound beforehand. Without it,
        # every response waits some 40 ms for an acknowledgement between its headers and its body.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "transport": transport, "connection": next(_connection_ids)}
        super().connection_made(transport)


class _Server(uvicorn.Server):
    """Uvicorn server that sets an event when it listens, and ends as soon as another is set."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        # Uvicorn's own loop wakes up ten times a second, which adds up in a process with many simulators, and ends a
        # tenth of a second late.
        while not self._stopping.is_set():
            await self.on_tick(0)  # renews the Date header
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=1)


class Simulator:
    """
    The simulated services on this machine. Use it as a context manager, or with start() and stop().

    :param settings: how the services behave; the defaults if None
    :param host: the address to listen on
    :param port: TCP port, 0 for any free one
    """

    def __init__(self, settings: Settings | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._account = Account(settings or Settings())
        open_services(self._account)
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Simulator:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """
        Start the server and return when it listens.

        :raises OSError: if the address cannot be bound
        :raises RuntimeError: if the simulator is already running, or could not start
        """
        if self._thread is not None:
            raise RuntimeError("the simulator is already running")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=2048)
        self._account.base_url = _base_url(self._host, self._socket.getsockname()[1])
        user_agent = create_internal_user_agent()
        self._stopping = asyncio.Event()
        app = FaultMiddleware(create_app(self._account, user_agent), self._account, user_agent, self._stopping)
        config = uvicorn.Config(
            cast(Any, app),
            # Set explicitly, because uvicorn would prefer httptools if installed, and the faults depend on this class.
            http=_TransportInScopeProtocol,
            loop="asyncio",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        )
        self._server = _Server(config, self._stopping)
        self._thread = threading.Thread(target=self._serve, name="luma-simulator", daemon=True)
        self._thread.start()
        while not self._server.listening.wait(0.1):
            if not self._thread.is_alive():
                self._thread = None
                raise RuntimeError("the simulator could not start; the log says why")

    def _serve(self) -> None:
        with self._socket:
            asyncio.run(self._serve_in_loop())

    async def _serve_in_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Stop the server, cancel all jobs, and return when its thread has ended."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            # Also ends requests with a hang fault, which would otherwise delay the shutdown.
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def reset(self) -> None:
        """Restore the initial settings, credits and time, and delete all jobs, uploads and calls."""
        self._account.reset()

    def configure(self, **changes: Any) -> Settings:
        """
        Change settings while the server runs.

        :param changes: settings by name
        :returns: all settings
        :raises pydantic.ValidationError: if a change is invalid; nothing is changed then
        """
        return self._account.configure(changes)

    def end_jobs(self) -> None:
        """End all running jobs now, whatever their processing time; returns before they have ended."""
        self._account.end_jobs()

    def move_time(self, seconds: float) -> None:
        """
        Move the services' clock forward, and return when the jobs whose time is then over have ended.

        Addresses, files, records and rate limits expire by that clock, too.

        :raises ValueError: if seconds is negative or infinite
        """
        self._account.clock.move(seconds)
        while self._thread is not None and self._thread.is_alive() and self._account.has_due_jobs():
            time.sleep(0.01)  # a job ends once its result is rendered

    def expire_urls(self) -> None:
        """Expire all presigned URLs that Luma's own API has issued so far; later ones work."""
        self._account.expire_urls()

    @property
    def base_url(self) -> str:
        """The server's address as http://HOST:PORT; the base of kie.ai's API."""
        return self._account.base_url

    @property
    def luma_base_url(self) -> str:
        """The base of Luma's own API, http://HOST:PORT/v1."""
        return f"{self._account.base_url}/v1"

    def connection_uri(self, service: Literal["kie", "luma"] = "kie") -> str:
        """Return an Airflow connection to one of the services, as a URI."""
        address = self._account.base_url.removeprefix("http://")
        key = quote(self.settings.api_key, safe="")
        return f"luma://:{key}@{address}/http" + ("" if service == "kie" else f"?service={service}")

    @property
    def sample_url(self) -> str:
        """The URL of a clip that can be submitted as an input video."""
        return f"{self._account.url}/files/sample.mp4"

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self._account.settings

    @property
    def credits(self) -> float:
        """The account's balance."""
        return self._account.credits

    @property
    def accepted(self) -> int:
        """The number of submissions accepted and billed."""
        return len(self._account.jobs)

    @property
    def jobs(self) -> list[Job]:
        """The accepted jobs, oldest first."""
        return self._account.jobs

    @property
    def uploads(self) -> list[Upload]:
        """The stored files, including those replaced since, oldest first."""
        return self._account.uploads

    @property
    def calls(self) -> list[Call]:
        """Every request to the API and its files, oldest first, without the simulator's own requests."""
        return self._account.journal.calls

    @property
    def connections(self) -> int:
        """The number of TCP connections that carried those calls."""
        return self._account.journal.connections

    @property
    def renders(self) -> int:
        """The number of videos rendered."""
        return self._account.renders


def _base_url(host: str, port: int) -> str:
    """Return a URL that clients can connect to; the wildcard addresses become loopback addresses."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"

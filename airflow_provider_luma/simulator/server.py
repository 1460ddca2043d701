# SPDX-License-Identifier: Apache-2.0
"""The running simulator: a uvicorn server in a thread, with handles on what it sees and does."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from types import TracebackType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import create_app
from .gate import Gate
from .journal import Call
from .service import Job, Service
from .settings import Settings
from .studio import new_agent

_connection_numbers = itertools.count(1)


class _OpenProtocol(H11Protocol):
    """
    Shows the application its TCP connection.

    ASGI hides it on purpose, but a fault that cuts the connection needs the transport, and the journal tells
    connections apart, which ports (used again sooner or later) do not. The scope's state is a copy of app_state.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio does this itself, but not on connections of a socket that was bound beforehand; without it every
        # answer waits some 40 ms for an acknowledgement between its headers and its body.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "transport": transport, "connection": next(_connection_numbers)}
        super().connection_made(transport)


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class Simulator:
    """A Luma service on this machine. Use it as a context manager, or call start() and stop()."""

    def __init__(self, settings: Settings | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._service = Service(settings or Settings())
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Simulator:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Bind and serve; return when calls are answered. OSError if the address cannot be had."""
        if self._thread is not None:
            raise RuntimeError("the simulator runs already")
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=2048)
        self._service.base_url = _base_url(self._host, self._socket.getsockname()[1])
        own_agent = new_agent()
        self._stopping = asyncio.Event()
        gate = Gate(create_app(self._service, own_agent), self._service, own_agent, self._stopping)
        config = uvicorn.Config(
            cast(Any, gate),
            # Named rather than chosen by what is installed: the faults rely on this one.
            http=_OpenProtocol,
            loop="asyncio",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        )
        self._server = _Server(config)
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
        """Stop serving, drop all work, and return when nothing of it is left."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            # Calls that hang on purpose would hold the server up.
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._server.should_exit = True
        self._thread.join()
        self._thread = None

    def reset(self) -> None:
        """Start over: the settings it was started with, no jobs, no calls, a full account."""
        self._service.reset()

    def configure(self, **changes: Any) -> Settings:
        """Change settings while it runs; pydantic's ValidationError if they make no sense."""
        return self._service.configure(changes)

    @property
    def base_url(self) -> str:
        """Where it listens, as http://HOST:PORT."""
        return self._service.base_url

    @property
    def sample_url(self) -> str:
        """A clip it takes as an input."""
        return f"{self._service.url}/files/sample.mp4"

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._service.settings

    @property
    def credits(self) -> float:
        """What is left on the account."""
        return self._service.credits

    @property
    def accepted(self) -> int:
        """How many submissions were accepted and billed."""
        return len(self._service.jobs)

    @property
    def jobs(self) -> list[Job]:
        """The accepted jobs, oldest first."""
        return self._service.jobs

    @property
    def calls(self) -> list[Call]:
        """Every call of the service and its files, oldest first; not the simulator's own fetches."""
        return self._service.journal.calls

    @property
    def connections(self) -> int:
        """How many TCP connections carried those calls."""
        return self._service.journal.connections

    @property
    def renders(self) -> int:
        """How many videos were rendered."""
        return self._service.renders


def _base_url(host: str, port: int) -> str:
    """Write the address as one would call it, which an address for all interfaces is not."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"

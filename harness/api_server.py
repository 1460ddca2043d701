# SPDX-License-Identifier: Apache-2.0
"""An API server that mounts the plugin's application as Airflow does, and genuine and forged callbacks to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import uvicorn
from fastapi import FastAPI

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import callback_url
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.plugins.luma import LumaPlugin
from airflow_provider_luma.receiver import app as receiver_app
from harness.metadata_db import JOB

#: The API key of the connection luma_default in the API server.
KEY = "sk-of-the-receiver-0123456789"

#: The body of a callback.
ENDED = {"code": 200, "msg": "Video modified successfully.", "data": {"taskId": JOB, "resultUrls": []}}


class ApiServer:
    """
    The API server.

    :ivar scopes: the ASGI scope of each request, as the server's access log reads it afterwards
    """

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.app = FastAPI()
        for mounted in LumaPlugin.fastapi_apps:
            self.app.mount(mounted["url_prefix"], mounted["app"])
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(self._outermost), base_url="http://airflow")

    async def _outermost(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await self.app(scope, receive, send)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, and return the response without waiting for the server's work after it."""
        return await self._client.request(method, path, **options)

    async def callback(self, query: str, body: Any = ENDED, **options: Any) -> httpx.Response:
        """Send a callback as Luma does, and wait until the server has resumed the tasks."""
        content = body if not isinstance(body, (dict, list)) else json.dumps(body).encode()
        response = await self.request("POST", f"/luma/callback?{query}", content=content, **options)
        await self.tasks_resumed()
        return response

    @staticmethod
    async def tasks_resumed() -> None:
        """Wait until all callbacks have been processed."""
        while receiver_app._running:
            await asyncio.gather(*receiver_app._running)

    async def raw_request(self, scope: dict[str, Any], chunks: list[bytes], *, is_whole: bool = True) -> int:
        """
        Send exactly these chunks as a request, then disconnect.

        :returns: the status of the response, or 0 if there was none
        """
        statuses: list[int] = []
        bodies = [
            {"type": "http.request", "body": chunk, "more_body": not is_whole or number < len(chunks)}
            for number, chunk in enumerate(chunks or [b""], start=1)
        ]

        async def receive() -> dict[str, Any]:
            return bodies.pop(0) if bodies else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        start = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "server": ("airflow", 80),
            "client": ("192.0.2.1", 4711),
            "root_path": "",
            "headers": [],
        }
        path = {"raw_path": scope["path"].encode("utf-8", "replace")}
        await self._outermost({**start, **path, **scope}, receive, send)
        return statuses[0] if statuses else 0

    async def close(self) -> None:
        """Wait for the tasks that are being resumed, and close the client."""
        await self.tasks_resumed()
        await self._client.aclose()


@contextmanager
def api_server_process(**environment: str) -> Iterator[int]:
    """
    Run the API server in a separate process, on the loopback address; yield its port.

    :param environment: further environment variables
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        # The socket already listens: clients that connect before the process has started wait.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listening.fileno())],
            env={**os.environ, **environment},
            pass_fds=[listening.fileno()],
        )
        try:
            yield listening.getsockname()[1]
        finally:
            process.terminate()
            process.wait()


@contextmanager
def api_server_thread(app: FastAPI | None = None) -> Iterator[int]:
    """
    Run the API server in a thread of this process, on the loopback address; yield its port.

    :param app: another application to run instead
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        server = uvicorn.Server(uvicorn.Config(app or ApiServer().app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def proof(
    reference: str | None = None, *, conn_id: str = "luma_default", key: str = KEY, submitted_by: Any = None
) -> str:
    """
    Return the query of the callback address that a submission passes to Luma.

    :param submitted_by: the id of the try; None for an address of version 1.0.0, which does not contain it
    """
    connection = LumaConnection("http://127.0.0.1:9", key, callback_base_url="http://airflow")
    try_id = UUID(str(submitted_by)) if submitted_by is not None else None
    url = callback_url(connection, conn_id, reference or new_reference(), try_id)
    assert url is not None
    return url.partition("?")[2]


#: Queries that prove nothing. Some name connections that the fixture ``other_connections`` creates.
FORGED_QUERIES = {
    "no query": lambda: "",
    "a wrong token": lambda: proof()[:-64] + "0" * 64,
    "a token cut short": lambda: proof()[:-1],
    "the token of another submission": lambda: proof().replace("reference=", "reference=0")[:-1],
    "the token of another connection": lambda: proof(conn_id="luma_default", key="the-key-of-luma_other"),
    "the name of another connection": lambda: proof(conn_id="luma_other", key=KEY),
    "the token of another try": lambda: proof(submitted_by=uuid4())[:-32] + "0" * 32,
    "a token whose try is left out": lambda: proof(submitted_by=uuid4()).partition("&task_instance_id=")[0],
    "a try that the token does not name": lambda: proof() + "&task_instance_id=" + "0" * 32,
    "a try that is not a UUID": lambda: proof(submitted_by=uuid4())[:-1] + "'",
    "a connection of another type": lambda: proof(conn_id="a_database", key=KEY),
    "a connection without a key": lambda: proof(conn_id="luma_keyless", key=KEY),
    "a connection that is invalid": lambda: proof(conn_id="luma_invalid", key=KEY),
    "a missing connection": lambda: proof(conn_id="luma_nowhere", key=KEY),
    "an empty key": lambda: proof(conn_id="luma_keyless", key=""),
    "a field twice": lambda: proof() + "&conn_id=luma_default",
    "a field too many": lambda: proof() + "&more=1",
    "a field too few": lambda: proof().partition("&")[2],
    "a name with a zero byte": lambda: proof(conn_id="luma_default\0", key=KEY),
    "bytes that are not text": lambda: proof().replace("luma_default", "%ff%fe"),
}


if __name__ == "__main__":
    uvicorn.Server(uvicorn.Config(ApiServer().app, log_level="warning")).run([socket.socket(fileno=int(sys.argv[1]))])

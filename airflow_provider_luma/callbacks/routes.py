# SPDX-License-Identifier: Apache-2.0
"""
FastAPI application below ``/luma``: the receiver of callbacks, and the result page.

Airflow's API server mounts it without authentication, so it answers nobody without proof. A callback is taken only with
its token (and, where the connection holds a ``webhook_secret``, with the service's signature), and then only resumes
tasks, which ask Luma themselves. The page and its script are static and hold no data: they ask Airflow's own REST API,
which knows what the user may see.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from airflow_provider_luma.callbacks import resume, token
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.exceptions import LumaError

log = logging.getLogger(__name__)

#: Bytes of a callback that are read; the service's own are a few thousand.
MAX_BODY_BYTES = 256 * 1024

#: Seconds in which a callback must have been received; the service itself gives up after 15.
BODY_TIMEOUT = 10.0

#: Seconds for which a connection is cached, also one that does not exist: reading it costs a query.
CONNECTION_TTL = 10.0

#: How many connections are cached: a request may name any.
CONNECTION_CACHE_SIZE = 256

_PAGE_HEADERS = {
    # Videos come from wherever the input lies and Luma keeps its results; everything else from here, or not at all.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "media-src http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

app = FastAPI(title="Luma", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
# With the time at which each expires.
_connections: dict[str, tuple[float, LumaConnection | None]] = {}
_resuming: set[asyncio.Task[None]] = set()
# Few and our own: however many call, the API server keeps its threads and its database connections.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="luma-callback")

T = TypeVar("T")


class _Refused(Exception):
    """What to answer, in one status: whoever has no proof learns nothing more."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@app.api_route("/callback", methods=["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"])
async def callback(request: Request) -> Response:
    """Take a callback of Luma, and resume the tasks that wait for its job."""
    query = request.scope["query_string"].decode("latin-1")
    request.scope["query_string"] = b""  # the server's access log reads it from here afterwards, and the token is in it
    if request.method != "POST":  # somebody has opened the address in a browser, for example
        return Response(status_code=405, headers={"Allow": "POST"})
    try:
        reference, connection = await _proven(query)
        luma_task_id = token.read_luma_task_id(await _body(request))
        if luma_task_id is None:
            raise _Refused(400)
        secret = connection.webhook_secret
        if secret and not token.is_signed(request.headers, luma_task_id, secret, time.time()):
            log.warning("A callback for Luma task %r has the right token, but no valid signature", luma_task_id)
            raise _Refused(403)
    except _Refused as refused:
        return Response(status_code=refused.status)
    try:
        if await _in_thread(resume.record_callback, luma_task_id, reference):
            log.info("Recorded Luma task %s for a task that had lost the answer to its submission", luma_task_id)
    except Exception:
        log.exception("The callback for Luma task %s could not be recorded; Luma is asked to repeat it", luma_task_id)
        return Response(status_code=503)
    resuming = asyncio.create_task(_resume(luma_task_id, reference))
    _resuming.add(resuming)
    resuming.add_done_callback(_resuming.discard)
    return PlainTextResponse("OK")


@app.get("/result")
async def result() -> Response:
    """Return the page that shows a task's videos."""
    return _static_file("result.html", "text/html")


@app.get("/static/result.css")
async def style() -> Response:
    """Return the page's style."""
    return _static_file("result.css", "text/css")


@app.get("/static/result.js")
async def script() -> Response:
    """Return the page's script."""
    return _static_file("result.js", "text/javascript")


def _static_file(name: str, media_type: str) -> Response:
    return FileResponse(Path(__file__).parent / "static" / name, media_type=media_type, headers=_PAGE_HEADERS)


async def _proven(query: str) -> tuple[str, LumaConnection]:
    """Return the submission and the connection that a callback's address is for, if its token proves them."""
    proof = token.CallbackProof.read(query)
    if proof is None:
        raise _Refused(403)
    until, connection = _connections.get(proof.conn_id, (0.0, None))
    if time.monotonic() >= until:
        connection = await _in_thread(_connection, proof.conn_id)
        if len(_connections) >= CONNECTION_CACHE_SIZE:
            _connections.clear()
        _connections[proof.conn_id] = (time.monotonic() + CONNECTION_TTL, connection)
    if connection is None or not proof.is_valid_for(connection):
        raise _Refused(403)
    return proof.reference, connection


def _connection(conn_id: str) -> LumaConnection | None:
    """Read a connection; None if there is none of that name, or none of ours."""
    try:
        connection: Any = Connection.get_connection_from_secrets(conn_id)
        return LumaConnection.of(connection) if connection.conn_type == "luma" else None
    except (AirflowNotFoundException, LumaError):
        return None


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _Refused(413)
    except TimeoutError:
        raise _Refused(408) from None
    except ClientDisconnect:
        raise _Refused(400) from None
    return bytes(body)


async def _resume(luma_task_id: str, reference: str) -> None:
    """Resume the tasks that wait for a job; those that were deferred only just now, a few seconds later."""
    delay: float | None = 0.0
    while delay is not None:
        await asyncio.sleep(delay)
        try:
            resumed, delay = await _in_thread(resume.resume_waiting, luma_task_id, reference)
        except Exception:
            log.exception("The tasks that wait for Luma task %s could not be resumed; they keep polling", luma_task_id)
            return
        log.info("Callback for Luma task %s: %d tasks resumed", luma_task_id, resumed)

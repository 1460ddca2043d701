# SPDX-License-Identifier: Apache-2.0
"""
FastAPI application below ``/luma``: the receiver of callbacks, the result page, and the gallery.

Airflow's API server mounts it without authentication, so it answers nobody without proof. A callback is taken only with
its token (and, where the connection holds a ``webhook_secret``, with the service's signature), and then only resumes
tasks, which ask Luma themselves. A probe of a connection's test needs proof of its own, and resumes nothing. The pages
and their scripts are static and hold no data: they ask Airflow's own REST API, which knows what the user may see.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import callback_token
from airflow_provider_luma.core.callback_token import CallbackProof, Probe
from airflow_provider_luma.receiver import resume
from airflow_provider_luma.receiver.connections import warn
from airflow_provider_luma.receiver.lookups import ConnectionLookups, TooManyLookupsError
from airflow_provider_luma.submission import store_folder

log = logging.getLogger(__name__)

#: Bytes of a callback that are read; the service's own are a few thousand.
MAX_BODY_BYTES = 256 * 1024

#: Seconds in which a callback must have been received; the service itself gives up after 15.
BODY_TIMEOUT = 10.0

#: Seconds after which tasks are resumed although the callback has not been recorded yet.
RECORD_TIMEOUT = 5.0

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

_STATIC_FILES = {
    **{f"{page}.css": "text/css" for page in ("common", "result", "gallery")},
    **{f"{page}.js": "text/javascript" for page in ("common", "result", "gallery")},
}

app = FastAPI(title="Luma", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
_connections = ConnectionLookups()
# What goes on after the answer, or after its recipient has left.
_running: set[asyncio.Task[Any]] = set()
# Few and our own: however many call, the API server keeps its threads and its database connections. And apart: tasks
# are resumed while a store hangs.
_resuming, _recording, _storing = (
    ThreadPoolExecutor(threads, thread_name_prefix=f"luma-callback-{purpose}")
    for purpose, threads in (("resume", 4), ("record", 2), ("store", 4))
)

T = TypeVar("T")
_Proof = CallbackProof | Probe
#: By the names of teams; None for DAGs without one.
_Connections = dict[str | None, LumaConnection]


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
        proof, proven = await _proven(CallbackProof.read(query) or Probe.read(query, time.time()))
        body = await _body(request)
        luma_task_id = callback_token.read_luma_task_id(body)
        if luma_task_id is None or (isinstance(proof, Probe) and body != proof.body):
            raise _Refused(400)
        signed = _signed(proven, request.headers, luma_task_id)
    except _Refused as refused:
        return Response(status_code=refused.status)
    if isinstance(proof, Probe):
        return PlainTextResponse(proof.answer(next(iter(signed.values()))))
    recording = _start(_record(luma_task_id, proof, {connection.submission_store for connection in signed.values()}))
    _start(_resume(luma_task_id, proof, set(signed), recording))
    return PlainTextResponse("OK") if await asyncio.shield(recording) else Response(status_code=503)


@app.get("/result")
async def result() -> Response:
    """Return the page that shows a task's videos."""
    return _static_file("result.html", "text/html")


@app.get("/gallery")
async def gallery() -> Response:
    """Return the page that shows the videos of all instances of a mapped task."""
    return _static_file("gallery.html", "text/html")


@app.get("/static/{name}")
async def static(name: str) -> Response:
    """Return a script or a style of the pages."""
    if name not in _STATIC_FILES:
        return Response(status_code=404)
    return _static_file(name, _STATIC_FILES[name])


def _static_file(name: str, media_type: str) -> Response:
    return FileResponse(Path(__file__).parent / "pages" / name, media_type=media_type, headers=_PAGE_HEADERS)


async def _proven(proof: _Proof | None) -> tuple[_Proof, _Connections]:
    """Return a proof, and the connections that its token proves it for, by their teams."""
    if proof is None:
        raise _Refused(403)
    try:
        connections = await _connections.get(proof.conn_id)
    except TooManyLookupsError:
        warn("too many look-ups", "Callbacks name too many connections that may not exist; some are answered 503")
        raise _Refused(503) from None
    except Exception as error:
        warn("failed look-ups", "Connections cannot be read; Luma is asked to repeat its callbacks: %r", error)
        raise _Refused(503) from error
    proven = {team: connection for team, connection in connections.items() if proof.is_valid_for(connection)}
    if not proven:
        raise _Refused(403)
    _connections.on_proven(proof.conn_id)
    return proof, proven


def _signed(proven: _Connections, headers: Headers, luma_task_id: str) -> _Connections:
    """Return those of the connections that need no signature, or for which the service has signed the callback."""
    now = time.time()
    signed = {
        team: connection
        for team, connection in proven.items()
        if not connection.webhook_secret
        or callback_token.is_signed(headers, luma_task_id, connection.webhook_secret, now)
    }
    if not signed:
        log.warning("A callback for Luma task %r has the right token, but no valid signature", luma_task_id)
        raise _Refused(403)
    return signed


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


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


def _start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def _record(luma_task_id: str, proof: CallbackProof, stores: set[str | None]) -> bool:
    """Record the callback, wherever the submission may be recorded; return whether that has succeeded."""
    submission = luma_task_id, proof.reference
    try:
        for folder in stores - {None}:
            await _in_thread(_storing, store_folder.record_callback, folder, *submission)
        if None in stores and await _in_thread(_recording, resume.record_callback, *submission, proof.task_instance_id):
            log.info("Recorded Luma task %s for a task that had lost the answer to its submission", luma_task_id)
    except Exception:
        log.exception("The callback for Luma task %s could not be recorded; Luma is asked to repeat it", luma_task_id)
        return False
    return True


async def _resume(
    luma_task_id: str, proof: CallbackProof, teams: set[str | None], recording: asyncio.Task[bool]
) -> None:
    """
    Resume the tasks that wait for a job now; those that were deferred only just now, a few seconds later.

    A task that is deferred again meanwhile has asked Luma already, and would ask in vain.
    """
    try:
        # A resumed task may look for the record, and a task that is just being deferred has looked for it before.
        await asyncio.wait([recording], timeout=RECORD_TIMEOUT)
        job = luma_task_id, proof.reference, proof.conn_id
        waiting = await _in_thread(_resuming, resume.find_waiting, *job, teams)
        while True:
            resumed, waiting, delay = await _in_thread(_resuming, resume.resume_waiting, luma_task_id, waiting)
            log.info("Callback for Luma task %s. Tasks resumed: %d", luma_task_id, resumed)
            if not waiting:
                return
            await asyncio.sleep(delay)
    except Exception:
        log.exception("The tasks that wait for Luma task %s could not be resumed; they keep polling", luma_task_id)

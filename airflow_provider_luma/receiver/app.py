# SPDX-License-Identifier: Apache-2.0
"""
FastAPI application under ``/luma``: the receiver of callbacks, and the pages: result, gallery and overview.

Airflow's API server mounts it without authentication, so every callback needs proof. A callback is only accepted with
its token and, if the connection has a ``webhook_secret``, with the service's signature. Even then it only resumes
tasks, which check the job's status at Luma themselves. The probe of a connection test needs a different token, and
resumes nothing. The pages and their scripts are static and contain no data: they read Airflow's REST API, which decides
what the user may see.
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

#: Maximum size of a callback, in bytes; the service's callbacks have a few thousand.
MAX_BODY_BYTES = 256 * 1024

#: Seconds within which a callback must be complete; the service gives up after 15.
BODY_TIMEOUT = 10.0

#: Seconds after which tasks are resumed even if the callback has not been recorded yet.
RECORD_TIMEOUT = 5.0

_PAGE_HEADERS = {
    # Videos may come from any host, as inputs and results do. Everything else must come from this server.
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
    **{f"{page}.css": "text/css" for page in ("common", "result", "gallery", "overview")},
    **{f"{page}.js": "text/javascript" for page in ("common", "result", "gallery", "overview")},
}

app = FastAPI(title="Luma", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
_connections = ConnectionLookups()
# Work that continues after the response, or after the client has disconnected.
_running: set[asyncio.Task[Any]] = set()
# Small pools of our own, so that no number of callbacks exhausts the API server's threads or database connections.
# Separate pools, so that tasks are resumed even while a store hangs.
_resuming, _recording, _storing = (
    ThreadPoolExecutor(threads, thread_name_prefix=f"luma-callback-{purpose}")
    for purpose, threads in (("resume", 4), ("record", 2), ("store", 4))
)

T = TypeVar("T")
_Proof = CallbackProof | Probe
#: By team name; None for DAGs without a team.
_Connections = dict[str | None, LumaConnection]


class _Refused(Exception):
    """A refused callback. The response is only a status: a client without proof learns nothing else."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@app.api_route("/callback", methods=["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"])
async def callback(request: Request) -> Response:
    """Receive a callback from Luma, and resume the tasks that wait for its job."""
    query = request.scope["query_string"].decode("latin-1")
    request.scope["query_string"] = b""  # keeps the token out of the server's access log, which reads the query here
    if request.method != "POST":  # for example if someone opens the address in a browser
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
    """Return the page with the videos of a task."""
    return _static_file("result.html", "text/html")


@app.get("/gallery")
async def gallery() -> Response:
    """Return the page with the videos of all instances of a mapped task."""
    return _static_file("gallery.html", "text/html")


@app.get("/overview")
async def overview() -> Response:
    """Return the page with the jobs of all DAGs."""
    return _static_file("overview.html", "text/html")


@app.get("/static/{name}")
async def static(name: str) -> Response:
    """Return a script or style sheet of the pages."""
    if name not in _STATIC_FILES:
        return Response(status_code=404)
    return _static_file(name, _STATIC_FILES[name])


def _static_file(name: str, media_type: str) -> Response:
    return FileResponse(Path(__file__).parent / "pages" / name, media_type=media_type, headers=_PAGE_HEADERS)


async def _proven(proof: _Proof | None) -> tuple[_Proof, _Connections]:
    """Return the proof, and the connections for which its token is valid, by team."""
    if proof is None:
        raise _Refused(403)
    try:
        connections = await _connections.get(proof.conn_id)
    except TooManyLookupsError:
        warn("too many look-ups", "Callbacks name too many connections that may not exist; some callbacks get a 503")
        raise _Refused(503) from None
    except Exception as error:
        warn("failed look-ups", "Cannot read connections; asking Luma to repeat its callbacks: %r", error)
        raise _Refused(503) from error
    proven = {team: connection for team, connection in connections.items() if proof.is_valid_for(connection)}
    if not proven:
        raise _Refused(403)
    _connections.on_proven(proof.conn_id)
    return proof, proven


def _signed(proven: _Connections, headers: Headers, luma_task_id: str) -> _Connections:
    """Return the connections that require no signature, or for which the callback's signature is valid."""
    now = time.time()
    signed = {
        team: connection
        for team, connection in proven.items()
        if not connection.webhook_secret
        or callback_token.is_signed(headers, luma_task_id, connection.webhook_secret, now)
    }
    if not signed:
        log.warning("A callback for Luma task %r has a valid token, but no valid signature", luma_task_id)
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
    """Record the callback in every store that may have the submission's record; return whether that succeeded."""
    submission = luma_task_id, proof.reference
    try:
        for folder in stores - {None}:
            await _in_thread(_storing, store_folder.record_callback, folder, *submission)
        if None in stores and await _in_thread(_recording, resume.record_callback, *submission, proof.task_instance_id):
            log.info("Recorded Luma task %s for a task that lost the response to its submission", luma_task_id)
    except Exception:
        log.exception("Could not record the callback for Luma task %s; asking Luma to repeat it", luma_task_id)
        return False
    return True


async def _resume(
    luma_task_id: str, proof: CallbackProof, teams: set[str | None], recording: asyncio.Task[bool]
) -> None:
    """
    Resume the tasks that now wait for a job; those that were deferred only a moment ago follow some seconds later.

    Tasks that are deferred again in the meantime have already checked the job's status, and are not resumed.
    """
    try:
        # Find the tasks only once the record is written: a resumed task may read it, and a task that looked for it too
        # early has been deferred by then, so it is found as well.
        await asyncio.wait([recording], timeout=RECORD_TIMEOUT)
        job = luma_task_id, proof.reference, proof.conn_id
        waiting = await _in_thread(_resuming, resume.find_waiting, *job, teams)
        while True:
            resumed, waiting, delay = await _in_thread(_resuming, resume.resume_waiting, luma_task_id, waiting)
            log.info("Callback for Luma task %s; tasks resumed: %d", luma_task_id, resumed)
            if not waiting:
                return
            await asyncio.sleep(delay)
    except Exception:
        log.exception("Could not resume the tasks that wait for Luma task %s; they keep polling", luma_task_id)

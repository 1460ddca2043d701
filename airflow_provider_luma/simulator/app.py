# SPDX-License-Identifier: Apache-2.0
"""FastAPI application: the services' routes, the sample clips, and the simulator's own control endpoints and page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from . import media
from .account import Account, Job
from .job_runner import JobRunner, open_job_runner
from .service import Refusal, Service, check_api_key, read_json

_FLAG_NAMES = ("generating", "success", "create task failed", "generate failed", "callback failed")


def create_app(account: Account, internal_user_agent: str) -> FastAPI:
    """
    Build the application.

    :param internal_user_agent: User-Agent of the requests that the application sends itself
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_job_runner(account, internal_user_agent) as runner:
            app.state.job_runner = runner
            for service in account.services.values():
                service.runner = runner
            yield

    # FastAPI's documentation pages are off, because they load scripts from the web.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.account = account
    app.include_router(control)
    for service in account.services.values():
        app.include_router(service.router)
    app.include_router(files)
    app.add_exception_handler(Refusal, _handle_refusal)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    return app


def classify(account: Account, method: str, path: str) -> tuple[Service | None, str | None]:
    """
    Return the service and the operation that a call belongs to.

    A sample clip belongs to no service. The simulator's own endpoints (control, health, page) have no operation either.
    """
    for service in account.services.values():
        if operation := service.operation_of(method, path):
            return service, operation
    return None, "clip" if path.startswith("/files/") else None


def _account(request: Request) -> Account:
    account: Account = request.app.state.account
    return account


async def _handle_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    service, _ = classify(_account(request), request.method, request.url.path)
    if service is not None:
        return service.refusal_response(request, error)
    return JSONResponse({"code": error.code, "msg": error.msg, "data": None}, status_code=error.code)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response()  # there is nobody to read it


async def _require_api_key(request: Request) -> None:
    check_api_key(_account(request), request)


# -- sample clips, served without a key

files = APIRouter(prefix="/files")


@files.api_route("/{name}", methods=["GET", "HEAD"])
async def sample_file(request: Request, name: str) -> Response:
    """Serve a sample clip."""
    if name not in media.SAMPLES:
        return PlainTextResponse("No such file.\n", status_code=404)
    runner: JobRunner = request.app.state.job_runner
    return FileResponse(await runner.sample(name), media_type="video/mp4")


# -- the simulator's own endpoints

control = APIRouter()
_requires_api_key = [Depends(_require_api_key)]


@control.get("/health")
async def health() -> Response:
    """Report that the server is running."""
    return JSONResponse({"status": "healthy"})


@control.get("/simulator/state", dependencies=_requires_api_key)
async def state(request: Request) -> Response:
    """Return the settings without secrets, all jobs, all uploads and all calls."""
    account = _account(request)
    jobs, calls = account.jobs, account.journal.calls
    content = {
        "settings": account.settings.public(),
        "credits": account.credits,
        "accepted": len(jobs),
        "renders": account.renders,
        "connections": account.journal.connections,
        "jobs": [job.as_dict() for job in jobs],
        "uploads": [upload.as_dict() for upload in account.uploads],
        "calls_count": account.journal.count,
        "calls": [call.as_dict() for call in calls],
    }
    return JSONResponse(content)


@control.patch("/simulator/settings", dependencies=_requires_api_key)
async def change_settings(request: Request) -> Response:
    """Change settings and return all of them without secrets."""
    changes = await read_json(request)
    if not isinstance(changes, dict):
        raise Refusal(422, "The body must be a JSON object.")
    try:
        return JSONResponse(_account(request).configure(changes).public())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Refusal(422, problems) from error


@control.post("/simulator/move-time", dependencies=_requires_api_key)
async def move_time(request: Request) -> Response:
    """Move the clock forward by ``seconds``, and return its time in seconds of the Unix epoch."""
    content = await read_json(request)
    seconds: Any = content.get("seconds") if isinstance(content, dict) else None
    clock = _account(request).clock
    try:
        clock.move(seconds)
    except (TypeError, ValueError) as error:
        raise Refusal(422, f"{error}.") from error
    return JSONResponse({"time": clock.time()})


@control.post("/simulator/reset", dependencies=_requires_api_key)
async def reset(request: Request) -> Response:
    """Restore the initial settings, credits and time, and delete all jobs, uploads and calls."""
    _account(request).reset()
    return JSONResponse({"status": "reset"})


@control.get("/")
async def page(request: Request) -> Response:
    """Serve an overview of the sample clips and the latest jobs as HTML."""
    account = _account(request)
    jobs = account.jobs
    clips = " ".join(f'<a href="/files/{name}">{name}</a>' for name in media.SAMPLES)
    rows = "".join(_row(job, account.services[job.service].link(job)) for job in reversed(jobs[-100:]))
    content = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Luma simulator</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ text-align: start; padding: .2rem 1rem .2rem 0; vertical-align: top }}</style></head>
<body><h1>Luma simulator</h1>
<p>A local simulation of Luma at kie.ai and of Luma's own API. It spends no credits.</p>
<p>Sample clips: {clips}</p>
<p>Jobs: {len(jobs)}. Remaining credits: {account.credits:g}.</p>
<table><tr><th>Service</th><th>Task</th><th>State</th><th>Prompt</th><th>Result</th></tr>{rows}</table>
</body></html>"""
    return HTMLResponse(content, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _row(job: Job, url: str | None) -> str:
    link = f'<a href="{escape(url)}">video</a>' if url else ""
    cells = f"<td>{job.service}</td><td><code>{job.task_id}</code></td><td>{_FLAG_NAMES[job.flag]}</td>"
    return f"<tr>{cells}<td>{escape(job.prompt)}</td><td>{link}</td></tr>"

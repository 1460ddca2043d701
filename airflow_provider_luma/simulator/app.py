# SPDX-License-Identifier: Apache-2.0
"""The routes: the service's API, its files, and the simulator's own control endpoints and page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from . import media
from .answers import note_code, refusal, success
from .inputs import UNREACHABLE
from .service import Job, Refusal, Service, is_web_url
from .studio import Studio, open_studio
from .uploads import Uploads

_EVERY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_FLAG_NAMES = ("generating", "success", "create task failed", "generate failed", "callback failed")


def create_app(service: Service, own_agent: str) -> FastAPI:
    """Build the application around a service's state."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_studio(service, own_agent) as studio:
            app.state.studio = studio
            app.state.uploads = Uploads(studio.folder)
            yield

    # No generated documentation pages: they would load scripts from the web.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.service = service
    app.include_router(control)
    app.include_router(api)
    app.include_router(files)
    app.add_exception_handler(Refusal, _refuse)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


async def _refuse(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refusal)
    note_code(request, refused.code)
    if not request.url.path.startswith("/api/"):
        # The two styles of refusing are the service's; the simulator's own endpoints answer plainly.
        refused.style = "status"
    return refusal(_service(request), refused)


async def _need_key(request: Request) -> None:
    _service(request).check_key(request.headers.get("authorization"))


async def _json(request: Request) -> Any:
    try:
        content = json.loads(await request.body())
        # JSON can hold half of a character, which nothing could repeat later.
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "The body is not JSON.") from error


# -- the service's API

api = APIRouter(prefix="/api", dependencies=[Depends(_need_key)])


@api.post("/v1/modify/generate")
async def generate(request: Request) -> Response:
    """Accept a job, or refuse it."""
    service, studio = _service(request), _studio(request)
    order = service.check_order(await _json(request))
    digest = await studio.inputs.fetch(order.video_url, service.settings.fetch_timeout)
    pretend = getattr(request.state, "pretend", False)
    job = service.accept(order, digest, pretend=pretend)
    if not pretend:
        _note_task(request, job)
        called_back = studio.start(job)
        if job.callback_url and service.settings.callback_early:
            await called_back.wait()
    return success(request, {"taskId": job.task_id})


def _note_task(request: Request, job: Job) -> None:
    call = getattr(request.state, "call", None)
    if call is not None:
        call.task_id = job.task_id


@api.get("/v1/modify/record-info")
async def record_info(request: Request) -> Response:
    """Tell the state of a job."""
    return success(request, _service(request).record(request.query_params.get("taskId", "")))


@api.get("/v1/chat/credit")
async def credit(request: Request) -> Response:
    """Tell the credits that are left."""
    return success(request, _service(request).credits)


@api.post("/v1/common/download-url")
async def download_url(request: Request) -> Response:
    """Make a temporary URL for a result file."""
    body = await _json(request)
    return success(request, _service(request).temporary_url(body.get("url") if isinstance(body, dict) else None))


@api.post("/file-stream-upload")
async def file_stream_upload(request: Request) -> Response:
    """Store a file sent along."""
    async with request.form() as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(422, "file is required.")
        name = form.get("fileName") or file.filename
        data = await _uploads(request).store(_chunks(file), form.get("uploadPath"), name, _service(request).url)
    return success(request, data, success=True)


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 18):
        yield chunk


@api.post("/file-url-upload")
async def file_url_upload(request: Request) -> Response:
    """Store a file from the web."""
    body = await _json(request)
    url = body.get("fileUrl") if isinstance(body, dict) else None
    if not isinstance(url, str) or not is_web_url(url):
        raise Refusal(422, "fileUrl must be an http or https URL.")
    name = body.get("fileName") or PurePosixPath(urlsplit(url).path).name
    try:
        async with asyncio.timeout(30), _studio(request).client.stream("GET", url) as response:
            response.raise_for_status()
            data = await _uploads(request).store(
                response.aiter_bytes(1 << 18), body.get("uploadPath"), name, _service(request).url
            )
    except (*UNREACHABLE, TimeoutError) as error:
        raise Refusal(422, f"fileUrl is not reachable: {str(error) or type(error).__name__}.") from error
    return success(request, data, success=True)


@api.api_route("/{rest:path}", methods=_EVERY_METHOD)
async def unknown_endpoint() -> Response:
    """Refuse what the service does not have."""
    raise Refusal(404, "No such endpoint.")


# -- files, for whoever knows the URL

files = APIRouter(prefix="/files")


@files.api_route("/results/{task_id}/{name}", methods=["GET", "HEAD"])
async def result_file(request: Request, task_id: str, name: str) -> Response:
    """Serve a result."""
    return _video(request, _service(request).result(task_id, name))


@files.api_route("/temporary/{token}/{name}", methods=["GET", "HEAD"])
async def temporary_file(request: Request, token: str, name: str) -> Response:
    """Serve a result by a temporary URL."""
    return _video(request, _service(request).temporary(token, name))


def _video(request: Request, job: Job | None) -> Response:
    if job is None:
        return _no_file()
    return FileResponse(_studio(request).result_path(job), media_type="video/mp4")


@files.api_route("/uploads/{key:path}", methods=["GET", "HEAD"])
async def uploaded_file(request: Request, key: str) -> Response:
    """Serve an uploaded file."""
    upload = _uploads(request).find(key, _service(request).settings.upload_ttl)
    return FileResponse(upload.path, media_type=upload.mime_type) if upload else _no_file()


@files.api_route("/{name}", methods=["GET", "HEAD"])
async def sample_file(request: Request, name: str) -> Response:
    """Serve a sample clip."""
    if name not in media.SAMPLES:
        return _no_file()
    return FileResponse(await _studio(request).sample(name), media_type="video/mp4")


def _no_file() -> Response:
    return PlainTextResponse("No such file.\n", status_code=404)


# -- the simulator's own

control = APIRouter()
_guarded = [Depends(_need_key)]


@control.get("/health")
async def health() -> Response:
    """Tell that it runs."""
    return JSONResponse({"status": "healthy"})


@control.get("/simulator/state", dependencies=_guarded)
async def state(request: Request) -> Response:
    """Show everything but the secrets."""
    service = _service(request)
    jobs, calls = service.jobs, service.journal.calls
    shown = {
        "settings": service.settings.public(),
        "credits": service.credits,
        "accepted": len(jobs),
        "renders": service.renders,
        "connections": service.journal.connections,
        "jobs": [job.as_dict() for job in jobs],
        "calls_count": service.journal.count,
        "calls": [call.as_dict() for call in calls],
    }
    return JSONResponse(shown)


@control.patch("/simulator/settings", dependencies=_guarded)
async def change_settings(request: Request) -> Response:
    """Change settings while it runs."""
    changes = await _json(request)
    if not isinstance(changes, dict):
        raise Refusal(422, "The body must be a JSON object.")
    try:
        return JSONResponse(_service(request).configure(changes).public())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Refusal(422, problems) from error


@control.post("/simulator/reset", dependencies=_guarded)
async def reset(request: Request) -> Response:
    """Start over."""
    _service(request).reset()
    return JSONResponse({"status": "reset"})


@control.get("/")
async def page(request: Request) -> Response:
    """Tell a person what this is."""
    service = _service(request)
    jobs = service.jobs
    clips = " ".join(f'<a href="/files/{name}">{name}</a>' for name in media.SAMPLES)
    rows = "".join(_row(job) for job in reversed(jobs[-100:]))
    content = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Luma simulator</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top }}</style></head>
<body><h1>Luma simulator</h1>
<p>A local stand-in for the Luma service: it answers like the real one, and spends nothing.</p>
<p>Sample clips: {clips}</p>
<p>Jobs: {len(jobs)}. Credits left: {service.credits:g}.</p>
<table><tr><th>Task</th><th>State</th><th>Prompt</th><th>Result</th></tr>{rows}</table>
</body></html>"""
    return HTMLResponse(content, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _row(job: Job) -> str:
    links = " ".join(f'<a href="{escape(url)}">video</a>' for url in job.result_urls)
    cells = f"<td><code>{job.task_id}</code></td><td>{_FLAG_NAMES[job.flag]}</td><td>{escape(job.prompt)}</td>"
    return f"<tr>{cells}<td>{links}</td></tr>"

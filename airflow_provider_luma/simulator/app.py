# SPDX-License-Identifier: Apache-2.0
"""FastAPI application: routes of the service's API and files, and the simulator's own control endpoints and page."""

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
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from . import media
from .inputs import REQUEST_ERRORS
from .job_runner import JobRunner, open_job_runner
from .responses import UPLOAD_PATHS, edge_response, record_code, refusal_response, success_response
from .service import Job, Refusal, Service, is_http_url
from .uploads import UploadStore

_ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_FLAG_NAMES = ("generating", "success", "create task failed", "generate failed", "callback failed")


def create_app(service: Service, internal_user_agent: str) -> FastAPI:
    """
    Build the application.

    :param internal_user_agent: User-Agent of the requests that the application sends itself
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_job_runner(service, internal_user_agent) as runner:
            app.state.job_runner = runner
            app.state.upload_store = UploadStore(runner.folder, service)
            yield

    # FastAPI's documentation pages are off, because they load scripts from the web.
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.service = service
    app.include_router(control)
    app.include_router(api)
    app.include_router(files)
    app.add_exception_handler(Refusal, _handle_refusal)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _job_runner(request: Request) -> JobRunner:
    runner: JobRunner = request.app.state.job_runner
    return runner


def _upload_store(request: Request) -> UploadStore:
    store: UploadStore = request.app.state.upload_store
    return store


async def _handle_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    record_code(request, error.code)
    if not request.url.path.startswith("/api/"):
        # The refusal_style setting is for the service's API; the simulator's own endpoints use HTTP statuses.
        error.style = "status"
    return refusal_response(_service(request), error, request.url.path)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response()  # there is nobody to read it


async def _require_api_key(request: Request) -> None:
    _service(request).check_api_key(request.headers.get("authorization"))


async def _json(request: Request) -> Any:
    try:
        content = json.loads(await request.body())
        # An escape in JSON can decode to a lone surrogate, which no later response could encode as UTF-8.
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        raise Refusal(400 if request.url.path in UPLOAD_PATHS else 422, "The body is not JSON.") from error


# -- the service's API

api = APIRouter(prefix="/api", dependencies=[Depends(_require_api_key)])


@api.post("/v1/modify/generate")
async def generate(request: Request) -> Response:
    """Submit a job."""
    service, runner = _service(request), _job_runner(request)
    submission = service.validate_submission(await _json(request))
    digest = await runner.inputs.fetch(submission.video_url, service.settings.fetch_timeout)
    dry_run = getattr(request.state, "dry_run", False)
    job = service.accept(submission, digest, dry_run=dry_run)
    if not dry_run:
        _record_task_id(request, job)
        callback_attempted = runner.start(job)
        if job.callback_url and service.settings.callback_early:
            await callback_attempted.wait()
    return success_response(request, {"taskId": job.task_id})


def _record_task_id(request: Request, job: Job) -> None:
    call = getattr(request.state, "call", None)
    if call is not None:
        call.task_id = job.task_id


@api.get("/v1/modify/record-info")
async def record_info(request: Request) -> Response:
    """Return the status of a job."""
    return success_response(request, _service(request).record_info(request.query_params.get("taskId", "")))


@api.get("/v1/chat/credit")
async def credit(request: Request) -> Response:
    """Return the account's balance."""
    return success_response(request, _service(request).credits)


@api.post("/v1/common/download-url")
async def download_url(request: Request) -> Response:
    """Return a temporary download URL for a result file."""
    body = await _json(request)
    url = body.get("url") if isinstance(body, dict) else None
    return success_response(request, _service(request).create_temporary_url(url))


@api.post("/file-stream-upload")
async def file_stream_upload(request: Request) -> Response:
    """Store a file that is sent in a multipart form, which is parsed to a temporary file while it comes in."""
    if "content-length" not in request.headers:
        return edge_response(411)
    try:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refusal(400, "file is required.")
            folder, name = form.get("uploadPath"), form.get("fileName") or file.filename
            data = await _upload_store(request).store(_read_chunks(file), folder, name)
    except (HTTPException, FormParserError) as error:  # the former by Starlette 1, the latter before
        raise Refusal(400, f"The body is no form: {error}") from error
    return success_response(request, data, success=True)


async def _read_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 18):
        yield chunk


@api.post("/file-url-upload")
async def file_url_upload(request: Request) -> Response:
    """Download a file from a URL and store it."""
    body = await _json(request)
    url = body.get("fileUrl") if isinstance(body, dict) else None
    if not isinstance(url, str) or not is_http_url(url):
        raise Refusal(400, "fileUrl must be an http or https URL.")
    name = body.get("fileName") or PurePosixPath(urlsplit(url).path).name
    try:
        async with asyncio.timeout(30), _job_runner(request).client.stream("GET", url) as response:
            response.raise_for_status()
            data = await _upload_store(request).store(response.aiter_bytes(1 << 18), body.get("uploadPath"), name)
    except (*REQUEST_ERRORS, TimeoutError) as error:
        raise Refusal(400, f"fileUrl is not reachable: {str(error) or type(error).__name__}.") from error
    return success_response(request, data, success=True)


@api.api_route("/{rest:path}", methods=_ALL_METHODS)
async def unknown_endpoint(request: Request) -> Response:
    """Refuse every path and method that the API does not define."""
    if request.url.path in UPLOAD_PATHS:
        raise Refusal(405, "The method is not allowed.")
    raise Refusal(404, "No such endpoint.")


# -- files, served without a key

files = APIRouter(prefix="/files")


@files.api_route("/results/{task_id}/{name}", methods=["GET", "HEAD"])
async def result_file(request: Request, task_id: str, name: str) -> Response:
    """Serve a result file."""
    return _video(request, _service(request).find_result(task_id, name))


@files.api_route("/temporary/{token}/{name}", methods=["GET", "HEAD"])
async def temporary_file(request: Request, token: str, name: str) -> Response:
    """Serve a result file by its temporary download URL."""
    return _video(request, _service(request).find_temporary(token, name))


def _video(request: Request, job: Job | None) -> Response:
    if job is None:
        return _file_not_found()
    return FileResponse(_job_runner(request).result_path(job), media_type="video/mp4")


@files.api_route("/uploads/{key:path}", methods=["GET", "HEAD"])
async def uploaded_file(request: Request, key: str) -> Response:
    """Serve an uploaded file."""
    upload = _upload_store(request).find(key)
    return FileResponse(upload.path, media_type=upload.mime_type) if upload else _file_not_found()


@files.api_route("/{name}", methods=["GET", "HEAD"])
async def sample_file(request: Request, name: str) -> Response:
    """Serve a sample clip."""
    if name not in media.SAMPLES:
        return _file_not_found()
    return FileResponse(await _job_runner(request).sample(name), media_type="video/mp4")


def _file_not_found() -> Response:
    return PlainTextResponse("No such file.\n", status_code=404)


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
    service = _service(request)
    jobs, calls = service.jobs, service.journal.calls
    content = {
        "settings": service.settings.public(),
        "credits": service.credits,
        "accepted": len(jobs),
        "renders": service.renders,
        "connections": service.journal.connections,
        "jobs": [job.as_dict() for job in jobs],
        "uploads": [upload.as_dict() for upload in service.uploads],
        "calls_count": service.journal.count,
        "calls": [call.as_dict() for call in calls],
    }
    return JSONResponse(content)


@control.patch("/simulator/settings", dependencies=_requires_api_key)
async def change_settings(request: Request) -> Response:
    """Change settings and return all of them without secrets."""
    changes = await _json(request)
    if not isinstance(changes, dict):
        raise Refusal(422, "The body must be a JSON object.")
    try:
        return JSONResponse(_service(request).configure(changes).public())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Refusal(422, problems) from error


@control.post("/simulator/reset", dependencies=_requires_api_key)
async def reset(request: Request) -> Response:
    """Restore the initial settings and credits, and delete all jobs, uploads and calls."""
    _service(request).reset()
    return JSONResponse({"status": "reset"})


@control.get("/")
async def page(request: Request) -> Response:
    """Serve an overview of the sample clips and the latest jobs as HTML."""
    service = _service(request)
    jobs = service.jobs
    clips = " ".join(f'<a href="/files/{name}">{name}</a>' for name in media.SAMPLES)
    rows = "".join(_row(job) for job in reversed(jobs[-100:]))
    content = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Luma simulator</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ text-align: start; padding: .2rem 1rem .2rem 0; vertical-align: top }}</style></head>
<body><h1>Luma simulator</h1>
<p>A local simulation of the Luma service: it answers like the real one, and spends no credits.</p>
<p>Sample clips: {clips}</p>
<p>Jobs: {len(jobs)}. Remaining credits: {service.credits:g}.</p>
<table><tr><th>Task</th><th>State</th><th>Prompt</th><th>Result</th></tr>{rows}</table>
</body></html>"""
    return HTMLResponse(content, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _row(job: Job) -> str:
    links = " ".join(f'<a href="{escape(url)}">video</a>' for url in job.result_urls)
    cells = f"<td><code>{job.task_id}</code></td><td>{_FLAG_NAMES[job.flag]}</td><td>{escape(job.prompt)}</td>"
    return f"<tr>{cells}<td>{links}</td></tr>"

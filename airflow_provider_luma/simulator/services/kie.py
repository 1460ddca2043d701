# SPDX-License-Identifier: Apache-2.0
"""kie.ai's Luma Modify API: an envelope with a code, refusals in two styles, uploads by form, temporary URLs."""

from __future__ import annotations

import asyncio
import json
import unicodedata
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from ..account import CREATE_TASK_FAILED, Account, Job, SlidingWindow, Submission
from ..inputs import REQUEST_ERRORS, InputLimits, InputProblem, is_http_url
from ..service import (
    ALL_METHODS,
    HOSTILE_TEXT,
    EscapedJSONResponse,
    Refusal,
    Service,
    edge_response,
    is_dry_run,
    read_json,
    record_in_journal,
)
from ..uploads import Upload, UploadStore

if TYPE_CHECKING:
    from ..faults import Fault
    from ..settings import Settings

MAX_VIDEO_SECONDS = 10.0
MAX_VIDEO_BYTES = 500 * 1024 * 1024

_SUBMIT_PATH = "/api/v1/modify/generate"
_STATUS_PATH = "/api/v1/modify/record-info"
_UPLOAD_PATHS = ("/api/file-stream-upload", "/api/file-url-upload")
_OPERATIONS = {
    _SUBMIT_PATH: "submit",
    _STATUS_PATH: "status",
    "/api/v1/chat/credit": "credit",
    "/api/v1/common/download-url": "download_url",
    **dict.fromkeys(_UPLOAD_PATHS, "upload"),
}
_FILE_OPERATIONS = {"/files/results/": "file", "/files/temporary/": "file", "/files/uploads/": "clip"}


class Kie(Service):
    """The service at api.kie.ai."""

    name = "kie"

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        api = APIRouter(dependencies=[Depends(self.require_api_key)])
        api.add_api_route(_SUBMIT_PATH, self._generate, methods=["POST"])
        api.add_api_route(_STATUS_PATH, self._record_info, methods=["GET"])
        api.add_api_route("/api/v1/chat/credit", self._credit, methods=["GET"])
        api.add_api_route("/api/v1/common/download-url", self._download_url, methods=["POST"])
        api.add_api_route("/api/file-stream-upload", self._file_stream_upload, methods=["POST"])
        api.add_api_route("/api/file-url-upload", self._file_url_upload, methods=["POST"])
        api.add_api_route("/api/{rest:path}", self._unknown_endpoint, methods=ALL_METHODS)
        self.router = APIRouter()
        self.router.include_router(api)
        for path, endpoint in (
            ("/files/results/{task_id}/{name}", self._result_file),
            ("/files/temporary/{token}/{name}", self._temporary_file),
            ("/files/uploads/{key:path}", self._uploaded_file),
        ):
            self.router.add_api_route(path, endpoint, methods=["GET", "HEAD"])

    def reset(self) -> None:
        """Forget temporary URLs, and restart the rate limits and the alternation of refusals."""
        self._temporary_urls: dict[str, tuple[str, float]] = {}
        self._refusals = 0
        self._submissions = SlidingWindow(10, self._account.clock)
        self._status_calls = SlidingWindow(1, self._account.clock)

    def operation_of(self, method: str, path: str) -> str | None:
        """Return the operation that a path belongs to."""
        if path in _OPERATIONS:
            return _OPERATIONS[path]
        for prefix, operation in _FILE_OPERATIONS.items():
            if path.startswith(prefix):
                return operation
        return "other" if path.startswith("/api/") else None

    def task_id_of(self, path: str, query: Mapping[str, str]) -> str | None:
        """Return the task id in the query."""
        return query.get("taskId")

    # -- the envelope

    def _success(self, request: Request, data: Any, **extra_fields: Any) -> Response:
        """Build a success envelope around the data; extra fields appear at its top level, next to ``code``."""
        record_in_journal(request, code=200)
        return EscapedJSONResponse({"code": 200, "msg": "success", "data": data, **extra_fields})

    def refusal_response(self, request: Request, refusal: Refusal) -> JSONResponse:
        """Build an envelope by HTTP status, or under HTTP 200 with the code in the body."""
        record_in_journal(request, code=refusal.code)
        style = refusal.style or self._next_refusal_style()
        headers = {}
        if style == "status":
            retry_after = refusal.retry_after
            if retry_after is None and refusal.code == 429:
                retry_after = self._account.settings.retry_after
            if retry_after is not None:
                headers["Retry-After"] = f"{retry_after:g}"
        body = {"code": refusal.code, "msg": refusal.msg, "data": None}
        if request.url.path in _UPLOAD_PATHS:
            body["success"] = False
        return EscapedJSONResponse(body, status_code=refusal.code if style == "status" else 200, headers=headers)

    def _next_refusal_style(self) -> str:
        style = self._account.settings.refusal_style
        if style != "alternate":
            return style
        self._refusals += 1
        return "status" if self._refusals % 2 else "body"

    def corrupt(self, fault: Fault, content: Any) -> Any:
        """Change the envelope's data."""
        data = content["data"]
        if fault.kind == "null_data":
            content["data"] = None
        elif fault.kind == "wrong_data":
            content["data"] = "unexpected"
        elif fault.kind == "unknown_flag" and data:
            data["successFlag"] = fault.flag
        elif fault.kind == "response_string" and data and data["response"]:
            data["response"] = json.dumps(data["response"])
        elif fault.kind == "hostile_text" and data:
            content["msg"] = data["errorMessage"] = HOSTILE_TEXT
            data["errorCode"] = 10**30
            data["paramJson"] = json.dumps({**json.loads(data["paramJson"]), "prompt": HOSTILE_TEXT})
            data["remarks"] = [float("nan"), json.loads("[" * 500 + "]" * 500)]
        return content

    # -- jobs

    async def _generate(self, request: Request) -> Response:
        """Submit a job."""
        body = _validate_submission(await read_json(request))
        settings = self._account.settings
        try:
            limits = InputLimits(MAX_VIDEO_SECONDS, MAX_VIDEO_BYTES)
            video = await self.runner.inputs.fetch(body["videoUrl"], settings.fetch_timeout, limits)
        except InputProblem as problem:
            raise Refusal(422, f"videoUrl {problem}.") from problem
        submission = Submission(
            self.name, body["prompt"], body["videoUrl"], body.get("callBackUrl"), body, video.digest
        )
        job = self._accept(submission, dry_run=is_dry_run(request))
        if not is_dry_run(request):
            record_in_journal(request, task_id=job.task_id)
            callback_attempted = self.runner.start(job)
            if job.callback_url and settings.callback_early:
                await callback_attempted.wait()
        return self._success(request, {"taskId": job.task_id})

    def _accept(self, submission: Submission, *, dry_run: bool) -> Job:
        account, settings = self._account, self._account.settings
        with account.lock:
            account.check_credits()
            if not self._submissions.allows(settings.submissions_per_10_seconds):
                raise Refusal(429, "Too many submissions in 10 seconds. The request was not queued.")
            if account.count_running(self.name) >= settings.max_running:
                raise Refusal(429, "Too many jobs are running. The request was not queued.")
            if not dry_run:
                self._submissions.record()
            return account.accept(submission, account.new_id().hex, dry_run=dry_run)

    async def _record_info(self, request: Request) -> Response:
        """Return the status of a job."""
        if not self._status_calls.allows(self._account.settings.status_calls_per_second):
            raise Refusal(429, "Too many status calls in a second.")
        self._status_calls.record()
        task_id = request.query_params.get("taskId")
        if not task_id:
            raise Refusal(422, "taskId is required.")
        job = self._account.find_job(self.name, task_id)
        if job is None:
            raise Refusal(404, "No such task.")
        return self._success(request, _record(job))

    def result_url(self, job: Job) -> str:
        """Return the address of a result file."""
        return f"{self._account.url}/files/results/{job.task_id}/{job.file_name}"

    def record_failure(self, job: Job, reason: str | None, settings: Settings) -> None:
        """Set the errorCode."""
        default_code = 500 if job.flag == CREATE_TASK_FAILED else 501
        job.error_code = settings.error_code if settings.error_code is not None else default_code

    # -- account and files

    async def _credit(self, request: Request) -> Response:
        """Return the account's balance."""
        return self._success(request, self._account.credits)

    async def _download_url(self, request: Request) -> Response:
        """Return a temporary download URL for a result file."""
        body = await read_json(request)
        url = body.get("url") if isinstance(body, dict) else None
        with self._account.lock:
            job = next((job for job in self._account.jobs if url in job.result_urls), None)
            if job is None or self._find_result(job.task_id, job.file_name) is None:
                raise Refusal(422, "url must be a result file of this service that has not expired.")
            token = uuid.uuid4().hex
            expires_at = self._account.clock.time() + self._account.settings.download_url_ttl
            self._temporary_urls[token] = job.task_id, expires_at
        return self._success(request, f"{self._account.url}/files/temporary/{token}/{job.file_name}")

    async def _result_file(self, task_id: str, name: str) -> Response:
        """Serve a result file."""
        return self._video(self._find_result(task_id, name))

    async def _temporary_file(self, token: str, name: str) -> Response:
        """Serve a result file by its temporary download URL."""
        task_id, expires_at = self._temporary_urls.get(token, ("", 0.0))
        return self._video(self._find_result(task_id, name) if self._account.clock.time() <= expires_at else None)

    def _find_result(self, task_id: str, name: str) -> Job | None:
        """Return the job that made a result file; None if the file does not exist or has expired."""
        job = self._account.find_result(self.name, task_id)
        return job if job is not None and job.file_name == name else None

    def _video(self, job: Job | None) -> Response:
        if job is None:
            return _file_not_found()
        return FileResponse(self.runner.result_path(job), media_type="video/mp4")

    # -- uploads

    @property
    def _uploads(self) -> UploadStore:
        return UploadStore(self._account, self.name, self.runner.folder)

    async def _file_stream_upload(self, request: Request) -> Response:
        """Store a file from a multipart form, which is parsed to a temporary file as it arrives."""
        if "content-length" not in request.headers:
            return edge_response(411)
        try:
            async with request.form() as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise Refusal(400, "file is required.")
                folder, name = form.get("uploadPath"), form.get("fileName") or file.filename
                data = await self._store(_read_chunks(file), folder, name)
        except (HTTPException, FormParserError) as error:  # FormParserError: before Starlette 1
            raise Refusal(400, f"The body is not a form: {error}") from error
        return self._success(request, data, success=True)

    async def _file_url_upload(self, request: Request) -> Response:
        """Download a file from a URL and store it."""
        body = await read_json(request, code=400)
        url = body.get("fileUrl") if isinstance(body, dict) else None
        if not isinstance(url, str) or not is_http_url(url):
            raise Refusal(400, "fileUrl must be an http or https URL.")
        name = body.get("fileName") or PurePosixPath(urlsplit(url).path).name
        try:
            async with asyncio.timeout(30), self.runner.client.stream("GET", url) as response:
                response.raise_for_status()
                data = await self._store(response.aiter_bytes(1 << 18), body.get("uploadPath"), name)
        except (*REQUEST_ERRORS, TimeoutError) as error:
            raise Refusal(400, f"fileUrl is not reachable: {str(error) or type(error).__name__}.") from error
        return self._success(request, data, success=True)

    async def _store(self, chunks: AsyncIterator[bytes], folder: Any, name: Any) -> dict[str, Any]:
        """Store a file; Refusal 400 if the folder or the name is missing or not plain."""
        if not isinstance(folder, str) or not all(map(_is_plain_name, folder.strip("/").split("/"))):
            raise Refusal(400, "uploadPath is required and must be a plain path.")
        if not isinstance(name, str) or not _is_plain_name(name):
            raise Refusal(400, "fileName must be the plain name of a file.")
        return self._upload_data(await self._uploads.store(chunks, f"{folder.strip('/')}/{name}"))

    def _upload_data(self, upload: Upload) -> dict[str, Any]:
        """Return the ``data`` of the response to an upload in one of its two documented shapes."""
        settings = self._account.settings
        url = f"{self._account.url}/files/uploads/{quote(upload.key)}"
        if settings.upload_answer == "file_id":
            return {
                "fileId": upload.path.stem,
                "fileUrl": url,
                "downloadUrl": url,
                "uploadTime": _iso(upload.stored_at),
                "expiresAt": _iso(upload.stored_at + settings.upload_ttl),
            }
        return {
            "fileName": upload.key.rpartition("/")[2],
            "filePath": upload.key,
            "downloadUrl": url,
            "fileSize": upload.size,
            "mimeType": upload.mime_type,
            "uploadedAt": _iso(upload.stored_at),
        }

    async def _uploaded_file(self, key: str) -> Response:
        """Serve an uploaded file."""
        upload = self._uploads.find(key)
        if upload is None or self._account.clock.time() > upload.stored_at + self._account.settings.upload_ttl:
            return _file_not_found()
        return FileResponse(upload.path, media_type=upload.mime_type)

    async def _unknown_endpoint(self, request: Request) -> Response:
        """Refuse every path and method that the API does not define."""
        if request.url.path in _UPLOAD_PATHS:
            raise Refusal(405, "The method is not allowed.")
        raise Refusal(404, "No such endpoint.")


def _validate_submission(body: Any) -> dict[str, Any]:
    """Return the decoded body of a submission; Refusal 422 with the reason if it is invalid."""
    if not isinstance(body, dict):
        raise Refusal(422, "The body must be a JSON object.")
    for key in ("prompt", "videoUrl"):
        if not isinstance(body.get(key), str) or not body[key].strip():
            raise Refusal(422, f"{key} is required and must be a text that is not blank.")
    for key in ("callBackUrl", "watermark"):
        if key in body and not isinstance(body[key], str):
            raise Refusal(422, f"{key} must be a text; omit it when there is none.")
    if letter := next((letter for letter in body["prompt"] if not _is_english(letter)), None):
        raise Refusal(422, f"prompt must be English; it holds the letter {letter!r}.")
    for key in ("videoUrl", "callBackUrl"):
        if key in body and not is_http_url(body[key]):
            raise Refusal(422, f"{key} must be an http or https URL.")
    return body


def _is_english(letter: str) -> bool:
    return not letter.isalpha() or letter < "\u0250" or unicodedata.name(letter, "").startswith("LATIN")


def _record(job: Job) -> dict[str, Any]:
    """Return the ``data`` of record-info for a job."""
    response = {"taskId": job.task_id, "originUrls": list(job.origin_urls), "resultUrls": list(job.result_urls)}
    return {
        "taskId": job.task_id,
        "paramJson": job.param_json,
        "createTime": job.create_time,
        "completeTime": job.complete_time,
        "response": response if job.has_succeeded else None,
        "successFlag": job.flag,
        "errorCode": job.error_code,
        "errorMessage": job.error_message,
    }


async def _read_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 18):
        yield chunk


def _is_plain_name(name: str) -> bool:
    return bool(name.strip()) and name not in (".", "..") and "/" not in name


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _file_not_found() -> Response:
    return PlainTextResponse("No such file.\n", status_code=404)

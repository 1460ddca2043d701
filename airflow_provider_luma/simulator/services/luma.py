# SPDX-License-Identifier: Apache-2.0
"""Luma's own API: generations, files with presigned uploads, results with presigned URLs, errors by HTTP status."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from .. import media
from ..account import GENERATING, Account, Job, SlidingWindow, Submission
from ..clock import Clock
from ..inputs import InputLimits, InputProblem, InputVideo
from ..presigned import Presigner, storage_error
from ..service import (
    ALL_METHODS,
    HOSTILE_TEXT,
    EscapedJSONResponse,
    Refusal,
    Service,
    is_dry_run,
    read_json,
    record_in_journal,
)
from ..uploads import UploadStore
from .luma_request import MAX_FILE_BYTES, FileRequest, GenerationRequest, Source, parse, seconds_of

if TYPE_CHECKING:
    from ..faults import Fault
    from ..settings import Settings

API_VERSION = "2026-04-01"
MAX_VIDEO_SECONDS = 18.0
MAX_VIDEO_BYTES = 200_000_000

#: Codes of failures that are refunded.
REFUNDED = ("content_moderated", "generation_failed", "output_not_found")

_STATE_OF_FLAG = ("processing", "completed", "failed", "failed", "completed")
_INPUTS, _OUTPUTS = "/bucket/inputs/", "/bucket/outputs/"


@dataclass
class FileRecord:
    """
    A file of the Files API.

    Times are in seconds since the Unix epoch, by ``clock``; ``ingested_at`` is None until the upload is complete.
    """

    file_id: str
    request: FileRequest
    created_at: float
    clock: Clock
    ingested_at: float | None = None
    failure_reason: str | None = None
    deleted_at: float | None = None

    @property
    def state(self) -> str:
        """The state now."""
        if self.gone_at is not None:
            return "deleted"
        if self.ingested_at is None or self.clock.time() < self.ingested_at:
            return "pending"
        return "failed" if self.failure_reason else "ready"

    @property
    def gone_at(self) -> float | None:
        """When the file was deleted or expired; None if it still exists."""
        expires_at = seconds_of(self.request.expires_at) if self.request.expires_at else math.inf
        gone_at = min(expires_at, self.deleted_at or math.inf)
        return gone_at if gone_at <= self.clock.time() else None

    def as_json(self) -> dict[str, Any]:
        """Return the record as the API writes it."""
        return {
            "id": self.file_id,
            "state": self.state,
            "mime_type": self.request.mime_type,
            "size_bytes": self.request.size_bytes,
            "purpose": self.request.purpose,
            "filename": self.request.filename,
            "user_id": self.request.user_id,
            "created_at": _iso(self.created_at),
            "expires_at": self.request.expires_at,
            "deleted_at": None if self.gone_at is None else _iso(self.gone_at),
            "failure_reason": self.failure_reason if self.state == "failed" else None,
        }


class Luma(Service):
    """The service at agents.lumalabs.ai, and its object storage."""

    name = "luma"

    def __init__(self, account: Account) -> None:
        self._presigner = Presigner(account.clock)
        super().__init__(account)
        limited = APIRouter(dependencies=[Depends(self.require_api_key), Depends(self._limit_requests)])
        limited.add_api_route("/v1/generations", self._create_generation, methods=["POST"])
        limited.add_api_route("/v1/files", self._create_file, methods=["POST"])
        limited.add_api_route("/v1/files", self._list_files, methods=["GET"])
        limited.add_api_route("/v1/files/{file_id}", self._get_file, methods=["GET"])
        limited.add_api_route("/v1/files/{file_id}", self._delete_file, methods=["DELETE"])
        limited.add_api_route("/v1/files/{file_id}/complete", self._complete_file, methods=["POST"])
        api = APIRouter(dependencies=[Depends(self.require_api_key)])
        api.add_api_route("/v1/generations/{generation_id}", self._get_generation, methods=["GET"])
        api.add_api_route("/v1/{rest:path}", self._unknown_endpoint, methods=ALL_METHODS)
        self.router = APIRouter()
        self.router.include_router(limited)
        self.router.include_router(api)
        self.router.add_api_route(_INPUTS + "{file_id}", self._put_input, methods=["PUT"])
        self.router.add_api_route(_OUTPUTS + "{name}", self._get_output, methods=["GET", "HEAD"])

    def reset(self) -> None:
        """Delete all files, and restart the rate limits."""
        self._files: dict[str, FileRecord] = {}
        self._requests = SlidingWindow(60, self._account.clock)
        self._status_calls = SlidingWindow(1, self._account.clock)

    def operation_of(self, method: str, path: str) -> str | None:
        """Return the operation that a call belongs to."""
        if path.startswith((_INPUTS, _OUTPUTS)):
            return "upload" if path.startswith(_INPUTS) else "file"
        match method, path.strip("/").split("/"):
            case "POST", ["v1", "generations"]:
                return "submit"
            case "GET", ["v1", "generations", _]:
                return "status"
            case "POST", ["v1", "files"]:
                return "file_create"
            case "GET", ["v1", "files"]:
                return "file_list"
            case "GET", ["v1", "files", _]:
                return "file_status"
            case "DELETE", ["v1", "files", _]:
                return "file_delete"
            case "POST", ["v1", "files", _, "complete"]:
                return "file_complete"
        return "other" if path.startswith("/v1/") else None

    def task_id_of(self, path: str, query: Mapping[str, str]) -> str | None:
        """Return the generation's id in the path."""
        return path.removeprefix("/v1/generations/") if path.startswith("/v1/generations/") else None

    # -- responses

    def _json(self, request: Request, content: Any, status: int = 200) -> Response:
        record_in_journal(request, code=status)
        return EscapedJSONResponse(content, status_code=status, headers=_headers(request))

    def refusal_response(self, request: Request, refusal: Refusal) -> Response:
        """Build a refusal by HTTP status; the object storage writes XML."""
        record_in_journal(request, code=refusal.code)
        headers = dict(refusal.headers)
        if refusal.retry_after is not None:
            headers["Retry-After"] = f"{refusal.retry_after:g}"
        if request.url.path.startswith((_INPUTS, _OUTPUTS)):
            response = storage_error(refusal.code, "AccessDenied" if refusal.code == 403 else "Error", refusal.msg)
            response.headers.update(headers)
            return response
        headers |= _headers(request)
        return EscapedJSONResponse({"detail": refusal.msg}, status_code=refusal.code, headers=headers)

    def refusal_of_fault(self, fault: Fault) -> Refusal:
        """Return the refusal, a 429 with the headers of one of the two limits."""
        refusal = super().refusal_of_fault(fault)
        if fault.code != 429:
            return refusal
        limited = self._too_many_requests() if fault.limit == "requests" else _too_many_jobs()
        if fault.retry_after is not None:
            limited.retry_after = fault.retry_after
        return limited

    def corrupt(self, fault: Fault, content: Any) -> Any:
        """Change the body, which has no envelope."""
        if fault.kind == "null_data":
            return None
        if fault.kind == "wrong_data":
            return "unexpected"
        if "state" not in content:
            return content
        if fault.kind == "unknown_flag":
            return {**content, "state": f"state_{fault.flag}"}
        if fault.kind == "response_string" and content["output"]:
            return {**content, "output": json.dumps(content["output"])}
        if fault.kind == "hostile_text":
            hostile = {"failure_reason": HOSTILE_TEXT, "failure_code": HOSTILE_TEXT, "progress": 10**30}
            return {**content, **hostile, "remarks": [float("nan"), json.loads("[" * 500 + "]" * 500)]}
        return content

    # -- limits

    async def _limit_requests(self, request: Request) -> None:
        """Count a request, or raise Refusal 429; the status calls of generations are exempt."""
        with self._account.lock:
            if not self._requests.allows(self._account.settings.requests_per_minute):
                raise self._too_many_requests()
            self._requests.record()

    def _too_many_requests(self) -> Refusal:
        limit = self._account.settings.requests_per_minute
        seconds = max(1, math.ceil(self._requests.seconds_until_allowed(limit)))
        headers = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(int(self._account.clock.time()) + seconds),
        }
        return Refusal(429, "Rate limit exceeded: too many requests in a minute.", retry_after=seconds, headers=headers)

    # -- generations

    async def _create_generation(self, request: Request) -> Response:
        """Submit a job."""
        content = await read_json(request)
        body = parse(GenerationRequest, content, self._account.clock.time())
        video = await self._fetch_source(body.source)
        self._check_keyframes(body, video)
        if body.source.data is not None:
            content["source"]["data"] = f"({len(body.source.data)} characters)"
        submission = Submission(
            service=self.name,
            prompt=body.prompt,
            video_url=_describe(body.source),
            callback_url=None,
            request=content,
            input_digest=video.digest,
            is_silent=True,
            time_limit=self._account.settings.job_time_limit,
        )
        job = self._accept(submission, dry_run=is_dry_run(request))
        if not is_dry_run(request):
            record_in_journal(request, task_id=job.task_id)
            self.runner.start(job)
        return self._json(request, self._generation(job), 201)

    def _accept(self, submission: Submission, *, dry_run: bool) -> Job:
        account = self._account
        with account.lock:
            account.check_credits()
            if account.count_running(self.name) >= account.settings.jobs_at_a_time:
                raise _too_many_jobs()
            return account.accept(submission, str(account.new_id()), dry_run=dry_run)

    async def _fetch_source(self, source: Source) -> InputVideo:
        """Return the video to edit; Refusal if it cannot be fetched or is not acceptable."""
        inputs, limits = self.runner.inputs, InputLimits(MAX_VIDEO_SECONDS, MAX_VIDEO_BYTES)
        try:
            if source.url is not None:
                return await inputs.fetch(source.url, self._account.settings.fetch_timeout, limits)
            if source.data is not None:
                return await inputs.add(source.decoded(), limits)
            limits = InputLimits(MAX_VIDEO_SECONDS, MAX_FILE_BYTES)
            if source.generation_id is not None:
                return await inputs.add(self.runner.result_path(self._find_output(source.generation_id)), limits)
            self._check_file_is_ready(source.file_id or "", "video/")
            upload = self._uploads.find(source.file_id or "")
            assert upload is not None
            return await inputs.add(upload.path, limits)
        except InputProblem as problem:
            code = {"unreachable": 502, "timeout": 503, "too_large": 413, "unusable": 422}[problem.kind]
            fetching = "Failed to fetch the source: " if code >= 500 else ""
            raise Refusal(code, f"{fetching}source {problem}.") from problem

    def _find_output(self, generation_id: str) -> Job:
        job = self._account.find_result(self.name, generation_id)
        if job is None:
            raise Refusal(422, "source.generation_id must be a completed generation of yours.")
        return job

    def _check_file_is_ready(self, file_id: str, mime_prefix: str) -> None:
        record = self._files.get(file_id)
        if record is None or record.state != "ready" or not record.request.mime_type.startswith(mime_prefix):
            raise Refusal(422, f"file_id must be a file of yours that is ready and {mime_prefix}*.")

    def _check_keyframes(self, body: GenerationRequest, video: InputVideo) -> None:
        if any(index >= video.clip.frames for index in body.video.edit.keyframe_indexes):
            raise Refusal(422, f"keyframe_indexes must be below {video.clip.frames}, the source's number of frames.")
        for keyframe in body.video.edit.keyframes:
            if keyframe.file_id is not None:
                self._check_file_is_ready(keyframe.file_id, "image/")
            if keyframe.generation_id is not None:
                raise Refusal(422, "generation_id of a keyframe must be a completed image of yours.")
            if keyframe.data is not None:
                keyframe.decoded()

    async def _get_generation(self, request: Request, generation_id: str) -> Response:
        """Return the status of a job."""
        if not self._status_calls.allows(self._account.settings.status_calls_per_second):
            raise Refusal(429, "Too many status calls.", retry_after=1)
        self._status_calls.record()
        job = self._account.find_job(self.name, generation_id)
        if job is None:
            raise Refusal(404, "Generation not found.")
        return self._json(request, self._generation(job))

    def _generation(self, job: Job) -> dict[str, Any]:
        state, url = _STATE_OF_FLAG[job.flag], self.link(job)
        queued_until = job.create_time / 1000 + self._account.settings.queued_seconds
        if job.flag == GENERATING and self._account.clock.time() < queued_until:
            state = "queued"
        return {
            "id": job.task_id,
            "type": job.request["type"],
            "state": state,
            "model": job.request["model"],
            "created_at": _iso(job.create_time / 1000),
            # An unfinished output may be null or empty, so both occur here.
            "output": [{"type": "video", "url": url}] if url else None if state == "queued" else [],
            "failure_reason": job.error_message,
            "failure_code": job.failure_code,
        }

    def result_url(self, job: Job) -> str:
        """Return the address of a result without a signature."""
        return self._account.url + _result_path(job)

    def link(self, job: Job) -> str | None:
        """Return a new presigned URL of a job's result."""
        if not job.result_urls:
            return None
        ttl = self._account.settings.result_url_ttl
        return self._account.url + self._presigner.sign("GET", _result_path(job), ttl)

    def expire_urls(self) -> None:
        """Expire all presigned URLs of results and uploads issued so far."""
        self._presigner.expire_all()

    def record_failure(self, job: Job, reason: str | None, settings: Settings) -> None:
        """Set the failure_code, and refund the job if that code is refunded."""
        job.failure_code = "generation_failed" if reason else settings.failure_code
        if job.failure_code in REFUNDED:
            self._account.credits += job.cost

    async def _get_output(self, request: Request, name: str) -> Response:
        """Serve a result by its presigned URL."""
        if refusal := self._presigner.refusal(request, self._account.settings.result_url_ttl):
            return refusal
        job = self._account.find_result(self.name, name.removesuffix(".mp4"))
        if job is None:
            return storage_error(404, "NoSuchKey", "The specified key does not exist.")
        return FileResponse(self.runner.result_path(job), media_type="video/mp4")

    # -- files

    @property
    def _uploads(self) -> UploadStore:
        return UploadStore(self._account, self.name, self.runner.folder)

    async def _create_file(self, request: Request) -> Response:
        """Register a file, and return where to put its content."""
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise Refusal(415, "The body must be application/json.")
        clock = self._account.clock
        now = clock.time()
        body = parse(FileRequest, await read_json(request), now)
        file_id, ttl = str(self._account.new_id()), self._account.settings.upload_url_ttl
        headers = {"Content-Type": body.mime_type, "x-amz-meta-file-id": file_id}
        url = self._account.url + self._presigner.sign("PUT", _INPUTS + file_id, ttl, headers)
        record = FileRecord(file_id, body, now, clock)
        self._files[file_id] = record
        upload = {"method": "PUT", "url": url, "headers": headers, "expires_at": _iso(record.created_at + ttl)}
        content = {"id": file_id, "state": record.state, "file": record.as_json(), "upload": upload}
        return self._json(request, content, 201)

    async def _put_input(self, request: Request, file_id: str) -> Response:
        """Store a file's content."""
        if refusal := self._presigner.refusal(request, self._account.settings.upload_url_ttl):
            return refusal
        if file_id not in self._files:
            return storage_error(404, "NoSuchKey", "The specified key does not exist.")
        if "content-length" not in request.headers:
            return storage_error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        if int(request.headers["content-length"]) > MAX_FILE_BYTES:
            return storage_error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        upload = await self._uploads.store(request.stream(), file_id, self._files[file_id].request.mime_type)
        return Response(headers={"ETag": f'"{upload.sha256[:32]}"'})

    async def _complete_file(self, request: Request, file_id: str) -> Response:
        """Start the ingest of a file whose content was stored."""
        if await request.body():
            raise Refusal(422, "The body must be empty.")
        record = self._find_file(file_id)
        if record.ingested_at is not None:
            raise Refusal(409, "The file has already been completed.")
        if self._uploads.find(file_id) is None:
            raise Refusal(400, "The file's content was not uploaded.")
        record.failure_reason = await self._ingest(record)
        record.ingested_at = self._account.clock.time() + self._account.settings.ingest_seconds
        return self._json(request, record.as_json())

    async def _ingest(self, record: FileRecord) -> str | None:
        """Return why a file fails at ingest; None if it does not."""
        upload = self._uploads.find(record.file_id)
        assert upload is not None
        if failure := self._account.settings.ingest_failure:
            return failure
        if upload.size != record.request.size_bytes:
            return f"The file has {upload.size} bytes; size_bytes was {record.request.size_bytes}."
        if record.request.mime_type.startswith("video/"):
            return await asyncio.to_thread(media.reason_not_to_open, upload.path)
        return None

    async def _list_files(self, request: Request) -> Response:
        """Return a page of files, newest first."""
        query = request.query_params
        limit = query.get("limit", "25")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= 100):
            raise Refusal(422, "limit must be between 1 and 100.")
        files = [
            record
            for record in reversed(self._files.values())
            if record.state == query.get("state", record.state if record.state != "deleted" else None)
            and record.request.purpose == query.get("purpose", record.request.purpose)
        ]
        start = _position_after(files, query["cursor"]) if "cursor" in query else 0
        page, has_more = files[start : start + int(limit)], len(files) > start + int(limit)
        cursor = base64.urlsafe_b64encode(page[-1].file_id.encode()).decode() if has_more else None
        data = [record.as_json() for record in page]
        return self._json(request, {"data": data, "has_more": has_more, "next_cursor": cursor})

    async def _get_file(self, request: Request, file_id: str) -> Response:
        """Return a file's record, even after the file was deleted."""
        if file_id not in self._files:
            raise Refusal(404, "File not found.")
        return self._json(request, self._files[file_id].as_json())

    async def _delete_file(self, request: Request, file_id: str) -> Response:
        """Delete a file; its record stays."""
        self._find_file(file_id).deleted_at = self._account.clock.time()
        record_in_journal(request, code=204)
        return Response(status_code=204, headers=_headers(request))

    def _find_file(self, file_id: str) -> FileRecord:
        record = self._files.get(file_id)
        if record is None or record.state == "deleted":
            raise Refusal(404, "File not found.")
        return record

    async def _unknown_endpoint(self, request: Request) -> Response:
        """Refuse every path and method that the API does not define."""
        if (
            self.operation_of("POST", request.url.path) != "other"
            or self.operation_of("GET", request.url.path) != "other"
        ):
            raise Refusal(405, "Method Not Allowed")
        raise Refusal(404, "Not Found")


def _headers(request: Request) -> dict[str, str]:
    """Return the headers of every response of the API."""
    request_id = request.headers.get("x-request-id") or str(uuid.uuid4())
    return {"X-Request-Id": request_id, "X-API-Version": API_VERSION}


def _result_path(job: Job) -> str:
    return f"{_OUTPUTS}{job.task_id}.mp4"


def _too_many_jobs() -> Refusal:
    return Refusal(429, "Too many generations are running.", retry_after=60)


def _describe(source: Source) -> str:
    """Return what Job.video_url says about a source."""
    if source.url is not None:
        return source.url
    if source.data is not None:
        return "data"
    return f"luma-file:{source.file_id}" if source.file_id else f"luma-generation:{source.generation_id}"


def _position_after(files: list[FileRecord], cursor: str) -> int:
    """Return the position at which the page after a cursor begins; Refusal 422 for an invalid cursor."""
    try:
        last_id = base64.urlsafe_b64decode(cursor).decode()
        return [record.file_id for record in files].index(last_id) + 1
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "cursor is not valid.") from error


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

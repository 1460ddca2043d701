# SPDX-License-Identifier: Apache-2.0
"""
A third, made-up service, in one file: what it takes to add one to the package.

A job is ``{"job": id, "state": "busy" | "done" | "failed", "video": address}``; a refusal is a 400, 401, 402 or 422.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from typing import Any

from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus, LumaUpload, ModifyRequest, Request, Response
from airflow_provider_luma.core.validation import check_prompt, check_video_address
from airflow_provider_luma.core.wire import read_json, read_text
from airflow_provider_luma.exceptions import (
    LumaFeatureDisabledError,
    LumaNotFoundError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.services.base import Limits

name = "paint"
host = "https://paint.example.com"
base_path = ""
upload_host = host
limits = Limits(seconds=60.0, bytes_by_url=10**9, bytes_as_file=10**9, containers=("mp4",))
has_callbacks = False
has_balance = False
requests_per_second = 5.0
records_kept = 86_400.0
results_kept = 86_400.0

_STATES = {"done": LumaTaskStatus.SUCCESS, "failed": LumaTaskStatus.GENERATE_FAILED, "busy": LumaTaskStatus.GENERATING}


def check(request: ModifyRequest, *, is_public: bool) -> None:
    check_prompt(request.prompt)
    check_video_address(request.video_url, containers=limits.containers, service_is_public=is_public)


def submission(request: ModifyRequest, reference: str) -> Request:
    body = {"what": request.prompt, "video": request.video_url, **(request.options or {})}
    return Request("POST", "/jobs", json=body)


def read_submission(response: Response) -> str:
    job = _document(response).get("job")
    if response.http_status == 200 and isinstance(job, str) and job:
        return job
    if response.http_status in (400, 401, 402, 422):
        raise LumaValidationError(response.http_status, "refused")
    raise LumaSubmissionUnknownError(None, "it may have been accepted")


def unknown_outcome_remedy(reference: str, submitted_at: float | None) -> str:
    return f"Write to the painters about {reference}"


def status(luma_task_id: str) -> Request:
    return Request("GET", "/jobs", query={"job": luma_task_id})


def read_status(response: Response, luma_task_id: str) -> LumaTask:
    job = _document(response)
    state = _STATES.get(read_text(job.get("state")) or "")
    if job.get("error") == "unknown job":
        raise LumaNotFoundError(response.http_status, "unknown job", luma_task_id=luma_task_id)
    if job.get("job") != luma_task_id or state is None:
        raise LumaUnavailableError(response.http_status, "this says nothing about the job", luma_task_id=luma_task_id)
    video = read_text(job.get("video"))
    return LumaTask(luma_task_id, state, result_urls=(video,) if video else (), service=name)


def liveness() -> Request:
    return Request("GET", "/")


def read_liveness(response: Response) -> None:
    if response.http_status != 200:
        raise LumaUnavailableError(response.http_status, "closed")


def balance() -> Request:
    raise LumaFeatureDisabledError(None, "there is no balance")


def read_balance(response: Response) -> float:
    raise LumaFeatureDisabledError(None, "there is no balance")


def renewal(result_url: str, luma_task_id: str | None) -> Request:
    return Request("GET", "/fresh", query={"url": result_url})


def read_renewal(response: Response, result_url: str, luma_task_id: str | None) -> str:
    url = read_text(_document(response).get("url"))
    if url is None:
        raise LumaNotFoundError(response.http_status, "gone")
    return url


def upload(file_name: str, size: int, now: datetime) -> Generator[Any, Response, LumaUpload]:
    raise LumaFeatureDisabledError(None, "give a public address")
    yield


def _document(response: Response) -> dict[str, Any]:
    document = read_json(response.body)
    return document if isinstance(document, dict) else {}

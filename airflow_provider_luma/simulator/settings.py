# SPDX-License-Identifier: Apache-2.0
"""Settings model: the one definition behind the command line options and the control endpoint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .faults import Fault

DAY = 86400.0
SECRET_FIELDS = {"api_key", "webhook_secret"}


class Settings(BaseModel):
    """
    How the simulated services behave.

    Every setting can be changed while the simulator runs; a job keeps the outcome and the duration that were set
    when it was accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str = Field(
        default="simulator-key", min_length=1, repr=False, description="The only API key that the services accept."
    )
    public_url: str | None = Field(
        default=None, description="Base of the URLs in its responses; the address it listens on if unset."
    )
    processing_seconds: float = Field(default=5.0, ge=0, description="Seconds a job takes.")
    processing_jitter: float = Field(
        default=0.0, ge=0, description="Up to this many seconds more, drawn at random for each job."
    )
    credits: float = Field(
        default=1000.0,
        ge=0,
        description="The account's balance; setting it while the simulator runs replaces the balance.",
    )
    cost: float = Field(default=10.0, ge=0, description="Credits a job costs, charged when it is accepted.")
    submissions_per_10_seconds: int = Field(
        default=20, ge=0, description="kie.ai: accepted submissions in any 10 seconds; 429 above that."
    )
    max_running: int = Field(default=100, ge=0, description="kie.ai: jobs running at once; 429 above that.")
    status_calls_per_second: int = Field(default=10, ge=0, description="Status calls in any second; 429 above that.")
    requests_per_minute: int = Field(
        default=30,
        ge=0,
        description="Luma's own API: requests in any minute, without status calls of generations; 429 above that.",
    )
    jobs_at_a_time: int = Field(default=10, ge=0, description="Luma's own API: jobs running at once; 429 above that.")
    refusal_style: Literal["status", "body", "alternate"] = Field(
        default="alternate",
        description="kie.ai: refuse by HTTP status, by HTTP 200 with the code in the body, or alternately (HTTP status "
        "first).",
    )
    retry_after: float | None = Field(
        default=None,
        ge=0,
        description="kie.ai: seconds in the Retry-After header of a 429 by HTTP status; no header if unset.",
    )
    result_ttl: float = Field(
        default=14 * DAY, ge=0, description="Seconds a result file is kept after its job has ended."
    )
    record_ttl: float = Field(default=60 * DAY, ge=0, description="Seconds a task's record is kept after its creation.")
    result_url_ttl: float = Field(
        default=3600.0, ge=0, description="Luma's own API: seconds the presigned URL of a result works."
    )
    queued_seconds: float = Field(
        default=0.5, ge=0, description="Luma's own API: seconds at the start of a job during which its state is queued."
    )
    job_time_limit: float = Field(
        default=3600.0,
        ge=0,
        description="Luma's own API: a job that still runs after this many seconds fails with generation_failed.",
    )
    upload_url_ttl: float = Field(
        default=3600.0, ge=0, description="Luma's own API: seconds the presigned URL of an upload works."
    )
    ingest_seconds: float = Field(
        default=0.5, ge=0, description="Luma's own API: seconds until a completed file is ready, or has failed."
    )
    ingest_failure: str | None = Field(
        default=None, min_length=1, description="Luma's own API: every file fails at ingest with this failure_reason."
    )
    upload_ttl: float = Field(default=3 * DAY, ge=0, description="kie.ai: seconds an uploaded file is kept.")
    upload_answer: Literal["file_name", "file_id"] = Field(
        default="file_name",
        description="kie.ai: what the response to an upload holds: fileName, filePath and fileSize, or fileId, fileUrl "
        "and expiresAt.",
    )
    download_url_ttl: float = Field(default=1200.0, ge=0, description="kie.ai: seconds a temporary download URL works.")
    fetch_timeout: float = Field(default=20.0, gt=0, description="Seconds allowed for downloading an input video.")
    outcome: Literal["success", "create_failed", "generate_failed", "callback_failed", "no_urls"] = Field(
        default="success",
        description="How jobs end. kie.ai: flag 1, 2, 3, 4 (with the video available), or flag 1 without any URL. "
        "Luma's own API: completed, failed, failed, completed, or completed without output.",
    )
    error_code: int | None = Field(
        default=None,
        description="kie.ai: errorCode of failed jobs; if unset, 500 for create_failed and 501 for generate_failed.",
    )
    failure_code: Literal[
        "generation_failed",
        "content_moderated",
        "output_not_found",
        "budget_exhausted",
        "rate_limited",
        "image_too_large",
        "unsupported_format",
        "corrupt_input",
        "invalid_request",
    ] = Field(default="generation_failed", description="Luma's own API: failure_code of failed jobs.")
    error_message: str = Field(
        default="This failure is simulated.", description="errorMessage or failure_reason of failed jobs."
    )
    webhook_secret: str | None = Field(
        default=None, min_length=1, repr=False, description="kie.ai: sign callbacks with this key; unsigned if unset."
    )
    callback_copies: int = Field(
        default=1, ge=0, description="kie.ai: how many times a callback is delivered; 0 drops it silently."
    )
    callback_delay: float = Field(
        default=0.0, ge=0, description="kie.ai: seconds between a job's end and its callback."
    )
    callback_early: bool = Field(
        default=False,
        description="kie.ai: send the response to a submission with a callback URL only after the first attempt at the "
        "callback.",
    )
    callback_timeout: float = Field(
        default=15.0, gt=0, description="kie.ai: seconds within which the receiver of a callback must answer 200."
    )
    callback_tries: int = Field(
        default=3, ge=1, description="kie.ai: consecutive failed attempts after which a callback is given up."
    )
    callback_retry_seconds: float = Field(
        default=1.0, ge=0, description="kie.ai: seconds between two attempts at a callback."
    )
    seed: int | None = Field(
        default=None, description="Seed that makes task ids and jitter repeatable; random if unset."
    )
    faults: list[Fault] = Field(default_factory=list, description="Faults to inject.")

    def changed(self, changes: dict[str, Any]) -> Settings:
        """
        Return a validated copy with these changes.

        :raises pydantic.ValidationError: if a change is invalid
        """
        return Settings.model_validate({**dict(self), **changes})

    def public(self) -> dict[str, Any]:
        """Return all settings except the secrets, as JSON values."""
        return self.model_dump(mode="json", exclude=SECRET_FIELDS)

# SPDX-License-Identifier: Apache-2.0
"""Everything about the simulator that can be set, once: the command line and the control endpoint are made from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .faults import Fault

DAY = 86400.0
SECRETS = {"api_key", "webhook_secret"}


class Settings(BaseModel):
    """How the service behaves. All of it can be changed while it runs; jobs keep what held when they were accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str = Field(default="simulator-key", min_length=1, repr=False, description="The only key it accepts.")
    public_url: str | None = Field(
        default=None, description="Base of the URLs it hands out; the address it listens on if unset."
    )
    processing_seconds: float = Field(default=5.0, ge=0, description="How long a job takes.")
    processing_jitter: float = Field(default=0.0, ge=0, description="Up to that many seconds more, drawn for each job.")
    credits: float = Field(default=1000.0, ge=0, description="The account's balance; setting it again tops it up.")
    cost: float = Field(default=10.0, ge=0, description="Credits one job costs, taken when it is accepted.")
    submissions_per_10_seconds: int = Field(
        default=20, ge=0, description="Accepted submissions in any 10 seconds; then 429."
    )
    max_running: int = Field(default=100, ge=0, description="Jobs running at once; then 429.")
    status_calls_per_second: int = Field(default=10, ge=0, description="Status calls in any second; then 429.")
    refusal_style: Literal["status", "body", "alternate"] = Field(
        default="alternate",
        description="Refuse by HTTP status, by HTTP 200 with the code in the body, or by turns (HTTP status first).",
    )
    retry_after: float | None = Field(
        default=None, ge=0, description="Seconds for a Retry-After header on 429 (by HTTP status only); none if unset."
    )
    result_ttl: float = Field(
        default=14 * DAY, ge=0, description="Seconds a result file is kept after its job has ended."
    )
    record_ttl: float = Field(default=60 * DAY, ge=0, description="Seconds a task is remembered after its creation.")
    upload_ttl: float = Field(default=3 * DAY, ge=0, description="Seconds an uploaded file is kept.")
    download_url_ttl: float = Field(default=1200.0, ge=0, description="Seconds a temporary download URL works.")
    fetch_timeout: float = Field(default=20.0, gt=0, description="Seconds the service tries to fetch an input video.")
    outcome: Literal["success", "create_failed", "generate_failed", "callback_failed", "no_urls"] = Field(
        default="success",
        description="How jobs end: flag 1, 2, 3, 4 (the video is there all the same), or flag 1 without any URL.",
    )
    error_code: int | None = Field(
        default=None, description="errorCode of failed jobs; 500 or 501, as it fits, if unset."
    )
    error_message: str = Field(default="The simulator was told to fail.", description="errorMessage of failed jobs.")
    webhook_secret: str | None = Field(
        default=None, min_length=1, repr=False, description="Sign callbacks with this key; unsigned if unset."
    )
    callback_copies: int = Field(default=1, ge=0, description="How often a callback is delivered; 0 drops it silently.")
    callback_delay: float = Field(default=0.0, ge=0, description="Seconds between a job's end and its callback.")
    callback_early: bool = Field(
        default=False, description="Hold the answer to a submit with a callback URL back until the callback was tried."
    )
    callback_timeout: float = Field(
        default=15.0, gt=0, description="Seconds the receiver of a callback has to answer 200."
    )
    callback_tries: int = Field(default=3, ge=1, description="Tries in a row before a callback is given up.")
    callback_retry_seconds: float = Field(default=1.0, ge=0, description="Seconds between two tries of a callback.")
    seed: int | None = Field(default=None, description="Makes task ids and jitter repeatable; random if unset.")
    faults: list[Fault] = Field(default_factory=list, description="What goes wrong on purpose.")

    def changed(self, changes: dict[str, Any]) -> Settings:
        """Return a copy with these changes, all of it validated again."""
        return Settings.model_validate({**dict(self), **changes})

    def public(self) -> dict[str, Any]:
        """Return what may be shown: all but the secrets."""
        return self.model_dump(mode="json", exclude=SECRETS)

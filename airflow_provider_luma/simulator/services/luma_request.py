# SPDX-License-Identifier: Apache-2.0
"""Request bodies of Luma's own API. Where the documentation is unclear, they are checked by its strictest reading."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..inputs import is_http_url, is_loopback_url
from ..service import Refusal

MAX_FILE_BYTES = 5 * 1024**3

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Body(BaseModel):
    """A JSON object. An optional field is None if omitted; parse() has already refused null."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reference(_Body):
    """A reference to an image or a video, in one of four forms."""

    url: str | None = None
    file_id: str | None = None
    generation_id: str | None = None
    data: str | None = Field(default=None, repr=False)
    media_type: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _require_one(self, "url", "file_id", "generation_id", "data")
        if self.url is not None and not _is_public_url(self.url):
            raise ValueError("url must be an https URL")
        if self.data is not None and self.media_type is None:
            raise ValueError("media_type is required with data")
        if self.media_type is not None and self.url is None and self.data is None:
            raise ValueError("media_type is for url and data only")
        return self

    def decoded(self) -> bytes:
        """Return the content of ``data``; Refusal 422 if it is not base64."""
        try:
            return base64.b64decode(self.data or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refusal(422, "data is not base64.") from error


class Source(Reference):
    """The video to edit."""

    @model_validator(mode="after")
    def _is_video(self) -> Self:
        if (self.url is not None or self.data is not None) and not (self.media_type or "").startswith("video/"):
            raise ValueError("media_type must be video/*")
        return self


class Keyframe(Reference):
    """An image that guides the edit at one frame."""

    @model_validator(mode="after")
    def _is_picture(self) -> Self:
        if self.media_type is not None and not self.media_type.startswith("image/"):
            raise ValueError("media_type must be image/*")
        return self


class _Pose(_Body):
    enabled: bool | None = None
    strength: Literal["precise", "coarse"] | None = None


class _Depth(_Body):
    enabled: bool | None = None
    blur: Fraction | None = None


class _Normals(_Body):
    enabled: bool | None = None
    augmentation: Fraction | None = None


class _Face(_Body):
    enabled: bool | None = None


class _Trajectory(_Body):
    enabled: bool | None = None
    sparsity: Fraction | None = None


class _Controls(_Body):
    pose: _Pose | None = None
    depth: _Depth | None = None
    normals: _Normals | None = None
    face: _Face | None = None
    trajectory: _Trajectory | None = None


class _Edit(_Body):
    auto_controls: Literal[True] | None = None
    strength: (
        Literal[
            "adhere_1", "adhere_2", "adhere_3",
            "flex_1", "flex_2", "flex_3",
            "reimagine_1", "reimagine_2", "reimagine_3",
        ] | None
    ) = None  # fmt: skip
    controls: _Controls | None = None
    keyframes: list[Keyframe] = Field(default=[], max_length=64)
    keyframe_indexes: list[Annotated[int, Field(ge=0)]] = Field(default=[], max_length=64)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        _require_one(self, "auto_controls", "strength", "controls")
        if len(self.keyframes) != len(self.keyframe_indexes):
            raise ValueError("keyframes and keyframe_indexes must be equal in number")
        if len(set(self.keyframe_indexes)) != len(self.keyframe_indexes):
            raise ValueError("keyframe_indexes must be unique")
        return self


class _Video(_Body):
    edit: _Edit
    resolution: Literal["360p", "540p", "720p", "1080p"] = "720p"
    hdr: bool = False
    exr_export: bool = False

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.hdr and self.resolution not in ("720p", "1080p"):
            raise ValueError("hdr needs the resolution 720p or 1080p")
        if self.exr_export and not self.hdr:
            raise ValueError("exr_export needs hdr")
        return self


class GenerationRequest(_Body):
    """The body of a submission."""

    model: Literal["ray-3.2"]
    type: Literal["video_edit"]
    prompt: str = Field(min_length=1, max_length=6000)
    source: Source
    video: _Video
    user_id: str | None = Field(default=None, min_length=1)


class FileRequest(_Body):
    """The body that registers a file."""

    mime_type: str = Field(pattern=r"^(video|image)/[\w.+-]+$")
    size_bytes: int = Field(ge=1, le=MAX_FILE_BYTES)
    purpose: Literal["input", "reference"] = "input"
    filename: str | None = Field(default=None, min_length=1)
    expires_at: str | None = None
    user_id: str | None = Field(default=None, min_length=1)

    @field_validator("expires_at")
    @classmethod
    def _is_in_the_future(cls, value: str | None) -> str | None:
        if value is not None and seconds_of(value) <= datetime.now(UTC).timestamp():
            raise ValueError("expires_at must be in the future")
        return value


Body = TypeVar("Body", bound=_Body)


def parse(kind: type[Body], content: Any) -> Body:
    """Return the validated body of a request; Refusal 422 that lists every problem with its location."""
    if problems := _nulls(content):
        raise Refusal(422, problems)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refusal(422, [{**problem, "loc": ["body", *problem["loc"]]} for problem in found]) from error


def seconds_of(text: str) -> float:
    """Convert an ISO 8601 time with a time zone to seconds of the Unix epoch; ValueError for anything else."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("the time zone is missing")
    return time.timestamp()


def _require_one(body: BaseModel, *names: str) -> None:
    if sum(getattr(body, name) is not None for name in names) != 1:
        raise ValueError(f"exactly one of {', '.join(names)} is required")


def _nulls(content: Any) -> list[dict[str, Any]]:
    """Return a problem for each null, at any depth."""
    problems = []
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), content)]
    while pending:
        place, value = pending.pop()
        if value is None:
            problems.append({"type": "null", "loc": ["body", *place], "msg": "null is not allowed: omit the field"})
        elif isinstance(value, dict):
            pending += [((*place, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [((*place, index), inner) for index, inner in enumerate(value)]
    return problems


def _is_public_url(url: str) -> bool:
    """Whether the service accepts this URL: https, or http on this machine, which stands in for the public web."""
    return is_http_url(url) and (url.startswith("https://") or is_loopback_url(url))

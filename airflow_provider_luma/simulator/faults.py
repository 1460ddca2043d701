# SPDX-License-Identifier: Apache-2.0
"""
Fault injection rules: the kinds of fault, their text form, and the schedule that selects the calls they hit.

The text form is ``ON:KIND[,NAME=VALUE...]``, for instance ``status:html,every=5`` or
``submit:refuse,code=429,times=2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

On = Literal[
    "submit",
    "status",
    "credit",
    "download_url",
    "upload",
    "file",
    "file_create",
    "file_complete",
    "file_status",
    "file_list",
    "file_delete",
]
Kind = Literal[
    "refuse",
    "html",
    "edge_block",
    "empty",
    "redirect",
    "truncated",
    "cut",
    "cut_body",
    "hang",
    "null_data",
    "wrong_data",
    "unknown_flag",
    "response_string",
    "hostile_text",
    "no_range",
    "wrong_length",
]
Style = Literal["status", "body"]

#: Kinds that replace the response.
REPLACING = ("refuse", "html", "edge_block", "empty", "redirect", "cut")

_JSON_OPERATIONS = {*get_args(On)} - {"file", "file_delete"}
#: Operations with an effect: with after_accept, it takes place before the fault.
_CHANGING = ("submit", "upload", "file_create", "file_complete", "file_delete")

#: Kinds that are valid for some operations only; all others are valid for every operation.
_VALID_OPERATIONS: dict[str, set[str]] = {
    "unknown_flag": {"status"},
    "response_string": {"status"},
    "hostile_text": {"status"},
    "no_range": {"file"},
    "null_data": _JSON_OPERATIONS,
    "wrong_data": _JSON_OPERATIONS,
}


class Fault(BaseModel):
    """A kind of fault, the operation it is injected into, and which calls of that operation it hits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: On = Field(
        description="The operation it is injected into; file means result files and temporary download URLs, upload "
        "also the PUT to a presigned URL, and file_create to file_delete are the other calls of Luma's Files API."
    )
    kind: Kind = Field(description="The kind of fault.")
    code: int | None = Field(
        default=None,
        ge=100,
        le=599,
        description="refuse: the refusal's code; html, redirect, empty: the HTTP status (500, 303, 200 if unset).",
    )
    style: Style | None = Field(
        default=None, description="refuse: by HTTP status or in the body; the refusal_style setting if unset."
    )
    retry_after: float | None = Field(default=None, ge=0, description="refuse: seconds in a Retry-After header.")
    message: str | None = Field(default=None, description="refuse: the reason, without a comma in the text form.")
    limit: Literal["jobs", "requests"] = Field(
        default="jobs",
        description="refuse with code=429 on Luma's own API: by the limit of jobs at a time (Retry-After: 60), or of "
        "requests a minute (X-RateLimit headers).",
    )
    seconds: float = Field(default=30.0, ge=0, description="hang: seconds before the normal response.")
    flag: int = Field(default=9, description="unknown_flag: the successFlag to send; state_N on Luma's API.")
    every: int = Field(default=1, ge=1, description="Hit each n-th matching call.")
    skip: int = Field(default=0, ge=0, description="Do not hit the first k matching calls.")
    times: int | None = Field(default=None, ge=0, description="Hit at most this many calls.")
    after_accept: bool = Field(
        default=False,
        description="submit: the job is accepted and billed first, then the fault hits the response; "
        "upload: the file is stored first; file_create, file_complete, file_delete: likewise.",
    )
    after_bytes: int | None = Field(
        default=None,
        ge=0,
        description="refuse, html, edge_block, empty, redirect, cut, hang: hit when this many bytes of the request's "
        "body have arrived; if unset, when all of it has.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _parse(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_combination(self) -> Fault:
        allowed = _VALID_OPERATIONS.get(self.kind)
        if allowed is not None and self.on not in allowed:
            raise ValueError(f"{self.kind} cannot happen on {self.on}, only on {', '.join(sorted(allowed))}")
        if self.kind == "refuse" and self.code is None:
            raise ValueError("refuse needs code=N, for instance code=429")
        if self.after_accept and self.on not in _CHANGING:
            raise ValueError(f"after_accept is for {', '.join(_CHANGING)} only")
        if self.after_bytes is not None and (self.after_accept or self.kind not in (*REPLACING, "hang")):
            raise ValueError(f"after_bytes is for {', '.join(REPLACING)} and hang only, without after_accept")
        return self

    @property
    def before_acceptance(self) -> bool:
        """Whether the fault hits a submission before it is accepted: no job may be created."""
        return self.on == "submit" and not self.after_accept


def _parse(text: str) -> dict[str, Any]:
    """Split the text form into fields, whose values the model validates; ValueError if it cannot be split."""
    head, *pairs = (part.strip() for part in text.split(","))
    on, colon, kind = head.partition(":")
    if not (on and colon and kind):
        raise ValueError(f"{text!r} is not of the form ON:KIND[,NAME=VALUE...], for instance status:html,every=5")
    fields: dict[str, Any] = {"on": on.strip(), "kind": kind.strip()}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in Fault.model_fields or name in fields:
            raise ValueError(f"{text!r}: {name!r} is unknown or given twice")
        if not equals and name != "after_accept":
            raise ValueError(f"{text!r}: {name} needs a value, {name}=...")
        fields[name] = value if equals else True
    return fields


class FaultSchedule:
    """Selects by counting which fault hits a call, so the same sequence of calls always gets the same faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = faults
        self._matches = [0] * len(faults)
        self._hits = [0] * len(faults)

    def next(self, on: str) -> Fault | None:
        """Count one call of an operation and return the fault that hits it, the first in the list if several match."""
        chosen: Fault | None = None
        for index, fault in enumerate(self._faults):
            if fault.on != on:
                continue
            self._matches[index] += 1
            position = self._matches[index] - fault.skip
            exhausted = fault.times is not None and self._hits[index] >= fault.times
            if chosen is None and not exhausted and position > 0 and position % fault.every == 0:
                self._hits[index] += 1
                chosen = fault
        return chosen

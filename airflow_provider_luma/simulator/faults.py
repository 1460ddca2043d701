# SPDX-License-Identifier: Apache-2.0
"""
Faults: what may go wrong on purpose, on which calls, and which calls it hits.

A fault is written ``ON:KIND[,NAME=VALUE...]``, for instance ``status:html,every=5`` or
``submit:refuse,code=429,times=2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

On = Literal["submit", "status", "credit", "download_url", "file"]
Kind = Literal[
    "refuse",
    "html",
    "empty",
    "truncated",
    "cut",
    "cut_body",
    "hang",
    "null_data",
    "wrong_data",
    "unknown_flag",
    "response_string",
    "no_range",
    "wrong_length",
]
Style = Literal["status", "body"]

#: Kinds that make sense on some calls only; all others fit every call.
_ONLY_ON: dict[str, set[str]] = {
    "unknown_flag": {"status"},
    "response_string": {"status"},
    "no_range": {"file"},
    "null_data": {"submit", "status", "credit", "download_url"},
    "wrong_data": {"submit", "status", "credit", "download_url"},
}


class Fault(BaseModel):
    """One thing that goes wrong, and for which calls."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: On = Field(description="The call it happens to; file means result files and temporary download URLs.")
    kind: Kind = Field(description="What happens.")
    code: int | None = Field(
        default=None, ge=100, le=599, description="refuse: the refusal's code; html: the HTTP status (500 unless told)."
    )
    style: Style | None = Field(default=None, description="refuse: by HTTP status or in the body; as set if unset.")
    retry_after: float | None = Field(default=None, ge=0, description="refuse: seconds in a Retry-After header.")
    seconds: float = Field(default=30.0, ge=0, description="hang: how long before the normal answer.")
    flag: int = Field(default=9, description="unknown_flag: the successFlag to show.")
    every: int = Field(default=1, ge=1, description="Hit each n-th matching call.")
    skip: int = Field(default=0, ge=0, description="Leave the first k matching calls alone.")
    times: int | None = Field(default=None, ge=0, description="Hit that many times at most.")
    after_accept: bool = Field(
        default=False, description="submit: the job is accepted and billed first, then the answer is spoilt."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _parse(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Fault:
        allowed = _ONLY_ON.get(self.kind)
        if allowed is not None and self.on not in allowed:
            raise ValueError(f"{self.kind} cannot happen on {self.on}, only on {', '.join(sorted(allowed))}")
        if self.kind == "refuse" and self.code is None:
            raise ValueError("refuse needs code=N, for instance code=429")
        if self.after_accept and self.on != "submit":
            raise ValueError("after_accept is for submit only")
        return self

    @property
    def before_acceptance(self) -> bool:
        """Whether a submission hit by this fault must leave no job behind."""
        return self.on == "submit" and not self.after_accept


def _parse(text: str) -> dict[str, Any]:
    """Split the written form into fields; the model then judges their values."""
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


class FaultLine:
    """Decides for each call which fault hits it, by counting: the same calls meet the same faults every time."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = faults
        self._seen = [0] * len(faults)
        self._hits = [0] * len(faults)

    def next(self, on: str) -> Fault | None:
        """Count one call and return the fault that hits it, the first in the list if several would."""
        chosen: Fault | None = None
        for index, fault in enumerate(self._faults):
            if fault.on != on:
                continue
            self._seen[index] += 1
            turn = self._seen[index] - fault.skip
            spent = fault.times is not None and self._hits[index] >= fault.times
            if chosen is None and not spent and turn > 0 and turn % fault.every == 0:
                self._hits[index] += 1
                chosen = fault
        return chosen

# SPDX-License-Identifier: Apache-2.0
"""
Readers of untrusted values: each takes whatever the service sent, and returns a plain value or None.

kie.ai sends some numbers as strings and some objects as JSON in a string, so no value is trusted to have its
documented type. A plain value is one that every later serialiser accepts (msgpack, strict UTF-8, PostgreSQL): half an
emoji in a trigger's event would crash the triggerer, and so end the wait for every other job.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

#: Maximum nesting of lists and objects; anything deeper counts as absent. The service itself nests three levels deep.
MAX_DEPTH = 16

_UNSTORABLE = "[\x00\ud800-\udfff]"


def plain_text(text: str) -> str:
    """Return the text with lone surrogates and NULs replaced by U+FFFD."""
    return text if text.isascii() and "\x00" not in text else re.sub(_UNSTORABLE, "\ufffd", text)


def read_json(document: str | bytes) -> Any:
    """Read JSON as plain values; None if invalid. Numbers that are not finite, or exceed 64 bits, count as absent."""
    try:
        if isinstance(document, bytes):
            document = document.decode(json.detect_encoding(document), "surrogatepass")
        value = _decoder.decode(document)
        return value if _is_plain(document) else _plain(value, MAX_DEPTH)
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> int | None:
    return read_integer(int(digits)) if len(digits) <= 20 else None  # int() rejects thousands of digits


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


# Shared, because json.loads creates a new decoder for each document.
_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=lambda _: None)


def _is_plain(document: str) -> bool:
    """Return whether the JSON text alone shows that its strings and depth are harmless, as in nearly all responses."""
    return document.isascii() and "\\u" not in document and document.count("[") + document.count("{") <= MAX_DEPTH


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, (list, dict)) and not depth:
        return None
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {plain_text(key): _plain(item, depth - 1) for key, item in value.items()}
    return value


def read_integer(value: object) -> int | None:
    """Read a 64-bit integer, which may also be written as a string."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    return None


def read_object(value: object) -> Mapping[str, Any]:
    """Read an object, which kie.ai also sends as JSON in a string; an empty one if it is anything else."""
    if isinstance(value, str):
        value = read_json(value)
    return value if isinstance(value, dict) else {}


def read_strings(value: object) -> tuple[str, ...]:
    """Read a list of strings, or a single string; anything else in the list is left out."""
    if isinstance(value, str):
        value = [value]
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list) else ()


def read_text(value: object) -> str | None:
    """Read a string; None if it is anything else."""
    return value if isinstance(value, str) else None


def read_time(value: object) -> datetime | None:
    """Read milliseconds since the epoch as a UTC time; times out of range count as absent."""
    milliseconds = read_integer(value)
    if not milliseconds:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def read_retry_after(header: str | None, now: datetime) -> float | None:
    """
    Read a Retry-After header: a number of seconds, or the date until which to wait (RFC 9110, 10.2.3).

    :param now: when the response arrived
    :returns: seconds to wait from then on; None without a readable header
    """
    if header is None:
        return None
    header = header.strip()  # strips more than float() does, such as control characters
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header, re.ASCII):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())

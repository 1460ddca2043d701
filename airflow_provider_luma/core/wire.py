# SPDX-License-Identifier: Apache-2.0
"""
Readers of untrusted values: each takes whatever the service has sent, and returns a plain value or none.

The service writes some numbers as strings and some objects as JSON in a string, and nothing it sends is relied on
to have the documented type. A plain value is one that every serialiser behind this takes (msgpack, strict UTF-8,
PostgreSQL): half an emoji in a trigger's event would end the triggerer, and with it the wait of every other job.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

#: Levels of lists and objects that are read; what lies deeper counts as absent. The service's own answers have three.
MAX_DEPTH = 16

_UNSTORABLE = "[\x00\ud800-\udfff]"


def plain_text(text: str) -> str:
    """Return a text without lone surrogates and NUL, in whose place it has U+FFFD."""
    return text if text.isascii() and "\x00" not in text else re.sub(_UNSTORABLE, "\ufffd", text)


def read_json(document: str | bytes) -> Any:
    """Read JSON as plain values; None if it is none. A number that is not finite or beyond 64 bits counts as absent."""
    try:
        if isinstance(document, bytes):
            document = document.decode(json.detect_encoding(document), "surrogatepass")
        value = _decoder.decode(document)
        return value if _is_plain(document) else _plain(value, MAX_DEPTH)
    except (ValueError, RecursionError):
        return None


def _integer(digits: str) -> int | None:
    return read_integer(int(digits)) if len(digits) <= 20 else None  # int() refuses a few thousand digits


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


# One for all: json.loads makes a new one for each document.
_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=lambda _: None)


def _is_plain(document: str) -> bool:
    """Tell from the JSON itself that its texts and its depth are harmless, as those of nearly all answers are."""
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
    """Read an integer of 64 bits, which the service may also write as a string."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    return None


def read_object(value: object) -> Mapping[str, Any]:
    """Read an object, which sibling endpoints of the service write as JSON in a string; empty if it is none."""
    if isinstance(value, str):
        value = read_json(value)
    return value if isinstance(value, dict) else {}


def read_strings(value: object) -> tuple[str, ...]:
    """Read a list of texts, or a single text; whatever else the list holds is left out."""
    if isinstance(value, str):
        value = [value]
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list) else ()


def read_text(value: object) -> str | None:
    """Read a text."""
    return value if isinstance(value, str) else None


def read_time(value: object) -> datetime | None:
    """Read milliseconds since the epoch as a UTC time; one that no calendar holds counts as absent."""
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

    :param now: when it came
    :returns: seconds from then on; None without a readable header
    """
    if header is None:
        return None
    header = header.strip()  # of more than float() strips, such as control characters
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header, re.ASCII):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())

# SPDX-License-Identifier: Apache-2.0
"""What the services share: the check of options, excerpts of responses, and the error for redirects."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping

from airflow_provider_luma.core.job import Response
from airflow_provider_luma.core.wire import MAX_DEPTH, plain_text, read_integer
from airflow_provider_luma.exceptions import LumaUnavailableError, LumaValidationError


def check_options(options: object, *, reserved: Mapping[str, str]) -> None:
    """
    Check further fields of a service's request.

    :param reserved: the fields that must not be set here, each with the parameter that sets it instead
    :raises LumaValidationError: they are not JSON values, hold null, or set a reserved field
    """
    if options is None:
        return
    if not isinstance(options, dict) or not _is_json(options, MAX_DEPTH):
        raise LumaValidationError(
            None,
            f"options is {_shown(options)}: give a dict of JSON values, nested at most {MAX_DEPTH} deep, without None, "
            "without integers beyond 64 bits, and without names that begin with __; leave out fields you do not need",
        )
    for name, parameter in reserved.items():
        if name in options:
            raise LumaValidationError(None, f"options sets {name!r}: use the parameter {parameter} instead")


def _is_json(value: object, depth: int) -> bool:
    """Return whether a value is JSON that a deferral can carry: the task defers only after the job is paid for."""
    if isinstance(value, (dict, list)) and not depth:
        return False
    if isinstance(value, dict):
        # Airflow's serializer reserves such names.
        names_are_plain = all(isinstance(name, str) and not name.startswith("__") for name in value)
        return names_are_plain and all(_is_json(part, depth - 1) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(_is_json(item, depth - 1) for item in value)
    if isinstance(value, str):
        return plain_text(value) == value
    if isinstance(value, bool):
        return True
    return (
        read_integer(value) is not None if isinstance(value, int) else isinstance(value, float) and math.isfinite(value)
    )


def _shown(options: object) -> str:
    try:
        return reprlib.repr(options)
    except (ValueError, RecursionError):
        return f"a {type(options).__name__}"


def excerpt(response: Response) -> str:
    """Return the start of a response's body, for a message."""
    text = " ".join(response.body[:300].decode("utf-8", "replace").split())
    return repr(text[:150]) if text else "empty body"


def redirected(response: Response) -> LumaUnavailableError:
    """Return the error for a redirect that was not followed."""
    return LumaUnavailableError(
        None,
        f"the connection's address redirects (HTTP {response.http_status}) to {response.location!r}: set the "
        "connection's Host to the service's own address, or set allow_redirects in its extra",
    )

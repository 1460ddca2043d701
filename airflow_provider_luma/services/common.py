# SPDX-License-Identifier: Apache-2.0
"""What several services share: the check of options, and words for responses that say nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

from airflow_provider_luma.core.job import Response
from airflow_provider_luma.core.wire import plain_text
from airflow_provider_luma.exceptions import LumaUnavailableError, LumaValidationError


def check_options(options: object, *, reserved: Mapping[str, str]) -> None:
    """
    Check further fields of a service's request.

    :param reserved: the fields that parameters of their own set, and these parameters
    :raises LumaValidationError: they are not JSON values, hold null, or set a reserved field
    """
    if options is None:
        return
    if not isinstance(options, dict) or not _is_json(options):
        raise LumaValidationError(
            None, f"options is {options!r}: give a dict of JSON values without None; leave unwanted fields out"
        )
    for name, parameter in reserved.items():
        if name in options:
            raise LumaValidationError(None, f"options sets {name!r}: use the parameter {parameter} instead")


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(name) and _is_json(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, str):
        return plain_text(value) == value
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def excerpt(response: Response) -> str:
    """Return the start of a response's body, for a message."""
    text = " ".join(response.body[:300].decode("utf-8", "replace").split())
    return repr(text[:150]) if text else "an empty body"


def redirected(response: Response) -> LumaUnavailableError:
    """Return the error for a redirect that was not followed."""
    return LumaUnavailableError(
        None,
        f"the address in the connection redirects (HTTP {response.http_status}) to {response.location!r}: put the "
        "service's own address into its Host, or set allow_redirects in its extra",
    )

# SPDX-License-Identifier: Apache-2.0
"""The envelope every answer comes in, and the two ways in which the service refuses."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from .service import Refusal, Service


def success(request: Request, data: Any, **beside: Any) -> JSONResponse:
    """Answer well, with anything an endpoint puts beside the code."""
    note_code(request, 200)
    return JSONResponse({"code": 200, "msg": "success", "data": data, **beside})


def refusal(service: Service, refused: Refusal) -> JSONResponse:
    """Refuse by HTTP status, or by HTTP 200 with the code in the body."""
    style = refused.style or service.next_refusal_style()
    headers = {}
    if style == "status":
        retry_after = refused.retry_after
        if retry_after is None and refused.code == 429:
            retry_after = service.settings.retry_after
        if retry_after is not None:
            headers["Retry-After"] = f"{retry_after:g}"
    body = {"code": refused.code, "msg": refused.msg, "data": None}
    return JSONResponse(body, status_code=refused.code if style == "status" else 200, headers=headers)


def note_code(request: Request, code: int) -> None:
    """Write the code of the answer into the journal, if the call is in the journal."""
    call = getattr(request.state, "call", None)
    if call is not None:
        call.code = code

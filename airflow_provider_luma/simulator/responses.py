# SPDX-License-Identifier: Apache-2.0
"""HTTP responses in the service's JSON envelope: success, and refusal in either of its two styles."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

from .service import Refusal, Service

UPLOAD_PATHS = ("/api/file-stream-upload", "/api/file-url-upload")

_EDGE_PAGE = (
    "<!DOCTYPE html><html><head><title>{code}</title></head>"
    "<body><center><h1>{code}</h1></center><hr><center>edge</center></body></html>"
)


class EnvelopeResponse(JSONResponse):
    """JSON as the service writes it: whatever characters were put in come back, half an emoji as an escape."""

    def render(self, content: Any) -> bytes:
        """Write the body."""
        return json.dumps(content).encode()


def success_response(request: Request, data: Any, **extra_fields: Any) -> JSONResponse:
    """Build a success envelope around the data; extra fields appear at its top level, next to ``code``."""
    record_code(request, 200)
    return EnvelopeResponse({"code": 200, "msg": "success", "data": data, **extra_fields})


def refusal_response(service: Service, refusal: Refusal, path: str) -> JSONResponse:
    """
    Build the response to a refused call: by HTTP status, or as HTTP 200 with the code in the body.

    :param path: of the request; the endpoints for uploads also say ``success``
    """
    style = refusal.style or service.next_refusal_style()
    headers = {}
    if style == "status":
        retry_after = refusal.retry_after
        if retry_after is None and refusal.code == 429:
            retry_after = service.settings.retry_after
        if retry_after is not None:
            headers["Retry-After"] = f"{retry_after:g}"
    body = {"code": refusal.code, "msg": refusal.msg, "data": None}
    if path in UPLOAD_PATHS:
        body["success"] = False
    return EnvelopeResponse(body, status_code=refusal.code if style == "status" else 200, headers=headers)


def edge_response(code: int) -> HTMLResponse:
    """Build the page with which an edge in front of the service answers by itself."""
    return HTMLResponse(_EDGE_PAGE.format(code=code), status_code=code)


def edge_block_response() -> PlainTextResponse:
    """Build the answer with which an edge refuses an unusual client; it passes nothing on."""
    return PlainTextResponse("error code: 1010", status_code=403)


def record_code(request: Request, code: int) -> None:
    """Record the envelope's code in the journal, if the journal has an entry for this request."""
    call = getattr(request.state, "call", None)
    if call is not None:
        call.code = code

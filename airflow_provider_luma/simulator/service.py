# SPDX-License-Identifier: Apache-2.0
"""Base class of the simulated services: what the application, the fault middleware and the account use of each."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

if TYPE_CHECKING:
    from .account import Account, Job
    from .faults import Fault
    from .job_runner import JobRunner
    from .settings import Settings

ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]

#: Half an emoji and a NUL: valid in JSON, refused by databases and most serialisers.
HOSTILE_TEXT = "The model \ud83d said \x00 no"

_EDGE_PAGE = (
    "<!DOCTYPE html><html><head><title>{code}</title></head>"
    "<body><center><h1>{code}</h1></center><hr><center>edge</center></body></html>"
)


class Refusal(Exception):
    """
    The service refuses a call.

    :param msg: the reason; a list where the service lists several
    :param style: kie.ai only: ``status`` or ``body``; None for the style in the settings
    :param retry_after: seconds for a Retry-After header; None for the service's own rule
    :param headers: further headers of the response
    """

    def __init__(
        self,
        code: int,
        msg: Any,
        *,
        style: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, msg)
        self.code = code
        self.msg = msg
        self.style = style
        self.retry_after = retry_after
        self.headers = headers or {}


class Service:
    """
    One simulated service: its routes, and the form of responses that the rest of the simulator triggers.

    A subclass defines ``name`` and ``router``, and every method that raises NotImplementedError here.
    """

    name: ClassVar[str]
    router: APIRouter
    #: Set when the server starts.
    runner: JobRunner

    def __init__(self, account: Account) -> None:
        self._account = account
        self.reset()

    def reset(self) -> None:
        """Delete the service's own state; the account deletes the rest."""

    def operation_of(self, method: str, path: str) -> str | None:
        """Return the operation as faults and journal name it; None if the path does not belong to this service."""
        raise NotImplementedError

    def task_id_of(self, path: str, query: Mapping[str, str]) -> str | None:
        """Return the id of the job that a call is about; None if it names none."""
        raise NotImplementedError

    def refusal_response(self, request: Request, refusal: Refusal) -> Response:
        """Build the response to a refused call."""
        raise NotImplementedError

    def refusal_of_fault(self, fault: Fault) -> Refusal:
        """Return the refusal for a fault of the kind ``refuse``."""
        msg = "This refusal is simulated." if fault.message is None else fault.message
        return Refusal(fault.code or 500, msg, style=fault.style, retry_after=fault.retry_after)

    def corrupt(self, fault: Fault, content: Any) -> Any:
        """Return the decoded body of a response, corrupted as the fault specifies."""
        raise NotImplementedError

    def result_url(self, job: Job) -> str:
        """Return the address of a job's result, for Job.result_urls."""
        raise NotImplementedError

    def link(self, job: Job) -> str | None:
        """Return an address of a job's result that a browser can open now; None if there is no result."""
        return job.result_urls[0] if job.result_urls else None

    def expire_urls(self) -> None:
        """Expire all presigned URLs issued so far, if the service has any."""

    def record_failure(self, job: Job, reason: str | None, settings: Settings) -> None:
        """
        Write the service's own fields of a job that has failed.

        :param reason: why it failed; None if that is its configured outcome
        :param settings: what to write if the failure is the configured outcome
        """
        raise NotImplementedError

    async def require_api_key(self, request: Request) -> None:
        """Raise Refusal 401 unless the Authorization header carries the API key."""
        check_api_key(self._account, request)


def check_api_key(account: Account, request: Request) -> None:
    """Raise Refusal 401 unless the Authorization header carries the API key."""
    expected = f"Bearer {account.settings.api_key}"
    if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
        raise Refusal(401, "You do not have access permissions: the API key is missing or wrong.")


async def read_json(request: Request, code: int = 422) -> Any:
    """
    Return the decoded body of a request.

    :param code: of the refusal if the body is not JSON
    """
    try:
        content = json.loads(await request.body())
        # An escape in JSON can decode to a lone surrogate, which no later response could encode as UTF-8.
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        raise Refusal(code, "The body is not JSON.") from error


def is_dry_run(request: Request) -> bool:
    """Whether a fault hits this submission before acceptance: then it is checked, but must not create a job."""
    return getattr(request.state, "dry_run", False)


def record_in_journal(request: Request, **values: Any) -> None:
    """Write fields of the journal's entry for a request; internal requests have no entry."""
    call = getattr(request.state, "call", None)
    for name, value in values.items():
        if call is not None:
            setattr(call, name, value)


class EscapedJSONResponse(JSONResponse):
    """JSON in ASCII, so that a response can contain any character, even half an emoji."""

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return json.dumps(content).encode()


def edge_response(code: int) -> HTMLResponse:
    """Build the page that an edge in front of the service sends by itself."""
    return HTMLResponse(_EDGE_PAGE.format(code=code), status_code=code)


def edge_block_response() -> PlainTextResponse:
    """Build the response of an edge that refuses an unusual client and forwards nothing."""
    return PlainTextResponse("error code: 1010", status_code=403)

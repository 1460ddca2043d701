# SPDX-License-Identifier: Apache-2.0
"""
The gate every call passes: it keeps the journal, and spoils what a fault says should be spoilt.

It stands outside the application (plain ASGI), since a fault may have to act before the service has seen the call,
after the service has answered, or on the connection itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import refusal
from .faults import Fault
from .journal import Call
from .service import Refusal, Service

_KINDS_OF_CALL = {
    "/api/v1/modify/generate": "submit",
    "/api/v1/modify/record-info": "status",
    "/api/v1/chat/credit": "credit",
    "/api/v1/common/download-url": "download_url",
    "/api/file-stream-upload": "upload",
    "/api/file-url-upload": "upload",
}
_KINDS_OF_FILE = {"/files/results/": "file", "/files/temporary/": "file", "/files/": "clip"}
_BROKEN_PAGE = (
    "<!DOCTYPE html><html><head><title>{code}</title></head>"
    "<body><center><h1>{code}</h1></center><hr><center>edge</center></body></html>"
)


def kind_of_call(path: str) -> str | None:
    """Tell what a path asks for; None for what is not part of the service (control, health, the page)."""
    if path in _KINDS_OF_CALL:
        return _KINDS_OF_CALL[path]
    for start, kind in _KINDS_OF_FILE.items():
        if path.startswith(start):
            return kind
    return "other" if path.startswith("/api/") else None


@dataclass(frozen=True)
class Answer:
    """A whole answer, caught before it went out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return one header."""
        return next((value for key, value in self.headers if key == name), None)

    def with_length(self, length: int) -> Answer:
        """Announce another length."""
        others = [(key, value) for key, value in self.headers if key != b"content-length"]
        return replace(self, headers=[*others, (b"content-length", str(length).encode())])

    def with_body(self, body: bytes) -> Answer:
        """Exchange the body, and announce its length."""
        return replace(self, body=body).with_length(len(body))

    def with_json(self, change: Callable[[dict[str, Any]], None]) -> Answer:
        """Change what the envelope holds."""
        content = json.loads(self.body)
        change(content)
        return self.with_body(json.dumps(content).encode())

    async def send(self, send: Send, *, unfinished: bool = False) -> None:
        """Let it go out, as a whole or with more to come."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": unfinished})


class Gate:
    """The ASGI application that uvicorn serves: the real one, watched and sometimes spoilt."""

    def __init__(self, app: ASGIApp, service: Service, own_agent: str, stopping: asyncio.Event) -> None:
        self._app = app
        self._service = service
        self._own_agent = own_agent.encode()
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or have it go wrong."""
        on = kind_of_call(scope["path"]) if scope["type"] == "http" else None
        own = (b"user-agent", self._own_agent) in scope.get("headers", ())
        if on is None or own:
            await self._app(scope, receive, send)
            return
        call = self._open(scope, on)
        scope["state"]["call"] = call
        fault = self._service.next_fault(on)
        noting = _noting(call, send)
        if fault is None:
            await self._app(scope, receive, noting)
        else:
            call.fault = fault.kind
            exchange = _Exchange(self._app, self._service, self._stopping, fault, call, scope, receive, noting)
            await exchange.run()

    def _open(self, scope: Scope, on: str) -> Call:
        client = scope.get("client")
        return self._service.journal.open(
            at=time.time(),
            on=on,
            method=scope["method"],
            path=scope["path"],
            query=dict(parse_qsl(scope["query_string"].decode("latin-1"))),
            headers=scope["headers"],
            client_port=client[1] if client else None,
            connection=scope["state"]["connection"],
        )


def _noting(call: Call, send: Send) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.http_status = message["status"]
        await send(message)

    return noting


@dataclass
class _Exchange:
    """One call that a fault hits."""

    app: ASGIApp
    service: Service
    stopping: asyncio.Event
    fault: Fault
    call: Call
    scope: Scope
    receive: Receive
    send: Send

    async def run(self) -> None:
        # Taking the request in whole first keeps a cut from meeting the caller while it is still sending.
        body = await self._take_in()
        self.scope["state"]["pretend"] = self.fault.before_acceptance and self.fault.kind != "hang"
        if self.fault.kind == "hang":
            await self._hang(body)
        elif self.fault.kind in ("refuse", "html", "empty", "cut"):
            if self.fault.after_accept:
                await self._true_answer(body)
            await self._replace()
        else:
            await self._spoil(await self._true_answer(body))

    async def _take_in(self) -> bytes:
        body, more = b"", True
        while more:
            message = await self.receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def _true_answer(self, body: bytes) -> Answer:
        """Let the service answer, and catch the answer."""
        parts: list[Message] = []

        async def catch(message: Message) -> None:
            parts.append(message)

        if self.fault.kind == "no_range":
            self.scope["headers"] = [pair for pair in self.scope["headers"] if pair[0] != b"range"]
        await self.app(self.scope, _replaying(body, self.receive), catch)
        start, *rest = parts
        return Answer(start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in rest))

    async def _hang(self, body: bytes) -> None:
        answer = await self._true_answer(body) if self.fault.after_accept else None
        waits = [asyncio.create_task(self._gone()), asyncio.create_task(self.stopping.wait())]
        await asyncio.wait(waits, timeout=self.fault.seconds, return_when=asyncio.FIRST_COMPLETED)
        gone = waits[0].done()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        if gone:
            return
        if answer is not None:
            await answer.send(self.send)
        else:
            await self.app(self.scope, _replaying(body, self.receive), self.send)

    async def _replace(self) -> None:
        """Answer without the service's answer."""
        fault, response = self.fault, Response()
        self.call.code = None
        if fault.kind == "cut":
            await self._cut()
            return
        if fault.kind == "html":
            code = fault.code or 500
            response = HTMLResponse(_BROKEN_PAGE.format(code=code), status_code=code)
        elif fault.kind == "refuse":
            self.call.code = fault.code
            msg = "The simulator was told to refuse this call."
            refused = Refusal(fault.code or 500, msg, style=fault.style, retry_after=fault.retry_after)
            response = refusal(self.service, refused)
        await response(self.scope, self.receive, self.send)

    async def _spoil(self, answer: Answer) -> None:
        """Send the service's answer, but not as it should be."""
        kind, half = self.fault.kind, len(answer.body) // 2
        if kind in ("cut_body", "wrong_length"):
            if kind == "wrong_length":
                answer = answer.with_length(int(answer.header(b"content-length") or 0) + 1000)
            else:
                answer = replace(answer, body=answer.body[:half])
            await answer.send(self.send, unfinished=True)
            await self._close()
            return
        if kind == "truncated":
            answer = answer.with_body(answer.body[:half])
        elif kind == "no_range":
            kept = [pair for pair in answer.headers if pair[0] != b"accept-ranges"]
            answer = replace(answer, headers=kept)
        else:
            answer = answer.with_json(self._spoil_content)
        await answer.send(self.send)

    def _spoil_content(self, content: dict[str, Any]) -> None:
        data = content["data"]
        if self.fault.kind == "null_data":
            content["data"] = None
        elif self.fault.kind == "wrong_data":
            content["data"] = "unexpected"
        elif self.fault.kind == "unknown_flag" and data:
            data["successFlag"] = self.fault.flag
        elif self.fault.kind == "response_string" and data and data["response"]:
            data["response"] = json.dumps(data["response"])

    async def _cut(self) -> None:
        self.scope["state"]["transport"].abort()
        await self._gone()

    async def _close(self) -> None:
        """Close the connection once what was sent is out."""
        self.scope["state"]["transport"].close()
        await self._gone()

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give a request body that was taken in already to whoever reads it next."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay

# SPDX-License-Identifier: Apache-2.0
"""
ASGI middleware that injects faults and journals every call.

It wraps the whole application as plain ASGI, because a fault may act before the application receives the request,
after it has responded, or on the TCP connection itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .account import Account
from .app import classify
from .faults import REPLACING, Fault
from .journal import Call
from .service import Service, edge_block_response, edge_response


@dataclass(frozen=True)
class BufferedResponse:
    """A complete HTTP response, buffered before any of it is sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header, None if it is missing."""
        return next((value for key, value in self.headers if key == name), None)

    def with_content_length(self, length: int) -> BufferedResponse:
        """Return a copy that announces this length, whatever the length of its body."""
        others = [(key, value) for key, value in self.headers if key != b"content-length"]
        return replace(self, headers=[*others, (b"content-length", str(length).encode())])

    def with_body(self, body: bytes) -> BufferedResponse:
        """Return a copy with another body and the matching Content-Length."""
        return replace(self, body=body).with_content_length(len(body))

    def with_edited_json(self, edit: Callable[[Any], Any]) -> BufferedResponse:
        """Return a copy whose decoded JSON body was passed through a function; an empty body stays empty."""
        return self.with_body(json.dumps(edit(json.loads(self.body))).encode()) if self.body else self

    async def send(self, send: Send, *, more_body: bool = False) -> None:
        """Send status, headers and body; ``more_body`` leaves the response unfinished."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": more_body})


class FaultMiddleware:
    """
    ASGI middleware around the application.

    :param internal_user_agent: User-Agent of the simulator's own requests, which are neither journaled nor faulty
    :param stopping: set when the server shuts down; ends every hang
    """

    def __init__(self, app: ASGIApp, account: Account, internal_user_agent: str, stopping: asyncio.Event) -> None:
        self._app = app
        self._account = account
        self._internal_user_agent = internal_user_agent.encode()
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Journal the request, then forward it to the application, with the fault that hits it if there is one."""
        is_internal = (b"user-agent", self._internal_user_agent) in scope.get("headers", ())
        if scope["type"] != "http" or is_internal:
            await self._app(scope, receive, send)
            return
        service, operation = classify(self._account, scope["method"], scope["path"])
        if operation is None:
            await self._app(scope, receive, send)
            return
        call = self._record(scope, service, operation)
        scope["state"]["call"] = call
        fault = self._account.next_fault(operation)
        send = _recording_status(call, send)
        if fault is None or service is None:
            await self._app(scope, receive, send)
        else:
            call.fault = fault.kind
            await _FaultyRequest(self._app, service, self._stopping, fault, call, scope, receive, send).run()

    def _record(self, scope: Scope, service: Service | None, operation: str) -> Call:
        client = scope.get("client")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        return self._account.journal.record(
            at=self._account.clock.time(),
            service=service.name if service else None,
            on=operation,
            method=scope["method"],
            path=scope["path"],
            query=query,
            headers=scope["headers"],
            task_id=service.task_id_of(scope["path"], query) if service else None,
            client_port=client[1] if client else None,
            connection=scope["state"]["connection"],
        )


def _recording_status(call: Call, send: Send) -> Send:
    async def record_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.http_status = message["status"]
        await send(message)

    return record_and_send


@dataclass
class _FaultyRequest:
    """One request that a fault hits."""

    app: ASGIApp
    service: Service
    stopping: asyncio.Event
    fault: Fault
    call: Call
    scope: Scope
    receive: Receive
    send: Send

    async def run(self) -> None:
        body = await self._receive_body()
        self.scope["state"]["dry_run"] = self.fault.before_acceptance and self.fault.kind != "hang"
        if self.fault.kind == "hang":
            await self._hang(body)
        elif self.fault.kind in REPLACING:
            if self.fault.after_accept:
                await self._run_app(body)
            await self._send_replacement()
        else:
            await self._send_corrupted(await self._run_app(body))

    async def _receive_body(self) -> list[Message]:
        """Receive the request, or only ``after_bytes`` of it, and return what the application will read."""
        limit, size, body = self.fault.after_bytes, 0, []
        is_read = self.fault.after_accept or self.fault.kind not in REPLACING
        while limit is None or size < limit:
            message = await self.receive()
            size += len(message.get("body", b""))
            if is_read:
                body.append(message)
            if not message.get("more_body", False):
                break
        return body

    async def _run_app(self, body: list[Message]) -> BufferedResponse:
        """Run the application on the request and buffer its response instead of sending it."""
        messages: list[Message] = []

        async def buffer(message: Message) -> None:
            messages.append(message)

        if self.fault.kind == "no_range":
            self.scope["headers"] = [pair for pair in self.scope["headers"] if pair[0] != b"range"]
        await self.app(self.scope, _replay_body(body, self.receive), buffer)
        start, *parts = messages
        return BufferedResponse(
            start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in parts)
        )

    async def _hang(self, body: list[Message]) -> None:
        """Wait, then respond normally; a client that disconnects meanwhile ends the request unprocessed."""
        response = await self._run_app(body) if self.fault.after_accept else None
        # With after_bytes, part of the body is unread. Waiting for a disconnection would consume and lose it.
        leaves_rest = self.fault.after_bytes is not None
        disconnect = asyncio.create_task(self.stopping.wait() if leaves_rest else self._wait_for_disconnect())
        shutdown = asyncio.create_task(self.stopping.wait())
        await asyncio.wait((disconnect, shutdown), timeout=self.fault.seconds, return_when=asyncio.FIRST_COMPLETED)
        disconnected = disconnect.done()
        disconnect.cancel()
        shutdown.cancel()
        await asyncio.gather(disconnect, shutdown, return_exceptions=True)
        if disconnected:
            return
        if response is not None:
            await response.send(self.send)
        else:
            await self.app(self.scope, _replay_body(body, self.receive), self.send)

    async def _send_replacement(self) -> None:
        """Send the fault's own response in place of the application's."""
        fault, response = self.fault, Response()
        self.call.code = None
        if fault.kind == "cut":
            await self._abort_connection()
            return
        if fault.kind == "empty":
            response = Response(status_code=fault.code or 200)
        elif fault.kind == "html":
            response = edge_response(fault.code or 500)
        elif fault.kind == "edge_block":
            response = edge_block_response()
        elif fault.kind == "redirect":
            # Redirects to the same path: a client that follows with the same method repeats the call.
            response = Response(status_code=fault.code or 303, headers={"Location": self.call.path})
        elif fault.kind == "refuse":
            response = self.service.refusal_response(Request(self.scope), self.service.refusal_of_fault(fault))
        await response(self.scope, self.receive, self.send)

    async def _send_corrupted(self, response: BufferedResponse) -> None:
        """Send the application's response, corrupted by the fault."""
        kind, half = self.fault.kind, len(response.body) // 2
        if kind in ("cut_body", "wrong_length"):
            if kind == "wrong_length":
                response = response.with_content_length(int(response.header(b"content-length") or 0) + 1000)
            else:
                response = replace(response, body=response.body[:half])
            await response.send(self.send, more_body=True)
            await self._close_connection()
            return
        if kind == "truncated":
            response = response.with_body(response.body[:half])
        elif kind == "no_range":
            headers = [pair for pair in response.headers if pair[0] != b"accept-ranges"]
            response = replace(response, headers=headers)
        else:
            response = response.with_edited_json(lambda content: self.service.corrupt(self.fault, content))
        await response.send(self.send)

    async def _abort_connection(self) -> None:
        """Close the connection at once and discard unsent data."""
        self.scope["state"]["transport"].abort()
        await self._wait_for_disconnect()

    async def _close_connection(self) -> None:
        """Close the connection after everything buffered for it was sent."""
        self.scope["state"]["transport"].close()
        await self._wait_for_disconnect()

    async def _wait_for_disconnect(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def _replay_body(body: list[Message], receive: Receive) -> Receive:
    """Return a receive callable that yields the messages already received, then the original ones."""
    unread = iter(body)

    async def replay() -> Message:
        return next(unread, None) or await receive()

    return replay

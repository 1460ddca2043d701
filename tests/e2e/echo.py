# SPDX-License-Identifier: Apache-2.0
"""A server that repeats the API key it was given, in front of a Luma."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.support.relay import Relay

Answer = Callable[[str, str], bytes]


def escaped(text: str) -> str:
    """Write each character of a text as an escape of JSON's."""
    return "".join(f"\\u{ord(character):04x}" for character in text)


def refusal(code: int, msg: str) -> str:
    return f'{{"code": {code}, "msg": "I do not take \'{msg}\'", "data": null}}'


def failure(luma_task_id: str, message: str) -> str:
    data = f'{{"taskId": "{luma_task_id}", "successFlag": 3, "errorMessage": "I do not take \'{message}\'"}}'
    return f'{{"code": 200, "msg": "", "data": {data}}}'


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Echo(Relay):
    """
    Repeats the key in one form after the other, and then passes on what it is asked.

    An answer that can be read says ``I do not take``; the last status says so of a job that has failed.

    :ivar submissions: what it is yet to answer submissions with
    :ivar checks: what it is yet to answer status checks with
    """

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self.instead = self._repeat
        self.submissions: list[Answer] = [lambda key, _: http(refusal(429, key).encode())]
        self.checks: list[Answer] = [
            lambda key, _: f"Authorization: {key}\r\n\r\n".encode(),
            lambda key, _: http(refusal(500, key).encode("utf-16")),
            lambda key, _: http(refusal(500, escaped(key)).encode()),
            lambda key, job: http(failure(job, key).encode()),
        ]

    def lose_a_submission(self) -> None:
        """Answer the next submission with the key in escapes of JSON, and do not pass it on."""
        self.submissions.append(lambda key, _: http(refusal(429, escaped(key)).encode()))

    def _repeat(self, request: BaseHTTPRequestHandler) -> bytes:
        answers = self.submissions if request.command == "POST" else self.checks
        if not answers:
            return b""
        luma_task_id = parse_qs(urlsplit(request.path).query).get("taskId", [""])[0]
        return answers.pop(0)(request.headers["Authorization"], luma_task_id)

# SPDX-License-Identifier: Apache-2.0
"""
Whether callbacks arrive, as far as can be told from here: the connection's callback address is called with a probe.

Of what a server answers, only its status and its content type are repeated.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core import callback_token
from airflow_provider_luma.core.addresses import is_private_host
from airflow_provider_luma.core.callback_probe import BODY, QUERY, SIGNATURE, Probe
from airflow_provider_luma.transport.workers import read_body, reason_of, requests_session, within

#: Seconds for everything.
DEADLINE = 10.0

#: Seconds without a byte.
TIMEOUT = 8.0

#: Airflow's API tests a connection under a name that it makes up, in the process in which this module is loaded.
_CONNECTIONS_API = "airflow.api_fastapi.core_api.routes.public.connections"

_FAULTS = {
    QUERY: "a proxy on the way cuts or changes the query, and the token is in it; pass it on as it is",
    BODY: "a proxy on the way cuts or changes the body; pass it on as it is",
    SIGNATURE: (
        "the receiver does not accept the signature: a proxy removes the X-Webhook headers, or the connection as it is "
        "saved has another webhook_secret"
    ),
}

_STATUSES = {
    401: "a proxy in front wants a sign-in; let POST /luma/callback through without one",
    403: "a proxy in front denies the request; let POST /luma/callback through",
    413: "a proxy in front takes only smaller bodies; let it take 256 kB",
    429: "a proxy in front limits the rate; let POST /luma/callback through",
    502: "a proxy in front does not reach the API server",
    503: "a proxy in front does not reach the API server",
    504: "a proxy in front does not reach the API server",
}


class Finding(NamedTuple):
    """
    What has come of the check.

    :ivar text: one or two sentences
    :ivar is_broken: callbacks surely do not arrive
    :ivar is_in_doubt: they may not arrive, and that cannot be told from here
    """

    text: str
    is_broken: bool = False
    is_in_doubt: bool = False


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes

    @property
    def is_refusal_of_ours(self) -> bool:
        """Whether it may be one of the receiver's, which say nothing but their status."""
        return not self.body and not self.content_type

    @property
    def is_airflows(self) -> bool:
        """Whether it may be an error of an API server."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and bool({"detail", "error"} & set(document))

    def __str__(self) -> str:
        kind = re.match(r"[\w.+-]{1,40}/[\w.+-]{1,40}", self.content_type, re.ASCII)
        return f"HTTP {self.status}, {kind[0]}" if kind else f"HTTP {self.status}"


def check_callbacks(connection: LumaConnection, conn_id: str) -> Finding:
    """
    Call the connection's ``callback_base_url`` as the service would, with a probe that resumes nothing.

    :param conn_id: the name under which the connection is tested
    """
    problem = connection.callback_problem
    if problem is not None:
        return _broken(problem)
    try:
        return within(DEADLINE, partial(_check, connection, conn_id))
    except TimeoutError:
        return _unreached(connection, f"no answer within {DEADLINE:g} seconds")


def _check(connection: LumaConnection, conn_id: str) -> Finding:
    is_saved = _CONNECTIONS_API not in sys.modules
    saved_name = conn_id if is_saved else _saved_name(connection)
    probe = Probe.make(connection, saved_name or conn_id, time.time())
    try:
        answer = _send(connection, probe)
    except Exception as error:
        return _not_sent(connection, error)
    if answer.status == 200:
        return _read(connection, probe, answer)
    if answer.status == 403 and answer.is_refusal_of_ours and saved_name is None:
        return Finding(
            f"Callbacks: the receiver at {_address(connection)} does not know this connection. Save it and test it "
            "again; only then can more be told",
            is_in_doubt=True,
        )
    return _broken(f"{_explain(answer)} ({_address(connection)}: {answer})")


def _saved_name(connection: LumaConnection) -> str | None:
    """
    Return the name of a saved connection with the same API key, and if possible the same webhook secret.

    A made-up name is an environment variable of this process, and another one of the API server may answer.
    """
    from airflow_provider_luma.receiver.connections import connections_with_key

    names, environment = [], set(os.environ)
    try:
        for name, saved in connections_with_key(connection.api_key):
            if not _may_be_made_up(name, environment | set(os.environ)):
                names.append((saved.webhook_secret != connection.webhook_secret, name))
    except Exception:
        return None
    return min(names)[1] if names else None


def _may_be_made_up(name: str, environment: set[str]) -> bool:
    # That of this test, or of another one that runs beside it.
    return bool(re.fullmatch(r"[a-z0-9]{8}", name)) and f"AIRFLOW_CONN_{name.upper()}" in environment


def _send(connection: LumaConnection, probe: Probe) -> _Answer:
    with requests_session(connection) as session:
        session.auth = lambda request: request  # no password out of a .netrc
        session.verify = session.verify or True  # the service checks certificates, however this connection does
        response = session.post(
            f"{_address(connection)}?{probe.query}",
            data=probe.body,
            headers=probe.headers(connection, time.time()),
            timeout=TIMEOUT,
            allow_redirects=False,
            stream=True,
        )
        return _Answer(response.status_code, response.headers.get("Content-Type", ""), read_body(response))


def _read(connection: LumaConnection, probe: Probe, answer: _Answer) -> Finding:
    faults = probe.read_answer(connection, answer.body.decode("latin-1"))
    if faults is None:
        return _broken(
            f"another server than Luma's receiver answers at {_address(connection)} ({answer}), such as a proxy with "
            "its sign-in page; let POST /luma/callback through to the API server"
        )
    if faults:
        return _broken("; ".join(_FAULTS[fault] for fault in faults if fault in _FAULTS))
    doubts = _doubts(connection)
    text = f"Callbacks arrive from here at {_address(connection)}"
    return Finding(", but ".join([text, *doubts]), is_in_doubt=bool(doubts))


def _doubts(connection: LumaConnection) -> list[str]:
    if not connection.is_public:
        return []
    parts, doubts = urlsplit(connection.callback_base_url or ""), []
    private = sorted(address for address in _resolve(parts.hostname or "") if is_private_host(address))
    if private:
        doubts.append(
            f"{parts.hostname} leads from here to the private address {private[0]}; make sure that it leads Luma to a "
            "public one"
        )
    if parts.scheme == "http":
        doubts.append("over http anybody on the way can read the token; use https")
    return doubts


def _resolve(host: str) -> set[str]:
    try:
        return {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()  # a proxy has resolved it


def _explain(answer: _Answer) -> str:
    if answer.is_refusal_of_ours and answer.status == 403:
        return (
            "the receiver refuses this connection: the API server there has none of this name and API key, or is "
            "another Airflow's, or has an older version of this package, or a clock that differs by minutes"
        )
    if answer.is_refusal_of_ours and answer.status == 503:
        return "the receiver cannot read its connections: the API server's database or secrets backend is down, or slow"
    if 300 <= answer.status < 400:
        return "the address redirects, and callbacks are not sent on; give the address it leads to, without a sign-in"
    if answer.status in (404, 405) and answer.is_airflows:
        return (
            "the API server answers, but not Luma's receiver: install this package where the API server runs "
            "('airflow plugins' lists luma), or correct the prefix in callback_base_url"
        )
    if answer.status in (404, 405):
        return (
            "another server answers: callback_base_url must be the public address of the API server, with its prefix "
            "and without /luma/callback, and a proxy must let POST /luma/callback through"
        )
    return _STATUSES.get(answer.status, "something else than Luma's receiver answers")


def _not_sent(connection: LumaConnection, error: Exception) -> Finding:
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.exceptions.SSLError):
        return _broken(f"no TLS connection to {_address(connection)}: {reason_of(error, connection)}")
    if isinstance(error, requests.exceptions.ProxyError):
        return _unreached(connection, "the proxy for calls from here does not connect to it")
    if isinstance(error, requests.exceptions.Timeout):
        return _unreached(connection, f"no answer within {TIMEOUT:g} seconds")
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return _broken(f"{urlsplit(_address(connection)).hostname} has no address in the DNS as it is seen from here")
    if isinstance(error, requests.exceptions.ConnectionError):
        return _broken(f"no connection from here to {_address(connection)}: {reason_of(error, connection)}")
    if isinstance(error, (requests.exceptions.RequestException, ValueError)):
        return _broken(f"{_address(connection)} cannot be called: {type(error).__name__}")
    return _unreached(connection, type(error).__name__)  # such as of the environment, which another test changes


def _unreached(connection: LumaConnection, reason: str) -> Finding:
    text = f"Callbacks: {_address(connection)} cannot be reached from here ({reason}). Luma may reach it all the same"
    return Finding(text, is_in_doubt=True)


def _broken(problem: str) -> Finding:
    return Finding(f"Callbacks do not arrive: {problem}", is_broken=True)


def _address(connection: LumaConnection) -> str:
    return f"{connection.callback_base_url}{callback_token.PATH}"

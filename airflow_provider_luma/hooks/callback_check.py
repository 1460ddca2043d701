# SPDX-License-Identifier: Apache-2.0
"""
Checks whether callbacks can arrive, by calling the connection's callback address with a probe.

Findings quote only the status and content type of a response.
"""

from __future__ import annotations

import hmac
import os
import re
import sys
import time
from functools import partial
from typing import NamedTuple

import requests

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import PATH, Probe
from airflow_provider_luma.transport.workers import read_body, reason_of, requests_session, within

#: Seconds for the whole check.
DEADLINE = 10.0

#: The module of Airflow's API that tests a connection, under a made-up name and in this same process.
_CONNECTIONS_API = "airflow.api_fastapi.core_api.routes.public.connections"


class Finding(NamedTuple):
    """
    The result of the check.

    :ivar text: one or two sentences
    :ivar is_broken: callbacks do not arrive
    :ivar is_in_doubt: callbacks may not arrive; the check could not find out
    """

    text: str
    is_broken: bool = False
    is_in_doubt: bool = False


def check_callbacks(connection: LumaConnection, conn_id: str) -> Finding:
    """
    Call the connection's ``callback_base_url`` as the service would, with a probe that resumes nothing.

    :param conn_id: the name under which the connection is tested
    """
    if problem := connection.callback_problem:
        return _broken(problem)
    address = f"{connection.callback_base_url}{PATH}"
    try:
        return within(DEADLINE, partial(_check, connection, conn_id, address))
    except (TimeoutError, requests.Timeout):
        reason = f"no response within {DEADLINE:g} s"
    except requests.ConnectionError as error:
        reason = reason_of(error, connection)
    except Exception as error:  # e.g. another test has changed the environment; the text may quote the token
        reason = type(error).__name__
    text = f"Callbacks: could not reach {address} from this machine ({reason}). Luma may still be able to"
    return Finding(text, is_in_doubt=True)


def _check(connection: LumaConnection, conn_id: str, address: str) -> Finding:
    saved_name = _saved_name(connection) if _CONNECTIONS_API in sys.modules else conn_id
    probe = Probe.make(connection, saved_name or conn_id, time.time())
    with requests_session(connection) as session:
        session.auth = lambda request: request  # no password from a .netrc
        session.verify = session.verify or True  # the service checks certificates, even if this connection does not
        response = session.post(
            f"{address}?{probe.query}",
            data=probe.body,
            headers=probe.headers(connection, time.time()),
            timeout=DEADLINE,
            allow_redirects=False,
            stream=True,
        )
        body, content_type = read_body(response), response.headers.get("Content-Type", "")
    if response.status_code == 200 and hmac.compare_digest(body, probe.answer(connection)):
        return Finding(f"Callbacks from this machine reach {address}")
    kind = re.match(r"[\w.+-]{1,40}/[\w.+-]{1,40}", content_type, re.ASCII)
    answer = f"HTTP {response.status_code}, {kind[0]}" if kind else f"HTTP {response.status_code}"
    if body or content_type or response.status_code not in (400, 403, 503):  # the receiver refuses with an empty body
        return _broken(
            f"the response from {address} is not from the callback receiver ({answer}). Check that proxies pass on "
            "POST /luma/callback unchanged, without sign-in or redirect; that this package is installed on the API "
            "server; and that callback_base_url is correct"
        )
    if response.status_code == 403 and saved_name is None:
        text = f"Callbacks: the receiver at {address} does not know this connection. Save it, then test it again"
        return Finding(text, is_in_doubt=True)
    return _broken(
        f"the receiver at {address} refused the test callback ({answer}). Check that its API server can read this "
        "connection, with the same API key and webhook secret, and that proxies pass on the query, body and X-Webhook "
        "headers"
    )


def _saved_name(connection: LumaConnection) -> str | None:
    """
    Return the name of a saved connection with the same API key, and if possible the same webhook secret.

    Another process of the API server may respond. It does not know the made-up name in this process's environment.
    """
    from airflow_provider_luma.receiver.connections import connections_with_key

    try:
        names = [
            (saved.webhook_secret != connection.webhook_secret, name)
            for name, saved in connections_with_key(connection.api_key)
            # Skip the made-up name of this test, or of one that runs at the same time.
            if not (re.fullmatch(r"[a-z0-9]{8}", name) and f"AIRFLOW_CONN_{name.upper()}" in os.environ)
        ]
    except Exception:
        return None
    return min(names)[1] if names else None


def _broken(problem: str) -> Finding:
    return Finding(f"Callbacks do not arrive: {problem}", is_broken=True)

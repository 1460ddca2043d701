# SPDX-License-Identifier: Apache-2.0
"""
A PUT of a file to an address that the service gave: signed, secret, and not trusted.

The API key is not sent, a redirect is not followed, and for a service on the public Internet the address must not lead
into a private network. No message or log quotes more of the address than its host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import requests
import urllib3

from airflow_provider_luma.core.addresses import is_private_host
from airflow_provider_luma.exceptions import LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.masking import mask_query, without_debug_logs
from airflow_provider_luma.transport.adapter import Throughput, watch
from airflow_provider_luma.transport.workers import (
    ANSWER_TIMEOUT,
    UPLOAD_ANSWER_TIMEOUT,
    USER_AGENT,
    reason_of,
    requests_session,
    to_response,
)

if TYPE_CHECKING:
    from airflow_provider_luma.connection import LumaConnection
    from airflow_provider_luma.core.job import Response
    from airflow_provider_luma.services.base import SendFile

#: Maximum bytes of the response to read: an object store's error has a few hundred.
MAX_RESPONSE = 4096


class Body(Protocol):
    """A file, in pieces."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


def put(connection: LumaConnection, target: SendFile, body: Body) -> Response:
    """
    Put a file where the service says.

    :raises LumaValidationError: the address leads into a private network, or is not an http(s) address
    :raises LumaUnavailableError: there was no response
    """
    url, host = _checked(target.url, connection)
    mask_query(url)

    def on_connected(address: str) -> None:
        if connection.is_public and is_private_host(address):
            raise _leads_into_private_network(host, address)

    with requests_session(connection) as session, without_debug_logs():
        watch(session, partial(Throughput, math.inf, ANSWER_TIMEOUT), on_connected=on_connected)
        # requests would read the body of a redirect, of any length, into memory.
        session.resolve_redirects = lambda *_, **__: iter(())  # type: ignore[method-assign]
        session.headers.clear()
        try:
            with session.put(
                url,
                data=body or None,  # requests would send an empty stream without its length
                headers={"User-Agent": USER_AGENT, **target.headers},
                auth=lambda request: request,  # no credentials from .netrc
                timeout=(connection.timeout, max(connection.timeout, UPLOAD_ANSWER_TIMEOUT)),
                allow_redirects=False,
                stream=True,
            ) as response:
                start = response.raw.read(MAX_RESPONSE, decode_content=False)
                return to_response(connection, response.status_code, start, {})
        except LumaValidationError:
            raise
        except ValueError:  # its text may quote the whole address
            raise LumaValidationError(None, f"the service gave an invalid upload address at {host}") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise LumaUnavailableError(
                None, f"{host} did not accept the file: {reason_of(error, connection)}"
            ) from None


def _checked(url: str, connection: LumaConnection) -> tuple[str, str]:
    """Return the address in the form that requests will send, and its host."""
    try:
        prepared = requests.Request("PUT", url).prepare().url or ""
        parts = urlsplit(prepared)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise LumaValidationError(None, "the service gave an invalid upload address")
    if connection.is_public and is_private_host(host):
        raise _leads_into_private_network(host, host)
    return prepared, host


def _leads_into_private_network(host: str, address: str) -> LumaValidationError:
    where = host if host == address else f"{host} ({address})"
    return LumaValidationError(
        None, f"the service gave an upload address at {where}, in a private network: nothing was sent there"
    )

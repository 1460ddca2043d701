# SPDX-License-Identifier: Apache-2.0
"""
HTTP in the triggerer, with aiohttp: keep-alive connections that all status checks of an event loop share.

See :mod:`~airflow_provider_luma.transport.options` for proxies and certificates.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import aiohttp

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.job import Request, Response
from airflow_provider_luma.core.rate_limit import MAX_UNANSWERED
from airflow_provider_luma.core.redaction import without_key
from airflow_provider_luma.transport.options import Certificates, triggerer_certificates, triggerer_proxy_of
from airflow_provider_luma.transport.workers import MAX_BODY_SIZE, USER_AGENT, to_response

#: Responses of more bytes than this are parsed in a thread, because all triggers share the event loop.
LONG_BODY = 16 * 1024

#: What may be raised if there is no response; ValueError if an address is malformed.
FAILURES = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


@dataclass(frozen=True)
class OpenConnection:
    """
    A connection, and the session opened for it.

    :param certificates: the certificates that the session uses
    :param proxy: the proxy to use for the service, if any
    """

    connection: LumaConnection
    certificates: Certificates
    session: aiohttp.ClientSession
    proxy: str | None = field(repr=False)  # it may hold a password

    @classmethod
    async def open(cls, connection: LumaConnection, certificates: Certificates) -> OpenConnection:
        """
        Open a session in an event loop.

        :raises LumaValidationError: proxy or certificates cannot be used here
        """
        proxy, context = triggerer_proxy_of(connection), await asyncio.to_thread(triggerer_certificates, connection)
        # Not trust_env: that would also read a .netrc, whose entries aiohttp cannot combine with the key.
        session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {connection.api_key}", "User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=connection.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),  # the service uses no cookies
            connector=aiohttp.TCPConnector(
                ssl=context,
                # The rate limiter bounds requests. Waiting here for a socket would use up a request's timeout.
                limit=max(MAX_UNANSWERED, math.ceil(connection.requests_per_second)),
            ),
        )
        return cls(connection, certificates, session, proxy)

    async def send(self, request: Request) -> Response:
        """
        Send a request with the API key.

        :raises FAILURES: there was no response
        """
        async with self.session.request(
            request.method,
            self.connection.base_url + request.path,
            params=request.query,
            json=request.json,
            headers=request.headers,
            allow_redirects=self.connection.allow_redirects,
            max_redirects=self.connection.max_redirects,
            proxy=self.proxy,
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(65536):
                body += chunk
                if len(body) >= MAX_BODY_SIZE:
                    break
            parts = self.connection, response.status, bytes(body[:MAX_BODY_SIZE]), response.headers
            is_long = len(body) > LONG_BODY
            return await asyncio.to_thread(to_response, *parts) if is_long else to_response(*parts)


def reason_of(error: Exception, connection: LumaConnection) -> str:
    """Return a description of the error, without the API key."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy returned HTTP {error.status}"
    # These quote the malformed response, which may echo our request headers and so the API key.
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return "the response is not HTTP, or is cut off"
    return without_key(str(error) or type(error).__name__, connection.api_key)

# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of servers and clients, made of the certificates of the fixture ``certificates``."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificates: Path, *, requires_client_certificate: bool = False) -> ssl.SSLContext:
    """Return the context of a server whose certificate the fixture's authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if requires_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(certificates / "authority.crt")
    return context


def strict_client_context(certificates: Path) -> ssl.SSLContext:
    """Return the context of a client that checks certificates as those of Python 3.13 do, on any Python."""
    context = ssl.create_default_context(cafile=certificates / "authority.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(certificates / "client.pem")
    return context

# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of servers, made of the certificates of the fixture ``certificates``."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificates: Path, *, requires_client_certificate: bool = False) -> ssl.SSLContext:
    """Return the context of a server whose certificate the fixture's authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if requires_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "authority.crt")
    return context

# SPDX-License-Identifier: Apache-2.0
"""The simulated services, one module each, over shared jobs, media, faults and journal."""

from __future__ import annotations

from ..account import Account
from ..service import Service
from .kie import Kie
from .luma import Luma

SERVICES: tuple[type[Service], ...] = (Kie, Luma)


def open_services(account: Account) -> None:
    """Add all services to an account."""
    account.services = {service.name: service(account) for service in SERVICES}

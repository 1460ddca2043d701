# SPDX-License-Identifier: Apache-2.0
"""The services that modify videos, a file for each: how its calls are written and read, what it takes and can."""

from __future__ import annotations

from airflow_provider_luma.services import kie
from airflow_provider_luma.services.base import Service

#: The services by name; the first is the default.
SERVICES: dict[str, Service] = {service.name: service for service in (kie,)}

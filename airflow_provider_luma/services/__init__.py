# SPDX-License-Identifier: Apache-2.0
"""The services that modify videos. Each has one module, with its requests, responses, limits and features."""

from __future__ import annotations

from airflow_provider_luma.services import kie, luma
from airflow_provider_luma.services.base import Service

#: The services by name; the first is the default.
SERVICES: dict[str, Service] = {service.name: service for service in (kie, luma)}

# SPDX-License-Identifier: Apache-2.0
"""
What Airflow loads as a plugin: ``/luma`` in the API server.

Every Airflow process imports its plugins, and only the API server serves anything. So the application behind
``/luma`` is imported by the first request, and costs the workers nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

_Messages = Callable[..., Awaitable[Any]]


async def application(scope: MutableMapping[str, Any], receive: _Messages, send: _Messages) -> None:
    """Hand a request to the application, which is made by the first one."""
    from airflow_provider_luma.callbacks.routes import app

    await app(scope, receive, send)


class LumaPlugin(AirflowPlugin):
    """The receiver of Luma's callbacks, and the page that shows a result."""

    name = "luma"
    fastapi_apps = [  # noqa: RUF012
        {"app": application, "url_prefix": "/luma", "name": "Luma"}
    ]


#: What the entry point ``airflow.plugins`` names. Airflow loads a plugin that is declared in the provider info only if
#: ``[core] lazy_discover_providers`` is off; then it would be loaded twice, and warned about.
entry_point = LumaPlugin if conf.getboolean("core", "lazy_discover_providers", fallback=True) else None

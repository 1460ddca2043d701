# SPDX-License-Identifier: Apache-2.0
"""
The Airflow plugin: ``/luma`` in the API server and, from Airflow 3.4 on, a tab on our tasks.

Every Airflow process imports the plugins, but only the API server serves requests. The application behind ``/luma`` is
therefore imported with the first request, and costs the workers nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airflow_provider_luma.compat import HAS_TABS_BY_OPERATOR
from airflow_provider_luma.plugins import listener

_Messages = Callable[..., Awaitable[Any]]


async def application(scope: MutableMapping[str, Any], receive: _Messages, send: _Messages) -> None:
    """Pass a request to the application, which is imported with the first request."""
    from airflow_provider_luma.receiver.app import app

    await app(scope, receive, send)


#: The result page as a tab; its address is relative to the UI's.
_TAB = {
    "name": "Luma",
    "destination": "task_instance",
    "url_route": "luma",
    "href": "luma/result?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
    "applies_to": {"operator_name": ["LumaModifyOperator", "@task.luma_modify", "LumaTaskSensor", "VideoJoinOperator"]},
}


class LumaPlugin(AirflowPlugin):
    """The receiver of Luma's callbacks, the result pages, and the listener that records delivered results."""

    name = "luma"
    fastapi_apps = [  # noqa: RUF012
        {"app": application, "url_prefix": "/luma", "name": "Luma"}
    ]
    listeners = [listener]  # noqa: RUF012
    external_views = [_TAB] if HAS_TABS_BY_OPERATOR else []


#: The target of the entry point ``airflow.plugins``. With ``[core] lazy_discover_providers`` off, Airflow loads the
#: plugin from the provider info; loading it twice would cause a warning.
entry_point = LumaPlugin if conf.getboolean("core", "lazy_discover_providers", fallback=True) else None

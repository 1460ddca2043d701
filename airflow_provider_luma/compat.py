# SPDX-License-Identifier: Apache-2.0
"""
What has moved between the supported releases of Airflow, imported from where this one keeps it.

The provider ``common.compat`` offers the same, but each name only from some release of its own on, while Airflow's
images pin older ones.
"""

from __future__ import annotations

from airflow.sdk import Connection
from airflow.sdk.bases.hook import BaseHook

try:
    from airflow.sdk import literal
except ImportError:  # Airflow 3.1.0
    from airflow.sdk.definitions.template import literal

try:
    from airflow.sdk.configuration import conf
except ImportError:  # Airflow 3.1
    from airflow.configuration import conf

try:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralTimeout,
    )
except ImportError:  # Airflow 3.1
    from airflow.exceptions import (  # type: ignore[no-redef,attr-defined]
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralTimeout,
    )

try:
    from airflow.sdk.observability.stats import Stats
except ImportError:
    try:
        from airflow.observability.stats import Stats  # type: ignore[assignment]
    except ImportError:  # Airflow 3.1
        from airflow.stats import Stats

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "Stats",
    "TaskDeferralTimeout",
    "conf",
    "get_async_connection",
    "literal",
]


async def get_async_connection(conn_id: str) -> Connection:
    """
    Read a connection from an event loop.

    Before Airflow 3.3.2, ``aget_connection`` masks the secrets with a blocking call, which fails while another call is
    under way on the same loop; there the blocking ``get_connection`` runs in a thread.

    :param conn_id: the connection's id
    :raises AirflowNotFoundException: there is no such connection
    """
    if hasattr(Connection, "aextra_dejson"):  # came together with the mended masking
        return await BaseHook.aget_connection(conn_id)
    # Not asyncio.to_thread: Airflow finds its way back from the thread to this loop only with asgiref.
    from asgiref.sync import sync_to_async

    return await sync_to_async(BaseHook.get_connection)(conn_id)

# SPDX-License-Identifier: Apache-2.0
"""
All differences between the supported releases of Airflow: names that have moved, and features that only some have.

The provider ``common.compat`` offers the names, too, but only in releases newer than those pinned in Airflow's images.
Every Airflow process imports this module, so it loads names only on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.version import version

if TYPE_CHECKING:
    from uuid import UUID

    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.sdk import Connection, Context, literal
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralTimeout,
    )
    from airflow.sdk.observability.stats import Stats

__all__ = [
    "CLEAR_DISCARDS_TASK_STATE",
    "DEFERRAL_KWARGS_PATH",
    "HAS_TABS_BY_OPERATOR",
    "HAS_TASK_INSTANCE_HISTORY",
    "HAS_TASK_STATE_STORE",
    "HAS_TEAMS",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "BundleDagBag",
    "Stats",
    "TaskDeferralTimeout",
    "conf",
    "determine_kwargs",
    "get_async_connection",
    "literal",
    "loop_iteration",
    "release_of",
    "task_scope_fields",
    "task_state_store",
]


_EXCEPTIONS = ("airflow.sdk.exceptions", "airflow.exceptions")  # the latter: Airflow 3.1

#: Modules to search for names that have moved, those of newer releases first.
_MOVED = {
    "AirflowException": _EXCEPTIONS,
    "AirflowFailException": _EXCEPTIONS,
    "AirflowNotFoundException": _EXCEPTIONS,
    "AirflowSensorTimeout": _EXCEPTIONS,
    "AirflowSkipException": _EXCEPTIONS,
    "BundleDagBag": ("airflow.dag_processing.dagbag", "airflow.models.dagbag"),  # the latter: Airflow 3.1
    "TaskDeferralTimeout": _EXCEPTIONS,
    "conf": ("airflow.sdk.configuration", "airflow.configuration"),  # the latter: Airflow 3.1
    "literal": ("airflow.sdk", "airflow.sdk.definitions.template"),  # the latter: Airflow 3.1.0
    # The last: Airflow 3.1
    "Stats": ("airflow.sdk.observability.stats", "airflow.observability.stats", "airflow.stats"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a moved name on first use: every Airflow process imports the plugin, and through it this module."""
        for module in _MOVED.get(name, ()):
            try:
                found = getattr(import_module(module), name)
            except (ImportError, AttributeError):
                continue
            globals()[name] = found
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def release_of(airflow: str) -> tuple[int, int]:
    """Return the major and minor number of a version, which may be a pre-release."""
    major, minor = airflow.split(".")[:2]
    return int(major), int(minor)


_RELEASE = release_of(version)

#: Path to the deferral's arguments within a task instance's ``next_kwargs``. Airflow 3.1 wraps them.
DEFERRAL_KWARGS_PATH = ("__var",) if _RELEASE < (3, 2) else ()

#: Whether DAGs and connections can belong to teams. Airflow 3.2 and newer.
HAS_TEAMS = _RELEASE >= (3, 2)

#: Whether Airflow keeps task state, in a separate model. Airflow 3.3 and newer.
HAS_TASK_STATE_STORE = _RELEASE >= (3, 3)

#: Whether a Clear discards the task state by default. Airflow 3.4 and newer.
CLEAR_DISCARDS_TASK_STATE = _RELEASE >= (3, 4)

#: Whether earlier tries have a separate model. Before Airflow 3.4; since then they are task instances.
HAS_TASK_INSTANCE_HISTORY = _RELEASE < (3, 4)

#: Whether a plugin's tab can be limited to certain operators. Airflow 3.4 and newer; 3.3 would show it on every task.
HAS_TABS_BY_OPERATOR = _RELEASE >= (3, 4)


def task_state_store(context: Context) -> Any:
    """Return the running task instance's task state store; None before Airflow 3.3."""
    return context.get("task_state_store")


def task_scope_fields() -> list[str]:
    """Return the fields that identify a task instance in the task state store; Airflow 3.4 adds regions, for loops."""
    import dataclasses

    from airflow.state.metastore import TaskScope  # type: ignore[attr-defined]

    return [field.name for field in dataclasses.fields(TaskScope)]


def loop_iteration(ti: Any) -> tuple[UUID | None, int | None]:
    """
    Return the region and index of a loop's iteration; both are None before Airflow 3.4.

    From 3.4 on, a task instance outside a loop has its map index as the index, and a region of zeros or None.

    :param ti: the task instance, or its key
    """
    return getattr(ti, "region_id", None), getattr(ti, "region_index", None)


def determine_kwargs(
    function: Callable[..., Any], args: Collection[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the keyword arguments that a function accepts; Airflow 3.1 has this helper elsewhere."""
    try:
        from airflow.sdk.bases.decorator import determine_kwargs as determine
    except ImportError:
        from airflow.utils.operator_helpers import determine_kwargs as determine  # type: ignore[attr-defined]

    found: Mapping[str, Any] = determine(function, args, kwargs)
    return found


async def get_async_connection(conn_id: str) -> Connection:
    """
    Read a connection from an event loop.

    Before Airflow 3.3.2, ``aget_connection`` masks the secrets with a blocking call, which fails while another call is
    under way on the same loop. There, the blocking ``get_connection`` runs in a thread instead.

    :param conn_id: the connection's id
    :raises AirflowNotFoundException: there is no such connection
    """
    from airflow.sdk import Connection
    from airflow.sdk.bases.hook import BaseHook

    if hasattr(Connection, "aextra_dejson"):  # added together with the fix of the masking
        return await BaseHook.aget_connection(conn_id)
    # Not asyncio.to_thread: Airflow can only get back from the thread to this loop with asgiref.
    from asgiref.sync import sync_to_async

    return await sync_to_async(BaseHook.get_connection)(conn_id)

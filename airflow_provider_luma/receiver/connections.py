# SPDX-License-Identifier: Apache-2.0
"""
The connections that the API server can read, for the receiver of callbacks.

Airflow's database models are not a public interface; see :mod:`airflow_provider_luma.receiver.resume`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from airflow.configuration import conf
from airflow.models.connection import Connection
from airflow.models.team import Team
from airflow.utils.session import create_session
from sqlalchemy import null, select

from airflow_provider_luma.compat import HAS_TEAMS, AirflowNotFoundException
from airflow_provider_luma.connection import URI_REMEDY, LumaConnection
from airflow_provider_luma.exceptions import LumaError

log = logging.getLogger(__name__)

#: Minimum seconds between two warnings on the same subject, because anyone can cause them.
WARNING_INTERVAL = 60.0

_ENVIRONMENT_PREFIX = "AIRFLOW_CONN_"
_MAX_SUBJECTS = 1000
_warned_at: dict[str, float] = {}


class _UnusableError(Exception):
    """A connection exists but cannot be used for callbacks; the message says why, and what to do."""


def read_connections(conn_id: str) -> dict[str | None, LumaConnection]:
    """
    Read the connection of that name for each team, and for DAGs without a team. Warn if a connection is unusable.

    :returns: the connections by team name; None is the key for DAGs without a team
    :raises SQLAlchemyError: the metadata database cannot be read
    """
    found: dict[str | None, LumaConnection] = {}
    is_missing = True
    for team_name in _team_names():
        try:
            connection = _read(conn_id, team_name)
        except _UnusableError as error:
            is_missing = False
            warn(conn_id, "Callbacks for connection %r are refused: %s", conn_id, error)
        else:
            if connection is not None:
                found[team_name] = connection
    if is_missing and not found:
        _warn_of_missing(conn_id)
    return found


def listed_names() -> frozenset[str]:
    """
    Return the connections in the environment and the metadata database; secrets backends cannot list theirs.

    :raises SQLAlchemyError: the metadata database cannot be read
    """
    # Airflow finds an environment variable whatever the case of the connection id; only lower case is listed.
    names = {
        name.removeprefix(_ENVIRONMENT_PREFIX).lower() for name in os.environ if name.startswith(_ENVIRONMENT_PREFIX)
    }
    with create_session() as session:
        return frozenset(names.union(session.scalars(select(Connection.conn_id).where(Connection.conn_type == "luma"))))


def connections_with_key(api_key: str) -> Iterator[tuple[str, LumaConnection]]:
    """
    Yield the name and connection of each connection with this API key, among those listed and ``luma_default``.

    :raises SQLAlchemyError: the metadata database cannot be read
    """
    for conn_id in sorted(listed_names() | {"luma_default"}):
        for team_name in _team_names():
            with suppress(_UnusableError):
                connection = _read(conn_id, team_name)
                if connection is not None and connection.api_key == api_key:
                    yield conn_id, connection


def warn(subject: str, message: str, *arguments: object) -> None:
    """Log a warning, unless there was one on this subject within the last minute."""
    now, subject = time.monotonic(), subject.lower()  # some secrets backends ignore the case of names
    if now < _warned_at.get(subject, -WARNING_INTERVAL) + WARNING_INTERVAL:
        return
    if len(_warned_at) >= _MAX_SUBJECTS:
        _warned_at.clear()
    _warned_at[subject] = now
    log.warning(message, *arguments)


def has_teams() -> bool:
    """Return whether DAGs and connections belong to teams on this Airflow."""
    return HAS_TEAMS and conf.getboolean("core", "multi_team", fallback=False)


def _team_names() -> list[str | None]:
    """Return the teams to read for. A callback does not name its team, but its token only matches the right keys."""
    return [None, *sorted(Team.get_all_team_names())] if has_teams() else [None]


def _read(conn_id: str, team_name: str | None) -> LumaConnection | None:
    team = {} if team_name is None else {"team_name": team_name}
    try:
        connection: Any = Connection.get_connection_from_secrets(conn_id, **team)
    except AirflowNotFoundException:
        return None
    except PermissionError as error:
        raise _UnusableError("a secrets backend denies the API server access to it; grant access") from error
    if connection.conn_type != "luma":
        raise _UnusableError(f"its type is {connection.conn_type!r} here; change that to luma")
    try:
        return LumaConnection.of(connection)
    except LumaError as error:
        raise _UnusableError(f"the API server cannot use it: {error}") from error


def _warn_of_missing(conn_id: str) -> None:
    # Airflow also reports a connection as missing if it belongs to a team, or if the database or row cannot be read.
    team_column: Any = Connection.team_name if HAS_TEAMS else null()
    with create_session() as session:
        row = session.execute(select(Connection.id, team_column).where(Connection.conn_id == conn_id)).first()
    variable = f"{_ENVIRONMENT_PREFIX}{conn_id.upper()}"
    if row is None and os.environ.get(variable):
        problem = f"the API server cannot read it from {variable}. {URI_REMEDY}"
        warn(conn_id, "Callbacks for connection %r are refused: %s", conn_id, problem)
    elif row is None:
        warn(
            "missing connections",
            "Callbacks for connections that the API server cannot find, such as %r, are refused. If that "
            "one exists, make it available to the API server in its metadata database, secrets backend or environment",
            conn_id,
        )
    elif row[1] is None:
        problem = "the API server cannot read it from the metadata database; give it the Fernet key of the workers"
        warn(conn_id, "Callbacks for connection %r are refused: %s", conn_id, problem)
    else:
        problem = f"it belongs to team {row[1]!r}, but [core] multi_team is off for the API server; turn it on"
        warn(conn_id, "Callbacks for connection %r are refused: %s", conn_id, problem)

# SPDX-License-Identifier: Apache-2.0
"""Everything that an Airflow has written: where a secret must not be."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlalchemy import MetaData, create_engine, text

from harness.local_airflow import LocalAirflow

#: What stands between two letters of UTF-16 that was read as another coding: NULs, escaped or replaced.
_NUL = rb"(?:\x00|\xef\xbf\xbd|\\+(?:x00|u0000|ufffd))?"


def in_any_form(secret: str) -> re.Pattern[bytes]:
    """Return what matches a secret as it is, with the escapes of JSON, and in UTF-16."""
    letters = (rb"(?:%b|\\+u%04x)" % (re.escape(letter.encode()), ord(letter)) for letter in secret)
    return re.compile(_NUL.join(letters), re.IGNORECASE)


def written(airflow: LocalAirflow) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each table of the database, and of each file but those that hold its keys."""
    engine, tables = create_engine(airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]), MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        for name in sorted(table.name for table in tables.tables.values()):
            yield f"table {name}", str(connection.execute(text(f'select * from "{name}"')).all()).encode()
    for file in airflow.home.rglob("*"):
        if file.is_file() and "secrets" not in file.parts:
            yield str(file), file.read_bytes()

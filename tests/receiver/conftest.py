# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of callbacks: a real metadata database, the API server, and its connections."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from airflow import settings
from airflow.utils.db import initdb

from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver import connections
from airflow_provider_luma.receiver.lookups import ConnectionLookups
from harness.api_server import KEY, ApiServer
from harness.metadata_db import MetadataDb


@pytest.fixture(scope="session")
def _tables() -> None:
    # Tables are created, and emptied: that must be nobody's but the tests'.
    assert str(settings.engine.url).startswith(f"sqlite:///{os.environ['AIRFLOW_HOME']}/")
    initdb()


@pytest.fixture
def metadata_db(_tables: None) -> Iterator[MetadataDb]:
    """The metadata database, without any tasks."""
    MetadataDb.empty()
    yield MetadataDb()
    MetadataDb.empty()


@pytest.fixture
async def api_server(metadata_db: MetadataDb, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    """The API server. It has read no connection yet, and is closed when it has resumed all tasks."""
    monkeypatch.setattr(receiver_app, "_connections", ConnectionLookups())
    monkeypatch.setattr(connections, "_warned_at", {})
    server = ApiServer()
    yield server
    await server.close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the API server a connection."""

    def _connect(conn_id: str, key: str = KEY, kind: str = "luma", **extra: object) -> None:
        values = {"conn_type": kind, "host": "http://127.0.0.1:9", "password": key, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(values))

    return _connect


@pytest.fixture(autouse=True)
def _luma_default(connect: Callable[..., None]) -> None:
    connect("luma_default")


@pytest.fixture
def other_connections(connect: Callable[..., None]) -> None:
    """Connections other than luma_default, most of which no callback can come over."""
    connect("luma_other", key="the-key-of-luma_other")
    connect("a_database", kind="postgres")
    connect("luma_keyless", key="")
    connect("luma_invalid", timeout="soon")

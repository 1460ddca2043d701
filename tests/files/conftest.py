# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of transfers: file servers, a hook that may download from them, and storages to download to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from airflow.sdk.io import store

from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.downloads import Interrupted
from tests.support.file_server import FileServer
from tests.support.operator_fixtures import context
from tests.support.s3_fixtures import bucket, s3_endpoint
from tests.support.storages import Disk, Sftp, SftpFileSystem, Storage

__all__ = ["bucket", "context", "s3_endpoint"]


@pytest.fixture(autouse=True)
def _short_backoff(short_backoff: None) -> None:
    """Resume interrupted downloads at once."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def another_server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def hook(server: FileServer, set_connection: Callable[..., None]) -> LumaHook:
    """A hook whose service is on this machine, so that files of this machine may be downloaded."""
    set_connection(server.url(""), timeout=60)
    return LumaHook()


@pytest.fixture
def sftp(monkeypatch: pytest.MonkeyPatch) -> Sftp:
    """A folder on an SFTP server behind the connection my_sftp."""
    fs = SftpFileSystem()
    monkeypatch.setitem(store._STORE_CACHE, "sftp-my_sftp", store.ObjectStore("sftp", "my_sftp", fs=fs))
    return Sftp(fs, "sftp://my_sftp@/videos")


@pytest.fixture(params=["plain path", "file://", "s3://", "sftp://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Each kind of storage."""
    folder = tmp_path / "deep" / "videos"
    if request.param == "plain path":
        return Disk(folder, str(folder))
    if request.param == "file://":
        return Disk(folder, f"file://{folder}")
    found: Storage = request.getfixturevalue("bucket" if request.param == "s3://" else "sftp")
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A folder on the local disk, given as a plain path."""
    return Disk(tmp_path / "videos", str(tmp_path / "videos"))


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Raises Interrupted in the main thread, from any other, as a signal does."""

    def _raise(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, _raise)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)

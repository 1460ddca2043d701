# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: a separate Airflow home, the simulator, connections, and scripted web servers."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

if sys.dont_write_bytecode:
    # Every worker and every process that a test starts would compile Airflow anew. Keep bytecode away from the sources.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Airflow reads these when it is first imported; nothing of the user's own Airflow may be touched.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="luma-tests-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

import json
import logging
import socket
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import hypothesis
import pytest
import structlog.testing
from airflow.sdk._shared.secrets_masker import reset_secrets_masker

from airflow_provider_luma.simulator import Settings, Simulator
from tests.support.wire import Wires

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

#: A key that is found wherever it should not be.
API_KEY = "sk-distinctive-0123456789abcdef"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector what collection has made: Airflow's modules and all tests, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def connection_uri(base_url: str, key: str = API_KEY, **extra: Any) -> str:
    """Write a connection of type luma as one would put it into the environment."""
    parts = urlsplit(base_url)
    query = f"?__extra__={quote(json.dumps(extra), safe='')}" if extra else ""
    return f"luma://:{quote(key, safe='')}@{parts.hostname}:{parts.port}/{parts.scheme}{query}"


@pytest.fixture(scope="session")
def _simulator() -> Iterator[Simulator]:
    settings = Settings(
        api_key=API_KEY,
        processing_seconds=0.03,
        status_calls_per_second=1000,
        submissions_per_10_seconds=1000,
        requests_per_minute=1000,
        jobs_at_a_time=1000,
        queued_seconds=0,
        ingest_seconds=0,
    )
    with Simulator(settings) as simulator:
        yield simulator


@pytest.fixture
def luma(_simulator: Simulator) -> Simulator:
    """A fast Luma service, with rate limits too high to be reached; configure() it for more."""
    _simulator.reset()
    return _simulator


@pytest.fixture
def set_connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives Airflow the connection luma_default: a service's address, a key, and an extra."""

    def _set(base_url: str, key: str = API_KEY, **extra: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", connection_uri(base_url, key, **extra))

    return _set


@pytest.fixture
def luma_conn(luma: Simulator, set_connection: Callable[..., None]) -> str:
    """The id of a connection to the simulator, which takes as many status checks as it is sent."""
    set_connection(luma.base_url, requests_per_second=1000)
    return "luma_default"


@pytest.fixture
def submit(luma: Simulator, luma_conn: str) -> Callable[..., str]:
    """Submits a job to the simulator, after changing its settings; returns the job's id."""
    from airflow_provider_luma.hooks.luma import LumaHook

    def _submit(**changes: Any) -> str:
        luma.configure(**changes)
        return LumaHook().modify_video("make it snow", luma.sample_url)

    return _submit


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry failed calls after some hundredths of a second, for tests that are about what comes after."""
    monkeypatch.setattr("airflow_provider_luma.core.backoff.FIRST_DELAY", 0.02)


@pytest.fixture(autouse=True)
def immediate_triggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trigger end as soon as it can: there is no scheduler here that must notice the deferral first."""
    monkeypatch.setattr("airflow_provider_luma.triggers.luma.SHORTEST_DEFERRAL", 0.0)
    monkeypatch.setattr("airflow_provider_luma.submission.queue.SUBMISSION_WINDOW", 0.0)


@pytest.fixture(autouse=True)
def secrets_forgotten() -> Iterator[None]:
    """Forget after each test what it masked: Airflow compiles all secrets into one pattern whenever one is added."""
    yield
    reset_secrets_masker()


@pytest.fixture(autouse=True)
def debug_logs_on() -> Iterator[None]:
    """
    Wait after each test until none of its threads keeps DEBUG logs off.

    They are off for the whole process, and caplog restores at its end what it found when it set a level.
    """
    yield
    until(lambda: logging.root.manager.disable == logging.NOTSET)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Evaluate a condition until its value is true, and return that; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} seconds"
        time.sleep(0.01)
    return value


@pytest.fixture
def wires() -> Iterator[Wires]:
    """Starts web servers with scripted answers."""
    wires = Wires()
    yield wires
    wires.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., Any]:
    return until


@pytest.fixture
def api_key() -> str:
    """The key of luma_default."""
    return API_KEY


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def task_log() -> Iterator[list[Any]]:
    """What hooks, triggers, operators and sensors log during the test, as a list of entries."""
    with structlog.testing.capture_logs() as entries:
        yield entries

# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of submit-once: tasks in each mode, what an earlier try leaves behind, and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaGenerationError, LumaTimeoutError
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.simulator import Simulator
from tests.support.relay import Relay
from tests.support.task_instance import TaskRun, TaskStateStore

#: The three ways in which a task gets its result.
MODES = {
    "deferred": {"deferrable": True},
    "in the worker": {"deferrable": False},
    "not waited for": {"wait_for_completion": False},
}

#: Seconds for which a job is processed that does not end within a test.
ENDLESS = 60


@pytest.fixture(params=MODES.values(), ids=MODES)
def task(modify: Callable[..., LumaModifyOperator], request: pytest.FixtureRequest) -> TaskRun:
    """A task in each of the three modes, with two retries."""
    return TaskRun(lambda **changes: modify(**request.param, **changes), TaskStateStore())


@pytest.fixture
def sync_task(modify: Callable[..., LumaModifyOperator]) -> TaskRun:
    """A task that waits in the worker, for what comes before the wait and is the same in all modes."""
    return TaskRun(lambda **changes: modify(**{"deferrable": False, **changes}), TaskStateStore())


@pytest.fixture
def leave_running(luma: Simulator) -> Callable[[TaskRun], str]:
    """Lets the first try of a task end while its job runs; returns the job's id."""

    def _leave_running(task: TaskRun) -> str:
        luma.configure(processing_seconds=ENDLESS)
        with suppress(LumaTimeoutError):
            task.run_try(timeout=0.05)
        luma.configure(processing_seconds=0)
        assert luma.accepted == 1
        return luma.jobs[0].task_id

    return _leave_running


@pytest.fixture
def leave_ended(luma: Simulator, until: Callable[..., Any]) -> Callable[..., str]:
    """Lets the first try of a task end after its job, which ends as configured; returns the job's id."""

    def _leave_ended(task: TaskRun, **settings: Any) -> str:
        luma.configure(processing_seconds=0, **settings)
        with suppress(LumaGenerationError):
            task.run_try()
        until(lambda: luma.jobs[0].complete_time)
        luma.configure(outcome="success")
        assert luma.accepted == 1
        return luma.jobs[0].task_id

    return _leave_ended


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a local disk, and in an S3 bucket."""
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket').destination}/luma"


@pytest.fixture
def relay(luma: Simulator, luma_conn: str, set_connection: Callable[..., None]) -> Iterator[Relay]:
    """A proxy in front of the simulator, to which the connection points."""
    relay = Relay(luma.base_url)
    set_connection(relay.base_url)
    yield relay
    relay.close()


@pytest.fixture
def callbacks_on(
    luma: Simulator,
    luma_conn: str,
    set_connection: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    short_backoff: None,
) -> None:
    """Submit with a callback address of ours, which Luma never calls by itself; jobs do not end by themselves."""
    set_connection(luma.base_url, callback_base_url="http://127.0.0.1:9")
    luma.configure(callback_copies=0, processing_seconds=ENDLESS)
    monkeypatch.setattr("airflow_provider_luma.core.backoff.READ_RETRY_TIMEOUT", 0.05)


@pytest.fixture
def await_job_ends(luma: Simulator, until: Callable[..., Any]) -> Callable[[], None]:
    """Waits until all accepted jobs have ended."""

    def _await_job_ends() -> None:
        until(lambda: all(job.complete_time for job in luma.jobs))

    return _await_job_ends

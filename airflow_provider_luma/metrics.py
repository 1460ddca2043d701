# SPDX-License-Identifier: Apache-2.0
"""
Metrics about jobs and submissions, sent to the same backend as Airflow's own.

Metrics that only the triggerer measures (`luma.poll…`, `luma.waiting`, `luma.submission.waiting`) are sent from there.
docs/operations.md lists them all. A metric that cannot be sent is dropped: most are about jobs that are paid for, and
an error here would end such a job's task or wait.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.compat import Stats as AirflowStats

if TYPE_CHECKING:
    from airflow_provider_luma.core.job import LumaTask

log = logging.getLogger(__name__)


class Stats:
    """Airflow's metrics, with errors suppressed: a backend may raise anything, even when it is first loaded."""

    @staticmethod
    def incr(name: str) -> None:
        """Count an event."""
        _send("incr", name)

    @staticmethod
    def timing(name: str, milliseconds: float) -> None:
        """Record how long something took."""
        _send("timing", name, milliseconds)

    @staticmethod
    def gauge(name: str, value: float, *, tags: dict[str, str]) -> None:
        """Record a current value."""
        _send("gauge", name, value, tags=tags)


def _send(kind: str, name: str, *value: float, **tags: Any) -> None:
    try:
        getattr(AirflowStats, kind)(name, *value, **tags)
    except Exception as error:
        log.warning("Could not send the metric %s: %r", name, error)


def job_ended(task: LumaTask) -> None:
    """Record a job that has just been seen to end: how long it took, how late it was noticed, whether it failed."""
    if task.created_at is not None and task.completed_at is not None:
        duration = (task.completed_at - task.created_at).total_seconds()
        Stats.timing("luma.job.duration", duration * 1000)
        Stats.timing("luma.job.lateness", max(0.0, time.time() - task.completed_at.timestamp()) * 1000)
    if not task.is_successful:
        Stats.incr("luma.job.failed")


def credits_left(luma_conn_id: str, remaining: float) -> None:
    """Record the account's remaining credits."""
    Stats.gauge("luma.credits", remaining, tags={"conn_id": luma_conn_id})


def run_usage(dag_id: str, jobs: int, us_dollars: float | None) -> None:
    """Record what a DAG run has submitted: jobs, and their price if it is known."""
    Stats.gauge("luma.run.jobs", jobs, tags={"dag_id": dag_id})
    if us_dollars is not None:
        Stats.gauge("luma.run.cost", us_dollars, tags={"dag_id": dag_id})

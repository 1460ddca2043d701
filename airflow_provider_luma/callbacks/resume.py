# SPDX-License-Identifier: Apache-2.0
"""
Resuming deferred tasks: with ``connections``, the only module that touches Airflow's database models.

The models are no public interface of Airflow, so little of them is used, and that is tested on every supported version.
If a later Airflow changes them, callbacks are refused, and polling finishes the jobs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select

from airflow_provider_luma.deferral import RESUMABLE_TRIGGERS, SHORTEST_DEFERRAL, CallbackReceived, DeferralState
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY

try:
    from airflow.models.task_state_store import TaskStateStoreModel
except ImportError:  # Airflow below 3.3 keeps no task state
    TaskStateStoreModel = None  # type: ignore[assignment,misc]


class Deferral(NamedTuple):
    """One deferral of a task: a task that is deferred again gets another trigger."""

    task_instance_id: str
    trigger_id: int
    deferred_at: datetime


def record_callback(luma_task_id: str, reference: str) -> bool:
    """
    Record which job a submission has become, if its task has lost the answer.

    A task that was killed before it could read Luma's answer finds it at its next try.

    :returns: whether there was such a task
    """
    if TaskStateStoreModel is None:
        return False
    from airflow.state.metastore import MetastoreBackend, TaskScope  # type: ignore[attr-defined]

    model = TaskStateStoreModel
    with create_session() as session:
        rows = session.scalars(select(model).where(model.key == STORE_KEY, model.value.contains(reference))).all()
        lost = [row for row in rows if _is_lost(row.value, reference)]
        for row in lost:
            MetastoreBackend().set(
                # Its fields differ between versions of Airflow, and are columns of the model in each.
                TaskScope(**{field.name: getattr(row, field.name) for field in dataclasses.fields(TaskScope)}),
                CALLBACK_KEY,
                json.dumps({"reference": reference, "luma_task_id": luma_task_id}),
                expires_at=row.expires_at,
                session=session,
            )
    return bool(lost)


def find_waiting(luma_task_id: str, reference: str, luma_conn_id: str) -> list[Deferral]:
    """
    Return the deferrals that a callback ends: of tasks that wait for its job, or for a callback of its submission.

    :param luma_conn_id: the connection that the callback has come over
    """
    return [
        deferral
        for deferral, kwargs in _deferred()
        if DeferralState.is_resumed_by(
            kwargs, luma_task_id=luma_task_id, reference=reference, luma_conn_id=luma_conn_id
        )
    ]


def waiting_connections() -> set[str]:
    """Return the names of the connections that deferred tasks use."""
    return {kwargs["luma_conn_id"] for _, kwargs in _deferred() if kwargs and kwargs.get("luma_conn_id")}


def resume_waiting(luma_task_id: str, waiting: list[Deferral]) -> tuple[int, list[Deferral], float]:
    """
    Resume the tasks that are still in these deferrals.

    :returns: how many tasks were resumed; the deferrals that are too young for that; and the seconds until the first
        of them no longer is
    """
    event = TriggerEvent(CallbackReceived(callback={"luma_task_id": luma_task_id}))
    # Airflow fails a task that is resumed before the scheduler has noticed its deferral.
    age_limit = datetime.now(UTC) - timedelta(seconds=SHORTEST_DEFERRAL)
    young = [deferral for deferral in waiting if deferral.deferred_at > age_limit]
    resumed = sum(_resume(deferral, event) for deferral in waiting if deferral.deferred_at <= age_limit)
    delay = min((deferral.deferred_at - age_limit for deferral in young), default=timedelta(0))
    return resumed, young, min(delay.total_seconds(), SHORTEST_DEFERRAL)


def _is_lost(value: str, reference: str) -> bool:
    try:
        record = json.loads(value)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("reference") == reference and not record.get("luma_task_id")


def _deferred() -> list[tuple[Deferral, Mapping[str, Any] | None]]:
    """Return the deferrals of all tasks that a callback could resume, with the stored keyword arguments."""
    with create_session() as session:
        deferred = session.execute(
            select(TaskInstance.id, TaskInstance.trigger_id, Trigger.created_date, TaskInstance.next_kwargs)
            .join(Trigger, Trigger.id == TaskInstance.trigger_id)
            .where(
                TaskInstance.state == TaskInstanceState.DEFERRED,
                Trigger.classpath.in_(RESUMABLE_TRIGGERS),
            )
        ).all()
    return [(Deferral(*deferral), kwargs) for *deferral, kwargs in deferred]


def _resume(deferral: Deferral, event: TriggerEvent) -> int:
    with create_session() as session:
        # Locked, and read again: the trigger may have resumed it a moment ago, or it may be deferred anew. The time
        # tells two triggers apart where a database uses an id again.
        still_deferred = session.scalar(
            select(TaskInstance.id)
            .join(Trigger, Trigger.id == TaskInstance.trigger_id)
            .where(
                TaskInstance.id == deferral.task_instance_id,
                TaskInstance.state == TaskInstanceState.DEFERRED,
                Trigger.id == deferral.trigger_id,
                Trigger.created_date == deferral.deferred_at,
            )
            .with_for_update(of=TaskInstance)
        )
        if still_deferred is None:
            return 0
        Trigger.submit_event(deferral.trigger_id, event, session=session)
    return 1

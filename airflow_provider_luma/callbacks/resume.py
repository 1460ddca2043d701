# SPDX-License-Identifier: Apache-2.0
"""
Resuming deferred tasks: the only module that touches Airflow's database models.

The models are no public interface of Airflow, so little of them is used, and that is tested on every supported version.
If a later Airflow changes them, callbacks are refused, and polling finishes the jobs.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

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
                TaskScope(row.dag_id, row.run_id, row.task_id, row.map_index),
                CALLBACK_KEY,
                json.dumps({"reference": reference, "luma_task_id": luma_task_id}),
                expires_at=row.expires_at,
                session=session,
            )
    return bool(lost)


def resume_waiting(luma_task_id: str, reference: str) -> tuple[int, float | None]:
    """
    Resume every deferred task that waits for a job, or for a callback of the submission it came from.

    :returns: how many tasks were resumed; and, if others were deferred too recently for that, the seconds after which
        to try again
    """
    event = TriggerEvent(CallbackReceived(callback={"luma_task_id": luma_task_id}))
    resumed, soonest = 0, None
    for task_instance_id, trigger_id, age in _waiting(luma_task_id, reference):
        if age < SHORTEST_DEFERRAL:
            # Airflow fails a task that is resumed before the scheduler has noticed its deferral.
            soonest = min(soonest or SHORTEST_DEFERRAL, SHORTEST_DEFERRAL - age)
        else:
            resumed += _resume(task_instance_id, trigger_id, event)
    return resumed, soonest


def _is_lost(value: str, reference: str) -> bool:
    try:
        record = json.loads(value)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("reference") == reference and not record.get("luma_task_id")


def _waiting(luma_task_id: str, reference: str) -> list[tuple[str, int, float]]:
    """Return task instance, trigger, and the age of the deferral in seconds, of every task to resume."""
    with create_session() as session:
        deferred = session.execute(
            select(TaskInstance.id, TaskInstance.trigger_id, TaskInstance.next_kwargs, Trigger.created_date)
            .join(Trigger, Trigger.id == TaskInstance.trigger_id)
            .where(
                TaskInstance.state == TaskInstanceState.DEFERRED,
                Trigger.classpath.in_(RESUMABLE_TRIGGERS),
            )
        ).all()
    now = datetime.now(UTC)
    return [
        (task_instance_id, trigger_id, max(timedelta(0), now - deferred_at).total_seconds())
        for task_instance_id, trigger_id, kwargs, deferred_at in deferred
        if DeferralState.is_resumed_by(kwargs, luma_task_id=luma_task_id, reference=reference)
    ]


def _resume(task_instance_id: str, trigger_id: int, event: TriggerEvent) -> int:
    with create_session() as session:
        # Locked, and read again: the trigger may have resumed it a moment ago.
        still_deferred = session.scalar(
            select(TaskInstance.id)
            .where(
                TaskInstance.id == task_instance_id,
                TaskInstance.trigger_id == trigger_id,
                TaskInstance.state == TaskInstanceState.DEFERRED,
            )
            .with_for_update()
        )
        if still_deferred is None:
            return 0
        Trigger.submit_event(trigger_id, event, session=session)
    return 1

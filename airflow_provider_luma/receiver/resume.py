# SPDX-License-Identifier: Apache-2.0
"""
Resume deferred tasks. Only this module and ``connections`` touch Airflow's database models.

The models are not a public interface of Airflow, so we use little of them, and test that on every supported version. If
a later Airflow changes them, callbacks are refused, and the tasks get their results by polling.

A callback costs about the same however many tasks wait and however many submissions are recorded. A record is found by
primary key and index. Any task of any DAG can wait for a job, so waiting tasks are found by the state that they stored
when they were deferred: the database scans the deferred tasks, a thousand in 0.3 ms, and returns the matches.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from airflow.models.dag import DagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import JSON, ColumnElement, and_, or_, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from airflow_provider_luma.compat import (
    DEFERRAL_KWARGS_PATH,
    HAS_TASK_INSTANCE_HISTORY,
    HAS_TASK_STATE_STORE,
    task_scope_fields,
)
from airflow_provider_luma.core.deferral import RESUMABLE_TRIGGERS, SHORTEST_DEFERRAL, CallbackReceived, DeferralState
from airflow_provider_luma.receiver.connections import has_teams
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

if TYPE_CHECKING or HAS_TASK_STATE_STORE:
    from airflow.models.task_state_store import TaskStateStoreModel
if TYPE_CHECKING or HAS_TASK_INSTANCE_HISTORY:
    from airflow.models.taskinstancehistory import TaskInstanceHistory

_IS_DEFERRED = TaskInstance.state == TaskInstanceState.DEFERRED


class Deferral(NamedTuple):
    """One deferral of a task. When the task is deferred again, it gets another trigger."""

    task_instance_id: str
    trigger_id: int
    deferred_at: datetime


def record_callback(luma_task_id: str, reference: str, task_instance_id: str | None) -> bool:
    """
    Record the job of a submission whose task lost the response.

    The next try of a task that was killed before it could read Luma's response finds the job in this record.

    :param luma_task_id: the job's id at Luma
    :param reference: the reference of the submission
    :param task_instance_id: the try that submitted, as 32 hexadecimal digits; None if unknown
    :returns: whether there was such a task
    """
    if not HAS_TASK_STATE_STORE:
        return False
    from airflow.state.metastore import MetastoreBackend, TaskScope  # type: ignore[attr-defined]

    with create_session() as session:
        # If Airflow no longer knows the try, search by reference: a lost submission costs money.
        rows = _records_of(task_instance_id, session) or _records_that_name(reference, session)
        lost = [row for row in rows if _is_lost(row.value, reference)]
        for row in lost:
            MetastoreBackend().set(
                TaskScope(**{name: getattr(row, name) for name in task_scope_fields()}),
                CALLBACK_KEY,
                json.dumps({"reference": reference, "luma_task_id": luma_task_id}),
                expires_at=row.expires_at,
                session=session,
            )
    return bool(lost)


def find_waiting(luma_task_id: str, reference: str, luma_conn_id: str, teams: Collection[str | None]) -> list[Deferral]:
    """
    Return the deferrals that a callback ends: those of tasks that wait for its job, or for this submission's callback.

    :param luma_task_id: the job's id at Luma
    :param reference: the reference of the submission
    :param luma_conn_id: the connection that the callback names
    :param teams: the teams that own a matching connection; None stands for DAGs without a team
    """
    columns = TaskInstance.id, TaskInstance.trigger_id, TaskInstance.dag_id, TaskInstance.next_kwargs
    fits = or_(_stored("luma_task_id") == luma_task_id, _stored("reference") == reference)
    with create_session() as session:
        deferred = [
            (task_instance_id, trigger_id, dag_id, (kwargs or {}).get("reference") == reference)
            for task_instance_id, trigger_id, dag_id, kwargs in session.execute(
                select(*columns).where(_IS_DEFERRED, fits)
            )
            if DeferralState.is_resumed_by(
                kwargs, luma_task_id=luma_task_id, reference=reference, luma_conn_id=luma_conn_id
            )
        ]
        # The token proves the reference. A task found only by the job's id must belong to the right team.
        team_of = _teams_of([dag_id for _, _, dag_id, is_proven in deferred if not is_proven], session)
        triggers = {
            trigger_id: task_instance_id
            for task_instance_id, trigger_id, dag_id, is_proven in deferred
            if is_proven or not has_teams() or team_of.get(dag_id) in teams
        }
        # A separate query: a join would read the triggers of all deferred tasks.
        resumable = Trigger.id.in_(triggers), Trigger.classpath.in_(RESUMABLE_TRIGGERS)
        deferred_at = session.execute(select(Trigger.id, Trigger.created_date).where(*resumable)) if triggers else ()
        return [Deferral(triggers[trigger_id], trigger_id, created) for trigger_id, created in deferred_at]


def waiting_connections() -> set[str]:
    """Return the names of the connections that deferred tasks use."""
    with create_session() as session:
        conn_ids = session.scalars(select(_stored("luma_conn_id")).where(_IS_DEFERRED).distinct())
        return set(filter(None, conn_ids))


def resume_waiting(luma_task_id: str, waiting: list[Deferral]) -> tuple[int, list[Deferral], float]:
    """
    Resume the tasks that are still in these deferrals.

    :param luma_task_id: the job's id at Luma
    :param waiting: the deferrals to end
    :returns: the number of tasks resumed; the deferrals that are still too recent to end; and the seconds until the
        first of these can be ended
    """
    event = TriggerEvent(CallbackReceived(callback={"luma_task_id": luma_task_id}))
    # Airflow fails a task that is resumed before the scheduler has noticed its deferral.
    age_limit = datetime.now(UTC) - timedelta(seconds=SHORTEST_DEFERRAL)
    young = [deferral for deferral in waiting if deferral.deferred_at > age_limit]
    resumed = sum(_resume(deferral, event) for deferral in waiting if deferral.deferred_at <= age_limit)
    delay = min((deferral.deferred_at - age_limit for deferral in young), default=timedelta(0))
    return resumed, young, min(delay.total_seconds(), SHORTEST_DEFERRAL)


def _teams_of(dag_ids: list[str], session: Session) -> dict[str, str | None]:
    """Return the teams of DAGs, without the DAGs that have no team."""
    if not has_teams() or not dag_ids:
        return {}
    return DagModel.get_dag_id_to_team_name_mapping(dag_ids, session=session)


def _records_of(task_instance_id: str | None, session: Session) -> list[Any]:
    """Return the submission records of the task instance with this try; an empty list if there are none."""
    if task_instance_id is None:
        return []
    tries: list[tuple[Any, Any]] = [(TaskInstance, TaskInstance.id)]
    if HAS_TASK_INSTANCE_HISTORY:
        tries.append((TaskInstanceHistory, TaskInstanceHistory.task_instance_id))
    for model, primary_key in tries:
        same = and_(*(getattr(model, name) == getattr(TaskStateStoreModel, name) for name in task_scope_fields()))
        found = session.scalars(
            select(TaskStateStoreModel)
            .join(model, same)
            .where(primary_key == UUID(task_instance_id), TaskStateStoreModel.key == STORE_KEY)
            .execution_options(include_all_attempts=True)  # Airflow 3.4 hides earlier tries
        ).all()
        if found:
            return list(found)
    return []


def _records_that_name(reference: str, session: Session) -> list[Any]:
    """Search the text of all records. The cost grows with their number."""
    model = TaskStateStoreModel
    return list(session.scalars(select(model).where(model.key == STORE_KEY, model.value.contains(reference))))


def _is_lost(value: str, reference: str) -> bool:
    try:
        record = json.loads(value)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("reference") == reference and not record.get("luma_task_id")


def _stored(name: str) -> ColumnElement[str]:
    """Return an SQL expression for a value that tasks stored when they were deferred."""
    kwargs = type_coerce(TaskInstance.next_kwargs, JSON().with_variant(JSONB(), "postgresql"))
    value: ColumnElement[str] = kwargs[(*DEFERRAL_KWARGS_PATH, name)].as_string()
    return value


def _resume(deferral: Deferral, event: TriggerEvent) -> int:
    with create_session() as session:
        # Lock the row and read it again: its trigger may just have resumed the task, or it may be deferred again. The
        # creation time distinguishes triggers if the database reuses an id.
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

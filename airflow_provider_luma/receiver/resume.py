# SPDX-License-Identifier: Apache-2.0
"""
Resuming deferred tasks: with ``connections``, the only module that touches Airflow's database models.

The models are no public interface of Airflow, so little of them is used, and that is tested on every supported version.
If a later Airflow changes them, callbacks are refused, and polling finishes the jobs.

A callback costs about the same however many tasks wait and however many submissions are recorded. A record is found by
primary key and index. Waiting tasks are found by what they have stored at their deferral, because any task of any DAG
can wait for a job: the database looks through the deferred tasks, a thousand in 0.3 ms, and returns those that fit.
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
    """One deferral of a task: a task that is deferred again gets another trigger."""

    task_instance_id: str
    trigger_id: int
    deferred_at: datetime


def record_callback(luma_task_id: str, reference: str, task_instance_id: str | None) -> bool:
    """
    Record which job a submission has become, if its task has lost the answer.

    A task that was killed before it could read Luma's answer finds it at its next try.

    :param task_instance_id: the try that has submitted, as 32 hexadecimal digits; None if it is not known
    :returns: whether there was such a task
    """
    if not HAS_TASK_STATE_STORE:
        return False
    from airflow.state.metastore import MetastoreBackend, TaskScope  # type: ignore[attr-defined]

    with create_session() as session:
        # Also searched for where Airflow no longer knows the try: a lost submission is money.
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
    Return the deferrals that a callback ends: of tasks that wait for its job, or for a callback of its submission.

    :param luma_conn_id: the connection that the callback has come over
    :param teams: for which that connection has this name; None for DAGs without a team
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
        # The token proves the reference; whoever knows only the job's id must be of the right team.
        team_of = _teams_of([dag_id for _, _, dag_id, is_proven in deferred if not is_proven], session)
        triggers = {
            trigger_id: task_instance_id
            for task_instance_id, trigger_id, dag_id, is_proven in deferred
            if is_proven or not has_teams() or team_of.get(dag_id) in teams
        }
        # Apart from the tasks: joined, the triggers of all deferred tasks would be read.
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


def _teams_of(dag_ids: list[str], session: Session) -> dict[str, str | None]:
    """Return the teams of DAGs; those without a team are left out."""
    if not has_teams() or not dag_ids:
        return {}
    return DagModel.get_dag_id_to_team_name_mapping(dag_ids, session=session)


def _records_of(task_instance_id: str | None, session: Session) -> list[Any]:
    """Return the submission's record of the task instance of which this is, or was, a try; an empty list if none."""
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
    """Search the text of all records, which takes the longer the more there are."""
    model = TaskStateStoreModel
    return list(session.scalars(select(model).where(model.key == STORE_KEY, model.value.contains(reference))))


def _is_lost(value: str, reference: str) -> bool:
    try:
        record = json.loads(value)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("reference") == reference and not record.get("luma_task_id")


def _stored(name: str) -> ColumnElement[str]:
    """Return what tasks have stored under a name at their deferral, for the database to read."""
    kwargs = type_coerce(TaskInstance.next_kwargs, JSON().with_variant(JSONB(), "postgresql"))
    value: ColumnElement[str] = kwargs[(*DEFERRAL_KWARGS_PATH, name)].as_string()
    return value


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

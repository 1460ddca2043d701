# SPDX-License-Identifier: Apache-2.0
"""Airflow's metadata database with deferred tasks, written as the worker and the API server write them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import structlog
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk.execution_time.task_runner import _defer_task
from airflow.serialization.serialized_objects import BaseSerialization
from airflow.utils.session import create_session
from sqlalchemy import delete, insert, select, update

from airflow_provider_luma.compat import HAS_TASK_STATE_STORE
from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.core.deferral import RESUMABLE_TRIGGERS, DeferralState
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY
from airflow_provider_luma.triggers.luma import LumaCallbackTrigger
from harness.deferrals import deferral_of

TaskStateStoreModel = None
if HAS_TASK_STATE_STORE:
    from airflow.models.task_state_store import TaskStateStoreModel

#: The Luma task that the deferred tasks wait for by default.
JOB = "6b7e5e3f2a1d4c0b9a8f7e6d5c4b3a29"

needs_task_state = pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="Airflow below 3.3 keeps no task state")


class TaskInstanceState(NamedTuple):
    """The columns of a task instance that a callback may change."""

    state: str
    trigger_id: int | None
    next_method: str
    next_kwargs: dict[str, Any]


class MetadataDb:
    """The metadata database."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def defer(
        self, *deferrals: TaskDeferred, dag_id: str = "films", seconds: float = 60, state: str = "deferred"
    ) -> list[Any]:
        """
        Write the task instances of a new run, one for each deferral; return their ids.

        :param seconds: how long ago they were deferred
        :param state: their state
        """
        run_id, deferred_at = f"manual__{next(self._numbers)}", datetime.now(UTC) - timedelta(seconds=seconds)
        triggers, tasks = [], []
        for number, deferral in enumerate(deferrals):
            task_id = f"task_{number}"
            sent, _ = _defer_task(
                deferral, SimpleNamespace(dag_id=dag_id, run_id=run_id, task_id=task_id), structlog.get_logger()
            )
            # Through JSON, as between the worker and the API server.
            sent = json.loads(
                sent.model_dump_json(include={"classpath", "trigger_kwargs", "next_method", "next_kwargs"})
            )
            if "__var" in sent["next_kwargs"]:  # below Airflow 3.2 the API server decodes it again
                sent["next_kwargs"] = BaseSerialization.deserialize(sent["next_kwargs"])
            triggers.append(Trigger(classpath=sent["classpath"], kwargs={}, created_date=deferred_at))
            triggers[-1].encrypted_kwargs = json.dumps(sent["trigger_kwargs"])
            tasks.append({"task_id": task_id, "next_method": sent["next_method"], "next_kwargs": sent["next_kwargs"]})
        with create_session() as session:
            run = {"dag_id": dag_id, "run_id": run_id, "run_type": "manual", "state": "running"}
            session.execute(insert(DagRun).values(**run, run_after=deferred_at, clear_number=0))
            session.add_all(triggers)
            session.flush()
            same = {"dag_id": dag_id, "run_id": run_id, "map_index": -1, "pool": "default_pool", "state": state}
            session.execute(
                insert(TaskInstance),
                [{**same, **task, "trigger_id": trigger.id} for task, trigger in zip(tasks, triggers, strict=True)],
            )
            of_the_run = (TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
            rows = session.execute(select(TaskInstance.task_id, TaskInstance.id).where(*of_the_run)).all()
        ids = {row.task_id: row.id for row in rows}
        return [ids[task["task_id"]] for task in tasks]

    def retry(self, task_instance_id: Any) -> Any:
        """End the try of a task as Airflow does for a retry or a Clear; return the id of its next try."""
        with create_session() as session:
            task = session.get(TaskInstance, task_instance_id)
            task.task = None
            successor = task.prepare_db_for_next_try(session) or task  # from Airflow 3.4 on, another task instance
            session.flush()
            return successor.id

    def in_region(self, task_instance_id: Any, index: int, region_id: UUID | None) -> None:
        """Give a task a map index or, from Airflow 3.4 on, a region, such as an iteration of a loop."""
        columns = {"map_index": index} if region_id is None else {"region_index": index, "region_id": region_id}
        with create_session() as session:
            session.execute(update(TaskInstance).where(TaskInstance.id == task_instance_id).values(columns))

    def defer_again(self, task_instance_id: Any, trigger_id: int | None = None) -> None:
        """
        Defer a task again with the same kwargs, as if its job were still running.

        :param trigger_id: the id of the new trigger; the next free one by default
        """
        trigger = Trigger(classpath=RESUMABLE_TRIGGERS[0], kwargs={}, created_date=datetime.now(UTC))
        with create_session() as session:
            of_the_task = update(TaskInstance).where(TaskInstance.id == task_instance_id)
            if trigger_id is not None:
                session.execute(of_the_task.values(trigger_id=None))
                session.execute(delete(Trigger).where(Trigger.id == trigger_id))
                trigger.id = trigger_id
            session.add(trigger)
            session.flush()
            session.execute(of_the_task.values(state="deferred", trigger_id=trigger.id))

    def states(self, ids: list[Any]) -> list[TaskInstanceState]:
        """Return the columns that callbacks may change for each of these task instances."""
        columns = [getattr(TaskInstance, name) for name in TaskInstanceState._fields]
        with create_session() as session:
            rows = [session.execute(select(*columns).where(TaskInstance.id == one)).one() for one in ids]
        return [TaskInstanceState(*row) for row in rows]

    def resumed(self) -> set[Any]:
        """Return the ids of all task instances that are not deferred."""
        with create_session() as session:
            return set(session.scalars(select(TaskInstance.id).where(TaskInstance.state != "deferred")))

    def resumed_after(self, task_instance_id: Any) -> float:
        """Return the seconds between a task's deferral and the end of that deferral."""
        with create_session() as session:
            scheduled_at, deferred_at = session.execute(
                select(TaskInstance.scheduled_dttm, DagRun.run_after)
                .join(DagRun, (DagRun.dag_id == TaskInstance.dag_id) & (DagRun.run_id == TaskInstance.run_id))
                .where(TaskInstance.id == task_instance_id)
            ).one()
        return (scheduled_at - deferred_at).total_seconds()

    def save_record(self, task_instance_id: Any, record: SubmissionRecord | str, **options: Any) -> None:
        """Save a submission record in the task state store, as a task does through the Execution API."""
        from airflow.state.metastore import MetastoreBackend

        value = record if isinstance(record, str) else json.dumps(record.as_dict())
        MetastoreBackend().set(self._scope(task_instance_id), STORE_KEY, value, **options)

    def recorded_callback(self, task_instance_id: Any) -> Any:
        """Return what a callback recorded for a task."""
        from airflow.state.metastore import MetastoreBackend

        stored = MetastoreBackend().get(self._scope(task_instance_id), CALLBACK_KEY)
        return stored and json.loads(stored)

    @staticmethod
    def _scope(task_instance_id: Any) -> Any:
        from airflow.state.metastore import TaskScope

        columns = [getattr(TaskInstance, field.name) for field in dataclasses.fields(TaskScope)]
        with create_session() as session:
            row = session.execute(select(*columns).where(TaskInstance.id == task_instance_id)).one()
        return TaskScope(**dict(row._mapping))

    @staticmethod
    def empty() -> None:
        """Delete all tasks."""
        with create_session() as session:
            for model in filter(None, (TaskStateStoreModel, TaskInstance, Trigger, DagRun)):
                session.execute(delete(model))


def operator_awaiting_job(luma_task_id: str = JOB, reference: str | None = None, **options: Any) -> TaskDeferred:
    """
    Return the deferral of an operator that has submitted a job.

    :param reference: the reference of the submission; None if version 1.1.0 deferred the task and did not store it
    """
    state = DeferralState(luma_task_id, reference, end_time=time.time() + 1800)
    return deferral_of(_operator(**options).defer_for_job, state, poll_interval=30)


def sensor_awaiting_job(luma_task_id: str = JOB) -> TaskDeferred:
    """Return the deferral of a sensor."""
    sensor = LumaTaskSensor(task_id="wait", luma_task_id=luma_task_id, execution_timeout=timedelta(hours=1))
    state = DeferralState(luma_task_id=luma_task_id, end_time=time.time() + 1800)
    return deferral_of(sensor.defer_for_job, state, poll_interval=30)


def operator_awaiting_callback(reference: str, **options: Any) -> TaskDeferred:
    """Return the deferral of an operator that lost the response to its submission."""
    state = DeferralState(reference=reference, end_time=time.time() + 1800)
    trigger = LumaCallbackTrigger(state.as_kwargs(), until=time.time() + 300)
    return deferral_of(_operator(**options).defer_with, trigger, "execute_with_callback", state)


def _operator(**options: Any) -> LumaModifyOperator:
    return LumaModifyOperator(task_id="modify", prompt="make it snow", video_url="https://e.com/v.mp4", **options)


def another_providers_task(**kwargs: Any) -> TaskDeferred:
    """Return the deferral of a task that has nothing to do with Luma."""
    return TaskDeferred(
        trigger=TimeDeltaTrigger(timedelta(hours=1)), method_name="execute_complete", kwargs=kwargs or None
    )

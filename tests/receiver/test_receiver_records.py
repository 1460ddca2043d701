# SPDX-License-Identifier: Apache-2.0
"""A callback records, in the task state store, which job a submission has become whose answer was lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from airflow import settings
from airflow.utils.session import create_session
from sqlalchemy import event, select

from airflow_provider_luma.core.decision import SubmissionRecord, new_reference
from airflow_provider_luma.receiver import resume
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from harness.api_server import proof
from harness.metadata_db import (
    JOB,
    TaskStateStoreModel,
    another_providers_task,
    needs_task_state,
    operator_awaiting_callback,
    operator_awaiting_job,
)

pytestmark = needs_task_state


def record_of(reference: str, luma_task_id: str | None = None) -> SubmissionRecord:
    return SubmissionRecord(reference, "f" * 64, luma_task_id, max_tries=2, try_number=1, expects_callback=True)


async def test_job_of_a_submission_whose_answer_was_lost_is_recorded(metadata_db, api_server):
    reference = new_reference()
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, record_of(reference))
    assert (await api_server.callback(proof(reference))).status_code == 200
    assert metadata_db.recorded_callback(task) == {"reference": reference, "luma_task_id": JOB}


async def test_recorded_callback_expires_together_with_the_submissions_record(metadata_db, api_server):
    reference, expires_at = new_reference(), datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, record_of(reference), expires_at=expires_at)
    await api_server.callback(proof(reference))
    with create_session() as session:
        rows = session.scalars(select(TaskStateStoreModel.expires_at)).all()
    assert rows == [expires_at, expires_at]


class TestRecordOfTheTryInTheAddress:
    """The record is found without a search."""

    @pytest.fixture(autouse=True)
    def _no_search(self, monkeypatch):
        monkeypatch.setattr(resume, "_records_that_name", lambda *_: pytest.fail("all records are searched"))

    async def test_record_of_the_try_that_submitted_is_found(self, metadata_db, api_server):
        reference = new_reference()
        (task,) = metadata_db.defer(another_providers_task(), state="failed")
        metadata_db.save_record(task, record_of(reference))
        assert (await api_server.callback(proof(reference, submitted_by=task))).status_code == 200
        assert metadata_db.recorded_callback(task) == {"reference": reference, "luma_task_id": JOB}

    @pytest.mark.parametrize("tries", [1, 2])
    async def test_record_is_found_after_retries_and_clears(self, metadata_db, api_server, tries):
        reference = new_reference()
        (first,) = metadata_db.defer(another_providers_task(), state="failed")
        metadata_db.save_record(first, record_of(reference))
        latest = first
        for _ in range(tries):
            latest = metadata_db.retry(latest)
        assert latest != first
        await api_server.callback(proof(reference, submitted_by=first))
        assert metadata_db.recorded_callback(latest) == {"reference": reference, "luma_task_id": JOB}

    @pytest.mark.parametrize("is_retried", [False, True])
    async def test_record_of_a_mapped_task_is_found_among_those_of_others(self, metadata_db, api_server, is_retried):
        references = [new_reference() for _ in range(3)]
        has_regions = hasattr(TaskStateStoreModel, "region_id")  # from Airflow 3.4 on
        tasks = []
        for number, reference in enumerate(references):
            (task,) = metadata_db.defer(another_providers_task(), state="failed")
            metadata_db.in_region(task, number, uuid4() if has_regions else None)
            metadata_db.save_record(task, record_of(reference))
            tasks.append(task)
        latest = [metadata_db.retry(task) for task in tasks] if is_retried else tasks
        await api_server.callback(proof(references[1], submitted_by=tasks[1]))
        recorded = [metadata_db.recorded_callback(task) for task in latest]
        assert recorded == [None, {"reference": references[1], "luma_task_id": JOB}, None]

    async def test_record_of_a_task_with_the_longest_names_is_found(self, metadata_db, api_server):
        reference = new_reference()
        (task,) = metadata_db.defer(another_providers_task(), state="failed", dag_id="Filme für 雨 🎬 100%_" * 12)
        metadata_db.save_record(task, record_of(reference))
        query = proof(reference, submitted_by=task)
        await api_server.callback(query)
        assert metadata_db.recorded_callback(task)["luma_task_id"] == JOB
        assert len(query) < 250

    async def test_nothing_is_recorded_for_a_later_submission_of_the_task(self, metadata_db, api_server):
        (task,) = metadata_db.defer(another_providers_task(), state="failed")
        metadata_db.save_record(task, record_of(new_reference()))
        assert (await api_server.callback(proof(submitted_by=task))).status_code == 200
        assert metadata_db.recorded_callback(task) is None

    async def test_callback_of_a_later_submission_replaces_that_of_an_earlier_one(self, metadata_db, api_server):
        (task,) = metadata_db.defer(another_providers_task(), state="failed")
        for reference in (new_reference(), new_reference()):
            metadata_db.save_record(task, record_of(reference))
            await api_server.callback(proof(reference, submitted_by=task))
            assert metadata_db.recorded_callback(task)["reference"] == reference

    async def test_no_query_of_a_callback_reads_a_whole_table(self, metadata_db, api_server):
        reference, statements = new_reference(), []
        (task,) = metadata_db.defer(operator_awaiting_job())
        metadata_db.save_record(task, record_of(reference))

        def on_query(_connection, _cursor, statement, parameters, *_: object) -> None:
            statements.append((statement, parameters))

        event.listen(settings.engine, "before_cursor_execute", on_query)
        try:
            await api_server.callback(proof(reference, submitted_by=task))
        finally:
            event.remove(settings.engine, "before_cursor_execute", on_query)
        assert metadata_db.resumed() == {task}
        assert metadata_db.recorded_callback(task) is not None
        with settings.engine.connect() as connection:
            plans = [
                row[-1]
                for statement, parameters in statements
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            ]
        assert any("task_state_store USING INDEX" in plan for plan in plans)
        tables = ("task_instance", "task_instance_history", "task_state_store", "trigger")
        assert [plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in tables] == []


async def test_record_of_a_try_that_airflow_no_longer_knows_is_searched_for(metadata_db, api_server):
    reference = new_reference()
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, record_of(reference))
    await api_server.callback(proof(reference, submitted_by=uuid4()))
    assert metadata_db.recorded_callback(task) == {"reference": reference, "luma_task_id": JOB}


async def test_nothing_is_recorded_for_a_task_that_knows_its_job(metadata_db, api_server):
    reference = new_reference()
    (task,) = metadata_db.defer(operator_awaiting_job())
    metadata_db.save_record(task, record_of(reference, JOB))
    await api_server.callback(proof(reference))
    assert metadata_db.recorded_callback(task) is None
    assert metadata_db.resumed() == {task}


async def test_nothing_is_recorded_for_a_callback_of_an_unknown_submission(metadata_db, api_server):
    tasks = metadata_db.defer(another_providers_task(), another_providers_task(), state="failed")
    for task in tasks:
        metadata_db.save_record(task, record_of(new_reference()))
    assert (await api_server.callback(proof())).status_code == 200
    assert [metadata_db.recorded_callback(task) for task in tasks] == [None, None]


async def test_callback_is_recorded_only_for_the_task_of_its_submission(metadata_db, api_server):
    reference = new_reference()
    lost, other = metadata_db.defer(another_providers_task(), another_providers_task(), state="failed")
    metadata_db.save_record(lost, record_of(reference))
    metadata_db.save_record(other, record_of(new_reference()))
    await api_server.callback(proof(reference))
    assert (metadata_db.recorded_callback(lost)["luma_task_id"], metadata_db.recorded_callback(other)) == (JOB, None)


async def test_callback_is_recorded_only_for_the_mapped_task_of_its_submission(metadata_db, api_server):
    from airflow.state.metastore import MetastoreBackend, TaskScope

    reference = new_reference()
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, record_of(new_reference()))
    with create_session() as session:
        row = session.scalars(select(TaskStateStoreModel)).one()
        coordinates = [row.dag_id, row.run_id, row.task_id, 3]
    if hasattr(TaskStateStoreModel, "region_id"):  # from Airflow 3.4 on
        coordinates.append(uuid4())
    mapped = TaskScope(*coordinates)
    MetastoreBackend().set(mapped, STORE_KEY, json.dumps(record_of(reference).as_dict()))
    assert (await api_server.callback(proof(reference))).status_code == 200
    assert json.loads(MetastoreBackend().get(mapped, CALLBACK_KEY))["luma_task_id"] == JOB
    assert metadata_db.recorded_callback(task) is None


async def test_callback_is_recorded_before_the_task_is_resumed(metadata_db, api_server, monkeypatch):
    """The resumed task must find it, should the event be lost."""
    reference, recorded = new_reference(), []
    (task,) = metadata_db.defer(operator_awaiting_callback(reference))
    metadata_db.save_record(task, record_of(reference))
    resume_waiting = resume.resume_waiting

    def read_and_resume(*arguments: Any) -> Any:
        recorded.append(metadata_db.recorded_callback(task))
        return resume_waiting(*arguments)

    monkeypatch.setattr(resume, "resume_waiting", read_and_resume)
    await api_server.callback(proof(reference))
    assert recorded == [{"reference": reference, "luma_task_id": JOB}]
    assert metadata_db.resumed() == {task}


async def test_repeated_callbacks_are_recorded_once(metadata_db, api_server):
    reference = new_reference()
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, record_of(reference))
    for _ in range(5):
        assert (await api_server.callback(proof(reference))).status_code == 200
    with create_session() as session:
        assert sorted(session.scalars(select(TaskStateStoreModel.key))) == sorted([STORE_KEY, CALLBACK_KEY])


@pytest.mark.parametrize("stored", ["[]", '"{reference}"', "{reference}", '{{"other": "{reference}"}}'])
async def test_unreadable_record_of_a_submission_is_ignored(metadata_db, api_server, stored):
    reference = new_reference()
    (task,) = metadata_db.defer(another_providers_task(), state="failed")
    metadata_db.save_record(task, stored.format(reference=reference))
    assert (await api_server.callback(proof(reference))).status_code == 200
    assert metadata_db.recorded_callback(task) is None


async def test_callback_is_recorded_in_the_submission_store_that_the_connection_names(api_server, connect, tmp_path):
    connect("luma_with_store", key="another-key", submission_store=str(tmp_path))
    reference = new_reference()
    query = proof(reference, conn_id="luma_with_store", key="another-key")
    assert (await api_server.callback(query)).status_code == 200
    assert ObjectSubmissionStore(str(tmp_path), ("a", "b", "c", -1)).callback_task_id(reference) == JOB


async def test_callback_that_the_submission_store_cannot_take_is_to_be_repeated(api_server, connect, tmp_path):
    (tmp_path / "file").write_text("no folder")
    connect("luma_with_store", key="another-key", submission_store=str(tmp_path / "file"))
    query = proof(conn_id="luma_with_store", key="another-key")
    assert (await api_server.callback(query)).status_code == 503

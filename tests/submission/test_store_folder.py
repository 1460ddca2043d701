# SPDX-License-Identifier: Apache-2.0
"""Records in a folder on any storage: they survive everything, and of two tries at once only one submits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.core.decision import RECORDS_KEPT, Outcome, SubmissionRecord, new_reference
from airflow_provider_luma.exceptions import LumaTimeoutError
from airflow_provider_luma.files import creation
from airflow_provider_luma.submission import json_folder
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore, record_callback
from tests.support.task_instance import TaskInstance, TaskRun, TaskStateStore, killed_at

pytestmark = [pytest.mark.slow, pytest.mark.versions]

TASK = ("films", "manual__2026-11-24T20:00:00+00:00", "modify", -1)
JOB = "0123456789abcdef0123456789abcdef"


def intent() -> SubmissionRecord:
    return SubmissionRecord(new_reference(), "a-fingerprint", None, 2, 1, submitted_at=time.time())


@pytest.fixture
def store(folder: str) -> ObjectSubmissionStore:
    return ObjectSubmissionStore(folder, TASK)


class TestRecords:
    def test_next_try_loads_what_was_saved_last(self, store, folder):
        assert store.load() is None
        first = intent()
        store.begin(first)
        assert ObjectSubmissionStore(folder, TASK).load() == first
        store.save(replace(first, luma_task_id=JOB))
        assert ObjectSubmissionStore(folder, TASK).load() == replace(first, luma_task_id=JOB)

    def test_each_iteration_of_a_loop_has_records_of_its_own(self, folder):
        for iteration in (None, 0, 1):
            store = ObjectSubmissionStore(folder, TASK, iteration)
            assert store.load() is None
            store.begin(begun := intent())
            assert ObjectSubmissionStore(folder, TASK, iteration).load() == begun

    def test_refused_submission_counts_as_none(self, store):
        first = intent()
        store.begin(first)
        store.forget(first)
        assert store.load() is None
        store.begin(second := intent())
        assert store.load() == second

    def test_all_attempts_of_a_submission_are_forgotten_together(self, store, monkeypatch):
        """Marking the first may have failed."""
        store.begin(before := replace(intent(), luma_task_id=JOB))
        attempted = intent()
        for _ in range(2):
            store.begin(attempted)
        store.forget(attempted)
        assert store.load() == before

    def test_later_submission_takes_the_place_of_an_earlier_one(self, store):
        store.begin(replace(intent(), luma_task_id=JOB))
        store.begin(second := intent())
        assert store.load() == second

    def test_late_answer_to_an_earlier_submission_does_not_change_the_later_one(self, store):
        store.begin(first := intent())
        store.begin(second := intent())
        store.save(replace(first, luma_task_id=JOB))
        store.forget(first)
        assert store.load() == second
        assert store.update(first.reference, delivered=Outcome.RESULT) == second

    def test_update_changes_the_record_of_its_submission(self, store):
        store.begin(first := intent())
        assert store.update(first.reference, reported=True) == replace(first, reported=True) == store.load()

    @pytest.mark.parametrize("outcome", [{}, {"luma_task_id": JOB}, {"luma_task_id": JOB, "delivered": Outcome.RESULT}])
    def test_of_two_tries_at_once_only_one_can_begin_whatever_becomes_of_it(self, store, folder, outcome):
        other = ObjectSubmissionStore(folder, TASK)
        assert store.load() is other.load() is None
        other.begin(first := intent())
        other.save(replace(first, **outcome))
        with pytest.raises(AirflowException, match="another try of this task is submitting at the same time"):
            store.begin(intent())

    def test_callback_is_found_by_the_submission_that_it_belongs_to(self, store, folder):
        assert store.callback_task_id("a-reference") is None
        record_callback(folder, JOB, "a-reference")
        assert store.callback_task_id("a-reference") == JOB
        assert store.callback_task_id("another-reference") is None

    def test_file_tells_a_person_which_task_it_belongs_to(self, tmp_path):
        ObjectSubmissionStore(str(tmp_path), TASK).begin(intent())
        [file] = (tmp_path / "records").rglob("*.json")
        document = json.loads(file.read_text())
        assert [document[name] for name in ("dag_id", "run_id", "task_id", "map_index")] == list(TASK)


ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=250)
tasks = st.tuples(ids, ids, ids, st.integers(-1, 1000))


class TestNames:
    @given(tasks, tasks)
    @example(("a", "b", "c", 1), ("a/b", "c", "", 1))
    @example(("a", "b", "c", 1), ("A", "b", "c", 1))
    @example(("..", "b", "c", 1), (".", "b", "c", 1))
    @example(("a" * 240 + "x", "b", "c", 1), ("a" * 240 + "y", "b", "c", 1))
    def test_no_two_task_instances_share_a_file_also_where_case_is_ignored(self, one, other):
        paths = [ObjectSubmissionStore("/store", task)._file(1) for task in (one, other)]
        assert (paths[0].casefold() == paths[1].casefold()) == (one == other)

    @given(tasks)
    def test_every_part_of_a_path_is_harmless_and_short_enough_for_a_file_system(self, task):
        for part in ObjectSubmissionStore("/store", task)._file(1).split("/"):
            assert 0 < len(part) <= 255
            assert part.isascii()
            assert part.removesuffix(".json").strip(".") == part.removesuffix(".json")


class TestExpiry:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Callable[[str], Path]:
        def write(path: str) -> Path:
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
            os.utime(file, (time.time() - RECORDS_KEPT - 60,) * 2)
            return file

        return write

    def test_submission_removes_records_and_callbacks_that_are_older_than_two_months(self, tmp_path, old):
        old_files = [
            old("records/films/old/modify/-1-0123456789abcdef/000001.json"),
            old(f"callbacks/{new_reference()}.json"),
        ]
        old_files.append(old("records/films/old/modify/-1-0123456789abcdef/000002.json.12345678.part"))
        kept = [old("somebody-elses.json"), old("records/customers/2025.json"), old("callbacks/notes.json")]
        store = ObjectSubmissionStore(str(tmp_path), TASK)
        store.begin(record := intent())
        store.save(record)
        assert not any(file.exists() for file in old_files)
        assert all(file.exists() for file in kept)
        assert store.load() == record

    def test_worker_whose_clock_is_ahead_removes_no_records(self, tmp_path, monkeypatch):
        store = ObjectSubmissionStore(str(tmp_path), TASK)
        store.begin(record := intent())
        ahead = time.time() + 2 * RECORDS_KEPT
        monkeypatch.setattr(json_folder.time, "time", lambda: ahead)
        other = ObjectSubmissionStore(str(tmp_path), (*TASK[:3], 7))
        other.begin(another := intent())
        other.save(another)
        assert store.load() == record

    def test_folder_is_searched_once_a_day(self, tmp_path, old):
        store = ObjectSubmissionStore(str(tmp_path), TASK)
        store.begin(record := intent())
        store.save(record)
        file = old(f"callbacks/{new_reference()}.json")
        store.save(record)
        assert file.exists()
        os.utime(tmp_path / "last-cleanup.json", (time.time() - json_folder.CLEANUP_INTERVAL - 60,) * 2)
        store.save(record)
        assert not file.exists()

    def test_submission_goes_on_if_old_files_cannot_be_removed(self, tmp_path):
        (tmp_path / "last-cleanup.json").mkdir(parents=True)
        os.utime(tmp_path / "last-cleanup.json", (0, 0))
        store = ObjectSubmissionStore(str(tmp_path), TASK)
        store.begin(record := intent())
        store.save(record)
        assert store.load() == record


class TestUnusableStorage:
    def test_nothing_is_submitted_if_the_record_cannot_be_written(self, luma, modify, set_connection, tmp_path):
        (tmp_path / "file").write_text("no folder")
        set_connection(luma.base_url, submission_store=str(tmp_path / "file"))
        with pytest.raises(AirflowException, match=r"submission_store .* Nothing was submitted"):
            TaskRun(modify, None).run_try()
        assert luma.accepted == 0

    def test_nothing_is_submitted_if_the_share_is_not_mounted(self, luma, modify, set_connection, tmp_path):
        set_connection(luma.base_url, submission_store=str(tmp_path / "not-mounted" / "luma"))
        with pytest.raises(AirflowException, match="its disk may not be mounted"):
            TaskRun(modify, None).run_try()
        assert luma.accepted == 0

    def test_storage_that_repeats_a_create_whose_answer_was_lost_counts_as_done(self, store):
        first = intent()
        store.begin(first)
        store._number = 0
        store.begin(first)
        assert store.load() == first

    def test_nothing_is_submitted_if_the_record_cannot_be_read(self, luma, modify, set_connection, tmp_path):
        set_connection(luma.base_url, submission_store=str(tmp_path))
        task = TaskRun(modify, None)
        task.run_try()
        [file] = (tmp_path / "records").rglob("*.json")
        file.write_text("{half")
        with pytest.raises(AirflowException, match="is not a valid submission record.* Correct the file, or delete it"):
            task.run_try()
        assert luma.accepted == 1


class TestSubmitOnce:
    """On an Airflow without a task state store."""

    @pytest.fixture
    def task(self, luma, modify, luma_conn, set_connection, folder) -> TaskRun:
        set_connection(luma.base_url, submission_store=folder)
        return TaskRun(lambda **changes: modify(**{"deferrable": False, **changes}), None)

    def test_retry_takes_the_result_of_the_job_that_the_first_try_submitted(self, luma, task):
        luma.configure(processing_seconds=0, faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            task.run_try(timeout=0.05)
        luma.configure(faults=[])
        assert task.run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_clear_submits_anew_only_after_the_result_was_returned(self, luma, task):
        luma.configure(processing_seconds=0, faults=["status:unknown_flag,flag=0"])
        with pytest.raises(LumaTimeoutError):
            task.run_try(timeout=0.05)
        luma.configure(faults=[])
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[0].task_id
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id

    def test_try_that_was_overtaken_by_another_one_submits_nothing(self, luma, task, modify, monkeypatch):
        """A worker that Airflow takes for dead wakes up between its decision and its submission."""
        luma.configure(processing_seconds=0)
        overtaking = TaskRun(lambda **changes: modify(deferrable=False, **changes), None)
        get_callback_url = LumaClient.callback_url

        def overtaken(hook, *submission):
            monkeypatch.setattr(LumaClient, "callback_url", get_callback_url)
            overtaking.run_try()
            return get_callback_url(hook, *submission)

        monkeypatch.setattr(LumaClient, "callback_url", overtaken)
        with pytest.raises(AirflowException, match="another try of this task"):
            task.run_try()
        assert luma.accepted == 1

    def test_store_that_the_connection_names_only_now_takes_over_the_record(
        self, luma, modify, luma_conn, set_connection, folder
    ):
        luma.configure(processing_seconds=0, faults=["status:unknown_flag,flag=0"])
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
        with pytest.raises(LumaTimeoutError):
            task.run_try(timeout=0.05)
        luma.configure(faults=[])
        set_connection(luma.base_url, submission_store=folder)
        assert task.run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id
        assert luma.accepted == 2

    def test_store_that_the_connection_names_only_now_takes_over_the_callback(
        self, luma, modify, callbacks_on, set_connection, folder
    ):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        task = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
        with pytest.raises(AirflowFailException):
            task.run_try()
        task.store.record_callback(luma.jobs[0].task_id)
        set_connection(luma.base_url, submission_store=folder)
        with pytest.raises(LumaTimeoutError):
            task.clear_and_run(timeout=0.05)
        assert luma.accepted == 1

    def test_refusal_that_could_not_be_marked_at_once_hides_nothing(self, luma, task, monkeypatch, short_backoff):
        replace_file, failed = json_folder.JsonFolder.replace, []

        def replace_later(folder, file, document):
            if document.get("refused") and not failed:
                failed.append(file)
                raise OSError("the storage is down")
            replace_file(folder, file, document)

        monkeypatch.setattr(json_folder.JsonFolder, "replace", replace_later)
        luma.configure(processing_seconds=0, faults=["submit:refuse,code=429,times=1"])
        assert task.run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert failed
        assert task.run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1

    def test_mapped_task_instances_do_not_share_a_record(self, luma, task, monkeypatch):
        luma.configure(processing_seconds=0)
        task.run_try()
        monkeypatch.setattr(TaskInstance, "map_index", 1)
        task.run_try()
        assert luma.accepted == 2

    def test_submission_without_an_answer_is_not_repeated_before_it_was_reported_and_cleared(self, luma, task):
        luma.configure(processing_seconds=0, faults=["submit:refuse,code=500,after_accept,times=1"])
        for _ in range(3):
            with pytest.raises(AirflowFailException, match="log page"):
                task.run_try()
        assert luma.accepted == 1
        assert task.clear_and_run()["luma_task_id"] == luma.jobs[1].task_id


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_process_that_is_killed_around_any_write_pays_for_nothing_twice(
    luma, modify, luma_conn, set_connection, tmp_path, number, is_done
):
    """Kills before and after each file is written, and after it has got its name."""
    set_connection(luma.base_url, submission_store=str(tmp_path))
    luma.configure(processing_seconds=0)
    task = TaskRun(lambda **changes: modify(deferrable=False, **changes), None)
    whole_file = creation.WholeLocalFile
    with killed_at(number, (whole_file, "__enter__"), (whole_file, "__exit__"), is_done=is_done):
        task.run_try()
    for _ in range(2):
        with suppress(AirflowFailException):  # it is unknown whether the killed one was accepted
            task.run_try()
    assert luma.accepted <= 1
    record = ObjectSubmissionStore(str(tmp_path), ("films", "manual__1", "modify", -1)).load()
    assert record is not None

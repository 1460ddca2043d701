# SPDX-License-Identifier: Apache-2.0
"""``max_jobs_per_run``: a DAG run never submits more jobs than that, whatever happens to its tasks."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from airflow.sdk.io import store as airflow_storages
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.core.decision import RECORDS_KEPT, SubmissionRecord, new_reference
from airflow_provider_luma.exceptions import LumaJobLimitError, LumaRateLimitError, LumaTimeoutError
from airflow_provider_luma.submission import budget, json_folder
from airflow_provider_luma.submission.budget import Claim, RunBudget, Slot, Usage
from airflow_provider_luma.submission.json_folder import JsonFolder
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from harness.deferrals import deferral_of, expiry_event, resume
from tests.support.storages import Sftp, SftpFileSystem
from tests.support.task_instance import Killed, TaskInstance, TaskRun, TaskStateStore
from tests.support.task_logs import messages

#: The run of the tests' task instances.
DAG_ID, RUN_ID = TaskInstance.dag_id, TaskInstance.run_id


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a local disk, and in an S3 bucket."""
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket').destination}/luma"


def store_of(folder: str, map_index: int = 0, task_id: str = "modify") -> ObjectSubmissionStore:
    return ObjectSubmissionStore(folder, (DAG_ID, RUN_ID, task_id, map_index))


def budget_of(folder: str, map_index: int = 0, *, limit: int = 2, task_id: str = "modify", **options: Any) -> RunBudget:
    """Return the budget of the run as one mapped task instance sees it."""
    return store_of(folder, map_index, task_id).run_budget(limit, "luma_default", **options)


def jobs_of(folder: str) -> int:
    """Return how many slots of the run are in use."""
    return budget_of(folder).usage().jobs


def claim_if_possible(folder: str, map_index: int, limit: int) -> Claim | None:
    try:
        return budget_of(folder, map_index, limit=limit, is_first_try=True).claim(new_reference(), None)
    except LumaJobLimitError:
        return None


def _claim_some(arguments: tuple[str, range, int]) -> list[Claim]:
    folder, map_indexes, limit = arguments
    claims = (claim_if_possible(folder, map_index, limit) for map_index in map_indexes)
    return [claim for claim in claims if claim is not None]


class TestClaims:
    def test_of_200_claims_by_threads_at_once_exactly_50_succeed(self, tmp_path):
        with ThreadPoolExecutor(64) as threads:
            claims = list(threads.map(lambda index: claim_if_possible(str(tmp_path), index, 50), range(200)))
        assert sorted(claim.slot.number for claim in claims if claim) == list(range(1, 51))
        assert jobs_of(str(tmp_path)) == 50

    def test_of_200_claims_by_processes_at_once_exactly_50_succeed(self, tmp_path):
        shares = [(str(tmp_path), range(first, 200, 8), 50) for first in range(8)]
        with multiprocessing.get_context("fork").Pool(8) as processes:
            claims = [claim for share in processes.map(_claim_some, shares) for claim in share]
        assert sorted(claim.slot.number for claim in claims) == list(range(1, 51))

    def test_claims_and_releases_at_once_never_exceed_the_limit(self, tmp_path):
        """As with submissions that Luma refuses: each gives its slot back, and another task takes it."""
        held, most, lock = Counter[int](), [], threading.Lock()

        def submit(index: int) -> None:
            own = budget_of(str(tmp_path), index, limit=5, is_first_try=True)
            for _ in range(5):
                reference = new_reference()
                with suppress(LumaJobLimitError):
                    claim = own.claim(reference, None)
                    with lock:
                        held[claim.slot.number] += 1
                        most.append((held[claim.slot.number], held.total()))
                    with lock:
                        held[claim.slot.number] -= 1
                    own.release(claim, reference)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(submit, range(32)))
        assert most
        assert max(alike for alike, _ in most) == 1, "no slot has two holders"
        assert max(total for _, total in most) <= 5
        assert jobs_of(str(tmp_path)) == 0

    def test_slot_that_was_given_back_has_another_holder_next(self, folder):
        first, second = budget_of(folder, 0, limit=1), budget_of(folder, 1, limit=1)
        claim = first.claim("refused", None)
        assert claim == Claim(Slot(1, 1))
        with pytest.raises(LumaJobLimitError):
            second.claim("other", None)
        first.release(claim, "refused")
        assert (first.is_held(claim), jobs_of(folder)) == (False, 0)
        assert second.claim("other", None) == Claim(Slot(1, 2))

    def test_late_release_of_a_former_holder_frees_nothing(self, folder):
        """Its process was frozen, or the storage's client repeats a request whose response was lost."""
        first, second = budget_of(folder, 0, limit=1), budget_of(folder, 1, limit=1)
        claim = first.claim("refused", None)
        first.release(claim, "refused")
        second.claim("other", None)
        first.release(claim, "refused")
        assert jobs_of(folder) == 1

    def test_release_frees_no_slot_that_a_person_has_freed_and_another_task_has_claimed(self, tmp_path):
        first, second = budget_of(str(tmp_path), 0, limit=1), budget_of(str(tmp_path), 1, limit=1)
        claim = first.claim("looked for, and not found", None)
        [file] = (tmp_path / "budgets").rglob("*.json")
        file.unlink()
        second.claim("other", None)
        first.release(claim, "looked for, and not found")
        assert jobs_of(str(tmp_path)) == 1

    def test_claim_whose_answer_was_lost_counts_as_done(self, folder, monkeypatch):
        """s3fs repeats the request, which then finds the file that it has made itself."""
        monkeypatch.setattr(RunBudget, "_find", lambda _: [Claim(Slot(1, 1))])
        own = budget_of(folder)
        assert own.claim("mine", None) == own.claim("mine", None)

    def test_claims_of_tasks_that_are_faster_each_time_end_in_a_retry(self, tmp_path, monkeypatch):
        monkeypatch.setattr(JsonFolder, "create", lambda *_: False)
        with pytest.raises(AirflowException, match="too many tasks tried at the same time"):
            budget_of(str(tmp_path)).claim("mine", None)

    def test_each_run_and_each_dag_has_its_own_slots(self, tmp_path):
        for names in (("a", "r"), ("b", "r"), ("a", "s"), ("a/b", "r"), ("A", "r")):
            store = ObjectSubmissionStore(str(tmp_path), (*names, "modify", -1))
            assert store.run_budget(1, "luma_default").claim(new_reference(), None) == Claim(Slot(1, 1))

    def test_slot_tells_a_person_whose_it_is(self, tmp_path):
        budget_of(str(tmp_path), 7).claim("mine", 1.08)
        [file] = (tmp_path / "budgets").rglob("*.json")
        assert file.name == "000001-001.json"
        document = json.loads(file.read_text())
        assert abs(document.pop("claimed_at") - time.time()) < 60
        assert document == {
            "dag_id": DAG_ID,
            "run_id": RUN_ID,
            "task_id": "modify",
            "map_index": 7,
            "iteration": None,
            "reference": "mine",
            "us_dollars": 1.08,
            "took_over": [],
        }

    def test_claim_lists_once_and_creates_once(self, tmp_path, monkeypatch):
        budget_of(str(tmp_path), 0, limit=9).claim("first", None)
        used: list[str] = []
        for name in ("ls", "cat_file"):
            monkeypatch.setattr(LocalFileSystem, name, counted(used, name, getattr(LocalFileSystem, name)))
        monkeypatch.setattr(json_folder, "_create_local", counted(used, "create", json_folder._create_local))
        own = budget_of(str(tmp_path), 1, limit=9, is_first_try=True)
        own.check()
        own.claim("second", None)
        assert used == ["ls", "ls", "create"]


def counted(used: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        used.append(name)
        return function(*arguments, **options)

    return call


class TestDifferingLimits:
    def test_task_counts_the_slots_of_all_tasks(self, folder):
        assert budget_of(folder, 0, limit=3).claim("first", None) == Claim(Slot(1, 1))
        with pytest.raises(LumaJobLimitError, match="max_jobs_per_run=1: this DAG run has submitted 1 jobs"):
            budget_of(folder, 1, limit=1).claim("second", None)
        assert budget_of(folder, 2, limit=3).claim("third", None) == Claim(Slot(2, 1))

    def test_limit_that_was_lowered_counts_what_was_submitted_before(self, folder):
        claims = [budget_of(folder, index, limit=3).claim(str(index), None) for index in range(3)]
        budget_of(folder, 0).release(claims[0], "0")
        with pytest.raises(LumaJobLimitError):
            budget_of(folder, 3, limit=1).claim("lower", None)
        assert budget_of(folder, 3, limit=3).claim("same", None) == Claim(Slot(1, 2))

    def test_limit_that_was_raised_allows_more(self, folder):
        budget_of(folder, 0, limit=1).claim("first", None)
        with pytest.raises(LumaJobLimitError):
            budget_of(folder, 1, limit=1).check()
        budget_of(folder, 1, limit=2).check()
        assert budget_of(folder, 1, limit=2).claim("second", None) == Claim(Slot(2, 1))


class TestTakeOver:
    def test_next_try_takes_up_the_slot_of_a_killed_one_also_if_all_are_in_use(self, folder):
        budget_of(folder, 0).claim("killed before its intent", None)
        budget_of(folder, 1).claim("other", None)
        next_try = budget_of(folder, 0)
        next_try.check()
        assert next_try.claim("next", None) == Claim(Slot(1, 2), ("killed before its intent",))
        assert jobs_of(folder) == 2

    def test_several_killed_tries_in_a_row_leave_one_slot(self, folder):
        for number in range(4):
            budget_of(folder, 0, limit=1).claim(str(number), None)
        assert jobs_of(folder) == 1

    @pytest.mark.parametrize("outcome", ["intent", "accepted", "refused, but may be paid"])
    def test_slot_of_a_submission_that_may_be_paid_stays_in_use(self, folder, outcome):
        store = store_of(folder)
        reference = self.submit(store, outcome)
        store.run_budget(1, "luma_default").claim(reference, None)
        with pytest.raises(LumaJobLimitError):
            store_of(folder).run_budget(1, "luma_default").claim("next", None)

    def test_slot_of_a_submission_that_was_refused_is_taken_up(self, folder):
        store = store_of(folder)
        reference = self.submit(store, "refused")
        store.run_budget(1, "luma_default").claim(reference, None)
        assert store_of(folder).run_budget(1, "luma_default").claim("next", None).took_over == (reference,)

    def submit(self, store: ObjectSubmissionStore, outcome: str) -> str:
        record = SubmissionRecord(new_reference(), "fingerprint", None, 2, 1)
        store.load()
        store.begin(record)
        if outcome == "accepted":
            store.save(SubmissionRecord(record.reference, "fingerprint", "a-job", 2, 1))
        elif outcome.startswith("refused"):
            store.forget(record, may_be_paid=outcome.endswith("paid"))
        return record.reference

    def test_slot_whose_former_holder_may_be_paid_stays_in_use(self, folder):
        """A frozen process had begun to submit, just when the next try took its slot over."""
        store = store_of(folder)
        budget_of(folder, 0, limit=1).claim(frozen := new_reference(), None)
        budget_of(folder, 0, limit=1).claim("next", None)
        store.load()
        store.begin(SubmissionRecord(frozen, "fingerprint", None, 2, 1))
        with pytest.raises(LumaJobLimitError):
            budget_of(folder, 0, limit=1).claim("another", None)

    @pytest.mark.parametrize("changes", [{"map_index": 1}, {"task_id": "retouch"}])
    def test_slot_of_another_task_is_not_taken_over(self, folder, changes):
        budget_of(folder, 0, limit=1).claim("killed", None)
        with pytest.raises(LumaJobLimitError):
            budget_of(folder, **{"map_index": 0, **changes}, limit=1).claim("other", None)

    def test_slot_of_another_iteration_is_not_taken_over(self, folder):
        task = (DAG_ID, RUN_ID, "modify", 0)
        ObjectSubmissionStore(folder, task, 1).run_budget(1, "luma_default").claim("killed", None)
        with pytest.raises(LumaJobLimitError):
            ObjectSubmissionStore(folder, task, 2).run_budget(1, "luma_default").claim("other", None)
        again = ObjectSubmissionStore(folder, task, 1).run_budget(1, "luma_default")
        assert again.claim("next", None).took_over == ("killed",)

    def test_first_try_looks_for_its_slot_if_all_are_in_use(self, folder):
        """The run was deleted and created again, and counts the attempts anew."""
        budget_of(folder, 0, limit=1).claim("killed", None)
        again = budget_of(folder, 0, limit=1, is_first_try=True)
        assert again.claim("next", None) == Claim(Slot(1, 2), ("killed",))


class TestSpent:
    def test_error_says_how_many_jobs_were_submitted_and_by_which_tasks(self, folder):
        for index in range(3):
            budget_of(folder, index, limit=4).claim(str(index), None)
        budget_of(folder, task_id="retouch", limit=4).claim("3", None)
        with pytest.raises(LumaJobLimitError) as caught:
            budget_of(folder, 4, limit=4).check()
        assert str(caught.value) == (
            "max_jobs_per_run=4: this DAG run has submitted 4 jobs, or is submitting them (modify: 3, retouch: 1). "
            "Nothing was submitted. To submit more jobs in this run, raise max_jobs_per_run and clear this task. To "
            "free the slot of a job that was not accepted, see 'Limit what a run may cost' in the documentation"
        )

    def test_error_names_the_tasks_with_most_jobs(self, tmp_path):
        for task_id in [f"task_{number}" for number in range(14)] + ["busy"] * 2:
            budget_of(str(tmp_path), len(list(tmp_path.rglob("*.json"))), task_id=task_id, limit=16).claim("r", None)
        with pytest.raises(LumaJobLimitError, match=r"\(busy: 2, task_0: 1, .*, task_8: 1, 5 more tasks\)"):
            budget_of(str(tmp_path), 99, limit=16).check()

    @pytest.mark.parametrize("content", ["", "[]", "{half", '{"task_id": 7}'])
    def test_slot_that_cannot_be_read_counts(self, tmp_path, content):
        budget_of(str(tmp_path), limit=1).claim("mine", None)
        [file] = (tmp_path / "budgets").rglob("*.json")
        file.write_text(content)
        with pytest.raises(LumaJobLimitError, match=r"1 jobs.*\((unknown|7): 1\)"):
            budget_of(str(tmp_path), limit=1).claim("next", None)

    def test_storage_that_cannot_be_read_is_left_to_a_retry(self, tmp_path, monkeypatch):
        budget_of(str(tmp_path), limit=1).claim("mine", None)

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError("the storage is down")

        monkeypatch.setattr(LocalFileSystem, "cat_file", fail)
        with pytest.raises(AirflowException, match="the storage is down") as caught:
            budget_of(str(tmp_path), limit=1).check()
        assert not isinstance(caught.value, AirflowFailException)

    def test_person_frees_a_slot_by_removing_its_files(self, tmp_path):
        own = budget_of(str(tmp_path), 0, limit=1)
        own.release(own.claim("refused", None), "refused")
        budget_of(str(tmp_path), 1, limit=1).claim("not accepted", None)
        for file in (tmp_path / "budgets").rglob("000001-*"):
            file.unlink()
        assert budget_of(str(tmp_path), 2, limit=1).claim("next", None) == Claim(Slot(1, 1))


class TestUsage:
    def test_price_is_that_of_all_slots_in_use(self, folder):
        assert budget_of(folder).usage() == Usage(0, 0)
        own = budget_of(folder, 0, limit=9)
        own.release(own.claim("refused", 10.0), "refused")
        for index, price in enumerate((0.54, 1.08)):
            budget_of(folder, index, limit=9).claim(str(index), price)
        assert budget_of(folder).usage() == Usage(2, 1.62)

    @pytest.mark.parametrize("price", [None, "free", True])
    def test_price_is_unknown_if_that_of_one_job_is(self, folder, price):
        budget_of(folder, 0).claim("a", 0.54)
        budget_of(folder, 1).claim("b", price)
        assert budget_of(folder).usage() == Usage(2, None)

    def test_many_slots_are_read(self, tmp_path):
        for index in range(2 * budget.READS_AT_A_TIME + 1):
            budget_of(str(tmp_path), index, limit=99, is_first_try=True).claim(str(index), 1.0)
        assert budget_of(str(tmp_path)).usage() == Usage(33, 33.0)


class TestStorages:
    """Slots need a storage in which only one process can create a file."""

    @pytest.fixture
    def run(self, luma, modify, set_connection):
        def _run(store: TaskStateStore | None = None, **extra: Any) -> None:
            set_connection(luma.base_url, **extra)
            TaskRun(lambda **changes: modify(max_jobs_per_run=5, **changes), store).run_try()

        return _run

    @pytest.mark.parametrize("store", [None, TaskStateStore()], ids=["no store", "task state store"])
    def test_connection_without_submission_store_is_refused(self, luma, run, store):
        with pytest.raises(
            AirflowFailException,
            match=r"max_jobs_per_run needs a submission_store .*: a disk that all workers share, Amazon S3, Google "
            r"Cloud Storage or Azure Blob Storage. Connection 'luma_default' has none. Nothing was submitted",
        ):
            run(store)
        assert luma.calls == []

    def test_storage_that_looks_first_and_then_writes_is_refused(self, luma, run, monkeypatch):
        fs = SftpFileSystem()
        monkeypatch.setitem(
            airflow_storages._STORE_CACHE, "sftp-my_sftp", airflow_storages.ObjectStore("sftp", "my_sftp", fs=fs)
        )
        with pytest.raises(AirflowFailException, match="Connection 'luma_default' has sftp://my_sftp@/luma"):
            run(submission_store="sftp://my_sftp@/luma")
        assert luma.calls == []
        assert Sftp(fs, "").files() == {}

    def test_memory_of_one_process_is_refused(self, luma, run, monkeypatch):
        storage = airflow_storages.ObjectStore("memory", None, fs=MemoryFileSystem())
        monkeypatch.setitem(airflow_storages._STORE_CACHE, "memory", storage)
        with pytest.raises(AirflowFailException, match="max_jobs_per_run needs"):
            run(submission_store="memory://luma")
        assert luma.calls == []

    def test_service_like_s3_that_ignores_the_condition_is_refused(self, luma, run, bucket, monkeypatch):
        write = S3FileSystem._pipe_file

        async def ignoring(fs: Any, path: str, data: bytes, mode: str = "overwrite", **options: Any) -> Any:
            return await write(fs, path, data, **options)

        monkeypatch.setattr(S3FileSystem, "_pipe_file", ignoring)
        with pytest.raises(AirflowFailException, match=f"has {bucket.destination}/luma"):
            run(submission_store=f"{bucket.destination}/luma")
        assert luma.calls == []

    @pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
    def test_conflict_is_recognised_in_the_words_of_any_service_like_s3(self, bucket, monkeypatch, code):
        """Only Amazon's answer names the condition; Amazon itself may say that a file is just being created."""
        folder = f"{bucket.destination}/luma"
        budget_of(folder, 0).claim("first", None)
        write = S3FileSystem._pipe_file

        async def conflicting(fs: Any, path: str, data: bytes, **options: Any) -> Any:
            try:
                return await write(fs, path, data, **options)
            except FileExistsError:
                cause = RuntimeError(code)
                cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
                raise OSError(code) from cause

        monkeypatch.setattr(S3FileSystem, "_pipe_file", conflicting)
        monkeypatch.setattr(RunBudget, "_find", lambda _: [Claim(Slot(1, 1)), Claim(Slot(2, 1))])
        assert budget_of(folder, 1).claim("second", None) == Claim(Slot(2, 1))

    def test_task_without_the_limit_needs_no_store(self, luma, modify, luma_conn):
        TaskRun(modify, None).run_try()
        assert luma.accepted == 1


class Run:
    """A DAG run whose tasks submit to the simulator, with the slots in a folder on a disk."""

    def __init__(self, modify: Callable[..., Any], folder: Path) -> None:
        self.folder = str(folder)
        self._modify = modify

    def task(self, map_index: int = 0, *, limit: int = 1, task_id: str = "modify", **parameters: Any) -> TaskRun:
        parameters = {"deferrable": False, "max_jobs_per_run": limit, **parameters}
        return TaskRun(
            lambda **changes: self._modify(**{**parameters, **changes}), None, map_index=map_index, task_id=task_id
        )

    @property
    def jobs(self) -> int:
        return jobs_of(self.folder)


@pytest.fixture
def run(luma, modify, set_connection, tmp_path) -> Run:
    set_connection(luma.base_url, requests_per_second=1000, submission_store=str(tmp_path))
    luma.configure(processing_seconds=0)
    return Run(modify, tmp_path)


class TestRun:
    @pytest.mark.parametrize("deferrable", [True, False])
    def test_nothing_is_submitted_beyond_the_limit(self, luma, run, deferrable):
        for index in range(2):
            run.task(index, limit=2, deferrable=deferrable).run_try()
        calls, late = len(luma.calls), run.task(2, limit=2, deferrable=deferrable)
        with pytest.raises(AirflowFailException, match=r"max_jobs_per_run=2: .* \(modify: 2\). Nothing was submitted"):
            late.run_try()
        assert (luma.accepted, len(luma.calls)) == (2, calls)
        pushed = late.ti.pushed["luma_error"]
        assert (pushed["type"], "raise max_jobs_per_run" in pushed["remedy"]) == ("LumaJobLimitError", True)

    def test_file_is_not_uploaded_beyond_the_limit(self, luma, run, clip):
        run.task(0).run_try()
        calls = len(luma.calls)
        with pytest.raises(AirflowFailException, match="max_jobs_per_run"):
            run.task(1, video_url=str(clip)).run_try()
        assert len(luma.calls) == calls

    def test_upload_is_kept_if_the_last_slot_was_claimed_meanwhile(self, luma, run, clip, monkeypatch):
        check, late = RunBudget.check, run.task(1, video_url=str(clip))
        monkeypatch.setattr(RunBudget, "check", lambda _: None)
        run.task(0).run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run"):
            late.run_try()
        monkeypatch.setattr(RunBudget, "check", check)
        late.clear_and_run(max_jobs_per_run=2)
        assert sum(call.on == "upload" for call in luma.calls) == 1
        assert luma.accepted == 2

    def test_retry_that_continues_its_job_takes_no_slot(self, luma, run):
        task = run.task(0)
        job = task.run_try()["luma_task_id"]
        assert task.run_try()["luma_task_id"] == job
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_limit_does_not_change_the_request(self, luma, run):
        task = run.task(0)
        job = task.run_try()["luma_task_id"]
        for limit in (7, None):
            assert task.run_try(max_jobs_per_run=limit)["luma_task_id"] == job

    def test_clear_for_a_new_video_takes_another_slot(self, luma, run):
        task = run.task(0)
        task.run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            task.clear_and_run()
        assert luma.accepted == 1
        task.clear_and_run(max_jobs_per_run=2)
        assert (luma.accepted, run.jobs) == (2, 2)

    def test_retry_after_a_failed_job_takes_another_slot(self, luma, run):
        luma.configure(outcome="generate_failed")
        task = run.task(0, limit=2)
        for _ in range(2):
            with pytest.raises(Exception, match="GENERATE_FAILED"):
                task.run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=2"):
            task.run_try()
        assert (luma.accepted, run.jobs) == (2, 2)

    @pytest.mark.parametrize("code", [402, 422, 505])
    def test_refused_submission_gives_its_slot_to_another_task(self, luma, run, code):
        luma.configure(faults=[f"submit:refuse,code={code},times=1"])
        with pytest.raises(Exception, match=str(code)):
            run.task(0).run_try()
        assert run.jobs == 0
        run.task(1).run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_task_that_is_killed_before_it_sends_gives_its_slot_back(self, luma, run, monkeypatch):
        begin = ObjectSubmissionStore.begin
        operator: Any = run._modify(deferrable=False, max_jobs_per_run=1)

        def killed(store: ObjectSubmissionStore, intent: SubmissionRecord) -> None:
            begin(store, intent)
            operator.on_kill()

        monkeypatch.setattr(ObjectSubmissionStore, "begin", killed)
        with pytest.raises(AirflowException, match="killed before its submission was sent"):
            operator.execute({"ti": TaskInstance()})
        assert (luma.accepted, run.jobs) == (0, 0)

    def test_task_holds_no_slot_while_it_is_queued(self, luma, run):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        queued, context = run._modify(max_jobs_per_run=1), {"ti": TaskInstance()}
        deferred = deferral_of(queued.execute, context)
        assert run.jobs == 0
        run.task(1).run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            resume(run._modify(max_jobs_per_run=1), deferred, context, expiry_event(deferred))
        with pytest.raises(TaskDeferred):
            resume(run._modify(max_jobs_per_run=2), deferred, context, expiry_event(deferred))
        assert (luma.accepted, run.jobs) == (2, 2)

    def test_task_holds_no_slot_during_a_backoff(self, luma, run, monkeypatch):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        during: list[int] = []
        # The time of no other thread.
        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: during.append(run.jobs)))
        run.task(0).run_try()
        assert (during, luma.accepted, run.jobs) == ([0, 0], 1, 1)

    def test_slot_that_cannot_be_given_back_is_taken_up_by_the_next_try(self, luma, run, monkeypatch):
        luma.configure(faults=["submit:refuse,code=429,times=1"])

        def fail(*_: Any) -> None:
            raise OSError("the storage is down")

        task = run.task(0, deferrable=True)
        with monkeypatch.context() as patched:
            patched.setattr(RunBudget, "release", fail)
            with pytest.raises(LumaRateLimitError):
                task.run_try()
        assert run.jobs == 1
        task.run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_submission_without_a_known_outcome_keeps_its_slot(self, luma, run):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        unknown = run.task(0)
        with pytest.raises(AirflowFailException, match="log page"):
            unknown.run_try()
        for task in (run.task(1), run.task(2)):
            with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
                task.run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            unknown.clear_and_run()
        assert luma.accepted == 1

    def test_resubmission_after_an_unknown_outcome_takes_another_slot(self, luma, run):
        luma.configure(faults=["submit:cut,after_accept,times=1"])
        task = run.task(0, resubmit_on_unknown=True)
        with pytest.raises(Exception, match="log page"):
            task.run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            task.run_try()
        task.run_try(max_jobs_per_run=2)
        assert (luma.accepted, run.jobs) == (2, 2)

    def test_submission_that_was_given_up_keeps_its_slot(self, luma, run, set_connection):
        """Its callback has not come in time. It no longer counts for the task, but may be paid for."""
        set_connection(luma.base_url, submission_store=run.folder, callback_base_url="http://127.0.0.1:9")
        luma.configure(faults=["submit:cut,after_accept,times=1"], callback_copies=0)
        task = run.task(0, deferrable=True, resubmit_on_unknown=True, timeout=0.01)
        with pytest.raises(Exception, match="no callback arrived"):
            task.run_try()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            task.run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_submission_that_another_request_has_replaced_keeps_its_slot(self, luma, run):
        """Its unknown outcome was reported, and the earlier request is made again."""
        task = run.task(0, limit=2)
        luma.configure(processing_seconds=60)
        with pytest.raises(LumaTimeoutError):
            task.run_try(timeout=0.05)
        first = luma.jobs[0].task_id
        luma.configure(processing_seconds=0, faults=["submit:cut,after_accept,times=1"])
        with pytest.raises(AirflowFailException, match="log page"):
            task.clear_and_run(prompt="make it rain")
        luma.end_jobs()
        assert task.run_try()["luma_task_id"] == first
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=2"):
            run.task(1, limit=2).run_try()
        assert (luma.accepted, run.jobs) == (2, 2)

    def test_tasks_without_the_limit_are_not_counted(self, luma, run):
        run.task(0, max_jobs_per_run=None).run_try()
        run.task(1).run_try()
        assert (luma.accepted, run.jobs) == (2, 1)

    def test_two_hundred_tasks_at_once_submit_fifty_jobs(self, luma, run, modify, monkeypatch):
        tasks = [run.task(index, limit=50, wait_for_completion=False) for index in range(200)]

        def outcome(task: TaskRun) -> str:
            try:
                return task.run_try()["status"]
            except AirflowFailException as failure:
                return str(failure).partition(":")[0]

        with ThreadPoolExecutor(16) as threads:
            outcomes = Counter(threads.map(outcome, tasks))
        assert outcomes == {"GENERATING": 50, "max_jobs_per_run=50": 150}
        assert luma.accepted == 50


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("fault", [None, "submit:refuse,code=429,times=1"], ids=["accepted", "refused once"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 13))
def test_wherever_a_task_is_killed_it_takes_one_slot_and_the_other_remains(
    luma, run, monkeypatch, short_backoff, number, is_done, fault, deferrable
):
    """Kills before and after each file is written, and after it has got its name."""
    luma.configure(faults=[fault] if fault else [])
    calls = iter(range(1, 1000))

    def killing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            is_due = next(calls) == number
            if is_due and not is_done:
                raise Killed
            result = function(*arguments, **options)
            if is_due:
                raise Killed
            return result

        return call

    killed, other, late = (run.task(index, limit=2, deferrable=deferrable) for index in range(3))
    written = json_folder._WholeLocalFile
    with monkeypatch.context() as patched:
        for method in ("__enter__", "__exit__"):
            patched.setattr(written, method, killing(getattr(written, method)))
        with suppress(Killed):
            killed.run_try()
    for _ in range(2):
        with suppress(AirflowFailException):  # it is unknown whether the killed one was accepted
            killed.run_try()
    of_the_killed = luma.accepted
    assert of_the_killed <= 1
    assert run.jobs == 1
    other.run_try()
    assert luma.accepted == of_the_killed + 1
    with pytest.raises(AirflowFailException, match="max_jobs_per_run=2"):
        late.run_try()


def _die_at(written: int, folder: str, modify: Callable[..., Any]) -> None:
    """Run a task in a process that ends at a write, as with ``kill -9``."""
    calls = iter(range(1, 1000))
    link = os.link

    def linked(*names: Any) -> None:
        if next(calls) == written:
            os._exit(9)
        link(*names)

    os.link = linked  # type: ignore[assignment]
    Run(modify, Path(folder)).task(0).run_try()


@pytest.mark.parametrize("written", [1, 2])
def test_process_that_ends_at_a_claim_or_after_it_leaves_its_slot_to_the_next_try(luma, run, modify, written):
    process = multiprocessing.get_context("fork").Process(target=_die_at, args=(written, run.folder, modify))
    process.start()
    process.join(60)
    assert (process.exitcode, luma.accepted, run.jobs) == (9, 0, written - 1)
    if written == 2:
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            run.task(1).run_try()
    next_try = run.task(0)
    next_try.ti.try_number = 1
    next_try.run_try()
    assert (luma.accepted, run.jobs) == (1, 1)


class TestFrozen:
    """A process that is taken for dead wakes up when the next try of its task has moved on."""

    @pytest.fixture
    def later(self, run) -> TaskRun:
        task = run.task(0)
        task.ti.try_number = 1
        return task

    @pytest.fixture
    def frozen_before(self, monkeypatch):
        """Lets something happen once, when a process is about to call a method."""

        def freeze(kind: type, name: str, meanwhile: Callable[[], None]) -> None:
            method = getattr(kind, name)

            def thawed(*arguments: Any, **options: Any) -> Any:
                monkeypatch.setattr(kind, name, method)
                meanwhile()
                return method(*arguments, **options)

            monkeypatch.setattr(kind, name, thawed)

        return freeze

    def test_after_its_claim_while_the_next_try_submits(self, luma, run, later, frozen_before):
        frozen_before(ObjectSubmissionStore, "begin", later.run_try)
        with pytest.raises(AirflowException, match="another try of this task is submitting"):
            run.task(0).run_try()
        assert (luma.accepted, run.jobs) == (1, 1)
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            run.task(1).run_try()

    def test_after_its_claim_while_the_next_try_is_killed_after_its_own(
        self, luma, run, later, frozen_before, monkeypatch
    ):
        def meanwhile() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(ObjectSubmissionStore, "begin", lambda *_: kill())
                with pytest.raises(Killed):
                    later.run_try()

        frozen_before(ObjectSubmissionStore, "begin", meanwhile)
        with pytest.raises(AirflowException, match="another try has taken over.* Nothing was sent"):
            run.task(0).run_try()
        assert (luma.accepted, run.jobs) == (0, 1), "it has not freed the slot of the next try"
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            run.task(1).run_try()
        later.run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_before_it_sends_while_the_next_try_reports_it(self, luma, run, later, frozen_before):
        def meanwhile() -> None:
            with pytest.raises(AirflowFailException, match="log page"):
                later.run_try()

        frozen_before(LumaClient, "submit", meanwhile)
        with pytest.raises(AirflowException, match="Nothing was sent"):
            run.task(0).run_try()
        assert (luma.accepted, run.jobs) == (0, 0), "certainly nothing was accepted"
        later.clear_and_run()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_before_it_gives_its_slot_back_while_the_next_try_submits(self, luma, run, later, frozen_before):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        frozen_before(RunBudget, "release", later.run_try)
        with pytest.raises(Exception, match="402"):
            run.task(0).run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_next_try_that_has_taken_over_the_slot_of_a_job_just_being_submitted_keeps_it(
        self, luma, run, later, frozen_before
    ):
        """The frozen process goes on between what the next try reads and what it writes."""
        create, wakes, has_submitted = JsonFolder.create, threading.Event(), threading.Event()

        def take_over(folder: JsonFolder, file: str, document: dict[str, Any]) -> bool:
            if file.endswith("-002.json"):
                wakes.set()
                assert has_submitted.wait(60)
            return create(folder, file, document)

        outcome: list[Any] = []

        def next_try() -> None:
            try:
                later.run_try()
            except AirflowException as error:
                outcome.append(str(error))

        thread = threading.Thread(target=next_try)

        def meanwhile() -> None:
            JsonFolder.create = take_over  # type: ignore[method-assign]
            thread.start()
            assert wakes.wait(60)

        frozen_before(ObjectSubmissionStore, "begin", meanwhile)
        try:
            run.task(0).run_try()
        finally:
            has_submitted.set()
            thread.join(60)
            JsonFolder.create = create  # type: ignore[method-assign]
        assert luma.accepted == 1
        assert "another try of this task is submitting" in outcome[0]
        assert run.jobs == 1
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            run.task(1).run_try()
        assert later.run_try()["luma_task_id"] == luma.jobs[0].task_id


def kill() -> None:
    raise Killed


class TestExpiry:
    def test_slots_are_removed_with_the_records_of_their_jobs(self, luma, run, tmp_path):
        run.task(0).run_try()
        [slot] = (tmp_path / "budgets").rglob("*.json")
        names = ("000002-001.json", "000002-001-free.json", "000003-001.json.1234abcd.part")
        old = [slot.with_name(name) for name in names]
        others = [slot.with_name("notes.json"), tmp_path / "budgets/films/customers/000001-001.json"]
        others[1].parent.mkdir()
        for file in (*old, *others):
            file.write_text("{}")
            os.utime(file, (time.time() - RECORDS_KEPT - 60,) * 2)
        (tmp_path / "last-cleanup.json").unlink()
        run.task(0, max_jobs_per_run=None).clear_and_run()
        assert not any(file.exists() for file in old)
        assert all(file.exists() for file in (slot, *others))


class TestMetrics:
    def test_jobs_of_the_run_are_reported_after_each_accepted_submission(self, luma, run, recorder):
        for index in range(2):
            run.task(index, limit=9).run_try()
        luma.configure(faults=["submit:refuse,code=422,times=1"])
        with suppress(AirflowFailException):
            run.task(2, limit=9).run_try()
        assert recorder.values["luma.run.jobs"] == [1, 2]
        assert recorder.tags["luma.run.jobs"] == {"dag_id": DAG_ID}
        assert "luma.run.cost" not in recorder.values

    def test_price_of_the_run_is_reported_if_it_is_known(self, luma, run, recorder, set_connection, clip):
        set_connection(luma.base_url, requests_per_second=1000, service="luma", submission_store=run.folder)
        for index in range(2):
            run.task(index, limit=9, video_url=str(clip)).run_try()
        run.task(2, limit=9).run_try()  # a public address, of which only the beginning is read
        assert recorder.values["luma.run.jobs"] == [1, 2, 3]
        assert recorder.values["luma.run.cost"] == [1.08, 2.16]
        assert recorder.tags["luma.run.cost"] == {"dag_id": DAG_ID}

    def test_price_is_known_for_an_upload_of_an_earlier_attempt(self, luma, run, recorder, set_connection, clip):
        set_connection(luma.base_url, requests_per_second=1000, service="luma", submission_store=run.folder)
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        run.task(0, video_url=str(clip), deferrable=True).run_try()
        assert recorder.values["luma.run.cost"] == [1.08]
        assert sum(call.on == "upload" for call in luma.calls) == 1

    def test_task_without_the_limit_reports_nothing(self, luma, run, recorder):
        run.task(0, max_jobs_per_run=None).run_try()
        assert "luma.run.jobs" not in recorder.values

    def test_count_that_fails_does_not_fail_a_paid_job(self, luma, run, recorder, monkeypatch, task_log):
        monkeypatch.setattr(RunBudget, "usage", lambda *_, **__: kill_storage())
        assert run.task(0).run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert "luma.run.jobs" not in recorder.values
        assert len(messages(task_log, "Could not count the jobs of this DAG run")) == 1


def kill_storage() -> None:
    raise OSError("the storage is down")

# SPDX-License-Identifier: Apache-2.0
"""``max_jobs_per_run``: a DAG run never submits more jobs than that, whatever happens to its tasks."""

from __future__ import annotations

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
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from airflow_provider_luma.client import LumaClient
from airflow_provider_luma.core.decision import RECORDS_KEPT, SubmissionRecord
from airflow_provider_luma.exceptions import LumaRateLimitError, LumaTimeoutError
from airflow_provider_luma.files import creation
from airflow_provider_luma.submission.budget import Claim, RunBudget, Slot
from airflow_provider_luma.submission.json_folder import JsonFolder
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from harness.deferrals import deferral_of, expiry_event, resume
from tests.support.budgets import DAG_ID, budget_of, jobs_of
from tests.support.storages import Sftp, SftpFileSystem
from tests.support.task_instance import Killed, TaskInstance, TaskRun, TaskStateStore, killed_at
from tests.support.task_logs import messages

pytestmark = [pytest.mark.slow, pytest.mark.versions]


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
        with pytest.raises(AirflowFailException, match="Connection 'luma_default' has sftp:///luma"):
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
        with pytest.raises(AirflowFailException, match="Connection 'luma_default' has s3://films/videos/luma"):
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
        with pytest.raises(
            AirflowFailException, match=r"max_jobs_per_run=2: .* \(modify: 2\). This try submitted nothing"
        ):
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

    def test_job_whose_record_a_person_has_removed_keeps_its_slot(self, luma, run):
        task = run.task(0)
        task.run_try()
        for file in (Path(run.folder) / "records").rglob("*.json"):
            file.unlink()
        with pytest.raises(AirflowFailException, match="max_jobs_per_run=1"):
            task.run_try()
        assert (luma.accepted, run.jobs) == (1, 1)

    def test_slot_that_cannot_be_updated_does_not_fail_a_paid_job(self, luma, run, monkeypatch, task_log):
        monkeypatch.setattr(RunBudget, "keep", lambda *_: kill_storage())
        assert run.task(0).run_try()["luma_task_id"] == luma.jobs[0].task_id
        assert len(messages(task_log, f"Could not record Luma task {luma.jobs[0].task_id} in its slot")) == 1
        assert run.jobs == 1

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

    def test_sixty_tasks_at_once_submit_fifteen_jobs(self, luma, run):
        tasks = [run.task(index, limit=15, wait_for_completion=False) for index in range(60)]

        def outcome(task: TaskRun) -> str:
            try:
                return task.run_try()["status"]
            except AirflowFailException as failure:
                return str(failure).partition(":")[0]

        with ThreadPoolExecutor(16) as threads:
            outcomes = Counter(threads.map(outcome, tasks))
        assert outcomes == {"GENERATING": 15, "max_jobs_per_run=15": 45}
        assert luma.accepted == 15


@pytest.mark.parametrize(
    ("fault", "deferrable"),
    [(None, False), pytest.param("submit:refuse,code=429,times=1", True, marks=pytest.mark.long)],
    ids=["accepted", "refused, queued and accepted"],
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 13))
def test_wherever_a_task_is_killed_it_takes_one_slot_and_the_other_remains(
    luma, run, short_backoff, number, is_done, fault, deferrable
):
    """Kills before and after each file is written, and after it has got its name."""
    luma.configure(faults=[fault] if fault else [])
    killed, other, late = (run.task(index, limit=2, deferrable=deferrable) for index in range(3))
    whole_file = creation.WholeLocalFile
    with killed_at(number, (whole_file, "__enter__"), (whole_file, "__exit__"), is_done=is_done):
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
        with pytest.raises(AirflowException, match="another try, or another run .*has taken over.* Nothing was sent"):
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

# SPDX-License-Identifier: Apache-2.0
"""The slots of a DAG run: each has one holder at a time, whoever claims, gives back or takes over at once."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_luma.core.decision import SubmissionRecord, new_reference
from airflow_provider_luma.exceptions import LumaJobLimitError
from airflow_provider_luma.files import creation
from airflow_provider_luma.submission import budget
from airflow_provider_luma.submission.budget import Claim, RunBudget, Slot, Usage
from airflow_provider_luma.submission.json_folder import JsonFolder
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from tests.support.budgets import DAG_ID, RUN_ID, budget_of, jobs_of, store_of

pytestmark = pytest.mark.slow


def claim_if_possible(folder: str, map_index: int, limit: int) -> Claim | None:
    try:
        return budget_of(folder, map_index, limit=limit, is_first_try=True).claim(new_reference(), None)
    except LumaJobLimitError:
        return None


def claim_with_retries(own: RunBudget, reference: str) -> Claim:
    """Claim a slot as a task with retries does: on a busy machine, others can be faster in all of its listings."""
    while True:
        try:
            return own.claim(reference, None)
        except AirflowException as error:
            if "too many tasks tried at the same time" not in str(error):
                raise


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
                    claim = claim_with_retries(own, reference)
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
        assert (first.is_held(claim, "refused"), jobs_of(folder)) == (False, 0)
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
        assert not first.is_held(claim, "looked for, and not found")
        first.release(claim, "looked for, and not found")
        first.keep(claim, "looked for, and not found", "late")
        assert jobs_of(str(tmp_path)) == 1
        [file] = (tmp_path / "budgets").rglob("*.json")
        assert "late" not in file.read_text()

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
        monkeypatch.setattr(creation, "_create_local", counted(used, "create", creation._create_local))
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
        with pytest.raises(
            LumaJobLimitError, match="max_jobs_per_run=1: this DAG run has submitted, or is submitting, 1 jobs"
        ):
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
            "max_jobs_per_run=4: this DAG run has submitted, or is submitting, 4 jobs (modify: 3, retouch: 1). "
            "This try submitted nothing. To submit more jobs in this run, raise max_jobs_per_run and clear this task. "
            "To free the slot of a job that was not accepted, see 'Limit what a run may cost' in the documentation"
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

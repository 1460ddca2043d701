# SPDX-License-Identifier: Apache-2.0
"""
The budget of a DAG run, ``max_jobs_per_run``: the most paid submissions that all its tasks together may make.

Before each submission, a task claims a numbered slot in the connection's ``submission_store``:
``budgets/DAG/RUN-HASH/000007-001.json`` is the first holder of slot 7, and names its task and its submission. A holder
whose submission was certainly not accepted gives the slot back with ``000007-001-free.json``; the next holder is
``000007-002.json``.
A slot is in use if its latest holder has not given it back.

Each claim is created only if there is no file of that name, and no file is removed until it expires. So if several
tasks want the same slot, only one gets it. A process that was frozen, or a request that the storage's client repeats,
cannot free a slot that somebody else holds by now, because it names its own holder number.

A process killed between its claim and its intent leaves a slot for which there is no submission. The next try of its
task becomes the next holder, even if all slots are in use. If there is an intent or an id, the slot stays in use: the
submission may have been accepted. Once it is accepted, the slot's own file names the job, so that the slot stays in use
even if somebody removes the record. A process that seems killed may only be frozen. When it resumes, either it sees,
before it sends, that its slot has another holder; or its intent came first, and the next try sees that another try is
submitting.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.exceptions import LumaJobLimitError
from airflow_provider_luma.submission.json_folder import InvalidFile, JsonFolder, path_part

#: How many times to list the slots, if others take every free one first, before leaving it to a retry of the task.
MAX_LISTINGS = 20

#: How many files to read at a time: a request to an object store takes some hundredths of a second.
READS_AT_A_TIME = 16

#: How many tasks an error names at most.
MAX_TASKS_NAMED = 10

_FILE = re.compile(r"(\d{6,})-(\d{3,})(-free)?\.json")


class Slot(NamedTuple):
    """
    A slot and one of its holders.

    :param number: the slot's number, from 1 to the limit
    :param holder: the holder's number; the first is 1
    """

    number: int
    holder: int


class Claim(NamedTuple):
    """
    A slot as this process holds it.

    :param took_over: the submissions of earlier tries that claimed the slot and were killed
    """

    slot: Slot
    took_over: tuple[str, ...] = ()


class Usage(NamedTuple):
    """
    What a DAG run has submitted, or is submitting.

    :param jobs: how many jobs
    :param us_dollars: their estimated total price; None if the price of any of them is unknown
    """

    jobs: int
    us_dollars: float | None


class RunBudget:
    """
    The slots of a DAG run, as one task instance uses them.

    A check takes one listing of the run's folder; a claim takes another, and a request for each slot that others take
    first. If all slots are in use, or an earlier try may have left one, the slots in use are read, too.

    :param folder: ``submission_store`` of the connection
    :param task: the task instance: ``dag_id``, ``run_id``, ``task_id``, ``map_index`` and ``iteration``
    :param limit: ``max_jobs_per_run``
    :param paid: returns the references of this task instance's submissions that may have been accepted
    :param is_first_try: whether no earlier try can have left a slot
    """

    def __init__(
        self,
        folder: JsonFolder,
        task: Mapping[str, Any],
        limit: int,
        paid: Callable[[], Collection[str]],
        *,
        is_first_try: bool = False,
    ) -> None:
        self._folder, self._task, self._limit, self._paid = folder, dict(task), limit, paid
        self._is_first_try = is_first_try
        names = task["dag_id"], task["run_id"]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
        self._path = "/".join(["budgets", *map(path_part, names)]) + f"-{digest}"

    @property
    def dag_id(self) -> str:
        """The DAG's id."""
        return str(self._task["dag_id"])

    def check(self) -> None:
        """
        Fail if no slot can be claimed.

        :raises LumaJobLimitError: all are in use
        :raises AirflowException: the storage cannot be read
        """
        if len(self._in_use()) >= self._limit:
            self._find()

    def claim(self, reference: str, us_dollars: float | None) -> Claim:
        """
        Claim a slot for a submission.

        :param reference: the submission's name
        :param us_dollars: its estimated price, if known
        :raises LumaJobLimitError: all slots are in use
        :raises AirflowException: the storage cannot be used, or others were faster each time
        """
        document = {**self._task, "reference": reference, "claimed_at": time.time(), "us_dollars": us_dollars}
        for _ in range(MAX_LISTINGS):
            for claim in self._find():
                if self._folder.create(self._file(claim.slot), {**document, "took_over": list(claim.took_over)}):
                    return claim
        raise AirflowException(
            f"Could not claim one of the {self._limit} slots of max_jobs_per_run, because too many tasks tried at the "
            "same time. Nothing was submitted; a retry tries again"
        )

    def is_held(self, claim: Claim, reference: str) -> bool:
        """
        Return whether a claim still counts: no later try has taken the slot over, and nobody has removed it.

        :param reference: the submission that the slot was claimed for
        """
        return claim.slot in self._in_use() and self._read_own(claim, reference) is not None

    def release(self, claim: Claim, reference: str) -> None:
        """
        Give a slot back: the submission was certainly not accepted.

        :param reference: the submission that the slot was claimed for
        """
        if self._read_own(claim, reference) is not None:
            self._folder.replace(self._file(claim.slot, "-free"), {"reference": reference})

    def keep(self, claim: Claim, reference: str, luma_task_id: str) -> None:
        """
        Record in a slot that its submission was accepted, so that no later try takes the slot over.

        :param reference: the submission that the slot was claimed for
        :param luma_task_id: the job
        :raises AirflowException: the storage is unavailable
        """
        if (document := self._read_own(claim, reference)) is not None:
            self._folder.replace(self._file(claim.slot), {**document, "luma_task_id": luma_task_id})

    def _read_own(self, claim: Claim, reference: str) -> dict[str, Any] | None:
        """Return the file of a claim; None if it was removed, even if another task has claimed the same slot since."""
        with suppress(FileNotFoundError):
            document = self._folder.read(self._file(claim.slot))
            return document if document.get("reference") == reference else None
        return None

    def usage(self, *, with_price: bool = True) -> Usage:
        """
        Return what the run has submitted, or is submitting.

        :param with_price: whether to read all slots for their prices
        """
        in_use = self._in_use()
        return Usage(len(in_use), self._price(in_use) if with_price else None)

    def _price(self, in_use: Sequence[Slot]) -> float | None:
        total = 0.0
        for document in self._documents(in_use):
            price = document.get("us_dollars")
            if isinstance(price, bool) or not isinstance(price, (int, float)):
                return None
            total += price
        return round(total, 4)

    def _find(self) -> list[Claim]:
        """
        Return the claims to try, in order: the slot that an earlier try has left, or all that are free.

        Limits may differ between tasks, and each task counts all slots in use. If these are fewer than its own limit, a
        slot with a number up to that limit is free.

        :raises LumaJobLimitError: all slots are in use
        """
        holders = self._holders()
        in_use = _in_use(holders)
        left: dict[Slot, tuple[str, ...]] = {}
        documents: list[dict[str, Any]] = []
        if in_use and (len(in_use) >= self._limit or not self._is_first_try):
            documents = list(self._documents(in_use))
            left = self._left_by_earlier_tries(in_use, documents)
        if len(in_use) - len(left) >= self._limit:
            raise self._spent(documents)
        if left:
            slot, took_over = next(iter(left.items()))
            return [Claim(Slot(slot.number, slot.holder + 1), took_over)]
        taken = {slot.number for slot in in_use}
        free = (number for number in range(1, self._limit + 1) if number not in taken)
        return [Claim(Slot(number, holders.get(number, (0, True))[0] + 1)) for number in free]

    def _left_by_earlier_tries(
        self, in_use: Sequence[Slot], documents: Sequence[Mapping[str, Any]]
    ) -> dict[Slot, tuple[str, ...]]:
        """
        Return the slots that this task instance holds although nothing was accepted.

        :returns: by slot, the submissions that it was claimed for
        """
        claimed = {
            slot: (*(document.get("took_over") or ()), str(document.get("reference")))
            for slot, document in zip(in_use, documents, strict=True)
            if self._is_own(document) and not _was_accepted(document)
        }
        paid = set(self._paid()) if claimed else set()
        return {slot: references for slot, references in claimed.items() if paid.isdisjoint(references)}

    def _is_own(self, document: Mapping[str, Any]) -> bool:
        return all(document.get(name) == value for name, value in self._task.items())

    def _spent(self, documents: Sequence[Mapping[str, Any]]) -> LumaJobLimitError:
        counts = Counter(str(document.get("task_id", "unknown")) for document in documents).most_common()
        named = [f"{task_id}: {count}" for task_id, count in counts[:MAX_TASKS_NAMED]]
        if more := len(counts) - len(named):
            named.append(f"{more} more tasks")
        return LumaJobLimitError(
            None,
            f"max_jobs_per_run={self._limit}: this DAG run has submitted, or is submitting, {len(documents)} jobs "
            f"({', '.join(named)}). This try submitted nothing",
        )

    def _in_use(self) -> list[Slot]:
        return _in_use(self._holders())

    def _holders(self) -> dict[int, tuple[int, bool]]:
        """Return the latest holder of each slot that has had one, and whether it has given the slot back."""
        found: dict[int, tuple[int, bool]] = {}
        for name in self._folder.files(self._path):
            if match := _FILE.fullmatch(name):
                number = int(match[1])
                found[number] = max(found.get(number, (0, False)), (int(match[2]), match[3] is not None))
        return found

    def _documents(self, slots: Sequence[Slot]) -> Iterator[dict[str, Any]]:
        """Yield what the holder of each slot has written; an empty dict if that cannot be read."""
        with ThreadPoolExecutor(READS_AT_A_TIME) as readers:
            for start in range(0, len(slots), READS_AT_A_TIME):
                yield from readers.map(self._read, slots[start : start + READS_AT_A_TIME])

    def _read(self, slot: Slot) -> dict[str, Any]:
        with suppress(FileNotFoundError, InvalidFile):
            return self._folder.read(self._file(slot))
        return {}

    def _file(self, slot: Slot, suffix: str = "") -> str:
        return f"{self._path}/{slot.number:06}-{slot.holder:03}{suffix}.json"


def _was_accepted(document: Mapping[str, Any]) -> bool:
    return "luma_task_id" in document


def _in_use(holders: Mapping[int, tuple[int, bool]]) -> list[Slot]:
    return [Slot(number, holder) for number, (holder, is_free) in sorted(holders.items()) if not is_free]

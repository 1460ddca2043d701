# SPDX-License-Identifier: Apache-2.0
"""
Submission records as small JSON files in a folder on any storage. They survive every Clear, on every Airflow version.

``records/DAG/RUN/TASK/MAP-HASH/NUMBER.json`` is one submission of a task instance, and the highest number is the
latest; ``upload.json`` beside them is the upload of its input video. The hash distinguishes task instances whose names
yield the same path. A numbered file is created only if it does not exist yet, so if two tries run at once, only one
submits. ``callbacks/REFERENCE.json`` is the job that a callback has named. ``budgets`` is described in :mod:`.budget`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from typing import Any

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.submission.budget import RunBudget
from airflow_provider_luma.submission.json_folder import JsonFolder, path_part
from airflow_provider_luma.submission.store import SubmissionStore, TaskStateSubmissionStore, no_budget

log = logging.getLogger(__name__)

#: The files of this package, by folder; the folders may contain others.
_FOLDERS = ("records", "callbacks", "budgets")
_OWN_FILE = re.compile(
    r"(/-?\d+-[0-9a-f]{16}/(\d{6,}|upload)"
    r"|/callbacks/[0-9a-f]{32}"
    r"|/budgets/[^/]+/[^/]+-[0-9a-f]{16}/\d{6,}-\d{3,}(-free)?"
    r")\.json(\.\w+\.part)?$"
)


class ObjectSubmissionStore(SubmissionStore):
    """
    The records of one task instance.

    :param folder: ``submission_store`` of the connection
    :param task_instance: dag id, run id, task id and map index
    :param iteration: the iteration, if the task is in a loop
    :param earlier: the store that held the records before the connection named the folder
    """

    def __init__(
        self,
        folder: str,
        task_instance: tuple[str, str, str, int],
        iteration: int | None = None,
        *,
        earlier: SubmissionStore | None = None,
    ) -> None:
        self._root = JsonFolder(folder)
        self._earlier = earlier or TaskStateSubmissionStore(None)
        #: The latest submission that this process has seen: any later one is from another try.
        self._number = 0
        *names, map_index = task_instance
        identity = task_instance if iteration is None else (*task_instance, iteration)
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._path = "/".join(["records", *(path_part(name) for name in names), f"{map_index}-{digest}"])
        self._identity = dict(zip(("dag_id", "run_id", "task_id", "map_index"), task_instance, strict=True))
        self._iteration = iteration

    def load(self) -> SubmissionRecord | None:
        """
        Return the latest submission that was not refused.

        :raises AirflowException: the storage cannot be read, or a file is not a record
        """
        numbers = self._numbers()
        self._number = max(numbers, default=0)
        for number in numbers:
            document = self._root.read(self._file(number))
            if not document.get("refused"):
                return SubmissionRecord.load(document)
        return self._earlier.load()

    def begin(self, intent: SubmissionRecord) -> None:
        """
        Create the file of a new submission.

        :raises AirflowException: it cannot be written, or another try has begun to submit at the same time
        """
        self._create(intent)
        self._number += 1

    def save(self, record: SubmissionRecord) -> None:
        """Replace the file of a submission, and remove expired files."""
        numbers = self._numbers_of(record)
        if not numbers:
            self._create(record)
        else:
            # A submission that was forgotten stays forgotten, even if its response arrives after all.
            is_refused = self._root.read(self._file(numbers[0])).get("refused", False)
            self._root.replace(self._file(numbers[0]), {**self._document(record), "refused": is_refused})
        try:
            self._root.remove_expired(_FOLDERS, _OWN_FILE)
        except Exception:
            log.warning("Could not remove expired submission records", exc_info=True)

    def forget(self, intent: SubmissionRecord, *, may_be_paid: bool = False) -> None:
        """Mark a submission as refused: it no longer counts here, and the previous one applies again."""
        marks = {"refused": True, **({"may_be_paid": True} if may_be_paid else {})}
        for number in self._numbers_of(intent):
            self._root.replace(self._file(number), {**self._document(intent), **marks})
        earlier = self._earlier.load()
        if earlier is not None and earlier.reference == intent.reference:
            self._earlier.forget(intent)

    def run_budget(self, limit: int, conn_id: str, *, is_first_try: bool = False) -> RunBudget:
        """Return the slots of the DAG run in this folder."""
        if not self._root.creates_atomically():
            raise no_budget(conn_id, f"has {self._root.name}")
        task = {**self._identity, "iteration": self._iteration}
        return RunBudget(self._root, task, limit, self._paid_references, is_first_try=is_first_try)

    def _paid_references(self) -> set[str]:
        """Return the submissions of this task instance that were accepted, or may have been."""
        documents = [self._root.read(self._file(number)) for number in self._numbers()]
        return {
            document["reference"]
            for document in documents
            if not document.get("refused") or document.get("may_be_paid") or document.get("luma_task_id")
        }

    def callback_task_id(self, reference: str) -> str | None:
        """Return the id that the receiver of callbacks has written, here or in the earlier store."""
        try:
            named = self._root.read(_callback_file(reference)).get("luma_task_id")
        except FileNotFoundError:
            return self._earlier.callback_task_id(reference)
        return named if isinstance(named, str) else None

    def load_upload(self) -> dict[str, Any] | None:
        """Return what :meth:`save_upload` has kept, if anything."""
        try:
            return self._root.read(f"{self._path}/upload.json")
        except FileNotFoundError:
            return None

    def save_upload(self, upload: dict[str, Any]) -> None:
        """Keep an upload beside the records."""
        self._root.replace(f"{self._path}/upload.json", upload)

    def _file(self, number: int) -> str:
        return f"{self._path}/{number:06}.json"

    def _create(self, record: SubmissionRecord) -> None:
        file = self._file(self._number + 1)
        if not self._root.create(file, self._document(record)):
            raise AirflowException(
                f"{self._root.name}/{file} already exists: another try of this task is submitting at the same time. "
                "This try submitted nothing"
            )

    def _document(self, record: SubmissionRecord) -> dict[str, Any]:
        return {**self._identity, **record.as_dict()}

    def _numbers(self) -> list[int]:
        """Return the numbers of all files, latest first."""
        matches = (re.fullmatch(r"(\d{6,})\.json", name) for name in self._root.files(self._path))
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _numbers_of(self, record: SubmissionRecord) -> list[int]:
        """Return the file numbers of a submission, latest first: each attempt has one."""
        # If the task was cleared meanwhile, a later submission may have begun.
        return [
            number
            for number in self._numbers()
            if self._root.read(self._file(number)).get("reference") == record.reference
        ]


def record_callback(folder: str, luma_task_id: str, reference: str) -> None:
    """
    Record which job a submission led to, for a task that may have lost the response.

    :param folder: ``submission_store`` of the connection
    """
    JsonFolder(folder).replace(_callback_file(reference), {"reference": reference, "luma_task_id": luma_task_id})


def _callback_file(reference: str) -> str:
    return f"callbacks/{reference}.json"

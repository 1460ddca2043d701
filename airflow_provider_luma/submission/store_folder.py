# SPDX-License-Identifier: Apache-2.0
"""
Submission records as small JSON files in a folder on any storage. They survive every Clear, on every Airflow version.

``records/DAG/RUN/TASK/MAP-HASH/NUMBER.json`` is one submission of a task instance, and the highest number is the
latest; ``upload.json`` beside them is the upload of its input video. The hash distinguishes task instances whose names
yield the same path. A numbered file is created only if it does not exist yet, so if two tries run at once, only one
submits; local disks and S3 guarantee that. Files are replaced as a whole, so a crash leaves either the old or the new
one. ``callbacks/REFERENCE.json`` is the job that a callback has named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.decision import RECORDS_KEPT, SubmissionRecord
from airflow_provider_luma.files.storage import remove_file, storage_path
from airflow_provider_luma.submission.store import SubmissionStore, TaskStateSubmissionStore

log = logging.getLogger(__name__)

#: Seconds between searches for expired files.
CLEANUP_INTERVAL = 86_400.0

#: The files that this module writes; the folder may contain others.
_OWN_FILE = re.compile(r"(/-?\d+-[0-9a-f]{16}/(\d{6,}|upload)|/callbacks/[0-9a-f]{32})\.json(\.\w+\.part)?$")

#: The keys under which storage systems report when a file was written: local disks, S3, Google, Azure.
_MODIFIED_KEYS = ("mtime", "LastModified", "updated", "last_modified")


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
        self._root = _Folder(folder)
        self._earlier = earlier or TaskStateSubmissionStore(None)
        #: The latest submission that this process has seen: any later one is from another try.
        self._number = 0
        *names, map_index = task_instance
        identity = task_instance if iteration is None else (*task_instance, iteration)
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._path = "/".join(["records", *(_path_part(name) for name in names), f"{map_index}-{digest}"])
        self._identity = dict(zip(("dag_id", "run_id", "task_id", "map_index"), task_instance, strict=True))

    def load(self) -> SubmissionRecord | None:
        """
        Return the latest submission that was not refused.

        :raises AirflowException: the storage cannot be read, or a file is not a record
        """
        numbers = sorted(self._root.numbers(self._path), reverse=True)
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
        self._root.create(self._file(self._number + 1), self._document(intent))
        self._number += 1

    def save(self, record: SubmissionRecord) -> None:
        """Replace the file of a submission, and remove expired files."""
        numbers = self._numbers_of(record)
        if not numbers:
            self._root.create(self._file(self._number + 1), self._document(record))
        else:
            # A submission that was forgotten stays forgotten, even if its response arrives after all.
            is_refused = self._root.read(self._file(numbers[0])).get("refused", False)
            self._root.replace(self._file(numbers[0]), {**self._document(record), "refused": is_refused})
        try:
            self._root.remove_expired()
        except Exception:
            log.warning("Could not remove expired submission records", exc_info=True)

    def forget(self, intent: SubmissionRecord) -> None:
        """Mark a submission as refused: it no longer counts, and the previous one applies again."""
        for number in self._numbers_of(intent):
            self._root.replace(self._file(number), {**self._document(intent), "refused": True})
        earlier = self._earlier.load()
        if earlier is not None and earlier.reference == intent.reference:
            self._earlier.forget(intent)

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

    def _document(self, record: SubmissionRecord) -> dict[str, Any]:
        return {**self._identity, **record.as_dict()}

    def _numbers_of(self, record: SubmissionRecord) -> list[int]:
        """Return the file numbers of a submission, latest first: each attempt has one."""
        # If the task was cleared meanwhile, a later submission may have begun.
        return [
            number
            for number in sorted(self._root.numbers(self._path), reverse=True)
            if self._root.read(self._file(number)).get("reference") == record.reference
        ]


def record_callback(folder: str, luma_task_id: str, reference: str) -> None:
    """
    Record which job a submission led to, for a task that may have lost the response.

    :param folder: ``submission_store`` of the connection
    """
    _Folder(folder).replace(_callback_file(reference), {"reference": reference, "luma_task_id": luma_task_id})


class _Folder:
    """JSON files below a folder on any storage."""

    def __init__(self, folder: str) -> None:
        self._name = folder
        address = folder if "://" in folder else f"file://{folder}"
        self._root = storage_path(address, f"submission_store of the connection: {folder}")
        if isinstance(self._root.fs, LocalFileSystem) and not Path(self._root.path).parent.is_dir():
            raise self._unusable("find", FileNotFoundError("its disk may not be mounted on this machine"))

    def numbers(self, path: str) -> list[int]:
        """Return the numbers of the files in a folder; empty if there is no such folder."""
        try:
            self._root.fs.invalidate_cache()
            files = self._root.fs.ls(self._full(path), detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unusable("read", error) from error
        return [int(match[1]) for file in files if (match := re.search(r"/(\d{6,})\.json$", str(file)))]

    def read(self, file: str) -> dict[str, Any]:
        """Read a file."""
        try:
            document = json.loads(self._root.fs.cat_file(self._full(file)))
        except FileNotFoundError:
            raise
        except ValueError:
            document = None
        except Exception as error:
            raise self._unusable("read", error) from error
        if not isinstance(document, dict):
            raise AirflowException(
                f"{self._name}/{file} is not a valid submission record. Nothing was submitted. Correct the file, or "
                "delete it if you do not need its job"
            )
        return document

    def create(self, file: str, document: dict[str, Any]) -> None:
        """Create a file; raise if another submission has already created it."""
        path = self._full(file)
        try:
            if isinstance(self._root.fs, LocalFileSystem):
                with _WholeLocalFile(path, document) as part:
                    _create_local(path, part)
            else:
                self._root.fs.pipe_file(path, _encode(document), mode="create")
        except FileExistsError as error:
            if self.read(file).get("reference") == document["reference"]:
                return  # it is ours: the request to the storage was retried after its first response was lost
            raise AirflowException(
                f"{self._name}/{file} already exists: another try of this task is submitting at the same time. This "
                "try submitted nothing"
            ) from error
        except Exception as error:
            raise self._unusable("write to", error) from error

    def replace(self, file: str, document: dict[str, Any]) -> None:
        """Write a file as a whole, whether or not it exists."""
        path = self._full(file)
        if isinstance(self._root.fs, LocalFileSystem):
            with _WholeLocalFile(path, document) as part:
                Path(part).replace(path)
        else:
            self._root.fs.pipe_file(path, _encode(document))

    def remove_expired(self) -> None:
        """Remove all files older than :data:`RECORDS_KEPT`; search for them once a day."""
        fs, mark = self._root.fs, self._full("last-cleanup.json")
        now = time.time()
        if fs.exists(mark) and now - _modified(fs.info(mark)) < CLEANUP_INTERVAL:
            return
        self.replace("last-cleanup.json", {"at": now})
        now = min(now, _modified(fs.info(mark)))  # a worker whose clock is fast must not remove current records
        for path, info in self._files():
            if now - _modified(info) > RECORDS_KEPT:
                remove_file(fs, path)
                if isinstance(fs, LocalFileSystem):
                    with suppress(OSError):  # it holds other files
                        Path(path).parent.rmdir()

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the files that this module has written, including those of processes killed while writing."""
        found = [self._root.fs.find(self._full(folder), detail=True) for folder in ("records", "callbacks")]
        return [(path, info) for files in found for path, info in files.items() if _OWN_FILE.search(path)]

    def _full(self, path: str) -> str:
        return f"{self._root.path.rstrip('/')}/{path}".rstrip("/")

    def _unusable(self, action: str, error: Exception) -> AirflowException:
        return AirflowException(
            f"Could not {action} the submission_store {self._name}: {error}. Nothing was submitted. "
            "Check submission_store in the connection's extra, and the storage's own connection"
        )


class _WholeLocalFile:
    """A temporary file beside a path, which holds the complete document."""

    def __init__(self, path: str, document: dict[str, Any]) -> None:
        self._part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        self._document = document

    def __enter__(self) -> str:
        Path(self._part).parent.mkdir(parents=True, exist_ok=True)
        with Path(self._part).open("xb") as file:
            file.write(_encode(self._document))
            file.flush()
            os.fsync(file.fileno())
        return self._part

    def __exit__(self, *_: object) -> None:
        Path(self._part).unlink(missing_ok=True)


def _create_local(path: str, part: str) -> None:
    """Give a complete file its final name, unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with Path(path).open("xb") as file:
            file.write(Path(part).read_bytes())


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _path_part(name: str) -> str:
    """Return a name as one part of a path; the hash at the path's end makes up for what is cut off."""
    return quote(name, safe="").replace(".", "%2E")[:100]


def _callback_file(reference: str) -> str:
    return f"callbacks/{reference}.json"


def _modified(info: dict[str, Any]) -> float:
    """Return when a file was written, in seconds since the epoch; the current time if the storage does not say."""
    value = next((info[key] for key in _MODIFIED_KEYS if info.get(key)), None)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) else time.time()

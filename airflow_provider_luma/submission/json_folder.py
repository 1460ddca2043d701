# SPDX-License-Identifier: Apache-2.0
"""
Small JSON files in a folder on any storage.

They are created as in :mod:`~airflow_provider_luma.files.creation`, and written as a whole: a crash leaves either the
old content or the new.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.decision import RECORDS_KEPT
from airflow_provider_luma.files.creation import CREATING_SCHEMES, WholeLocalFile, create_file
from airflow_provider_luma.files.storage import remove_file, storage_path

#: Seconds between searches for expired files.
CLEANUP_INTERVAL = 86_400.0

#: The keys under which storage systems report when a file was written: local disks, S3, Google, Azure.
_MODIFIED_KEYS = ("mtime", "LastModified", "updated", "last_modified")


class InvalidFile(AirflowException):
    """A file does not hold what it should."""


class JsonFolder:
    """
    JSON files below a folder.

    :param folder: ``submission_store`` of the connection
    """

    def __init__(self, folder: str) -> None:
        self.name = folder
        address = folder if "://" in folder else f"file://{folder}"
        self._root = storage_path(address, f"submission_store of the connection: {folder}")
        self._is_local = isinstance(self._root.fs, LocalFileSystem)
        if self._is_local and not Path(self._root.path).parent.is_dir():
            raise self._unusable("find", FileNotFoundError("its disk may not be mounted on this machine"))

    def creates_atomically(self) -> bool:
        """
        Return whether, of several processes that create a file at once, only one can succeed.

        S3-compatible services may ignore the condition. So this tries to create a file that exists, which the object
        store must refuse: that takes one request.
        """
        if self._is_local:
            return True
        if self._root.protocol not in CREATING_SCHEMES:
            return False
        # Where there is no such file yet, the first request creates it.
        return any(not self._pipe_new("create-check.json", {}) for _ in range(2))

    def files(self, path: str) -> list[str]:
        """Return the names of the files in a folder; empty if there is no such folder."""
        try:
            self._root.fs.invalidate_cache()
            files = self._root.fs.ls(self._full(path), detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unusable("read", error) from error
        return [str(file).rpartition("/")[2] for file in files]

    def read(self, file: str) -> dict[str, Any]:
        """
        Read a file.

        :raises FileNotFoundError: the file does not exist
        :raises InvalidFile: it is not a JSON object
        :raises AirflowException: the storage cannot be read
        """
        try:
            document = json.loads(self._root.fs.cat_file(self._full(file)))
        except FileNotFoundError:
            raise
        except ValueError:
            document = None
        except Exception as error:
            raise self._unusable("read", error) from error
        if not isinstance(document, dict):
            raise InvalidFile(
                f"{self.name}/{file} is not a valid submission record. Nothing was submitted. Correct the file, or "
                "delete it if you do not need its job"
            )
        return document

    def create(self, file: str, document: dict[str, Any]) -> bool:
        """
        Create a file.

        :param document: its ``reference`` distinguishes it from other processes' documents
        :returns: whether it was created; False if another process has done so
        """
        if self._pipe_new(file, document):
            return True
        try:
            # It may be ours: the request to the storage was retried after its first response was lost.
            return bool(self.read(file).get("reference") == document["reference"])
        except (FileNotFoundError, InvalidFile):  # it is just being written, or was removed
            return False

    def _pipe_new(self, file: str, document: dict[str, Any]) -> bool:
        try:
            return create_file(self._root.fs, self._full(file), _encode(document))
        except Exception as error:
            raise self._unusable("write to", error) from error

    def replace(self, file: str, document: dict[str, Any]) -> None:
        """Write a file, whether or not it exists."""
        path = self._full(file)
        if self._is_local:
            with WholeLocalFile(path, _encode(document)) as part:
                Path(part).replace(path)
        else:
            self._root.fs.pipe_file(path, _encode(document))

    def remove_expired(self, folders: Collection[str], own_file: re.Pattern[str]) -> None:
        """
        Remove all files older than :data:`RECORDS_KEPT`; search for them once a day.

        :param folders: where to search
        :param own_file: matches the paths of our files, including those of processes killed while writing
        """
        fs, mark = self._root.fs, self._full("last-cleanup.json")
        now = time.time()
        if fs.exists(mark) and now - _modified(fs.info(mark)) < CLEANUP_INTERVAL:
            return
        self.replace("last-cleanup.json", {"at": now})
        now = min(now, _modified(fs.info(mark)))  # a worker whose clock is fast must not remove current records
        found = [fs.find(self._full(folder), detail=True) for folder in folders]
        for path, info in (file for files in found for file in files.items()):
            if own_file.search(path) and now - _modified(info) > RECORDS_KEPT:
                remove_file(fs, path)
                if self._is_local:
                    with suppress(OSError):  # it holds other files
                        Path(path).parent.rmdir()

    def _full(self, path: str) -> str:
        return f"{self._root.path.rstrip('/')}/{path}".rstrip("/")

    def _unusable(self, action: str, error: Exception) -> AirflowException:
        return AirflowException(
            f"Could not {action} the submission_store {self.name}: {error}. Nothing was submitted. "
            "Check submission_store in the connection's extra, and the storage's own connection"
        )


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def path_part(name: str) -> str:
    """Return a name as one part of a path; a hash elsewhere in the path makes up for what is cut off."""
    return quote(name, safe="").replace(".", "%2E")[:100]


def _modified(info: dict[str, Any]) -> float:
    """Return when a file was written, in seconds since the epoch; the current time if the storage does not say."""
    value = next((info[key] for key in _MODIFIED_KEYS if info.get(key)), None)
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) else time.time()

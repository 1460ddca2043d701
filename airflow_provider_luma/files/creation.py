# SPDX-License-Identifier: Apache-2.0
"""
Small files that are created only if no file of that name exists.

If several processes try at once, only one of them succeeds on local disks, S3, Google Cloud Storage and Azure Blob
Storage. Other storages look first and then write.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

#: Schemes of the object stores whose file systems ask the service itself to create a file only if it does not exist
#: (s3fs: If-None-Match, gcsfs: ifGenerationMatch, adlfs: If-None-Match). Others look first and then write.
CREATING_SCHEMES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl"})

#: The errors of S3 and services like it if a file exists, or is being created. s3fs recognises only Amazon's form.
_CONFLICTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


def create_file(fs: AbstractFileSystem, path: str, content: bytes) -> bool:
    """
    Create a file, complete from the start.

    :returns: whether it was created; False if a file of that name exists. That file may be this one: the storage's
        client repeats a request whose response was lost
    """
    try:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, content, mode="create")
        elif os.path.lexists(path):
            return False
        else:
            with WholeLocalFile(path, content) as part:
                _create_local(path, part)
    except FileExistsError:
        return False
    except Exception as error:
        if _code(error) in _CONFLICTS:
            return False
        raise
    return True


class WholeLocalFile:
    """A temporary file beside a path, which holds the complete content."""

    def __init__(self, path: str, content: bytes) -> None:
        self._part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        self._content = content

    def __enter__(self) -> str:
        Path(self._part).parent.mkdir(parents=True, exist_ok=True)
        with Path(self._part).open("xb") as file:
            file.write(self._content)
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


def _code(error: Exception) -> object:
    """Return what S3 calls an error."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None

# SPDX-License-Identifier: Apache-2.0
"""
Files written to any storage, whole or not at all.

A file is made on the local disk first. Into a folder on a disk it then comes under another name, and gets its own by
one rename; an object store shows an object only once it is complete.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

#: Object stores have no folders: creating one would create, or ask about, the bucket.
_FLAT_STORES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "oss"})


def as_path(address: str | ObjectStoragePath) -> ObjectStoragePath:
    """Return where an address leads; a path on this machine is made absolute."""
    if isinstance(address, ObjectStoragePath):
        return address
    # Made absolute here: some versions of the library below take a relative path to begin at the root.
    return ObjectStoragePath(address if "://" in address else str(Path(address).absolute()))


def make_folder(path: ObjectStoragePath) -> None:
    """Make the folder that a file goes to, where its storage has folders."""
    if path.protocol not in _FLAT_STORES:
        path.fs.makedirs(path.path.rpartition("/")[0], exist_ok=True)


@contextmanager
def written(target: ObjectStoragePath) -> Iterator[Path]:
    """
    Yield a file on the local disk; what it holds at the end replaces the target. After an error nothing is written.

    :param target: where the file goes
    """
    with tempfile.TemporaryDirectory(prefix="luma-") as folder:
        file = Path(folder) / target.name
        yield file
        if isinstance(target.fs, LocalFileSystem):
            _move(file, Path(target.path))
        else:
            make_folder(target)
            target.fs.put_file(str(file), target.path)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        shutil.move(file, part)
        part.replace(target)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def remove_folder(address: str) -> None:
    """Remove a folder and all that is in it; one that is not there is removed already."""
    path = as_path(address)
    with suppress(FileNotFoundError):
        path.fs.rm(path.path, recursive=True)

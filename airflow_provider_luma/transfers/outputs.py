# SPDX-License-Identifier: Apache-2.0
"""
Files written to any storage, whole or not at all.

A file is written under a temporary name beside its own (``.name.….part``) and renamed once it is complete. Where a
storage cannot rename, it copies; an object store shows an object only once it is complete.
"""

from __future__ import annotations

import inspect
import mimetypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from airflow.sdk import ObjectStoragePath
from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.storage import remove_file, storage_path
from airflow_provider_luma.transfers.source import without_secrets
from airflow_provider_luma.validation import OBJECT_STORES, check_destination


def as_path(address: str | ObjectStoragePath, parameter: str = "destination") -> ObjectStoragePath:
    """
    Return where an address leads; a path on this machine is made absolute.

    :param parameter: of the operator, for the error
    :raises LumaValidationError: its storage cannot be used here
    """
    if isinstance(address, ObjectStoragePath):
        return address
    if "://" in address:
        return storage_path(address, f"{parameter}: {without_secrets(address)}")
    # Made absolute here: some versions of the library below take a relative path to begin at the root.
    return ObjectStoragePath(str(Path(address).absolute()))


def make_folder(path: ObjectStoragePath) -> None:
    """Make the folder that a file goes to, where its storage has folders."""
    # Object stores have none: creating one would create, or ask about, the bucket.
    if path.protocol not in OBJECT_STORES:
        path.fs.makedirs(path.path.rpartition("/")[0], exist_ok=True)


def part_of(path: ObjectStoragePath) -> str:
    """Return a temporary name beside a file's own."""
    return f"{path.path.rpartition('/')[0]}/.{path.name}.{uuid.uuid4().hex[:8]}.part"


def content_type_option(path: ObjectStoragePath) -> dict[str, Any]:
    """Return the argument that tells an object store what kind of file it is given; none for other storages."""
    # Only the ending counts: a name may look like an address to the library.
    kind, _ = mimetypes.guess_type(f"name{PurePosixPath(path.name).suffix}")
    if kind is None:
        return {}
    if path.protocol in ("s3", "s3a", "s3n"):
        return {"ContentType": kind}
    if path.protocol in ("gs", "gcs"):
        return {"content_type": kind}
    # Azure's: older versions do not know it.
    knows_settings = "content_settings" in inspect.signature(type(path.fs)._open).parameters
    return {"content_settings": {"content_type": kind}} if knows_settings else {}


def rename(path: ObjectStoragePath, part: str, *, overwrite: bool) -> None:
    """
    Give a complete file its own name.

    :param part: its temporary name
    :raises FileExistsError: there is a file of that name, which is not to be replaced
    """
    if isinstance(path.fs, LocalFileSystem):
        if overwrite:
            Path(part).replace(path.path)
        else:
            _rename_to_new(Path(part), Path(path.path))
        return
    path.fs.invalidate_cache()
    exists = path.fs.exists(path.path)
    if exists and not overwrite:
        raise FileExistsError(path.path)
    if path.protocol in OBJECT_STORES or not _has_rename(path.fs):
        path.fs.cp_file(part, path.path)
        remove_file(path.fs, part)
        return
    try:
        path.fs.mv(part, path.path)
    except OSError:
        # Some servers do not replace a file by renaming another.
        if not exists or not path.fs.exists(part):
            raise
        remove_file(path.fs, path.path)
        path.fs.mv(part, path.path)


def _has_rename(fs: AbstractFileSystem) -> bool:
    """Tell whether a storage renames; the library's own ``mv`` copies, and takes brackets in a name for a pattern."""
    return getattr(fs.mv, "__func__", fs.mv) is not AbstractFileSystem.mv


def _rename_to_new(part: Path, final: Path) -> None:
    """Rename on a disk, unless there is a file of that name: in one step, where the disk has links."""
    try:
        final.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(final):
            raise FileExistsError(str(final)) from None
        part.rename(final)
    else:
        part.unlink()


@contextmanager
def written(target: ObjectStoragePath) -> Iterator[Path]:
    """
    Yield a file on the local disk; what it holds at the end replaces the target. After an error nothing is written.

    :param target: where the file goes
    :raises LumaValidationError: its name is too long
    """
    check_destination(str(target))
    with tempfile.TemporaryDirectory(prefix="luma-") as folder:
        file = Path(folder) / target.name
        yield file
        make_folder(target)
        if target.protocol in OBJECT_STORES:
            target.fs.put_file(str(file), target.path, **content_type_option(target))
            return
        part = part_of(target)
        try:
            if isinstance(target.fs, LocalFileSystem):
                shutil.move(file, part)
            else:
                target.fs.put_file(str(file), part)
            rename(target, part, overwrite=True)
        except BaseException:
            with suppress(Exception):
                remove_file(target.fs, part)
            raise


def remove_folder(address: str) -> None:
    """Remove a folder and all that is in it; one that is not there is removed already."""
    path = as_path(address, "work_dir")
    with suppress(FileNotFoundError):
        path.fs.rm(path.path, recursive=True)

# SPDX-License-Identifier: Apache-2.0
"""
Where films and clips are written, checked before anything is written or paid for.

A destination is refused only if the storage gives a definite answer: an account that can write to a bucket is not
always allowed to look it up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.redaction import shown_address
from airflow_provider_luma.core.validation import check_no_outer_blanks
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.destination_names import OBJECT_STORES, check_film_destination
from airflow_provider_luma.files.storage import as_path

if TYPE_CHECKING:
    from airflow.sdk.types import Logger


def folder_to_write(parameter: str, address: object, log: Logger) -> ObjectStoragePath:
    """
    Return the folder at an address.

    :param parameter: the operator's parameter that names it
    :raises LumaValidationError: Airflow does not support the storage, or the bucket does not exist
    :raises AirflowException: the storage cannot be reached
    """
    check_no_outer_blanks(parameter, address)
    shown = f"{parameter}: {shown_address(address)}"
    try:
        path = as_path(address if isinstance(address, ObjectStoragePath) else str(address), parameter)
        path.fs.invalidate_cache()
    except LumaValidationError:
        raise
    except Exception as error:
        raise AirflowException(f"{shown}: the storage cannot be opened: {error}") from error
    _check_bucket(path, shown, log)
    return path


def refuse_missing_parent(parameter: str, folder: ObjectStoragePath) -> None:
    """
    Refuse a local folder whose parent is missing: a disk that is not mounted would be taken for an empty one.

    :param parameter: the operator's parameter that names the folder
    :raises AirflowException: the parent is missing
    """
    parent = Path(folder.path).parent
    if _are_local(folder) and not parent.is_dir():
        raise AirflowException(
            f"{parameter}: there is no folder {str(parent)!r}: its disk may not be mounted on this machine. Mount "
            "it, or create the folder"
        )


def film_to_write(
    parameter: str, address: object, log: Logger, *, relative: bool = False, folder: str | None = None
) -> ObjectStoragePath:
    """
    Return the file that a film will be written to.

    :param parameter: the operator's parameter that names it
    :param relative: accept a path relative to the working directory of the task
    :param folder: a folder that is removed once the film has been written
    :raises LumaValidationError: the film cannot be written there, or would be removed with the folder
    :raises AirflowException: the storage cannot be reached
    """
    check_film_destination(parameter, address, relative=relative)
    path = folder_to_write(parameter, address, log)
    if path.protocol not in OBJECT_STORES and _type_of(path, path.path, parameter, log) == "directory":
        raise LumaValidationError(
            None, f"{parameter}: {shown_address(path)} is a folder: name a file that ends in .mp4"
        )
    refuse_inside(parameter, path, folder)
    return path


def refuse_inside(parameter: str, path: ObjectStoragePath, folder: str | None) -> None:
    """
    Refuse a file in a folder that will be removed.

    :raises LumaValidationError: the file is in the folder
    """
    if folder is None:
        return
    if is_inside(path, as_path(folder, "work_dir")):
        raise LumaValidationError(
            None,
            f"{parameter}: {shown_address(path)} is in the folder {shown_address(folder)}, which will be removed "
            "at the end: choose another folder",
        )


def location(path: ObjectStoragePath) -> tuple[str, str]:
    """Return a key that is equal for paths to the same file; a bucket is the same over any connection."""
    if _are_local(path):
        return "", os.path.realpath(path.path)
    kind = type(path.fs).__name__
    return kind if path.protocol in OBJECT_STORES else f"{kind} {hash(path.fs)}", path.path.rstrip("/")


def is_inside(path: ObjectStoragePath, folder: ObjectStoragePath) -> bool:
    """Return whether a path is a folder, or leads to something in it."""
    (storage, inner), (outer_storage, outer) = location(path), location(folder)
    return storage == outer_storage and f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def refuse_overwriting(
    parameter: str, written: Iterable[ObjectStoragePath], **read: Iterable[ObjectStoragePath]
) -> None:
    """
    Refuse to write to a file that is also read.

    :param parameter: the parameter that says where to write
    :param read: the files that are read, by the parameter that names them
    :raises LumaValidationError: one of them would be overwritten
    """
    inputs = [(name, path, path.fs) for name, paths in read.items() for path in paths]
    for target in written:
        for name, path, fs in inputs:
            if target.name == path.name or isinstance(fs, LocalFileSystem):
                _refuse_same(parameter, target, name, path)


def _refuse_same(parameter: str, target: ObjectStoragePath, name: str, path: ObjectStoragePath) -> None:
    if _are_local(target, path):
        same = os.path.realpath(target.path) == os.path.realpath(path.path)
        with suppress(OSError):  # the target does not exist yet
            same = same or Path(target.path).samefile(path.path)
    else:
        same = _share_storage(target, path) and target.path == path.path
    if same:
        raise LumaValidationError(
            None,
            f"{parameter}: {shown_address(target)} is the file that {name} names, and would be overwritten: "
            f"choose another {parameter}",
        )


def _check_bucket(path: ObjectStoragePath, shown: str, log: Logger) -> None:
    if path.protocol in OBJECT_STORES:
        bucket = path.path.lstrip("/").partition("/")[0]
        if _type_of(path, bucket, shown, log) is None:
            raise LumaValidationError(None, f"{shown}: there is no bucket {bucket!r}: create it, or name another")


def _type_of(path: ObjectStoragePath, name: str, shown: str, log: Logger) -> str | None:
    """Return the type of what is stored under a name, "file" or "directory"; None for nothing; "" if unknown."""
    try:
        return str(path.fs.info(name).get("type", ""))
    except Exception as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not _was_refused(error):
            return None
        log.info("%s: could not be checked in advance: %s", shown, error.__context__ or error)
        return ""


def _was_refused(error: BaseException) -> bool:
    """Return whether the lookup was denied. With Google's storage, an empty bucket then looks like a missing one."""
    context = error.__context__
    return isinstance(context, OSError) and not isinstance(context, FileNotFoundError)


def _are_local(*paths: ObjectStoragePath) -> bool:
    return all(isinstance(path.fs, LocalFileSystem) for path in paths)


def _share_storage(one: ObjectStoragePath, other: ObjectStoragePath) -> bool:
    """Return whether equal paths are the same file: always in object stores, elsewhere only over one connection."""
    return one.fs == other.fs or (type(one.fs) is type(other.fs) and one.protocol in OBJECT_STORES)

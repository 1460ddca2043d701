# SPDX-License-Identifier: Apache-2.0
"""
Files in any storage that Airflow supports: their paths, what to install for a storage, and atomic writes.

A file is written under a temporary name in the same folder (``.name.….part``), and renamed once it is complete. In a
storage that cannot rename, it is copied instead. An object store shows an object only once it is complete.
"""

from __future__ import annotations

import glob
import inspect
import logging
import mimetypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from airflow.sdk import ObjectStoragePath
from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.addresses import split_address
from airflow_provider_luma.core.redaction import shown_address, without_secrets
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.destination_names import OBJECT_STORES, check_destination

log = logging.getLogger(__name__)


#: The extra of this package that provides each scheme.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "azure"),
}

#: Schemes that other tools use, and Airflow's scheme for the same storage.
_AIRFLOWS_SCHEMES = {"az": "abfs", "wasb": "abfs", "wasbs": "abfss"}


def storage_path(address: str, shown: str, *names: str) -> ObjectStoragePath:
    """
    Return a path whose storage can be used here.

    :param address: of a file or folder, with its scheme
    :param names: path segments below it
    :param shown: the parameter and its address, fit for an error
    :raises LumaValidationError: no installed provider package supports the scheme, or the storage's connection is
        unusable
    """
    try:
        path = ObjectStoragePath(address, *names)
        path.fs  # noqa: B018  (looks the storage up)
    except (ValueError, ImportError) as error:
        raise LumaValidationError(None, f"{shown}: {_remedy(address)} ({error})") from error
    return path


def remove_file(fs: AbstractFileSystem, path: str) -> None:
    """Remove one file, without treating its name as a pattern."""
    try:
        fs.rm_file(path)
    except NotImplementedError:  # adlfs before 2026.2, which Airflow 3.1's images contain
        fs.rm(path, expand_path=False)


def _remedy(address: str) -> str:
    from airflow.sdk.io import has_fs

    scheme = address.partition("://")[0].lower()
    if scheme in _AIRFLOWS_SCHEMES:
        return f"Airflow does not know the scheme {scheme}://; write {_AIRFLOWS_SCHEMES[scheme]}://"
    if scheme in _EXTRAS and not _is_usable(scheme):
        return f"{scheme}:// cannot be used here; install the extra {_EXTRAS[scheme]} of airflow-provider-luma"
    if has_fs(scheme):
        return "the storage cannot be used; check its connection"
    return f"{scheme}:// cannot be used here; install the provider package that supports it"


def _is_usable(scheme: str) -> bool:
    """Return whether a scheme's provider package is installed, with the library that it needs for files."""
    from importlib.util import find_spec

    from airflow.sdk.io import has_fs

    library = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}[_EXTRAS[scheme]]
    return has_fs(scheme) and find_spec(library) is not None


def as_path(address: str | ObjectStoragePath, parameter: str = "destination") -> ObjectStoragePath:
    """
    Return the path of an address; a local path is made absolute.

    :param parameter: the operator's parameter that holds it
    :raises LumaValidationError: its storage cannot be used here, or cannot handle the name
    """
    if isinstance(address, ObjectStoragePath):
        return address
    scheme, authority, name = split_address(address)
    if scheme.lower() in ("file", "local"):
        root, name = f"{scheme}://{authority}/", name.lstrip("/")
    elif scheme:
        root = f"{scheme}://{authority}/"
    else:
        # Made absolute here, since some versions of fsspec resolve a relative path from the root.
        root, name = "/", str(Path(address).absolute()).lstrip("/")
    # What is meant as a file may be a misspelt web address, whose query may be a credential.
    shown = f"{parameter}: {without_secrets(address)}"
    if name.startswith("/") or not name:
        return storage_path(f"{root}{name}", shown)
    # A name that is passed separately from its root is used as it is. If both were passed as one string, the name would
    # lose a "#" or "?" at its end, blanks such as line breaks, and whatever follows "::".
    path = storage_path(root, shown, name)
    parts = PurePosixPath(name).parts
    if PurePosixPath(path.path).parts[-len(parts) :] != parts:
        raise LumaValidationError(
            None, f"{parameter}: this storage cannot handle the file name {name!r}: rename the file"
        )
    return path


def file_in(folder: str | ObjectStoragePath, name: str) -> ObjectStoragePath:
    """Return a file in a folder. Join the strings, since joining paths would parse the folder's name again."""
    return as_path(f"{str(as_path(folder)).rstrip('/')}/{name}")


def check_target(path: ObjectStoragePath) -> None:
    """
    Check where a file is to go.

    :raises LumaValidationError: a name is too long, or a folder's name seems to be percent-encoded: it does not exist,
        but the decoded one does
    """
    check_destination(str(path))
    if not isinstance(path.fs, LocalFileSystem):
        return
    for folder in reversed(Path(path.path).parents):
        plain = Path(unquote(str(folder)))
        if plain != folder and plain.is_dir() and not folder.exists():
            raise LumaValidationError(
                None,
                f"destination: there is no folder {str(folder)!r}, but there is {str(plain)!r}. Names are taken "
                "as they are, not decoded: pass the second, e.g. as str(path) instead of path.as_uri(), or create the "
                "first",
            )


def make_folder(path: ObjectStoragePath) -> None:
    """Make the folder that a file goes to, where its storage has folders."""
    # Object stores have none: creating one would create, or ask about, the bucket.
    if path.protocol in OBJECT_STORES:
        return
    folder = path.path.rpartition("/")[0]
    try:
        path.fs.makedirs(folder, exist_ok=True)
    except FileNotFoundError:  # another task has just removed an empty parent folder
        path.fs.makedirs(folder, exist_ok=True)


def part_of(path: ObjectStoragePath) -> str:
    """Return a temporary name for a file, in the same folder."""
    return f"{path.path.rpartition('/')[0]}/.{path.name}.{uuid.uuid4().hex[:8]}.part"


def content_type_option(path: ObjectStoragePath) -> dict[str, Any]:
    """Return the argument that sets the content type in an object store; none for other storages."""
    # By the extension alone: mimetypes may mistake a name for an address.
    kind, _ = mimetypes.guess_type(f"name{PurePosixPath(path.name).suffix}")
    if kind is None:
        return {}
    if path.protocol in ("s3", "s3a", "s3n"):
        return {"ContentType": kind}
    if path.protocol in ("gs", "gcs"):
        return {"content_type": kind}
    # Older versions of Azure's storage do not have the argument.
    knows_settings = "content_settings" in inspect.signature(type(path.fs)._open).parameters
    return {"content_settings": {"content_type": kind}} if knows_settings else {}


def rename(path: ObjectStoragePath, part: str, *, overwrite: bool) -> None:
    """
    Give a complete file its final name.

    :param part: its temporary name
    :raises FileExistsError: a file of that name exists, and must not be replaced
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
        # Some servers do not rename to the name of an existing file.
        if not exists or not path.fs.exists(part):
            raise
        remove_file(path.fs, path.path)
        path.fs.mv(part, path.path)


def _has_rename(fs: AbstractFileSystem) -> bool:
    """Return whether a storage can rename. The default ``mv`` copies, and treats brackets in a name as a pattern."""
    return getattr(fs.mv, "__func__", fs.mv) is not AbstractFileSystem.mv


def _rename_to_new(part: Path, final: Path) -> None:
    """Rename a local file unless the name is taken, atomically where the file system has hard links."""
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
    Yield a local file whose content replaces the target at the end. After an error nothing is written.

    :param target: where the file goes
    :raises LumaValidationError: as in :func:`check_target`
    """
    check_target(target)
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


def files_in(folder: ObjectStoragePath, *, deep: bool) -> list[str]:
    """
    Return the names of the regular files in a folder, sorted.

    :param deep: include the files in subfolders, with the subfolders' names in front
    :raises AirflowException: the storage is unavailable, or does not list the folder
    """
    return _names_in(folder, "file", deep=deep)


def folders_in(folder: ObjectStoragePath, *, deep: bool) -> list[str]:
    """
    Return the names of the folders in a folder. In an object store, folders are only parts of files' names.

    :param deep: include the folders in subfolders, with the subfolders' names in front
    :raises AirflowException: the storage is unavailable, or does not list the folder
    """
    return _names_in(folder, "directory", deep=deep)


def _names_in(folder: ObjectStoragePath, kind: str, *, deep: bool) -> list[str]:
    inside = f"{folder.path.strip('/')}/".lstrip("/")
    try:
        folder.fs.invalidate_cache()
        found = _listed(folder, kind, deep=deep)
    except Exception as error:
        raise AirflowException(f"{shown_address(folder)} could not be listed: {error}") from error
    paths = (info["name"].lstrip("/") for info in found if _kind_of(folder.fs, info) == kind)
    names = (path.removeprefix(inside).rstrip("/") for path in paths if path.startswith(inside) and path != inside)
    return sorted({name for name in names if name and (deep or "/" not in name)})


def _listed(folder: ObjectStoragePath, kind: str, *, deep: bool) -> list[dict[str, Any]]:
    """
    Return everything of one kind in a folder, perhaps with entries of other kinds.

    fsspec's ``find`` alone is not enough: it silently leaves out what it is not allowed to list.
    """
    fs, path = folder.fs, folder.path.rstrip("/") or "/"
    try:
        found: list[dict[str, Any]] = list(fs.ls(path, detail=True))
    except FileNotFoundError:
        return []
    if not deep:
        return found
    if folder.protocol in OBJECT_STORES:  # few requests, none of which may fail; a folder may have the name of a file
        return list(fs.find(path, withdirs=kind == "directory", detail=True).values())
    for info in found:  # also visits what the loop appends
        if info["type"] == "directory" and info["name"].rstrip("/") != path:
            found += fs.ls(info["name"], detail=True)
    return found


def _kind_of(fs: AbstractFileSystem, info: dict[str, Any]) -> str:
    """Return the type of a listed entry. A link on a local disk has the type of its target."""
    kind = str(info.get("type"))
    if kind in ("file", "directory") or not isinstance(fs, LocalFileSystem):
        return kind
    path = Path(info["name"])
    return "file" if path.is_file() else "directory" if path.is_dir() else kind


def remove_folder(address: str) -> None:
    """
    Remove a folder and everything in it, if it exists.

    What cannot be removed is logged.
    """
    path = as_path(address, "work_dir")
    fs, folder = path.fs, path.path.rstrip("/")
    fs.invalidate_cache()
    with suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem) or glob.escape(folder) == folder:
            fs.rm(folder, recursive=True)
        else:
            # Most storages treat brackets in a name as a pattern, and remove nothing, or something else.
            _remove_one_by_one(path, folder)
    fs.invalidate_cache()
    left = _found_in(fs, folder, with_folders=False)
    if left:
        log.warning(
            "Files left in %s: %d, such as %s. Remove them, and allow the storage's connection to delete files there",
            *(shown_address(address), len(left), shown_address(next(iter(left)))),
        )


def remove_empty_folder(address: str) -> None:
    """Remove a local folder if it is empty. Other storages have no folders, or may remove a folder with its content."""
    path = as_path(address, "work_dir")
    if isinstance(path.fs, LocalFileSystem):
        with suppress(OSError):
            Path(path.path).rmdir()


def _remove_one_by_one(path: ObjectStoragePath, folder: str) -> None:
    in_object_store = path.protocol in OBJECT_STORES
    for name, info in reversed(_found_in(path.fs, folder, with_folders=True).items()):
        with suppress(FileNotFoundError):  # for a folder that an object store merely infers from names
            if info["type"] == "directory" and not in_object_store:
                path.fs.rmdir(name)
            else:
                remove_file(path.fs, name)


def _found_in(fs: AbstractFileSystem, folder: str, *, with_folders: bool) -> dict[str, Any]:
    """Return what is in a folder, sorted; ``with_folders`` adds its subfolders and the folder itself."""
    try:
        found = fs.find(folder, withdirs=with_folders, detail=True)
    except FileNotFoundError:
        return {}
    inside = f"{folder.strip('/')}/"
    return {name: found[name] for name in sorted(found) if f"{name.strip('/')}/".startswith(inside)}

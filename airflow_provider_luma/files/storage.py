# SPDX-License-Identifier: Apache-2.0
"""Paths in the storages that Airflow knows, what to install for one that it does not know here, and how they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.exceptions import LumaValidationError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

#: The extra of this package that brings each scheme.
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "azure"),
}

#: Schemes by which others call a storage, and Airflow's.
_AIRFLOWS_SCHEMES = {"az": "abfs", "wasb": "abfs", "wasbs": "abfss"}


def storage_path(address: str, shown: str, *names: str) -> ObjectStoragePath:
    """
    Return a path whose storage can be used here.

    :param address: of a file or folder, with its scheme
    :param names: what is below that
    :param shown: the parameter and its address, fit for an error
    :raises LumaValidationError: no installed provider package has the scheme, or the storage's connection is unusable
    """
    try:
        path = ObjectStoragePath(address, *names)
        path.fs  # noqa: B018  (looks the storage up)
    except (ValueError, ImportError) as error:
        raise LumaValidationError(None, f"{shown}: {_remedy(address)} ({error})") from error
    return path


def remove_file(fs: AbstractFileSystem, path: str) -> None:
    """Remove one file, whose name is not taken for a pattern."""
    try:
        fs.rm_file(path)
    except NotImplementedError:  # adlfs before 2026.2, which the images of Airflow 3.1 hold
        fs.rm(path, expand_path=False)


def _remedy(address: str) -> str:
    from airflow.sdk.io import has_fs

    scheme = address.partition("://")[0].lower()
    if scheme in _AIRFLOWS_SCHEMES:
        return f"{scheme}:// is no scheme of Airflow's; write {_AIRFLOWS_SCHEMES[scheme]}://"
    if scheme in _EXTRAS and not _is_usable(scheme):
        return f"{scheme}:// cannot be used here; install the extra {_EXTRAS[scheme]} of airflow-provider-luma"
    if has_fs(scheme):
        return "the storage cannot be used; check its connection"
    return f"{scheme}:// cannot be used here; install the provider package that has it"


def _is_usable(scheme: str) -> bool:
    """Tell whether the provider package of a scheme is installed, and the library that it needs for files."""
    from importlib.util import find_spec

    from airflow.sdk.io import has_fs

    library = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}[_EXTRAS[scheme]]
    return has_fs(scheme) and find_spec(library) is not None

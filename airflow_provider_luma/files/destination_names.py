# SPDX-License-Identifier: Apache-2.0
"""Checks of the names of files to write. DAG files import this module at every parse."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from airflow_provider_luma.core.addresses import is_web_address, split_address
from airflow_provider_luma.core.validation import check_no_outer_blanks, check_text, is_absolute
from airflow_provider_luma.exceptions import LumaValidationError

#: Extensions allowed for a film that we write: it is an MP4, and players and services go by the extension.
_FILM_EXTENSIONS = (".mp4", ".m4v")

#: Schemes of object stores, whose files have a key and no folders.
OBJECT_STORES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "oss"})

#: Maximum bytes of a name on a disk and of an object's key, and the bytes that a temporary name adds.
_MAX_NAME_BYTES, _MAX_KEY_BYTES, _TEMPORARY_BYTES = 255, 1024, 15


def check_film_destination(parameter: str, destination: object, *, relative: bool = False) -> None:
    """
    Check the file that a film is to be written to: its name must end in ``.mp4`` or ``.m4v``.

    :param relative: accept a path relative to the working directory of the task
    :raises LumaValidationError: it does not name such a file
    """
    text = str(destination or "")
    example = "give a file in storage that ends in .mp4, such as s3://my_aws@bucket/film.mp4"
    if not text.strip():
        raise LumaValidationError(None, f"{parameter} is {destination!r}: {example}")
    check_text(parameter, text)
    check_no_outer_blanks(parameter, text)
    if is_web_address(text):
        raise LumaValidationError(None, f"{parameter} is a web address, which cannot be written to: {example}")
    scheme, separator, rest = text.partition("://")
    path = rest.partition("/")[2] if separator and scheme.lower() not in ("file", "local") else text
    if path.endswith("/") or not path:
        raise LumaValidationError(None, f"{parameter} is a folder or a bucket: {example} ({text!r})")
    if PurePosixPath(path).suffix.lower() not in _FILM_EXTENSIONS:
        raise LumaValidationError(
            None, f"{parameter} does not end in .mp4 or .m4v, but the film is an MP4: {example} ({text!r})"
        )
    if not relative and not is_absolute(text):
        raise LumaValidationError(None, f"{parameter} must be absolute: {example} ({text!r})")
    check_destination(text, parameter)


def names_a_file(destination: str) -> bool:
    """Return whether a destination is a file: its last part ends in an extension such as ``.mp4``."""
    name = split_address(destination).name
    return re.search(r"[^/]\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{2,5}\Z", name) is not None


def check_destination(destination: object, parameter: str = "destination") -> None:
    """
    Check the length of the names in a destination. A file's temporary name is longer than its final one.

    :param destination: a folder, or a file as defined by :func:`names_a_file`
    :raises LumaValidationError: a name is too long
    """
    destination = str(destination or "")
    scheme, _, path = split_address(destination)
    if scheme.lower() in OBJECT_STORES:
        names, what, longest = [path], "key", _MAX_KEY_BYTES
    else:
        names, what, longest = path.split("/"), "name", _MAX_NAME_BYTES
    for index, name in enumerate(names, 1):
        allowed = longest - (_TEMPORARY_BYTES if index == len(names) and names_a_file(destination) else 0)
        size = len(name.encode(errors="surrogateescape"))
        if size > allowed:
            raise LumaValidationError(
                None,
                f"{parameter} has a {what} of {size} bytes: shorten it to at most {allowed} ({name[:60]!r}…)",
            )

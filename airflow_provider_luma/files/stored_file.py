# SPDX-License-Identifier: Apache-2.0
"""
Files found in any storage that Airflow supports: films and clips to upload, sign, split and join.

A version of a file is identified by its size, and by the hash or ETag that its storage gives; without one, by the time
of the last change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.addresses import is_luma_file, is_web_address
from airflow_provider_luma.core.redaction import shown_address, without_secrets
from airflow_provider_luma.exceptions import LumaError, LumaValidationError
from airflow_provider_luma.files.masking import without_debug_logs
from airflow_provider_luma.files.storage import as_path
from airflow_provider_luma.media.input_check import check_video_file

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.types import Logger

    from airflow_provider_luma.services.base import Limits

#: Bytes read from a storage at a time; some keep several blocks in memory.
BLOCK_SIZE = 1024 * 1024

#: Where storages give the version of a file: a hash of its content, or else the time when it was written. The hashes
#: come before the ETag, which in some storages changes with a file's metadata.
_VERSION_KEYS = (
    *("md5Hash", "content_md5", "crc32c", "ETag", "etag"),
    *("mtime", "LastModified", "updated", "last_modified"),
)


@dataclass(frozen=True)
class StoredFile:
    """
    A file in a storage, as it was found.

    :param address: as the user gave it
    :param parameter: the operator's parameter that names it
    :param path: where it is
    :param size: bytes
    :param version: distinguishes it from earlier and later files at the same address
    """

    address: str
    parameter: str
    path: ObjectStoragePath
    size: int
    version: str

    @classmethod
    def find(cls, address: str, parameter: str) -> StoredFile:
        """
        Look a file up in its storage.

        :raises LumaValidationError: there is no such file, or no such storage
        :raises AirflowException: the storage is unavailable
        """
        shown = f"{parameter}: {shown_address(address)}"
        try:
            path = as_path(address, parameter)
            path.fs.invalidate_cache()
            info = path.fs.info(path.path)
            size = int(info["size"]) if info.get("type") == "file" else 0
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LumaValidationError(None, f"{shown}: there is no such file{_percent_hint(address)}") from error
        except LumaError:
            raise
        except Exception as error:
            raise AirflowException(f"{shown} could not be looked up: {error}") from error
        if info.get("type") != "file":
            raise LumaValidationError(None, f"{shown} is a folder, or not a regular file: name one video")
        version = next((str(info[key]).strip('"') for key in _VERSION_KEYS if info.get(key)), "")
        return cls(address, parameter, path, size, f"{size} {version}")

    @property
    def shown(self) -> str:
        """The address, fit for a log."""
        return shown_address(self.address)

    @property
    def name(self) -> str:
        """A file name that is unique to this version of the file, and reveals nothing about it."""
        extension = PurePosixPath(self.path.name).suffix.lower()
        extension = extension if re.fullmatch(r"\.[a-z0-9]{1,8}", extension) else ""
        return f"{hashlib.sha256(f'{self.address} {self.version}'.encode()).hexdigest()[:32]}{extension}"

    def open(self) -> IO[bytes]:
        """
        Open the file for reading.

        :raises AirflowException: it cannot be opened
        """
        try:
            file: IO[bytes] = self.path.fs.open(self.path.path, "rb", block_size=BLOCK_SIZE, cache_type="readahead")
        except Exception as error:
            raise AirflowException(f"{self.parameter}: {self.shown} could not be opened: {error}") from error
        return file

    def check(self, limits: Limits, log: Logger) -> float | None:
        """
        Check whether the service will take the file; return its length in seconds, if known.

        :param limits: what the service takes
        :returns: the video's length in seconds, if known
        :raises LumaValidationError: it will not
        :raises AirflowException: the file cannot be read
        """
        with self.open() as file:
            try:
                return check_video_file(
                    file, limits, parameter=self.parameter, shown=self.shown, size=self.size, log=log
                )
            except LumaError:
                raise
            except Exception as error:
                raise AirflowException(f"{self.parameter}: {self.shown} could not be read: {error}") from error

    def check_unchanged(self) -> None:
        """
        Make sure that the storage still holds this version.

        :raises AirflowException: it does not
        """
        if self.find(self.address, self.parameter).version != self.version:
            raise AirflowException(
                f"{self.parameter}: {self.shown} changed while it was being read; nothing was submitted. "
                "The next try reads it again"
            )

    def sign(self, seconds: float) -> str | None:
        """
        Return an address at which anybody can read the file for that many seconds; None if the storage cannot sign.

        :raises AirflowException: the storage could not sign
        """
        try:
            with without_debug_logs():
                url = self.path.fs.sign(self.path.path, expiration=int(seconds))
        except NotImplementedError:
            return None
        except Exception as error:
            raise AirflowException(f"{self.parameter}: {self.shown} could not be signed: {error}") from error
        if not isinstance(url, str) or not is_web_address(url):
            return None
        return quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # some do not encode the file's name


def content_version(address: str, find: Callable[[], StoredFile]) -> str:
    """
    Return what distinguishes a video's content from earlier and later content at its address.

    For a public video, that is its address without the query: a server may give the same file a new ETag each time.

    :param address: a public one, or a file in a storage
    :param find: finds that file
    """
    if is_web_address(address):
        return without_secrets(address)
    return address if is_luma_file(address) else find().version


def _percent_hint(address: str) -> str:
    """Return a hint for a missing file whose name may have been percent-encoded."""
    plain = unquote(address)
    if plain == address:
        return ""
    return (
        f". Names are taken as they are: if %20 and the like stand for other characters, as in Path.as_uri(), "
        f"give {shown_address(plain)!r}"
    )

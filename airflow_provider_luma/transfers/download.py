# SPDX-License-Identifier: Apache-2.0
"""
Resumable, atomic download of one file into any storage that Airflow knows.

The bytes are written, as they arrive, to a temporary name beside the final one (``.name.….part``), which is renamed
once the file is whole: on a disk by a rename, on an object store by a copy within the store. A broken connection is
resumed with a range request, or started over where the server does not offer that.

The address is not trusted: only http(s) is followed, redirects included; a service on the public Internet cannot name
an address in a private network; and of the file's name only harmless characters are kept.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

import requests
import tenacity
import urllib3
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.backoff import READ_RETRY_TIMEOUT, backoff_delay, retry_options
from airflow_provider_luma.exceptions import (
    TRANSIENT,
    LumaError,
    LumaNotFoundError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.protocol import VIDEO_EXTENSIONS
from airflow_provider_luma.validation import is_private_host

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

CHUNK_SIZE = 1024 * 1024

#: What a storage is handed at a time; object stores want at least 5 MB, and hold several of them in memory.
BLOCK_SIZE = 8 * 1024 * 1024

#: Attempts in a row without a new byte, and restarts of what cannot be resumed, after which a download is given up.
MAX_ATTEMPTS_WITHOUT_PROGRESS, MAX_RESTARTS = 5, 5

#: Seconds between two lines about a download's progress.
PROGRESS_INTERVAL = 10.0

_MAX_REDIRECTS = 5

#: Object stores have no folders: creating one would create, or ask about, the bucket.
_FLAT_STORES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "oss"})

#: Answers that mean there is nothing (any more) behind an address; object stores answer 403 for a missing file.
_GONE = frozenset({401, 403, 404, 410})


def names_a_file(destination: str) -> bool:
    """Tell whether a destination is a file: its last part ends in an extension such as ``.mp4``."""
    path = urlsplit(destination).path if "://" in destination else destination
    return re.search(r"[^/]\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{2,5}$", path) is not None


def safe_name(url: str) -> str:
    """Return a file name made of the URL's last part, without anything that has a meaning to a file system."""
    last = PurePosixPath(unquote(_path(url)).replace("\\", "/")).name.lstrip(".")
    name, dot, extension = last.rpartition(".")
    if not dot or not re.fullmatch(r"[A-Za-z0-9]{1,10}", extension):
        name, dot, extension = last, "", ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100].strip("._-")
    return f"{stem or 'video'}{dot}{extension}" if stem or dot else "video.mp4"


def destination_file(url: str, destination: str | ObjectStoragePath, name: str | None = None) -> ObjectStoragePath:
    """
    Return the file that a download of ``url`` to ``destination`` writes.

    A destination whose last part ends in an extension is the file itself; any other is a folder, in which the
    file gets the name it has in the URL, as far as that is harmless. With a name given, it is always a folder.
    """
    if isinstance(destination, ObjectStoragePath):
        path = destination
    else:
        # Made absolute here: some versions of the library below take a relative path to begin at the root.
        path = ObjectStoragePath(destination if "://" in destination else str(Path(destination).absolute()))
    if name is None and names_a_file(str(destination)):
        return path
    return path / (name or safe_name(url))


@dataclass
class Download:
    """
    How files are fetched.

    :param session: makes a session without credentials
    :param timeout: seconds without a byte after which a connection counts as broken
    :param service_is_public: Luma is on the public Internet, so private addresses are refused
    :param renew: asks Luma for a temporary address of a file that its own address no longer gives
    :param log: where progress is told
    """

    session: Callable[[], requests.Session]
    timeout: float
    service_is_public: bool
    renew: Callable[[str], str]
    log: Logger

    def run(
        self, url: str, destination: str | ObjectStoragePath, *, name: str | None = None, overwrite: bool = False
    ) -> ObjectStoragePath:
        """Fetch one file; see :meth:`airflow_provider_luma.hooks.luma.LumaHook.download`."""
        self._checked(url)
        path = destination_file(url, destination, name)
        # The storage's cached listing of the folder may be older than what others have written there.
        path.fs.invalidate_cache()
        if path.fs.isdir(path.path):
            raise LumaValidationError(None, f"destination {path} is a folder: end it with / to write into it")
        if path.fs.exists(path.path) and not overwrite:
            if self._is_whole(path, url):
                self.log.info("%s is there already, and whole; not fetched again", path)
                return path
            raise FileExistsError(
                f"{path} is there already, and is not the file at {_without_secrets(url)}: "
                "choose another destination, or set overwrite=True to replace it"
            )
        folder = path.path.rpartition("/")[0]
        if path.protocol not in _FLAT_STORES:
            path.fs.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{path.name}.{uuid.uuid4().hex[:8]}.part"
        try:
            size = self._fetch(url, path, part)
            _rename(path, part)
        except BaseException:
            # Also when the task is timed out. An error of the storage must not hide the one that came first.
            with suppress(Exception):
                path.fs.rm_file(part)
            raise
        self.log.info("Wrote %s (%s)", path, _megabytes(size))
        return path

    def _is_whole(self, path: ObjectStoragePath, url: str) -> bool:
        """
        Tell whether a file that is there is the one behind the URL.

        Under its final name a file is always whole, so the length tells whether it is the same one. Where the server
        no longer has the file, or does not say its length, it counts as the same.
        """
        try:
            expected = tenacity.Retrying(**retry_options(READ_RETRY_TIMEOUT))(self._length_at, url)
        except LumaNotFoundError:
            return True
        return expected is None or path.fs.size(path.path) == expected

    def _length_at(self, url: str) -> int | None:
        with self.session() as session, self._get(session, url, offset=0) as response:
            return _length(response)

    def _fetch(self, url: str, path: ObjectStoragePath, part: str) -> int:
        """Fetch the whole file into ``part``; return its size in bytes."""
        transfer = _Transfer(url, url, self.log)
        while True:
            sink: IO[bytes] = path.fs.open(part, "wb", block_size=BLOCK_SIZE)
            try:
                is_complete = self._fill(sink, transfer)
            except BaseException:
                with suppress(Exception):
                    sink.close()
                raise
            sink.close()
            if is_complete:
                break
            transfer.start_over()
        if path.fs.size(part) != transfer.done:
            raise LumaUnavailableError(
                None,
                f"{part} holds {path.fs.size(part)} bytes after {transfer.done} were written: the storage lost some",
            )
        return transfer.done

    def _fill(self, sink: IO[bytes], transfer: _Transfer) -> bool:
        """Write the file, over as many connections as it takes; return False if it must be started over."""
        while True:
            try:
                with self.session() as session, self._get(session, transfer.url, transfer.done) as response:
                    if not transfer.can_resume_with(response):
                        return False
                    for chunk in _chunks(response):
                        sink.write(chunk)
                        transfer.add(len(chunk))
                if transfer.is_complete:
                    return True
                transfer.on_interruption("the connection ended before the file")
            except LumaNotFoundError as gone:
                self._renew(transfer, gone)
            except TRANSIENT as error:
                transfer.on_interruption(error.msg)

    def _renew(self, transfer: _Transfer, gone: LumaNotFoundError) -> None:
        """Continue at a temporary address, if Luma still has the file that is not found at its own."""
        try:
            if transfer.renewed_at == transfer.done:
                raise LumaNotFoundError(None, "nor is it at the temporary address that Luma gave")
            transfer.url = self._checked(self.renew(transfer.original_url))
        except TRANSIENT as error:
            transfer.on_interruption(error.msg)
        except LumaError as refused:
            raise LumaNotFoundError(
                gone.code,
                f"there is no file at {_without_secrets(transfer.original_url)}. Luma keeps results for 14 days: "
                f"it has expired, or never was one (asked for a download address, Luma said: {refused.msg})",
            ) from refused
        else:
            transfer.renewed_at = transfer.done
            self.log.info("The file is not at its address; Luma gave a temporary one")

    def _get(self, session: requests.Session, url: str, offset: int) -> requests.Response:
        """Open the file at an offset, following redirects to where we would go ourselves."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        for _ in range(_MAX_REDIRECTS + 1):
            url = self._checked(url)
            try:
                response = session.get(url, headers=headers, timeout=self.timeout, stream=True, allow_redirects=False)
            except ValueError as error:
                raise LumaValidationError(
                    None, f"urls: {_without_secrets(url)} redirects to no valid address"
                ) from error
            except requests.RequestException as error:
                # Its text would quote the whole URL, and the query of a signed one is a credential.
                reason = f"{_without_secrets(url)} did not answer ({type(error).__name__})"
                raise LumaUnavailableError(None, reason) from None
            target = session.get_redirect_target(response)
            if target is None:
                return _accepted(response)
            response.close()
            url = urljoin(url, target)
        raise LumaUnavailableError(None, f"{_without_secrets(url)}: more than {_MAX_REDIRECTS} redirects")

    def _checked(self, url: str) -> str:
        """Return the address as it will be sent; what requests makes of it is what counts."""
        try:
            prepared = requests.Request("GET", url).prepare().url or ""
            parts = urlsplit(prepared)
            host = parts.hostname
        except ValueError as error:
            raise LumaValidationError(None, f"urls: {_without_secrets(url)!r} is no valid address") from error
        if parts.scheme not in ("http", "https") or not host:
            raise LumaValidationError(
                None, f"urls: only http(s) addresses can be downloaded, not {_without_secrets(url)!r}"
            )
        if self.service_is_public and is_private_host(host):
            raise LumaValidationError(
                None, f"urls: {_without_secrets(url)} leads into a private network, where no result of Luma can be"
            )
        return prepared


@dataclass
class _Transfer:
    """The progress of a download, and its failures so far."""

    original_url: str
    url: str
    log: Logger
    done: int = 0
    total: int | None = None
    validator: str | None = None
    failures: int = 0
    restarts: int = 0
    renewed_at: int | None = None
    logged_at: float = field(default_factory=time.monotonic)

    @property
    def is_complete(self) -> bool:
        return self.total is None or self.done == self.total

    def can_resume_with(self, response: requests.Response) -> bool:
        """Tell whether an answer continues the same file where the last one ended."""
        if self.done == 0:
            self.total, self.validator = _length(response), _validator(response)
            return True
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        return (
            response.status_code == 206
            and part is not None
            and int(part[1]) == self.done
            and (self.total is None or part[2] in ("*", str(self.total)))
            and _validator(response) == self.validator
        )

    def add(self, count: int) -> None:
        self.done += count
        self.failures = 0
        if time.monotonic() - self.logged_at >= PROGRESS_INTERVAL:
            self.logged_at = time.monotonic()
            share = f" of {_megabytes(self.total)}, {self.done / self.total:.0%}" if self.total else ""
            self.log.info("Downloaded %s%s of %s", _megabytes(self.done), share, _without_secrets(self.url))

    def on_interruption(self, reason: str) -> None:
        """Wait before the next attempt; raise if there have been too many without a byte."""
        self.failures += 1
        self._give_up_if(self.failures >= MAX_ATTEMPTS_WITHOUT_PROGRESS, reason)
        seconds = backoff_delay(self.failures)
        self.log.warning("The download was interrupted (%s); it resumes in %.0f s", reason, seconds)
        time.sleep(seconds)

    def start_over(self) -> None:
        """Begin again at the first byte; raise if that has been tried too often."""
        self.restarts += 1
        self._give_up_if(self.restarts > MAX_RESTARTS, "it breaks off, and the server cannot resume it")
        self.log.info("The server cannot resume the file as it was; the download starts over")
        self.done = 0

    def _give_up_if(self, hopeless: bool, reason: str) -> None:
        if hopeless:
            raise LumaUnavailableError(
                None, f"{_without_secrets(self.original_url)} could not be downloaded in one piece: {reason}"
            )


def _rename(path: ObjectStoragePath, part: str) -> None:
    """Give the whole file its final name. ``fs.mv`` would take brackets in a name for a pattern."""
    if isinstance(path.fs, LocalFileSystem):
        os.replace(part, path.path)  # noqa: PTH105  (both are plain strings here)
    else:
        path.fs.cp_file(part, path.path)
        path.fs.rm_file(part)


def _accepted(response: requests.Response) -> requests.Response:
    """Return an answer that is a file; raise what any other stands for."""
    status = response.status_code
    if status in (200, 206):
        if _is_a_message(response):
            response.close()
            raise LumaUnavailableError(None, "the server answered with a message instead of the video")
        return response
    if status == 416:
        # The file has become shorter than what we have of it: let the caller start over.
        return response
    response.close()
    kind = LumaNotFoundError if status in _GONE else LumaUnavailableError
    raise kind(status, f"the server answered HTTP {status}")


def _is_a_message(response: requests.Response) -> bool:
    """Tell whether, in place of a video, there came an error page, a refusal as JSON, or nothing."""
    if not _path(response.url).lower().endswith(tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)):
        return False
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/json") or _length(response) == 0


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as soon as they are there, so that a break loses none that have arrived."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise LumaUnavailableError(None, "the server compressed the file although asked not to")
    try:
        while chunk := response.raw.read1(CHUNK_SIZE):
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise LumaUnavailableError(None, f"the connection broke: {type(error).__name__}") from None


def _validator(response: requests.Response) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _without_secrets(url: object) -> str:
    """Return an address fit for a log: the query of a signed URL, and what stands before an @, are credentials."""
    text = str(url).partition("?")[0].partition("#")[0]
    return re.sub(r"//[^/@]*@", "//", text)


def _megabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e6:.1f} MB"

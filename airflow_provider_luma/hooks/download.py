# SPDX-License-Identifier: Apache-2.0
"""
Fetching one file from the web into any storage Airflow knows, whole or not at all.

The bytes go, a piece at a time, into a file with a name of its own beside the final one (``.name.….part``),
and take the final name only once they are all there: on a disk that is a rename, on an object store a copy
made by the store. Every kind of storage can do that, so nothing here depends on which one it is. A connection
that breaks is resumed with a range request, or, where the server does not offer that, started over.

The address comes from outside and is not trusted: only http(s) is followed, redirects included; a service on
the public Internet cannot send us into a private network; and of the name only harmless characters are kept.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

import requests
import tenacity
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.exceptions import LumaError, LumaNotFoundError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.protocol import is_private_host
from airflow_provider_luma.waiting import patience, pause

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

CHUNK_SIZE = 1024 * 1024

#: Broken connections in a row, without a byte between them, after which a download is given up.
MAX_FRUITLESS_ATTEMPTS = 5

#: Seconds between two lines about a download's progress.
PROGRESS_INTERVAL = 10.0

_MAX_REDIRECTS = 5

#: Where folders are only a way of speaking: making one would create, or ask about, the bucket.
_FLAT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb"})

#: Answers that mean there is nothing (any more) behind an address; object stores answer 403 for a missing file.
_GONE = frozenset({401, 403, 404, 410})


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def destination_file(url: str, destination: str | ObjectStoragePath) -> ObjectStoragePath:
    """
    Return the file that a download of ``url`` to ``destination`` writes.

    A destination whose last part ends in an extension is the file itself; any other is a folder, in which the
    file gets the name it has in the URL, as far as it is harmless.
    """
    path = destination if isinstance(destination, ObjectStoragePath) else ObjectStoragePath(str(destination))
    return path if names_a_file(str(destination)) else path / safe_name(url)


def names_a_file(destination: str) -> bool:
    """Tell whether a destination is a file: its last part ends in an extension such as ``.mp4``."""
    return re.search(r"[^/]\.[A-Za-z][A-Za-z0-9]{1,4}$", destination) is not None


def safe_name(url: str) -> str:
    """Return a file name made of the URL's last part, without anything that has a meaning to a file system."""
    last = PurePosixPath(unquote(urlsplit(url).path).replace("\\", "/")).name
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip("._-")[-120:]
    return name or "video.mp4"


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

    def run(self, url: str, destination: str | ObjectStoragePath, *, overwrite: bool) -> ObjectStoragePath:
        """Fetch one file; see :meth:`airflow_provider_luma.hooks.luma.LumaHook.download`."""
        self._check(url)
        path = destination_file(url, destination)
        there = path.exists()
        if there and not overwrite and self._is_whole(path, url):
            self.log.info("%s is there already, and whole; not fetched again", path)
            return path
        if there and not overwrite:
            raise FileExistsError(
                f"{path} is there already, and is not the file at {_without_query(url)}: "
                "choose another destination, or set overwrite=True to replace it"
            )
        if path.protocol not in _FLAT_STORES:
            path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
        try:
            size = self._fetch_all(url, part)
            path.fs.mv(part.path, path.path)
        except BaseException:
            # Also for a task that is killed or times out: what is not whole must not stay behind.
            if part.exists():
                part.unlink()
            raise
        self.log.info("Wrote %s (%s)", path, _megabytes(size))
        return path

    def _is_whole(self, path: ObjectStoragePath, url: str) -> bool:
        """
        Tell whether a file that is there is the one behind the URL.

        Under its final name a file is always whole; what the length tells is that it is the same one. Where the
        server no longer has the file, or does not say its length, the one that is there is taken for it.
        """
        try:
            expected = tenacity.Retrying(**patience(60))(self._length_at, url)
        except LumaNotFoundError:
            return True
        return expected is None or path.stat().st_size == expected

    def _length_at(self, url: str) -> int | None:
        with self.session() as session, self._get(session, url, offset=0) as response:
            return _length(response)

    def _fetch_all(self, url: str, part: ObjectStoragePath) -> int:
        """Fetch the whole file into ``part``; return its size in bytes."""
        while True:
            with part.open("wb") as sink:
                size = self._fill(sink, url)
            if size is not None:
                break
            self.log.info("The server cannot resume; starting the download over")
        if part.stat().st_size != size:
            raise LumaUnavailableError(
                None, f"{part} holds {part.stat().st_size} bytes after {size} were written: the storage lost some"
            )
        return size

    def _fill(self, sink: BinaryIO, url: str) -> int | None:
        """Write the file, over as many connections as it takes; None if it must be started over."""
        progress = _Progress(self.log, _without_query(url))
        failures = 0
        while True:
            before = progress.done
            try:
                with self.session() as session, self._get(session, url, offset=progress.done) as response:
                    if progress.done and not _continues(response, progress):
                        return None
                    progress.begin(response)
                    for chunk in response.iter_content(CHUNK_SIZE):
                        sink.write(chunk)
                        progress.add(len(chunk))
                if progress.is_complete:
                    return progress.done
                error: Exception = _BrokenOff(f"it ended after {progress.done} of {progress.total} bytes")
            except (requests.RequestException, LumaUnavailableError) as broken:
                error = broken
            except LumaNotFoundError as gone:
                url = self._renewed(url, gone)
                continue
            failures = 1 if progress.done > before else failures + 1
            if failures >= MAX_FRUITLESS_ATTEMPTS:
                raise LumaUnavailableError(
                    None, f"{_without_query(url)} could not be downloaded in one piece: {error}"
                ) from error
            seconds = pause(failures)
            self.log.warning("The download broke off (%s); it goes on in %.0f s", error, seconds)
            time.sleep(seconds)

    def _renewed(self, url: str, gone: LumaNotFoundError) -> str:
        """Return a temporary address for a file that is not found at its own, if Luma still has it."""
        try:
            renewed = self.renew(url)
            self._check(renewed)
        except LumaError as refused:
            raise LumaNotFoundError(
                gone.code,
                f"there is no file at {_without_query(url)}. Luma keeps results for 14 days: it has expired, or never "
                f"was one (asked for a download address, Luma said: {refused.msg})",
            ) from refused
        self.renew = _only_once
        self.log.info("The file is not at its address; Luma gave a temporary one")
        return renewed

    def _get(self, session: requests.Session, url: str, offset: int) -> requests.Response:
        """Open the file at an offset, following redirects to where we would go ourselves."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            try:
                response = session.get(url, headers=headers, timeout=self.timeout, stream=True, allow_redirects=False)
            except requests.RequestException as error:
                raise LumaUnavailableError(None, f"{_without_query(url)} did not answer: {error}") from error
            if not response.is_redirect:
                return _accepted(response)
            response.close()
            url = urljoin(url, response.headers["Location"])
        raise LumaUnavailableError(None, f"{_without_query(url)}: more than {_MAX_REDIRECTS} redirects")

    def _check(self, url: str) -> None:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LumaValidationError(None, f"urls: only http(s) addresses can be downloaded, not {url!r}")
        if self.service_is_public and is_private_host(parts.hostname):
            raise LumaValidationError(
                None, f"urls: {_without_query(url)} leads into a private network, where no result of Luma can be"
            )


class _Progress:
    """How far a download is, told every ten seconds."""

    def __init__(self, log: Logger, name: str) -> None:
        self.done = 0
        self.total: int | None = None
        self.validator: str | None = None
        self._log = log
        self._name = name
        self._told = time.monotonic()

    def begin(self, response: requests.Response) -> None:
        """Note what the first answer says of the whole file."""
        if self.done == 0:
            self.total = _length(response)
            self.validator = _validator(response)

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self._told >= PROGRESS_INTERVAL:
            self._told = time.monotonic()
            share = f" of {_megabytes(self.total)}, {self.done / self.total:.0%}" if self.total else ""
            self._log.info("Downloaded %s%s of %s", _megabytes(self.done), share, self._name)

    @property
    def is_complete(self) -> bool:
        return self.total is None or self.done == self.total


def _accepted(response: requests.Response) -> requests.Response:
    status = response.status_code
    if status in (200, 206):
        return response
    response.close()
    kind = LumaNotFoundError if status in _GONE else LumaUnavailableError
    raise kind(status, f"the server answered HTTP {status}")


def _continues(response: requests.Response, progress: _Progress) -> bool:
    """Tell whether the answer goes on where the last one broke off, in the same file."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return (
        response.status_code == 206
        and start is not None
        and int(start[1]) == progress.done
        and _validator(response) == progress.validator
    )


def _validator(response: requests.Response) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None


def _only_once(url: str) -> str:
    raise LumaNotFoundError(None, "the temporary address does not lead to a file either")


def _without_query(url: str) -> str:
    # The query of a signed URL is a credential.
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _megabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e6:.1f} MB"

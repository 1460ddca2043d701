# SPDX-License-Identifier: Apache-2.0
"""
Resumable, atomic download of one file into any storage that Airflow supports.

The bytes are written as they arrive to a temporary file beside the final one (``.name.….part``), which is renamed once
it is complete: see :mod:`~airflow_provider_luma.files.storage`. After a broken connection the download resumes with a
range request, or starts over if the server does not support that.

Only harmless characters of the file's name are kept.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote

import requests
import tenacity
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.core.backoff import READ_RETRY_TIMEOUT, retry_options
from airflow_provider_luma.core.redaction import without_secrets
from airflow_provider_luma.core.validation import VIDEO_EXTENSIONS, check_no_outer_blanks
from airflow_provider_luma.exceptions import (
    TRANSIENT,
    LumaError,
    LumaNotFoundError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.files.destination_names import names_a_file
from airflow_provider_luma.files.progress import Transfer, megabytes
from airflow_provider_luma.files.sound_source import HEAD_SIZE, SoundSource, identity
from airflow_provider_luma.files.source import FileSource, beginning, chunks, content_length, url_path
from airflow_provider_luma.files.storage import (
    as_path,
    check_target,
    content_type_option,
    file_in,
    make_folder,
    part_of,
    remove_file,
    rename,
)

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

#: Bytes written to a storage at a time; object stores need at least 5 MB, and keep several blocks in memory.
BLOCK_SIZE = 8 * 1024 * 1024

#: Bytes compared at the beginning of two files of equal length, to decide whether they are the same.
COMPARED_SIZE = HEAD_SIZE

#: The longest file name, without its extension: one taken from an address, and one that was given.
_LONGEST_NAME, _LONGEST_GIVEN_NAME = 100, 150


def safe_name(url: str) -> str:
    """Return a file name made from the URL's last part, without characters that are special to a file system."""
    return _harmless(unquote(url_path(url)), _LONGEST_NAME)


def job_file_name(url: str, luma_task_id: str, number: int = 1) -> str:
    """
    Return a file name made from the id of a result's job: the result's addresses change, and may all end alike.

    :param number: the result's place among those of its job
    """
    extension = safe_name(url).rpartition(".")[2].lower()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", luma_task_id)[:_LONGEST_NAME].strip("_-") or "video"
    place = "" if number == 1 else f"-{number}"
    return f"{stem}{place}.{extension if extension in VIDEO_EXTENSIONS else 'mp4'}"


def _harmless(path: str, longest: int) -> str:
    last = PurePosixPath(path.replace("\\", "/")).name.lstrip(".")
    name, dot, extension = last.rpartition(".")
    if not dot or not re.fullmatch(r"[A-Za-z0-9]{1,10}", extension):
        name, dot, extension = last, "", ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:longest].strip("._-")
    return f"{stem or 'video'}{dot}{extension}" if stem or dot else "video.mp4"


def destination_file(url: str, destination: str | ObjectStoragePath, name: str | None = None) -> ObjectStoragePath:
    """
    Return the file that a download of ``url`` to ``destination`` writes.

    A destination whose last part ends in an extension is the file itself. Any other is a folder, in which the file is
    named after the URL; harmful characters are replaced. With ``name``, the destination is always a folder, and the
    file gets that name.
    """
    if name is None and names_a_file(str(destination)):
        return as_path(destination)
    return file_in(destination, safe_name(url) if name is None else _harmless(name, _LONGEST_GIVEN_NAME))


@dataclass
class Download:
    """
    Downloads files.

    :param session: makes a session without credentials
    :param timeout: seconds without a byte after which a connection counts as broken
    :param service_is_public: Luma is on the public Internet, so private addresses are refused
    :param renew: requests a temporary address from Luma for a file that is no longer at its own
    :param log: where progress is logged
    :param luma_task_id: the job that made the file, if known
    :param results_kept: seconds for which the service's addresses of results are valid
    :param sound: the sound to add to the video, if any
    :param before_writing: called when the complete file is about to get its name; if it raises, nothing is written
    """

    session: Callable[[], requests.Session]
    timeout: float
    service_is_public: bool
    renew: Callable[[str], str]
    log: Logger
    luma_task_id: str | None = None
    results_kept: float = 14 * 86_400.0
    sound: SoundSource | None = None
    before_writing: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._source = FileSource(self.session, self.timeout, self.service_is_public)

    def run(
        self, url: str, destination: str | ObjectStoragePath, *, name: str | None = None, overwrite: bool = False
    ) -> ObjectStoragePath:
        """Fetch one file; see :meth:`airflow_provider_luma.hooks.luma.LumaHook.download`."""
        self._source.checked(url)
        check_no_outer_blanks("destination", destination)
        if name is None and self.luma_task_id is not None and not names_a_file(str(destination)):
            name = job_file_name(url, self.luma_task_id)
        path = destination_file(url, destination, name)
        check_target(path)
        # The storage's cached listing of the folder may lack what others have written since.
        path.fs.invalidate_cache()
        if path.fs.isdir(path.path):
            raise LumaValidationError(None, f"destination {path} is a folder: end it with / to write into it")
        if path.fs.exists(path.path) and not overwrite:
            is_folder = name is not None or not names_a_file(str(destination))
            self._check_existing(path, url, is_named_by_url=is_folder and self._is_named_by(url, path.name))
            return path
        make_folder(path)
        part = part_of(path)
        try:
            size = self._fetch(url, path, part)
            if self.sound is not None:
                size = self._add_sound(self.sound, url, path, part)
            self.before_writing()
            self._finish(path, part, overwrite=overwrite)
        except BaseException:
            # Also when the task times out. An error while removing must not hide the original one.
            with suppress(Exception):
                remove_file(path.fs, part)
            raise
        self.log.info("Wrote %s (%s)", path, megabytes(size))
        return path

    def _check_existing(self, path: ObjectStoragePath, url: str, *, is_named_by_url: bool) -> None:
        """
        Make sure that an existing file is the one at the URL.

        A file under its final name is always complete. If the server no longer has the file, or does not give its
        length, only a name taken from the URL or the job identifies it: any other may have been used by an earlier run.
        """
        shown = without_secrets(url)
        try:
            is_same = tenacity.Retrying(**retry_options(READ_RETRY_TIMEOUT))(
                self._is_same_as_result, path, url, needs_length=not is_named_by_url
            )
        except LumaNotFoundError as gone:
            if not is_named_by_url:
                raise FileExistsError(
                    f"{path} already exists, and may be the video of an earlier run: there is no file at {shown} "
                    f"(any more) to compare it with ({gone.msg}). If it is the right one, mark this task as success; "
                    "otherwise make the video again, with a separate destination for each run"
                ) from gone
            self.log.warning("There is no file at %s any more; keeping %s, which was written earlier", shown, path)
            return
        if not is_same:
            raise FileExistsError(
                f"{path} already exists, and could not be confirmed to be the file at {shown}: "
                "choose another destination, or set overwrite=True to replace it"
            )
        self.log.info("%s already exists and is complete; not downloaded again", path)

    def _is_same_as_result(self, path: ObjectStoragePath, url: str, *, needs_length: bool) -> bool:
        try:
            return self._is_same(path, url, needs_length=needs_length)
        except LumaNotFoundError as gone:
            if self.luma_task_id is None:
                raise
            return self._is_same(path, self._renewed(url, gone), needs_length=needs_length)

    def _is_same(self, path: ObjectStoragePath, url: str, *, needs_length: bool) -> bool:
        with self._source.open(url) as response:
            length = content_length(response)
            if length is None and needs_length:
                return False
            if self.sound is not None:
                start = beginning(response, COMPARED_SIZE)[:COMPARED_SIZE]
                return self.sound.is_under(partial(_opened, path, path.path), length, start)
            if length is not None and path.fs.size(path.path) != length:
                return False
            start = beginning(response, COMPARED_SIZE)[:COMPARED_SIZE]
            return length == 0 or start == _beginning(path, path.path)

    def _add_sound(self, sound: SoundSource, url: str, path: ObjectStoragePath, part: str) -> int:
        """Add the sound to the complete video in ``part``; return its new size in bytes."""
        result = identity(path.fs.size(part), _beginning(path, part))
        with TemporaryDirectory(prefix="luma-") as folder:
            made = Path(folder) / "video.mp4"
            video = partial(_opened, path, part)
            sound.add_to(video, made, result=result, shown=without_secrets(url), log=self.log)
            with made.open("rb") as file:
                sink: IO[bytes] = path.fs.open(part, "wb", block_size=BLOCK_SIZE, **content_type_option(path))
                with sink:
                    shutil.copyfileobj(file, sink, BLOCK_SIZE)
            return made.stat().st_size

    def _finish(self, path: ObjectStoragePath, part: str, *, overwrite: bool) -> None:
        """Give the complete file its name; if another task has written the same file meanwhile, keep that one."""
        try:
            rename(path, part, overwrite=overwrite)
        except FileExistsError:
            if not _begin_the_same(path, part):
                raise FileExistsError(
                    f"{path} was created by something else during the download, and is left as it is: "
                    "choose another destination, or set overwrite=True to replace it"
                ) from None
            remove_file(path.fs, part)
            self.log.info("Another task has written %s meanwhile; it is the same file", path)

    def _fetch(self, url: str, path: ObjectStoragePath, part: str) -> int:
        """Fetch the whole file into ``part``; return its size in bytes."""
        transfer = Transfer(url, url, self.log)
        while True:
            sink: IO[bytes] = path.fs.open(part, "wb", block_size=BLOCK_SIZE, **content_type_option(path))
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

    def _fill(self, sink: IO[bytes], transfer: Transfer) -> bool:
        """Write the file, over as many connections as it takes; return False if it must be started over."""
        while transfer.can_continue:
            try:
                if not self._receive(sink, transfer):
                    return False
            except LumaNotFoundError as gone:
                self._renew(transfer, gone)
            except TRANSIENT as error:
                transfer.on_interruption(error.msg)
            else:
                if transfer.is_complete:
                    return True
                transfer.on_end()
        return False

    def _receive(self, sink: IO[bytes], transfer: Transfer) -> bool:
        """Write what one connection delivers; return False if it delivers another file."""
        started = time.monotonic()
        with self._source.open(transfer.url, transfer.done, transfer.version) as response:
            if transfer.ends_with(response):
                return True
            if not transfer.continues_with(response):
                return False
            for chunk in chunks(response):
                waited = time.monotonic() - started
                sink.write(chunk)
                transfer.add(chunk, waited)
                started = time.monotonic()
        return True

    def _renew(self, transfer: Transfer, gone: LumaNotFoundError) -> None:
        """Continue at a temporary address, if Luma still has the file."""
        if transfer.renewed_at == transfer.done:
            raise self._expired(transfer.original_url, gone, "it is not at the new address either")
        try:
            transfer.url = self._renewed(transfer.original_url, gone)
        except TRANSIENT as error:
            transfer.on_interruption(error.msg)
            return
        transfer.renewed_at = transfer.done

    def _renewed(self, url: str, gone: LumaNotFoundError) -> str:
        """
        Return a temporary address of a file that is no longer at its own.

        :raises LumaNotFoundError: Luma returned no address
        :raises LumaRateLimitError, LumaUnavailableError: Luma is unavailable for now
        """
        try:
            renewed = self._source.checked(self.renew(url))
        except TRANSIENT:
            raise
        except LumaError as refused:
            raise self._expired(url, gone, refused.msg) from refused
        self.log.info("The file is no longer at its address; continuing at a new one from Luma")
        return renewed

    def _expired(self, url: str, gone: LumaNotFoundError, reason: str) -> LumaNotFoundError:
        kept = self.results_kept
        period = f"{kept / 86_400:g} days" if kept >= 86_400 else f"{kept / 60:g} minutes"
        return LumaNotFoundError(
            gone.code,
            f"there is no file at {without_secrets(url)}. The address of a result expires after {period}: it has "
            f"expired, or was never that of a result, and Luma returned no new one: {reason}",
        )

    def _is_named_by(self, url: str, name: str) -> bool:
        """Return whether a file is named after its URL or job, perhaps with a number in front to make it unique."""
        own = safe_name(url)
        names = [] if own.startswith("video.") else [re.escape(own)]
        if self.luma_task_id is not None:
            stem, _, extension = job_file_name(url, self.luma_task_id).rpartition(".")
            names = [rf"{re.escape(stem)}(-[0-9]+)?\.{extension}"]
        return any(re.fullmatch(rf"([0-9]+-)?{pattern}", name) for pattern in names)


def _begin_the_same(path: ObjectStoragePath, part: str) -> bool:
    """Return whether two files have the same length and the same beginning."""
    return path.fs.size(path.path) == path.fs.size(part) and _beginning(path, path.path) == _beginning(path, part)


def _opened(path: ObjectStoragePath, file: str) -> IO[bytes]:
    opened: IO[bytes] = path.fs.open(file, "rb", block_size=1024 * 1024, cache_type="readahead")
    return opened


def _beginning(path: ObjectStoragePath, file: str) -> bytes:
    """Return the first bytes of a file. With ``cat_file``, some storages would read all of it."""
    with path.fs.open(file, "rb", block_size=COMPARED_SIZE) as opened:
        start: bytes = opened.read(COMPARED_SIZE)
    return start

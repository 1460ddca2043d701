# SPDX-License-Identifier: Apache-2.0
"""
The sound to add to downloaded results, which some services return without sound.

The written file has a mark in its tag ``comment``: the size and a hash of the downloaded result and of the source of
the sound. The next try recognises the file by this mark, since the file differs from the result at the service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from airflow_provider_luma.core.addresses import is_web_address
from airflow_provider_luma.core.redaction import shown_address, without_secrets
from airflow_provider_luma.core.validation import check_file_address
from airflow_provider_luma.exceptions import LumaError, LumaNotFoundError
from airflow_provider_luma.files.stored_file import StoredFile
from airflow_provider_luma.media.film_types import ClipOpener
from airflow_provider_luma.media.film_work import add_sound, find_sound, read_mark

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.types import Logger

#: Bytes at the beginning of a file that, with its size, identify it.
HEAD_SIZE = 64 * 1024

_MARK = "airflow-provider-luma"


@dataclass(frozen=True)
class SoundSource:
    """
    A video with sound.

    :param open: opens it for reading
    :param shown: its address as messages may show it
    :param identity: its size and a hash of its beginning
    """

    open: Callable[[], IO[bytes]]
    shown: str
    identity: str

    def add_to(self, video: ClipOpener, output: Path, *, result: str, shown: str, log: Logger) -> None:
        """
        Write a video with this sound.

        :param video: opens the result
        :param output: a local file
        :param result: the identity of the result
        :param shown: its address as messages may show it
        :raises LumaValidationError: one of them cannot be used
        """
        names = (shown, self.shown)
        added = add_sound(video, self.open, output, f"{_MARK} {result} {self.identity}", names=names)
        log.info("Added the sound of %s to the video (%s)", self.shown, added.sound)
        for warning in added.warnings:
            log.warning("%s: %s", self.shown, warning)

    def is_under(self, video: ClipOpener, size: int | None, beginning: bytes) -> bool:
        """
        Return whether a file is a result with this sound.

        :param video: opens the file
        :param size: that of the result, if known
        :param beginning: the first bytes of the result
        """
        mark, *_ = read_mark(video).splitlines() or [""]
        written = mark.split(" ")
        sizes = [written[1]] if size is None and len(written) > 1 else [f"{size}"]
        return written == [_MARK, *sizes, _hash(beginning), *self.identity.split(" ")]


def identity(size: int, beginning: bytes) -> str:
    """Return what identifies a file: its size and a hash of its beginning."""
    return f"{size} {_hash(beginning)}"


def _hash(beginning: bytes) -> str:
    return hashlib.sha256(beginning[:HEAD_SIZE]).hexdigest()[:32]


@contextmanager
def sound_source(
    address: str | ObjectStoragePath | None, fetch: Callable[[str, Path], object], log: Logger
) -> Iterator[SoundSource | None]:
    """
    Yield the sound of a video; None if it has none.

    :param address: a file in any storage, or a public address; None for no sound
    :param fetch: downloads from a public address to a folder
    :raises LumaValidationError: there is no such video, or it cannot be used, or the extra ``media`` is not installed
    :raises AirflowException: the file cannot be read
    """
    if not address:
        yield None
        return
    with TemporaryDirectory(prefix="luma-") as folder:
        source = _found(str(address), Path(folder), fetch)
        if find_sound(source.open, shown=source.shown):
            yield source
        else:
            log.info("%s has no sound: the result is kept as it is", source.shown)
            yield None


def _found(address: str, folder: Path, fetch: Callable[[str, Path], object]) -> SoundSource:
    file, shown = address, shown_address(address)
    if is_web_address(address):
        shown = without_secrets(address)
        try:
            fetch(address, folder)
        except LumaNotFoundError as error:
            raise LumaNotFoundError(None, f"sound_from: there is no file at {shown}") from error
        except LumaError as error:
            raise type(error)(error.code, f"sound_from: {error.msg.removeprefix('urls: ')}") from error
        file = str(next(folder.iterdir()))
    else:
        check_file_address("sound_from", address, or_public=True)
    found = StoredFile.find(file, "sound_from")
    with found.open() as opened:
        return SoundSource(found.open, shown, identity(found.size, opened.read(HEAD_SIZE)))

# SPDX-License-Identifier: Apache-2.0
"""Store of uploaded files."""

from __future__ import annotations

import hashlib
import mimetypes
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .account import Account


@dataclass(frozen=True)
class Upload:
    """
    A stored file.

    :param key: its folder and name; with Luma's own API, the id of the file
    :param path: where it is on this machine, until another upload replaces it
    :param size: bytes
    :param sha256: hex digest of its content
    :param stored_at: when it was stored, in seconds since the Unix epoch
    :param service: the service that it was uploaded to, ``kie`` or ``luma``
    """

    key: str
    path: Path
    size: int
    sha256: str
    mime_type: str
    stored_at: float
    service: str

    def as_dict(self) -> dict[str, Any]:
        """Return the upload as JSON values."""
        names = ("service", "key", "size", "sha256", "mime_type", "stored_at")
        return {name: getattr(self, name) for name in names}


class UploadStore:
    """Files uploaded to one service, by key. An upload with the same key replaces the previous one."""

    def __init__(self, account: Account, service: str, folder: Path) -> None:
        self._account = account
        self._service = service
        self._folder = folder

    async def store(self, chunks: AsyncIterator[bytes], key: str, mime_type: str | None = None) -> Upload:
        """
        Store a file.

        :param mime_type: guessed from the key if None
        """
        # The key is chosen by the client. The name on disk is random, so no upload can escape the folder.
        path, size, digest = self._folder / f"{uuid.uuid4().hex}.upload", 0, hashlib.sha256()
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
        replaced = self.find(key)
        guessed = mimetypes.guess_type(key)[0] or "application/octet-stream"
        upload = Upload(key, path, size, digest.hexdigest(), mime_type or guessed, time.time(), self._service)
        self._account.record_upload(upload)
        if replaced:
            replaced.path.unlink()
        return upload

    def find(self, key: str) -> Upload | None:
        """Return the file stored last under this key; None if there is none."""
        uploads = reversed(self._account.uploads)
        return next((upload for upload in uploads if (upload.service, upload.key) == (self._service, key)), None)

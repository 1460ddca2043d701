# SPDX-License-Identifier: Apache-2.0
"""Store of uploaded files: gives input videos that have no public URL one on this server, for a limited time."""

from __future__ import annotations

import mimetypes
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .service import Refusal


@dataclass(frozen=True)
class Upload:
    """A stored file; ``size`` in bytes, ``stored_at`` in seconds of the Unix epoch."""

    path: Path
    size: int
    mime_type: str
    stored_at: float


class UploadStore:
    """Uploaded files by folder and name; an upload of the same name replaces the previous one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Upload] = {}

    async def store(self, chunks: AsyncIterator[bytes], folder: Any, name: Any, base_url: str) -> dict[str, Any]:
        """
        Store a file.

        :return: the ``data`` of the service's response to an upload
        :raises Refusal: 422, if the folder or the name is missing or not plain
        """
        if not isinstance(folder, str) or not all(map(_is_plain_name, folder.strip("/").split("/"))):
            raise Refusal(422, "uploadPath is required and must be a plain path.")
        if not isinstance(name, str) or not _is_plain_name(name):
            raise Refusal(422, "fileName must be the plain name of a file.")
        # The client's name is only a dictionary key. The name on disk is random, so no upload can escape the folder.
        key = f"{folder.strip('/')}/{name}"
        path, size = self._folder / f"{uuid.uuid4().hex}.upload", 0
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                file.write(chunk)
        replaced = self._files.get(key)
        mime_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        self._files[key] = Upload(path, size, mime_type, time.time())
        if replaced:
            replaced.path.unlink()
        return {
            "fileName": name,
            "filePath": key,
            "downloadUrl": f"{base_url}/files/uploads/{quote(key)}",
            "fileSize": size,
            "mimeType": mime_type,
        }

    def find(self, key: str, ttl: float) -> Upload | None:
        """Return the file stored under this key; None if there is none or it is older than ``ttl`` seconds."""
        upload = self._files.get(key)
        return upload if upload and time.time() <= upload.stored_at + ttl else None


def _is_plain_name(name: str) -> bool:
    return bool(name.strip()) and name not in (".", "..") and "/" not in name

# SPDX-License-Identifier: Apache-2.0
"""Uploaded files: inputs that have no public URL get one here, for three days."""

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
    """A stored file."""

    path: Path
    size: int
    mime_type: str
    stored_at: float


class Uploads:
    """Files by the name they were uploaded under; the same name overwrites."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Upload] = {}

    async def store(self, chunks: AsyncIterator[bytes], folder: Any, name: Any, base_url: str) -> dict[str, Any]:
        """Store a file and return what the service tells about it."""
        if not isinstance(folder, str) or not all(map(_is_plain, folder.strip("/").split("/"))):
            raise Refusal(422, "uploadPath is required and must be a plain path.")
        if not isinstance(name, str) or not _is_plain(name):
            raise Refusal(422, "fileName must be the plain name of a file.")
        # The name is only ever a key: on disk a file has a name of our own, which cannot lead anywhere else.
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
        """Find the file of that name, unless there is none or it has expired."""
        upload = self._files.get(key)
        return upload if upload and time.time() <= upload.stored_at + ttl else None


def _is_plain(name: str) -> bool:
    return bool(name.strip()) and name not in (".", "..") and "/" not in name

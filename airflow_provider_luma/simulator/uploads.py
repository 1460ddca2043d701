# SPDX-License-Identifier: Apache-2.0
"""Store of uploaded files: gives input videos that have no public URL one on this server, for a limited time."""

from __future__ import annotations

import hashlib
import mimetypes
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .service import Refusal, Service


@dataclass(frozen=True)
class Upload:
    """
    A stored file.

    ``key`` is its folder and name, ``path`` where it lies on this machine until another upload replaces it, ``size`` is
    in bytes, ``stored_at`` in seconds of the Unix epoch.
    """

    key: str
    path: Path
    size: int
    sha256: str
    mime_type: str
    stored_at: float

    def as_dict(self) -> dict[str, Any]:
        """Return the upload as JSON values."""
        names = ("key", "size", "sha256", "mime_type", "stored_at")
        return {name: getattr(self, name) for name in names}


class UploadStore:
    """Uploaded files by folder and name; an upload of the same name replaces the previous one."""

    def __init__(self, folder: Path, service: Service) -> None:
        self._folder = folder
        self._service = service

    async def store(self, chunks: AsyncIterator[bytes], folder: Any, name: Any) -> dict[str, Any]:
        """
        Store a file.

        :return: the ``data`` of the service's response to an upload
        :raises Refusal: 400, if the folder or the name is missing or not plain
        """
        if not isinstance(folder, str) or not all(map(_is_plain_name, folder.strip("/").split("/"))):
            raise Refusal(400, "uploadPath is required and must be a plain path.")
        if not isinstance(name, str) or not _is_plain_name(name):
            raise Refusal(400, "fileName must be the plain name of a file.")
        # The client's name is only a dictionary key. The name on disk is random, so no upload can escape the folder.
        key = f"{folder.strip('/')}/{name}"
        path, size, digest = self._folder / f"{uuid.uuid4().hex}.upload", 0, hashlib.sha256()
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
        replaced = self._latest(key)
        mime_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        upload = Upload(key, path, size, digest.hexdigest(), mime_type, time.time())
        self._service.record_upload(upload)
        if replaced:
            replaced.path.unlink()
        return self._data(upload)

    def _data(self, upload: Upload) -> dict[str, Any]:
        """Return the response's ``data`` in the one or the other of its documented shapes."""
        settings = self._service.settings
        url = f"{self._service.url}/files/uploads/{quote(upload.key)}"
        if settings.upload_answer == "file_id":
            return {
                "fileId": upload.path.stem,
                "fileUrl": url,
                "downloadUrl": url,
                "uploadTime": _iso(upload.stored_at),
                "expiresAt": _iso(upload.stored_at + settings.upload_ttl),
            }
        return {
            "fileName": upload.key.rpartition("/")[2],
            "filePath": upload.key,
            "downloadUrl": url,
            "fileSize": upload.size,
            "mimeType": upload.mime_type,
            "uploadedAt": _iso(upload.stored_at),
        }

    def find(self, key: str) -> Upload | None:
        """Return the file stored under this key; None if there is none, or it has expired."""
        upload = self._latest(key)
        expired = upload is None or time.time() > upload.stored_at + self._service.settings.upload_ttl
        return None if expired else upload

    def _latest(self, key: str) -> Upload | None:
        return next((upload for upload in reversed(self._service.uploads) if upload.key == key), None)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_plain_name(name: str) -> bool:
    return bool(name.strip()) and name not in (".", "..") and "/" not in name

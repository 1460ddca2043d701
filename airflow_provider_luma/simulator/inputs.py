# SPDX-License-Identifier: Apache-2.0
"""Content-addressed store of input videos: each is downloaded and validated before its job is accepted."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import httpx

from . import media
from .service import MAX_VIDEO_BYTES, MAX_VIDEO_SECONDS, Refusal

#: Everything that requesting a URL may raise; UnicodeError stands for a host name that cannot be encoded for DNS.
REQUEST_ERRORS = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)


class InputStore:
    """Downloaded input videos, one file for each distinct content."""

    def __init__(self, folder: Path, client: httpx.AsyncClient) -> None:
        self._folder = folder
        self._client = client
        self._validated: set[str] = set()

    def path(self, digest: str) -> Path:
        """Return the path of the video with this SHA-256 digest."""
        return self._folder / digest

    async def fetch(self, url: str, seconds: float) -> str:
        """
        Download and validate a video.

        :param seconds: time limit of the download
        :return: the SHA-256 hex digest of its content
        :raises Refusal: 422 with the reason, if the video cannot be downloaded or is not acceptable
        """
        scratch = self._folder / f"{uuid.uuid4().hex}.part"
        try:
            async with asyncio.timeout(seconds):
                digest = await self._download(url, scratch)
            if digest not in self._validated:
                await asyncio.to_thread(media.probe, scratch, MAX_VIDEO_SECONDS)
                scratch.replace(self.path(digest))
                self._validated.add(digest)
            return digest
        except TimeoutError as error:
            raise Refusal(422, f"videoUrl could not be fetched within {seconds:g} seconds.") from error
        except REQUEST_ERRORS as error:
            raise Refusal(422, f"videoUrl is not reachable: {str(error) or type(error).__name__}.") from error
        except media.UnusableVideo as error:
            raise Refusal(422, f"videoUrl is not a video the service takes: {error}.") from error
        finally:
            scratch.unlink(missing_ok=True)

    async def _download(self, url: str, target: Path) -> str:
        digest, size = hashlib.sha256(), 0
        async with self._client.stream("GET", url) as response:
            if response.status_code != 200:
                raise Refusal(422, f"videoUrl is not reachable: it answers HTTP {response.status_code}.")
            if int(response.headers.get("content-length", 0)) > MAX_VIDEO_BYTES:
                raise Refusal(422, "videoUrl is larger than 500 MB.")
            with target.open("wb") as file:
                async for chunk in response.aiter_bytes(1 << 18):
                    size += len(chunk)
                    if size > MAX_VIDEO_BYTES:
                        raise Refusal(422, "videoUrl is larger than 500 MB.")
                    digest.update(chunk)
                    file.write(chunk)
        return digest.hexdigest()

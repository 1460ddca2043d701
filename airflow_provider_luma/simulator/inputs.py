# SPDX-License-Identifier: Apache-2.0
"""Content-addressed store of input videos: each is fetched and checked before its job is accepted."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx

from . import media

#: Everything that requesting a URL may raise; UnicodeError stands for a host name that cannot be encoded for DNS.
REQUEST_ERRORS = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)


@dataclass(frozen=True)
class InputLimits:
    """What a service accepts as an input: seconds of video, and bytes of its file."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class InputVideo:
    """An input in the store."""

    digest: str
    clip: media.Clip


class InputProblem(Exception):
    """An input was not accepted; the message continues a sentence that begins with the name of the parameter."""

    def __init__(self, kind: Literal["unreachable", "timeout", "too_large", "unusable"], msg: str) -> None:
        super().__init__(msg)
        self.kind = kind


class InputStore:
    """Input videos, one file for each distinct content."""

    def __init__(self, folder: Path, client: httpx.AsyncClient) -> None:
        self._folder = folder
        self._client = client
        self._checked: dict[tuple[str, float], media.Clip] = {}

    def path(self, digest: str) -> Path:
        """Return the path of the video with this SHA-256 digest."""
        return self._folder / digest

    async def fetch(self, url: str, seconds: float, limits: InputLimits) -> InputVideo:
        """
        Download and check a video.

        :param seconds: time limit of the download
        :raises InputProblem: if the video cannot be downloaded or is not acceptable
        """
        scratch = self._scratch()
        try:
            async with asyncio.timeout(seconds):
                digest = await self._download(url, scratch, limits)
            return await self._add(scratch, digest, limits)
        except TimeoutError as error:
            raise InputProblem("timeout", f"could not be fetched within {seconds:g} seconds") from error
        except REQUEST_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InputProblem("unreachable", f"is not reachable: {reason.rstrip('.')}") from error
        finally:
            scratch.unlink(missing_ok=True)

    async def add(self, source: Path | bytes, limits: InputLimits) -> InputVideo:
        """
        Check a video that is in the store's folder or in memory, and add it.

        :param source: a file, or its content
        :raises InputProblem: if the video is not acceptable
        """
        scratch = self._scratch()
        try:
            if isinstance(source, bytes):
                await asyncio.to_thread(scratch.write_bytes, source)
            else:
                await asyncio.to_thread(scratch.hardlink_to, source)
            size, digest = await asyncio.to_thread(_measure, scratch)
            if size > limits.bytes:
                raise _too_large()
            return await self._add(scratch, digest, limits)
        finally:
            scratch.unlink(missing_ok=True)

    def _scratch(self) -> Path:
        return self._folder / f"{uuid.uuid4().hex}.part"

    async def _add(self, scratch: Path, digest: str, limits: InputLimits) -> InputVideo:
        key = digest, limits.seconds
        if key not in self._checked:
            try:
                clip = await asyncio.to_thread(media.probe, scratch, limits.seconds)
            except media.UnusableVideo as error:
                raise InputProblem("unusable", f"is not a video the service takes: {error}") from error
            await asyncio.to_thread(scratch.replace, self.path(digest))
            self._checked[key] = clip
        return InputVideo(digest, self._checked[key])

    async def _download(self, url: str, target: Path, limits: InputLimits) -> str:
        digest, size = hashlib.sha256(), 0
        async with self._client.stream("GET", url) as response:
            if response.status_code != 200:
                raise InputProblem("unreachable", f"is not reachable: it answers HTTP {response.status_code}")
            if int(response.headers.get("content-length", 0)) > limits.bytes:
                raise _too_large()
            with target.open("wb") as file:
                async for chunk in response.aiter_bytes(1 << 18):
                    size += len(chunk)
                    if size > limits.bytes:
                        raise _too_large()
                    digest.update(chunk)
                    file.write(chunk)
        return digest.hexdigest()


def _too_large() -> InputProblem:
    return InputProblem("too_large", "is larger than the service takes")


def _measure(path: Path) -> tuple[int, str]:
    """Return a file's size and digest."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def is_http_url(url: str) -> bool:
    """Whether a text is a valid http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Whether a valid URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

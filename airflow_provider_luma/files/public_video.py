# SPDX-License-Identifier: Apache-2.0
"""What can be told of a public input video at no cost: its first bytes, and what its server says of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_luma.core.redaction import without_secrets
from airflow_provider_luma.exceptions import LumaError, LumaNotFoundError, LumaValidationError
from airflow_provider_luma.files.source import FileSource, chunks, content_length
from airflow_provider_luma.media.probe import HEAD_LENGTH, check_video_head

if TYPE_CHECKING:
    import requests
    from airflow.sdk.types import Logger


def check_public_video(url: str, source: FileSource, log: Logger) -> None:
    """
    Look at the beginning of a public video, and at what its server says of it.

    The service's way to the file is another than ours: what cannot be seen from here is left to the service.

    :param source: asks for the first bytes
    :raises LumaValidationError: there is nothing, or surely no video that the service takes
    """
    shown = without_secrets(url)
    try:
        with source.open(url) as response:
            if response.status_code == 416:
                log.warning("video_url could not be checked from here: its server gives no part of it")
                return
            kind, size = response.headers.get("Content-Type"), _total_size(response)
            head = _head(response)
    except LumaNotFoundError as error:
        if error.code not in (404, 410):
            log.warning("video_url could not be checked from here: %s", error.msg)
            return
        raise LumaValidationError(None, f"video_url: there is nothing at {shown} ({error.msg})") from error
    except LumaError as error:
        log.warning("video_url could not be checked from here: %s", error.msg.removeprefix("urls: "))
        return
    check_video_head(head, content_type=kind, size=size, parameter="video_url", shown=shown)


def _head(response: requests.Response) -> bytes:
    """Return about a thousand bytes, and all of a shorter body: its first piece may be a single byte."""
    head = b""
    for piece in chunks(response):
        head += piece
        if len(head) >= HEAD_LENGTH:
            break
    return head


def _total_size(response: requests.Response) -> int | None:
    """Return how many bytes the whole file has, if the server says it."""
    if response.status_code != 206:
        return content_length(response)
    total = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    return int(total[1]) if total else None

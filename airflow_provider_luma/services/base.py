# SPDX-License-Identifier: Apache-2.0
"""What every service has, whichever it is: the limits of what it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    What a service takes of a clip and of a prompt.

    :param seconds: seconds that a clip may last
    :param bytes_by_url: bytes of a clip that the service fetches from a public address
    :param bytes_as_file: bytes of a clip that is uploaded to the service
    :param containers: kinds of files that it reads, as their extensions in lower case: ``mp4``, ``mov``, ``avi``
    :param prompt_characters: characters of a prompt; None if the service names no limit
    """

    seconds: float
    bytes_by_url: int
    bytes_as_file: int
    containers: tuple[str, ...]
    prompt_characters: int | None

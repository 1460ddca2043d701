# SPDX-License-Identifier: Apache-2.0
"""
What splitting and joining are given and give back, on both sides: in the worker, and in the child process.

The worker has no need of PyAV for these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: Makes a clip's file, by the clip's index: a local one, which is whole at the end of the context.
ClipFile = Callable[[int], AbstractContextManager[Path]]

#: Opens a clip for reading, at any position; called twice.
ClipOpener = Callable[[], AbstractContextManager[IO[bytes]]]

#: Called with the frames that are done, and with how many there are. What it raises ends the work.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class JoinedFilm:
    """
    A film as it was written.

    :param seconds: its length
    :param sound: of each track "copied", or "encoded" as AAC; or "none"
    :param lacking: seconds that each clip was shorter than its piece of the film; negative if it was longer
    :param warnings: lines for the log: what was wrong with clips, and what of the film is not kept
    """

    seconds: float
    sound: str
    lacking: tuple[float, ...]
    warnings: tuple[str, ...]

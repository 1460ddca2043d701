# SPDX-License-Identifier: Apache-2.0
"""The types that splitting and joining take and return, in the worker and in the child process, without PyAV."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: Makes the local file of a clip, by the clip's index. The file is complete at the end of the context.
ClipFile = Callable[[int], AbstractContextManager[Path]]

#: Opens a clip for reading, at any position. Some jobs call it twice: to measure the clip, and to read it.
ClipOpener = Callable[[], AbstractContextManager[IO[bytes]]]

#: Called with the number of frames done, and of all frames. What it raises ends the work.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class AddedSound:
    """
    The sound that was added to a video.

    :param sound: "copied" or "encoded" (as AAC) for each track
    :param warnings: lines for the log: which parts of its source are not kept
    """

    sound: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class JoinedFilm:
    """
    The film that a join has written.

    :param seconds: its length
    :param sound: "copied" or "encoded" (as AAC) for each track; or "none"
    :param lacking: seconds by which each clip was shorter than its piece of the film; negative if it was longer
    :param warnings: lines for the log: what was wrong with clips, and which parts of the film are not kept
    """

    seconds: float
    sound: str
    lacking: tuple[float, ...]
    warnings: tuple[str, ...]

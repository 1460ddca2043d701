# SPDX-License-Identifier: Apache-2.0
"""
What both child processes need: an environment without secrets, and files that they read through their parent.

``input_check`` and ``film_work`` start them, and ``input_check_child`` and ``film_work_child`` are what runs in them.
A video comes from outside, and may have been made to take over what decodes it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

_PACKAGE_FOLDER = str(Path(__file__).parents[2])  # an editable install may not have it in sys.path


def environment() -> dict[str, str]:
    """Return what a process needs to find PyAV. It gets no secret: what it reads may have been made to harm it."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), _PACKAGE_FOLDER])}


class RemoteFile(io.RawIOBase):
    """
    The file, read through the parent process.

    :param ask: asks the parent for so many bytes, at most, from an offset on
    """

    def __init__(self, size: int, ask: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._ask = ask
        self._position = 0

    def read(self, length: int = -1) -> bytes:
        """Read at most so many bytes."""
        content = self._ask(self._position, length)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError("a position before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Tell that it can be read at any position."""
        return True

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

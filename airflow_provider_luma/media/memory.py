# SPDX-License-Identifier: Apache-2.0
"""
How much memory and how many threads a film may use, by the size of its pictures.

:func:`limit_memory` sets the limit; only the child process calls it, in :mod:`.child_jobs`.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

#: Pixels of the largest pictures that are decoded: 8K.
MAX_PIXELS = 8192 * 4320

#: Bytes of data that a process may allocate before the size of the pictures is known.
_BASE = 800_000_000

#: Bytes that large pictures take: a fixed part, and a part per pixel. This gives a 4K film 1.1 GB, of which less than
#: 1 GB becomes resident: x264 and the stacks of threads reserve more than they use.
_FIXED, _PER_PIXEL = 256_000_000, 104

#: Threads that FFmpeg may use.
THREADS = min(4, os.cpu_count() or 1)

#: Bytes of pictures that the threads of a decoder may hold together, one picture each.
_BYTES_IN_THREADS = 72_000_000

#: Share of the limit above which the rest may be too little for the next picture.
_NEARLY_ALL = 0.85

_is_limited = False


def limit_memory() -> None:
    """Limit the memory of this process, as far as the system supports it."""
    global _is_limited
    _is_limited = True
    _set_limit(_BASE)


def allow_pictures(pixels: int) -> None:
    """Raise the memory limit of this process, if it has one, to what pictures of this many pixels need."""
    if _is_limited:
        _set_limit(max(_limit(), _FIXED + _PER_PIXEL * min(pixels, MAX_PIXELS)))


def is_exhausted() -> bool:
    """Return whether this process has nearly reached its memory limit: x264 does not report that memory ran out."""
    if not _is_limited:
        return False
    with suppress(OSError, IndexError):  # not every system has this file
        taken = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
        return 1024 * int(taken) > _NEARLY_ALL * _limit()
    return False


def decoder_threads(pixels: int, bits_per_pixel: int) -> int:
    """Return how many threads should decode pictures of this size."""
    return max(1, min(THREADS, _BYTES_IN_THREADS * 8 // max(1, pixels * bits_per_pixel)))


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def _set_limit(limit: int) -> None:
    # This limits the data, not the address space: threads reserve much more of that than they use.
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    with suppress(OSError, ValueError):  # not supported everywhere
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))

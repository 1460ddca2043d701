# SPDX-License-Identifier: Apache-2.0
"""Looking at videos as a person would: do they play, how long, and do they differ?"""

from __future__ import annotations

import io
from pathlib import Path
from urllib.request import urlopen

import av
import numpy as np


def frames(source: str) -> tuple[list[np.ndarray], float]:
    """Return all frames of a video, and its length in seconds."""
    data = urlopen(source).read() if source.startswith("http") else Path(source.removeprefix("file://")).read_bytes()
    with av.open(io.BytesIO(data)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.duration is not None
        return pictures, container.duration / 1_000_000


def assert_modified(modified: str, original: str) -> None:
    """Check that a video plays, lasts as long as the original, and looks different."""
    before, seconds_before = frames(original)
    after, seconds_after = frames(modified)
    assert len(after) == len(before)
    assert abs(seconds_after - seconds_before) < 0.2
    differences = [np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(after, before, strict=True)]
    assert min(differences) > 10

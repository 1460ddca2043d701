# SPDX-License-Identifier: Apache-2.0
"""An input video of the tests, in a storage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_luma.simulator import Simulator
from tests.support.storages import BUCKET


def uploads(luma: Simulator) -> list[Any]:
    """Return the uploads, accepted or not."""
    return [call for call in luma.calls if call.on == "upload"]


def digest(content: bytes) -> str:
    """Return what the simulator calls a job's input."""
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def clip(luma: Simulator, tmp_path: Path) -> Path:
    """A clip on a disk."""
    path = tmp_path / "clip of mine.mp4"
    path.write_bytes(requests.get(luma.sample_url, timeout=60).content)
    luma.reset()
    return path


@pytest.fixture
def s3_clip(bucket: Any, clip: Path) -> str:
    """The address of the same clip in a bucket."""
    bucket.s3.put_object(Bucket=BUCKET, Key="in/clip.mp4", Body=clip.read_bytes())
    return f"s3://my_s3@{BUCKET}/in/clip.mp4"

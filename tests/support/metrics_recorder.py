# SPDX-License-Identifier: Apache-2.0
"""What is reported to Airflow's metrics during a test."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from airflow_provider_luma import metrics


class Recorder:
    """Stands in for Airflow's Stats, behind which is a network."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.tags: dict[str, Any] = {}

    def incr(self, name: str) -> None:
        self.values[name].append(1)

    def timing(self, name: str, value: float) -> None:
        self.values[name].append(value)

    def gauge(self, name: str, value: float, *, tags: dict[str, str]) -> None:
        self.values[name].append(value)
        self.tags[name] = tags

    def count(self, name: str) -> int:
        return len(self.values[name])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records what this package reports."""
    recorder = Recorder()
    monkeypatch.setattr(metrics, "Stats", recorder)
    return recorder

# SPDX-License-Identifier: Apache-2.0
"""Which calls the simulator has received."""

from __future__ import annotations

from typing import Any

from airflow_provider_luma.simulator import Simulator


def submissions(luma: Simulator) -> list[Any]:
    """Return the submissions, accepted or not."""
    return [call for call in luma.calls if call.on == "submit"]


def status_checks(luma: Simulator) -> list[Any]:
    """Return the status checks."""
    return [call for call in luma.calls if call.on == "status"]


def file_requests(luma: Simulator) -> list[Any]:
    """Return the requests for files: samples and results."""
    return [call for call in luma.calls if call.on == "file"]

# SPDX-License-Identifier: Apache-2.0
"""Reading the entries that the fixture ``task_log`` captures."""

from __future__ import annotations

from typing import Any


def messages(task_log: list[Any], *words: str) -> list[str]:
    """Return the logged messages that contain all these words."""
    logged = [
        entry["event"] % entry["positional_args"] if entry.get("positional_args") else entry["event"]
        for entry in task_log
    ]
    return [message for message in logged if all(word in message for word in words)]

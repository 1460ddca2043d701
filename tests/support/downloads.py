# SPDX-License-Identifier: Apache-2.0
"""Downloads without a hook, results to download, and how to compare what has arrived."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import requests

from airflow_provider_luma.exceptions import LumaNotFoundError
from airflow_provider_luma.files.download import Download
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.simulator import Simulator


class Interrupted(BaseException):
    """What a signal raises in the middle of a download."""


class Messages(logging.Handler):
    """Collects log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


def new_download(**changes: Any) -> tuple[Download, list[str]]:
    """Return a download that asks nobody for temporary addresses, and the list of what it will log."""
    handler = Messages()
    log = logging.Logger("download", logging.DEBUG)
    log.addHandler(handler)

    def refuse(url: str) -> str:
        raise LumaNotFoundError(404, "no such file")

    parameters = {
        "session": requests.Session,
        "timeout": 10.0,
        "service_is_public": False,
        "renew": refuse,
        "log": log,
    }
    return Download(**{**parameters, **changes}), handler.messages


def result_url(luma: Simulator) -> str:
    """Submit a job, wait for its end, and return the address of its video."""
    hook = LumaHook()
    luma_task_id = hook.modify_video("Make it snow", luma.sample_url)
    return hook.wait_for_completion(luma_task_id, timeout=60, poll_interval=0.1).result_urls[0]


def sha256(content: bytes) -> str:
    """Return a hash, so that a failed comparison prints no megabytes."""
    return hashlib.sha256(content).hexdigest()

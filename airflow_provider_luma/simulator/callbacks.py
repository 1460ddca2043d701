# SPDX-License-Identifier: Apache-2.0
"""Webhook sender for kie.ai: the body, its HMAC signature, and delivery with a limited number of attempts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from .account import Job
from .clock import Clock
from .inputs import REQUEST_ERRORS
from .settings import Settings


def payload(job: Job) -> dict[str, Any]:
    """Return the JSON body of the callback for a finished job."""
    data: dict[str, Any] = {
        "taskId": job.task_id,
        "promptJson": json.dumps(job.request, ensure_ascii=False),
        "resultUrls": list(job.result_urls),
    }
    if job.error_message is None:
        return {"code": 200, "msg": "Video modified successfully.", "data": data}
    return {"code": 500 if job.outcome == "create_failed" else 501, "msg": job.error_message, "data": data}


def signature(task_id: str, timestamp: str, secret: str) -> str:
    """
    Return the base64 HMAC-SHA256 of ``task_id.timestamp``.

    The service signs nothing else: neither the status nor the URLs in the body.

    :param timestamp: Unix time in whole seconds, as text
    """
    mac = hmac.new(secret.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


async def deliver(
    client: httpx.AsyncClient, job: Job, settings: Settings, clock: Clock, on_attempt: Callable[[], None]
) -> bool:
    """
    Post a callback until the receiver answers 200, ``settings.callback_tries`` times at most.

    :param on_attempt: invoked after each attempt, whether it was delivered or not
    :return: whether the callback was delivered
    """
    for attempt in range(settings.callback_tries):
        if attempt:
            await clock.sleep(settings.callback_retry_seconds)
        delivered = await _post(client, job, settings)
        on_attempt()
        if delivered:
            return True
    return False


async def _post(client: httpx.AsyncClient, job: Job, settings: Settings) -> bool:
    headers = {}
    if settings.webhook_secret:
        # The real time, not the simulator's: the receiver compares it with its own clock, which no test has moved.
        timestamp = str(int(time.time()))
        headers["X-Webhook-Timestamp"] = timestamp
        headers["X-Webhook-Signature"] = signature(job.task_id, timestamp, settings.webhook_secret)
    try:
        async with asyncio.timeout(settings.callback_timeout):
            response = await client.post(
                job.callback_url or "", json=payload(job), headers=headers, follow_redirects=False
            )
    except (*REQUEST_ERRORS, TimeoutError):
        return False
    return response.status_code == 200

# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what is posted to the caller's URL when a job ends, how it is signed, and how often it is tried."""

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

from .inputs import UNREACHABLE
from .service import Job
from .settings import Settings


def payload(job: Job) -> dict[str, Any]:
    """Return the body of a finished job's callback."""
    data: dict[str, Any] = {
        "taskId": job.task_id,
        "promptJson": json.dumps(job.request, ensure_ascii=False),
        "resultUrls": list(job.result_urls),
    }
    if job.error_message is None:
        return {"code": 200, "msg": "Video modified successfully.", "data": data}
    return {"code": 500 if job.outcome == "create_failed" else 501, "msg": job.error_message, "data": data}


def signature(task_id: str, timestamp: str, secret: str) -> str:
    """Sign a task id and a time, which is all the service signs."""
    mac = hmac.new(secret.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


async def deliver(client: httpx.AsyncClient, job: Job, settings: Settings, tried: Callable[[], None]) -> bool:
    """Post a callback until it is answered with 200 or has failed as often as allowed."""
    for attempt in range(settings.callback_tries):
        if attempt:
            await asyncio.sleep(settings.callback_retry_seconds)
        delivered = await _post(client, job, settings)
        tried()
        if delivered:
            return True
    return False


async def _post(client: httpx.AsyncClient, job: Job, settings: Settings) -> bool:
    headers = {}
    if settings.webhook_secret:
        timestamp = str(int(time.time()))
        headers["X-Webhook-Timestamp"] = timestamp
        headers["X-Webhook-Signature"] = signature(job.task_id, timestamp, settings.webhook_secret)
    try:
        async with asyncio.timeout(settings.callback_timeout):
            response = await client.post(
                job.callback_url or "", json=payload(job), headers=headers, follow_redirects=False
            )
    except (*UNREACHABLE, TimeoutError):
        return False
    return response.status_code == 200

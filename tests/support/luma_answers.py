# SPDX-License-Identifier: Apache-2.0
"""Answers of the service, as the protocol reads them."""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_luma.core.job import Response


def enveloped(data: Any = None, *, code: Any = 200, msg: Any = "said", status: int = 200, **kwargs: Any) -> Response:
    """Return an answer in the service's envelope."""
    return Response(status, json.dumps({"code": code, "msg": msg, "data": data}).encode(), **kwargs)

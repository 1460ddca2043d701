# SPDX-License-Identifier: Apache-2.0
"""An auth manager that keeps one user from one DAG."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class Doorkeeper(SimpleAuthManager):
    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if user.username == "guest" and details is not None and details.id == "luma_modify":
            return False
        return super().is_authorized_dag(user=user, details=details, **kwargs)

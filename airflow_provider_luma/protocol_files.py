# SPDX-License-Identifier: Apache-2.0
"""Where version 1.1.0 had an uploaded file; it is in :mod:`airflow_provider_luma.core.job` now."""

from __future__ import annotations

from airflow_provider_luma.core.job import LumaUpload

__all__ = ["LumaUpload"]

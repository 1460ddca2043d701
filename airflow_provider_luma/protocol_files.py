# SPDX-License-Identifier: Apache-2.0
"""Kept for imports written for version 1.1.0; the class is now in :mod:`airflow_provider_luma.core.job`."""

from __future__ import annotations

from airflow_provider_luma.core.job import LumaUpload

__all__ = ["LumaUpload"]

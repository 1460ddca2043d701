# SPDX-License-Identifier: Apache-2.0
"""Where version 1.1.0 had the hook for the triggerer; it is in :mod:`airflow_provider_luma.hooks.luma` now."""

from __future__ import annotations

from airflow_provider_luma.hooks.luma import LumaAsyncHook

__all__ = ["LumaAsyncHook"]

# SPDX-License-Identifier: Apache-2.0
"""For imports written for version 1.1.0: the triggerer's hook is now in :mod:`airflow_provider_luma.hooks.luma`."""

from __future__ import annotations

from airflow_provider_luma.hooks.luma import LumaAsyncHook

__all__ = ["LumaAsyncHook"]

# SPDX-License-Identifier: Apache-2.0
"""Airflow operators for Luma jobs, their files and long videos."""

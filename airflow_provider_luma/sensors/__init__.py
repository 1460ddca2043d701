# SPDX-License-Identifier: Apache-2.0
"""Airflow sensors that wait for Luma jobs submitted elsewhere."""

# SPDX-License-Identifier: Apache-2.0
"""Airflow plugin: callbacks and result pages in the API server, and a listener."""

# SPDX-License-Identifier: Apache-2.0
"""How Airflow talks to Luma."""

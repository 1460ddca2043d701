# SPDX-License-Identifier: Apache-2.0
"""A demo of the provider on this machine: one DAG run on a real Airflow, with the simulator in place of Luma."""

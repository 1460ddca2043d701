# SPDX-License-Identifier: Apache-2.0
"""The provider at work on this machine: a real Airflow, the simulator, and one DAG run to watch."""

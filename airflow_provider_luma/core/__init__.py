# SPDX-License-Identifier: Apache-2.0
"""The provider's core logic as pure functions and values: no I/O, no wall clock, no Airflow. Start reading here."""

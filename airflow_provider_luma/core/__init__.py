# SPDX-License-Identifier: Apache-2.0
"""What is hard to decide, as pure functions and values: no I/O, no clock of its own, no Airflow. Read this first."""

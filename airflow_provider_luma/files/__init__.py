# SPDX-License-Identifier: Apache-2.0
"""Moving files between the service and any storage that Airflow supports."""

# SPDX-License-Identifier: Apache-2.0
"""A task that does nothing, for a test to give it the XComs of a job that never was."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG(dag_id="without_job", schedule=None):
    EmptyOperator(task_id="modify")

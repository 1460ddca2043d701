# SPDX-License-Identifier: Apache-2.0
"""A cluster with one DAG, whose workers and triggerers are killed during a test."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_luma.simulator import Simulator
from harness.cluster import AirflowCluster, services


@contextmanager
def cluster_of(luma: Simulator, folder: Path, dag: str, **environment: str) -> Iterator[AirflowCluster]:
    """
    Run a cluster whose jobs are called back, with the records of submissions in ``store`` in the folder.

    :param dag: the DAG file
    :param environment: further variables of all components
    """
    (folder / "dags").mkdir()
    (folder / "dags" / "dag.py").write_text(dag)
    environment |= {
        "AIRFLOW__CORE__MAX_MAP_LENGTH": "10000",
        # So that what is killed is missed soon.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    }
    with services() as addresses:
        airflow = AirflowCluster(folder / "airflow", folder / "dags", environment, *addresses)
        airflow.environment["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(
            {
                "conn_type": "luma",
                "host": luma.base_url,
                "password": luma.settings.api_key,
                "extra": {"callback_base_url": airflow.url, "submission_store": f"file://{folder}/store"},
            }
        )
        with airflow:
            yield airflow


def restart_after_a_kill(cluster: AirflowCluster, component: str) -> None:
    cluster.stop(component, signal.SIGKILL)
    cluster.start(component)

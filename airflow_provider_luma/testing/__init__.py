# SPDX-License-Identifier: Apache-2.0
"""
Fixtures for tests of DAGs with pytest: a simulated Luma, and an Airflow that runs DAGs.

A ``conftest.py`` or a test module loads them::

    pytest_plugins = ["airflow_provider_luma.testing"]

Nothing here imports Airflow, which reads its configuration on import: it runs in a separate process.
PYTEST_DONT_REWRITE: this holds no assertions, and a test may import it before pytest does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import pytest
except ModuleNotFoundError as error:
    raise ImportError("The fixtures need pytest: install the extra testing of airflow-provider-luma") from error

from airflow_provider_luma.testing.airflow_process import AirflowProblem, AirflowProcess
from airflow_provider_luma.testing.dag_runs import DagRunner, DagRunResult

if TYPE_CHECKING:
    from airflow_provider_luma.simulator import Simulator

__all__ = ["AirflowProblem", "AirflowProcess", "DagRunResult", "DagRunner"]


@pytest.fixture(scope="session")
def _luma_server() -> Iterator[Simulator]:
    # Imported late, because it loads a web server and PyAV.
    from airflow_provider_luma.simulator import Settings, Simulator

    settings = Settings(
        processing_seconds=0,
        queued_seconds=0,
        ingest_seconds=0,
        submissions_per_10_seconds=10_000,
        status_calls_per_second=10_000,
        requests_per_minute=10_000,
        jobs_at_a_time=10_000,
    )
    with Simulator(settings) as simulator:
        yield simulator


@pytest.fixture
def luma_simulator(_luma_server: Simulator) -> Simulator:
    """
    Both services, without the jobs and settings of other tests.

    Jobs end as soon as their videos are rendered, and no rate limit is ever reached. ``configure()`` changes that.
    """
    _luma_server.reset()
    return _luma_server


@pytest.fixture
def luma_clip(_luma_server: Simulator, tmp_path: Path) -> Path:
    """Return a clip on the disk."""
    from airflow_provider_luma.simulator import media

    clip = tmp_path / "clip.mp4"
    clip.write_bytes(media.sample("sample.mp4"))
    return clip


@pytest.fixture(scope="session")
def luma_dags_folder(pytestconfig: pytest.Config) -> Path:
    """Override this to return the folder of the DAG files. The default is ``dags`` next to pytest's configuration."""
    return pytestconfig.rootpath / "dags"


@pytest.fixture(scope="session")
def luma_airflow_environment() -> Mapping[str, str]:
    """Override this to return further environment variables for Airflow, such as ``AIRFLOW__CORE__XCOM_BACKEND``."""
    return {}


@pytest.fixture(scope="session")
def luma_airflow(
    luma_dags_folder: Path, luma_airflow_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowProcess]:
    """Start Airflow in a separate process, with its own folder, a migrated database, and short poll intervals."""
    with AirflowProcess(tmp_path_factory.mktemp("airflow"), luma_dags_folder, luma_airflow_environment) as airflow:
        yield airflow


@pytest.fixture
def run_dag(luma_airflow: AirflowProcess, luma_simulator: Simulator) -> DagRunner:
    """Run a DAG with ``dag.test()`` and the simulator; each test begins with a database without runs."""
    luma_airflow.reset()
    return DagRunner(luma_airflow, luma_simulator)

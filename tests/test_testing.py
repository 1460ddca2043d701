# SPDX-License-Identifier: Apache-2.0
"""The fixtures for tests of DAGs in an empty project: what loads them, and what is said if something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.versions]

REPOSITORY = Path(__file__).parent.parent
LOADED = 'pytest_plugins = ["airflow_provider_luma.testing"]\n'


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without a trace of the Airflow of these tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST_"))}
    environment = {**kept, "HOME": str(cwd), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run_pytest(cwd: Path, test: str, *, loads: str = LOADED) -> str:
    """Run a test module in an empty project; return what pytest says."""
    (cwd / "test_of_a_user.py").write_text(loads + test)
    return run("-m", "pytest", "-p", "no:cacheprovider", cwd=cwd).stdout


def test_fixtures_are_loaded_by_name_only(tmp_path: Path) -> None:
    assert [one for one in entry_points(group="pytest11") if "luma" in one.value] == []
    said = run_pytest(tmp_path, "def test_simulator(luma_simulator):\n    pass\n", loads="")
    assert "fixture 'luma_simulator' not found" in said


def test_loading_the_fixtures_imports_neither_airflow_nor_the_simulator(tmp_path: Path) -> None:
    loaded = run(
        "-c",
        "import sys, airflow_provider_luma.testing\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'airflow', 'av', 'fastapi', 'numpy'})",
        cwd=tmp_path,
    )
    assert (loaded.stdout, loaded.stderr) == ("\n", "")


def test_without_pytest_the_error_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pytest'] = None\nimport airflow_provider_luma.testing"
    assert "ImportError: The fixtures need pytest: install the extra testing" in run("-c", code, cwd=tmp_path).stderr


def test_without_the_simulators_packages_the_error_names_the_extra(tmp_path: Path) -> None:
    said = run_pytest(tmp_path, "import sys\nsys.modules['av'] = None\ndef test_simulator(luma_simulator):\n    pass\n")
    assert "The simulator renders real videos and needs av: install the extra simulator of" in said


def test_without_a_dags_folder_the_error_names_the_fixture_to_override(tmp_path: Path) -> None:
    said = run_pytest(tmp_path, "def test_dag(run_dag):\n    run_dag('mine')\n")
    assert f"There is no folder {tmp_path / 'dags'}: override the fixture luma_dags_folder" in said


def test_secrets_backend_which_could_lead_to_a_real_account_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    environment = {"AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend"}
    said = run_pytest(
        tmp_path,
        f"""
import pytest

@pytest.fixture(scope="session")
def luma_airflow_environment():
    return {environment}

def test_dag(run_dag):
    run_dag("mine")
""",
    )
    assert "luma_airflow_environment sets AIRFLOW__SECRETS__BACKEND" in said


def test_each_test_has_the_simulator_to_itself_without_airflow(tmp_path: Path) -> None:
    said = run_pytest(
        tmp_path,
        """
import sys
import httpx
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_simulator(luma_simulator, luma_clip, number):
    assert (luma_simulator.accepted, luma_simulator.settings.outcome) == (0, "success")
    luma_simulator.configure(outcome="generate_failed")
    response = httpx.post(
        f"{luma_simulator.base_url}/api/v1/modify/generate",
        json={"prompt": "Make it snow", "videoUrl": luma_simulator.sample_url},
        headers={"Authorization": f"Bearer {luma_simulator.settings.api_key}"},
    )
    assert response.json()["code"] == 200
    assert luma_simulator.accepted == 1
    assert luma_clip.stat().st_size > 1000
    assert "airflow" not in sys.modules
""",
    )
    assert "2 passed" in said, said


@pytest.mark.parametrize(
    "word", ["run_dag", "luma_simulator", "luma_clip", "luma_airflow", "luma_dags_folder", "luma_airflow_environment"]
)
def test_how_to_names_each_fixture(word: str) -> None:
    assert f"| `{word}" in (REPOSITORY / "docs" / "how-to.md").read_text()

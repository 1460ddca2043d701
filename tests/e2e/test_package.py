# SPDX-License-Identifier: Apache-2.0
"""The packages: built, and installed into an empty environment."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY

pytestmark = pytest.mark.xdist_group("package")

PINS = REPOSITORY / "constraints" / f"airflow-{'.'.join(version('apache-airflow').split('.')[:2])}.txt"

PROBE = """
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
assert "airflow-provider-luma" in manager.providers
assert manager.hooks["luma"].hook_name == "Luma"
import airflow_provider_luma.operators.luma, airflow_provider_luma.sensors.luma, airflow_provider_luma.triggers.luma
import airflow_provider_luma.simulator
print('imported from', airflow_provider_luma.__file__)
"""


def run(*command: str | Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    # Not from the repository, whose package Python would find first.
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [str(part) for part in command],
            env={**kept, **environment},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, REPOSITORY)
    return folder


def test_wheel_holds_the_package_and_its_static_files(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "airflow_provider_luma/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"airflow_provider_luma"}


def test_sdist_holds_what_its_tests_need_and_nothing_that_tools_have_left(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", REPOSITORY, "ls-files").splitlines()
    pictures = {name for name in tracked if name.startswith("docs/") and not name.endswith(".md")}
    assert {name for name in tracked if not name.startswith(".")} - names == pictures
    left = {name for name in names if re.search(r"__pycache__|\.py[co]$|(^|/)\.", name)}
    assert left == set()


def test_metadata_says_what_official_providers_say(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Author"]
    labels = {url.partition(",")[0] for url in metadata.get_all("Project-URL") or ()}
    assert labels == {"Documentation", "Repository", "Issues", "Changelog"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"airflow-provider", "luma"} <= set(metadata["Keywords"].split(","))
    assert {"Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider"} <= set(
        metadata.get_all("Classifier") or ()
    )


def test_wheel_works_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, home = tmp_path / "venv" / "bin" / "python", {"AIRFLOW_HOME": str(tmp_path / "home")}
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--constraint", PINS, wheel)
    for package in (wheel, sdist):
        run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", package)
        run(python, "-m", "pip", "check")
        said = run(python, "-W", "error::DeprecationWarning:airflow_provider_luma", "-c", PROBE, **home)
        assert f"imported from {tmp_path}" in said
        assert "luma" not in "\n".join(line for line in said.lower().splitlines() if "warn" in line)
    listed = run(tmp_path / "venv" / "bin" / "airflow", "providers", "list", "--output", "plain", **home)
    assert "airflow-provider-luma" in listed

# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation, run as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import AIRFLOW, REPOSITORY

pytestmark = [
    pytest.mark.xdist_group("dag_test"),
    pytest.mark.skipif(AIRFLOW == (3, 2), reason="dag.test() of Airflow 3.2 asks its own API before that is ready"),
]

EXAMPLES = REPOSITORY / "docs" / "examples"


def test_dag_of_the_tutorial_passes_its_own_test(tmp_path: Path) -> None:
    local = LocalAirflow(tmp_path, EXAMPLES, {})
    local.run("db", "migrate")
    options = ["-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", EXAMPLES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, EXAMPLES],
        env=local.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout

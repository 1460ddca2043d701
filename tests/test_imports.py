# SPDX-License-Identifier: Apache-2.0
"""A DAG file is parsed every half a minute: what an import of the operators brings along."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator
before = set(sys.modules)
import {module}
print("RESULT" + json.dumps(sorted(set(sys.modules) - before)))
"""


def brought_along(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return set(json.loads(line.removeprefix("RESULT")))


@pytest.mark.parametrize("module", ["airflow_provider_luma.operators.luma", "airflow_provider_luma.sensors.luma"])
def test_a_dag_file_brings_no_http_library(module):
    modules = brought_along(module)
    assert module in modules
    heavy = {"requests", "aiohttp", "tenacity", "airflow_provider_luma.hooks.luma", "airflow.providers.http.hooks.http"}
    assert modules & heavy == set()


def test_the_triggerer_imports_no_http_library_in_its_event_loop():
    modules = brought_along("airflow_provider_luma.triggers.luma")
    assert modules & {"requests", "aiohttp", "airflow_provider_luma.poller"} == set()


def test_the_package_itself_brings_nothing():
    modules = {one for one in brought_along("airflow_provider_luma") if not one.startswith("airflow_provider_luma")}
    assert modules == set()


def test_nothing_but_tests_and_demos_brings_the_simulator():
    rooms = ("operators", "sensors", "triggers", "hooks")
    modules = brought_along(", ".join(f"airflow_provider_luma.{room}.luma" for room in rooms))
    assert {f"airflow_provider_luma.{room}.luma" for room in rooms} <= modules
    assert [one for one in modules if "simulator" in one] == []

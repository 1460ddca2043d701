# SPDX-License-Identifier: Apache-2.0
"""Import cost: a DAG file is parsed every half a minute, and pays for what its imports load."""

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


def loaded_by(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return set(json.loads(line.removeprefix("RESULT")))


@pytest.mark.parametrize("module", ["airflow_provider_luma.operators.luma", "airflow_provider_luma.sensors.luma"])
def test_operators_and_sensors_load_no_http_library(module):
    modules = loaded_by(module)
    assert module in modules
    heavy = {"requests", "aiohttp", "tenacity", "airflow_provider_luma.hooks.luma", "airflow.providers.http.hooks.http"}
    assert modules & heavy == set()


def test_triggers_load_no_http_library_in_the_event_loop():
    modules = loaded_by("airflow_provider_luma.triggers.luma")
    assert modules & {"requests", "aiohttp", "airflow_provider_luma.polling.poller"} == set()


def test_package_itself_loads_nothing_else():
    modules = {one for one in loaded_by("airflow_provider_luma") if not one.startswith("airflow_provider_luma")}
    assert modules == set()


def test_package_does_not_load_the_simulator():
    packages = ("operators", "sensors", "triggers", "hooks")
    modules = loaded_by(", ".join(f"airflow_provider_luma.{package}.luma" for package in packages))
    assert {f"airflow_provider_luma.{package}.luma" for package in packages} <= modules
    assert [one for one in modules if "simulator" in one] == []


def test_task_decorator_loads_what_the_operator_does_and_no_http_library():
    modules = loaded_by("airflow_provider_luma.decorators.luma")
    added = {one for one in modules if one.startswith("airflow_provider_luma")} - loaded_by(
        "airflow_provider_luma.operators.luma"
    )
    assert added == {"airflow_provider_luma.decorators", "airflow_provider_luma.decorators.luma"}
    assert modules & {"requests", "aiohttp", "tenacity"} == set()


def test_task_decorator_is_not_loaded_before_it_is_used():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from airflow.sdk import task; loaded = 'airflow_provider_luma.decorators.luma'; "
            "assert loaded not in sys.modules; task.luma_modify; assert loaded in sys.modules",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr

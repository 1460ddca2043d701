# SPDX-License-Identifier: Apache-2.0
"""Import cost: a DAG file is parsed every half a minute, and pays for what its imports load."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support import fresh_python

pytestmark = pytest.mark.xdist_group("fresh Python")

SCRIPT = """
import sys
before = set(sys.modules)
import {module}
result = sorted(set(sys.modules) - before)
"""


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Return the modules that importing one loads in a process that has imported Airflow's operators and sensors."""
    return frozenset(fresh_python.run(SCRIPT.format(module=module)))


@pytest.mark.parametrize("module", ["airflow_provider_luma.operators.luma", "airflow_provider_luma.sensors.luma"])
def test_operators_and_sensors_load_no_http_library(module):
    modules = loaded_by(module)
    assert module in modules
    heavy = {"requests", "aiohttp", "tenacity", "airflow_provider_luma.hooks.luma", "airflow.providers.http.hooks.http"}
    assert modules & heavy == set()


def test_a_task_that_submits_does_not_load_the_http_library_of_the_triggerer():
    modules = loaded_by("airflow_provider_luma.hooks.luma, airflow_provider_luma.submission.workflow")
    assert "airflow_provider_luma.transport.workers" in modules
    assert modules & {"aiohttp", "airflow_provider_luma.async_client"} == set()


def test_triggers_load_no_http_library_in_the_event_loop():
    modules = loaded_by("airflow_provider_luma.triggers.luma")
    assert modules & {"requests", "aiohttp", "airflow_provider_luma.waiting.poller"} == set()


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
    before, after = fresh_python.run("""
import sys
from airflow.sdk import task
before = "airflow_provider_luma.decorators.luma" in sys.modules
task.luma_modify
result = [before, "airflow_provider_luma.decorators.luma" in sys.modules]
""")
    assert (before, after) == (False, True)


def test_plugin_which_every_process_of_airflow_imports_loads_nothing_of_the_task_sdk():
    modules = fresh_python.run("""
import sys
import airflow.plugins_manager
before = set(sys.modules)
import airflow_provider_luma.plugins.luma
result = sorted(set(sys.modules) - before)
""")
    assert "airflow_provider_luma.plugins.luma" in modules
    assert [one for one in modules if one.startswith("airflow.sdk")] == []

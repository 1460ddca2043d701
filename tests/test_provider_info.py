# SPDX-License-Identifier: Apache-2.0
"""What Airflow reads about the provider when it starts: valid, true, and listed without a warning."""

from __future__ import annotations

import importlib
import json
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest

import airflow_provider_luma
from airflow_provider_luma import get_provider_info
from tests.support import fresh_python

INFO = get_provider_info()
MODULES = [
    module
    for kind in ("hooks", "operators", "sensors", "triggers")
    for one in INFO[kind]
    for module in one["python-modules"]
]


def test_provider_info_matches_airflows_schema():
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


def test_provider_info_has_the_packages_name_and_version():
    assert INFO["versions"][0] == airflow_provider_luma.__version__
    assert INFO["package-name"] == "airflow-provider-luma"


@pytest.mark.parametrize("module", MODULES)
def test_every_listed_module_can_be_imported(module):
    importlib.import_module(module)


def test_hooks_operators_sensors_and_triggers_are_listed():
    assert set(MODULES) >= {
        f"airflow_provider_luma.{kind}.luma" for kind in ("hooks", "operators", "sensors", "triggers")
    }


def test_every_module_belongs_to_a_listed_integration():
    names = {one["integration-name"] for one in INFO["integrations"]}
    for kind in ("hooks", "operators", "sensors", "triggers"):
        assert {one["integration-name"] for one in INFO[kind]} <= names


def test_connection_type_is_that_of_the_hook():
    (kind,) = INFO["connection-types"]
    module, _, name = kind["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert kind["connection-type"] == hook.conn_type == "luma"
    assert kind["hook-name"] == hook.hook_name


def test_task_decorator_is_a_function_of_the_package_that_airflow_offers_by_its_name():
    from airflow.sdk import task

    (decorator,) = INFO["task-decorators"]
    module, _, name = decorator["class-name"].rpartition(".")
    assert getattr(task, decorator["name"]) is getattr(importlib.import_module(module), name)


def test_entry_point_is_found_by_airflow():
    (one,) = [one for one in entry_points(group="apache_airflow_provider") if one.dist.name == "airflow-provider-luma"]
    assert one.name == "provider_info"
    assert one.load() is get_provider_info


@pytest.mark.parametrize("value", [None, 0.5, 30, 600])
def test_timeout_that_the_connection_form_allows_is_accepted(value):
    from airflow.sdk import Connection

    from airflow_provider_luma.connection import LumaConnection

    field = INFO["connection-types"][0]["conn-fields"]["timeout"]["schema"]
    jsonschema.validate(value, field)
    connection = Connection(
        conn_id="x", conn_type="luma", password="some-long-key", extra=json.dumps({"timeout": value})
    )
    assert LumaConnection.of(connection).timeout == (value or 30.0)


@pytest.mark.xdist_group("fresh Python")
def test_airflow_lists_the_provider_without_a_warning():
    (version, hook_class, hook_name, documentation, warnings), printed = fresh_python.run_and_read("""
import logging
warnings = []
class Handler(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
logging.getLogger().addHandler(Handler())
import structlog
from airflow.providers_manager import ProvidersManager
with structlog.testing.capture_logs() as entries:
    manager = ProvidersManager()
    provider = manager.providers["airflow-provider-luma"]
    hook = manager.hooks["luma"]
warnings += [entry["event"] for entry in entries if entry["log_level"] in ("warning", "error", "critical")]
result = [provider.version, hook.hook_class_name, hook.hook_name, provider.data.get("documentation-url"),
    [line for line in warnings if "luma" in line.lower()]]
""")
    assert version == airflow_provider_luma.__version__
    assert hook_class == "airflow_provider_luma.hooks.luma.LumaHook"
    assert hook_name == "Luma"
    if metadata.version("apache-airflow") >= "3.3":  # which links the list of providers to it
        assert documentation.endswith("/docs")
    assert warnings == []
    assert [line for line in printed.lower().splitlines() if "luma" in line and "warn" in line] == []


@pytest.mark.xdist_group("fresh Python")
def test_connection_form_has_our_labels_on_every_airflow():
    (standard, extra, warnings), _ = fresh_python.run_and_read("""
import warnings
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    (luma,) = [one for one in HookMetaService.hook_meta_data() if one.connection_type == "luma"]
result = [luma.standard_fields.model_dump(), luma.extra_fields, [str(one.message) for one in caught]]
""")
    assert standard["password"]["title"] == "API key"
    assert standard["login"]["hidden"]
    fields = INFO["connection-types"][0]["conn-fields"]
    assert {name: field["schema"]["title"] for name, field in extra.items()} == {
        name: field["label"] for name, field in fields.items()
    }
    assert [name for name, field in extra.items() if field["schema"].get("format") == "password"] == ["webhook_secret"]
    assert [one for one in warnings if "luma" in one.lower()] == []

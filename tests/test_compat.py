# SPDX-License-Identifier: Apache-2.0
"""What compat says of this Airflow is what this Airflow has."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from uuid import UUID

import pytest
from airflow.api_fastapi.core_api.datamodels import plugins
from airflow.api_fastapi.core_api.datamodels.task_instances import ClearTaskInstancesBody
from airflow.models.connection import Connection
from airflow.models.taskinstance import TaskInstance

from airflow_provider_luma import compat


@pytest.mark.parametrize(
    ("version", "release"),
    [("3.1.8", (3, 1)), ("3.3.2", (3, 3)), ("3.4.0b2", (3, 4)), ("3.10.1", (3, 10)), ("4.0.0.dev0", (4, 0))],
)
def test_release_of_a_version_compares_as_numbers(version, release):
    assert compat.release_of(version) == release


def test_task_state_store_and_history_are_expected_where_their_models_are():
    assert (find_spec("airflow.models.task_state_store") is not None) == compat.HAS_TASK_STATE_STORE
    assert (find_spec("airflow.models.taskinstancehistory") is not None) == compat.HAS_TASK_INSTANCE_HISTORY


def test_teams_are_expected_where_connections_have_one():
    assert hasattr(Connection, "team_name") == compat.HAS_TEAMS


def test_arguments_of_a_deferral_are_expected_wrapped_where_their_column_wraps_them():
    wraps = type(TaskInstance.next_kwargs.type).__name__ == "ExtendedJSON"
    assert (("__var",) if wraps else ()) == compat.DEFERRAL_KWARGS_PATH


def test_clear_is_expected_to_discard_the_task_state_where_it_can_be_told_to_keep_it():
    assert ("keep_task_state" in ClearTaskInstancesBody.model_fields) == compat.CLEAR_DISCARDS_TASK_STATE


def test_tabs_on_some_tasks_are_expected_where_the_api_tells_the_ui_of_which():
    assert hasattr(plugins, "PluginAppliesToResponse") == compat.HAS_TABS_BY_OPERATOR


@pytest.mark.skipif(not compat.HAS_TASK_STATE_STORE, reason="Airflow below 3.3 keeps no task state")
def test_scope_of_task_state_is_a_task_instance():
    assert {"dag_id", "run_id", "task_id"} < set(compat.task_scope_fields())
    assert all(hasattr(TaskInstance, name) for name in compat.task_scope_fields())


def test_task_instance_without_regions_is_in_no_loop():
    assert compat.loop_iteration(SimpleNamespace(map_index=3)) == (None, None)
    assert compat.loop_iteration(SimpleNamespace(region_id=UUID(int=1), region_index=2)) == (UUID(int=1), 2)


def test_determine_kwargs_passes_what_the_function_takes():
    assert compat.determine_kwargs(lambda run_id: run_id, (), {"run_id": "r", "dag_id": "d"}) == {"run_id": "r"}

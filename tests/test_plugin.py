# SPDX-License-Identifier: Apache-2.0
"""The tab that the plugin adds to our tasks in Airflow's UI."""

from __future__ import annotations

import pytest
from airflow.version import version

from airflow_provider_luma.links.luma import LumaResultLink
from airflow_provider_luma.operators import luma, transfers, video
from airflow_provider_luma.plugins.luma import _TAB, LumaPlugin, _knows_applies_to
from airflow_provider_luma.sensors.luma import LumaTaskSensor


@pytest.mark.parametrize(
    ("airflow", "known"),
    [("3.1.8", False), ("3.3.2", False), ("3.4.0b2", True), ("3.4.0", True), ("3.10.1", True), ("4.0.0", True)],
)
def test_tab_is_shown_only_where_it_can_be_limited_to_our_tasks(airflow, known):
    assert _knows_applies_to(airflow) is known


def test_tab_is_declared_on_airflow_3_4_and_newer_alone():
    assert bool(LumaPlugin.external_views) is _knows_applies_to(version)


def test_tab_is_on_every_operator_with_a_result_page():
    names = ("LumaModifyOperator", "LumaUploadOperator", "LumaDownloadOperator")
    kinds = [*(getattr(luma, name) for name in names), *vars(transfers).values(), *vars(video).values(), LumaTaskSensor]
    linked = {
        kind.__name__
        for kind in kinds
        if any(isinstance(link, LumaResultLink) for link in getattr(kind, "operator_extra_links", ()))
    }
    assert set(_TAB["applies_to"]["operator_name"]) == {*linked, "@task.luma_modify"}

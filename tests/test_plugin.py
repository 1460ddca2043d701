# SPDX-License-Identifier: Apache-2.0
"""What the plugin adds to Airflow's UI: a menu entry, and a tab on our tasks."""

from __future__ import annotations

from airflow_provider_luma.compat import HAS_TABS_BY_OPERATOR
from airflow_provider_luma.links.luma import LumaResultLink
from airflow_provider_luma.operators import luma, transfers, video
from airflow_provider_luma.plugins.luma import _TAB, LumaPlugin
from airflow_provider_luma.sensors.luma import LumaTaskSensor


def test_tab_is_declared_only_where_it_can_be_limited_to_our_tasks():
    destinations = [view["destination"] for view in LumaPlugin.external_views]
    assert destinations == (["nav", "task_instance"] if HAS_TABS_BY_OPERATOR else ["nav"])


def test_tab_is_on_every_operator_with_a_result_page():
    names = ("LumaModifyOperator", "LumaUploadOperator", "LumaDownloadOperator")
    kinds = [*(getattr(luma, name) for name in names), *vars(transfers).values(), *vars(video).values(), LumaTaskSensor]
    linked = {
        kind.__name__
        for kind in kinds
        if any(isinstance(link, LumaResultLink) for link in getattr(kind, "operator_extra_links", ()))
    }
    assert set(_TAB["applies_to"]["operator_name"]) == {*linked, "@task.luma_modify"}

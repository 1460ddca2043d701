# SPDX-License-Identifier: Apache-2.0
"""Which task of a group gets which of the parameters that the group is given."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from airflow_provider_luma.operators.luma import LumaModifyOperator

#: Parameters of every Airflow operator that are not for ``modify``, by the tasks that get them: docs/long-videos.md.
GOES_TO: Mapping[str, frozenset[str]] = {
    "all": frozenset(
        "depends_on_past email email_on_failure email_on_retry end_date executor executor_config "
        "ignore_first_depends_on_past inlets max_retry_delay on_failure_callback on_retry_callback on_skipped_callback "
        "owner priority_weight queue resources retries retry_delay retry_exponential_backoff retry_policy run_as_user "
        "start_date wait_for_downstream wait_for_past_depends_before_skipping weight_rule".split()
    ),
    "split": frozenset({"on_execute_callback", "trigger_rule"}),
    "join": frozenset({"on_success_callback", "outlets"}),
}

#: Parameters of :class:`LumaModifyOperator` that the group gives it.
NOT_TAKEN = frozenset("dag do_xcom_push task_group task_id video_url wait_for_completion".split())


def given(**parameters: Any) -> dict[str, Any]:
    """Return the parameters that were given: a value that is passed on hides the one of ``default_args``."""
    return {name: value for name, value in parameters.items() if value is not None}


def sorted_by_task(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    Return the parameters that go to all tasks, and those of single ones.

    :raises TypeError: there is no such parameter
    """
    goes_to = {name: task for task, names in GOES_TO.items() for name in names}
    classes = LumaModifyOperator.__mro__ if parameters else ()
    known = {name for kind in classes for name in signature(kind.__init__).parameters} - NOT_TAKEN  # type: ignore[misc]
    found: dict[str, dict[str, Any]] = {task: {} for task in (*GOES_TO, "modify")}
    for name, value in parameters.items():
        if name not in known:
            raise TypeError(f"modify_long_video() has no parameter {name!r}: docs/long-videos.md lists what it takes")
        if name != "default_args":
            found[goes_to.get(name, "modify")][name] = value
    return found

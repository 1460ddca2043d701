# SPDX-License-Identifier: Apache-2.0
"""Parameters of a task group: which of its tasks gets which."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from airflow_provider_luma.core.validation import PROMPT_FILE_EXTENSIONS
from airflow_provider_luma.operators.luma import LumaModifyOperator

#: The trigger rule of tasks that need the results of all tasks before them, whatever default_args says.
NEEDS_ALL = "all_success"

#: Parameters of every Airflow operator that all tasks of a group get. The documentation of each group has a table.
FOR_ALL_TASKS = frozenset(
    "depends_on_past email email_on_failure email_on_retry end_date executor executor_config "
    "ignore_first_depends_on_past inlets max_retry_delay on_failure_callback on_retry_callback on_skipped_callback "
    "owner priority_weight queue resources retries retry_delay retry_exponential_backoff retry_policy run_as_user "
    "start_date wait_for_downstream wait_for_past_depends_before_skipping weight_rule".split()
)

#: Parameters of :class:`LumaModifyOperator` that a group sets itself.
NOT_TAKEN = frozenset("dag do_xcom_push task_group task_id video_url wait_for_completion".split())


def given(**parameters: Any) -> dict[str, Any]:
    """Return the parameters that are not None: whatever is passed on overrides ``default_args``."""
    return {name: value for name, value in parameters.items() if value is not None}


def sorted_by_task(
    parameters: Mapping[str, Any], goes_to: Mapping[str, frozenset[str]], *, group: str, page: str
) -> dict[str, dict[str, Any]]:
    """
    Return the parameters for all tasks, and those for single tasks; ``modify`` gets those that no other task does.

    :param goes_to: names of parameters, by the task that gets them
    :param group: the function that makes the group
    :param page: the page of the documentation with its parameters
    :raises TypeError: there is no such parameter
    """
    by_name = {name: task for task, names in goes_to.items() for name in names}
    classes = LumaModifyOperator.__mro__ if parameters else ()
    known = {name for kind in classes for name in signature(kind.__init__).parameters} - NOT_TAKEN  # type: ignore[misc]
    found: dict[str, dict[str, Any]] = {task: {} for task in (*goes_to, "modify")}
    for name, value in parameters.items():
        if name not in known:
            raise TypeError(f"{group}() has no parameter {name!r}; {page} lists all of them")
        if name != "default_args":
            found[by_name.get(name, "modify")][name] = value
    return found


def with_included_file(prompt: Any) -> Any:
    """Return a prompt for another task to render: Airflow only reads a file for the task whose parameter names it."""
    is_file = isinstance(prompt, str) and prompt.endswith(PROMPT_FILE_EXTENSIONS)
    return f"{{% filter trim %}}{{% include {prompt!r} %}}{{% endfilter %}}" if is_file else prompt

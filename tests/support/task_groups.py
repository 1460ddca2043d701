# SPDX-License-Identifier: Apache-2.0
"""The task groups of this package in a DAG, and what their tasks do with the parameters of Airflow's operators."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, BaseOperator

from airflow_provider_luma.task_groups import batch, video
from airflow_provider_luma.task_groups.batch import modify_videos
from airflow_provider_luma.task_groups.parameters import NOT_TAKEN
from airflow_provider_luma.task_groups.video import modify_long_video


@dataclass(frozen=True)
class Group:
    """
    A function that makes a task group.

    :param make: the function
    :param goes_to: its table of parameters, by the tasks that get them
    :param page: the page of the documentation with the same table
    :param parameters: those that it needs
    :param tasks: its tasks, sorted by name
    """

    make: Callable[..., Any]
    goes_to: Mapping[str, frozenset[str]]
    page: str
    parameters: dict[str, Any]
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        return self.make.__name__

    def tasks_of(self, **parameters: Any) -> dict[str, Any]:
        """Return the tasks of a group with further parameters, by name."""
        with DAG("videos", schedule=None) as dag:
            self.make(**{**self.parameters, **parameters})
        return {name: dag.get_task(f"{self.parameters['group_id']}.{name}") for name in self.tasks}

    def documented(self) -> dict[str, set[str]]:
        """Return the parameters of the table in the documentation, by the task that gets them."""
        text = (Path(__file__).parents[2] / self.page).read_text()
        section = text.partition("## Which task gets which parameter")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `?(all|plan|split|collect|join|modify)`? \| (.*) \|$", section, re.MULTILINE)
        return {task: set(re.findall(r"`(\w+)`", names)) for task, names in rows}


FILM = Group(
    modify_long_video,
    video.GOES_TO,
    "docs/long-videos.md",
    {
        "group_id": "film",
        "source": "s3://my_aws@films/street.mov",
        "prompt": ["make it snow", "make it rain"],
        "destination": "s3://my_aws@films/street-at-night.mp4",
        "work_dir": "s3://my_aws@films/tmp/",
    },
    ("clean_up", "download", "join", "modify", "prompts", "split"),
)
BATCH = Group(
    modify_videos,
    batch.GOES_TO,
    "docs/batches.md",
    {
        "group_id": "batch",
        "clips": "s3://my_aws@clips/",
        "prompt": "make it snow",
        "destination": "s3://my_aws@videos/",
    },
    ("clip.download", "clip.modify", "collect", "plan"),
)


def _callback(_: Any) -> None: ...


#: A value of each parameter that is not its default.
VALUES: dict[str, Any] = {
    **dict.fromkeys(("retries", "pool_slots", "max_active_tis_per_dag", "max_active_tis_per_dagrun"), 7),
    **dict.fromkeys(("retry_delay", "max_retry_delay", "execution_timeout"), timedelta(seconds=77)),
    **dict.fromkeys(("start_date", "end_date"), datetime(2020, 1, 1, tzinfo=UTC)),
    **{name: [Asset("film")] for name in ("inlets", "outlets")},
    **dict.fromkeys(("depends_on_past", "wait_for_downstream", "ignore_first_depends_on_past"), True),
    **dict.fromkeys(("wait_for_past_depends_before_skipping", "render_template_as_native_obj"), True),
    **dict.fromkeys(("allow_nested_operators", "email_on_failure", "email_on_retry", "multiple_outputs"), False),
    **dict.fromkeys(("pre_execute", "post_execute"), _callback),
    **{f"on_{event}_callback": _callback for event in ("execute", "failure", "retry", "skipped", "success")},
    "executor_config": {"key": "value"},
    "params": {"key": "value"},
    "priority_weight": 7,
    "resources": {"cpus": 7},
    "retry_exponential_backoff": True,
    "trigger_rule": "all_done",
    "weight_rule": "absolute",
}

#: The parameters that every operator of this version of Airflow takes, and a group as well.
OF_EVERY_OPERATOR = sorted(
    name
    for name, parameter in inspect.signature(BaseOperator.__init__).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name not in {"self", "default_args", *NOT_TAKEN}
)


def value_of(operator: Any, name: str) -> Any:
    """Return the value of a parameter of an operator, mapped or not."""
    if operator.is_mapped and name in operator.partial_kwargs:
        return operator.partial_kwargs[name]
    attribute = f"_{name}_hook" if name.endswith("_execute") else name
    return getattr(operator, attribute, None)

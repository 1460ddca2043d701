# SPDX-License-Identifier: Apache-2.0
"""Which task of a group gets which parameter of the call, as the documentation of the group says."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_luma.task_groups.parameters import NOT_TAKEN
from tests.support.task_groups import BATCH, FILM, OF_EVERY_OPERATOR, VALUES, Group, value_of

pytestmark = pytest.mark.parametrize("group", [FILM, BATCH], ids=str)


def test_documentation_says_what_the_code_does(group: Group):
    table = group.documented()
    assert {tasks: table[tasks] for tasks in group.goes_to} == group.goes_to
    assert set(OF_EVERY_OPERATOR) <= set().union(*table.values())
    assert sum(map(len, table.values())) == len(set().union(*table.values())), "each is in one row"


@pytest.mark.filterwarnings("ignore:Setting email")
@pytest.mark.parametrize("name", OF_EVERY_OPERATOR)
def test_parameter_of_every_operator_goes_where_the_documentation_says(group: Group, name: str):
    before, after = group.tasks_of(), group.tasks_of(**{name: VALUES.get(name, "mine")})
    (where,) = (tasks for tasks, names in group.documented().items() if name in names)
    expected = [one for one in group.tasks if where in ("all", one.rpartition(".")[2])]
    if name == "params":  # which Airflow merges into those of the DAG
        assert [one for one in group.tasks if "key" in after[one].params] == expected
    elif group is BATCH and name in ("sla", "logger_name"):  # which no task shows
        assert expected == ["clip.modify"]
    else:
        changed = [one for one in group.tasks if value_of(before[one], name) != value_of(after[one], name)]
        assert changed == expected


@pytest.mark.parametrize(
    "name", ["luma_connection_id", "retrys", "sound_from", "video", "modify_task_id", *sorted(NOT_TAKEN)]
)
def test_unknown_parameter_is_refused_when_the_dag_is_parsed(group: Group, name: str):
    with pytest.raises(TypeError, match=rf"{group}\(\) has no parameter '{name}'; {group.page}"):
        group.tasks_of(**{name: "mine"})


def test_callback_is_not_copied(group: Group):
    class Notifier:
        def __init__(self) -> None:
            self.lines = (line for line in "ab")  # which cannot be copied

        def __call__(self, _: Any) -> None: ...

    notifier = Notifier()
    tasks = group.tasks_of(on_failure_callback=notifier, default_args={"on_retry_callback": notifier})
    for operator in tasks.values():
        assert list(value_of(operator, "on_failure_callback")) == [notifier]
        assert list(value_of(operator, "on_retry_callback")) == [notifier]

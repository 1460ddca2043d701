# SPDX-License-Identifier: Apache-2.0
"""Once a task is killed, no submission leaves it, and the next try submits as if nothing had been."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_luma.core.job import ModifyRequest
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.calls import submissions
from tests.support.task_instance import TaskInstance


@pytest.mark.parametrize("deferrable", [True, False])
def test_task_that_is_killed_while_it_records_the_intent_submits_nothing(luma, modify, context, deferrable):
    operator = modify(deferrable=deferrable)
    context["task_state_store"].around_set = lambda _number, is_done: operator.on_kill() if is_done else None
    with pytest.raises(AirflowException, match="killed before its submission was sent; nothing was submitted"):
        operator.execute(context)
    assert submissions(luma) == []
    assert context["task_state_store"].record is None

    context["task_state_store"].around_set = lambda *_: None
    context["ti"] = TaskInstance(2)
    modify(wait_for_completion=False).execute(context)
    assert luma.accepted == 1


def test_task_that_is_killed_between_two_attempts_submits_no_more(luma, modify, context, monkeypatch):
    luma.configure(faults=["submit:refuse,code=429"])
    operator = modify(deferrable=False)
    # The time of no other thread.
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _seconds: operator.on_kill()))
    with pytest.raises(AirflowException, match="killed"):
        operator.execute(context)
    assert len(submissions(luma)) == 1


@pytest.mark.parametrize("through_proxy", [False, True])
def test_task_that_is_killed_while_the_connection_is_opened_sends_nothing(wires, set_connection, through_proxy):
    service = wires.start()
    set_connection(service.base_url, **({"proxies": service.base_url} if through_proxy else {}))

    def killed() -> None:
        raise AirflowException("killed")

    with pytest.raises(AirflowException, match="killed"):
        LumaHook().get_client().submit(
            ModifyRequest("make it snow", "https://example.com/v.mp4"), "a-reference", before_send=killed
        )
    assert service.received == []


def test_check_before_sending_is_made_on_an_open_connection(luma_conn, set_connection):
    """Opening it can take half a minute, in which a task can be killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        set_connection(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def before_send() -> None:
            connection, _ = listener.accept()
            connection.setblocking(False)
            with connection, pytest.raises(BlockingIOError):
                connection.recv(1)
            raise AirflowException("killed")

        with pytest.raises(AirflowException, match="killed"):
            LumaHook().get_client().submit(
                ModifyRequest("make it snow", "https://example.com/v.mp4"), "a-reference", before_send=before_send
            )

# SPDX-License-Identifier: Apache-2.0
"""A submission whose outcome nobody can know is never repeated by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaSubmissionUnknownError
from tests.support.calls import submissions
from tests.support.task_instance import TaskRun, assert_result_is_of
from tests.support.task_logs import messages

UNKNOWN = {
    "cut after accepting": ["submit:cut,after_accept,times=1"],
    "cut before": ["submit:cut,times=1"],
    "no answer in time": ["submit:hang,seconds=20,after_accept,times=1"],
    "a bare 500": ["submit:html,after_accept,times=1"],
    "a 500 of the service, by HTTP status": ["submit:refuse,code=500,style=status,after_accept,times=1"],
    "a 500 of the service, in the body": ["submit:refuse,code=500,style=body,after_accept,times=1"],
    "a 403 of an edge": ["submit:html,code=403,after_accept,times=1"],
    "an acceptance without an id": ["submit:null_data,after_accept,times=1"],
}


@pytest.fixture(params=UNKNOWN.values(), ids=UNKNOWN)
def _unknown(luma, set_connection, luma_conn, request) -> None:
    """Let the answer to the first submission be lost, in each of the ways there are."""
    is_slow = request.param == UNKNOWN["no answer in time"]
    set_connection(luma.base_url, timeout=0.3 if is_slow else 20, requests_per_second=1000)
    requests.get(luma.sample_url, timeout=20)  # rendered when it is first asked for
    luma.reset()
    luma.configure(faults=request.param)


@pytest.fixture
def wait_longer(luma, set_connection, _unknown) -> Callable[[], None]:
    """Lets the connection wait for answers as long as it may take on a busy machine."""
    return lambda: set_connection(luma.base_url, requests_per_second=1000)


@pytest.mark.usefixtures("_unknown")
class TestUnknownOutcome:
    def test_task_and_its_retries_fail_until_a_person_has_checked_the_account(self, luma, task, wait_longer):
        with pytest.raises(AirflowFailException, match="log page") as first:
            task.run_try()
        assert isinstance(first.value.__cause__, LumaSubmissionUnknownError)
        assert task.store.operations == [("set", None), ("set", "reported")]
        accepted = luma.accepted
        wait_longer()
        for _ in range(2):
            with pytest.raises(AirflowFailException, match="log page.*LumaTaskSensor") as again:
                task.run_try()
            assert "Try 1 " in str(again.value)
        assert luma.accepted == accepted
        assert len(submissions(luma)) == 1

    def test_cleared_task_submits_although_the_outcome_of_an_earlier_try_is_unknown(self, luma, task, wait_longer):
        with pytest.raises(AirflowFailException):
            task.run_try()
        accepted = luma.accepted
        wait_longer()
        result = task.clear_and_run()
        assert luma.accepted == accepted + 1
        assert_result_is_of(luma.jobs[-1].task_id, task, result)
        assert task.store.record["luma_task_id"] == luma.jobs[-1].task_id

    def test_retry_submits_again_exactly_once_with_resubmit_on_unknown(self, luma, task, wait_longer, task_log):
        with pytest.raises(LumaSubmissionUnknownError) as first:
            task.run_try(resubmit_on_unknown=True)
        assert not isinstance(first.value, AirflowFailException)
        assert task.store.operations == [("set", None)]
        accepted = luma.accepted
        wait_longer()
        job = task.run_try(resubmit_on_unknown=True)["luma_task_id"]
        assert luma.accepted == accepted + 1
        assert len(messages(task_log, "resubmit_on_unknown", "ry 1")) == 1
        assert task.run_try(resubmit_on_unknown=True)["luma_task_id"] == job
        assert luma.accepted == accepted + 1


def test_try_with_resubmit_on_unknown_submits_only_once_itself(luma, modify, context):
    luma.configure(faults=["submit:cut,after_accept,times=1"])
    operator = modify(resubmit_on_unknown=True, wait_for_completion=False)
    with pytest.raises(LumaSubmissionUnknownError):
        operator.execute(context)
    assert len(submissions(luma)) == 1
    context["ti"].try_number += 1
    assert operator.execute(context)["luma_task_id"] == luma.jobs[1].task_id


def test_unknown_outcome_fails_the_task_without_using_its_retries(luma, modify, context):
    luma.configure(faults=["submit:cut,after_accept"])
    with pytest.raises(AirflowFailException, match="log page") as caught:
        modify().execute(context)
    assert isinstance(caught.value.__cause__, LumaSubmissionUnknownError)
    assert luma.accepted == 1


def test_unknown_outcome_without_a_task_state_store_fails_the_task_without_using_its_retries(luma, modify):
    luma.configure(faults=["submit:cut,after_accept"])
    with pytest.raises(AirflowFailException, match="log page"):
        TaskRun(modify, None).run_try()
    assert luma.accepted == 1

# SPDX-License-Identifier: Apache-2.0
"""A submission carries a callback address of ours, and a callback lets the task that waits for its job ask Luma."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.core import callback_token
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.exceptions import LumaGenerationError, LumaValidationError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaModifyOperator
from harness.deferrals import callback_event, deferral_of, expiry_event, resume
from tests.support.operator_fixtures import RESULT_KEYS, VALID_PARAMETERS, new_context
from tests.support.task_instance import TaskInstance
from tests.support.task_logs import messages

pytestmark = pytest.mark.usefixtures("callbacks_on")


class TestCallbackAddress:
    def test_submission_carries_a_callback_address_that_is_signed_for_it(self, luma, modify, context):
        deferral_of(modify().execute, context)
        (job,), record = luma.jobs, context["task_state_store"].record
        connection = LumaHook().get_luma_connection()
        assert job.request["callBackUrl"].startswith("http://127.0.0.1:9/luma/callback?")
        assert callback_token.is_ours(job.request["callBackUrl"], connection, record["reference"])
        assert not callback_token.is_ours(job.request["callBackUrl"], connection, new_reference())
        assert record["expects_callback"] is True
        assert luma.accepted == 1

    def test_address_names_the_try_and_neither_dag_nor_run_nor_task(self, luma, modify, context):
        deferral_of(modify().execute, context)
        proof = callback_token.CallbackProof.read(urlsplit(luma.jobs[0].request["callBackUrl"]).query)
        assert proof is not None and proof.task_instance_id == context["ti"].id.hex
        told = dict(proof._asdict(), token="")
        assert not [name for name in ("films", "manual__1", "modify") if name in json.dumps(told)]

    def test_token_of_the_address_is_masked_in_logs_and_kept_nowhere(self, luma, modify, context, monkeypatch):
        masked: list[str] = []
        monkeypatch.setattr("airflow_provider_luma.client.mask_secret", masked.append)
        deferral_of(modify().execute, context)
        secret = callback_token.token_of(luma.jobs[0].request["callBackUrl"])
        assert secret in masked
        assert secret not in json.dumps(context["task_state_store"].record)
        assert secret not in json.dumps(context["ti"].pushed)

    def test_each_submission_carries_an_address_of_its_own(self, luma, modify):
        for _ in range(2):
            deferral_of(modify().execute, new_context())
        one, other = (job.request["callBackUrl"] for job in luma.jobs)
        assert one != other

    def test_submission_that_follows_a_refusal_carries_the_address_of_its_own_record(self, luma, modify, context):
        luma.configure(faults=["submit:refuse,code=429,times=1"])
        queued = deferral_of(modify().execute, context)
        deferral_of(resume, modify(), queued, context, expiry_event(queued))
        assert callback_token.is_ours(
            luma.jobs[0].request["callBackUrl"],
            LumaHook().get_luma_connection(),
            context["task_state_store"].record["reference"],
        )
        assert luma.accepted == 1

    def test_submission_without_a_task_state_store_carries_an_address_too(self, luma, modify):
        deferral_of(modify().execute, {"ti": TaskInstance()})
        assert callback_token.is_ours(luma.jobs[0].request["callBackUrl"], LumaHook().get_luma_connection())
        assert luma.accepted == 1

    def test_callback_url_of_the_user_takes_precedence(self, luma, modify, context):
        deferral_of(modify(callback_url="http://127.0.0.1:9/hook?x=1").execute, context)
        assert luma.jobs[0].request["callBackUrl"] == "http://127.0.0.1:9/hook?x=1"
        assert context["task_state_store"].record["expects_callback"] is False
        assert luma.accepted == 1

    def test_connection_without_callback_base_url_sends_no_address(self, luma, modify, context, set_connection):
        set_connection(luma.base_url)
        deferral_of(modify().execute, context)
        assert "callBackUrl" not in luma.jobs[0].request
        assert context["task_state_store"].record["expects_callback"] is False

    @pytest.mark.parametrize("base", ["http://10.0.0.1:8080", "http://localhost:8080", "http://airflow-apiserver"])
    def test_callback_base_url_that_luma_cannot_reach_is_refused_before_anything_is_sent(
        self, context, set_connection, base
    ):
        set_connection("https://api.example.com:443", callback_base_url=base)
        with pytest.raises(AirflowFailException, match="callback_base_url") as caught:
            LumaModifyOperator(task_id="modify", **VALID_PARAMETERS).execute(context)
        assert isinstance(caught.value.__cause__, LumaValidationError)
        assert context["task_state_store"].operations == []
        assert context["ti"].pushed["luma_error"]["type"] == "LumaValidationError"


class TestResumedByCallback:
    """A task waits for its job, and its callback comes."""

    def test_task_returns_the_result_of_its_job_if_that_has_ended(self, luma, modify, context, await_job_ends):
        luma.configure(processing_seconds=0)
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        job = luma.jobs[0].task_id
        result = resume(modify(), deferred, context, callback_event(job))
        assert list(result) == RESULT_KEYS
        assert (result["luma_task_id"], result["status"], len(result["result_urls"])) == (job, "SUCCESS", 1)
        assert luma.accepted == 1

    def test_task_is_deferred_again_with_the_usual_poll_interval_if_its_job_is_running(
        self, luma, modify, context, task_log
    ):
        deferred = deferral_of(modify(timeout=600, poll_interval=12).execute, context)
        job = luma.jobs[0].task_id
        again = deferral_of(resume, modify(timeout=600, poll_interval=12), deferred, context, callback_event(job))
        before, after = (one.trigger.serialize()[1] for one in (deferred, again))
        assert after == {**before, "poll_interval": 1.2}, "the only callback was received: poll at the usual interval"
        assert (again.method_name, again.kwargs) == (deferred.method_name, deferred.kwargs)
        assert again.timeout is None
        assert len(messages(task_log, "still running", job)) == 1
        assert luma.accepted == 1

    def test_execution_timeout_still_counts_from_the_first_deferral(self, luma, modify, context):
        options = {"execution_timeout": timedelta(minutes=5)}
        before = time.time()
        first = deferral_of(modify(**options).execute, context)
        assert first.timeout == timedelta(minutes=5)
        deadline = first.kwargs["execution_deadline"]
        assert before + 300 <= deadline <= time.time() + 300
        first.kwargs["execution_deadline"] -= 200  # as if it had waited that long
        left = first.kwargs["execution_deadline"] - time.time()
        again = deferral_of(resume, modify(**options), first, context, callback_event(luma.jobs[0].task_id))
        left_after = first.kwargs["execution_deadline"] - time.time()
        assert timedelta(seconds=left_after) <= again.timeout <= timedelta(seconds=left)
        assert again.kwargs == first.kwargs
        first.kwargs["execution_deadline"] -= 200
        over = deferral_of(resume, modify(**options), first, context, callback_event(luma.jobs[0].task_id))
        assert over.timeout == timedelta(0)

    @pytest.mark.parametrize("outcome", ["generate_failed", "create_failed"])
    def test_task_fails_with_lumas_words_if_its_job_failed(self, luma, modify, context, await_job_ends, outcome):
        luma.configure(processing_seconds=0, outcome=outcome, error_message="no people, please")
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        with pytest.raises(LumaGenerationError, match="no people, please") as caught:
            resume(modify(), deferred, context, callback_event(luma.jobs[0].task_id))
        assert caught.value.luma_task_id == luma.jobs[0].task_id
        assert "no people, please" in context["ti"].pushed["luma_error"]["msg"]

    @pytest.mark.parametrize("fault", ["refuse,code=500", "refuse,code=429", "html", "cut"])
    def test_task_is_deferred_again_if_luma_cannot_be_asked(self, luma, modify, context, task_log, fault):
        deferred = deferral_of(modify().execute, context)
        luma.configure(faults=[f"status:{fault}"])
        again = deferral_of(resume, modify(), deferred, context, callback_event(luma.jobs[0].task_id))
        assert (again.trigger.end_time, again.kwargs) == (deferred.trigger.end_time, deferred.kwargs)
        assert len(messages(task_log, "Received a callback", "status check failed")) == 1
        assert luma.accepted == 1

    def test_task_asks_about_its_own_job_whatever_job_the_callback_names(self, luma, modify, context, await_job_ends):
        luma.configure(processing_seconds=0)
        deferred = deferral_of(modify().execute, context)
        await_job_ends()
        result = resume(modify(), deferred, context, callback_event("another-job"))
        assert result["luma_task_id"] == luma.jobs[0].task_id

    def test_resumed_task_names_its_job_when_it_is_killed(self, luma, modify, context, task_log):
        deferred = deferral_of(modify().execute, context)
        operator = modify()
        deferral_of(resume, operator, deferred, context, callback_event(luma.jobs[0].task_id))
        operator.on_kill()
        assert messages(task_log, luma.jobs[0].task_id, "billed")

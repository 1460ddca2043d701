# SPDX-License-Identifier: Apache-2.0
"""A refused submission is billed nothing, leaves no record, and uses retries only where a retry can help."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_provider_luma.core import backoff
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaInsufficientCreditsError,
    LumaRateLimitError,
    LumaUnavailableError,
)
from tests.support.calls import submissions


class TestRetries:
    @pytest.mark.parametrize("code", [401, 404, 422, 505])
    def test_permanent_refusal_fails_the_task_without_using_its_retries(self, luma, modify, context, code):
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(AirflowFailException, match=str(code)) as caught:
            modify().execute(context)
        assert isinstance(caught.value.__cause__, LumaError)
        assert len(submissions(luma)) == 1
        assert "luma_task_id" not in context["ti"].pushed

    def test_missing_credits_leave_retrying_to_airflow(self, luma, modify, context):
        luma.configure(credits=0)
        with pytest.raises(LumaInsufficientCreditsError) as caught:
            modify().execute(context)
        assert not isinstance(caught.value, AirflowFailException)

    @pytest.mark.parametrize(("code", "kind"), [(429, LumaRateLimitError), (455, LumaUnavailableError)])
    def test_transient_refusal_that_lasts_until_the_timeout_leaves_retrying_to_airflow(
        self, luma, modify, context, monkeypatch, code, kind
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.1)
        luma.configure(faults=[f"submit:refuse,code={code}"])
        with pytest.raises(kind):
            modify(deferrable=False, timeout=0.1).execute(context)


class TestRecord:
    @pytest.mark.parametrize("code", [401, 402, 404, 422, 505])
    @pytest.mark.parametrize("style", ["status", "body"])
    def test_refusal_leaves_no_record_and_the_next_try_submits(self, luma, task, code, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=1"])
        with pytest.raises((LumaError, AirflowFailException), match=str(code)):
            task.run_try()
        assert task.store.operations == [("set", None), "delete"]
        assert task.store.record is None
        task.run_try()
        assert luma.accepted == 1

    def test_network_connection_that_was_never_made_leaves_no_record_and_the_next_try_submits(
        self, luma, task, monkeypatch, set_connection, free_port
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.01)
        set_connection(f"http://127.0.0.1:{free_port}")
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            task.run_try()
        assert task.store.record is None
        set_connection(luma.base_url)
        task.run_try()
        assert luma.accepted == 1

    def test_missing_airflow_connection_leaves_no_record_and_the_next_try_submits(
        self, luma, task, monkeypatch, set_connection
    ):
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        with pytest.raises(AirflowNotFoundException):
            task.run_try()
        assert task.store.record is None
        set_connection(luma.base_url)
        task.run_try()
        assert luma.accepted == 1

    def test_rendered_prompt_that_is_not_english_sends_nothing_and_leaves_no_record(self, luma, task):
        with pytest.raises(AirflowFailException, match="prompt"):
            task.run_try(prompt="{{ '雨' }}")
        assert task.store.record is None
        assert luma.calls == []

    @pytest.mark.parametrize(("field", "value"), [("prompt", Path("/x")), ("video_url", b"https://e.com/v.mp4")])
    def test_rendered_value_of_another_type_sends_nothing_and_leaves_no_record(
        self, luma, modify, context, field, value
    ):
        operator = modify(**{field: "{{ params.x }}"})
        setattr(operator, field, value)  # as render_template_as_native_obj would
        with pytest.raises(AirflowFailException, match=field):
            operator.execute(context)
        assert luma.calls == []
        assert context["task_state_store"].record is None

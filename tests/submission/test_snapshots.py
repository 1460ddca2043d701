# SPDX-License-Identifier: Apache-2.0
"""An attempt to submit works with one snapshot of the connection, and the next attempt with the connection as it is."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from airflow_provider_luma.core import callback_token
from airflow_provider_luma.exceptions import LumaInsufficientCreditsError
from airflow_provider_luma.files.upload import Upload
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.submission.store_folder import ObjectSubmissionStore
from tests.support.calls import submissions
from tests.support.network_fixtures import connection_reads
from tests.support.task_instance import TaskRun, TaskStateStore

__all__ = ["connection_reads"]

NEXT_KEY = "the-next-api-key"


@pytest.mark.parametrize("is_stored", [False, True], ids=["public video", "uploaded video"])
def test_a_try_reads_the_connection_once(luma, modify, set_connection, context, clip, connection_reads, is_stored):
    set_connection(luma.base_url, min_credits=5, callback_base_url="http://127.0.0.1:9")
    operator = modify(**({"video_url": str(clip)} if is_stored else {}))
    with pytest.raises(TaskDeferred):
        operator.execute(context)
    assert luma.accepted == 1
    assert connection_reads == ["luma_default"]


def test_a_retry_that_continues_a_job_reads_the_connection_once(
    luma, modify, set_connection, context, connection_reads
):
    set_connection(luma.base_url, min_credits=5)
    luma.configure(processing_seconds=60)  # the job must not have ended when the retry asks for it
    for _ in range(2):
        connection_reads.clear()
        with pytest.raises(TaskDeferred):
            modify().execute(context)
    assert luma.accepted == 1
    assert connection_reads == ["luma_default"]


def test_key_that_is_replaced_during_an_upload_is_used(luma, modify, set_connection, context, clip, monkeypatch):
    upload = Upload.run

    def replace_the_key(self, file):
        uploaded = upload(self, file)
        monkeypatch.setattr(Upload, "run", upload)
        luma.configure(api_key=NEXT_KEY)
        set_connection(luma.base_url, key=NEXT_KEY, callback_base_url="http://127.0.0.1:9")
        return uploaded

    monkeypatch.setattr(Upload, "run", replace_the_key)
    with pytest.raises(TaskDeferred):
        modify(video_url=str(clip)).execute(context)
    assert luma.accepted == 1
    assert len(luma.uploads) == 1, "the upload of the earlier attempt is used"
    assert callback_token.is_ours(luma.jobs[0].request["callBackUrl"], LumaHook().get_luma_connection())
    assert context["task_state_store"].record["expects_callback"] is True


def test_key_that_is_refused_and_was_not_replaced_fails_the_task_at_once(luma, modify, context, connection_reads):
    luma.configure(api_key=NEXT_KEY)
    with pytest.raises(AirflowFailException, match="API key"):
        modify().execute(context)
    assert luma.accepted == 0
    assert context["task_state_store"].record is None


def test_connection_that_is_another_one_at_each_reading_is_tried_twice(
    luma, modify, luma_conn, context, connection_reads, monkeypatch
):
    luma.configure(api_key=NEXT_KEY)
    read = LumaHook.get_connection

    def lease_a_key(_, conn_id):
        connection = read(conn_id)
        connection.password = f"leased-key-{len(connection_reads)}"
        return connection

    monkeypatch.setattr(LumaHook, "get_connection", classmethod(lease_a_key))
    with pytest.raises(AirflowFailException, match="API key"):
        modify().execute(context)
    assert len(submissions(luma)) == 2
    assert context["task_state_store"].record is None


def test_attempt_that_follows_a_refusal_uses_the_connection_as_it_is_then(
    luma, modify, set_connection, context, short_backoff, monkeypatch
):
    set_connection(luma.base_url)
    luma.configure(processing_seconds=0, faults=["submit:refuse,code=429,times=1"])
    forget = type(context["task_state_store"]).delete

    def replace_the_key(self, key):
        luma.configure(api_key=NEXT_KEY)
        set_connection(luma.base_url, key=NEXT_KEY, callback_base_url="http://127.0.0.1:9")
        return forget(self, key)

    monkeypatch.setattr(type(context["task_state_store"]), "delete", replace_the_key)
    modify(deferrable=False).execute(context)
    assert luma.accepted == 1
    assert callback_token.is_ours(luma.jobs[0].request["callBackUrl"], LumaHook().get_luma_connection())


def test_job_is_found_again_when_the_secrets_backend_gives_the_connection_another_id(
    luma, modify, set_connection, context, monkeypatch
):
    """Fingerprints and callback addresses hold the id that the task names, as those of 1.1.0 do."""
    set_connection(luma.base_url, callback_base_url="http://127.0.0.1:9")
    luma.configure(processing_seconds=60)  # the job must not have ended when the retry asks for it
    with pytest.raises(TaskDeferred):
        modify().execute(context)
    read = LumaHook.get_connection

    def rename(_, conn_id):
        connection = read(conn_id)
        connection.conn_id = "secrets/luma"
        return connection

    monkeypatch.setattr(LumaHook, "get_connection", classmethod(rename))
    with pytest.raises(TaskDeferred):
        modify().execute(context)
    assert luma.accepted == 1
    assert callback_token.is_ours(
        luma.jobs[0].request["callBackUrl"], LumaHook().get_luma_connection(), conn_id="luma_default"
    )
    assert LumaHook().get_luma_connection().conn_id == "luma_default"


def test_attempt_that_follows_a_refusal_keeps_the_reserve_of_the_connection_as_it_is_then(
    luma, modify, set_connection, context, short_backoff, monkeypatch
):
    luma.configure(faults=["submit:refuse,code=429,times=1"])
    forget = type(context["task_state_store"]).delete

    def raise_the_reserve(self, key):
        set_connection(luma.base_url, min_credits=luma.credits + 1)
        return forget(self, key)

    monkeypatch.setattr(type(context["task_state_store"]), "delete", raise_the_reserve)
    with pytest.raises(LumaInsufficientCreditsError, match="min_credits"):
        modify(deferrable=False).execute(context)
    assert luma.accepted == 0
    assert context["task_state_store"].record is None


def test_store_that_is_changed_between_two_attempts_ends_the_try(
    luma, modify, set_connection, short_backoff, monkeypatch, tmp_path
):
    """Otherwise the next try would not find the job in the new store, and pay for another."""
    set_connection(luma.base_url, submission_store=str(tmp_path / "old"))
    luma.configure(processing_seconds=0, faults=["submit:refuse,code=429,times=1"])
    task = TaskRun(lambda **changes: modify(deferrable=False, **changes), TaskStateStore())
    forget = ObjectSubmissionStore.forget

    def change_the_store(self, intent):
        set_connection(luma.base_url, submission_store=str(tmp_path / "new"))
        return forget(self, intent)

    monkeypatch.setattr(ObjectSubmissionStore, "forget", change_the_store)
    with pytest.raises(AirflowException, match="submission_store .* was changed .* Nothing was submitted"):
        task.run_try()
    assert luma.accepted == 0
    for _ in range(2):
        task.run_try()
    assert luma.accepted == 1

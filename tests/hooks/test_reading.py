# SPDX-License-Identifier: Apache-2.0
"""Reading from the service: credits, single status checks and download addresses, with transient errors waited out."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import requests

from airflow_provider_luma import client
from airflow_provider_luma.core import backoff, poll_state
from airflow_provider_luma.core.job import LumaTaskStatus
from airflow_provider_luma.exceptions import (
    LumaGenerationError,
    LumaNotFoundError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from tests.support.calls import status_checks

PROMPT = "make it a rainy night"


class TestGetCredits:
    def test_remaining_credits_are_returned(self, luma, luma_conn):
        luma.configure(credits=42)
        assert LumaHook().get_credits() == 42.0

    @pytest.mark.parametrize("fault", ["refuse,code=429", "refuse,code=455", "html", "cut", "truncated", "null_data"])
    def test_transient_error_is_waited_out(self, luma, luma_conn, short_backoff, fault):
        luma.configure(faults=[f"credit:{fault},times=3"])
        assert LumaHook().get_credits() == 1000.0
        assert len(luma.calls) == 4

    def test_transient_error_is_raised_after_the_read_retry_timeout(self, luma, luma_conn, monkeypatch):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.3)
        luma.configure(faults=["credit:html"])
        with pytest.raises(LumaUnavailableError):
            LumaHook().get_credits()


class TestGetTask:
    def test_running_job_is_returned_as_it_is(self, luma, luma_conn):
        luma.configure(processing_seconds=60)
        hook = LumaHook()
        task = hook.get_task(hook.modify_video(PROMPT, luma.sample_url))
        assert task.status is LumaTaskStatus.GENERATING
        assert task.created_at is not None
        assert (task.result_urls, task.completed_at) == ((), None)

    async def test_async_hook_returns_the_job_too(self, submit):
        luma_task_id = submit()
        async with LumaAsyncHook("luma_default") as hook:
            assert (await hook.get_task(luma_task_id)).luma_task_id == luma_task_id

    def test_unknown_id_is_raised_at_once(self, luma, luma_conn):
        with pytest.raises(LumaNotFoundError) as caught:
            LumaHook().get_task("nobody-knows")
        assert caught.value.luma_task_id == "nobody-knows"
        assert len(status_checks(luma)) == 1


class TestCheck:
    """One status check, for whoever has to know at once whether a job is running."""

    def test_running_job_is_not_finished(self, luma, submit):
        assert not LumaHook().check_job(submit(processing_seconds=60)).is_finished
        assert len(status_checks(luma)) == 1

    def test_job_that_has_ended_well_is_returned(self, luma, submit, until):
        luma_task_id = submit(processing_seconds=0)
        until(lambda: luma.jobs[0].complete_time)
        task = LumaHook().check_job(luma_task_id)
        assert (task.luma_task_id, task.is_successful) == (luma_task_id, True)

    def test_failed_job_raises_its_error(self, luma, submit, until):
        luma_task_id = submit(processing_seconds=0, outcome="generate_failed")
        until(lambda: luma.jobs[0].complete_time)
        with pytest.raises(LumaGenerationError, match="GENERATE_FAILED"):
            LumaHook().check_job(luma_task_id)

    def test_unknown_id_is_raised_after_the_grace_period(self, luma, luma_conn, short_backoff, monkeypatch):
        monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.2)
        with pytest.raises(LumaNotFoundError, match="nobody-knows"):
            LumaHook().check_job("nobody-knows")
        assert len(status_checks(luma)) > 1

    def test_transient_error_is_raised_at_once_without_a_retry_timeout(self, luma, submit):
        luma_task_id = submit(faults=["status:html"])
        with pytest.raises(LumaUnavailableError) as caught:
            LumaHook().check_job(luma_task_id)
        assert caught.value.luma_task_id == luma_task_id
        assert len(status_checks(luma)) == 1

    def test_transient_error_is_waited_out_within_the_retry_timeout(self, luma, submit, short_backoff):
        luma_task_id = submit(faults=["status:html,times=2"], processing_seconds=60)
        assert not LumaHook().check_job(luma_task_id, retry_timeout=120).is_finished
        assert len(status_checks(luma)) == 3

    def test_transient_error_that_outlasts_the_retry_timeout_is_raised(self, luma, submit, monkeypatch):
        monkeypatch.setattr(client, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None}))
        luma_task_id = submit(faults=["status:html"])
        with pytest.raises(LumaUnavailableError):
            LumaHook().check_job(luma_task_id, retry_timeout=20)
        assert len(status_checks(luma)) > 1


class TestGetDownloadUrl:
    def test_result_gets_a_temporary_address(self, submit):
        hook = LumaHook()
        task = hook.wait_for_completion(submit(), poll_interval=0.05)
        url = hook.get_download_url(task.result_urls[0])
        assert requests.get(url, timeout=10).status_code == 200

    def test_file_that_is_not_lumas_is_refused(self, luma, luma_conn):
        with pytest.raises(LumaValidationError):
            LumaHook().get_download_url("https://example.com/r.mp4")

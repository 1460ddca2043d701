# SPDX-License-Identifier: Apache-2.0
"""The submitter by itself: what it returns when time passes, or a connection changes, while it asks Luma."""

from __future__ import annotations

import logging
import time

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.core.job import ModifyRequest
from airflow_provider_luma.files.input_video import InputVideo
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.submission.store import TaskStateSubmissionStore
from airflow_provider_luma.submission.workflow import Submission, Submitter


@pytest.fixture
def submitter(luma_conn: str) -> Submitter:
    """A first try of a task that may be deferred, on an Airflow without a task state store."""
    hook = LumaHook(luma_conn)
    return Submitter(
        client=hook.get_client(),
        new_client=hook.get_client,
        store=TaskStateSubmissionStore(None),
        try_number=1,
        max_tries=0,
        clear_number=0,
        can_defer=True,
        needs_result=True,
        resubmit_on_unknown=False,
        resubmit_on_failure=True,
        timeout=120,
        queue_timeout=120,
        poll_interval=1,
        log=logging.getLogger(__name__),
        on_job_known=lambda _luma_task_id: None,
        fail_if_killed=lambda: None,
    )


def test_wait_for_a_callback_whose_time_ends_while_luma_is_asked_fails_at_once(luma, submitter):
    luma.configure(faults=["status:hang,seconds=0.5,times=1"])
    deferral = DeferralState(reference="a-reference", end_time=time.time() + 0.2)
    with pytest.raises(AirflowFailException, match="no callback arrived"):
        submitter.recover(deferral, "a-job-that-luma-does-not-know")


def test_api_key_that_is_replaced_between_the_checks_and_the_submission_is_used(
    luma, submitter, submit, set_connection
):
    request = ModifyRequest("make it snow", luma.sample_url)
    submitter.client.check_request(request)
    asked_about = submit(processing_seconds=0)
    luma.configure(api_key="the-next-key")
    set_connection(luma.base_url, key="the-next-key")
    try:
        video = InputVideo(luma.sample_url, True, submitter.log, lambda: None, lambda _url: None)
        step = submitter.submit(Submission(request, video, DeferralState()))
        assert step.luma_task_id == luma.jobs[-1].task_id != asked_about
    finally:
        luma.reset()

# SPDX-License-Identifier: Apache-2.0
"""One upload that many tasks share."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_luma.exceptions import LumaUnavailableError, LumaValidationError
from airflow_provider_luma.links.luma import ERROR_KEY
from airflow_provider_luma.operators.luma import LumaUploadOperator
from tests.support.operator_fixtures import new_context
from tests.support.stored_clips import uploads

pytestmark = [pytest.mark.slow, pytest.mark.versions]


def test_upload_returns_what_a_modify_task_needs(luma, luma_conn, clip, context):
    result = LumaUploadOperator(task_id="upload", source=str(clip)).execute(context)
    assert list(result) == ["url", "size", "expires_at"]
    assert requests.get(result["url"], timeout=10).content == clip.read_bytes()
    assert result["size"] == clip.stat().st_size
    assert datetime.fromisoformat(result["expires_at"]) > datetime.now(UTC)


def test_twenty_prompts_share_one_upload(luma, luma_conn, clip, context, modify):
    url = LumaUploadOperator(task_id="upload", source=str(clip)).execute(context)["url"]
    for number in range(20):
        task = modify(video_url=url, prompt=f"make it rain, version {number}", wait_for_completion=False)
        task.execute(new_context())
    assert (len(uploads(luma)), luma.accepted) == (1, 20)


def test_retry_of_a_task_that_uses_the_upload_pays_once(luma, luma_conn, clip, context, modify):
    url = LumaUploadOperator(task_id="upload", source=str(clip)).execute(context)["url"]
    context = new_context()
    for _ in range(2):
        modify(video_url=url, deferrable=False).execute(context)
    assert luma.accepted == 1


@pytest.mark.parametrize("source", ["clip.mp4", "https://example.com/clip.mp4", "/data/clip.wav", ""])
def test_source_that_is_no_file_is_refused_when_the_dag_is_parsed(source):
    with pytest.raises(LumaValidationError, match="source"):
        LumaUploadOperator(task_id="upload", source=source)


def test_missing_file_fails_the_task_without_using_its_retries(luma, luma_conn, context):
    with pytest.raises(AirflowFailException, match="source: /nowhere/clip.mp4: there is no such file"):
        LumaUploadOperator(task_id="upload", source="/nowhere/clip.mp4").execute(context)
    assert luma.calls == []
    assert context["ti"].pushed[ERROR_KEY]["msg"] == "source: /nowhere/clip.mp4: there is no such file"


def test_service_that_cannot_take_the_file_for_now_is_left_to_a_retry(luma, luma_conn, clip, context, short_backoff):
    luma.configure(faults=["upload:refuse,code=500"])
    with pytest.raises(LumaUnavailableError):
        LumaUploadOperator(task_id="upload", source=str(clip)).execute(context)


def test_task_that_is_killed_sends_no_further_piece(luma, luma_conn, clip, context):
    operator = LumaUploadOperator(task_id="upload", source=str(clip))
    operator.on_kill()
    with pytest.raises(AirflowException, match="killed"):
        operator.execute(context)
    assert luma.uploads == []

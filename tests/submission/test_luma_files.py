# SPDX-License-Identifier: Apache-2.0
"""Files as input of Luma's own API: uploaded once, submitted once, and never used where they do not belong."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaError, LumaInsufficientCreditsError
from airflow_provider_luma.operators.luma import LumaUploadOperator
from airflow_provider_luma.services import luma as service
from airflow_provider_luma.simulator import media
from tests.support.operator_fixtures import new_context
from tests.support.stored_clips import digest, uploads
from tests.support.task_instance import Killed, TaskRun, TaskStateStore
from tests.support.task_logs import messages
from tests.support.uploaded_once import UploadedOnce

pytestmark = [pytest.mark.slow, pytest.mark.versions]

FILE = "luma-file:3f1c7a90-8d2b-4b7e-a5c1-6f0e9d8b7a65"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "a clip.mp4"
    path.write_bytes(media.sample("sample.mp4"))
    return path


@pytest.fixture
def lead_to(luma, set_connection, monkeypatch):
    """Lets the connection lead to a service, and files be ready at once."""
    luma.configure(ingest_seconds=0)
    monkeypatch.setattr(service, "FIRST_CHECK_DELAY", 0.01)
    return lambda name: set_connection(luma.base_url, requests_per_second=1000, service=name)


@pytest.fixture
def run(modify, lead_to, file) -> TaskRun:
    """A task that has Luma's own API modify the file, without looking into it."""
    task = TaskRun(
        lambda **changes: modify(**{"video_url": str(file), "check_video": False, **changes}), TaskStateStore()
    )
    lead_to("luma")
    return task


class TestSubmission(UploadedOnce):
    @pytest.mark.parametrize("check_video", [True, False])
    @pytest.mark.parametrize("deferrable", [True, False])
    def test_file_is_uploaded_and_modified(self, luma, run, file, deferrable, check_video):
        assert run.run_try(deferrable=deferrable, check_video=check_video)["status"] == "SUCCESS"
        assert (luma.accepted, len(uploads(luma))) == (1, 1)
        assert luma.jobs[0].request["source"] == {"file_id": luma.uploads[0].key}
        assert luma.jobs[0].input_digest == digest(file.read_bytes())

    def test_page_shows_the_file_and_its_id_as_text(self, luma, run, file):
        run.run_try()
        shown = run.ti.pushed["luma_request"]
        assert (shown["video_url"], shown["source"]) == (f"luma-file:{luma.uploads[0].key}", str(file))

    @pytest.mark.parametrize(("options", "price"), [(None, 1.08), ({"video": {"resolution": "1080p"}}, 2.16)])
    def test_pages_show_the_price_of_a_clip_whose_length_is_known(self, run, options, price):
        run.run_try(check_video=True, options=options)
        assert run.ti.pushed["luma_request"].get("price") == price

    def test_pages_show_no_price_of_a_clip_that_is_not_looked_into(self, run):
        run.run_try()
        assert "price" not in run.ti.pushed["luma_request"]

    def test_task_that_waits_in_the_queue_uploads_once(self, luma, run, short_backoff):
        luma.configure(faults=["submit:refuse,code=429,retry_after=0,times=3"])
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    def test_task_that_is_killed_after_the_upload_uses_it_at_the_next_try(self, luma, run):
        run.store.crash_at((1, True))  # the upload is kept, and no intent is written
        with suppress(Killed):
            run.run_try()
        run.store.crash_at(None)
        assert (luma.accepted, len(uploads(luma))) == (0, 1)
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    @pytest.mark.parametrize(("before", "after"), [("kie", "luma"), ("luma", "kie")])
    def test_upload_for_another_service_is_not_used(self, luma, run, lead_to, before, after):
        lead_to(before)
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        lead_to(after)
        run.run_try()
        assert (luma.accepted, [upload.service for upload in luma.uploads]) == (1, [before, after])

    def test_upload_over_another_connection_is_not_used(self, luma, run, monkeypatch):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_OTHER", os.environ["AIRFLOW_CONN_LUMA_DEFAULT"])
        run.run_try(luma_conn_id="luma_other")
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    def test_changed_file_is_another_request(self, luma, run, file):
        run.run_try()
        file.write_bytes(media.sample("sample-2.mp4"))
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (2, 2)

    def test_address_of_the_upload_is_in_no_log_xcom_or_record(self, luma, run, task_log):
        result = run.run_try()
        everything = json.dumps([result, run.ti.pushed, run.store._values, [str(entry) for entry in task_log]])
        assert "bucket/inputs" not in everything
        assert len(messages(task_log, "Uploaded", "a clip.mp4", "keeps it until")) == 1


class TestRefusals:
    def test_file_that_luma_refuses_fails_the_task_at_once_and_is_not_paid_for(self, luma, run):
        luma.configure(ingest_failure="The input was refused by moderation.")
        with pytest.raises(AirflowFailException, match="The input was refused by moderation"):
            run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (0, 1)

    def test_file_that_does_not_become_ready_is_left_to_a_retry(self, luma, run, monkeypatch):
        monkeypatch.setattr(service, "CHECK_TIMEOUT", 0.1)
        luma.configure(ingest_seconds=3600)
        with pytest.raises(LumaError, match="is not ready after 0.1 s"):
            run.run_try()
        luma.configure(ingest_seconds=0)
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    @pytest.mark.parametrize("wait", [{"deferrable": True}, {"deferrable": False}])
    def test_uploaded_file_is_refused_by_kie_before_anything_is_sent(self, luma, run, lead_to, wait):
        lead_to("kie")
        with pytest.raises(AirflowFailException, match="luma-file:.* a video at Luma's own API, but the connection"):
            run.run_try(video_url=FILE, **wait)
        assert luma.calls == []

    def test_file_that_luma_does_not_know_fails_the_task_without_paying(self, luma, run):
        with pytest.raises(AirflowFailException, match="file_id"):
            run.run_try(video_url=FILE)
        assert luma.accepted == 0


class TestSharedUpload:
    @pytest.fixture
    def uploaded(self, run, file) -> dict[str, object]:
        return LumaUploadOperator(task_id="upload", source=str(file)).execute(new_context())

    def test_upload_returns_its_id_size_and_expiry(self, luma, uploaded, file):
        assert list(uploaded) == ["url", "size", "expires_at"]
        assert uploaded["url"] == f"luma-file:{luma.uploads[0].key}"
        assert uploaded["size"] == file.stat().st_size
        assert str(uploaded["expires_at"]).endswith("+00:00")

    def test_upload_is_used_without_looking_into_it_or_uploading_again(self, luma, run, uploaded, task_log):
        assert run.run_try(video_url=uploaded["url"], check_video=True)["status"] == "SUCCESS"
        assert (luma.accepted, len(uploads(luma))) == (1, 1)
        assert messages(task_log, "could not be checked") == []

    def test_retry_of_a_task_that_uses_it_pays_once(self, luma, run, uploaded):
        for _ in range(2):
            run.run_try(video_url=uploaded["url"])
        assert luma.accepted == 1

    def test_page_shows_its_id(self, run, uploaded):
        run.run_try(video_url=uploaded["url"])
        assert run.ti.pushed["luma_request"]["video_url"] == uploaded["url"]

    def test_file_that_luma_refuses_fails_the_upload_without_using_its_retries(self, luma, run, file):
        luma.configure(ingest_failure="No video stream.")
        with pytest.raises(AirflowFailException, match="Luma refused the uploaded file: No video stream"):
            LumaUploadOperator(task_id="upload", source=str(file)).execute(new_context())


class TestSignedInputs:
    def test_service_reads_the_clip_from_its_storage(self, luma, set_connection, s3_clip, modify):
        set_connection(luma.base_url, service="luma", sign_inputs=600, requests_per_second=1000)
        TaskRun(lambda: modify(video_url=s3_clip), TaskStateStore()).run_try()
        assert (luma.accepted, luma.uploads) == (1, [])
        assert "Signature=" in luma.jobs[0].request["source"]["url"]

    def test_service_on_the_internet_is_given_no_address_that_it_cannot_read(
        self, wires, set_connection, s3_clip, modify
    ):
        wire = wires.start(wires.answer(500))
        set_connection("http://luma.example.com:80", service="luma", sign_inputs=600, proxies=wire.base_url)
        with pytest.raises(AirflowFailException, match="video_url points to 127.0.0.1"):
            TaskRun(lambda: modify(video_url=s3_clip), TaskStateStore()).run_try()
        assert wire.received == []

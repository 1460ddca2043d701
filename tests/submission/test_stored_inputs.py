# SPDX-License-Identifier: Apache-2.0
"""Files in storages as input: uploaded once, submitted once, whatever happens to the task or to the file."""

from __future__ import annotations

import io
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import ObjectStoragePath
from s3fs import S3FileSystem

from airflow_provider_luma.exceptions import LumaGenerationError, LumaInsufficientCreditsError, LumaTimeoutError
from airflow_provider_luma.submission.store import UPLOAD_KEY
from tests.support.clips import MOOV_IN_FRONT
from tests.support.clips import clip as make_clip
from tests.support.operator_fixtures import new_context
from tests.support.storages import BUCKET, aws_connection
from tests.support.stored_clips import digest, uploads
from tests.support.task_instance import TaskRun, TaskStateStore
from tests.support.task_logs import messages
from tests.support.uploaded_once import UploadedOnce

pytestmark = [pytest.mark.slow, pytest.mark.versions]


def touch(path: Path, content: bytes) -> None:
    """Write a file anew, with another time."""
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


@pytest.fixture
def run(modify, clip) -> TaskRun:
    """A task that modifies the clip on the disk, without looking into it."""
    return TaskRun(
        lambda **changes: modify(**{"video_url": str(clip), "check_video": False, **changes}), TaskStateStore()
    )


class TestStorages:
    @pytest.fixture(params=["path", "file://", "s3://", "object storage path"])
    def address(self, request, clip):
        if request.param == "s3://":
            return request.getfixturevalue("s3_clip")
        forms = {"path": str(clip), "file://": f"file://{clip}", "object storage path": ObjectStoragePath(str(clip))}
        return forms[request.param]

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_file_is_uploaded_and_modified(self, luma, modify, clip, address, deferrable):
        task = TaskRun(lambda: modify(video_url=address, deferrable=deferrable), TaskStateStore())
        assert task.run_try()["status"] == "SUCCESS"
        assert (luma.accepted, len(uploads(luma))) == (1, 1)
        assert luma.jobs[0].input_digest == digest(clip.read_bytes())

    def test_page_shows_the_uploaded_file_as_the_original(self, luma, run, clip):
        run.run_try()
        shown = run.ti.pushed["luma_request"]
        assert requests.get(shown["video_url"], timeout=10).content == clip.read_bytes()
        assert (shown["kind"], shown["source"]) == ("clip", str(clip))

    def test_page_shows_no_price_where_none_is_published(self, run):
        run.run_try(check_video=True)
        assert "price" not in run.ti.pushed["luma_request"]

    def test_page_shows_it_also_while_a_later_try_waits_for_the_job(self, luma, run, clip):
        luma.configure(processing_seconds=3600)
        for _ in range(2):
            with pytest.raises(LumaTimeoutError):
                run.run_try(timeout=0.05)
        shown = run.ti.pushed["luma_request"]["video_url"]
        assert requests.get(shown, timeout=10).content == clip.read_bytes()

    def test_page_shows_no_upload_of_another_file(self, luma, run, clip):
        luma.configure(processing_seconds=3600)
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        upload = run.store.get(UPLOAD_KEY)
        run.store.set(UPLOAD_KEY, {**upload, "file": "another.mp4"})
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        assert run.ti.pushed["luma_request"]["video_url"] == str(clip)

    def test_mapped_tasks_upload_each_their_own(self, luma, modify, clip):
        for prompt in ("make it snow", "make it rain"):
            modify(video_url=str(clip), prompt=prompt, wait_for_completion=False).execute(new_context())
        assert (luma.accepted, len(uploads(luma))) == (2, 2)


class TestSubmitOnce(UploadedOnce):
    def test_changed_file_is_another_request(self, luma, run, clip):
        run.run_try()
        touch(clip, clip.read_bytes())
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (2, 2)

    def test_job_is_continued_after_its_file_has_gone(self, luma, run, clip, task_log):
        luma.configure(processing_seconds=3600)
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
        clip.unlink()
        luma.configure(processing_seconds=0)
        with suppress(LumaTimeoutError):
            run.run_try(timeout=0.05)
        assert run.ti.pushed["luma_task_id"] == luma.jobs[0].task_id
        assert luma.accepted == 1
        assert len(messages(task_log, "no such file", "Assuming that it is the file that was submitted before")) >= 1

    def test_other_request_for_a_file_that_has_gone_is_refused(self, luma, run, clip):
        run.run_try()
        clip.unlink()
        with pytest.raises(AirflowFailException, match="there is no such file"):
            run.run_try(prompt="make it a sunny day")
        assert luma.accepted == 1

    @pytest.mark.parametrize("new_store", [TaskStateStore, lambda: None], ids=["with a store", "without a store"])
    def test_task_that_waits_in_the_queue_uploads_once(self, luma, modify, clip, new_store, short_backoff):
        luma.configure(faults=["submit:refuse,code=429,times=3"])
        TaskRun(lambda: modify(video_url=str(clip)), new_store()).run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    def test_upload_of_a_job_that_has_failed_is_repeated(self, luma, run):
        luma.configure(outcome="generate_failed")
        with pytest.raises(LumaGenerationError):
            run.run_try()
        luma.configure(outcome="success")
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (2, 2)

    def test_upload_that_luma_cannot_read_is_repeated_after_a_clear(self, luma, run):
        luma.configure(faults=["submit:refuse,code=422,times=1"])
        with pytest.raises(AirflowFailException):
            run.run_try()
        run.clear_and_run()
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    @pytest.mark.parametrize("kept", [{"size": None}, {"expires_at": "2030-01-01"}, {"expires_at": 5}, {"size": "x"}])
    def test_upload_that_cannot_be_read_is_repeated(self, luma, run, kept):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        values = run.store._values
        values[UPLOAD_KEY] = json.dumps({**json.loads(values[UPLOAD_KEY]), **kept})
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    @pytest.mark.parametrize("seconds", ["9", True, [1], {}, -1, float("inf"), None])
    def test_upload_whose_length_cannot_be_read_is_used(self, luma, run, seconds):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        values = run.store._values
        values[UPLOAD_KEY] = json.dumps({**json.loads(values[UPLOAD_KEY]), "seconds": seconds})
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    def test_upload_of_another_version_is_not_used(self, luma, run, clip):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        touch(clip, clip.read_bytes())
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    def test_broken_upload_is_repeated_and_submitted_once(self, luma, run, short_backoff):
        luma.configure(faults=["upload:cut,times=2"])
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 3)

    def test_task_that_is_killed_while_it_uploads_sends_nothing_more(self, luma, modify, clip, context):
        operator = modify(video_url=str(clip))
        operator.on_kill()
        with pytest.raises(AirflowException, match="killed"):
            operator.execute(context)
        assert luma.accepted == 0


class TestSignedInputs:
    @pytest.fixture
    def signed(self, luma, set_connection, s3_clip, modify) -> TaskRun:
        set_connection(luma.base_url, sign_inputs=600)
        return TaskRun(lambda **changes: modify(**{"video_url": s3_clip, **changes}), TaskStateStore())

    def test_service_reads_the_clip_from_its_storage(self, luma, signed, clip):
        signed.run_try()
        assert (luma.accepted, uploads(luma)) == (1, [])
        assert luma.jobs[0].video_url.partition("?")[2].count("Signature=") == 1
        assert luma.jobs[0].input_digest == digest(clip.read_bytes())

    def test_retry_pays_once(self, luma, signed):
        luma.configure(processing_seconds=3600)
        for _ in range(2):
            with pytest.raises(LumaTimeoutError):
                signed.run_try(timeout=0.05)
        assert luma.accepted == 1

    def test_signature_is_in_no_log_xcom_record_or_event(self, luma, signed, task_log):
        luma.configure(processing_seconds=0, faults=["submit:refuse,code=429,times=1"])
        result = signed.run_try()
        secret = luma.jobs[0].video_url.partition("Signature=")[2].partition("&")[0]
        assert len(secret) > 20
        everything = json.dumps([result, signed.ti.pushed, signed.store._values, [str(entry) for entry in task_log]])
        assert secret not in everything

    def test_storage_logs_no_signature_at_any_level(self, luma, signed, s3_endpoint, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_MY_S3", aws_connection(s3_endpoint, region_name="eu-central-1"))
        stream, root = io.StringIO(), logging.getLogger()
        handler, before = logging.StreamHandler(stream), root.level
        # The simulator and the S3 server log in this process, too.
        handler.addFilter(lambda record: not record.name.startswith(("werkzeug", "httpcore", "httpx", "uvicorn")))
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            signed.run_try()
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
        secret = dict(parse_qsl(luma.jobs[0].video_url.partition("?")[2]))["X-Amz-Signature"]
        assert "Calculating signature" in stream.getvalue(), "of the look-up"
        assert secret not in stream.getvalue()
        assert logging.root.manager.disable == 0

    def test_signature_is_made_anew_where_the_service_accepts_later(self, luma, signed, monkeypatch, short_backoff):
        sign, made = S3FileSystem.sign, []

        def counted(*arguments: object, **options: object) -> str:
            made.append(f"{sign(*arguments, **options)}&number={len(made)}")
            return made[-1]

        monkeypatch.setattr(S3FileSystem, "sign", counted)
        monkeypatch.setattr("airflow_provider_luma.files.input_video.FRESH_SIGNATURE", 0.0)
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        signed.run_try(deferrable=False)
        assert luma.jobs[0].video_url == made[-1]
        assert len(made) >= 3

    def test_signature_that_the_service_repeats_is_removed(self, luma, signed, s3_clip):
        luma.configure(
            processing_seconds=0,
            outcome="generate_failed",
            error_message="cannot read http://s3/films/clip.mp4?X-Amz-Algorithm=AWS4&X-Amz-Signature=0123456789abcdef",
        )
        with pytest.raises(Exception, match="cannot read") as caught:
            signed.run_try()
        assert "0123456789abcdef" not in str(caught.value) + json.dumps(signed.ti.pushed)

    def test_clip_that_is_replaced_before_it_is_signed_is_not_submitted(self, luma, signed, bucket, monkeypatch):
        sign = S3FileSystem.sign

        def replaced(*arguments: object, **options: object) -> str:
            bucket.s3.put_object(Bucket=BUCKET, Key="in/clip.mp4", Body=b"another")
            return str(sign(*arguments, **options))

        monkeypatch.setattr(S3FileSystem, "sign", replaced)
        with pytest.raises(AirflowException, match="changed while it was being read"):
            signed.run_try()
        assert luma.accepted == 0

    def test_file_whose_storage_signs_nothing_is_uploaded(self, luma, set_connection, run, task_log):
        set_connection(luma.base_url, sign_inputs=True)
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)
        assert len(messages(task_log, "cannot sign addresses")) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("address", "says"),
        [
            ("/nowhere/clip.mp4", "there is no such file"),
            ("/tmp", "is a folder"),
            ("nonsense://bucket/clip.mp4", "install the provider package that supports it"),
            ("s3://my_s3@{bucket}/nothing.mp4", "there is no such file"),
        ],
    )
    def test_file_that_is_not_there_fails_the_task_before_anything_is_sent(self, luma, modify, bucket, address, says):
        task = TaskRun(modify, TaskStateStore())
        with pytest.raises(AirflowFailException, match=f"video_url.*{says}"):
            task.run_try(video_url=address.format(bucket=BUCKET))
        assert luma.calls == []
        assert task.store.operations == []

    def test_storage_that_cannot_be_reached_is_left_to_a_retry(self, luma, modify, monkeypatch):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AIRFLOW_CONN_NO_S3", "aws://key:secret@/?endpoint_url=http%3A%2F%2F127.0.0.1%3A9")
        with pytest.raises(AirflowException, match="video_url.*could not be looked up") as caught:
            TaskRun(modify, TaskStateStore()).run_try(video_url="s3://no_s3@bucket/clip.mp4")
        assert not isinstance(caught.value, AirflowFailException)
        assert luma.calls == []

    def test_upload_that_the_service_refuses_fails_the_task_at_once(self, luma, run):
        luma.configure(faults=["upload:refuse,code=400"])
        with pytest.raises(AirflowFailException, match="code 400"):
            run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (0, 1)


class TestUnusableVideos:
    """Refused before anything is uploaded or submitted."""

    @pytest.fixture(
        params=["11 seconds", "501 MB", "a text", "a sound", "cut off, index in front", "cut off, index at the end"]
    )
    def unusable(self, request, tmp_path) -> tuple[Path, str]:
        kind, path = request.param, tmp_path / "clip.mp4"
        if kind == "501 MB":
            with path.open("wb") as file:
                file.truncate(501 * 1024 * 1024)
            return path, "has 501.0 MB"
        contents = {
            "11 seconds": (lambda: make_clip(seconds=11), "lasts 11.0 s;.*at most 10 s.*-t 10"),
            "a text": (lambda: b"This is no video, whatever its name says.", "is a text"),
            "a sound": (lambda: make_clip(codec=None, sound="aac"), "contains sound but no video"),
            "cut off, index in front": (lambda: make_clip(seconds=5, movflags=MOOV_IN_FRONT)[:-2000], "is cut off"),
            "cut off, index at the end": (lambda: make_clip(seconds=5)[:-2000], "is cut off"),
        }
        make, says = contents[kind]
        path.write_bytes(make())
        return path, says

    def test_unusable_video_fails_the_task_before_anything_is_sent(self, luma, modify, unusable):
        path, says = unusable
        task = TaskRun(modify, TaskStateStore())
        with pytest.raises(AirflowFailException, match=f"video_url.*{says}"):
            task.run_try(video_url=str(path))
        assert luma.calls == []
        assert task.store.record is None

    def test_unusable_video_goes_to_luma_if_check_video_is_off(self, luma, modify, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(b"This is no video, whatever its name says.")
        with pytest.raises(AirflowFailException, match="code 422"):
            TaskRun(modify, TaskStateStore()).run_try(video_url=str(tmp_path / "clip.mp4"), check_video=False)
        assert len(uploads(luma)) == 1


class TestPublicVideos:
    def test_address_with_nothing_behind_it_is_refused_before_the_submission(self, luma, modify):
        with pytest.raises(AirflowFailException, match="video_url: there is nothing at .*HTTP 404"):
            TaskRun(modify, TaskStateStore()).run_try(video_url=f"{luma.base_url}/files/nothing.mp4")
        assert "submit" not in {call.on for call in luma.calls}

    def test_address_is_not_looked_at_if_check_video_is_off(self, luma, modify):
        TaskRun(modify, TaskStateStore()).run_try(check_video=False)
        assert [call for call in luma.calls if "range" in call.headers] == []

    def test_address_is_looked_at_once_however_often_the_submission_is_refused(self, luma, modify, short_backoff):
        luma.configure(faults=["submit:refuse,code=429,times=3"])
        TaskRun(modify, TaskStateStore()).run_try()
        [ours] = [call for call in luma.calls if "range" in call.headers]
        assert (ours.headers["range"], ours.carried_authorization) == ("bytes=0-4095", False)

    def test_address_that_cannot_be_reached_from_here_is_left_to_the_service(self, luma, modify, task_log):
        with pytest.raises(AirflowFailException, match="code 422"):
            TaskRun(modify, TaskStateStore()).run_try(video_url="http://127.0.0.1:9/clip.mp4")
        assert len(messages(task_log, "could not be checked from here")) == 1


class TestCredits:
    def test_nothing_is_submitted_below_the_credits_to_keep(self, luma, set_connection, run):
        set_connection(luma.base_url, min_credits=100)
        luma.configure(credits=99)
        with pytest.raises(LumaInsufficientCreditsError, match=r"99 credits left.*min_credits \(100\)"):
            run.run_try()
        assert (luma.accepted, uploads(luma)) == (0, [])
        luma.configure(credits=100)
        run.run_try()
        assert luma.accepted == 1

    def test_video_is_looked_at_although_the_credits_could_not_be_had_at_first(
        self, luma, modify, set_connection, short_backoff, monkeypatch
    ):
        monkeypatch.setattr("airflow_provider_luma.core.backoff.READ_RETRY_TIMEOUT", 0.0)
        set_connection(luma.base_url, min_credits=1)
        luma.configure(faults=["credit:refuse,code=500,times=1"])
        TaskRun(modify, TaskStateStore()).run_try()
        assert len([call for call in luma.calls if "range" in call.headers]) == 1
        assert luma.accepted == 1

    def test_log_says_how_many_credits_are_left(self, luma, run, task_log):
        luma.configure(credits=77)
        run.run_try()
        assert len(messages(task_log, "has", "credits left")) == 1

    def test_credits_that_cannot_be_had_hold_nothing_up(self, luma, run):
        luma.configure(faults=["credit:refuse,code=500"])
        assert run.run_try()["status"] == "SUCCESS"

# SPDX-License-Identifier: Apache-2.0
"""Files are uploaded whole, with constant memory, under a new name, and the key goes to no other host."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_luma.exceptions import LumaAuthError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.stored_file import StoredFile
from airflow_provider_luma.files.upload import Upload
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.memory import measure
from tests.support.storages import BUCKET
from tests.support.task_logs import messages
from tests.support.upload_server import UploadServer

pytestmark = pytest.mark.slow

CONTENT = random.Random(7).randbytes(3_500_000)
URL = "https://files.example.com/clip.mp4"


def accepted(**data: object) -> tuple[int, object]:
    return 200, {"success": True, "code": 200, "msg": "ok", "data": {"downloadUrl": URL, **data}}


@pytest.fixture
def uploads() -> Iterator[UploadServer]:
    server = UploadServer()
    server.answers = [accepted()]
    yield server
    server.close()


@pytest.fixture
def hook(luma, uploads, set_connection) -> LumaHook:
    """A hook whose files go to the upload server."""
    set_connection(luma.base_url, upload_host=uploads.url)
    return LumaHook()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / 'a "clip" #1, 50% ?é.mp4'
    path.write_bytes(CONTENT)
    return path


class TestForm:
    def test_form_holds_the_whole_file_and_a_length(self, hook, uploads, file):
        hook.upload(str(file))
        [upload] = uploads.uploads
        assert upload.path == "/api/file-stream-upload"
        assert upload.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert int(upload.headers["content-length"]) > len(CONTENT)
        assert "transfer-encoding" not in upload.headers
        assert upload.headers["authorization"] == f"Bearer {hook.get_luma_connection().api_key}"

    def test_name_is_made_of_the_version_and_tells_nothing_of_the_file(self, hook, uploads, file):
        hook.upload(str(file))
        hook.upload(str(file))
        file.write_bytes(CONTENT[:-1])
        hook.upload(str(file))
        first, second, changed = (upload.fields["fileName"] for upload in uploads.uploads)
        assert first == second != changed
        assert first.endswith(".mp4")
        assert "clip" not in first
        assert uploads.uploads[0].file_name == first
        assert uploads.uploads[0].fields["uploadPath"] == "airflow-provider-luma"

    @pytest.mark.parametrize("name", ["clip.mp4 (1)", "clip.take#2", "film.a?b%2F", 'film.mp4"', "clip." + "x" * 200])
    def test_name_is_one_that_every_address_can_hold(self, hook, uploads, tmp_path, name):
        (tmp_path / name).write_bytes(CONTENT)
        hook.upload(str(tmp_path / name))
        assert re.fullmatch("[0-9a-f]{32}", uploads.uploads[0].fields["fileName"])

    def test_empty_file_and_one_of_many_pieces_are_whole(self, hook, uploads, tmp_path):
        for size in (0, 1, 1024 * 1024, 1024 * 1024 + 1):
            path = tmp_path / f"{size}.mp4"
            path.write_bytes(CONTENT[:size])
            hook.upload(str(path))
            assert (uploads.uploads[-1].size, uploads.uploads[-1].sha256) == (
                size,
                hashlib.sha256(CONTENT[:size]).hexdigest(),
            )

    def test_file_in_a_bucket_is_read_in_pieces(self, hook, uploads, bucket):
        bucket.s3.put_object(Bucket=BUCKET, Key="clip.mp4", Body=CONTENT)
        upload = hook.upload(ObjectStoragePath(f"s3://my_s3@{BUCKET}/clip.mp4"))
        assert upload.size == len(CONTENT)
        assert uploads.uploads[0].sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_log_says_how_far_a_long_upload_is(hook, uploads, tmp_path, monkeypatch, task_log):
    monkeypatch.setattr("airflow_provider_luma.files.upload.PROGRESS_INTERVAL", 0.0)
    (tmp_path / "clip.mp4").write_bytes(CONTENT)
    hook.upload(str(tmp_path / "clip.mp4"))
    assert len(messages(task_log, "Uploaded 1.0 MB of 3.5 MB, 30 %")) == 1


class TestAnswers:
    def test_download_url_is_taken_before_the_file_url(self, hook, uploads, file):
        uploads.answers = [accepted(fileUrl="https://other.example.com/x.mp4", fileSize=len(CONTENT))]
        assert hook.upload(str(file)).url == URL

    def test_file_url_is_taken_where_there_is_no_other(self, hook, uploads, file):
        data = {"fileId": "f", "fileUrl": URL, "uploadTime": "2026-11-24T10:00:00Z"}
        uploads.answers = [(200, {"success": True, "code": 200, "msg": "ok", "data": data})]
        assert hook.upload(str(file)).url == URL

    @pytest.mark.parametrize(
        "expires_at", ["2030-05-06T07:08:09Z", "2030-05-06T09:08:09+02:00", "2030-05-06T07:08:09", 1904281689000]
    )
    def test_expiry_is_what_the_answer_says(self, hook, uploads, file, expires_at):
        uploads.answers = [accepted(expiresAt=expires_at)]
        assert hook.upload(str(file)).expires_at == datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)

    @pytest.mark.parametrize(
        "expires_at",
        [None, "soon", [], "9999999999999999999", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", 1e300],
    )
    def test_expiry_is_a_day_where_the_answer_does_not_tell(self, hook, uploads, file, expires_at):
        uploads.answers = [accepted(expiresAt=expires_at)]
        before = datetime.now(UTC)
        upload = hook.upload(str(file))
        assert before + timedelta(hours=24) <= upload.expires_at <= datetime.now(UTC) + timedelta(hours=24)

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"downloadUrl": ""},
            {"downloadUrl": "ftp://x"},
            {"downloadUrl": 5},
            None,
            [],
            "text",
            {"downloadUrl": "javascript:alert(1)"},
            {"downloadUrl": "https://x/a b.mp4"},
            {"downloadUrl": "https://x/\r\n"},
            {"downloadUrl": "https://user:password@x/a.mp4"},
            {"downloadUrl": "https://x/" + "a" * 9000},
        ],
    )
    def test_answer_without_an_address_is_an_error_after_some_attempts(self, hook, uploads, file, data):
        uploads.answers = [(200, {"success": True, "code": 200, "msg": "ok", "data": data})]
        with pytest.raises(LumaUnavailableError, match="no valid address"):
            hook.upload(str(file))
        assert len(uploads.uploads) == 5

    def test_file_of_which_a_part_was_stored_is_uploaded_again(self, hook, uploads, file):
        uploads.answers = [accepted(fileSize=5), accepted(fileSize=len(CONTENT))]
        assert hook.upload(str(file)).size == len(CONTENT)
        assert len(uploads.uploads) == 2

    @pytest.mark.parametrize("status", [200, 500])
    def test_error_of_the_service_is_waited_out(self, hook, uploads, file, status):
        uploads.answers = [(status, {"success": False, "code": 500, "msg": "busy"}), accepted()]
        assert hook.upload(str(file)).url == URL

    @pytest.mark.parametrize(
        ("code", "error"), [(400, LumaValidationError), (401, LumaAuthError), (413, LumaValidationError)]
    )
    @pytest.mark.parametrize("in_body", [True, False])
    def test_refusal_is_final(self, hook, uploads, file, code, error, in_body):
        uploads.answers = [(200 if in_body else code, {"success": False, "code": code, "msg": "no such thing"})]
        with pytest.raises(error, match="no such thing"):
            hook.upload(str(file))
        assert len(uploads.uploads) == 1

    def test_key_that_is_replaced_between_two_attempts_is_used(
        self, luma, hook, uploads, file, set_connection, short_backoff, monkeypatch
    ):
        uploads.answers = [(503, {"code": 503, "msg": "busy"}), (401, {"code": 401, "msg": "revoked"}), accepted()]
        log_retry = Upload._log_retry

        def replace_the_key(upload, state):
            set_connection(luma.base_url, key="the-next-api-key", upload_host=uploads.url)
            log_retry(upload, state)

        monkeypatch.setattr(Upload, "_log_retry", replace_the_key)
        assert hook.upload(str(file)).url == URL
        assert uploads.uploads[-1].headers["authorization"] == "Bearer the-next-api-key"

    def test_redirect_is_not_followed(self, hook, uploads, file):
        uploads.answers = [(307, {})]
        with pytest.raises(LumaUnavailableError, match="HTTP 307"):
            hook.upload(str(file))


class TestVersion:
    @pytest.fixture
    def version(self, file, monkeypatch):
        """Returns the version of the file in a storage that says this of it."""

        def _version(**said: object) -> str:
            info = LocalFileSystem.info
            with monkeypatch.context() as patch:
                patch.setattr(LocalFileSystem, "info", lambda *args, **options: {**info(*args, **options), **said})
                return StoredFile.find(str(file), "source").version

        return _version

    @pytest.mark.parametrize("content", [{"md5Hash": "abc="}, {"crc32c": "abc="}])
    def test_change_of_what_a_storage_notes_beside_the_content_is_none(self, version, content):
        assert version(etag="CJ1", **content) == version(etag="CJ2", **content)
        assert version(etag="CJ1") != version(etag="CJ2")

    def test_etag_counts_with_and_without_its_quotes(self, version):
        assert version(ETag='"abc"') == version(ETag="abc")


@pytest.mark.parametrize(
    ("signed", "url"),
    [
        (
            "https://a.example.com/my clip é.mp4?sig=a%2Bb%3D",
            "https://a.example.com/my%20clip%20%C3%A9.mp4?sig=a%2Bb%3D",
        ),
        ("https://b.example.com/it%27s%7E1.mp4?X-Amz-Date=1", "https://b.example.com/it%27s%7E1.mp4?X-Amz-Date=1"),
        ("gs://bucket/clip.mp4", None),
        (None, None),
    ],
)
def test_signed_address_is_one_that_every_client_can_read(file, monkeypatch, signed, url):
    monkeypatch.setattr(LocalFileSystem, "sign", lambda *_, **__: signed)
    assert StoredFile.find(str(file), "source").sign(600) == url


class TestFileThatChanges:
    def test_file_that_becomes_shorter_is_no_upload(self, hook, uploads, file):
        found = StoredFile.find(str(file), "source")
        file.write_bytes(CONTENT[:1_000_000])
        with pytest.raises(AirflowException, match="changed while it was being read"):
            Upload(hook.get_client(), hook.log, lambda: None).run(found)
        assert uploads.uploads == []

    def test_file_that_is_replaced_meanwhile_is_no_upload(self, hook, uploads, file):
        found = StoredFile.find(str(file), "source")
        file.write_bytes(bytes(len(CONTENT)))
        os.utime(file, (1, 1))
        with pytest.raises(AirflowException, match="changed while it was being read"):
            Upload(hook.get_client(), hook.log, lambda: None).run(found)

    def test_storage_that_breaks_is_not_taken_for_the_service(self, hook, uploads, file, monkeypatch):
        def broken(*_arguments: object, **_options: object) -> object:
            raise OSError("the disk is gone")

        found = StoredFile.find(str(file), "source")
        monkeypatch.setattr(type(found.path.fs), "open", broken)
        with pytest.raises(AirflowException, match="source: .* could not be opened: the disk is gone"):
            Upload(hook.get_client(), hook.log, lambda: None).run(found)


@pytest.mark.parametrize("said", [json.JSONDecodeError("no JSON", "<html>", 0), {"type": "file", "size": None}])
def test_storage_that_answers_nonsense_is_left_to_a_retry(hook, uploads, file, monkeypatch, said):
    def info(*_arguments: object, **_options: object) -> object:
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(LocalFileSystem, "info", info)
    with pytest.raises(AirflowException, match="source: .* could not be looked up"):
        hook.upload(str(file))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("clip.mp4", "must be a file in storage"),
        ("https://example.com/clip.mp4", "must be a file in storage.*Pass a public clip as video_url"),
        ("/data/clip.webm", "only MP4, MOV and AVI"),
        ("", "must be a file in storage"),
        (None, "must be a file in storage"),
        ("/nowhere/clip.mp4", "there is no such file"),
    ],
)
def test_source_that_is_no_file_is_refused(hook, uploads, source, says):
    with pytest.raises(LumaValidationError, match=f"source.*{says}"):
        hook.upload(source)
    assert uploads.uploads == []


UPLOAD = """
from airflow_provider_luma.hooks.luma import LumaHook
hook = LumaHook()
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    # Clients, connections and import on first use belong to the baseline.
    hook.upload(small)
    measured(lambda: hook.upload(large).size)
"""


@pytest.mark.parametrize(
    "size", [48_000_000, pytest.param(500_000_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_upload_takes_little_more_memory_than_that_of_a_small_file(hook, uploads, tmp_path, bucket, size):
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(CONTENT)
    with large.open("wb") as file:
        file.truncate(size)
    for path in (small, large):
        bucket.s3.upload_file(str(path), BUCKET, path.name)
    addresses = [f"{folder}/{path.name}" for folder in (tmp_path, f"s3://my_s3@{BUCKET}") for path in (small, large)]
    of_disk, of_s3 = measure(UPLOAD, *addresses)
    assert of_disk["size"] == of_s3["size"] == size
    assert [upload.size for upload in uploads.uploads] == [len(CONTENT), size] * 2
    assert of_disk["growth"] < 24e6
    # The client of the store holds several blocks of 5 MB.
    assert of_s3["growth"] < 36e6

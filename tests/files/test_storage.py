# SPDX-License-Identifier: Apache-2.0
"""A storage, or PyAV, that is not installed: the error names the extra that brings it, and no retry is used."""

from __future__ import annotations

import json
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files import storage
from airflow_provider_luma.files.storage import as_path, remove_file, remove_folder, storage_path
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator, LumaUploadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
from tests.support import fresh_python
from tests.support.task_instance import TaskInstance

AZURE = "install the extra azure of airflow-provider-luma"
GCS = "install the extra gcs of airflow-provider-luma"


@pytest.fixture(autouse=True)
def neither_google_nor_azure(monkeypatch):
    """Let Airflow know what it brings itself, and S3, also where more is installed."""
    from airflow.sdk.io import fs

    known = {scheme: get_fs for scheme, get_fs in fs._register_filesystems().items() if scheme in ("file", "s3", "")}
    monkeypatch.setattr(fs, "_register_filesystems", lambda: known)


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("gs://bucket/clip.mp4", GCS),
        ("GCS://bucket/clip.mp4", GCS),
        ("gs://my_google@bucket/clip.mp4", GCS),
        ("abfs://container/clip.mp4", AZURE),
        ("abfss://container@account/clip.mp4", AZURE),
        ("wasb://container/clip.mp4", "does not know the scheme wasb://; write abfs://"),
        ("az://container/clip.mp4", "does not know the scheme az://; write abfs://"),
        ("sftp://server/clip.mp4", "install the provider package that supports it"),
        ("nonsense://server/clip.mp4", "install the provider package that supports it"),
    ],
)
def test_error_of_a_storage_that_is_not_installed_says_what_to_install(address, remedy):
    with pytest.raises(LumaValidationError) as refused:
        storage_path(address, f"source: {address}")
    assert refused.value.msg.startswith("source: ")
    assert remedy in refused.value.msg


def test_s3_without_its_library_needs_the_extra_too(monkeypatch):
    pytest.importorskip("airflow.providers.amazon")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(LumaValidationError, match="s3:// cannot be used here; install the extra s3 of"):
        storage_path("s3://asked_for_the_first_time@bucket/clip.mp4", "source")


def test_storage_that_is_installed_and_has_an_unusable_connection_says_to_check_that(monkeypatch):
    def fail(address):
        raise ValueError("the region is malformed")

    monkeypatch.setattr(storage, "ObjectStoragePath", fail)
    with pytest.raises(LumaValidationError, match=r"cannot be used; check its connection \(the region is malformed\)"):
        storage_path("file:///clip.mp4", "source")


def test_destinations_and_folders_are_named_by_their_parameter_and_without_secrets():
    with pytest.raises(LumaValidationError, match="destination: gs://bucket/a"):
        as_path("gs://bucket/a")
    with pytest.raises(LumaValidationError, match="work_dir: gs://bucket/a"):
        remove_folder("gs://bucket/a")
    with pytest.raises(LumaValidationError) as refused:
        as_path("abfs://user:password@host/a?sig=hidden")
    assert "password" not in str(refused.value)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "operator",
    [
        lambda: LumaModifyOperator(task_id="t", prompt="snow", video_url="gs://bucket/clip.mp4"),
        lambda: LumaUploadOperator(task_id="t", source="gs://bucket/clip.mp4"),
        lambda: LumaDownloadOperator(task_id="t", urls=["http://127.0.0.1:9/a.mp4"], destination="gs://bucket/"),
        lambda: VideoSplitOperator(task_id="t", source="gs://bucket/film.mp4", destination="/tmp/clips"),
        lambda: VideoJoinOperator(task_id="t", clips=["/a.mp4"], source="/f.mp4", destination="gs://bucket/film.mp4"),
    ],
    ids=["modify", "upload", "download", "split", "join"],
)
@pytest.mark.usefixtures("luma_conn")
def test_task_with_a_storage_that_is_not_installed_fails_without_using_its_retries(operator):
    task = operator()
    with pytest.raises(AirflowFailException, match=GCS):
        task.execute({"ti": TaskInstance()})


def test_submission_store_that_is_not_installed_fails_the_task_before_anything_is_sent(luma, set_connection):
    set_connection(luma.base_url, submission_store="abfs://container/luma")
    task = LumaModifyOperator(task_id="t", prompt="snow", video_url=luma.sample_url)
    with pytest.raises(AirflowFailException, match=f"submission_store of the connection: .*{AZURE}"):
        task.execute({"ti": TaskInstance()})
    assert luma.accepted == 0


class OldAzure(MemoryFileSystem):
    """Removes files as adlfs did before 2026.2."""

    def rm_file(self, path):
        raise NotImplementedError

    def rm(self, path, recursive=False, maxdepth=None, expand_path=True):
        assert not expand_path, "the name would be a pattern"
        del self.store[self._strip_protocol(path)]


@pytest.mark.parametrize("kind", [MemoryFileSystem, OldAzure])
def test_one_file_is_removed_and_no_other_that_its_name_would_match(kind):
    fs = kind()
    for name in ("/removal/a[1].mp4", "/removal/a1.mp4", "/removal/ab.mp4"):
        fs.pipe_file(name, b"video")
    remove_file(fs, "/removal/a[1].mp4")
    assert sorted(fs.find("/removal")) == ["/removal/a1.mp4", "/removal/ab.mp4"]


WITHOUT_PYAV = """
import sys
from pathlib import Path
folder = Path({folder!r})
(folder / "av.py").write_text("raise ImportError('No module named av')")
(folder / "film.mp4").write_bytes(b"a film")
sys.path.insert(0, str(folder))
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
class TI:
    map_index = -1
    def xcom_push(self, **_): pass
split = VideoSplitOperator(task_id="split", source=str(folder / "film.mp4"), destination=str(folder / "clips"))
joined = str(folder / "joined.mp4")
join = VideoJoinOperator(task_id="join", clips=[split.source], source=split.source, destination=joined)
result = []
for run in (split.execute, join._join):
    try:
        run({"ti": TI()})
    except Exception as error:
        result.append([type(error).__name__, str(error)])
"""


@pytest.mark.xdist_group("fresh Python")
def test_film_without_the_extra_media_fails_without_using_retries_and_names_it(tmp_path):
    failures = fresh_python.run(WITHOUT_PYAV.replace("{folder!r}", repr(str(tmp_path))))
    assert [kind for kind, _ in failures] == ["AirflowFailException"] * 2
    for _, message in failures:
        assert message.endswith("install the extra media of airflow-provider-luma on the workers"), json.dumps(failures)

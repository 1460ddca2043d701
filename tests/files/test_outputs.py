# SPDX-License-Identifier: Apache-2.0
"""What downloads, splits and joins leave in a storage: whole files of the right kind, whatever the storage can do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from airflow.sdk import DAG, ObjectStoragePath
from airflow.sdk.io import store
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files import download
from airflow_provider_luma.files.storage import content_type_option, written
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.transfers import LumaDownloadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.task_groups.video import modify_long_video
from tests.support.file_server import BLOCK, FILM, OTHER_FILM, FileServer, Reply
from tests.support.storages import BUCKET, Bucket, Disk, Sftp, Storage

pytestmark = pytest.mark.slow


def write(storage: Storage, name: str, content: bytes) -> None:
    with written(ObjectStoragePath(f"{storage.destination}/{name}")) as file:
        file.write_bytes(content)


class TestContentType:
    @pytest.fixture
    def kind_of(self, bucket: Bucket) -> Callable[[str], str]:
        def kind_of(name: str) -> str:
            kind: str = bucket.s3.head_object(Bucket=BUCKET, Key=f"videos/{name}")["ContentType"]
            return kind

        return kind_of

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("film.mp4", "video/mp4"),
            ("film.MP4", "video/mp4"),
            ("take:1 of 2.mp4", "video/mp4"),
            ("film.mov", "video/quicktime"),
            ("film.webm", "video/webm"),
        ],
    )
    def test_object_says_what_kind_of_video_it_is(
        self, name: str, kind: str, bucket: Bucket, server: FileServer, hook: LumaHook, kind_of: Callable[[str], str]
    ) -> None:
        url = server.serve("/result.mp4", Reply(FILM))
        hook.download(url, ObjectStoragePath(f"{bucket.destination}/{name}"), name=None)
        assert kind_of(name) == kind
        write(bucket, name, b"a film that was joined")
        assert (bucket.files()[name], kind_of(name)) == (b"a film that was joined", kind)

    def test_so_does_an_object_that_is_uploaded_in_parts_and_replaced(
        self,
        bucket: Bucket,
        server: FileServer,
        hook: LumaHook,
        kind_of: Callable[[str], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(download, "BLOCK_SIZE", 5 * len(BLOCK))
        bucket.put("film.mp4", b"old")
        hook.download(server.serve("/film.mp4", Reply(blocks=12)), bucket.destination, overwrite=True)
        assert kind_of("film.mp4") == "video/mp4"
        assert len(bucket.files()["film.mp4"]) == 12 * len(BLOCK)

    def test_other_object_stores_are_told_in_their_own_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Azure(MemoryFileSystem):
            def _open(self, path, mode="rb", content_settings=None, **kwargs): ...

        for name, fs in (("old", MemoryFileSystem()), ("new", Azure())):
            monkeypatch.setitem(store._STORE_CACHE, f"abfs-{name}", store.ObjectStore("abfs", name, fs=fs))
        assert content_type_option(ObjectStoragePath("gs://my_gcp@b/film.mp4")) == {"content_type": "video/mp4"}
        settings = {"content_settings": {"content_type": "video/mp4"}}
        assert content_type_option(ObjectStoragePath("abfs://new@b/film.mp4")) == settings
        assert content_type_option(ObjectStoragePath("abfs://old@b/film.mp4")) == {}


class TestServersThatRename:
    def test_file_is_renamed_and_not_copied(self, sftp: Sftp, server: FileServer, hook: LumaHook) -> None:
        hook.download(server.serve("/film.mp4", Reply(FILM)), sftp.destination)
        write(sftp, "joined.mp4", OTHER_FILM)
        assert sftp.files() == {"film.mp4": FILM, "joined.mp4": OTHER_FILM}
        assert {Path(name).suffix for name in sftp.fs.names} == {".part"}

    @pytest.mark.parametrize("replaces", [True, False])
    def test_file_is_replaced(self, replaces: bool, sftp: Sftp, server: FileServer, hook: LumaHook) -> None:
        sftp.fs.replaces = replaces
        sftp.put("film.mp4", b"old")
        hook.download(server.serve("/film.mp4", Reply(FILM)), sftp.destination, overwrite=True)
        assert sftp.files() == {"film.mp4": FILM}
        write(sftp, "film.mp4", OTHER_FILM)
        assert sftp.files() == {"film.mp4": OTHER_FILM}

    def test_film_whose_transfer_breaks_appears_under_no_name(self, sftp: Sftp) -> None:
        sftp.put("film.mp4", b"old")
        sftp.fs.fails_after = 1000
        for name in ("film.mp4", "new.mp4"):
            with pytest.raises(OSError, match="connection is lost"):
                write(sftp, name, FILM)
        assert sftp.files() == {"film.mp4": b"old"}


class TestAtOnce:
    """Several tasks that write one name at the same time."""

    COUNT = 6

    def test_all_succeed_if_they_fetch_the_same_file(
        self, storage: Storage, server: FileServer, hook: LumaHook
    ) -> None:
        together = threading.Barrier(self.COUNT, timeout=60)
        reply = Reply(FILM, halfway=together.wait)
        url = server.serve("/film.mp4", *[reply] * self.COUNT, Reply(FILM))
        with ThreadPoolExecutor(self.COUNT) as threads:
            running = [threads.submit(hook.download, url, f"{storage.destination}/mine.mp4") for _ in range(self.COUNT)]
            paths = {str(one.result()) for one in running}
        assert paths == {f"{storage.destination}/mine.mp4"}
        assert storage.files() == {"mine.mp4": FILM}
        assert len(server.requests) == self.COUNT

    def test_file_that_appears_meanwhile_with_another_end_is_told_by_its_length(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: disk.put("film.mp4", FILM + b"more")))
        with pytest.raises(FileExistsError, match="created by something else during the download"):
            hook.download(url, disk.destination)
        assert disk.files() == {"film.mp4": FILM + b"more"}


TOO_LONG = "x" * 237 + ".mp4"
LONGEST = "é" * 118 + ".mp4"


class TestLongNames:
    @pytest.mark.parametrize(
        "destination",
        [f"/data/{TOO_LONG}", f"file:///data/{TOO_LONG}", f"sftp://my_sftp@/{TOO_LONG}", f"/{'x' * 256}/film.mp4"],
    )
    def test_destination_is_refused_when_the_dag_is_parsed(self, destination: str) -> None:
        for make in (
            lambda: LumaDownloadOperator(task_id="d", urls="https://e.com/v.mp4", destination=destination),
            lambda: VideoSplitOperator(task_id="s", source="/data/film.mp4", destination=destination),
            lambda: VideoJoinOperator(task_id="j", clips=[], source="/data/film.mp4", destination=destination),
            lambda: modify_long_video(
                group_id="g", source="/data/film.mp4", prompt="rain", destination=destination, work_dir="/tmp"
            ),
        ):
            with (
                DAG("x", schedule=None),
                pytest.raises(LumaValidationError, match=r"destination has a name .*shorten"),
            ):
                make()

    def test_destination_is_refused_before_anything_is_fetched(
        self, storage: Storage, server: FileServer, hook: LumaHook
    ) -> None:
        url = server.serve("/film.mp4", Reply(FILM))
        name = "k" * 1020 + ".mp4" if isinstance(storage, Bucket) else TOO_LONG
        with pytest.raises(LumaValidationError, match="destination has a (name|key) of .*shorten it"):
            hook.download(url, f"{storage.destination}/{name}")
        with pytest.raises(LumaValidationError, match="shorten it"):
            write(storage, name, FILM)
        assert server.requests == []
        assert storage.files() == {}

    def test_longest_name_is_written(self, storage: Storage, server: FileServer, hook: LumaHook) -> None:
        hook.download(server.serve("/film.mp4", Reply(FILM)), f"{storage.destination}/{LONGEST}")
        assert storage.files() == {LONGEST: FILM}

    def test_key_of_an_object_may_be_longer(self, bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
        name = "k" * 900 + ".mp4"
        hook.download(server.serve("/film.mp4", Reply(FILM)), f"{bucket.destination}/{name}")
        assert bucket.files() == {name: FILM}

    def test_destination_that_is_a_folder_needs_no_room_for_a_temporary_name(self) -> None:
        LumaDownloadOperator(task_id="d", urls="https://e.com/v.mp4", destination=f"/data/{'x' * 255}")

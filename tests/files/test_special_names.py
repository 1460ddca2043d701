# SPDX-License-Identifier: Apache-2.0
"""Names of files are taken as they are: what has a meaning in a web address or in a pattern has none in a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import store
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.destination_names import names_a_file
from airflow_provider_luma.files.storage import as_path, file_in, remove_folder, written
from airflow_provider_luma.files.stored_file import StoredFile
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.file_server import FILM, FileServer, Reply
from tests.support.storages import BUCKET, Bucket, Disk, Storage

pytestmark = [pytest.mark.slow, pytest.mark.versions]

NAMES = [
    *("Take #1", "What now?", "a?b#c?d", "[1] {2} *", "100%", "a%20b", "a;b&c=d", "a::b", "a:b@c", "~x", "a\nb\tc"),
    *(" blanks ", "élan 映画", "a\\b", "'\"`$(x)", "a#", "a?", "..a"),
]


def storable(storage: Storage) -> list[str]:
    """Return names that a storage takes: the S3 server of these tests has no keys with line breaks."""
    return [name for name in NAMES if "\n" not in name or not isinstance(storage, Bucket)]


class Memory(Storage):
    """A folder in the memory of this process."""

    destination = "memory://videos"

    def __init__(self) -> None:
        self.fs = MemoryFileSystem()

    def files(self) -> dict[str, bytes]:
        found = self.fs.store.items()
        return {path.removeprefix("/videos/"): file.getvalue() for path, file in found if path.startswith("/videos/")}

    def put(self, name: str, content: bytes) -> None:
        self.fs.pipe_file(f"/videos/{name}", content)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    memory = Memory()
    monkeypatch.setitem(store._STORE_CACHE, "memory", store.ObjectStore("memory", None, fs=memory.fs))
    return memory


@pytest.fixture(params=["plain path", "file://", "s3://", "sftp://", "memory://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Each kind of storage."""
    folder = tmp_path / "videos"
    if request.param == "plain path":
        return Disk(folder, str(folder))
    if request.param == "file://":
        return Disk(folder, f"file://{folder}")
    fixtures = {"s3://": "bucket", "sftp://": "sftp", "memory://": "memory"}
    found: Storage = request.getfixturevalue(fixtures[request.param])
    return found


class TestFiles:
    def test_file_is_written_found_and_read_under_its_name(self, storage: Storage) -> None:
        for name in storable(storage):
            address = f"{storage.destination}/{name}/{name}.mp4"
            assert names_a_file(address)
            with written(as_path(address)) as file:
                file.write_text(name)
            found = StoredFile.find(str(as_path(address)), "source")
            assert found.shown.endswith(f"/{name}/{name}.mp4")
            with found.open() as opened:
                assert opened.read() == name.encode()
        assert storage.files() == {f"{name}/{name}.mp4": name.encode() for name in storable(storage)}

    def test_file_is_downloaded_to_its_name_or_into_a_folder(
        self, storage: Storage, server: FileServer, hook: LumaHook
    ) -> None:
        names = storable(storage)
        content = FILM[:50_000]
        url = server.serve("/film.mp4", Reply(content))
        for name in names:
            for _ in range(2):  # what is there already is found again
                path = hook.download(url, f"{storage.destination}/{name}.mp4")
            assert StoredFile.find(str(path), "source").size == len(content)
            hook.download(url, f"{storage.destination}/{name}/")
        assert storage.files() == {file: content for name in names for file in (f"{name}.mp4", f"{name}/film.mp4")}

    def test_file_is_found_in_a_folder_that_a_user_has_joined(self, storage: Storage) -> None:
        path = file_in(ObjectStoragePath(storage.destination), "a?b#c.mp4")
        assert path == file_in(storage.destination, "a?b#c.mp4")
        assert (path.name, path.path.rpartition("/")[2]) == ("a?b#c.mp4", "a?b#c.mp4")

    @pytest.mark.parametrize("address", ["//data/a#", "file:////data/a#", "local:///data/a#", "/data/a#"])
    def test_slashes_before_a_path_are_one(self, address: str) -> None:
        assert as_path(address).path == "/data/a#"

    def test_signed_address_leads_to_the_object(self, bucket: Bucket) -> None:
        for name in storable(bucket):
            bucket.put(f"{name}.mp4", name.encode())
            url = StoredFile.find(f"{bucket.destination}/{name}.mp4", "video_url").sign(600)
            assert url is not None
            assert requests.get(url, timeout=60).content == name.encode(), url

    def test_name_that_a_storage_takes_for_another_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class CutsNames(ObjectStoragePath):
            @property
            def path(self) -> str:
                return str(super().path).partition("#")[0]

        monkeypatch.setattr("airflow_provider_luma.files.storage.ObjectStoragePath", CutsNames)
        with pytest.raises(LumaValidationError, match=r"source: .*'a#\.mp4': rename the file"):
            as_path("s3://bucket/a#.mp4", "source")


class TestFolders:
    """Of a folder that is removed everything goes, and nothing else."""

    def test_folder_is_removed_whatever_its_name(self, storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
        others = {"clips 1/x.mp4": b"1", "takes/x.mp4": b"2", "plain2/x.mp4": b"3", "plain2.mp4": b"4"}
        for name in ("plain", "clips [1]", "take?", "*", "[!a]/[1-9]?", "Take #1", "100%"):
            for file in {*others, f"{name}/a [x]?.mp4", f"{name}/deep [1]/b.mp4", f"{name}/deep [1]/*/c.mp4"}:
                with written(as_path(f"{storage.destination}/{file}")) as part:
                    part.write_bytes(others.get(file, b"clip"))
            for _ in range(2):
                remove_folder(f"{storage.destination}/{name}")
                assert storage.files() == others, name
            assert not isinstance(storage, Disk) or not (storage.folder / name).exists()
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    @pytest.mark.parametrize("name", ["plain", "clips [1]"])
    def test_files_that_are_left_are_logged(
        self, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class KeepsAFile(MemoryFileSystem):
            """A storage that, like S3 for several objects at a time, does not raise what it may not delete."""

            cachable = False
            store: ClassVar[dict[str, Any]] = {}
            pseudo_dirs: ClassVar[list[str]] = [""]

            def rm_file(self, path: str) -> None:
                if not path.endswith("kept.mp4"):
                    super().rm_file(path)

            def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
                for found in self.find(path):
                    self.rm_file(found)

        fs = KeepsAFile()
        monkeypatch.setitem(store._STORE_CACHE, "gs-my_gcp", store.ObjectStore("gs", "my_gcp", fs=fs))
        for file in ("a.mp4", "kept.mp4"):
            fs.pipe_file(f"/{BUCKET}/{name}/{file}", b"clip")
        remove_folder(f"gs://my_gcp@{BUCKET}/{name}")
        assert list(fs.store) == [f"/{BUCKET}/{name}/kept.mp4"]
        [line] = caplog.messages
        assert line.startswith(f"Files left in gs://{BUCKET}/{name}: 1, such as")
        assert "kept.mp4. Remove them" in line


class TestPercentEncodedNames:
    def test_error_says_that_names_are_taken_as_they_are(self, tmp_path: Path) -> None:
        clip = tmp_path / "My Clip #1.mp4"
        clip.write_bytes(FILM)
        with pytest.raises(LumaValidationError, match=r"no such file.* as they are: if %20 .*as_uri.*My Clip #1\.mp4'"):
            StoredFile.find(clip.as_uri(), "source")

    def test_error_says_so_of_an_object_and_names_no_connection(self, bucket: Bucket) -> None:
        bucket.put("My Clip.mp4", FILM)
        with pytest.raises(LumaValidationError, match="as they are") as caught:
            StoredFile.find(f"{bucket.destination}/My%20Clip.mp4", "video_url")
        assert f"give 's3://{BUCKET}/videos/My Clip.mp4'" in caught.value.msg
        assert "my_s3" not in caught.value.msg

    def test_destination_whose_decoded_folder_is_there_is_refused(
        self, tmp_path: Path, server: FileServer, hook: LumaHook
    ) -> None:
        (tmp_path / "My Films").mkdir()
        url = server.serve("/film.mp4", Reply(FILM))
        destination = (tmp_path / "My Films" / "new" / "film.mp4").as_uri()
        with pytest.raises(LumaValidationError, match=r"destination: .*My%20Films', but there is .*My Films'"):
            hook.download(url, destination)
        with pytest.raises(LumaValidationError, match="as_uri"), written(as_path(destination)):
            pytest.fail("nothing is made for it")
        assert server.requests == []
        (tmp_path / "My%20Films").mkdir()
        hook.download(url, destination)
        assert Disk(tmp_path, "").files() == {"My%20Films/new/film.mp4": FILM}

    @pytest.mark.parametrize("name", ["My%20Clip.mp4", "100%.mp4", "a%23b.mp4"])
    def test_file_that_is_really_named_so_is_found(self, name: str, storage: Storage) -> None:
        storage.put(name, FILM)
        assert StoredFile.find(f"{storage.destination}/{name}", "source").size == len(FILM)
        with pytest.raises(LumaValidationError, match="there is no such file$"):
            StoredFile.find(f"{storage.destination}/other.mp4", "source")

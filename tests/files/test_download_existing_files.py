# SPDX-License-Identifier: Apache-2.0
"""A file that exists already: kept if it is the same, replaced only with overwrite."""

from __future__ import annotations

import errno
from contextlib import nullcontext

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.files.download import COMPARED_SIZE
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.simulator import Simulator
from tests.support.downloads import result_url
from tests.support.file_server import BLOCK, FILM, OTHER_FILM, FileServer, Reply
from tests.support.storages import BUCKET, Bucket, Disk, Storage


def test_existing_file_of_the_right_length_is_not_downloaded_again(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM))
    path = hook.download(url, disk.destination)
    before = (disk.folder / "film.mp4").stat()
    assert hook.download(url, disk.destination) == path
    after = (disk.folder / "film.mp4").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert disk.files() == {"film.mp4": FILM}
    assert len(server.requests) == 2


def test_comparing_with_an_existing_file_does_not_read_the_body(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    size = 64 * len(BLOCK)
    disk.folder.mkdir()
    with (disk.folder / "film.mp4").open("wb") as file:
        file.write(BLOCK)
        file.truncate(size)
    url = server.serve("/film.mp4", Reply(blocks=64))
    hook.download(url, disk.destination)
    server.close()
    assert len(server.requests) == 1
    # What fits into the buffers of the connection may have been sent, but not the file.
    assert server.requests[0].sent < size / 2


def test_existing_object_of_the_right_length_is_not_written_again(
    bucket: Bucket, server: FileServer, hook: LumaHook
) -> None:
    same_start = FILM[:COMPARED_SIZE] + OTHER_FILM[COMPARED_SIZE:]
    bucket.put("film.mp4", same_start)
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, bucket.destination)
    assert bucket.files() == {"film.mp4": same_start}
    assert len(server.requests) == 1


def test_existing_file_of_the_same_length_that_begins_differently_is_not_taken_for_the_same(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", OTHER_FILM)
    url = server.serve("/film.mp4", Reply(FILM))
    for destination in (storage.destination, f"{storage.destination}/film.mp4"):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            hook.download(url, destination)
    assert storage.files() == {"film.mp4": OTHER_FILM}


@pytest.mark.parametrize("last", ["", "/film.mp4"])
def test_existing_file_is_compared_again_when_the_connection_breaks_meanwhile(
    last: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    disk.put("film.mp4", FILM)
    url = server.serve("/film.mp4", Reply(FILM, stop_after=1000), Reply(FILM))
    hook.download(url, disk.destination + last)
    assert disk.files() == {"film.mp4": FILM}
    assert len(server.requests) == 2


def test_existing_file_with_the_urls_own_name_is_kept_if_the_server_gives_no_length_and_it_begins_the_same(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    disk.put("film.mp4", FILM)
    url = server.serve("/film.mp4", Reply(FILM, announced=-1), Reply(OTHER_FILM, announced=-1))
    hook.download(url, disk.destination)
    with pytest.raises(FileExistsError):
        hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("gone", [Reply(status=404), Reply(FILM, announced=-1)], ids=["vanished", "no length"])
@pytest.mark.parametrize(("last", "name"), [("/film.mp4", None), ("", "mine.mp4")])
def test_existing_file_with_a_chosen_name_counts_as_the_same_only_if_confirmed(
    gone: Reply, last: str, name: str | None, storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    # It may be the video of an earlier run.
    existing = name or "film.mp4"
    storage.put(existing, FILM)
    url = server.serve("/film.mp4", Reply(FILM), gone)
    hook.download(url, storage.destination + last, name=name)
    with pytest.raises(FileExistsError, match="already exists"):
        hook.download(url + "?signature=s3cr3t", storage.destination + last, name=name)
    assert storage.files() == {existing: FILM}


def test_error_about_a_video_that_may_be_of_an_earlier_run_says_what_to_do(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    disk.put("film.mp4", OTHER_FILM)
    with pytest.raises(FileExistsError, match="earlier run.*mark this task as success.*for each run"):
        hook.download(server.url("/gone.mp4"), f"{disk.destination}/film.mp4")


def test_existing_video_whose_url_had_no_name_of_its_own_is_not_kept_for_another_that_has_vanished(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    disk.put("video.mp4", OTHER_FILM)
    with pytest.raises(FileExistsError, match="earlier run"):
        hook.download(server.url("/"), disk.destination)


def test_file_that_appears_during_the_download_is_left_as_it_is(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    def appear() -> None:
        # The storage's client remembers a listing without it.
        storage.put("other.mp4", b"other")
        list(ObjectStoragePath(storage.destination).iterdir())
        storage.put("film.mp4", b"precious")

    url = server.serve("/film.mp4", Reply(FILM, halfway=appear))
    with pytest.raises(FileExistsError, match="created by something else during the download"):
        hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": b"precious", "other.mp4": b"other"}


@pytest.mark.parametrize("appears", [False, True])
def test_disk_without_hard_links_can_be_written_to(
    appears: bool, disk: Disk, server: FileServer, hook: LumaHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: appears and disk.put("film.mp4", b"precious")))
    with pytest.raises(FileExistsError, match="created by something else") if appears else nullcontext():
        hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": b"precious" if appears else FILM}


def test_existing_file_of_another_length_is_replaced_only_with_overwrite(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", b"precious")
    url = server.serve("/film.mp4", Reply(FILM))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        hook.download(url + "?signature=s3cr3t", storage.destination)
    assert storage.files() == {"film.mp4": b"precious"}
    hook.download(url, storage.destination, overwrite=True)
    assert storage.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("status", [403, 404, 410])
def test_existing_file_is_kept_when_its_address_has_expired(
    status: int, storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", FILM)
    url = server.serve("/film.mp4", Reply(status=status))
    hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}


def test_downloaded_result_is_kept_after_luma_has_deleted_it(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_url(luma)
    hook = LumaHook(luma_conn)
    path = hook.download(url, disk.destination)
    content = path.read_bytes()
    luma.configure(result_ttl=0)
    assert hook.download(url, disk.destination) == path
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", ["appeared", "vanished"])
def test_stale_listing_of_the_object_store_is_not_relied_on(
    change: str, bucket: Bucket, server: FileServer, hook: LumaHook
) -> None:
    # The store's client caches listings, which do not show what others write or delete meanwhile.
    folder = ObjectStoragePath(bucket.destination)
    bucket.put("other.mp4", b"other")
    if change == "vanished":
        bucket.put("film.mp4", FILM)
    assert {path.name for path in folder.iterdir()} == set(bucket.files())
    url = server.serve("/film.mp4", Reply(FILM))
    if change == "vanished":
        bucket.s3.delete_object(Bucket=BUCKET, Key="videos/film.mp4")
        hook.download(url, bucket.destination)
        assert bucket.files() == {"film.mp4": FILM, "other.mp4": b"other"}
    else:
        bucket.put("film.mp4", b"precious")
        with pytest.raises(FileExistsError):
            hook.download(url, bucket.destination)
        assert bucket.files()["film.mp4"] == b"precious"

# SPDX-License-Identifier: Apache-2.0
"""A download writes the whole file or none, on every storage: the final name appears when the file is whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import store

from airflow_provider_luma.exceptions import LumaUnavailableError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.simulator.faults import Fault
from tests.support.calls import file_requests
from tests.support.downloads import Interrupted, result_url, sha256
from tests.support.file_server import FILM, FileServer, Reply, TcpRelay
from tests.support.storages import BUCKET, Bucket, Disk, Storage, aws_connection


def test_file_is_written_whole_into_a_folder(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/results/film.mp4", Reply(FILM))
    path = hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}
    assert isinstance(path, ObjectStoragePath)
    assert str(path) == f"{storage.destination}/film.mp4"
    assert path.read_bytes() == FILM


def test_file_is_written_under_the_name_of_the_destination(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/results/film.mp4", Reply(FILM))
    path = hook.download(url, ObjectStoragePath(f"{storage.destination}/sub/mine.mov"))
    assert storage.files() == {"sub/mine.mov": FILM}
    assert str(path) == f"{storage.destination}/sub/mine.mov"


def test_result_is_downloaded_without_sending_the_api_key(luma: Simulator, luma_conn: str, storage: Storage) -> None:
    url = result_url(luma)
    path = LumaHook(luma_conn).download(url, storage.destination)
    expected = requests.get(url, timeout=60).content
    assert storage.files() == {path.name: expected}
    assert len(expected) > 1000
    assert any(call.carried_authorization for call in luma.calls)
    assert not any(call.carried_authorization for call in file_requests(luma))


def test_final_name_appears_only_when_the_file_is_whole(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    during: list[list[str]] = []
    url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: during.append(list(storage.files()))))
    hook.download(url, storage.destination)
    assert len(during) == 1
    assert "film.mp4" not in during[0]
    assert list(storage.files()) == ["film.mp4"]


def test_overwritten_file_stays_until_the_new_one_is_whole(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", b"old")
    during: list[bytes] = []
    url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: during.append(storage.files()["film.mp4"])))
    hook.download(url, storage.destination, overwrite=True)
    assert during == [b"old"]
    assert storage.files() == {"film.mp4": FILM}


def test_failed_download_leaves_no_file(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=1000), Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, storage.destination)
    assert storage.files() == {}


def test_interrupted_download_leaves_no_file(
    storage: Storage, server: FileServer, hook: LumaHook, interrupt: Callable[[], None]
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, halfway=interrupt))
    with pytest.raises(Interrupted):
        hook.download(url, storage.destination)
    assert storage.files() == {}


def test_interrupted_or_failed_overwrite_keeps_the_old_file(
    storage: Storage, server: FileServer, hook: LumaHook, interrupt: Callable[[], None]
) -> None:
    storage.put("film.mp4", b"old")
    url = server.serve("/film.mp4", Reply(FILM, halfway=interrupt), Reply(FILM, stop_after=0))
    with pytest.raises(Interrupted):
        hook.download(url, storage.destination, overwrite=True)
    with pytest.raises(LumaUnavailableError):
        hook.download(url, storage.destination, overwrite=True)
    assert storage.files() == {"film.mp4": b"old"}


def test_error_of_the_storage_during_cleanup_does_not_hide_what_ended_the_download(
    bucket: Bucket,
    server: FileServer,
    hook: LumaHook,
    interrupt: Callable[[], None],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay = TcpRelay(int(s3_endpoint.rpartition(":")[2]))
    without_retries = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    endpoint = f"http://127.0.0.1:{relay.port}"
    monkeypatch.setenv("AIRFLOW_CONN_DYING_S3", aws_connection(endpoint, config_kwargs=without_retries))

    def disconnect_storage_and_interrupt() -> None:
        relay.close()
        interrupt()

    url = server.serve("/film.mp4", Reply(FILM, halfway=disconnect_storage_and_interrupt))
    try:
        with pytest.raises(Interrupted):
            hook.download(url, f"s3://dying_s3@{BUCKET}/videos")
    finally:
        store._STORE_CACHE.pop("s3-dying_s3", None)
    assert "film.mp4" not in bucket.files()


def test_file_shorter_than_its_announced_length_is_an_error(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    # It counts as a connection that broke: the rest is requested, and there is none.
    url = server.serve("/film.mp4", Reply(FILM, announced=len(FILM) + 1000))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)
    assert disk.files() == {}


def test_file_without_announced_length_ends_with_the_connection(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM, announced=-1))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_error_page_with_status_200_is_not_taken_for_the_video(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    page = Reply(b"<html>busy</html>", content_type="text/html; charset=utf-8", etag=None)
    refusal = Reply(b'{"code": 500, "msg": "busy", "data": null}', content_type="application/json", etag=None)
    url = server.serve("/film.mp4", page, refusal, Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_empty_answer_is_not_taken_for_the_video(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_url(luma)
    luma.configure(faults=[Fault(on="file", kind="empty", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(on="file", kind="cut", times=2)],
        [Fault(on="file", kind="cut_body", times=1)],
        [Fault(on="file", kind="cut_body", times=3)],
        [Fault(on="file", kind="html", times=2)],
        [Fault(on="file", kind="wrong_length", times=1)],
        [Fault(on="file", kind="cut_body", times=1), Fault(on="file", kind="no_range", skip=1)],
    ],
    ids=lambda faults: "+".join(fault.kind for fault in faults),
)
def test_transient_fault_of_the_service_is_waited_out(
    luma: Simulator, luma_conn: str, disk: Disk, faults: list[Fault]
) -> None:
    url = result_url(luma)
    expected = requests.get(url, timeout=60).content
    luma.configure(faults=faults)
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert sha256(path.read_bytes()) == sha256(expected)
    assert list(disk.files()) == [path.name]
    assert not any(call.carried_authorization for call in file_requests(luma))

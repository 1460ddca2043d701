# SPDX-License-Identifier: Apache-2.0
"""A broken download is resumed where it broke, or started over, and given up when it makes no progress."""

from __future__ import annotations

import re

import pytest

from airflow_provider_luma.exceptions import LumaUnavailableError
from airflow_provider_luma.files import progress
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.simulator.faults import Fault
from tests.support.calls import file_requests
from tests.support.downloads import new_download, result_url, sha256
from tests.support.file_server import CUT, FILM, OTHER_FILM, SHORT_FILM, FileServer, Reply
from tests.support.storages import Disk, Storage


def test_download_cut_in_the_middle_is_resumed_where_it_broke(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(FILM, stop_after=700_000), Reply(FILM))
    hook.download(url, storage.destination)
    assert sha256(storage.files()["film.mp4"]) == sha256(FILM)
    assert [request.range for request in server.requests] == [None, "bytes=1300000-", "bytes=2000000-"]
    assert sum(request.sent for request in server.requests) == len(FILM)


def test_download_of_a_result_is_resumed_where_it_broke(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_url(luma)
    luma.configure(faults=[Fault(on="file", kind="cut_body", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    first, second = file_requests(luma)
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={path.stat().st_size // 2}-"
    assert second.http_status == 206


def test_download_cut_before_the_first_byte_is_requested_again_without_a_range(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(stop_after=-1), Reply(FILM, stop_after=0), Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert [request.range for request in server.requests] == [None, None, None]


def test_download_from_a_server_without_ranges_starts_over(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT, ranges=False), Reply(FILM, ranges=False))
    hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("changed", [OTHER_FILM, SHORT_FILM, OTHER_FILM + FILM], ids=["same", "shorter", "longer"])
def test_download_of_a_file_whose_etag_changes_in_between_starts_over(
    changed: bytes, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(changed, etag='"two"'))
    hook.download(url, disk.destination)
    assert sha256(disk.files()["film.mp4"]) == sha256(changed)


def test_download_of_a_file_whose_length_changes_in_between_starts_over_without_an_etag_too(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    longer = OTHER_FILM + FILM
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT, etag=None), Reply(longer, etag=None))
    hook.download(url, disk.destination)
    assert sha256(disk.files()["film.mp4"]) == sha256(longer)


def test_broken_download_of_a_file_without_a_version_starts_over(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    # The rest might be that of another file of the same length.
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT, etag=None), Reply(OTHER_FILM, etag=None))
    hook.download(url, disk.destination)
    assert sha256(disk.files()["film.mp4"]) == sha256(OTHER_FILM)
    assert [request.range for request in server.requests] == [None, None]


@pytest.mark.parametrize("status", [200, 416])
def test_answer_200_or_416_to_a_request_for_the_rest_starts_over(
    status: int, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    refusal = Reply(OTHER_FILM, status=status, ranges=False)
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), refusal, Reply(FILM))
    hook.download(url, disk.destination)
    assert sha256(disk.files()["film.mp4"]) == sha256(FILM)
    assert [request.range for request in server.requests] == [None, f"bytes={CUT}-", None]


@pytest.mark.parametrize("status", [201, 203, 204, 206, 300, 416])
def test_only_an_answer_200_is_a_whole_file(status: int, disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(b"a page, or a piece", status=status), Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_download_is_given_up_after_several_attempts_without_progress(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError, match=r"film\.mp4"):
        hook.download(url, disk.destination)
    assert len(server.requests) == progress.MAX_ATTEMPTS_WITHOUT_PROGRESS
    assert disk.files() == {}


def test_download_that_makes_progress_is_resumed_any_number_of_times(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    steps = progress.MAX_ATTEMPTS_WITHOUT_PROGRESS * 3
    pieces = [Reply(FILM, stop_after=1000)] * steps
    url = server.serve("/film.mp4", *pieces, Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert len(server.requests) == steps + 1


@pytest.mark.parametrize("fault", ["no ranges", "wrong length", "another file each time"])
def test_download_that_has_to_start_over_again_and_again_is_given_up(
    fault: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    # After so many faults the server sends the file, so that the test ends in any case.
    many = range(200)
    replies = {
        "no ranges": [Reply(FILM, stop_after=CUT, ranges=False) for _ in many],
        "wrong length": [Reply(FILM, announced=len(FILM) + 9, ranges=False) for _ in many],
        "another file each time": [Reply(FILM, stop_after=CUT, etag=f'"{number}"') for number in many],
    }
    url = server.serve("/film.mp4", *replies[fault], Reply(FILM))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)
    assert len(server.requests) < 50
    assert disk.files() == {}


def test_progress_of_a_long_download_is_logged_without_the_urls_query(
    disk: Disk, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL", 0.0)
    download, messages = new_download()
    url = server.serve("/film.mp4", Reply(blocks=4))
    download.run(url + "?signature=s3cr3t", disk.destination, overwrite=False)
    told = [message for message in messages if message.startswith("Downloaded")]
    assert len(told) > 2
    pattern = rf"Downloaded \d\.\d MB of 4\.2 MB, \d+% of {re.escape(url)}"
    assert all(re.fullmatch(pattern, message) for message in told)
    assert told[-1] == f"Downloaded 4.2 MB of 4.2 MB, 100% of {url}"
    assert any(message.startswith("Wrote") and "4.2 MB" in message for message in messages)
    assert "s3cr3t" not in "".join(messages)


def test_short_download_is_logged_in_one_message(disk: Disk, server: FileServer) -> None:
    download, messages = new_download()
    download.run(server.serve("/film.mp4", Reply(FILM)), disk.destination, overwrite=False)
    assert messages == [f"Wrote {disk.destination}/film.mp4 (3.0 MB)"]


def test_interruption_of_a_download_is_logged_once(disk: Disk, server: FileServer) -> None:
    download, messages = new_download()
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(FILM))
    download.run(url, disk.destination, overwrite=False)
    assert sum("interrupted" in message for message in messages) == 1

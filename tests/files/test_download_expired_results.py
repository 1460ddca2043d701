# SPDX-License-Identifier: Apache-2.0
"""A result that is not at its address is fetched from a temporary one, or reported as expired."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_luma.exceptions import LumaNotFoundError, LumaUnavailableError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.simulator.faults import Fault
from tests.support.calls import file_requests
from tests.support.downloads import new_download, result_url
from tests.support.file_server import CUT, FILM, FileServer, Reply
from tests.support.storages import Disk


def test_expired_result_is_reported_as_expired(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_url(luma)
    luma.configure(result_ttl=0)
    with pytest.raises(LumaNotFoundError, match="expired") as raised:
        LumaHook(luma_conn).download(url, disk.destination)
    assert "14 days" in str(raised.value)
    assert disk.files() == {}


def test_result_is_downloaded_until_14_days_after_its_job(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url, day = result_url(luma), 86400
    luma.move_time(14 * day - 600)
    LumaHook(luma_conn).download(url, disk.destination)
    assert len(disk.files()) == 1
    luma.move_time(1200)
    with pytest.raises(LumaNotFoundError, match="expired"):
        LumaHook(luma_conn).download(url, f"{disk.destination}/another.mp4")
    assert len(disk.files()) == 1


def test_result_refused_at_its_address_is_downloaded_from_a_temporary_one(
    luma: Simulator, luma_conn: str, disk: Disk
) -> None:
    url = result_url(luma)
    expected = requests.get(url, timeout=60).content
    luma.configure(faults=[Fault(on="file", kind="refuse", code=403, style="status", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert disk.files() == {urlsplit(url).path.rpartition("/")[2]: expected}
    assert path.read_bytes() == expected
    calls = [call.on for call in luma.calls if call.on in ("file", "download_url")]
    assert calls[-3:] == ["file", "download_url", "file"]
    assert "/files/temporary/" in luma.calls[-1].path
    assert not any(call.carried_authorization for call in file_requests(luma))


def test_temporary_address_that_fails_too_is_an_error_after_one_request_for_it(
    luma: Simulator, luma_conn: str, disk: Disk
) -> None:
    url = result_url(luma)
    luma.configure(faults=[Fault(on="file", kind="refuse", code=403, style="status")])
    with pytest.raises(LumaNotFoundError):
        LumaHook(luma_conn).download(url, disk.destination)
    assert [call.on for call in luma.calls].count("download_url") == 1
    assert disk.files() == {}


def test_unavailable_service_does_not_make_a_result_count_as_expired(
    luma: Simulator, luma_conn: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only a definite answer may end all retries.
    monkeypatch.setattr("airflow_provider_luma.core.backoff.READ_RETRY_TIMEOUT", 0.2)
    url = result_url(luma)
    luma.configure(
        faults=[
            Fault(on="file", kind="refuse", code=403, style="status"),
            Fault(on="download_url", kind="html", code=503),
        ]
    )
    with pytest.raises(LumaUnavailableError):
        LumaHook(luma_conn).download(url, disk.destination)


def test_download_that_starts_over_continues_to_use_the_temporary_address(disk: Disk, server: FileServer) -> None:
    url = server.serve("/film.mp4", Reply(status=403))
    temporary = server.serve("/tmp/1", Reply(FILM, stop_after=CUT, ranges=False), Reply(FILM, ranges=False))
    download, _ = new_download(renew=lambda _: temporary)
    download.run(url, disk.destination, overwrite=False)
    assert disk.files() == {"film.mp4": FILM}


def test_temporary_address_that_expires_during_the_download_is_renewed(disk: Disk, server: FileServer) -> None:
    # It is valid for 20 minutes, and a long file over a slow connection may take longer.
    server.serve("/tmp/1", Reply(FILM, stop_after=CUT), Reply(status=403))
    server.serve("/tmp/2", Reply(FILM))
    temporary = iter([server.url("/tmp/1"), server.url("/tmp/2")])
    download, _ = new_download(renew=lambda _: next(temporary))
    download.run(server.serve("/film.mp4", Reply(status=403)), disk.destination, overwrite=False)
    assert disk.files() == {"film.mp4": FILM}

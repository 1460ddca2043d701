# SPDX-License-Identifier: Apache-2.0
"""LumaDownloadOperator on real storages: what it writes and returns, and which errors use no retries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaUnavailableError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.simulator import Simulator
from tests.support.downloads import result_url
from tests.support.file_server import FILM, OTHER_FILM, SHORT_FILM, FileServer, Reply
from tests.support.storages import Disk, Storage


def run(**arguments: Any) -> list[str]:
    return LumaDownloadOperator(task_id="download", **arguments).execute({})


def test_operator_returns_the_paths_it_has_written(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    urls = [server.serve("/a.mp4", Reply(FILM)), server.serve("/b.mp4", Reply(OTHER_FILM))]
    written = run(urls=urls, destination=storage.destination)
    assert written == [f"{storage.destination}/a.mp4", f"{storage.destination}/b.mp4"]
    assert all(type(path) is str for path in written)
    assert storage.files() == {"a.mp4": FILM, "b.mp4": OTHER_FILM}


@pytest.mark.parametrize("last", ["", "/", "/mine.mov"])
def test_operator_takes_a_single_url_too(last: str, disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/a.mp4", Reply(FILM))
    name = "mine.mov" if last == "/mine.mov" else "a.mp4"
    assert run(urls=url, destination=disk.destination + last) == [f"{disk.destination}/{name}"]
    assert disk.files() == {name: FILM}


def test_operator_downloads_a_result_of_luma(luma: Simulator, luma_conn: str, storage: Storage) -> None:
    url = result_url(luma)
    expected = requests.get(url, timeout=60).content
    (written,) = run(urls=[url], destination=storage.destination, luma_conn_id=luma_conn)
    assert storage.files() == {written.rpartition("/")[2]: expected}


def test_files_of_the_same_name_get_different_names_which_the_next_try_chooses_again(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    films = [FILM, OTHER_FILM, SHORT_FILM]
    urls = [server.serve(f"/{number}/film.mp4", Reply(film)) for number, film in enumerate(films)]
    written = run(urls=urls, destination=disk.destination)
    assert [Path(path).read_bytes() for path in written] == films
    assert len(set(written)) == 3
    before = {name: (disk.folder / name).stat().st_mtime_ns for name in disk.files()}
    assert run(urls=urls, destination=disk.destination) == written
    assert {name: (disk.folder / name).stat().st_mtime_ns for name in disk.files()} == before


def test_name_made_for_a_duplicate_is_not_that_of_another_file(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    films = {"/x/film.mp4": FILM, "/y/film.mp4": OTHER_FILM, "/z/2-film.mp4": FILM[::-1]}
    urls = [server.serve(path, Reply(film)) for path, film in films.items()]
    written = run(urls=urls, destination=disk.destination)
    assert len(set(written)) == 3
    assert [Path(path).read_bytes() for path in written] == list(films.values())


@pytest.mark.parametrize("last", ["result", "clip.3gp", "film.matroska", "v1.2"])
def test_operator_writes_a_single_file_under_the_name_that_the_hook_chooses(
    last: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve(f"/{last}", Reply(FILM))
    assert run(urls=[url], destination=disk.destination) == [f"{disk.destination}/{last}"]
    assert disk.files() == {last: FILM}


def test_operator_replaces_an_existing_file_only_with_overwrite(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    disk.put("film.mp4", b"old")
    url = server.serve("/film.mp4", Reply(FILM))
    with pytest.raises(AirflowFailException, match="overwrite=True"):
        run(urls=url, destination=disk.destination)
    assert disk.files() == {"film.mp4": b"old"}
    run(urls=url, destination=disk.destination, overwrite=True)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize(
    "arguments",
    [
        {"urls": []},
        {"urls": ""},
        {"destination": " "},
        {"destination": "/data/one.mp4", "urls": ["https://x.example/a.mp4", "https://x.example/b.mp4"]},
        {"urls": ["ftp://x.example/a.mp4"]},
        {"urls": [None]},
        {"urls": ["http://[::1/a.mp4"]},
    ],
    ids=str,
)
def test_invalid_argument_fails_the_task_without_using_its_retries(
    arguments: dict[str, Any], disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    with pytest.raises(AirflowFailException):
        run(**{"urls": server.url("/film.mp4"), "destination": disk.destination, **arguments})
    assert server.requests == []


def test_expired_result_fails_the_task_without_using_its_retries(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_url(luma)
    luma.configure(result_ttl=0)
    with pytest.raises(AirflowFailException, match="expired"):
        run(urls=url, destination=disk.destination)


def test_transient_error_leaves_the_retry_to_airflow_which_keeps_what_was_downloaded(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    first = server.serve("/a.mp4", Reply(FILM))
    second = server.serve("/b.mp4", Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError):
        run(urls=[first, second], destination=disk.destination)
    assert disk.files() == {"a.mp4": FILM}
    server.serve("/b.mp4", Reply(OTHER_FILM))
    run(urls=[first, second], destination=disk.destination)
    assert disk.files() == {"a.mp4": FILM, "b.mp4": OTHER_FILM}

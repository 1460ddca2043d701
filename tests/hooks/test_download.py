# SPDX-License-Identifier: Apache-2.0
"""Downloads: what arrives, under which name and when, over connections that break and from servers that lie."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import store
from file_server import BLOCK, FileServer, Relay, Reply
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from airflow_provider_luma.exceptions import (
    LumaError,
    LumaNotFoundError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks import download as module
from airflow_provider_luma.hooks.download import Download, destination_file, safe_name
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.simulator.faults import Fault

# Long enough to break where whole pieces of it have been written.
FILM = random.Random(1).randbytes(3_000_000)
OTHER_FILM = random.Random(2).randbytes(3_000_000)
SHORT_FILM = OTHER_FILM[:900_000]
CUT = 1_300_000
BUCKET = "films"

pytestmark = pytest.mark.usefixtures("short_pauses")


class Killed(BaseException):
    """What a signal raises in the middle of a transfer."""


# -- what the tests share


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def another_server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def hook(server: FileServer, set_connection: Callable[..., None]) -> LumaHook:
    """A hook whose service is on this machine, so that files of this machine may be fetched."""
    set_connection(server.url(""), timeout=10)
    return LumaHook()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


class Storage:
    """A folder to download to, and another way to look into it than the code under test has."""

    destination: str

    def files(self) -> dict[str, bytes]:
        raise NotImplementedError

    def put(self, name: str, content: bytes) -> None:
        raise NotImplementedError


class Disk(Storage):
    def __init__(self, folder: Path, destination: str) -> None:
        self.folder = folder
        self.destination = destination

    def files(self) -> dict[str, bytes]:
        found = self.folder.rglob("*")
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found if path.is_file()}

    def put(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)


class Bucket(Storage):
    def __init__(self, endpoint: str, destination: str, prefix: str) -> None:
        self.destination = destination
        self.prefix = prefix
        self.s3 = s3_client(endpoint)

    def files(self) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix).get("Contents", [])
        return {
            one["Key"].removeprefix(self.prefix): self.s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in listed
        }

    def put(self, name: str, content: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=content)


def s3_client(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def aws_connection(endpoint: str, **extra: Any) -> str:
    said = {"endpoint_url": endpoint, "region_name": "us-east-1", **extra}
    return json.dumps({"conn_type": "aws", "login": "testing", "password": "testing", "extra": said})


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket behind the connection my_s3."""
    monkeypatch.setenv("AIRFLOW_CONN_MY_S3", aws_connection(moto))
    requests.post(f"{moto}/moto-api/reset", timeout=10).raise_for_status()
    bucket = Bucket(moto, f"s3://my_s3@{BUCKET}/videos", "videos/")
    bucket.s3.create_bucket(Bucket=BUCKET)
    store._STORE_CACHE.pop("s3-my_s3", None)
    yield bucket
    store._STORE_CACHE.pop("s3-my_s3", None)


@pytest.fixture(params=["plain path", "file://", "s3://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    folder = tmp_path / "deep" / "videos"
    if request.param == "plain path":
        return Disk(folder, str(folder))
    if request.param == "file://":
        return Disk(folder, f"file://{folder}")
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "videos", str(tmp_path / "videos"))


@pytest.fixture
def killing() -> Iterator[Callable[[], None]]:
    """Interrupt the main thread from any other, as a signal does."""

    def _killed(*_: object) -> None:
        raise Killed

    before = signal.signal(signal.SIGUSR1, _killed)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def a_download(**changes: Any) -> tuple[Download, list[str]]:
    """Make a download of our own, and the lines it will log."""
    lines = Lines()
    log = logging.Logger("download", logging.DEBUG)
    log.addHandler(lines)

    def refuse(url: str) -> str:
        raise LumaNotFoundError(404, "no such file")

    parts = {"session": requests.Session, "timeout": 10.0, "service_is_public": False, "renew": refuse, "log": log}
    return Download(**{**parts, **changes}), lines.lines


def result_of(luma: Simulator) -> str:
    """Have a video made; return where it is."""
    hook = LumaHook()
    luma_task_id = hook.modify_video("Make it snow", luma.sample_url)
    return hook.wait_for_completion(luma_task_id, timeout=60, poll_interval=0.1).result_urls[0]


def file_calls(luma: Simulator) -> list[Any]:
    return [call for call in luma.calls if call.on == "file"]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- whole or not at all, on every storage


def test_a_file_arrives_whole_in_a_folder(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/results/film.mp4", Reply(FILM))
    path = hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}
    assert isinstance(path, ObjectStoragePath)
    assert str(path) == f"{storage.destination}/film.mp4"
    assert path.read_bytes() == FILM


def test_a_file_arrives_under_the_name_given(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/results/film.mp4", Reply(FILM))
    path = hook.download(url, ObjectStoragePath(f"{storage.destination}/sub/mine.mov"))
    assert storage.files() == {"sub/mine.mov": FILM}
    assert str(path) == f"{storage.destination}/sub/mine.mov"


def test_the_final_name_appears_only_when_the_file_is_whole(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    during: list[list[str]] = []
    url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: during.append(list(storage.files()))))
    hook.download(url, storage.destination)
    assert len(during) == 1
    assert "film.mp4" not in during[0]
    assert list(storage.files()) == ["film.mp4"]


def test_overwriting_shows_the_old_file_until_the_new_one_is_whole(
    storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", b"old")
    during: list[bytes] = []
    url = server.serve("/film.mp4", Reply(FILM, halfway=lambda: during.append(storage.files()["film.mp4"])))
    hook.download(url, storage.destination, overwrite=True)
    assert during == [b"old"]
    assert storage.files() == {"film.mp4": FILM}


def test_nothing_is_left_of_a_download_that_fails(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=1000), Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, storage.destination)
    assert storage.files() == {}


def test_nothing_is_left_of_a_download_that_is_killed(
    storage: Storage, server: FileServer, hook: LumaHook, killing: Callable[[], None]
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, halfway=killing))
    with pytest.raises(Killed):
        hook.download(url, storage.destination)
    assert storage.files() == {}


def test_a_killed_or_failed_overwrite_leaves_the_old_file(
    storage: Storage, server: FileServer, hook: LumaHook, killing: Callable[[], None]
) -> None:
    storage.put("film.mp4", b"old")
    url = server.serve("/film.mp4", Reply(FILM, halfway=killing), Reply(FILM, stop_after=0))
    with pytest.raises(Killed):
        hook.download(url, storage.destination, overwrite=True)
    with pytest.raises(LumaUnavailableError):
        hook.download(url, storage.destination, overwrite=True)
    assert storage.files() == {"film.mp4": b"old"}


def test_a_store_that_fails_as_well_does_not_hide_what_ended_the_download(
    bucket: Bucket,
    server: FileServer,
    hook: LumaHook,
    killing: Callable[[], None],
    moto: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay = Relay(int(moto.rpartition(":")[2]))
    impatient = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    endpoint = f"http://127.0.0.1:{relay.port}"
    monkeypatch.setenv("AIRFLOW_CONN_DYING_S3", aws_connection(endpoint, config_kwargs=impatient))

    def both() -> None:
        relay.close()
        killing()

    url = server.serve("/film.mp4", Reply(FILM, halfway=both))
    try:
        with pytest.raises(Killed):
            hook.download(url, f"s3://dying_s3@{BUCKET}/videos")
    finally:
        store._STORE_CACHE.pop("s3-dying_s3", None)
    assert "film.mp4" not in bucket.files()


def test_the_length_of_a_film_is_what_the_server_said(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    # Too long an announcement is a connection that breaks; the rest is asked for, and there is none.
    url = server.serve("/film.mp4", Reply(FILM, announced=len(FILM) + 1000))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)
    assert disk.files() == {}


def test_a_film_without_a_length_is_taken_to_the_end_of_the_connection(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, announced=-1))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_an_error_page_with_status_200_is_not_taken_for_the_film(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    page = Reply(b"<html>busy</html>", content_type="text/html; charset=utf-8", etag=None)
    refusal = Reply(b'{"code": 500, "msg": "busy", "data": null}', content_type="application/json", etag=None)
    url = server.serve("/film.mp4", page, refusal, Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_an_empty_answer_is_not_taken_for_the_film(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    luma.configure(faults=[Fault(on="file", kind="empty", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert path.stat().st_size > 0


def test_a_result_is_fetched_without_the_api_key(
    luma: Simulator, luma_conn: str, storage: Storage, tmp_path: Path
) -> None:
    url = result_of(luma)
    path = LumaHook(luma_conn).download(url, storage.destination)
    expected = requests.get(url, timeout=10).content
    assert storage.files() == {path.name: expected}
    assert len(expected) > 1000
    assert any(call.carried_authorization for call in luma.calls)
    assert not any(call.carried_authorization for call in file_calls(luma))


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
def test_passing_trouble_at_the_service_is_waited_out(
    luma: Simulator, luma_conn: str, disk: Disk, faults: list[Fault]
) -> None:
    url = result_of(luma)
    expected = requests.get(url, timeout=10).content
    luma.configure(faults=faults)
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert sha(path.read_bytes()) == sha(expected)
    assert list(disk.files()) == [path.name]
    assert not any(call.carried_authorization for call in file_calls(luma))


# -- where a file goes

FOLDERS = [
    "/data/videos",
    "/data/videos/",
    "/data/v1.mp4/",
    "/data/v1.2",
    "/data/.hidden",
    "file:///data/videos",
    f"s3://my_s3@{BUCKET}",
    f"s3://my_s3@{BUCKET}/",
    f"s3://my_s3@{BUCKET}/videos",
    "s3://my_s3@media.example.com",
    "s3://films.com",
    "relative/videos",
]
FILES = ["/data/mine.mp4", "/data/mine.MOV", "/data/mine.webm", "mine.avi", "file:///data/mine.m4v", "/data/mine.3gp"]


def absolute(destination: str) -> str:
    return destination if "://" in destination else str(Path(destination).absolute())


@pytest.mark.parametrize("destination", FOLDERS)
def test_a_destination_without_an_extension_is_a_folder(destination: str) -> None:
    assert str(destination_file("https://x.example/a/film.mp4", destination)) == (
        absolute(destination).removesuffix("/") + "/film.mp4"
    )


@pytest.mark.parametrize("destination", FILES)
def test_a_destination_with_an_extension_is_the_file(destination: str) -> None:
    assert str(destination_file("https://x.example/a/film.mp4", destination)) == absolute(destination)
    path = ObjectStoragePath(absolute(destination))
    assert destination_file("https://x.example/a/film.mp4", path) is path


NAMES = {
    "film.mp4": "film.mp4",
    "a%20film.mp4": "a_film.mp4",
    "film.mp4?sig=../../x#../y": "film.mp4",
    "../../etc/passwd": "passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd": "passwd",
    "..%5c..%5cwindows%5cwin.ini": "win.ini",
    "..\\..\\win.ini": "win.ini",
    "fi%00lm.mp4": "fi_lm.mp4",
    "": "video.mp4",
    "folder/": "folder",
    "..": "video.mp4",
    "%2e": "video.mp4",
    ".bashrc": "bashrc",
    "-rf": "rf",
    "%F0%9F%8E%AC": "video.mp4",
}


@pytest.mark.parametrize(("last", "name"), NAMES.items())
def test_the_name_is_made_of_what_is_harmless_in_the_url(last: str, name: str) -> None:
    assert safe_name(f"https://x.example/{last}") == name


@pytest.mark.parametrize("last", ["видео.mp4", "%E8%A7%86%E9%A2%91.mp4", "x" * 500 + ".mp4", "-_.mp4"])
def test_whatever_becomes_of_the_name_its_extension_stays(last: str) -> None:
    assert safe_name(f"https://x.example/{last}").endswith(".mp4")


def is_harmless(name: str) -> bool:
    return 0 < len(name) <= 200 and name[0] not in ".-" and not set(name) & set("/\\\0:*?[]{}$~ \n") and name.isascii()


@pytest.mark.parametrize("last", ["x" * 5000, "a" * 30 + "." + "b" * 119, "a" * 30 + "-" + "b" * 119])
def test_a_very_long_name_is_cut_to_a_harmless_one(last: str) -> None:
    assert is_harmless(safe_name(f"https://x.example/{last}"))


@given(st.text(max_size=300) | st.text(st.sampled_from("./\\%2eE5cfF0 -_~\0é"), max_size=300))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_no_url_leads_out_of_the_folder(last: str) -> None:
    url = f"https://x.example/{last}"
    assert is_harmless(safe_name(url))
    for folder in ("/data/videos", f"s3://{BUCKET}/videos"):
        path = destination_file(url, folder)
        assert str(path) == f"{folder}/{safe_name(url)}"


@pytest.mark.parametrize("last", ["/..%2f..%2fescaped.mp4", "/..%5c..%5cescaped.mp4", "/%2e%2e/%2e%2e/escaped.mp4"])
def test_a_hostile_name_is_written_inside_the_folder(
    last: str, tmp_path: Path, server: FileServer, hook: LumaHook
) -> None:
    # Clients write such paths in their own ways.
    server.serve("*", Reply(FILM))
    hook.download(server.url(last), str(tmp_path / "a" / "videos"))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found == [tmp_path / "a" / "videos" / "escaped.mp4"]


@pytest.mark.parametrize("folder", ["season [1]", "what?now", "all*", "50% off", "a#b"])
def test_a_folder_may_have_any_name(folder: str, tmp_path: Path, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, str(tmp_path / folder))
    assert Disk(tmp_path, "").files() == {f"{folder}/film.mp4": FILM}


@pytest.mark.parametrize("folder", ["season [1]", "all*", "a{b}"])
def test_a_key_may_have_any_name(folder: str, bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
    bucket.put("season 1/film.mp4", b"another")
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, f"{bucket.destination}/{folder}")
    assert bucket.files() == {f"{folder}/film.mp4": FILM, "season 1/film.mp4": b"another"}


def test_a_folder_that_is_there_is_not_taken_for_the_file(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    # By its extension the destination is a file, but there is a folder of that name.
    disk.put("kept.txt", b"kept")
    target = disk.folder / "run.v2"
    target.mkdir()
    url = server.serve("/film.mp4", Reply(FILM, announced=-1))
    for overwrite in (False, True):
        with pytest.raises(LumaValidationError, match=r"run\.v2 is a folder"):
            hook.download(url, str(target), overwrite=overwrite)
    assert disk.files() == {"kept.txt": b"kept"}


def test_a_bucket_may_have_a_dot_in_its_name(bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
    bucket.s3.create_bucket(Bucket="media.example.com")
    url = server.serve("/film.mp4", Reply(FILM))
    assert str(hook.download(url, "s3://my_s3@media.example.com")) == "s3://my_s3@media.example.com/film.mp4"
    assert bucket.s3.get_object(Bucket="media.example.com", Key="film.mp4")["Body"].read() == FILM


# -- connections that break


def test_cut_in_the_middle_it_goes_on_where_it_broke(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(FILM, stop_after=700_000), Reply(FILM))
    hook.download(url, storage.destination)
    assert sha(storage.files()["film.mp4"]) == sha(FILM)
    assert [seen.range for seen in server.seen] == [None, "bytes=1300000-", "bytes=2000000-"]
    assert sum(seen.sent for seen in server.seen) == len(FILM)


def test_the_simulator_is_resumed_where_it_broke(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    luma.configure(faults=[Fault(on="file", kind="cut_body", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    first, second = file_calls(luma)
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={path.stat().st_size // 2}-"
    assert second.http_status == 206


def test_cut_before_the_body_it_is_asked_for_again(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(stop_after=-1), Reply(FILM, stop_after=0), Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert [seen.range for seen in server.seen] == [None, None, None]


def test_a_server_without_ranges_starts_over(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT, ranges=False), Reply(FILM, ranges=False))
    hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("changed", [OTHER_FILM, SHORT_FILM, OTHER_FILM + FILM], ids=["same", "shorter", "longer"])
def test_a_file_that_changes_in_between_starts_over(
    changed: bytes, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(changed, etag='"two"'))
    hook.download(url, disk.destination)
    assert sha(disk.files()["film.mp4"]) == sha(changed)


def test_a_file_that_changes_its_length_without_an_etag_starts_over(
    disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    longer = OTHER_FILM + FILM
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT, etag=None), Reply(longer, etag=None))
    hook.download(url, disk.destination)
    assert sha(disk.files()["film.mp4"]) == sha(longer)


def test_a_server_that_never_answers_is_given_up(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError, match=r"film\.mp4"):
        hook.download(url, disk.destination)
    assert len(server.seen) == module.MAX_FRUITLESS_ATTEMPTS
    assert disk.files() == {}


def test_bytes_make_up_for_broken_connections(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    steps = module.MAX_FRUITLESS_ATTEMPTS * 3
    pieces = [Reply(FILM, stop_after=1000)] * steps
    url = server.serve("/film.mp4", *pieces, Reply(FILM))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert len(server.seen) == steps + 1


@pytest.mark.parametrize("lie", ["no ranges", "wrong length", "another file each time"])
def test_a_download_that_never_gets_further_is_given_up(
    lie: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    # At some point the server gives in, lest the test run for ever.
    many = range(200)
    replies = {
        "no ranges": [Reply(FILM, stop_after=CUT, ranges=False) for _ in many],
        "wrong length": [Reply(FILM, announced=len(FILM) + 9, ranges=False) for _ in many],
        "another file each time": [Reply(FILM, stop_after=CUT, etag=f'"{number}"') for number in many],
    }
    url = server.serve("/film.mp4", *replies[lie], Reply(FILM))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)
    assert len(server.seen) < 50
    assert disk.files() == {}


def test_progress_of_a_long_file_is_told(disk: Disk, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRESS_INTERVAL", 0.0)
    download, lines = a_download()
    url = server.serve("/film.mp4", Reply(blocks=4))
    download.run(url + "?signature=s3cr3t", disk.destination, overwrite=False)
    told = [line for line in lines if line.startswith("Downloaded")]
    assert len(told) > 2
    assert all(re.fullmatch(rf"Downloaded \d\.\d MB of 4\.2 MB, \d+% of {re.escape(url)}", line) for line in told)
    assert told[-1] == f"Downloaded 4.2 MB of 4.2 MB, 100% of {url}"
    assert any(line.startswith("Wrote") and "4.2 MB" in line for line in lines)
    assert "s3cr3t" not in "".join(lines)


def test_a_short_file_is_told_of_in_one_line(disk: Disk, server: FileServer) -> None:
    download, lines = a_download()
    download.run(server.serve("/film.mp4", Reply(FILM)), disk.destination, overwrite=False)
    assert lines == [f"Wrote {disk.destination}/film.mp4 (3.0 MB)"]


def test_a_broken_connection_is_told_of(disk: Disk, server: FileServer) -> None:
    download, lines = a_download()
    url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(FILM))
    download.run(url, disk.destination, overwrite=False)
    assert sum("broke off" in line for line in lines) == 1


# -- a file that is there already


def test_a_whole_file_is_not_fetched_again(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    body_was_read = threading.Event()
    url = server.serve("/film.mp4", Reply(FILM), Reply(blocks=64, announced=len(FILM), halfway=body_was_read.set))
    path = hook.download(url, disk.destination)
    before = (disk.folder / "film.mp4").stat()
    assert hook.download(url, disk.destination) == path
    after = (disk.folder / "film.mp4").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert disk.files() == {"film.mp4": FILM}
    assert len(server.seen) == 2


def test_the_body_of_a_file_that_is_there_is_not_read(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    size = 64 * len(BLOCK)
    disk.folder.mkdir()
    with (disk.folder / "film.mp4").open("wb") as file:
        file.truncate(size)
    url = server.serve("/film.mp4", Reply(blocks=64))
    hook.download(url, disk.destination)
    server.close()
    assert len(server.seen) == 1
    # What fits into the buffers of the connection may have been sent, but not the file.
    assert server.seen[0].sent < size / 2


def test_a_whole_object_is_not_written_again(bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
    bucket.put("film.mp4", OTHER_FILM)
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, bucket.destination)
    assert bucket.files() == {"film.mp4": OTHER_FILM}
    assert len(server.seen) == 1


def test_another_file_of_that_name_is_not_replaced_unless_told(
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
def test_a_file_that_is_there_is_kept_when_its_address_has_expired(
    status: int, storage: Storage, server: FileServer, hook: LumaHook
) -> None:
    storage.put("film.mp4", FILM)
    url = server.serve("/film.mp4", Reply(status=status))
    hook.download(url, storage.destination)
    assert storage.files() == {"film.mp4": FILM}


def test_a_whole_result_is_kept_after_it_has_expired(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    hook = LumaHook(luma_conn)
    path = hook.download(url, disk.destination)
    content = path.read_bytes()
    luma.configure(result_ttl=0)
    assert hook.download(url, disk.destination) == path
    assert path.read_bytes() == content


@pytest.mark.parametrize("now", ["appeared", "vanished"])
def test_what_was_listed_earlier_is_not_believed(now: str, bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
    # The store's client remembers listings; what someone else does meanwhile is not in them.
    folder = ObjectStoragePath(bucket.destination)
    bucket.put("other.mp4", b"other")
    if now == "vanished":
        bucket.put("film.mp4", FILM)
    assert {path.name for path in folder.iterdir()} == set(bucket.files())
    url = server.serve("/film.mp4", Reply(FILM))
    if now == "vanished":
        bucket.s3.delete_object(Bucket=BUCKET, Key="videos/film.mp4")
        hook.download(url, bucket.destination)
        assert bucket.files() == {"film.mp4": FILM, "other.mp4": b"other"}
    else:
        bucket.put("film.mp4", b"precious")
        with pytest.raises(FileExistsError):
            hook.download(url, bucket.destination)
        assert bucket.files()["film.mp4"] == b"precious"


# -- addresses that are refused


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example.com/film.mp4",
        "file:///etc/passwd",
        "data:video/mp4;base64,AAAA",
        "http:///film.mp4",
        "https://",
        "films/film.mp4",
        "//files.example.com/film.mp4",
        "",
        None,
        "http://[::1/film.mp4",
        "http://files.example.com:99999/film.mp4",
        "http://two words.example.com/film.mp4",
    ],
)
def test_what_is_no_web_address_is_refused(url: Any, disk: Disk, hook: LumaHook) -> None:
    with pytest.raises(LumaValidationError):
        hook.download(url, disk.destination)
    assert disk.files() == {}


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/film.mp4", "data:text/plain,hello", "http://[::1/film.mp4"]
)
def test_a_redirect_away_from_the_web_is_refused(location: str, disk: Disk, server: FileServer, hook: LumaHook) -> None:
    with pytest.raises(LumaValidationError):
        hook.download(server.moved("/film.mp4", location), disk.destination)
    assert len(server.seen) == 1
    assert disk.files() == {}


@pytest.fixture
def public_hook(server: FileServer, set_connection: Callable[..., None]) -> LumaHook:
    """A hook whose service is on the Internet, for which the server stands in as the proxy."""
    set_connection("https://api.kie.ai:443", proxies={"http": server.url("")}, trust_env=False, timeout=10)
    return LumaHook()


PRIVATE = ["127.0.0.1", "localhost", "10.0.0.7", "169.254.169.254", "[::1]", "0x7f.1", "files.internal"]


@pytest.mark.parametrize("host", PRIVATE)
def test_a_public_service_cannot_send_us_into_a_private_network(
    host: str, disk: Disk, server: FileServer, public_hook: LumaHook
) -> None:
    private = server.serve(f"http://{host}/film.mp4", Reply(FILM)).removeprefix(server.url(""))
    server.moved("http://files.example.com/film.mp4", private)
    with pytest.raises(LumaValidationError, match="private"):
        public_hook.download("http://files.example.com/film.mp4", disk.destination)
    with pytest.raises(LumaValidationError, match="private"):
        public_hook.download(private, disk.destination)
    assert [seen.path for seen in server.seen] == ["http://files.example.com/film.mp4"]
    assert disk.files() == {}


def test_a_public_file_is_fetched_over_public_redirects(disk: Disk, server: FileServer, public_hook: LumaHook) -> None:
    server.moved("http://files.example.com/film.mp4", "http://cdn.example.com/x")
    server.moved("http://cdn.example.com/x", "/y")
    server.serve("http://cdn.example.com/y", Reply(FILM))
    public_hook.download("http://files.example.com/film.mp4", disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("trick", ["http://127.0.0.1:{port}\\@files.example.com/film.mp4"])
def test_an_address_that_two_parsers_read_differently_leads_nowhere_private(
    trick: str, disk: Disk, server: FileServer, another_server: FileServer
) -> None:
    url = trick.format(port=another_server.port)
    download, _ = a_download(service_is_public=True)
    with pytest.raises(LumaError):
        download.run(url, disk.destination, overwrite=False)
    assert another_server.seen == []
    assert disk.files() == {}


def test_redirects_end_somewhere(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    server.serve("/6", Reply(FILM))
    for number in range(6):
        server.moved(f"/{number}", f"/{number + 1}")
    with pytest.raises(LumaUnavailableError, match="redirects"):
        hook.download(server.url("/0"), disk.destination)
    assert "/6" not in [seen.path for seen in server.seen]
    hook.download(server.url("/1"), f"{disk.destination}/mine.mp4")
    assert disk.files() == {"mine.mp4": FILM}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_carries_no_credentials(
    status: int, disk: Disk, server: FileServer, another_server: FileServer, hook: LumaHook
) -> None:
    target = another_server.serve("/real.mp4", Reply(FILM, stop_after=CUT), Reply(FILM))
    url = server.moved("/film.mp4", target, status)
    hook.download(url.replace("http://", "http://user:hunter2@"), disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert len(another_server.seen) == 2
    for seen in another_server.seen:
        assert "authorization" not in seen.headers
        assert "cookie" not in seen.headers


def test_no_request_for_a_file_carries_the_api_key(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    key = hook.get_luma_connection().api_key
    hook.download(server.serve("/film.mp4", Reply(FILM, stop_after=9), Reply(FILM)), disk.destination)
    assert len(server.seen) == 2
    assert not any(key in value for seen in server.seen for value in seen.headers.values())


def test_a_redirect_with_letters_of_any_alphabet_is_followed(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    server.serve("/vid%C3%A9o", Reply(FILM))
    # On the wire a Location may be UTF-8, which http.server writes if it is told the bytes.
    url = server.moved("/film.mp4", "/vidéo".encode().decode("latin-1"))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("trouble", ["refused", "redirected", "missing"])
def test_the_secret_part_of_an_address_is_neither_logged_nor_raised(
    trouble: str, disk: Disk, server: FileServer, free_port: int
) -> None:
    download, lines = a_download()
    closed = f"http://127.0.0.1:{free_port}/film.mp4?signature=s3cr3t"
    url = {
        "refused": closed,
        "redirected": server.moved("/film.mp4", closed),
        "missing": server.url("/nothing.mp4?signature=s3cr3t"),
    }[trouble]
    with pytest.raises(LumaError) as raised:
        download.run(url, disk.destination, overwrite=False)
    assert "s3cr3t" not in str(raised.value)
    assert "s3cr3t" not in "".join(lines)


def test_a_password_in_an_address_is_neither_logged_nor_raised(disk: Disk, server: FileServer) -> None:
    download, lines = a_download()
    url = server.serve("/film.mp4", Reply(stop_after=-1)).replace("http://", "http://user:hunter2@")
    with pytest.raises(LumaError) as raised:
        download.run(url, disk.destination, overwrite=False)
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in "".join(lines)


# -- results that have expired, and temporary addresses


def test_an_expired_result_is_said_to_have_expired(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    luma.configure(result_ttl=0)
    with pytest.raises(LumaNotFoundError, match="expired") as raised:
        LumaHook(luma_conn).download(url, disk.destination)
    assert "14 days" in str(raised.value)
    assert disk.files() == {}


def test_a_result_refused_at_its_address_is_fetched_from_a_temporary_one(
    luma: Simulator, luma_conn: str, disk: Disk
) -> None:
    url = result_of(luma)
    expected = requests.get(url, timeout=10).content
    luma.configure(faults=[Fault(on="file", kind="refuse", code=403, style="status", times=1)])
    path = LumaHook(luma_conn).download(url, disk.destination)
    assert disk.files() == {urlsplit(url).path.rpartition("/")[2]: expected}
    assert path.read_bytes() == expected
    asked = [call.on for call in luma.calls if call.on in ("file", "download_url")]
    assert asked[-3:] == ["file", "download_url", "file"]
    assert "/files/temporary/" in luma.calls[-1].path
    assert not any(call.carried_authorization for call in file_calls(luma))


def test_a_temporary_address_that_fails_too_is_the_end(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    luma.configure(faults=[Fault(on="file", kind="refuse", code=403, style="status")])
    with pytest.raises(LumaNotFoundError):
        LumaHook(luma_conn).download(url, disk.destination)
    assert [call.on for call in luma.calls].count("download_url") == 1
    assert disk.files() == {}


def test_a_service_out_of_order_does_not_make_a_result_expired(
    luma: Simulator, luma_conn: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only a definite answer may end all retries.
    monkeypatch.setattr("airflow_provider_luma.hooks.luma.READ_PATIENCE", 0.2)
    url = result_of(luma)
    luma.configure(
        faults=[
            Fault(on="file", kind="refuse", code=403, style="status"),
            Fault(on="download_url", kind="html", code=503),
        ]
    )
    with pytest.raises(LumaUnavailableError):
        LumaHook(luma_conn).download(url, disk.destination)


def test_a_download_that_starts_over_stays_with_the_temporary_address(disk: Disk, server: FileServer) -> None:
    url = server.serve("/film.mp4", Reply(status=403))
    temporary = server.serve("/tmp/1", Reply(FILM, stop_after=CUT, ranges=False), Reply(FILM, ranges=False))
    download, _ = a_download(renew=lambda _: temporary)
    download.run(url, disk.destination, overwrite=False)
    assert disk.files() == {"film.mp4": FILM}


def test_a_temporary_address_that_runs_out_under_way_is_renewed(disk: Disk, server: FileServer) -> None:
    # They hold for 20 minutes, which a long file over a bad line may outlast.
    server.serve("/tmp/1", Reply(FILM, stop_after=CUT), Reply(status=403))
    server.serve("/tmp/2", Reply(FILM))
    temporary = iter([server.url("/tmp/1"), server.url("/tmp/2")])
    download, _ = a_download(renew=lambda _: next(temporary))
    download.run(server.serve("/film.mp4", Reply(status=403)), disk.destination, overwrite=False)
    assert disk.files() == {"film.mp4": FILM}


# -- constant memory

STREAM = """
import json, sys, threading, time
import psutil
from airflow.sdk import ObjectStoragePath
from airflow_provider_luma.hooks.luma import LumaHook
url, small, destination = sys.argv[1:]
hook = LumaHook()
# Clients, connections and import on first use belong to the baseline.
hook.download(small, destination + "/warm.mp4", overwrite=True)
me, peak, done = psutil.Process(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, me.memory_info().rss)
baseline = me.memory_info().rss
watcher = threading.Thread(target=watch)
watcher.start()
started = time.monotonic()
path = hook.download(url, destination, overwrite=True)
seconds = time.monotonic() - started
done.set()
watcher.join()
print(json.dumps({"growth": peak - baseline, "seconds": seconds, "size": path.stat().st_size}))
"""


def streamed(server: FileServer, destination: str, blocks: int) -> dict[str, float]:
    small = server.serve("/small.mp4", Reply(FILM))
    url = server.serve("/long.mp4", Reply(blocks=blocks))
    done = subprocess.run(
        [sys.executable, "-c", STREAM, url, small, destination],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{told['growth'] / 1e6:.0f} MB more, {told['size'] / 1e6 / told['seconds']:.0f} MB/s")
    return told


def test_half_a_gigabyte_to_a_disk_takes_little_memory(
    disk: Disk, server: FileServer, set_connection: Callable[..., None]
) -> None:
    set_connection(server.url(""))
    told = streamed(server, f"file://{disk.folder}", 500)
    assert told["size"] == 500 * len(BLOCK)
    assert told["growth"] < 32e6
    with (disk.folder / "long.mp4").open("rb") as file:
        assert all(file.read(len(BLOCK)) == BLOCK for _ in range(500))
    (disk.folder / "long.mp4").unlink()
    assert list(disk.files()) == ["warm.mp4"]


def test_a_long_file_to_s3_takes_little_memory(
    bucket: Bucket, server: FileServer, set_connection: Callable[..., None]
) -> None:
    set_connection(server.url(""))
    told = streamed(server, bucket.destination, 100)
    assert told["size"] == 100 * len(BLOCK)
    # The client of the store holds a part of 50 MB, more than once; the file itself would come on top of that.
    assert told["growth"] < 200e6
    files = bucket.files()
    assert sorted(files) == ["long.mp4", "warm.mp4"]
    assert sha(files["long.mp4"]) == sha(BLOCK * 100)


# -- the operator


def run(**arguments: Any) -> list[str]:
    return LumaDownloadOperator(task_id="download", **arguments).execute({})


def test_the_operator_returns_what_it_wrote(storage: Storage, server: FileServer, hook: LumaHook) -> None:
    urls = [server.serve("/a.mp4", Reply(FILM)), server.serve("/b.mp4", Reply(OTHER_FILM))]
    written = run(urls=urls, destination=storage.destination)
    assert written == [f"{storage.destination}/a.mp4", f"{storage.destination}/b.mp4"]
    assert all(type(path) is str for path in written)
    assert storage.files() == {"a.mp4": FILM, "b.mp4": OTHER_FILM}


@pytest.mark.parametrize("last", ["", "/", "/mine.mov"])
def test_the_operator_takes_one_address_too(last: str, disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/a.mp4", Reply(FILM))
    name = "mine.mov" if last == "/mine.mov" else "a.mp4"
    assert run(urls=url, destination=disk.destination + last) == [f"{disk.destination}/{name}"]
    assert disk.files() == {name: FILM}


def test_the_operator_fetches_results(luma: Simulator, luma_conn: str, storage: Storage) -> None:
    url = result_of(luma)
    expected = requests.get(url, timeout=10).content
    (written,) = run(urls=[url], destination=storage.destination, luma_conn_id=luma_conn)
    assert storage.files() == {written.rpartition("/")[2]: expected}


def test_files_of_one_name_get_names_of_their_own_and_keep_them(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    films = [FILM, OTHER_FILM, SHORT_FILM]
    urls = [server.serve(f"/{number}/film.mp4", Reply(film)) for number, film in enumerate(films)]
    written = run(urls=urls, destination=disk.destination)
    assert [Path(path).read_bytes() for path in written] == films
    assert len(set(written)) == 3
    before = {name: (disk.folder / name).stat().st_mtime_ns for name in disk.files()}
    assert run(urls=urls, destination=disk.destination) == written
    assert {name: (disk.folder / name).stat().st_mtime_ns for name in disk.files()} == before


def test_a_name_of_its_own_is_not_another_files_name(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    films = {"/x/film.mp4": FILM, "/y/film.mp4": OTHER_FILM, "/z/2-film.mp4": FILM[::-1]}
    urls = [server.serve(path, Reply(film)) for path, film in films.items()]
    written = run(urls=urls, destination=disk.destination)
    assert len(set(written)) == 3
    assert [Path(path).read_bytes() for path in written] == list(films.values())


@pytest.mark.parametrize("last", ["result", "clip.3gp", "film.matroska", "v1.2"])
def test_the_operator_writes_where_the_hook_does(last: str, disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve(f"/{last}", Reply(FILM))
    assert run(urls=[url], destination=disk.destination) == [f"{disk.destination}/{last}"]
    assert disk.files() == {last: FILM}


def test_the_operator_replaces_only_if_told(disk: Disk, server: FileServer, hook: LumaHook) -> None:
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
def test_what_can_never_work_fails_the_task_at_once(
    arguments: dict[str, Any], disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    with pytest.raises(AirflowFailException):
        run(**{"urls": server.url("/film.mp4"), "destination": disk.destination, **arguments})
    assert server.seen == []


def test_an_expired_result_fails_the_task_at_once(luma: Simulator, luma_conn: str, disk: Disk) -> None:
    url = result_of(luma)
    luma.configure(result_ttl=0)
    with pytest.raises(AirflowFailException, match="expired"):
        run(urls=url, destination=disk.destination)


def test_passing_trouble_leaves_the_retry_to_airflow(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    first = server.serve("/a.mp4", Reply(FILM))
    second = server.serve("/b.mp4", Reply(stop_after=-1))
    with pytest.raises(LumaUnavailableError):
        run(urls=[first, second], destination=disk.destination)
    assert disk.files() == {"a.mp4": FILM}
    server.serve("/b.mp4", Reply(OTHER_FILM))
    run(urls=[first, second], destination=disk.destination)
    assert disk.files() == {"a.mp4": FILM, "b.mp4": OTHER_FILM}

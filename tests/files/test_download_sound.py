# SPDX-License-Identifier: Apache-2.0
"""The sound of another video is put under a downloaded result: unchanged, in time, and recognised by the next try."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from tests.support.file_server import FILM, FileServer, Reply
from tests.support.films import clicks, film, modified, pictures, stream_seconds
from tests.support.storages import Disk, Storage
from tests.support.task_logs import messages

pytestmark = pytest.mark.slow

#: Four seconds, whose pictures begin at a second of their own clock.
SOURCE = film(frames=120, first=30, sound="aac")
RESULT = modified(film(frames=120))

AAC_FRAME = 1024 / 48_000


def run(**arguments: Any) -> list[str]:
    return LumaDownloadOperator(task_id="download", **arguments).execute({})


def heard(video: bytes) -> list[bytes]:
    with av.open(io.BytesIO(video)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.fixture
def result(server: FileServer, hook: LumaHook) -> str:
    """The address of a silent result."""
    return server.serve("/result.mp4", Reply(RESULT))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file with a click each second."""
    path = tmp_path / "source.mp4"
    path.write_bytes(SOURCE)
    return str(path)


def test_sound_is_copied_in_time_and_pictures_stay_as_they_are(result: str, source: str, storage: Storage) -> None:
    run(urls=result, destination=storage.destination, sound_from=source)
    (video,) = storage.files().values()
    expected = [at - 1 for at in clicks(SOURCE)]
    assert len(expected) == 4
    assert clicks(video) == pytest.approx(expected, abs=AAC_FRAME)
    assert [len(packet) for packet in heard(video)] == [len(packet) for packet in heard(SOURCE)][: len(heard(video))]
    assert set(heard(video)) <= set(heard(SOURCE))
    assert pictures(video) == pictures(RESULT)
    assert stream_seconds(video) == pytest.approx(stream_seconds(RESULT), abs=0.001)


def test_sound_that_no_mp4_takes_is_encoded(result: str, disk: Disk, tmp_path: Path) -> None:
    source = tmp_path / "source.mkv"
    source.write_bytes(film("mkv", frames=120, sound="flac"))
    run(urls=result, destination=disk.destination, sound_from=str(source))
    assert clicks(disk.files()["result.mp4"]) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=AAC_FRAME)


def test_sound_ends_with_the_video(result: str, disk: Disk, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(film(frames=300, sound="aac"))
    run(urls=result, destination=disk.destination, sound_from=str(source))
    assert max(stream_seconds(disk.files()["result.mp4"])) == pytest.approx(4, abs=0.001)


@pytest.mark.parametrize("storage", ["plain path", "s3://"], indirect=True)
def test_next_try_recognises_its_file_and_writes_nothing(
    result: str, source: str, storage: Storage, server: FileServer
) -> None:
    arguments = {"urls": result, "destination": storage.destination, "sound_from": source}
    written, before = run(**arguments), storage.files()
    server.requests.clear()
    assert run(**arguments) == written
    assert storage.files() == before
    assert len(server.requests) == 1


def test_file_with_other_sound_or_none_is_not_taken_for_this_one(
    result: str, source: str, disk: Disk, tmp_path: Path
) -> None:
    another = tmp_path / "another.mp4"
    another.write_bytes(film(frames=90, sound="aac"))
    choices = (None, source, str(another))
    for before, now in pairwise((*choices, None)):
        run(urls=result, destination=disk.destination, sound_from=before, overwrite=True)
        with pytest.raises(AirflowFailException, match="already exists"):
            run(urls=result, destination=disk.destination, sound_from=now)


def test_source_without_sound_leaves_the_result_as_it_is(
    result: str, disk: Disk, tmp_path: Path, task_log: Any
) -> None:
    source = tmp_path / "silent.mp4"
    source.write_bytes(film(frames=30))
    for _ in range(2):
        run(urls=result, destination=disk.destination, sound_from=str(source))
    assert disk.files() == {"result.mp4": RESULT}
    assert len(messages(task_log, "silent.mp4 has no sound: the result is kept as it is")) == 2


def test_source_may_be_a_public_address(result: str, disk: Disk, server: FileServer) -> None:
    source = server.serve("/source.mp4", Reply(SOURCE)) + "?signature=secret"
    for _ in range(2):
        run(urls=result, destination=disk.destination, sound_from=source)
    assert len(clicks(disk.files()["result.mp4"])) == 4


@pytest.mark.parametrize(
    ("path", "says"),
    [("/gone.mp4", r"sound_from: there is no file at \S+/gone.mp4$"), ("/text.mp4", "sound_from .*text.mp4")],
)
def test_source_that_cannot_be_used_fails_before_anything_is_downloaded(
    result: str, disk: Disk, server: FileServer, path: str, says: str
) -> None:
    server.serve("/text.mp4", Reply(b"no video " * 100))
    with pytest.raises(AirflowFailException, match=says):
        run(urls=result, destination=disk.destination, sound_from=server.url(path))
    assert not disk.folder.exists()
    assert "/result.mp4" not in [request.path for request in server.requests]


def test_each_file_gets_its_own_sound(result: str, source: str, disk: Disk, server: FileServer) -> None:
    second = server.serve("/second.mp4", Reply(RESULT))
    run(urls=[result, second], destination=disk.destination, sound_from=[source, None])
    assert len(clicks(disk.files()["result.mp4"])) == 4
    assert disk.files()["second.mp4"] == RESULT
    with pytest.raises(AirflowFailException, match="sound_from lists 1 videos for 2 files"):
        run(urls=[result, second], destination=f"{disk.destination}/more", sound_from=[source])


def test_result_that_is_no_video_fails_and_leaves_nothing(
    source: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/noise.mp4", Reply(FILM))
    with pytest.raises(AirflowFailException, match=r"urls \(.*noise.mp4\)"):
        run(urls=url, destination=disk.destination, sound_from=source)
    assert disk.files() == {}


def test_without_the_extra_media_nothing_is_downloaded(
    result: str, source: str, disk: Disk, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "modules" / "av"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no PyAV')")
    monkeypatch.setattr(sys, "path", [str(broken.parent), *sys.path])
    with pytest.raises(AirflowFailException, match="install the extra media"):
        run(urls=result, destination=disk.destination, sound_from=source)
    assert not server.requests


def test_sound_from_a_file_that_cannot_be_a_video_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(LumaValidationError, match="sound_from"):
        LumaDownloadOperator(task_id="x", urls="https://e.com/v.mp4", destination="/data/out", sound_from="film.mp4")


def test_hook_puts_sound_under_a_download(result: str, source: str, disk: Disk, hook: LumaHook) -> None:
    hook.download(result, disk.destination, sound_from=source)
    assert len(clicks(disk.files()["result.mp4"])) == 4

# SPDX-License-Identifier: Apache-2.0
"""Inputs in storages while storages, servers and connections fail at the worst moment: nothing is paid for twice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_luma.exceptions import LumaTimeoutError
from airflow_provider_luma.files.input_video import InputVideo
from airflow_provider_luma.hooks.luma import LumaHook
from tests.submission.test_stored_inputs import touch
from tests.support.file_server import FileServer, Reply
from tests.support.task_instance import TaskRun, TaskStateStore


@pytest.fixture
def run(modify, clip) -> TaskRun:
    """A task that modifies the clip on the disk."""
    return TaskRun(lambda **changes: modify(**{"video_url": str(clip), **changes}), TaskStateStore())


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    yield server
    server.close()


def fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk fail at the next look-up."""
    info, failures = LocalFileSystem.info, itertools.count()

    def broken(self: LocalFileSystem, path: str, **options: object) -> object:
        if next(failures) == 0:
            raise OSError("the disk is away")
        return info(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", broken)


def test_file_that_is_found_after_its_storage_was_away_is_recorded_as_what_it_is(luma, run, clip, monkeypatch):
    luma.configure(outcome="generate_failed")
    with suppress(Exception):
        run.run_try()
    luma.configure(outcome="success", processing_seconds=3600)
    touch(clip, clip.read_bytes())
    fail_once(monkeypatch)
    for _ in range(2):
        with pytest.raises(LumaTimeoutError):
            run.run_try(timeout=0.05)
    assert luma.accepted == 2, "one has failed, and the other is continued"


class TestAfterTheSubmission:
    def test_connection_that_can_no_longer_be_read_loses_no_job(self, luma, run, monkeypatch):
        def lose(number: int, is_done: bool) -> None:
            if (number, is_done) == (3, True):
                monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")

        run.store.around_set = lose
        assert run.run_try(wait_for_completion=False)["luma_task_id"] == luma.jobs[0].task_id

    def test_credits_that_come_drop_by_drop_hold_nothing_up(self, server, set_connection, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.client.QUICK_DEADLINE", 0.2)
        server.serve("*", Reply(raw=dripping))
        set_connection(server.url(""))
        assert LumaHook().get_client().credits_left() is None


def dripping() -> Iterator[bytes]:
    """An answer without an end."""
    yield b"HTTP/1.1 200 OK\r\nX-A: "
    while True:
        time.sleep(0.02)
        yield b"a"


class TestPublicVideos:
    @pytest.fixture
    def check(self, luma, set_connection):
        set_connection(luma.base_url)
        client = LumaHook().get_client()

        def check(url: str) -> None:
            InputVideo(url, True, client.log, lambda: None, lambda _url: None).check_public(client)

        return check

    def test_server_that_drips_holds_nothing_up(self, server, check, monkeypatch):
        monkeypatch.setattr("airflow_provider_luma.files.input_video.QUICK_DEADLINE", 0.2)
        check(server.serve("/clip.mp4", Reply(raw=dripping)))

    def test_video_whose_first_piece_is_short_passes(self, server, check):
        def pieces() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\nRIFF"
            time.sleep(0.3)
            yield b"\x00\x00\x10\x00AVI LIST" + bytes(2984)

        check(server.serve("/clip.avi", Reply(raw=pieces)))

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(b"<html>no parts</html>", status=416, content_type="text/html"),
            Reply(b"\0\0\0\x20ftypisom" + bytes(5000), content_type="text/html"),
            Reply(b"\0\0\0\x20ftypisom" + bytes(5000), content_type="application/json"),
            Reply(b"\0\0\0\x20ftypisom" + bytes(5000), status=206, content_range="nonsense"),
        ],
    )
    def test_what_luma_may_take_passes(self, server, check, reply):
        check(server.serve("/video", reply))

# SPDX-License-Identifier: Apache-2.0
"""
A file is written whole or not at all, whatever its server says of its length, and never as pieces of two versions.

``VIDEO`` is an MP4, which shows its end by its boxes; ``FILM`` is random bytes, which do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from airflow_provider_luma.exceptions import LumaUnavailableError
from airflow_provider_luma.files import progress
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.clips import FRAGMENTED, clip
from tests.support.downloads import sha256
from tests.support.file_server import CUT, FILM, OTHER_FILM, FileServer, Reply
from tests.support.storages import Disk

VIDEO = clip(size=(640, 360), noise=True)
HALF = len(VIDEO) // 2
FRAGMENTS = clip(movflags=FRAGMENTED, seconds=3)

UNTIL_CLOSED = Reply(VIDEO, announced=-1)
CUT_OFF = Reply(VIDEO, announced=-1, stop_after=HALF)


def chunked(content: bytes, *, has_end: bool = True, head: str = "") -> Reply:
    """Answer 200 with chunks of 100 kB, and then the last chunk or none."""

    def pieces() -> Iterable[bytes]:
        yield f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n{head}\r\n".encode()
        for start in range(0, len(content), 100_000):
            chunk = content[start : start + 100_000]
            yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if has_end:
            yield b"0\r\n\r\n"

    return Reply(raw=pieces)


def answer(head: str, body: bytes) -> Reply:
    """Send exactly this answer."""
    return Reply(raw=lambda: (f"HTTP/1.1 {head}\r\nContent-Type: video/mp4\r\n\r\n".encode(), body))


def date(age: float) -> str:
    return format_datetime(datetime.now(UTC) - timedelta(seconds=age), usegmt=True)


class TestWithoutALength:
    @pytest.mark.parametrize(
        ("content", "reply"),
        [
            (VIDEO, UNTIL_CLOSED),
            (VIDEO, Reply(VIDEO, announced=-1, etag=None, ranges=False)),
            (clip("mov"), Reply(clip("mov"), announced=-1, etag=None, ranges=False)),
            (VIDEO, chunked(VIDEO)),
            (FILM, chunked(FILM)),
            (FRAGMENTS, Reply(FRAGMENTS, announced=-1, etag=None, ranges=False)),
        ],
        ids=["MP4", "MP4, nothing else known", "QuickTime", "MP4 in chunks", "other chunks", "fragments"],
    )
    def test_whole_file_is_known_by_its_boxes_or_its_last_chunk(
        self, content: bytes, reply: Reply, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        hook.download(server.serve("/film.mp4", reply), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(content)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("rest", [Reply(VIDEO), UNTIL_CLOSED], ids=["with a length", "without"])
    def test_video_that_is_cut_off_is_resumed(
        self, rest: Reply, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        hook.download(server.serve("/film.mp4", CUT_OFF, rest), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(VIDEO)
        assert [request.range for request in server.requests] == [None, f"bytes={HALF}-"]

    @pytest.mark.parametrize(
        "broken",
        [
            Reply(VIDEO, announced=-1, stop_after=HALF, ranges=False, etag=None),
            chunked(VIDEO[:HALF], has_end=False),
            chunked(VIDEO[:HALF]),
            chunked(FILM[:CUT], has_end=False),
            Reply(VIDEO, announced=-1, stop_after=VIDEO.index(b"moov") - 4, ranges=False, etag=None),
        ],
        ids=["closed", "chunks without the last", "chunks of a broken origin", "other chunks", "between two boxes"],
    )
    def test_file_that_is_always_cut_off_is_never_written(
        self, broken: Reply, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        url = server.serve("/film.mp4", broken)
        with pytest.raises(LumaUnavailableError, match=r"film\.mp4 could not be downloaded in one piece"):
            hook.download(url, disk.destination)
        assert disk.files() == {}
        assert len(server.requests) == progress.MAX_RESTARTS + 1

    @pytest.mark.parametrize("content", [FILM, clip("avi"), FRAGMENTS[: FRAGMENTS.rindex(b"mfra") - 4]], ids=len)
    def test_end_that_the_file_does_not_show_is_confirmed_by_its_server(
        self, content: bytes, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        whole = Reply(content, announced=-1)
        cut = Reply(content, announced=-1, stop_after=len(content) // 2)
        hook.download(server.serve("/film.mp4", cut, whole), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(content)
        # An answer with the rest tells the length of the whole.
        assert [request.range for request in server.requests] == [None, f"bytes={len(content) // 2}-"]

    def test_whole_file_whose_end_is_not_shown_is_confirmed_too(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        hook.download(server.serve("/film.mp4", Reply(FILM, announced=-1)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)
        assert [request.range for request in server.requests] == [None, f"bytes={len(FILM)}-"]

    def test_end_of_another_version_does_not_count(self, disk: Disk, server: FileServer, hook: LumaHook) -> None:
        cut = Reply(FILM, announced=-1, stop_after=CUT)
        end = answer(f'416 Range Not Satisfiable\r\nContent-Range: bytes */{CUT}\r\nETag: "another"', b"")
        hook.download(server.serve("/film.mp4", cut, end, Reply(OTHER_FILM)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(OTHER_FILM)

    @pytest.mark.parametrize("padding", [1, 4, 7])
    def test_video_in_chunks_with_padding_behind_its_boxes_is_whole(
        self, padding: int, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        hook.download(server.serve("/film.mp4", chunked(VIDEO + bytes(padding))), disk.destination)
        assert disk.files()["film.mp4"] == VIDEO + bytes(padding)
        assert len(server.requests) == 1

    def test_unrecognisable_end_is_an_error_that_says_so(self, disk: Disk, server: FileServer, hook: LumaHook) -> None:
        url = server.serve("/film.mp4", Reply(FILM, announced=-1, ranges=False))
        with pytest.raises(LumaUnavailableError, match="does not say where the file ends"):
            hook.download(url, disk.destination)
        assert disk.files() == {}


class TestVersions:
    @pytest.mark.parametrize(
        ("etag", "headers", "if_range"),
        [
            ('"one"', {}, '"one"'),
            ('"one"', {"Last-Modified": date(1e6)}, '"one"'),
            (None, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, "Wed, 21 Oct 2015 07:28:00 GMT"),
        ],
        ids=["ETag", "ETag and date", "date"],
    )
    def test_rest_is_requested_only_of_the_same_version(
        self,
        etag: str | None,
        headers: dict[str, str],
        if_range: str,
        disk: Disk,
        server: FileServer,
        hook: LumaHook,
    ) -> None:
        cut = Reply(FILM, stop_after=CUT, etag=etag, headers=headers)
        hook.download(server.serve("/film.mp4", cut, Reply(FILM, etag=etag, headers=headers)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)
        first, second = server.requests
        assert "if-range" not in first.headers
        assert (second.range, second.headers["if-range"]) == (f"bytes={CUT}-", if_range)

    @pytest.mark.parametrize(
        ("etag", "headers"),
        [
            ('W/"one"', {}),
            ('W/"one"', {"Last-Modified": date(1e6)}),
            ("one", {}),
            (None, {"Last-Modified": date(-86_400)}),
            (None, {"Last-Modified": "yesterday"}),
            (None, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 -0000"}),
            (None, {}),
        ],
        ids=["weak ETag", "weak ETag and date", "no ETag", "date of tomorrow", "no date", "no time zone", "nothing"],
    )
    def test_rest_is_not_requested_of_what_may_be_another_version(
        self, etag: str | None, headers: dict[str, str], disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        cut = Reply(FILM, stop_after=CUT, etag=etag, headers=headers)
        other = Reply(OTHER_FILM, etag=etag, headers=headers)
        hook.download(server.serve("/film.mp4", cut, other), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(OTHER_FILM)
        for request in server.requests:
            assert (request.range, request.headers.get("if-range")) == (None, None)

    def test_rest_is_not_requested_of_a_file_that_just_changed(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        # It may be changed again within the second that its date names.
        headers = {"Last-Modified": date(1)}
        cut, other = Reply(FILM, stop_after=CUT, etag=None, headers=headers), Reply(OTHER_FILM, etag=None)
        hook.download(server.serve("/film.mp4", cut, other), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(OTHER_FILM)
        assert [request.range for request in server.requests] == [None, None]

    @pytest.mark.parametrize("etag", ['"two"', None, 'W/"one"'])
    def test_rest_of_a_version_that_the_server_does_not_confirm_starts_over(
        self, etag: str | None, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        # This server does not know If-Range.
        url = server.serve("/film.mp4", Reply(FILM, stop_after=CUT), Reply(OTHER_FILM, etag=etag))
        hook.download(url, disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(OTHER_FILM)


class TestAnswersThatDoNotFit:
    @pytest.mark.parametrize(
        "content_range",
        [
            f"bytes 0-{len(FILM) - 1}/{len(FILM)}",
            f"bytes {CUT + 1}-{len(FILM) - 1}/{len(FILM)}",
            f"bytes {CUT}-{len(FILM) - 1}/{len(FILM) + 1}",
            f"bytes {CUT}-{CUT - 1}/{len(FILM)}",
            f"bytes {CUT}-{len(FILM)}/{len(FILM)}",
            f"bytes={CUT}-{len(FILM) - 1}/{len(FILM)}",
            f"items {CUT}-{len(FILM) - 1}/{len(FILM)}",
            "",
        ],
    )
    def test_part_that_is_not_the_rest_is_not_appended(
        self, content_range: str, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        wrong = Reply(OTHER_FILM, content_range=content_range)
        hook.download(server.serve("/film.mp4", Reply(FILM, stop_after=CUT), wrong, Reply(FILM)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)
        assert [request.range for request in server.requests] == [None, f"bytes={CUT}-", None]

    def test_part_of_the_rest_is_followed_by_the_next_part(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        middle = 2 * CUT
        part = answer(
            f'206 Partial\r\nContent-Range: bytes {CUT}-{middle - 1}/*\r\nETag: "one"\r\nTransfer-Encoding: chunked',
            b"%x\r\n%b\r\n0\r\n\r\n" % (CUT, FILM[CUT:middle]),
        )
        cut = Reply(FILM, announced=-1, stop_after=CUT)
        hook.download(server.serve("/film.mp4", cut, part, Reply(FILM)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)
        assert [request.range for request in server.requests] == [None, f"bytes={CUT}-", f"bytes={middle}-"]

    def test_length_of_an_answer_that_is_not_encoded_counts(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        identity = {"Content-Encoding": "identity"}
        cut = Reply(FILM, stop_after=CUT, headers=identity, etag=None)
        hook.download(server.serve("/film.mp4", cut, Reply(FILM, headers=identity)), disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)

    def test_encoded_answer_is_not_written_whatever_its_length(
        self, disk: Disk, server: FileServer, hook: LumaHook
    ) -> None:
        url = server.serve("/film.mp4", Reply(FILM, headers={"Content-Encoding": "br"}))
        with pytest.raises(LumaUnavailableError, match="compressed"):
            hook.download(url, disk.destination)
        assert disk.files() == {}

    def test_length_beside_chunks_does_not_count(self, disk: Disk, server: FileServer, hook: LumaHook) -> None:
        url = server.serve("/film.mp4", chunked(FILM, head="Content-Length: 1000\r\n"))
        hook.download(url, disk.destination)
        assert sha256(disk.files()["film.mp4"]) == sha256(FILM)

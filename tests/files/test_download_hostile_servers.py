# SPDX-License-Identifier: Apache-2.0
"""A hostile server can neither fill the disk or the memory, nor keep a task busy indefinitely."""

from __future__ import annotations

import gzip
import logging
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from time import sleep

import pytest

from airflow_provider_luma.exceptions import LumaError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files import progress, source
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.transport import adapter
from tests.support.file_server import BLOCK, CUT, FILM, FileServer, Reply
from tests.support.storages import Disk

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n"

#: Seconds between two bytes of a slow server.
DRIP = 0.02


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PROGRESS_TIMEOUT", 0.1)


def dripping(before: bytes, drip: bytes) -> Callable[[], Iterator[bytes]]:
    """Send that until the client closes the connection."""

    def pieces() -> Iterator[bytes]:
        yield before
        while True:
            yield drip
            sleep(DRIP)

    return pieces


def flood(before: bytes, block: bytes, count: int = 100_000) -> Callable[[], Iterable[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield before
        yield from repeat(block, count)

    return pieces


def peak_memory_of(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("short_timeout")
def test_server_that_closes_after_each_byte_is_given_up(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    url = server.serve("/film.mp4", Reply(FILM[:200], stop_after=1))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)
    # Before each, a hundredth of a second was waited at least.
    assert len(server.requests) <= 11
    assert disk.files() == {}


CHUNK = b"1\r\nx\r\n"
DRIPPING = {
    "body": dripping(HEAD + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "body without a length": dripping(HEAD + b"\r\n", b"x"),
    "header": dripping(HEAD + b"X-Long: ", b"x"),
    "interim answers": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "size of a chunk": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailer": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n", b"X: y\r\n"),
}


@pytest.mark.usefixtures("short_timeout")
@pytest.mark.parametrize("part", DRIPPING)
def test_server_that_sends_next_to_nothing_is_given_up(
    part: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(raw=DRIPPING[part]))
    with pytest.raises(LumaUnavailableError, match=r"film\.mp4 could not be downloaded"):
        hook.download(url, disk.destination)
    assert disk.files() == {}


@pytest.mark.usefixtures("short_timeout")
def test_comparison_with_an_existing_file_is_bounded(
    disk: Disk, server: FileServer, hook: LumaHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_luma.files.download.READ_RETRY_TIMEOUT", 0.1)
    disk.put("film.mp4", b"x" * 1_000_000)
    url = server.serve("/film.mp4", Reply(raw=DRIPPING["body"]))
    with pytest.raises(LumaUnavailableError):
        hook.download(url, disk.destination)


def test_server_is_stalled_when_the_least_progress_takes_too_long() -> None:
    throughput = source.new_throughput()
    for _ in range(10):
        throughput.add(source.MIN_PROGRESS - 1, source.PROGRESS_TIMEOUT - 1)
        throughput.add(1, 0.5)
        assert not throughput.is_stalled
    throughput.add(source.MIN_PROGRESS - 1, source.PROGRESS_TIMEOUT)
    assert throughput.is_stalled


@pytest.mark.parametrize(
    "reply",
    [
        Reply(blocks=20),
        Reply(blocks=20, announced=-1),
        Reply(raw=flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + BLOCK + b"\r\n", 20)),
        Reply(FILM, announced=10**15),
    ],
    ids=["honest", "without a length", "chunked", "announced only"],
)
def test_file_above_the_largest_size_is_refused(
    reply: Reply, disk: Disk, server: FileServer, hook: LumaHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MAX_SIZE", 10 * len(BLOCK))
    url = server.serve("/film.mp4", reply)
    with pytest.raises(LumaValidationError, match=r"film\.mp4 is larger than 10\.5 MB"):
        hook.download(url + "?signature=s3cr3t", disk.destination)
    assert len(server.requests) == 1
    assert disk.files() == {}


def test_file_of_the_largest_size_is_downloaded(
    disk: Disk, server: FileServer, hook: LumaHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MAX_SIZE", len(FILM))
    hook.download(server.serve("/film.mp4", Reply(FILM)), disk.destination)
    assert disk.files() == {"film.mp4": FILM}


FLOODS = {
    "redirect": flood(b"HTTP/1.1 302 Found\r\nLocation: /real.mp4\r\n\r\n", BLOCK, 200),
    "error page": flood(b"HTTP/1.1 500 Oh\r\n\r\n", BLOCK, 200),
    "interim answers": flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 4000),
    "headers of interim answers": flood(b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 1000, 4000),
    "trailers": flood(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 10_000, 2000),
}


@pytest.mark.parametrize("part", FLOODS)
def test_flood_of_data_outside_the_file_is_neither_read_nor_kept_in_memory(
    part: str, disk: Disk, server: FileServer, hook: LumaHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter.MAX_READ_SIZE < 50e6
    monkeypatch.setattr(adapter, "MAX_READ_SIZE", 400_000)
    server.serve("/real.mp4", Reply(FILM))
    url = server.serve("/film.mp4", Reply(raw=FLOODS[part]), Reply(FILM))
    assert peak_memory_of(lambda: hook.download(url, disk.destination)) < 50e6
    assert disk.files() == {"film.mp4": FILM}
    assert server.requests[0].sent < 50e6


def test_body_of_no_chunks_is_not_taken_for_the_video(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    empty = Reply(raw=lambda: [HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
    hook.download(server.serve("/film.mp4", empty, Reply(FILM)), disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_body_of_a_redirect_is_not_unpacked(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    server.serve("/real.mp4", Reply(FILM))
    bomb = Reply(
        gzip.compress(bytes(100_000_000), compresslevel=1),
        status=302,
        headers={"Location": "/real.mp4", "Content-Encoding": "gzip"},
    )
    assert peak_memory_of(lambda: hook.download(server.serve("/film.mp4", bomb), disk.destination)) < 50e6
    assert disk.files() == {"film.mp4": FILM}


def test_answer_with_two_lengths_is_waited_out(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    nonsense = Reply(raw=lambda: [HEAD + b"Content-Length: 4, 5\r\n\r\nfilm"])
    hook.download(server.serve("/film.mp4", nonsense, Reply(FILM)), disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize(
    "lie",
    ["bytes 0-9/3000000", "bytes 1300000-2999999/9", "bytes 1300001-2999999/3000000", "bytes 9-1/*", "no", ""],
)
def test_part_that_is_not_the_one_asked_for_starts_over(
    lie: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    part = Reply(bytes(len(FILM)), content_range=lie)
    hook.download(server.serve("/film.mp4", Reply(FILM, stop_after=CUT), part, Reply(FILM)), disk.destination)
    assert disk.files() == {"film.mp4": FILM}


def test_rest_that_is_longer_than_the_file_starts_over(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    truth = f"bytes {CUT}-{len(FILM) - 1}/{len(FILM)}"
    rest = Reply(FILM * 2, content_range=truth)
    hook.download(server.serve("/film.mp4", Reply(FILM, stop_after=CUT), rest, Reply(FILM)), disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert [request.range for request in server.requests] == [None, f"bytes={CUT}-", None]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4, 5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip",
        b"HTTP/1.1 99999 ?",
        b"HTTP/9.9 200 OK",
        b"\0" * 100,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe/",
        b"HTTP/1.1 302 Found\r\nLocation: http://[",
        b"HTTP/1.1 302 Found\r\nLocation: http://x:y/",
        b"HTTP/1.1 302 Found\r\nLocation: //",
        b"HTTP/1.1 302 Found\r\nLocation: " + b"/" * 60_000,
        b"HTTP/1.1 302 Found\r\nLocation: \r\n http://a b/",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a." * 200 + b"example.com/",
        b"HTTP/1.1 101 Switching Protocols",
    ],
    ids=range(19),
)
def test_nonsense_of_a_server_is_an_error_of_luma_or_a_whole_file(
    head: bytes, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(raw=lambda: [head + b"\r\n\r\nfilm"]))
    try:
        hook.download(url, disk.destination)
    except LumaError:
        assert disk.files() == {}
    else:
        assert disk.files() == {"film.mp4": b"film"}


@pytest.mark.parametrize("redirects", [False, True])
def test_query_of_an_address_is_in_no_log_even_at_debug(hook, server, tmp_path, caplog, redirects):
    caplog.set_level(logging.DEBUG)
    signed = server.serve("/a.mp4", Reply(FILM)) + "?X-Amz-Signature=sesame"
    if redirects:
        signed = server.serve("/b.mp4", Reply(b"", status=302, headers={"Location": signed}))
    hook.download(signed, str(tmp_path / "a.mp4"))
    assert "sesame" not in caplog.text

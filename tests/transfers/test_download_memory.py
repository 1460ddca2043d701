# SPDX-License-Identifier: Apache-2.0
"""A download takes little memory, however long the file is."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.downloads import sha256
from tests.support.file_server import BLOCK, FILM, FileServer, Reply
from tests.support.memory import measure
from tests.support.storages import Bucket, Disk

DOWNLOAD = """
from airflow_provider_luma.hooks.luma import LumaHook
url, small, destination = sys.argv[1:]
hook = LumaHook()
# Clients, connections and import on first use belong to the baseline.
hook.download(small, destination + "/warm.mp4", overwrite=True)
measured(lambda: hook.download(url, destination, overwrite=True).stat().st_size)
"""


def measure_download(server: FileServer, destination: str, blocks: int) -> dict[str, float]:
    small = server.serve("/small.mp4", Reply(FILM))
    return measure(DOWNLOAD, server.serve("/long.mp4", Reply(blocks=blocks)), small, destination)


def test_download_of_half_a_gigabyte_to_a_disk_takes_less_than_32_mb_of_memory(
    disk: Disk, server: FileServer, set_connection: Callable[..., None]
) -> None:
    set_connection(server.url(""))
    measured = measure_download(server, f"file://{disk.folder}", 500)
    assert measured["size"] == 500 * len(BLOCK)
    assert measured["growth"] < 32e6
    with (disk.folder / "long.mp4").open("rb") as file:
        assert all(file.read(len(BLOCK)) == BLOCK for _ in range(500))
    (disk.folder / "long.mp4").unlink()
    assert list(disk.files()) == ["warm.mp4"]


def test_download_to_s3_takes_less_memory_than_the_file_is_long(
    bucket: Bucket, server: FileServer, set_connection: Callable[..., None]
) -> None:
    set_connection(server.url(""))
    measured = measure_download(server, bucket.destination, 64)
    assert measured["size"] == 64 * len(BLOCK)
    # The client of the store holds several parts of 8 MB.
    assert measured["growth"] < measured["size"]
    files = bucket.files()
    assert sorted(files) == ["long.mp4", "warm.mp4"]
    assert sha256(files["long.mp4"]) == sha256(BLOCK * 64)

# SPDX-License-Identifier: Apache-2.0
"""A download takes little memory, however long the file is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.downloads import sha256
from tests.support.file_server import BLOCK, FILM, FileServer, Reply
from tests.support.memory import measure
from tests.support.storages import Bucket, Disk

DOWNLOAD = """
from airflow_provider_luma.hooks.luma import LumaHook
url, small, *destinations = sys.argv[1:]
hook = LumaHook()
for destination in destinations:
    # Clients, connections and import on first use belong to the baseline.
    hook.download(small, destination + "/warm.mp4", overwrite=True)
    measured(lambda: hook.download(url, destination, overwrite=True).stat().st_size)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("blocks", [64, 500])
def test_download_takes_little_memory_whatever_it_is_written_to(
    blocks: int, disk: Disk, bucket: Bucket, server: FileServer, set_connection: Callable[..., None]
) -> None:
    set_connection(server.url(""))
    small, long = server.serve("/small.mp4", Reply(FILM)), server.serve("/long.mp4", Reply(blocks=blocks))
    to_disk, to_s3 = measure(DOWNLOAD, long, small, f"file://{disk.folder}", bucket.destination)
    assert to_disk["size"] == to_s3["size"] == blocks * len(BLOCK)
    assert to_disk["growth"] < 32e6
    # The client of the store holds several parts of 8 MB.
    assert to_s3["growth"] < 60e6
    with (disk.folder / "long.mp4").open("rb") as file:
        assert all(file.read(len(BLOCK)) == BLOCK for _ in range(blocks))
    (disk.folder / "long.mp4").unlink()
    assert list(disk.files()) == ["warm.mp4"]
    files = bucket.files()
    assert sorted(files) == ["long.mp4", "warm.mp4"]
    assert sha256(files["long.mp4"]) == sha256(BLOCK * blocks)

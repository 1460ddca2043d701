# SPDX-License-Identifier: Apache-2.0
"""Storages to download to, with another way to read and write them than the code under test has."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import boto3
from fsspec.implementations.memory import MemoryFileSystem

BUCKET = "films"


class Storage:
    """
    A folder on a storage.

    :ivar destination: the folder, as an argument of a download
    """

    destination: str

    def files(self) -> dict[str, bytes]:
        """Return the content of each file, by its path below the folder."""
        raise NotImplementedError

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        raise NotImplementedError


class Disk(Storage):
    """A folder on the local disk."""

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
    """A prefix in a bucket of an S3 server."""

    def __init__(self, endpoint: str, destination: str, prefix: str) -> None:
        self.destination = destination
        self.prefix = prefix
        self.s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def files(self) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix).get("Contents", [])
        return {
            entry["Key"].removeprefix(self.prefix): self.s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            for entry in listed
        }

    def put(self, name: str, content: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=content)


class SftpFileSystem(MemoryFileSystem):
    """
    What a server with SFTP and no shell offers: files that grow while they are written, and a rename.

    :param replaces: a rename replaces a file that is there
    :param fails_after: bytes of a file after which the connection breaks
    """

    cachable = False

    def __init__(self, *, replaces: bool = True, fails_after: int | None = None) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs: list[str] = [""]
        self.replaces = replaces
        self.fails_after = fails_after
        self.names: set[str] = set()  # all that a file has been written to

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))  # in memory, all readers of a file would share one position
        if mode == "wb":
            self.names.add(path)
        return super()._open(path, mode, *args, **kwargs)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        with self.open(rpath, "wb") as file:
            file.write(Path(lpath).read_bytes()[: self.fails_after])
        if self.fails_after is not None:
            raise OSError("the connection is lost")

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        content: bytes = super().cat_file(path)  # whatever part was asked for
        return content

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        raise PermissionError("this service allows sftp connections only")

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if path2 in self.store and not self.replaces:
            raise OSError("Failure")
        self.store[path2] = self.store.pop(path1)


class Sftp(Storage):
    """A folder on an SFTP server."""

    def __init__(self, fs: SftpFileSystem, destination: str) -> None:
        self.fs = fs
        self.destination = destination

    def files(self) -> dict[str, bytes]:
        return {path.removeprefix("/videos/"): file.getvalue() for path, file in self.fs.store.items()}

    def put(self, name: str, content: bytes) -> None:
        self.fs.pipe_file(f"/videos/{name}", content)


def aws_connection(endpoint: str, **extra: Any) -> str:
    """Write an Airflow connection to an S3 server."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1", **extra}
    return json.dumps({"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra})

# SPDX-License-Identifier: Apache-2.0
"""A multipart form that streams one file and knows its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from urllib3.fields import RequestField
from urllib3.filepost import choose_boundary

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.files.stored_file import BLOCK_SIZE

if TYPE_CHECKING:
    from airflow_provider_luma.files.stored_file import StoredFile


class MultipartFile:
    """
    A multipart form that holds one file, read piece by piece as it is sent (RFC 7578).

    It has a length, so that it is sent with a Content-Length. HTTP clients send a form without one, or read the whole
    file into memory.

    :param file: what to send
    :param fields: the other fields of the form
    :param on_piece: told the number of bytes of each piece before it is sent; what it raises ends the request
    """

    def __init__(self, file: StoredFile, fields: dict[str, str], on_piece: Callable[[int], None]) -> None:
        boundary = choose_boundary()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [RequestField(name, value) for name, value in fields.items()]
        for part in parts:
            part.make_multipart()
        head = RequestField("file", b"", filename=file.name)
        head.make_multipart(content_type="application/octet-stream")
        lines = [f"--{boundary}\r\n{part.render_headers()}{part.data!s}\r\n" for part in parts]
        self._start = "".join([*lines, f"--{boundary}\r\n{head.render_headers()}"]).encode()
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self._file, self._on_piece = file, on_piece

    def __len__(self) -> int:
        return len(self._start) + self._file.size + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        yield self._start
        with self._file.open() as source:
            remaining = self._file.size
            while remaining:
                piece = self._read(source, min(BLOCK_SIZE, remaining))
                self._on_piece(len(piece))
                remaining -= len(piece)
                yield piece
        yield self._end

    def _read(self, source: IO[bytes], size: int) -> bytes:
        try:
            piece = source.read(size)
        except Exception as error:
            # No OSError: that would count as one of the connection to the service.
            raise AirflowException(f"{self._file.parameter}: {self._file.shown} could not be read: {error}") from error
        if not piece:
            self._file.check_unchanged()
            raise AirflowException(f"{self._file.parameter}: {self._file.shown} ended before its size was read")
        return piece

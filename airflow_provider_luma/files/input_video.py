# SPDX-License-Identifier: Apache-2.0
"""
The input video of one submission: what identifies it, and the public address at which Luma can read it.

A public address is submitted as it is. A file in a storage is uploaded, or its storage signs an address for it if the
connection says so. The record names the *file* that was submitted, so a retry recognises its request, although each
upload and each signature has a new address.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_luma.client import QUICK_DEADLINE
from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.addresses import is_luma_file, is_web_address
from airflow_provider_luma.core.job import DEFAULT_SERVICE, LumaUpload
from airflow_provider_luma.core.redaction import shown_address, without_secrets
from airflow_provider_luma.exceptions import LumaError, LumaNotFoundError, LumaValidationError
from airflow_provider_luma.files.masking import mask_query
from airflow_provider_luma.files.source import FileSource, beginning, content_length
from airflow_provider_luma.files.stored_file import StoredFile, content_version
from airflow_provider_luma.files.upload import Upload
from airflow_provider_luma.media.input_check import check_video_head
from airflow_provider_luma.media.signatures import HEAD_LENGTH
from airflow_provider_luma.transport.workers import requests_session, within

if TYPE_CHECKING:
    import requests
    from airflow.sdk.types import Logger

    from airflow_provider_luma.client import LumaClient
    from airflow_provider_luma.services.base import Limits


#: An upload is submitted only if Luma keeps it for at least this long: Luma might not fetch it until the job begins.
MIN_REMAINING = timedelta(minutes=30)

#: Bytes of a public video that are checked.
HEAD_SIZE = 4096

#: Seconds for which a signature counts as fresh.
FRESH_SIGNATURE = 10.0


class PublishedVideo(NamedTuple):
    """
    An input that Luma can read.

    :param url: its public address
    :param upload: what to keep of an upload, as JSON values, for a later attempt to submit
    """

    url: str
    upload: dict[str, Any] | None = None


@dataclass
class InputVideo:
    """
    The input video of one submission.

    :param address: a public one, or a file in a storage
    :param is_checked: whether to check the video before anything is billed
    :param log: the task's log
    :param fail_if_killed: called before each piece that is uploaded; what it raises ends the upload
    :param on_upload: called with the public address of an uploaded file
    :ivar seconds: the video's length, if it is known once the video is published
    """

    address: str
    is_checked: bool
    log: Logger
    fail_if_killed: Callable[[], None]
    on_upload: Callable[[str], None]
    seconds: float | None = field(default=None, init=False)
    _signed_at: float | None = field(default=None, init=False)
    _signed_for: float = field(default=0.0, init=False)

    @property
    def is_public(self) -> bool:
        """Whether Luma can read the address as it is."""
        return is_web_address(self.address) or is_luma_file(self.address)

    @property
    def shown(self) -> str:
        """The address, fit for a log."""
        return shown_address(self.address)

    @property
    def version(self) -> str:
        """What distinguishes the submitted content from earlier and later content at its address."""
        return content_version(self.address, lambda: self._file)

    def fingerprint(self, request: str, recorded: Collection[str]) -> str:
        """
        Return what identifies a request: its parameters, and the version of the file that it names.

        A job that was submitted is continued even if its input can no longer be read: the recorded version is used
        then.

        :param request: fingerprint of the request's parameters
        :param recorded: fingerprints in the record of an earlier submission
        :raises LumaValidationError: there is no such file
        :raises AirflowException: the storage is unavailable
        """
        if self.is_public:
            return request
        try:
            version = self._file.version
        except (LumaError, AirflowException) as error:
            matching = next((one for one in recorded if one.partition(":")[0] == request), None)
            if matching is None:
                raise
            self.log.warning("%s. Assuming that it is the file that was submitted before", error)
            return matching
        return f"{request}:{hashlib.sha256(version.encode()).hexdigest()[:16]}"

    def renewed(self, url: str) -> str:
        """
        Return the video's address for another attempt to submit: the last signature may have expired.

        :param url: what :meth:`publish` has returned
        :raises AirflowException: the storage could not sign
        """
        if self._signed_at is None or time.monotonic() - self._signed_at < FRESH_SIGNATURE:
            return url
        signed = self._sign(self._file, self._signed_for)
        return signed.url if signed is not None else url

    def check_public(self, client: LumaClient) -> None:
        """
        Check a public video.

        :raises LumaValidationError: the service will not take it
        """
        if not (is_web_address(self.address) and self.is_checked):
            return
        connection = client.quick().connection
        source = FileSource(
            partial(requests_session, connection), connection.timeout, connection.is_public, head_size=HEAD_SIZE
        )
        try:
            limits = client.connection.service.limits
            within(QUICK_DEADLINE, partial(check_public_video, self.address, source, limits, self.log))
        except TimeoutError:
            self.log.warning("video_url could not be checked from here: its server takes too long")

    def publish(self, client: LumaClient, kept: dict[str, Any] | None) -> PublishedVideo:
        """
        Make the video available to Luma.

        :param client: the service
        :param kept: what was kept of an earlier upload
        :raises LumaValidationError: the service will not take it
        :raises AirflowException: the storage cannot be read at the moment
        :raises LumaError: the service refused the upload
        """
        if self.is_public:
            return PublishedVideo(self.address)
        file = self._file
        upload = LumaUpload.load(kept) if kept and _is_upload_of(kept, file, client) else None
        if upload is not None and upload.expires_at - datetime.now(UTC) > MIN_REMAINING:
            self.log.info("%s is already uploaded; Luma keeps it until %s", file.shown, upload.expires_at)
            published = PublishedVideo(upload.url, kept)
            self.seconds = _length_of(kept)
        else:
            valid_for, limits = client.connection.sign_inputs, client.connection.service.limits
            if valid_for is not None:
                limits = replace(limits, bytes_as_file=limits.bytes_by_url)
            self.seconds = file.check(limits, self.log) if self.is_checked else None
            signed = self._sign(file, valid_for) if valid_for is not None else None
            published = signed or self._upload(client, file)
        if published.upload is not None:
            self.on_upload(published.url)
        return published

    def show_upload(self, kept: dict[str, Any] | None) -> None:
        """
        Report where an earlier try uploaded the video; the upload may have expired.

        :param kept: what was kept of an upload, perhaps of another file
        """
        upload = LumaUpload.load(kept)
        with suppress(LumaError, AirflowException):  # a file that cannot be read cannot be recognised
            if kept and upload is not None and kept.get("file") == self._file.name:
                self.on_upload(upload.url)

    @cached_property
    def _file(self) -> StoredFile:
        return StoredFile.find(self.address, "video_url")

    def _sign(self, file: StoredFile, seconds: float) -> PublishedVideo | None:
        url = file.sign(seconds)
        if url is None:
            self.log.info("The storage of %s cannot sign addresses; uploading the file instead", file.shown)
            return None
        file.check_unchanged()
        mask_query(url)
        self._signed_at, self._signed_for = time.monotonic(), seconds
        self.log.info("Signed an address of %s, valid for %.0f s", file.shown, seconds)
        return PublishedVideo(url)

    def _upload(self, client: LumaClient, file: StoredFile) -> PublishedVideo:
        upload = Upload(client, self.log, self.fail_if_killed).run(file)
        length = {} if self.seconds is None else {"seconds": self.seconds}
        return PublishedVideo(upload.url, {"file": file.name, **_owner(client), **upload.as_dict(), **length})


def _length_of(kept: dict[str, Any] | None) -> float | None:
    """Return the length of an uploaded video, if it was kept; a person may have edited the store."""
    seconds: Any = (kept or {}).get("seconds")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    return float(seconds) if is_number and 0 < seconds < math.inf else None


def _owner(client: LumaClient) -> dict[str, str]:
    """Return the only service and connection that can use an upload; none for kie.ai, whose uploads are public."""
    connection = client.connection
    if connection.service_name == DEFAULT_SERVICE:
        return {}
    return {"service": connection.service_name, "luma_conn_id": connection.conn_id}


def _is_upload_of(kept: dict[str, Any], file: StoredFile, client: LumaClient) -> bool:
    owner = {name: kept[name] for name in ("service", "luma_conn_id") if name in kept}
    return kept.get("file") == file.name and owner == _owner(client)


def check_public_video(url: str, source: FileSource, limits: Limits, log: Logger) -> None:
    """
    Check the beginning of a public video, and its headers.

    The service may be able to reach a file that we cannot, so whatever cannot be checked from here is left to it.

    :param source: requests the first bytes
    :raises LumaValidationError: there is no file, or it is certainly not a video that the service accepts
    """
    shown = without_secrets(url)
    try:
        with source.open(url) as response:
            if response.status_code == 416:
                log.warning("video_url could not be checked from here: its server refused to send a part of it")
                return
            kind, size = response.headers.get("Content-Type"), _total_size(response)
            head = beginning(response, HEAD_LENGTH)
    except LumaNotFoundError as error:
        if error.code not in (404, 410):
            log.warning("video_url could not be checked from here: %s", error.msg)
            return
        raise LumaValidationError(None, f"video_url: there is nothing at {shown} ({error.msg})") from error
    except LumaError as error:
        log.warning("video_url could not be checked from here: %s", error.msg.removeprefix("urls: "))
        return
    check_video_head(head, limits, content_type=kind, size=size, parameter="video_url", shown=shown)


def _total_size(response: requests.Response) -> int | None:
    """Return the size of the whole file, if the server gives it."""
    if response.status_code != 206:
        return content_length(response)
    total = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    return int(total[1]) if total else None

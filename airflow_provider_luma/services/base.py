# SPDX-License-Identifier: Apache-2.0
"""
The questions that every service answers.

A service is a module: it turns a request into what is sent, and what is received into a value or a typed error. It does
no I/O. Another service is one more module, and a member of :data:`airflow_provider_luma.services.SERVICES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_luma.core.job import LumaTask, LumaUpload, ModifyRequest, Request, Response


@dataclass(frozen=True)
class Limits:
    """
    What a service takes of a clip and of a prompt.

    :param seconds: seconds that a clip may last
    :param bytes_by_url: bytes of a clip that the service fetches from a public address
    :param bytes_as_file: bytes of a clip that is uploaded to the service
    :param containers: kinds of files that it reads, as their extensions in lower case: ``mp4``, ``mov``, ``avi``
    :param prompt_characters: characters of a prompt; None if the service names no limit
    """

    seconds: float
    bytes_by_url: int
    bytes_as_file: int
    containers: tuple[str, ...]
    prompt_characters: int | None = None


class Service(Protocol):
    """
    A service that modifies videos.

    Readers raise a :class:`~airflow_provider_luma.exceptions.LumaError`. That of a submission raises
    :class:`~airflow_provider_luma.exceptions.LumaSubmissionUnknownError` unless the service surely accepted nothing.
    """

    @property
    def name(self) -> str:
        """What the connection's extra calls it."""

    @property
    def host(self) -> str:
        """The address of its API."""

    @property
    def upload_host(self) -> str:
        """The address that takes files, if the API is at :attr:`host`."""

    @property
    def limits(self) -> Limits:
        """What it takes."""

    @property
    def has_callbacks(self) -> bool:
        """Whether it can call an address when a job has ended."""

    @property
    def records_kept(self) -> float | None:
        """Seconds for which it knows its jobs; None if that is unknown: then a 404 never leads to a new submission."""

    def check(self, request: ModifyRequest, *, is_public: bool) -> None:
        """
        Refuse what the service is sure to refuse.

        :param is_public: the service is on the Internet, and so cannot reach private addresses
        :raises LumaValidationError: names the parameter and the remedy
        """

    def submission(self, request: ModifyRequest) -> Request:
        """Write the submission of a job."""

    def read_submission(self, response: Response) -> str:
        """Return the id of the accepted job."""

    def status(self, luma_task_id: str) -> Request:
        """Write a status check."""

    def read_status(self, response: Response, luma_task_id: str) -> LumaTask:
        """Return the job that a status check has seen."""

    def liveness(self) -> Request:
        """Write a free call that shows whether key and endpoint work."""

    def read_liveness(self, response: Response) -> None:
        """Take the answer to that; raise if it does not show that they work."""

    def balance(self) -> Request:
        """Write the question for the account's remaining credits."""

    def read_balance(self, response: Response) -> float:
        """Return the account's remaining credits."""

    def renewal(self, result_url: str) -> Request:
        """Write the request for a temporary download address of a result."""

    def read_renewal(self, response: Response) -> str:
        """Return the temporary download address."""

    def upload(self, name: str) -> Request:
        """Write the upload of a file of that name: a form, which the file is added to."""

    def read_upload(self, response: Response, size: int, now: datetime) -> LumaUpload:
        """
        Return the uploaded file.

        :param size: the bytes that were sent
        :param now: when the answer came
        """

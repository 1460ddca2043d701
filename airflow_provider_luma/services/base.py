# SPDX-License-Identifier: Apache-2.0
"""
The interface that every service implements.

A service is a module. It builds the requests to send, and turns responses into values or typed errors. It does no I/O.
To add a service, add a module and list it in :data:`airflow_provider_luma.services.SERVICES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from datetime import datetime

    from airflow_provider_luma.core.job import LumaTask, LumaUpload, ModifyRequest, Request, Response


@dataclass(frozen=True)
class Limits:
    """
    A service's limits on clips and prompts.

    :param seconds: maximum length of a clip, in seconds
    :param bytes_by_url: maximum size, in bytes, of a clip that the service fetches from a public address
    :param bytes_as_file: maximum size, in bytes, of a clip that is uploaded to the service
    :param containers: file formats that it reads, as lower-case extensions: ``mp4``, ``mov``, ``avi``
    :param prompt_characters: maximum length of a prompt, in characters; None if the service states no limit
    """

    seconds: float
    bytes_by_url: int
    bytes_as_file: int
    containers: tuple[str, ...]
    prompt_characters: int | None = None


class Call(NamedTuple):
    """
    A step of an upload: a call of the API.

    :param delay: seconds to wait before it
    """

    request: Request
    delay: float = 0.0


class SendForm(NamedTuple):
    """
    A step of an upload: send the file in a form to the connection's upload host, with the API key.

    :param path: the path below the upload host
    :param fields: the other fields of the form
    """

    path: str
    fields: Mapping[str, str]


class SendFile(NamedTuple):
    """
    A step of an upload: PUT the file's bytes to an address that the service gave, without the API key.

    :param url: the address; not trusted, and secret: whoever knows it can replace the file
    :param headers: headers to send
    """

    url: str
    headers: Mapping[str, str]


UploadStep = Call | SendForm | SendFile


class Service(Protocol):
    """
    A service that modifies videos.

    Readers raise a :class:`~airflow_provider_luma.exceptions.LumaError`. :meth:`read_submission` raises
    :class:`~airflow_provider_luma.exceptions.LumaSubmissionUnknownError` if the service may have accepted the job.
    """

    @property
    def name(self) -> str:
        """Its name in the connection's extra."""

    @property
    def host(self) -> str:
        """The address of its API."""

    @property
    def base_path(self) -> str:
        """The path at the start of its requests, which the connection's address may repeat; may be empty."""

    @property
    def upload_host(self) -> str:
        """The address for uploads, if the API is at :attr:`host`."""

    @property
    def limits(self) -> Limits:
        """Its limits."""

    @property
    def has_callbacks(self) -> bool:
        """Whether it can call an address when a job has ended."""

    @property
    def has_balance(self) -> bool:
        """Whether it reports the account's remaining credits."""

    @property
    def requests_per_second(self) -> float:
        """How many status checks per second an account is allowed, unless its connection says otherwise."""

    @property
    def submissions_per_second(self) -> float:
        """How many submissions per second an account is allowed, unless a refusal says otherwise."""

    @property
    def records_kept(self) -> float | None:
        """Seconds for which it keeps its jobs' records; None if unknown: a 404 then never leads to a new submission."""

    @property
    def results_kept(self) -> float:
        """Seconds for which the address of a result is valid."""

    def price(self, seconds: float, options: Mapping[str, Any] | None) -> float | None:
        """
        Estimate what a job costs, in US dollars; None if unknown.

        :param seconds: the length of its clip
        :param options: the request's options
        """

    def check(self, request: ModifyRequest, *, is_public: bool) -> None:
        """
        Refuse what the service is sure to refuse.

        :param is_public: whether the service is on the Internet, and so cannot reach private addresses
        :raises LumaValidationError: names the parameter and the remedy
        """

    def submission(self, request: ModifyRequest, reference: str) -> Request:
        """
        Build the request that submits a job.

        :param reference: our own name for the submission
        """

    def read_submission(self, response: Response) -> str:
        """Return the id of the accepted job."""

    def unknown_outcome_remedy(self, reference: str, submitted_at: float | None) -> str:
        """
        Return how a person can find out what became of a submission whose response was lost.

        :param reference: our own name for the submission
        :param submitted_at: when it was sent, in seconds since the epoch, if known
        """

    def status(self, luma_task_id: str) -> Request:
        """Build the request for a status check."""

    def read_status(self, response: Response, luma_task_id: str) -> LumaTask:
        """Return the job from the response to a status check."""

    def liveness(self) -> Request:
        """Build a free request that shows whether key and endpoint work."""

    def read_liveness(self, response: Response) -> None:
        """Read the response to :meth:`liveness`; raise unless it shows that key and endpoint work."""

    def balance(self) -> Request:
        """Build the request for the account's remaining credits; raise if the service does not report them."""

    def read_balance(self, response: Response) -> float:
        """Return the account's remaining credits."""

    def renewal(self, result_url: str, luma_task_id: str | None) -> Request:
        """
        Build the request for a temporary download address of a result.

        :param luma_task_id: the result's job, if known
        :raises LumaValidationError: the service needs to know the job
        """

    def read_renewal(self, response: Response, result_url: str, luma_task_id: str | None) -> str:
        """Return the temporary download address."""

    def upload(self, name: str, size: int, now: datetime) -> Generator[UploadStep, Response, LumaUpload]:
        """
        Upload a file, step by step: yield what to send, be sent the response, and return the uploaded file.

        If there is no response, :class:`~airflow_provider_luma.exceptions.LumaUnavailableError` is thrown into the
        generator. If it raises a transient error, the upload starts again with a new one.

        :param name: the file's name at the service
        :param size: its size in bytes
        :param now: when the upload starts
        :raises LumaValidationError: the service does not accept this file
        :raises LumaError: any other refusal
        """

# SPDX-License-Identifier: Apache-2.0
"""
The values of a download's ``urls``: addresses, or the results that modify tasks and sensors returned.

A result names its job, so a new address can be requested once the first has expired. It comes from an XCom, which any
task may have written, so it is checked like any other input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from airflow_provider_luma.core.job import DEFAULT_SERVICE
from airflow_provider_luma.core.validation import check_luma_task_id
from airflow_provider_luma.exceptions import LumaValidationError

_REMEDY = "pass addresses, or what a modify task or a sensor returned, e.g. urls=modify.output"


class ResultFile(NamedTuple):
    """
    A file to download.

    :param url: its address
    :param luma_task_id: the job that made it; None if only the address is known
    :param service: the name of that job's service
    :param number: its place among the results of its job
    """

    url: str
    luma_task_id: str | None = None
    service: str | None = None
    number: int = 1

    @property
    def identity(self) -> tuple[object, ...]:
        """What distinguishes it from other files: its job if known, since a job's addresses change."""
        return (self.url,) if self.luma_task_id is None else (self.service, self.luma_task_id, self.number)


def read_results(values: Iterable[object]) -> list[ResultFile]:
    """
    Return the files to download, without duplicates.

    :param values: addresses and results
    :raises LumaValidationError: a value is neither, or is a result whose job has not ended
    """
    files: dict[tuple[object, ...], ResultFile] = {}
    for value in values:
        for file in _files_of(value):
            files.setdefault(file.identity, file)
    if not files:
        raise LumaValidationError(None, "urls is empty: there is nothing to download")
    return list(files.values())


def _files_of(value: object) -> Iterator[ResultFile]:
    if isinstance(value, str):
        if value.lstrip().startswith(("{", "[")):
            raise LumaValidationError(
                None,
                f"urls is the text of a dict or list, as a template renders it: {_REMEDY}; or set "
                "render_template_as_native_obj in the DAG",
            )
        yield ResultFile(value)
    elif isinstance(value, Mapping):
        yield from _files_of_result(value)
    else:
        raise LumaValidationError(None, f"urls holds a value of type {type(value).__name__}: {_REMEDY}")


def _files_of_result(result: Mapping[Any, Any]) -> Iterator[ResultFile]:
    # Values are not quoted: an address may be signed.
    luma_task_id, urls = result.get("luma_task_id"), result.get("result_urls")
    service = result.get("service", DEFAULT_SERVICE)
    try:
        check_luma_task_id(luma_task_id)
    except LumaValidationError:
        raise LumaValidationError(None, f"urls holds a dict without a valid luma_task_id: {_REMEDY}") from None
    if not isinstance(service, str) or not service:
        raise LumaValidationError(None, f"urls holds a result whose service is not a string: {_REMEDY}")
    if not isinstance(urls, (list, tuple)) or not all(isinstance(url, str) and url for url in urls):
        raise LumaValidationError(None, f"urls holds a result whose result_urls is not a list of addresses: {_REMEDY}")
    if not urls:
        raise LumaValidationError(
            None,
            f"urls holds the result of a job that has no video yet (status {result.get('status')!r:.40}): wait for it "
            "with a LumaTaskSensor and pass what it returns, or leave wait_for_completion on",
            luma_task_id=luma_task_id,
        )
    for number, url in enumerate(urls, 1):
        yield ResultFile(url, luma_task_id, service, number)

# SPDX-License-Identifier: Apache-2.0
"""
Asset events: what a task reports about its video to the DAGs that are scheduled on its outlets.

The information is read from the XComs of upstream tasks. A result is matched to its job by the job's id, or by the
result's address if the id is unknown. Map indexes do not identify a job, since a mapped task may expand over a filtered
or incomplete list. Only tasks with outlets import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.core.job import DEFAULT_SERVICE
from airflow_provider_luma.core.redaction import without_secrets, without_signatures
from airflow_provider_luma.core.wire import plain_text, read_strings, read_text
from airflow_provider_luma.lineage import asset_uri
from airflow_provider_luma.links.luma import REQUEST_KEY
from airflow_provider_luma.services import SERVICES

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from airflow_provider_luma.files.results import ResultFile


def update_outlets(
    operator: BaseOperator, context: Context, files: Sequence[str], jobs: Iterable[Mapping[str, Any]], **facts: Any
) -> None:
    """
    Add what is known about files to the asset events of the task's outlets.

    An asset gets one event for all files; an alias gets one event per file, for an asset with the file's address. What
    the DAG author has put into ``extra`` is kept.

    :param files: addresses of the files that were made
    :param jobs: the Luma jobs that made them; a job without ``files`` made all of them
    :param facts: further facts about the files
    """
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    # The video exists and is paid for, so no failure here may fail the task.
    try:
        jobs = list(jobs)
    except Exception:
        operator.log.warning("The asset events will omit the Luma job", exc_info=True)
        jobs = []
    for outlet in operator.outlets:
        if not isinstance(outlet, (Asset, AssetAlias, AssetRef)):
            continue  # a File or Table for OpenLineage has no events
        try:
            event = context["outlet_events"][outlet]
            if isinstance(outlet, AssetAlias):
                for file in files:
                    own = [job for job in jobs if file in job.get("files", files)]
                    event.add(Asset(asset_uri(plain_text(file))), extra={**_facts([file], own), **facts})
            else:
                event.extra = {**_facts(files, jobs), **facts, **event.extra}
        except Exception:
            operator.log.warning("The asset event of outlet %r will not describe the video", outlet, exc_info=True)


def update_outlets_of_job(
    operator: BaseOperator,
    context: Context,
    result: Mapping[str, Any],
    *,
    prompt: object,
    source: object,
    facts: Callable[[Context], Mapping[str, Any]] = lambda _: {},
) -> None:
    """
    Add what is known about a job to the asset events of the task that submitted it or waited for it.

    :param result: what the task returns
    :param prompt: the job's prompt
    :param source: the address of the video that was modified
    :param facts: returns further facts about the task's DAG run
    """
    job = {
        "luma_task_id": result["luma_task_id"],
        "expires_at": _expires_at(result),
        "prompt": plain_text(read_text(prompt) or ""),
        "source": plain_text(str(source or "")),
    }
    # In an address from Luma's own API, the whole query is a signature, whatever its parameters are called.
    shown = without_signatures if result.get("service", DEFAULT_SERVICE) == DEFAULT_SERVICE else without_secrets
    try:
        further = facts(context)
    except Exception:  # the job is paid for
        operator.log.warning("The asset events will omit the jobs of the DAG run", exc_info=True)
        further = {}
    update_outlets(operator, context, [shown(url) for url in result["result_urls"]], [job], **further)


def jobs_of_results(
    operator: BaseOperator, context: Context, files: Sequence[tuple[ResultFile, str]]
) -> Iterator[dict[str, Any]]:
    """
    Yield the jobs of directly upstream tasks that made some of the results, each with its files.

    :param files: the results that those tasks returned, each with the address of the file it was written to
    """
    for task_id in sorted(operator.upstream_task_ids):
        # Usually, the job with the same map index made them. If it did not make all, every job must be read.
        own = context["ti"].map_index
        for map_index in (None,) if own in (None, -1) else (own, None):
            found = [(job, _files_of(job, files)) for job in _jobs(context, task_id, map_index) if job]
            if {file for _, of_job in found for file in of_job} == {file for _, file in files}:
                break
        yield from ({**job, "files": of_job} for job, of_job in found if of_job)


def _files_of(job: Mapping[str, Any], files: Sequence[tuple[ResultFile, str]]) -> list[str]:
    """Return the files that a job made. A file whose job id is unknown is matched by the result's address."""

    def is_its_own(result: ResultFile) -> bool:
        if result.luma_task_id is None:
            return result.url in set(job["result_urls"])
        return plain_text(result.luma_task_id) == str(job["luma_task_id"])

    return [file for result, file in files if is_its_own(result)]


def jobs_of_clips(operator: BaseOperator, context: Context, clips: Collection[str]) -> Iterator[dict[str, Any]]:
    """
    Yield the jobs that made modified clips: those of the tasks upstream of the downloads.

    :param clips: the addresses of the clips, as returned by the download tasks
    """
    wanted = set(clips)
    for download in operator.upstream_list:
        written = [wanted & set(read_strings(files)) for files in _pull(context, download.task_id, "return_value")]
        for task_id in sorted(download.upstream_task_ids) if any(written) else ():
            jobs = list(_jobs(context, task_id))
            if len(jobs) == len(written):  # otherwise it is unclear which job made which clip
                yield from (job for job, own in zip(jobs, written, strict=True) if job and own)


def _facts(files: Sequence[str], jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known about files and jobs as JSON values, without empty ones."""
    facts = {
        "files": [plain_text(file) for file in files],
        "luma_task_ids": [job["luma_task_id"] for job in jobs],
        "prompts": list(dict.fromkeys(job["prompt"] for job in jobs if job["prompt"])),
        "sources": list(dict.fromkeys(asset_uri(job["source"]) for job in jobs if job["source"])),
        "results_expire_at": min((job["expires_at"] for job in jobs if job["expires_at"]), default=None),
    }
    return {name: value for name, value in facts.items() if value}


def _jobs(context: Context, task_id: str, map_index: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Yield the jobs of a task, for one map index or for all; None for a result that is not a job."""
    requests = _pull(context, task_id, REQUEST_KEY, map_index)
    if not any(requests):
        return  # the task has nothing to do with Luma, and may have returned anything
    results = _pull(context, task_id, "return_value", map_index)
    if len(requests) != len(results):
        requests = []  # some tasks failed: it is unknown which request led to which result
    for result, request in zip_longest(results, requests):
        if not isinstance(result, Mapping) or not read_text(result.get("luma_task_id")):
            yield None
            continue
        asked = request if isinstance(request, Mapping) else {}
        yield {
            "luma_task_id": plain_text(result["luma_task_id"]),
            "result_urls": set(read_strings(result.get("result_urls"))),
            "expires_at": _expires_at(result),
            "prompt": plain_text(read_text(asked.get("prompt")) or ""),
            "source": plain_text(read_text(asked.get("source")) or read_text(asked.get("video_url")) or ""),
        }


def _pull(context: Context, task_id: str, key: str, map_index: int | None = None) -> list[Any]:
    """Return the XComs of a task under a key, for one map index or for all in order."""
    indexes: dict[str, Any] = {} if map_index is None else {"map_indexes": map_index}
    pulled = context["ti"].xcom_pull(task_ids=[task_id], key=key, **indexes)
    return list(pulled or ())


def _expires_at(result: Mapping[str, Any]) -> str | None:
    """Return when the address of a result expires, if that is known."""
    try:
        completed_at = datetime.fromisoformat(str(result.get("completed_at"))).astimezone(UTC)
        kept = SERVICES[result.get("service", DEFAULT_SERVICE)].results_kept
        return (completed_at + timedelta(seconds=kept)).isoformat()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None

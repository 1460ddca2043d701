# SPDX-License-Identifier: Apache-2.0
"""
Lineage: what the videos of a task are called, in OpenLineage's events and as assets.

Names follow OpenLineage's naming conventions (https://openlineage.io/docs/spec/naming), and are those that Airflow's
own operators give the same files. They hold no connection id, user or password, and no query, which may be a signature.
OpenLineage is imported only when it asks a task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.core.addresses import is_luma_file, is_web_address, split_address
from airflow_provider_luma.core.redaction import without_secrets

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

#: Schemes that mean the same storage.
_SAME_STORAGE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}


def dataset_name(address: str) -> tuple[str, str]:
    """
    Return the namespace and the name that OpenLineage has for a file.

    :param address: on the web or in a storage, a path on this machine, or a file uploaded to Luma's own API
    """
    if is_luma_file(address):
        scheme, _, file_id = address.partition(":")
        return scheme, file_id
    if is_web_address(address):
        address = without_secrets(address.strip())
    scheme, authority, name = split_address(address.lstrip())
    if not scheme:
        return "file", str(Path(address).absolute())
    scheme = _SAME_STORAGE.get(scheme.lower(), scheme.lower())
    if scheme == "file":
        return "file", f"/{name}"
    host = authority.rpartition("@")[2]
    return f"{scheme}://{host}", f"/{name}" if scheme in ("http", "https") else name.lstrip("/")


def asset_uri(address: str) -> str:
    """
    Return the address of a file by which whoever knows it in another way finds it, too.

    Airflow cuts an asset's address at a ``#``, and sorts what comes after a ``?``. In the name of a stored file these
    are percent-encoded, and so is ``%``, so that two files are never one asset.

    :param address: as for :func:`dataset_name`
    """
    if is_luma_file(address):
        return address
    namespace, name = dataset_name(address)
    if not is_web_address(address):
        name = re.sub(r"[%?#\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", name)
    return f"file://{name}" if namespace == "file" else f"{namespace}/{name.lstrip('/')}"


def job_lineage(source: object, result: Mapping[str, Any]) -> OperatorLineage[Any, Any]:
    """
    Return what OpenLineage is told of a task that has waited for a job.

    :param source: address of the video that was modified
    :param result: what the task has returned; empty if it has failed
    """
    return task_lineage([source], result.get("result_urls", ()), luma_task_id=result.get("luma_task_id"))


def task_lineage(
    inputs: Iterable[object], outputs: Iterable[object], *, luma_task_id: str | None = None
) -> OperatorLineage[Any, Any]:
    """
    Return what OpenLineage is told of a task.

    :param inputs: addresses of what the task has read
    :param outputs: addresses of what the task has made; none if it has failed
    :param luma_task_id: the job at Luma
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    def datasets(addresses: Iterable[object]) -> list[Dataset]:
        names = dict.fromkeys(dataset_name(str(address)) for address in addresses if address)
        return [Dataset(namespace=namespace, name=name) for namespace, name in names]

    facets = {"externalQuery": ExternalQueryRunFacet(luma_task_id, source="luma")} if luma_task_id else {}
    return OperatorLineage(inputs=datasets(inputs), outputs=datasets(outputs), run_facets=facets)

# SPDX-License-Identifier: Apache-2.0
"""
Lineage: the names of a task's videos in OpenLineage events and as assets.

Names follow OpenLineage's naming conventions (https://openlineage.io/docs/spec/naming), and match those that Airflow's
own operators give the same files. They contain no connection id, user or password, and no query, which may be a
signature. OpenLineage is imported only when it collects the lineage of a task.
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

#: Aliases of storage schemes.
_SAME_STORAGE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}


def dataset_name(address: str) -> tuple[str, str]:
    """
    Return the namespace and name of a file in OpenLineage.

    :param address: an address on the web or in storage, a path on this machine, or an upload or result at Luma's own
        API, as ``luma-file:ID`` or ``luma-job:ID``
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
    Return the asset URI of a file, which is the same for every spelling of the file's address.

    Airflow cuts an asset's address at a ``#``, and sorts the parameters after a ``?``. In the name of a stored file,
    these two characters and ``%`` are percent-encoded, so that two files never become the same asset.

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
    Return the OpenLineage data of a task that waited for a job.

    :param source: address of the video that was modified
    :param result: what the task returned; empty if it failed
    """
    return task_lineage([source], result.get("result_urls", ()), luma_task_id=result.get("luma_task_id"))


def task_lineage(
    inputs: Iterable[object], outputs: Iterable[object], *, luma_task_id: str | None = None
) -> OperatorLineage[Any, Any]:
    """
    Return the OpenLineage data of a task.

    :param inputs: addresses of the files that the task read
    :param outputs: addresses of the files that the task made; none if it failed
    :param luma_task_id: the job's id at Luma
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    def datasets(addresses: Iterable[object]) -> list[Dataset]:
        names = dict.fromkeys(dataset_name(str(address)) for address in addresses if address)
        return [Dataset(namespace=namespace, name=name) for namespace, name in names]

    facets = {"externalQuery": ExternalQueryRunFacet(luma_task_id, source="luma")} if luma_task_id else {}
    return OperatorLineage(inputs=datasets(inputs), outputs=datasets(outputs), run_facets=facets)

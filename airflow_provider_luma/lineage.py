# SPDX-License-Identifier: Apache-2.0
"""
Lineage: the names of a task's videos in OpenLineage's events and as assets.

Names follow OpenLineage's naming conventions (https://openlineage.io/docs/spec/naming), and match those that Airflow's
own operators give the same files. They contain no connection id, user or password, and no query, which may be a
signature. OpenLineage is imported only when it asks a task for its lineage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.core.addresses import is_web_address, split_address
from airflow_provider_luma.core.redaction import without_secrets

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

#: Schemes that mean the same storage.
_SAME_STORAGE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}


def dataset_name(address: str) -> tuple[str, str]:
    """
    Return a file's namespace and name in OpenLineage.

    :param address: a web or storage address, or a path on this machine
    """
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
    Return a file's address as an asset, which is the same however the file was addressed.

    Airflow cuts an asset's address off at a ``#``, and sorts what follows a ``?``. In the name of a stored file these
    are percent-encoded, and so is ``%``, so that two files never become one asset.

    :param address: as for :func:`dataset_name`
    """
    namespace, name = dataset_name(address)
    if not is_web_address(address):
        name = re.sub(r"[%?#\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", name)
    return f"file://{name}" if namespace == "file" else f"{namespace}/{name.lstrip('/')}"


def job_lineage(source: object, result: Mapping[str, Any]) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a task that has waited for a job.

    :param source: address of the input video
    :param result: the task's return value; empty if it has failed
    """
    return task_lineage([source], result.get("result_urls", ()), luma_task_id=result.get("luma_task_id"))


def task_lineage(
    inputs: Iterable[object], outputs: Iterable[object], *, luma_task_id: str | None = None
) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a task.

    :param inputs: addresses of the files that the task has read
    :param outputs: addresses of the files that the task has written; none if it has failed
    :param luma_task_id: the job's id at Luma
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, ExternalQueryRunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage

    def datasets(addresses: Iterable[object]) -> list[Dataset]:
        names = dict.fromkeys(dataset_name(str(address)) for address in addresses if address)
        return [Dataset(namespace=namespace, name=name) for namespace, name in names]

    facets = {"externalQuery": ExternalQueryRunFacet(luma_task_id, source="luma")} if luma_task_id else {}
    return OperatorLineage(inputs=datasets(inputs), outputs=datasets(outputs), run_facets=facets)

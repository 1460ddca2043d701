# SPDX-License-Identifier: Apache-2.0
"""Masks the queries of addresses in logs and rendered templates, since a query may be a credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from urllib.parse import parse_qsl

from airflow.sdk.log import mask_secret

from airflow_provider_luma.core.addresses import is_web_address

#: Characters of the shortest value that is masked; dates and names of keys are shorter, signatures longer.
MIN_SECRET_LENGTH = 20

#: Values of one query, and addresses of one value, that are masked. The time of Airflow's masker grows with the square
#: of their number, and of a long list Airflow stores only the beginning as a rendered template.
MAX_SECRETS, MAX_ADDRESSES = 8, 20


def mask_query(url: str) -> None:
    """Mask the query of an address, and the longest values in it."""
    query = url.partition("?")[2].partition("#")[0]
    encoded = (pair.partition("=")[2] for pair in query.split("&"))
    secrets = {query, *encoded, *(decoded for _, decoded in parse_qsl(query))}
    for secret in sorted(secrets, key=len, reverse=True)[:MAX_SECRETS]:
        if len(secret) >= MIN_SECRET_LENGTH:
            mask_secret(secret)


def mask_queries(value: object) -> None:
    """
    Mask the queries of addresses.

    :param value: addresses, however deep in lists and dicts
    """
    for url in islice(_addresses_in(value), MAX_ADDRESSES):
        mask_query(url)


def _addresses_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if is_web_address(value):
            yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _addresses_in(item)

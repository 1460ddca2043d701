# SPDX-License-Identifier: Apache-2.0
"""Keeps the queries of addresses out of logs and rendered templates, since a query may be a credential."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from urllib.parse import parse_qsl

from airflow.sdk.log import mask_secret

from airflow_provider_luma.core.addresses import is_web_address

#: Characters of the shortest value that is masked; dates and names of keys are shorter, signatures longer.
MIN_SECRET_LENGTH = 20

#: Maximum values of one query, and addresses in one value, to mask. Airflow's masker takes time that grows with the
#: square of their number, and Airflow stores only the beginning of a long list as a rendered template.
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


class _DebugLogs:
    """The DEBUG logs of this process, which are off while at least one thread wants that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level_before = logging.NOTSET

    def off(self) -> None:
        with self._lock:
            if self._users == 0:
                self._level_before = logging.root.manager.disable
                logging.disable(max(self._level_before, logging.DEBUG))
            self._users += 1

    def on(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                logging.disable(self._level_before)


_debug_logs = _DebugLogs()


@contextmanager
def without_debug_logs() -> Iterator[None]:
    """Keep libraries, such as botocore and urllib3, from logging signatures."""
    _debug_logs.off()
    try:
        yield
    finally:
        _debug_logs.on()

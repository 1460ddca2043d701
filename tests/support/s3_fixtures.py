# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that need an S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from airflow.sdk.io import store
from moto.server import ThreadedMotoServer

from tests.support.storages import BUCKET, Bucket, aws_connection


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket behind the connection my_s3."""
    monkeypatch.setenv("AIRFLOW_CONN_MY_S3", aws_connection(s3_endpoint))
    requests.post(f"{s3_endpoint}/moto-api/reset", timeout=60).raise_for_status()
    bucket = Bucket(s3_endpoint, f"s3://my_s3@{BUCKET}/videos", "videos/")
    bucket.s3.create_bucket(Bucket=BUCKET)
    store._STORE_CACHE.pop("s3-my_s3", None)
    yield bucket
    store._STORE_CACHE.pop("s3-my_s3", None)

# SPDX-License-Identifier: Apache-2.0
"""No request, whatever it holds, breaks the receiver; and none without a valid token resumes a task."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_luma.receiver import app as receiver_app
from harness.api_server import ENDED, FORGED_QUERIES, ApiServer, proof
from harness.metadata_db import MetadataDb, operator_awaiting_callback, operator_awaiting_job

PATHS = ["/luma/callback", "/luma/result", "/luma/static/result.css", "/luma/static/result.js", "/luma/"]
METHODS = ["POST", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "QUERY", "", "post"]
HEADERS = [
    *(b"content-type", b"content-length", b"range", b"if-range", b"if-none-match", b"if-modified-since", b"accept"),
    *(b"x-webhook-timestamp", b"x-webhook-signature", b"authorization", b"cookie", b"origin", b"host", b"expect"),
]
VALUES = [
    b"bytes=0-",
    b"bytes=9999999-",
    b"bytes=-1",
    b"bytes=5-1,0-0",
    b"bytes=a-b",
    b"-1",
    b"1e9",
    b"text/html",
    b"*",
]
FORGED = [query() for query in FORGED_QUERIES.values()]

fields = st.dictionaries(
    st.sampled_from(["conn_id", "reference", "token", "x"]),
    st.one_of(st.text(max_size=70), st.sampled_from(["luma_default", "a_database", "0" * 32, "0" * 64])),
)
queries = st.one_of(
    st.just(b""),
    st.binary(max_size=120),
    st.sampled_from(FORGED).map(str.encode),
    fields.map(lambda some: urlencode(some, errors="surrogatepass").encode()),
)
paths = st.one_of(st.sampled_from(PATHS), st.text(max_size=30).map(lambda text: f"/luma/{text}"))
header_lists = st.lists(
    st.tuples(st.sampled_from(HEADERS), st.one_of(st.sampled_from(VALUES), st.binary(max_size=30))), max_size=4
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.just(json.dumps(ENDED).encode()),
    st.sampled_from([b"[" * 5000, b"\xff" * 10, b"x" * 300_000]),
)
named_jobs = st.builds(lambda text: json.dumps({"data": {"taskId": text}}).encode(), st.text())

in_one_database = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def deferred_tasks(metadata_db: MetadataDb) -> None:
    """Tasks that a callback could resume."""
    metadata_db.defer(operator_awaiting_job(), operator_awaiting_callback("0" * 32), operator_awaiting_callback(""))


any_request = given(
    method=st.sampled_from(METHODS),
    path=paths,
    query=queries,
    headers=header_lists,
    chunks=st.lists(bodies, max_size=3),
)
any_callback = given(headers=header_lists, chunks=st.lists(st.one_of(bodies, named_jobs), max_size=3))


@settings(in_one_database, max_examples=100)
@any_request
async def test_request_without_a_valid_token_breaks_nothing_and_resumes_nobody(
    metadata_db, deferred_tasks, api_server, method, path, query, headers, chunks
):
    await assert_harmless(metadata_db, api_server, method, path, query, headers, chunks)


@pytest.mark.long
@settings(in_one_database, max_examples=5000)
@any_request
async def test_of_many_requests_without_a_valid_token_none_breaks_anything_or_resumes_anybody(
    metadata_db, deferred_tasks, api_server, method, path, query, headers, chunks
):
    await assert_harmless(metadata_db, api_server, method, path, query, headers, chunks)


async def assert_harmless(
    metadata_db: MetadataDb,
    api_server: ApiServer,
    method: str,
    path: str,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    chunks: list[bytes],
) -> None:
    api_server.scopes.clear()
    scope = {"method": method, "path": path, "query_string": query, "headers": headers}
    status = await api_server.raw_request(scope, chunks)
    assert 200 <= status < 500
    if path == "/luma/callback":
        assert status in (403, 405)
    assert not receiver_app._running
    assert metadata_db.resumed() == set()


@settings(in_one_database, max_examples=50)
@any_callback
async def test_callback_with_a_valid_token_breaks_nothing_whatever_its_headers_and_body(api_server, headers, chunks):
    await assert_taken_or_refused(api_server, headers, chunks)


@pytest.mark.long
@settings(in_one_database, max_examples=1500)
@any_callback
async def test_of_many_callbacks_with_a_valid_token_none_breaks_anything(api_server, headers, chunks):
    await assert_taken_or_refused(api_server, headers, chunks)


async def assert_taken_or_refused(
    api_server: ApiServer, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
) -> None:
    scope = {"method": "POST", "path": "/luma/callback", "query_string": proof().encode(), "headers": headers}
    assert await api_server.raw_request(scope, chunks) in (200, 400, 413)
    await api_server.tasks_resumed()

# SPDX-License-Identifier: Apache-2.0
"""Addresses of files: their parts, and what of them is shown."""

from __future__ import annotations

import pytest

from airflow_provider_luma.core.addresses import split_address
from airflow_provider_luma.core.redaction import shown_address, without_secrets


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s3://my_aws@bucket/a/Take #1?.mp4", ("s3", "my_aws@bucket", "a/Take #1?.mp4")),
        ("S3A://bucket", ("S3A", "bucket", "")),
        ("s3://bucket/a://b.mp4", ("s3", "bucket", "a://b.mp4")),
        ("s3://bucket//a.mp4", ("s3", "bucket", "/a.mp4")),
        ("file:///data/[1].mp4", ("file", "", "data/[1].mp4")),
        ("/data/s3://b.mp4", ("", "", "/data/s3://b.mp4")),
        ("relative#.mp4", ("", "", "relative#.mp4")),
    ],
)
def test_name_of_a_file_is_all_that_follows_its_bucket_or_host(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("name", ["Take #1.mp4", "Take?1.mp4", "#", "a@b/c@d.mp4", "100%.mp4", "a//b@c.mp4"])
def test_name_of_a_stored_file_is_shown_whole(name):
    assert shown_address(f"s3://user:SECRET@bucket/{name}") == f"s3://bucket/{name}"
    assert shown_address(f"file:///data/{name}") == f"file:///data/{name}"
    assert shown_address(f"/data/{name}") == f"/data/{name}"


@pytest.mark.parametrize("show", [shown_address, without_secrets])
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:SECRET@e.com/a@b.mp4?sig=SECRET#SECRET", "https://e.com/a@b.mp4"),
        ("https://user:SEC@RET@e.com/v.mp4", "https://e.com/v.mp4"),
        ("https:////user:SECRET@e.com/v.mp4#SECRET?a", "https://e.com/v.mp4"),
        (" HTTP://user:SECRET@e.com?sig=SECRET", "HTTP://e.com"),
        ("//user:SECRET@e.com/v.mp4?sig=SECRET", "//e.com/v.mp4"),
        ("http:e.com/v.mp4?sig=SECRET", "http:e.com/v.mp4"),
        ("e.com/v.mp4?sig=SECRET", "e.com/v.mp4"),
    ],
)
def test_user_query_and_fragment_of_a_web_address_are_not_shown(show, address, shown):
    assert show(address) == shown

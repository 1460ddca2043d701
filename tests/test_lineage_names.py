# SPDX-License-Identifier: Apache-2.0
"""Lineage: the names that videos have in OpenLineage's events, and which of them a task names."""

from __future__ import annotations

import pytest
from airflow.sdk import Asset
from openlineage.client.naming.dataset import GCS, S3, LocalFileSystem

from airflow_provider_luma.lineage import asset_uri, dataset_name, task_lineage
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator, LumaUploadOperator
from airflow_provider_luma.operators.video import VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from tests.support import fresh_python
from tests.support.clips import clip

OPERATORS = (
    LumaModifyOperator(task_id="modify", prompt="rain", video_url="s3://my_aws@b/k.mp4"),
    LumaTaskSensor(task_id="wait", luma_task_id="0123456789abcdef"),
    LumaUploadOperator(task_id="upload", source="s3://my_aws@b/k.mp4"),
    LumaDownloadOperator(task_id="download", urls=["https://e.com/v.mp4"], destination="/data"),
    VideoSplitOperator(task_id="split", source="s3://my_aws@b/k.mp4", destination="/data"),
    VideoJoinOperator(task_id="join", clips=[["/data/1.mp4"]], source="s3://my_aws@b/k.mp4", destination="/d.mp4"),
)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/a/b.mp4", ("s3://bucket", "a/b.mp4")),
        ("s3://my_aws@bucket/a/b.mp4", ("s3://bucket", "a/b.mp4")),
        ("s3a://my_aws@bucket/b.mp4", ("s3://bucket", "b.mp4")),
        ("S3://bucket/b.mp4", ("s3://bucket", "b.mp4")),
        ("gcs://my_gcp@bucket/b.mp4", ("gs://bucket", "b.mp4")),
        ("abfs://my_azure@container/b.mp4", ("abfs://container", "b.mp4")),
        ("/data/b.mp4", ("file", "/data/b.mp4")),
        ("/data/take #1?.mp4", ("file", "/data/take #1?.mp4")),
        ("file:///data/b.mp4", ("file", "/data/b.mp4")),
        ("file:///data/take #1?.mp4", ("file", "/data/take #1?.mp4")),
        ("file://my_disk@/data/b.mp4", ("file", "/data/b.mp4")),
        ("https://e.com:8443/a/b.mp4", ("https://e.com:8443", "/a/b.mp4")),
        ("http://e.com", ("http://e.com", "/")),
        ("luma-file:3f1c7a90-8d2b", ("luma-file", "3f1c7a90-8d2b")),
    ],
)
def test_file_has_the_name_that_openlineage_has_for_it(address, name):
    assert dataset_name(address) == name


def test_names_are_those_of_openlineages_own_client():
    for naming, address in (
        (S3("bucket", "a/b.mp4"), "s3://bucket/a/b.mp4"),
        (GCS("bucket", "a/b.mp4"), "gs://bucket/a/b.mp4"),
        (LocalFileSystem("/data/b.mp4"), "file:///data/b.mp4"),
    ):
        assert dataset_name(address) == (naming.get_namespace(), naming.get_name())


@pytest.mark.parametrize(
    "address",
    [
        "https://user:SECRET@e.com/v.mp4",
        "https://user%40e.com:SECRET@e.com/v.mp4",
        "https://a@b:SECRET@e.com/v.mp4",
        "https://e.com/v.mp4?X-Amz-Signature=SECRET",
        "https://e.com?sig=SECRET",
        "https://e.com/v.mp4#SECRET",
        "https://e.com/v.mp4?a=1#SECRET?b",
        "https://user:pass@e.com?u=https://user@SECRET/",
        "s3://key:SECRET@bucket/v.mp4",
        "S3://key:SEC?RET@bucket/v.mp4",
        " HTTPS://user:SECRET@e.com/v.mp4?a#SECRET",
    ],
)
def test_name_holds_no_user_password_query_or_fragment(address):
    assert "SECRET" not in str(dataset_name(address))
    assert "@" not in str(dataset_name(address))
    assert "SECRET" not in asset_uri(address)


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("s3://my_aws@bucket/a/b.mp4", "s3://bucket/a/b.mp4"),
        ("/data/b.mp4", "file:///data/b.mp4"),
        ("file:///data/b.mp4", "file:///data/b.mp4"),
        ("s3://bucket/My Clip, é & [2]; a=1 + b@c: 'x'.mp4", "s3://bucket/My Clip, é & [2]; a=1 + b@c: 'x'.mp4"),
        ("s3://bucket/Take #1?.mp4", "s3://bucket/Take %231%3F.mp4"),
        ("s3://bucket/Take%20%231.mp4", "s3://bucket/Take%2520%25231.mp4"),
        ("/data/a\nb.mp4", "file:///data/a%0Ab.mp4"),
        ("https://e.com/a/b.mp4?sig=1", "https://e.com/a/b.mp4"),
    ],
)
def test_asset_has_the_address_without_the_connection(address, uri):
    assert asset_uri(address) == uri


SPECIAL_NAMES = [
    *("Take #1.mp4", "Take #2.mp4", "Take ?1.mp4", "Take ?b=1&a=2.mp4", "Take ?a=2&b=1.mp4", "Take%20%231.mp4"),
    *("Take %231.mp4", "Take ", "Take #", "Take ?", "a\nb.mp4", "ab.mp4", "a\tb.mp4"),
]


@pytest.mark.parametrize("folder", ["s3://my_aws@bucket", "gs://bucket/x", "file:///data", "/data", "sftp://host/x"])
def test_no_two_files_are_one_asset_or_one_dataset(folder):
    addresses = [f"{folder}/{name}" for name in SPECIAL_NAMES]
    assert len({Asset(asset_uri(address)).uri for address in addresses}) == len(addresses)
    assert [dataset_name(address)[1].rpartition("/")[2] for address in addresses] == SPECIAL_NAMES


def test_each_file_is_named_once():
    lineage = task_lineage(["s3://one@b/k", "s3://another@b/k", None, ""], [])
    assert [(one.namespace, one.name) for one in lineage.inputs] == [("s3://b", "k")]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.task_id)
def test_task_that_has_failed_names_no_output(operator):
    """OpenLineage asks a failed task the same question."""
    lineage = operator.get_openlineage_facets_on_complete(None)
    assert lineage.outputs == []
    assert lineage.run_facets == {}


@pytest.mark.parametrize("urls", [None, [], ""], ids=str)
def test_download_that_was_given_nothing_has_no_lineage(urls):
    operator = LumaDownloadOperator(task_id="download", urls=urls, destination="/data")
    assert operator.get_openlineage_facets_on_complete(None).inputs == []


@pytest.mark.xdist_group("fresh Python")
def test_running_a_task_imports_no_openlineage(tmp_path):
    film, clips = tmp_path / "film.mp4", tmp_path / "clips"
    film.write_bytes(clip(seconds=2))
    loaded = fresh_python.run(f"""
import sys
from airflow_provider_luma.operators.video import VideoSplitOperator
from tests.support.task_instance import TaskInstance, TaskStateStore
operator = VideoSplitOperator(task_id="split", source={str(film)!r}, destination={str(clips)!r})
operator.execute({{"ti": TaskInstance(), "task_state_store": TaskStateStore()}})
result = sorted(sys.modules)
""")
    assert list(clips.iterdir()), "it has run"
    assert "airflow_provider_luma.operators.video" in loaded
    # Airflow itself looks at the configuration of OpenLineage's provider.
    unwanted = {"openlineage", "airflow_provider_luma.lineage", "airflow_provider_luma.asset_events"}
    assert unwanted.isdisjoint(loaded)

# SPDX-License-Identifier: Apache-2.0
"""Clips without a public address, on a real Airflow: from a disk and from one bucket to another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import boto3
import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.runs import finish
from tests.e2e.videos import assert_modified
from tests.support.clips import clip as make_clip
from tests.support.storages import BUCKET

pytestmark = pytest.mark.xdist_group("runs")


@pytest.mark.long
def test_clip_on_a_disk_is_uploaded_once_and_modified(
    airflow: LocalAirflow, luma: Simulator, environment: dict[str, str]
) -> None:
    luma.configure(processing_seconds=1)
    clip = Path(environment["LUMA_VIDEO"])

    run_id = airflow.trigger("luma_modify", video_url=str(clip))

    assert finish(airflow, "luma_modify", run_id) == "success", airflow.story("luma_modify", run_id)
    assert (luma.accepted, len(luma.uploads)) == (1, 1)
    assert luma.uploads[0].sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    [file] = airflow.xcom("luma_modify", run_id, "download")
    assert_modified(file, luma.sample_url)


@pytest.mark.parametrize(
    "dag_id",
    # test_no_secrets runs it with the other service every time.
    ["uploaded_clip", pytest.param("uploaded_clip_luma", marks=pytest.mark.long)],
)
def test_clip_goes_from_one_bucket_to_another(
    airflow: LocalAirflow, lumas: dict[str, Simulator], s3_endpoint: str, tmp_path: Path, dag_id: str
) -> None:
    luma = lumas["input_uploaded"]
    luma.reset()

    run_id = airflow.trigger(dag_id)

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    assert (luma.accepted, len(luma.uploads)) == (1, 1)
    s3 = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    s3.download_file(BUCKET, f"{dag_id}/clip.mp4", str(tmp_path / "clip.mp4"))
    assert_modified(str(tmp_path / "clip.mp4"), luma.sample_url)


@pytest.mark.parametrize(
    ("dag_id", "clips"),
    [("luma_long_video", 3), pytest.param("own_api_luma_long_video", 2, marks=pytest.mark.long)],
)
def test_long_film_is_modified_clip_by_clip_and_has_its_own_sound(
    airflow: LocalAirflow, luma: Simulator, tmp_path: Path, dag_id: str, clips: int
) -> None:
    luma.configure(processing_seconds=1)
    film = tmp_path / "film.mp4"
    film.write_bytes(make_clip(seconds=25, size=(320, 180), sound="aac"))

    run_id = airflow.trigger(dag_id, source=str(film), destination=str(tmp_path))

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    assert airflow.xcom(dag_id, run_id, "film.split", "clip_count") == luma.accepted == clips
    made = Path(airflow.xcom(dag_id, run_id, "film.join").removeprefix("file://"))
    with av.open(str(made)) as container:
        assert abs(container.duration / av.time_base - 25) < 0.1
        assert len(container.streams.audio) == 1
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted([film, made]), "what was needed on the way is removed"


@pytest.mark.long
@pytest.mark.parametrize("dag_id", ["luma_variations", "own_api_luma_variations"])
def test_one_upload_serves_all_variations(airflow: LocalAirflow, luma: Simulator, dag_id: str) -> None:
    luma.configure(processing_seconds=1)

    run_id = airflow.trigger(dag_id)

    assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)
    assert (luma.accepted, len(luma.uploads)) == (3, 1)
    versions = airflow.xcom(dag_id, run_id, "collect")
    assert [version["prompt"] for version in versions] == [
        "Make it a rainy night with neon lights",
        "Cover everything in fresh snow",
        "Paint it in watercolours",
    ]
    sample = luma.sample_url
    for version in versions:
        assert_modified(version["file"], sample)

# SPDX-License-Identifier: Apache-2.0
"""Lineage and assets on a real Airflow: what OpenLineage and the asset events say of each task's videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_luma.simulator import Job, Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import API_KEY
from tests.e2e.runs import finish
from tests.support.storages import BUCKET

pytestmark = pytest.mark.xdist_group("pages")

Dataset = tuple[str, str]

#: The tasks of the DAG, each with how many instances it has.
TASKS = {"split": 1, "modify": 2, "download": 2, "join": 1, "upload": 1, "submit": 1, "wait": 1, "signed": 1}


class Run:
    """A run of the DAG ``lineage``, and what OpenLineage was told of it."""

    def __init__(self, airflow: LocalAirflow, run_id: str, events: Path, signed_job: Job) -> None:
        self.airflow, self.run_id, self._events, self.signed_job = airflow, run_id, events, signed_job

    def completed(self) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self._events.read_text().splitlines()]
        names = {f"lineage.{task_id}" for task_id in TASKS}
        return [event for event in events if event["eventType"] == "COMPLETE" and event["job"]["name"] in names]

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """Return the COMPLETE events of a task's instances, in the order of their map indexes."""
        own = [event for event in self.completed() if event["job"]["name"] == f"lineage.{task_id}"]
        return sorted(own, key=lambda event: event["run"]["facets"]["airflow"]["taskInstance"].get("map_index", -1))

    def returned(self, task_id: str, map_index: int = -1) -> Any:
        return self.airflow.xcom("lineage", self.run_id, task_id, map_index=map_index)

    def asset_events(self, task_id: str) -> list[dict[str, Any]]:
        query = {"source_dag_id": "lineage", "source_task_id": task_id}
        return self.airflow.call("GET", "/assets/events", params=query)["asset_events"]


@pytest.fixture(scope="module")
def run(airflow: LocalAirflow, lumas: dict[str, Simulator], lineage_events: Path) -> Run:
    for name in ("default", "input_signed"):
        lumas[name].reset()
    lumas["default"].configure(processing_seconds=1)
    run_id = airflow.trigger("lineage")
    assert finish(airflow, "lineage", run_id) == "success", airflow.story("lineage", run_id)
    [signed_job] = lumas["input_signed"].jobs
    run = Run(airflow, run_id, lineage_events, signed_job)
    airflow.wait_until(lambda: len(run.completed()) >= sum(TASKS.values()), "all events")
    return run


def inputs(event: dict[str, Any]) -> set[Dataset]:
    return {(dataset["namespace"], dataset["name"]) for dataset in event["inputs"]}


def outputs(event: dict[str, Any]) -> set[Dataset]:
    return {(dataset["namespace"], dataset["name"]) for dataset in event["outputs"]}


def in_bucket(key: str) -> Dataset:
    return (f"s3://{BUCKET}", key)


def on_the_web(url: str) -> Dataset:
    parts = urlsplit(url)
    return (f"{parts.scheme}://{parts.netloc}", parts.path)


SOURCE = in_bucket("in/clip.mp4")
CLIPS = [in_bucket(f"lineage/clips/clip-{number:04}.mp4") for number in range(2)]
MODIFIED = [in_bucket(f"lineage/modified/clip-{number}.mp4") for number in range(2)]
FILM = in_bucket("lineage/film.mp4")


def test_each_task_completes_once(run: Run) -> None:
    assert {task_id: len(run.of(task_id)) for task_id in TASKS} == TASKS


def test_split_and_join_name_the_film_the_clips_and_the_final_file(run: Run) -> None:
    [split], [join] = run.of("split"), run.of("join")
    assert (inputs(split), outputs(split)) == ({SOURCE}, set(CLIPS))
    assert (inputs(join), outputs(join)) == ({SOURCE, *MODIFIED}, {FILM})


def test_mapped_and_deferred_modify_tasks_name_their_own_source_result_and_job(run: Run) -> None:
    for number, event in enumerate(run.of("modify")):
        result = run.returned("modify", number)
        assert inputs(event) == {CLIPS[number]}, "the file, and not the address that it was uploaded to"
        assert outputs(event) == {on_the_web(url) for url in result["result_urls"]}
        assert event["run"]["facets"]["externalQuery"]["externalQueryId"] == result["luma_task_id"]


def test_mapped_download_tasks_name_their_own_result_and_final_file(run: Run) -> None:
    for number, event in enumerate(run.of("download")):
        [url] = run.returned("modify", number)["result_urls"]
        assert (inputs(event), outputs(event)) == ({on_the_web(url)}, {MODIFIED[number]})


def test_upload_and_the_tasks_that_use_it_are_a_chain(run: Run) -> None:
    [upload], [submit], [wait] = run.of("upload"), run.of("submit"), run.of("wait")
    uploaded = on_the_web(run.returned("upload")["url"])
    assert (inputs(upload), outputs(upload)) == ({SOURCE}, {uploaded})
    assert (inputs(submit), outputs(submit)) == ({uploaded}, set())
    results = {on_the_web(url) for url in run.returned("wait")["result_urls"]}
    assert (inputs(wait), outputs(wait)) == ({uploaded}, results)


def test_names_hold_no_connection(run: Run) -> None:
    names = [dataset for event in run.completed() for dataset in (*inputs(event), *outputs(event))]
    assert [name for name in names if "@" in "".join(name)] == []


def test_signed_source_is_named_without_its_signature(run: Run) -> None:
    [event] = run.of("signed")
    assert inputs(event) == {SOURCE}
    signature = run.signed_job.video_url.partition("Signature=")[2].partition("&")[0]
    assert len(signature) > 20
    told = json.dumps(run.completed())
    assert [secret for secret in (signature, API_KEY) if secret in told] == []


def test_each_mapped_download_adds_its_file_to_the_alias_with_the_job_behind_it(run: Run) -> None:
    events = {event["uri"]: event["extra"] for event in run.asset_events("download")}
    assert set(events) >= {"/".join(file) for file in MODIFIED}
    for number, file in enumerate(MODIFIED):
        extra = events["/".join(file)]
        assert extra["files"] == run.returned("download", number)
        assert extra["luma_task_ids"] == [run.returned("modify", number)["luma_task_id"]]
        assert extra["prompts"] == ["Make it a snowy morning"]
        assert extra["sources"] == ["/".join(CLIPS[number])]
        assert extra["results_expire_at"] > run.returned("modify", number)["completed_at"]


def test_join_tells_its_asset_of_the_film_and_of_every_job_in_it(run: Run) -> None:
    [event] = run.asset_events("join")
    expires = event["extra"].pop("results_expire_at")
    assert expires > run.returned("modify", 0)["completed_at"]
    assert event["extra"].pop("seconds") == pytest.approx(3, abs=0.1)
    assert event["extra"] == {
        "files": [run.returned("join")],
        "luma_task_ids": [run.returned("modify", number)["luma_task_id"] for number in range(2)],
        "prompts": ["Make it a snowy morning"],
        "sources": ["/".join(SOURCE)],
    }

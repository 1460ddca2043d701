# SPDX-License-Identifier: Apache-2.0
"""A person reviews a video in a real browser: both videos, Airflow's form, and what is published."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from selenium.webdriver import Chrome

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.browsers import click, find, wait_for_videos
from tests.e2e.conftest import AIRFLOW
from tests.e2e.runs import finish
from tests.e2e.videos import assert_modified

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("pages")]

#: A task that waits for a person.
WAITING = "awaiting_input" if AIRFLOW >= (3, 3) else "deferred"


def states(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in airflow.tasks(dag_id, run_id)}


def wait_for_question(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, Any]:
    """Wait until a task has asked a person for as long as one needs to read it; return the question."""

    def question() -> dict[str, Any] | None:
        details = airflow.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/hitlDetails")["hitl_details"]
        waiting = [detail for detail in details if not detail["response_received"]]
        waiting = [detail for detail in waiting if detail["task_instance"]["state"] == WAITING]
        # Airflow fails a task that is answered before its executor has seen that its process has ended.
        old = datetime.now(UTC) - timedelta(seconds=8)
        return next((detail for detail in waiting if datetime.fromisoformat(detail["created_at"]) < old), None)

    airflow.wait_until(lambda: question() is not None, "a question")
    asked = question()
    assert asked is not None
    return asked


def answer(browser: Chrome, option: str, **words: str) -> None:
    """Fill Airflow's form, and choose an option."""
    for name, typed in words.items():
        find(browser, f"//input[@name='element_{name}']").send_keys(typed)
    click(browser, f"//button[normalize-space()='{option}']")


def form(airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str = "review") -> str:
    return f"{airflow.url}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/required_actions"


def folder(airflow: LocalAirflow) -> Path:
    return Path(airflow.environment["LUMA_DESTINATION"].removeprefix("file://")) / "published"


@pytest.mark.long
def test_person_sees_both_videos_approves_and_the_video_is_published(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator
) -> None:
    luma.configure(processing_seconds=0.5)
    run_id = airflow.trigger("luma_review")
    wait_for_question(airflow, "luma_review", run_id)
    assert luma.accepted == 1

    browser.get(form(airflow, "luma_review", run_id))
    click(browser, "//a[normalize-space()='See both videos side by side']")
    browser.switch_to.window(browser.window_handles[-1])
    wait_for_videos(browser)
    link = find(browser, "//a[contains(., 'Publish this video?')]")
    assert (link.get_attribute("href") or "").endswith("/tasks/review/required_actions")
    link.click()
    answer(browser, "Approve", comment="as the client wants it")

    assert finish(airflow, "luma_review", run_id) == "success"
    [file] = airflow.xcom("luma_review", run_id, "publish")
    assert Path(file.removeprefix("file://")).parent == folder(airflow)
    assert_modified(file, luma.sample_url)
    assert airflow.xcom("luma_review", run_id, "review")["params_input"]["comment"] == "as the client wants it"


@pytest.mark.long
def test_rejected_video_is_not_published(browser: Chrome, airflow: LocalAirflow, luma: Simulator) -> None:
    luma.configure(processing_seconds=0.5)
    before = set(folder(airflow).glob("*"))
    run_id = airflow.trigger("luma_review")
    wait_for_question(airflow, "luma_review", run_id)

    browser.get(form(airflow, "luma_review", run_id))
    answer(browser, "Reject", comment="too dark")

    assert finish(airflow, "luma_review", run_id) == "success"
    assert states(airflow, "luma_review", run_id)["publish"] == "skipped"
    assert set(folder(airflow).glob("*")) == before


@pytest.mark.skipif(AIRFLOW < (3, 4), reason="needs the loops of Airflow 3.4")
def test_rejection_with_a_new_prompt_makes_the_next_version(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator
) -> None:
    luma.configure(processing_seconds=0.5)
    dag_id = "luma_review_versions"
    run_id = airflow.trigger(dag_id)

    for number, (option, prompt) in enumerate([("Make another version", "Snow, please"), ("Approve", "")], 1):
        question = wait_for_question(airflow, dag_id, run_id)
        assert f"Version {number} of at most 3" in question["body"]
        browser.get(form(airflow, dag_id, run_id, "version.review") + "?" + urlencode(place_in_loop(question)))
        click(browser, "//a[normalize-space()='See both videos side by side']")
        browser.switch_to.window(browser.window_handles[-1])
        wait_for_videos(browser)
        find(browser, "//a[contains(., 'Publish this version?')]").click()
        answer(browser, option, prompt=prompt)

    assert finish(airflow, dag_id, run_id) == "success"
    assert [job.prompt for job in luma.jobs][1:] == ["Snow, please"]
    [file] = airflow.xcom(dag_id, run_id, "publish")
    assert_modified(file, luma.sample_url)


def place_in_loop(question: dict[str, Any]) -> dict[str, Any]:
    return {name: question["task_instance"][name] for name in ("region_id", "region_index")}

# SPDX-License-Identifier: Apache-2.0
"""What ``urls`` of a download may hold, which files that names, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.results import ResultFile, read_results

SIGNED = "https://s3.example.com/o.mp4?X-Amz-Signature=SECRET"


def result(**changes: Any) -> dict[str, Any]:
    """Return what a modify task returns of a job of Luma's own API, with some values changed."""
    return {"luma_task_id": "job-1", "status": "SUCCESS", "result_urls": [SIGNED], "service": "luma", **changes}


def test_address_names_a_file_of_which_no_job_is_known():
    assert read_results([SIGNED]) == [ResultFile(SIGNED)]


def test_result_names_each_of_its_videos_with_its_job():
    assert read_results([result(result_urls=["https://e.com/1", "https://e.com/2"])]) == [
        ResultFile("https://e.com/1", "job-1", "luma", 1),
        ResultFile("https://e.com/2", "job-1", "luma", 2),
    ]


def test_result_without_a_service_is_of_kie():
    kie = result()
    del kie["service"]
    assert [file.service for file in read_results([kie])] == ["kie"]


def test_addresses_and_results_may_be_mixed():
    files = read_results(["https://e.com/a.mp4", result(), "https://e.com/b.mp4"])
    assert [file.luma_task_id for file in files] == [None, "job-1", None]


def test_file_that_is_named_twice_is_fetched_once_although_its_address_has_changed():
    fresh = result(result_urls=["https://s3.example.com/o.mp4?X-Amz-Signature=ANOTHER"])
    assert read_results([result(), "https://e.com/a", fresh, "https://e.com/a"]) == [
        ResultFile(SIGNED, "job-1", "luma", 1),
        ResultFile("https://e.com/a"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"https://e.com/a.mp4",
        [SIGNED],
        {},
        {"result_urls": [SIGNED]},
        result(luma_task_id=None),
        result(luma_task_id=" "),
        result(luma_task_id=["job-1"]),
        result(luma_task_id="job\x00"),
        result(service=None),
        result(service=7),
        result(service={"luma": SIGNED}),
        result(result_urls=None),
        result(result_urls=SIGNED),
        result(result_urls=[None]),
        result(result_urls=[SIGNED, ""]),
        result(result_urls={SIGNED: SIGNED}),
    ],
    ids=repr,
)
def test_anything_else_is_refused_naming_the_parameter_and_the_remedy_without_quoting_an_address(value):
    with pytest.raises(LumaValidationError, match=r"^urls holds .*urls=modify\.output") as raised:
        read_results([value])
    assert "SECRET" not in str(raised.value)


def test_result_of_a_job_that_has_not_ended_says_to_wait_for_it():
    with pytest.raises(LumaValidationError, match="job-1.*GENERATING.*LumaTaskSensor"):
        read_results([result(status="GENERATING", result_urls=[])])


@pytest.mark.parametrize("text", [str(result()), f" {[SIGNED]}"])
def test_text_of_a_result_as_a_template_renders_it_is_refused_naming_the_remedy(text):
    with pytest.raises(LumaValidationError, match=r"urls=modify\.output.*render_template_as_native_obj") as raised:
        read_results([text])
    assert "SECRET" not in str(raised.value)


def test_nothing_is_refused():
    with pytest.raises(LumaValidationError, match="urls is empty"):
        read_results([])

# SPDX-License-Identifier: Apache-2.0
"""What result page and gallery show in each state of a task, and of Airflow, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.e2e.browsers import barriers, complaints, press, text, until, wait_for_text, wait_for_videos
from tests.support.airflow_rest_api import AirflowRestApi
from tests.support.clips import clip

PROMPT = "Turn the day into a rainy night with neon lights"
CLEAR = "Clear this task to wait for it again: nothing new is billed"
MARKUP = "<img src=x onerror=\"window.hit='markup'\">"
TIMED_OUT = {"type": "LumaTimeoutError", "code": None, "msg": "not finished within 1800 s", "luma_task_id": "job-1"}
REFUSED = {"type": "LumaInsufficientCreditsError", "code": 402, "msg": "Top up.", "luma_task_id": None}
GAVE_UP = {"type": "LumaGenerationError", "code": 501, "msg": "The model gave up.", "luma_task_id": "job-1"}
FILM = {"kind": "film", "source": "s3://films/street.mov", "modify_task_ids": ["film.modify"]}
#: A port on which nothing listens, and which browsers are allowed to ask.
NOWHERE = "http://127.0.0.1:49151/clip.mp4"
FRAMES_PER_SECOND = 24

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page states")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowRestApi]:
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    file.write_bytes(clip(seconds=3, rate=FRAMES_PER_SECOND, size=(320, 180)))
    with AirflowRestApi(file).running() as api:
        yield api


@pytest.fixture
def api(served: AirflowRestApi) -> AirflowRestApi:
    """Return an Airflow with nothing in it."""
    served.reset()
    return served


def request(api: AirflowRestApi, **changes: Any) -> dict[str, Any]:
    return {"kind": "clip", "prompt": PROMPT, "video_url": api.clip_url, "recovery": CLEAR, **changes}


def result(*urls: str, age: timedelta = timedelta(hours=1), **changes: Any) -> dict[str, Any]:
    completed_at = (datetime.now(UTC) - age).isoformat()
    return {"luma_task_id": "job-1", "result_urls": urls, "created_at": None, "completed_at": completed_at, **changes}


def is_shown(browser: Chrome, element_id: str) -> bool:
    return browser.find_element(By.ID, element_id).is_displayed()


# -- what a task is about --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_clip_from_a_disk_is_no_film_and_plays_as_uploaded(stranger: Chrome, api: AirflowRestApi) -> None:
    for kind in ({"kind": "clip"}, {}):  # 1.1.0 told none
        asked = {"prompt": PROMPT, "video_url": api.clip_url, "source": "/data/clip.mp4", **kind}
        api.show("deferred", luma_request=asked, luma_task_id="job-1")
        stranger.get(api.page())
        wait_for_videos(stranger, 1)
        assert text(stranger, "modified-note") == "Luma is processing the video"
        assert text(stranger, "prompt") == PROMPT
        assert text(stranger, "original-title") == "ORIGINAL (UPLOADED COPY)"
        assert "job-1" in text(stranger, "facts") and "/data/clip.mp4" in text(stranger, "facts")
    assert complaints(stranger) == []


@pytest.mark.long
def test_clip_in_a_storage_that_was_not_uploaded_is_named(stranger: Chrome, api: AirflowRestApi) -> None:
    stored = "s3://user:secret@bucket/clip.mp4"
    api.show("success", luma_request=request(api, video_url=stored), return_value=result(api.clip_url))
    stranger.get(api.page())
    wait_for_videos(stranger, 1)
    assert text(stranger, "original-note") == "Stored where a browser cannot play it"
    assert "s3://bucket/clip.mp4" in text(stranger, "facts")
    assert "secret" not in stranger.page_source


@pytest.mark.long
def test_clip_uploaded_to_lumas_own_api_is_named_and_not_played(stranger: Chrome, api: AirflowRestApi) -> None:
    for source in ({}, {"source": "/data/clip.mp4"}):
        asked = {**request(api, video_url="luma-file:3f1c7a90"), **source}
        api.show("success", luma_request=asked, return_value=result(api.clip_url))
        stranger.get(api.page())
        wait_for_videos(stranger, 1)
        assert text(stranger, "original-note") == "Stored where a browser cannot play it"
        assert source.get("source", "luma-file:3f1c7a90") in text(stranger, "facts")
    assert complaints(stranger) == []


def test_film_is_being_joined(stranger: Chrome, api: AirflowRestApi) -> None:
    for kind in ({"kind": "film"}, {}):
        api.show("running", luma_request={"source": api.clip_url, "modify_task_ids": ["film.modify"], **kind})
        stranger.get(api.page())
        wait_for_videos(stranger, 1)
        assert text(stranger, "modified-note") == "The clips are being joined"
        assert not is_shown(stranger, "prompt")
    api.show("running", luma_request=FILM)
    stranger.get(api.page())
    wait_for_text(stranger, "stored", "The clips are being joined. The source is stored where a browser cannot play it")


# -- failures --------------------------------------------------------------------------------------------------------


def test_failure_after_payment_names_the_job_and_the_step_that_fetches_it(
    stranger: Chrome, api: AirflowRestApi
) -> None:
    sensor = "A LumaTaskSensor with this luma_task_id fetches its result"
    for error, recovery, step in (
        ({**TIMED_OUT, "remedy": CLEAR}, CLEAR, CLEAR),
        (None, CLEAR, CLEAR),  # it was killed
        (TIMED_OUT, None, sensor),  # 1.1.0 told no step
        ({**TIMED_OUT, "remedy": MARKUP}, MARKUP, MARKUP),
    ):
        asked = request(api, recovery=recovery)
        api.show("failed", luma_request=asked, luma_task_id="job-1", luma_error=error)
        stranger.get(api.page())
        wait_for_text(stranger, "problem-job", "Luma task job-1 is paid for")
        assert text(stranger, "problem-remedy").startswith(step)
        assert text(stranger, "problem-remedy").count(step) == 1
    assert stranger.execute_script("return window.hit") is None
    assert complaints(stranger) == []


def test_task_that_a_person_called_failed_is_not_cleared_for_nothing(stranger: Chrome, api: AirflowRestApi) -> None:
    """It has returned its video: who clears it wants another one."""
    for number in (-1, 0):
        pushed = {"luma_request": request(api), "luma_task_id": "job-1", "return_value": result(api.clip_url)}
        api.show("failed", map_index=number, **pushed)
    stranger.get(api.page())
    wait_for_text(stranger, "problem-remedy", "Clearing this task submits another, separately billed, job")
    assert "nothing new is billed" not in text(stranger, "problem")
    stranger.get(api.page("gallery"))
    wait_for_videos(stranger, 2)
    assert "Paid for" not in text(stranger, "grid")


def test_failure_without_anything_to_fetch_promises_nothing(stranger: Chrome, api: AirflowRestApi) -> None:
    api.show("failed", luma_request=request(api), luma_error=REFUSED)
    stranger.get(api.page())
    wait_for_text(stranger, "problem-words", "Top up. (code 402)")
    assert not is_shown(stranger, "problem-job")

    api.show("failed", luma_request=request(api), luma_task_id="job-1", luma_error=GAVE_UP)
    stranger.get(api.page())
    wait_for_text(stranger, "problem-job", "Luma task job-1 failed; the Luma account shows whether")
    assert "nothing new is billed" not in text(stranger, "problem")

    api.show("upstream_failed")
    stranger.get(api.page())
    wait_for_text(stranger, "problem-words", "An upstream task failed")


@pytest.mark.long
def test_video_that_cannot_be_loaded_has_expired_only_after_its_time(stranger: Chrome, api: AirflowRestApi) -> None:
    asked = request(api, video_url=NOWHERE)
    api.show("success", luma_request=asked, return_value=result(NOWHERE))
    stranger.get(api.page())
    for video in ("original", "modified"):
        wait_for_text(stranger, f"{video}-note", "its address cannot be reached from here")
    api.show("success", luma_request=asked, return_value=result(NOWHERE, age=timedelta(days=15)))
    stranger.get(api.page())
    wait_for_text(stranger, "modified-note", "This video has expired: Luma keeps results for 14 days")
    api.show("success", luma_request={**FILM, "source": NOWHERE}, return_value=NOWHERE)
    stranger.get(api.page())
    wait_for_text(stranger, "modified-note", "cannot load the film: its address cannot be reached from here")


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(minutes=1), "its address has expired, or cannot be reached from here. A download task requests"),
        (timedelta(minutes=61), "can no longer play the video: its address was valid for an hour"),
    ],
    ids=["just ended", "an hour ago"],
)
def test_address_of_luma_s_own_api_expires_after_an_hour_and_the_pages_say_what_fetches_the_video(
    stranger: Chrome, api: AirflowRestApi, age: timedelta, words: str
) -> None:
    ended = result(NOWHERE, age=age, service="luma")
    api.show("success", map_index=0, luma_request=request(api), return_value=ended)
    stranger.get(api.page("result", 0))
    wait_for_text(stranger, "modified-note", words)
    assert "Address valid until" in text(stranger, "facts")
    stranger.get(api.page("gallery"))
    wait_for_text(stranger, "grid", words)


# -- an Airflow in trouble -------------------------------------------------------------------------------------------


def test_error_of_airflow_is_named_and_waited_out(stranger: Chrome, api: AirflowRestApi) -> None:
    api.show("success", map_index=0, luma_request=request(api), return_value=result(api.clip_url))
    for page, place in {"result": "problem-title", "gallery": "grid"}.items():
        api.faults = {"": 500}
        stranger.get(api.page(page, 0))
        wait_for_text(stranger, "problem-title", "Airflow responded with HTTP 500")
        assert "log of its API server" in text(stranger, "problem-words")
        api.faults = {"luma_request": 503}
        wait_for_text(stranger, place, "Airflow responded with HTTP 503")
        api.faults = {}
        wait_for_videos(stranger)
        assert not is_shown(stranger, "problem")


def test_sign_in_page_of_a_proxy_is_recognised(stranger: Chrome, api: AirflowRestApi) -> None:
    api.show("running", map_index=0)
    for page, state in {"result": "running", "gallery": "0 of 1 finished"}.items():
        for fault in ("login", "page"):
            api.faults = {"": fault}
            stranger.get(f"{api.page(page, 0)}#bad")
            wait_for_text(stranger, "problem-title", "You are not signed in")
            api.faults = {}
            # Asks for the page again, and so the proxy for a sign-in.
            stranger.find_element(By.LINK_TEXT, "Sign in to Airflow").click()
            wait_for_text(stranger, "state", state)


@pytest.mark.long
def test_slow_answers_are_asked_for_side_by_side_and_shown_as_they_come(stranger: Chrome, api: AirflowRestApi) -> None:
    api.show("deferred", luma_request=request(api), luma_task_id="job-1")
    api.faults = {"": "hold"}
    stranger.get(api.page())
    until(stranger, lambda: {"modify", "xcomEntries", "hitlDetails"} <= set(api.asked), "all to be asked for at once")
    until(stranger, lambda: "· " in text(stranger, "elapsed"), "the page to say for how long it has been loading")
    api.faults = {"xcomEntries": "hold", "hitlDetails": "hold"}
    wait_for_text(stranger, "state", "waiting for Luma")
    assert text(stranger, "prompt") == "Loading …"
    pushed = ("luma_request", "luma_task_id")
    api.faults = dict.fromkeys((*pushed, "hitlDetails"), "hold")
    until(stranger, lambda: set(pushed) <= set(api.asked), "all that the task has pushed to be asked for at once")
    api.faults = {"hitlDetails": "hold"}
    wait_for_text(stranger, "prompt", PROMPT)
    wait_for_videos(stranger, 1)
    assert complaints(stranger) == []


@pytest.mark.long
def test_slow_gallery_asks_for_all_cards_at_once(stranger: Chrome, api: AirflowRestApi) -> None:
    for number in range(2):
        api.show("success", map_index=number, luma_request=request(api), return_value=result(api.clip_url))
    api.faults = dict.fromkeys(("luma_request", "return_value"), "hold")
    stranger.get(api.page("gallery"))
    wait_for_text(stranger, "state", "2 of 2 finished")
    for key in api.faults:
        until(stranger, lambda key=key: api.asked.count(key) == 2, f"{key} of both to be asked for at once")
    api.faults = {}
    wait_for_videos(stranger, 4)


@pytest.mark.long
def test_result_that_came_while_the_end_was_read_is_shown(stranger: Chrome, api: AirflowRestApi) -> None:
    api.show("success", luma_request=request(api), luma_task_id="job-1")
    api.faults = {"hitlDetails": "hold"}
    stranger.get(api.page())
    until(stranger, lambda: "luma_task_id" in api.asked, "what there was before the end to be read")
    api.show("success", luma_request=request(api), luma_task_id="job-1", return_value=result(api.clip_url))
    api.faults = {}
    wait_for_videos(stranger)
    assert text(stranger, "modified-note") == ""


# -- looking closely -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_arrow_keys_step_by_the_frames_of_the_video(stranger: Chrome, api: AirflowRestApi) -> None:
    def frame() -> int:
        until(stranger, lambda: stranger.execute_script("return !modified.seeking"), "the picture")
        return int(stranger.execute_script("return modified.currentTime") * FRAMES_PER_SECOND)

    api.show("success", luma_request=request(api), return_value=result(api.clip_url))
    stranger.get(api.page())
    wait_for_text(stranger, "facts", f"3.0 s, {FRAMES_PER_SECOND} frames per second")
    seen = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.END, Keys.ARROW_LEFT):
        press(stranger, key)
        seen.append(frame())
    assert seen == [1, 2, 3, 2, 72, 71]


@pytest.mark.long
def test_cards_without_names_are_called_after_their_files_or_prompts(stranger: Chrome, api: AirflowRestApi) -> None:
    script = "return [...document.querySelectorAll('.open')].map(link => link.textContent)"
    for differ, names in {
        "files": ["0 · day.mp4", "1 · night.mp4"],
        "prompts": ["0 · A day in the city by …", "1 · A night in the city by …"],
    }.items():
        for number, name in enumerate(("day", "night")):
            file = name if differ == "files" else "clip"
            asked = request(api, prompt=f"A {name} in the city by the river", video_url=f"s3://in/{file}.mp4")
            api.show("failed", map_index=number, luma_request=asked)
        stranger.get(api.page("gallery"))
        until(stranger, lambda names=names: stranger.execute_script(script) == names, f"{names}")


# -- everybody -------------------------------------------------------------------------------------------------------


def test_axe_finds_nothing_on_the_result_page_in_any_state(stranger: Chrome, api: AirflowRestApi) -> None:
    asked, done = request(api), result(api.clip_url)
    local = request(api, source="/data/clip.mp4")
    states: dict[str, tuple[str, dict[str, Any]]] = {
        "waiting for Luma": ("deferred", {"luma_request": asked, "luma_task_id": "job-1"}),
        "finished": ("success", {"luma_request": local, "return_value": done}),
        "finished, long prompt": ("success", {"luma_request": request(api, prompt=PROMPT * 99), "return_value": done}),
        "finished, stored": ("success", {"luma_request": FILM, "return_value": "s3://films/street.mp4"}),
        "finished, unreachable": ("success", {"luma_request": asked, "return_value": result(NOWHERE)}),
        "failed": ("failed", {"luma_request": asked, "luma_error": REFUSED}),
        "failed, paid": ("failed", {"luma_request": asked, "luma_task_id": "job-1", "luma_error": TIMED_OUT}),
        "running": ("running", {"luma_request": FILM}),
    }
    found = {}
    for name, (state, xcoms) in states.items():
        api.show(state, **xcoms)
        stranger.get(api.page())
        wait_for_text(stranger, "state", name.partition(",")[0])
        until(stranger, lambda: text(stranger, "prompt") != "Loading …", "what the task has pushed")
        found[name] = barriers(stranger)
    for fault, title in {500: "HTTP 500", 403: "You may not see", "login": "not signed in"}.items():
        api.faults = {"": fault}
        stranger.get(api.page())
        wait_for_text(stranger, "problem-title", title)
        found[title] = barriers(stranger)
    api.faults = {"": "hold"}
    stranger.get(api.page())
    found["loading"] = barriers(stranger)
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_axe_finds_nothing_on_the_gallery(stranger: Chrome, api: AirflowRestApi) -> None:
    asked = request(api)
    api.show("success", map_index=0, luma_request=asked, return_value=result(api.clip_url))
    api.show("failed", map_index=1, luma_request=asked, luma_task_id="job-1", luma_error=TIMED_OUT)
    api.show("deferred", map_index=2, luma_request=asked, luma_task_id="job-2")
    api.show("skipped", map_index=3)
    stranger.get(api.page("gallery"))
    wait_for_videos(stranger, 4)
    wait_for_text(stranger, "grid", "Paid for")
    assert barriers(stranger) == []
    api.faults = {"": 403}
    stranger.get(api.page("gallery"))
    wait_for_text(stranger, "problem-title", "You may not see this task")
    assert barriers(stranger) == []

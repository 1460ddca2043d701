# SPDX-License-Identifier: Apache-2.0
"""What a user sees in a real browser: the form of the connection, the link on a task, and the result page."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import requests
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from airflow_provider_luma.exceptions import LumaGenerationError
from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.browsers import barriers, click, complaints, find, press, text, until, wait_for_text, wait_for_videos
from tests.e2e.conftest import REPOSITORY
from tests.e2e.runs import finish

DAG_ID = "luma_modify"
AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
PROMPT = "Turn the day into a rainy night with neon lights"
#: Seconds the two videos may be apart.
IN_STEP = 0.15

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("pages")]


# -- the result page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def luma(lumas: dict[str, Simulator]) -> Simulator:
    """Return the Luma of the example DAGs; it keeps its videos, because several tests use them."""
    lumas["default"].reset()
    return lumas["default"]


@pytest.fixture
def configure(luma: Simulator) -> Iterator[Callable[..., Any]]:
    """Return what changes Luma's settings for one test."""
    before = dict(luma.settings)
    yield luma.configure
    luma.configure(**before)


@pytest.fixture(scope="module")
def finished(airflow: LocalAirflow, luma: Simulator) -> str:
    """Return a run that has made a video."""
    luma.configure(processing_seconds=0.5)
    run_id = airflow.trigger(DAG_ID, prompt=PROMPT, video_url=luma.sample_url)
    finish(airflow, DAG_ID, run_id)
    assert airflow.run_state(DAG_ID, run_id) == "success", airflow.story(DAG_ID, run_id)
    return run_id


def address(base: str, run_id: str, dag_id: str = DAG_ID) -> str:
    return f"{base}/luma/result?{urlencode({'dag_id': dag_id, 'run_id': run_id, 'task_id': 'modify'})}"


def open_finished(browser: Chrome, airflow: LocalAirflow, run_id: str) -> None:
    browser.get(address(airflow.url, run_id))
    wait_for_videos(browser)


def copied(browser: Chrome, airflow: LocalAirflow, button: str) -> str:
    """Return what a button copies."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd("Browser.grantPermissions", {"origin": airflow.url, "permissions": permissions})
    click(browser, button)
    find(browser, "//button[normalize-space()='Copied']")
    value: str = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    return value


def positions(browser: Chrome) -> tuple[float, float]:
    """Return at how many seconds the original and the modified video are."""
    script = "return [...document.querySelectorAll('video')].map(video => video.currentTime)"
    original, modified = browser.execute_script(script)
    return original, modified


def are_paused(browser: Chrome) -> list[bool]:
    return list(browser.execute_script("return [...document.querySelectorAll('video')].map(video => video.paused)"))


def wait_for_position(browser: Chrome, seconds: float) -> None:
    """Wait until both videos are there, and have the picture."""
    script = """
        return [...document.querySelectorAll('video')].every(
            video => !video.seeking && Math.abs(video.currentTime - arguments[0]) < 0.03)"""
    until(browser, lambda: browser.execute_script(script, seconds), f"both videos to be at {seconds} s")


def record_playback(browser: Chrome, script: str) -> list[tuple[float, float]]:
    """Return where the videos are, picture by picture, until a condition on (original, modified, seen) is true."""
    watching = f"""
        const [original, modified] = document.querySelectorAll('video'), seen = [], done = arguments[0];
        const sample = () => {{
            seen.push([original.currentTime, modified.currentTime]);
            if ({script}) done(seen); else requestAnimationFrame(sample);
        }};
        sample();"""
    return [(original, modified) for original, modified in browser.execute_async_script(watching)]


def assert_in_step(seen: list[tuple[float, float]]) -> None:
    """Check that two videos go together; on a busy machine, one of them may be behind until it is put right."""
    apart = [abs(original - modified) for original, modified in seen]
    assert statistics.median(apart) < IN_STEP, apart


def page_with_xcoms(airflow: LocalAirflow, **xcoms: Any) -> str:
    """Give a task that does nothing the XComs of a job; return the page that shows them."""
    run_id = airflow.trigger("without_job")
    finish(airflow, "without_job", run_id)
    path = f"/dags/without_job/dagRuns/{run_id}/taskInstances/modify/xcomEntries"
    for key, value in xcoms.items():
        airflow.call("POST", path, json={"key": key, "value": value})
    return address(airflow.url, run_id, "without_job")


# -- the connection --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(AIRFLOW < (3, 2), reason="needs the form of Airflow 3.2")
def test_connection_form_creates_a_connection_and_never_shows_its_secrets(
    browser: Chrome, airflow: LocalAirflow
) -> None:
    key, secret = "the-key-typed-into-the-form", "the-secret-typed-into-the-form"

    def field(name: str) -> WebElement:
        return find(browser, f"//*[@name='{name}']")

    def open_lumas_fields() -> None:
        if AIRFLOW >= (3, 4):  # always open there
            find(browser, "//*[@role='dialog']//*[normalize-space()='Luma Fields']")
        else:
            click(browser, "//*[@role='dialog']//button[normalize-space()='Extra Fields']")

    def save() -> None:
        click(browser, "//*[@role='dialog']//button[normalize-space()='Save']")
        until(browser, lambda: not browser.find_elements(By.XPATH, "//*[@role='dialog']"), "the form to close")

    def stored() -> dict[str, Any]:
        said = airflow.run("connections", "get", "made_in_the_ui", "--output", "json")
        [connection] = json.loads(said[said.index('[{"') :])  # Airflow 3.2 says more before it
        return connection

    browser.get(f"{airflow.url}/connections")
    click(browser, "//button[normalize-space()='Add Connection']")
    field("connection_id").send_keys("made_in_the_ui")
    find(browser, "//*[@role='dialog']//input[@role='combobox']").send_keys("luma")
    click(browser, "//*[@role='option'][normalize-space()='Luma']")

    form = "//*[@role='dialog']"
    for label, name in {"Host": "host", "API key": "password", "Port": "port", "Scheme": "schema"}.items():
        labelled = find(browser, f"{form}//label[normalize-space()='{label}']").get_attribute("for")
        assert field(name).get_attribute("id") == labelled
    assert not browser.find_elements(By.XPATH, f"{form}//*[@name='login']")
    assert field("host").get_attribute("placeholder") == "https://api.kie.ai (if empty)"
    assert field("password").get_attribute("placeholder") == "the API key of your kie.ai or Luma account"
    assert field("password").get_attribute("type") == "password"
    field("host").send_keys("https://luma.example.com")
    field("password").send_keys(key)

    open_lumas_fields()
    for label, name, help_text in (
        ("Callback base URL", "callback_base_url", "Leave empty to poll instead"),
        ("Webhook secret", "webhook_secret", "Callbacks without a valid signature are then refused"),
        ("Timeout", "timeout", "Timeout of a call to Luma, in seconds (30 if empty)."),
    ):
        find(browser, f"{form}//*[normalize-space()='{label}']")
        find(browser, f"{form}//*[contains(text(), '{help_text}')]")
        assert field(f"element_{name}").get_attribute("value") == ""
    if AIRFLOW >= (3, 3):  # 3.2 hides a secret of the extra only once it is saved
        assert field("element_webhook_secret").get_attribute("type") == "password"
    field("element_callback_base_url").send_keys("https://airflow.example.com")
    field("element_webhook_secret").send_keys(secret)
    field("element_timeout").send_keys("45")
    save()

    try:
        shown = airflow.call("GET", "/connections/made_in_the_ui")
        assert (shown["conn_type"], shown["host"]) == ("luma", "https://luma.example.com")
        extra = {"callback_base_url": "https://airflow.example.com", "webhook_secret": "***", "timeout": 45}
        assert json.loads(shown["extra"]).items() >= extra.items()
        assert shown["password"] == "***"

        browser.get(f"{airflow.url}/connections")  # nothing of what was typed is left
        row = "//tr[.//*[normalize-space()='made_in_the_ui']]"
        click(browser, f"{row}//button[@aria-label='Edit Connection']")
        assert [field("password").get_attribute(name) for name in ("type", "value")] == ["password", "***"]
        field("description").send_keys("edited")
        open_lumas_fields()
        assert field("element_webhook_secret").get_attribute("value") == "***"
        assert field("element_callback_base_url").get_attribute("value") == "https://airflow.example.com"
        assert key not in browser.page_source
        assert secret not in browser.page_source
        save()
        kept = stored()
        assert (kept["description"], kept["password"]) == ("edited", key)
        assert kept["extra_dejson"]["webhook_secret"] == secret
    finally:
        airflow.call("DELETE", "/connections/made_in_the_ui")


# -- a finished job --------------------------------------------------------------------------------------------------


def test_extra_link_of_a_task_leads_to_both_videos(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, finished: str
) -> None:
    result = airflow.xcom(DAG_ID, finished, "modify")
    [url] = result["result_urls"]

    browser.get(f"{airflow.url}/dags/{DAG_ID}/runs/{finished}/tasks/modify")
    click(browser, "//a[normalize-space()='Details']")
    click(browser, "//a[normalize-space()='Luma result']")
    browser.switch_to.window(browser.window_handles[-1])  # Airflow 3.1 opens a new one
    wait_for_videos(browser)

    assert browser.current_url.startswith(f"{airflow.url}/luma/result?")
    assert browser.title == "finished · Luma result"
    assert text(browser, "state") == "finished"
    assert text(browser, "prompt") == PROMPT
    for video, source in {"original": luma.sample_url, "modified": url}.items():
        assert browser.find_element(By.ID, video).get_attribute("src") == source
        assert text(browser, f"{video}-note") == ""
    facts = text(browser, "facts")
    for words in (result["luma_task_id"], "Processing time", "Kept by Luma until", "3.0 s"):
        assert words in facts
    assert barriers(browser) == []

    download = browser.find_element(By.LINK_TEXT, "Download").get_attribute("href")
    assert download == url
    assert requests.get(download, timeout=30).headers["Content-Type"] == "video/mp4"
    assert copied(browser, airflow, "//button[normalize-space()='Copy link']") == url

    click(browser, f"//a[contains(., '{finished}')]")
    find(browser, "//a[normalize-space()='Details']")
    assert f"/dags/{DAG_ID}/runs/" in browser.current_url


def test_both_videos_play_in_step_and_repeat(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    open_finished(browser, airflow, finished)
    assert are_paused(browser) == [True, True]

    click(browser, "//button[normalize-space()='Play']")
    seen = record_playback(
        browser, "seen.length > 1 && modified.currentTime < seen.at(-2)[1]"
    )  # from the end to the start

    assert max(modified for _, modified in seen) > 2.5
    assert_in_step(seen)
    assert_in_step(record_playback(browser, "modified.currentTime > 1 && modified.currentTime < 2"))
    assert are_paused(browser) == [False, False]
    click(browser, "//button[normalize-space()='Pause']")
    assert are_paused(browser) == [True, True]


@pytest.mark.long
def test_both_videos_stop_at_the_end_without_the_loop_and_play_again(
    browser: Chrome, airflow: LocalAirflow, finished: str
) -> None:
    open_finished(browser, airflow, finished)
    click(browser, "//button[normalize-space()='Loop']")
    press(browser, Keys.END)
    wait_for_position(browser, 3.0)

    click(browser, "//button[normalize-space()='Play']")
    record_playback(browser, "modified.currentTime > 0.2 && modified.currentTime < 2")
    find(browser, "//button[normalize-space()='Play']")

    assert positions(browser) == pytest.approx((3.0, 3.0), abs=0.1)
    assert are_paused(browser) == [True, True]


@pytest.mark.long
def test_slider_seeks_both_videos(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    open_finished(browser, airflow, finished)
    slider = browser.find_element(By.ID, "seek")

    ActionChains(browser).move_to_element_with_offset(slider, slider.size["width"] // 4, 0).click().perform()
    until(browser, lambda: positions(browser)[1] > 2, "the modified video to follow the slider")

    wait_for_position(browser, float(slider.get_attribute("value")))
    assert positions(browser)[1] == pytest.approx(3.0 * 3 / 4, abs=0.1)
    assert text(browser, "time").startswith("0:02.")

    click(browser, "//button[normalize-space()='Play']")
    ActionChains(browser).drag_and_drop_by_offset(slider, -slider.size["width"] // 4, 0).perform()
    assert_in_step(record_playback(browser, "seen.length > 60"))


@pytest.mark.long
def test_keyboard_plays_pauses_and_seeks_both_videos(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    open_finished(browser, airflow, finished)

    press(browser, Keys.ARROW_RIGHT)
    wait_for_position(browser, 0.04)
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    wait_for_position(browser, 1.04)
    press(browser, Keys.ARROW_LEFT)
    wait_for_position(browser, 1.0)
    press(browser, Keys.END)
    wait_for_position(browser, 3.0)
    press(browser, Keys.HOME)
    wait_for_position(browser, 0.0)
    press(browser, Keys.SPACE)
    assert_in_step(record_playback(browser, "modified.currentTime > 1"))
    assert are_paused(browser) == [False, False]
    press(browser, Keys.SPACE)
    assert are_paused(browser) == [True, True]

    reached = []
    while len(reached) < 12 and (not reached or reached[-1] != "Copy"):
        press(browser, Keys.TAB)
        focused = browser.switch_to.active_element
        reached.append(focused.text or focused.get_attribute("aria-label"))
        if reached[-1] == "Play":
            press(browser, Keys.END)  # also on a button
            wait_for_position(browser, 3.0)
            press(browser, Keys.SPACE)
            until(browser, lambda: are_paused(browser) == [False, False], "Space to press the button")
    assert reached[1:] == ["Play", "Position", "Loop", "Sound", "Download", "Copy link", "Copy"]


@pytest.mark.long
def test_result_page_logs_no_error_in_the_browser(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    open_finished(browser, airflow, finished)
    # "Loop" last: without it, the video may end, and "Pause" become "Play", before a slow machine has clicked on it.
    for button in ("Play", "Sound", "Copy", "Pause", "Loop"):
        click(browser, f"//button[normalize-space()='{button}']")
    assert complaints(browser) == []


# -- all jobs --------------------------------------------------------------------------------------------------------


def jobs_of(browser: Chrome, run: str) -> list[list[str]]:
    """Return what the overview says about the jobs of a run, or of a DAG, once it has listed them."""
    until(browser, lambda: "job" in text(browser, "state"), "the list of jobs")
    until(browser, lambda: "outcomes that are unknown" in text(browser, "hands-note"), "those that need a hand")
    script = """
        return [...document.querySelectorAll('#jobs tbody tr')].map(
            row => [...row.children].map(cell => cell.innerText.replace(/\\s+/g, ' ').trim()))"""
    return [row for row in browser.execute_script(script) if run in row[0]]


def test_menu_leads_to_all_jobs_and_from_there_to_each(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    browser.get(airflow.url)
    click(browser, "//*[normalize-space()='Browse']")
    click(browser, "//a[normalize-space()='Luma jobs']")
    browser.switch_to.frame(find(browser, "//iframe[@title='Luma jobs']"))
    find(browser, "//*[@id='dag']").send_keys(DAG_ID, Keys.ENTER)
    until(browser, lambda: [row[-1] for row in jobs_of(browser, finished)] == ["yes"], "the download to be known")
    [(name, state, _, prompt, _, expires, _)] = jobs_of(browser, finished)
    assert (name, state, prompt) == (f"modify Log {DAG_ID} / {finished}", "finished", PROMPT)
    assert expires == "in 13 days"

    browser.switch_to.default_content()
    assert browser.current_url.endswith(f"?dag_id={DAG_ID}")
    browser.refresh()
    browser.switch_to.frame(find(browser, "//iframe[@title='Luma jobs']"))
    until(browser, lambda: jobs_of(browser, finished), "the filter to outlive a reload")
    assert browser.find_element(By.ID, "dag").get_attribute("value") == DAG_ID
    click(browser, f"//tr[contains(., '{finished}')]//a[normalize-space()='modify']")
    browser.switch_to.default_content()
    wait_for_videos(browser)
    assert urlsplit(browser.current_url).path == "/luma/result"


# -- a job that is not finished, or not well -------------------------------------------------------------------------


def test_result_page_shows_the_wait_and_then_the_video_without_a_reload(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, configure: Callable[..., Any]
) -> None:
    configure(processing_seconds=600)
    run_id = airflow.trigger(DAG_ID, prompt=PROMPT, video_url=luma.sample_url)
    browser.get(address(airflow.url, run_id))

    wait_for_text(browser, "state", "waiting for Luma")
    wait_for_text(browser, "modified-note", "Luma is processing the video")
    assert text(browser, "prompt") == PROMPT
    assert luma.jobs[-1].task_id in text(browser, "facts")
    before = text(browser, "elapsed")
    until(browser, lambda: text(browser, "elapsed") not in ("", before), "the elapsed time to grow")
    wait_for_videos(browser, 1)
    click(browser, "//button[normalize-space()='Play']")
    until(browser, lambda: positions(browser)[0] > 0.5, "the original to play")
    assert text(browser, "state") == "waiting for Luma"

    luma.end_jobs()
    wait_for_text(browser, "state", "finished")
    wait_for_videos(browser)
    assert text(browser, "elapsed") == ""
    assert browser.find_element(By.LINK_TEXT, "Download").get_attribute("href").endswith(".mp4")
    assert_in_step(record_playback(browser, "seen.length > 30 && modified.currentTime > 0.5"))
    assert complaints(browser) == []
    finish(airflow, DAG_ID, run_id)


@pytest.mark.long
def test_result_page_says_that_a_submission_is_queued(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, configure: Callable[..., Any]
) -> None:
    configure(submissions_per_10_seconds=0, processing_seconds=0.5)
    run_id = airflow.trigger(DAG_ID, prompt=PROMPT, video_url=luma.sample_url)
    browser.get(address(airflow.url, run_id))

    wait_for_text(browser, "state", "queued for submission")
    wait_for_text(browser, "modified-note", "Luma is not accepting submissions at the moment")
    assert complaints(browser) == []
    configure(submissions_per_10_seconds=20, processing_seconds=0.5)
    wait_for_text(browser, "state", "finished")
    finish(airflow, DAG_ID, run_id)


def test_result_page_shows_a_failure_in_lumas_words(
    browser: Chrome, airflow: LocalAirflow, lumas: dict[str, Simulator]
) -> None:
    dag_id = "rehearse_generate_failed"
    lumas["generate_failed"].reset()
    run_id = airflow.trigger(dag_id)
    finish(airflow, dag_id, run_id)

    browser.get(address(airflow.url, run_id, dag_id))
    wait_for_text(browser, "state", "failed")
    wait_for_videos(browser, 1)

    assert text(browser, "problem-words") == "GENERATE_FAILED: The model gave up. (code 501)"
    assert text(browser, "problem-remedy").startswith(LumaGenerationError.remedy)
    assert text(browser, "modified-note") == "There is no video"
    assert lumas["generate_failed"].jobs[0].task_id in text(browser, "facts")
    assert barriers(browser) == []
    assert not browser.find_elements(By.LINK_TEXT, "Download")
    assert complaints(browser) == []

    browser.find_element(By.LINK_TEXT, "Open the task's log").click()
    [job] = lumas["generate_failed"].jobs
    words = "GENERATE_FAILED: The model gave up. (code 501)"
    error = f"LumaGenerationError: Luma task {job.task_id}: {words}. {LumaGenerationError.remedy}"
    find(browser, f"//summary[normalize-space()='{error}']")  # not the trigger's event, which 3.3 logs, too


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_result_page_of_a_film_plays_what_is_on_the_web_and_tells_where_the_rest_is(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, scheme: str
) -> None:
    stored, shown = "s3://user:secret@bucket/Take #1?.mp4", "s3://bucket/Take #1?.mp4"
    source, film = (luma.sample_url, luma.sample_url) if scheme == "http" else (stored, stored)
    browser.get(
        page_with_xcoms(airflow, luma_request={"source": source, "modify_task_ids": ["modify"]}, return_value=film)
    )
    wait_for_text(browser, "state", "finished")
    until(browser, lambda: not browser.find_element(By.ID, "prompt").is_displayed(), "the page to know of a film")
    if scheme == "http":
        wait_for_videos(browser)
        assert [text(browser, f"{name}-title") for name in ("original", "modified")] == ["SOURCE", "FILM"]
    else:
        assert text(browser, "facts").count(shown) == 2
        assert copied(browser, airflow, "//dd[starts-with(., 's3:')]/button[normalize-space()='Copy']") == shown
        assert "stored where a browser cannot play them" in text(browser, "stored")
        assert not browser.find_element(By.ID, "player").is_displayed()
        assert "secret" not in browser.page_source
    assert complaints(browser) == []
    click(browser, "//a[normalize-space()='The clips of modify']")
    wait_for_text(browser, "state", "1 of 1 finished")


@pytest.mark.parametrize(
    ("age", "words"),
    [
        pytest.param(
            timedelta(minutes=1),
            "its address cannot be reached from here, or Luma has deleted it",
            marks=pytest.mark.long,
        ),
        (timedelta(days=15), "This video has expired: Luma keeps results for 14 days."),
    ],
    ids=["lately", "long_ago"],
)
def test_result_page_says_that_a_video_has_expired(
    browser: Chrome,
    airflow: LocalAirflow,
    finished: str,
    configure: Callable[..., Any],
    age: timedelta,
    words: str,
) -> None:
    configure(result_ttl=0)
    completed_at = (datetime.now(UTC) - age).isoformat()
    result = {**airflow.xcom(DAG_ID, finished, "modify"), "completed_at": completed_at}
    request = airflow.xcom(DAG_ID, finished, "modify", "luma_request")

    browser.get(page_with_xcoms(airflow, return_value=result, luma_request=request))

    wait_for_text(browser, "modified-note", words)
    wait_for_videos(browser, 1)
    assert text(browser, "original-note") == ""


# -- text that means harm --------------------------------------------------------------------------------------------


def test_result_page_shows_markup_as_text_and_ignores_script_addresses(browser: Chrome, airflow: LocalAirflow) -> None:
    markup = "<img src=x onerror=\"window.hit='markup'\"><script>window.hit='script'</script>"
    script = "javascript:window.hit='address'//.mp4"

    browser.get(
        page_with_xcoms(
            airflow,
            luma_request={"prompt": markup, "video_url": script},
            luma_task_id=markup,
            return_value={
                "luma_task_id": markup,
                "result_urls": [script, "data:text/html,hit"],
                "completed_at": markup,
            },
        )
    )
    until(browser, lambda: text(browser, "prompt") == markup, "the prompt")

    assert markup in text(browser, "facts")
    assert not browser.find_elements(By.CSS_SELECTOR, "img, iframe, body script")
    used = [
        element.get_attribute(name)
        for element in browser.find_elements(By.CSS_SELECTOR, "[href], [src]")
        for name in ("href", "src")
        if element.get_attribute(name)
    ]
    assert [value for value in used if not value.startswith((airflow.url, "data:,"))] == []
    assert complaints(browser) == []

    # Even if it were markup, and not text, nothing of it would run.
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", markup)
    until(browser, lambda: any("Content Security Policy" in words for words in complaints(browser)), "a refusal")
    assert browser.execute_script("return window.hit") is None


# -- other screens ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_result_page_on_a_phone_stacks_the_videos(browser: Chrome, airflow: LocalAirflow, finished: str) -> None:
    def boxes() -> tuple[dict[str, float], dict[str, float]]:
        original, modified = (browser.find_element(By.ID, name).rect for name in ("original", "modified"))
        return original, modified

    open_finished(browser, airflow, finished)
    original, modified = boxes()
    assert modified["y"] == original["y"]
    assert modified["x"] >= original["x"] + original["width"]

    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.refresh()
    wait_for_videos(browser)
    original, modified = boxes()
    assert modified["x"] == original["x"]
    assert modified["y"] >= original["y"] + original["height"]
    assert original["width"] > 300
    wide, visible = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= visible == 390


@pytest.mark.parametrize("chosen_in", [pytest.param("the system", marks=pytest.mark.long), "Airflow"])
def test_result_page_follows_the_dark_theme(
    browser: Chrome, airflow: LocalAirflow, finished: str, chosen_in: str
) -> None:
    def brightness() -> int:
        color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))

    open_finished(browser, airflow, finished)
    assert brightness() > 3 * 220

    if chosen_in == "the system":
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    else:
        browser.execute_script("localStorage.setItem('theme', 'dark')")
        browser.refresh()
    until(browser, lambda: brightness() < 3 * 40, "the page to be dark")


# -- who may see it --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(airflow: LocalAirflow, dags: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """Return a second API server of the same Airflow, where one has to sign in."""
    home = tmp_path_factory.mktemp("guarded")
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({"anna": "anna's password", "guest": "guest's password"}))
    shared = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__FERNET_KEY")
    guarded = LocalAirflow(
        home,
        dags,
        {
            **{name: airflow.environment[name] for name in shared},
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "auth"), os.environ.get("PYTHONPATH", "")]),
            "AIRFLOW__CORE__AUTH_MANAGER": "doorkeeper.Doorkeeper",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "anna:viewer,guest:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        },
    )
    guarded.start("api-server")
    try:
        guarded.wait_until(guarded.is_healthy, "the second API server to be healthy")
        yield guarded
    finally:
        guarded.stop_all()


def sign_in(browser: Chrome, name: str) -> None:
    """Sign in by the link that the page offers, which leads back to it."""
    click(browser, "//a[normalize-space()='Sign in to Airflow']")
    find(browser, "//input[@name='username']").send_keys(name)
    find(browser, "//input[@name='password']").send_keys(f"{name}'s password", Keys.ENTER)
    until(browser, lambda: "/luma/result" in browser.current_url, "the way back")


def assert_nothing_is_shown(browser: Chrome) -> None:
    assert PROMPT not in browser.page_source
    assert ".mp4" not in browser.page_source
    assert not browser.find_element(By.ID, "content").is_displayed()


def test_user_who_may_see_the_dag_signs_in_and_sees_the_result(
    stranger: Chrome, guarded: LocalAirflow, finished: str
) -> None:
    stranger.get(address(guarded.url, finished))
    wait_for_text(stranger, "problem-title", "You are not signed in")
    assert text(stranger, "state") == "not signed in"
    assert_nothing_is_shown(stranger)

    sign_in(stranger, "anna")
    wait_for_videos(stranger)
    assert text(stranger, "prompt") == PROMPT
    assert not stranger.find_element(By.ID, "problem").is_displayed()

    stranger.get(f"{guarded.url}/luma/overview?dag_id={DAG_ID}")
    assert jobs_of(stranger, finished)


def test_user_who_may_not_see_the_dag_sees_nothing_of_it(
    stranger: Chrome, guarded: LocalAirflow, finished: str
) -> None:
    stranger.get(address(guarded.url, finished))
    sign_in(stranger, "guest")
    for page in (address(guarded.url, finished), address(guarded.url, finished).replace("/result?", "/gallery?")):
        stranger.get(page)
        wait_for_text(stranger, "problem-title", "You may not see this task")
        assert text(stranger, "state") == "no access"
        assert_nothing_is_shown(stranger)

    stranger.get(f"{guarded.url}/luma/overview")
    assert jobs_of(stranger, f" {DAG_ID} / ") == []
    for query in (f"?dag_id={DAG_ID}", "?state=good"):
        stranger.get(f"{guarded.url}/luma/overview{query}")
        assert jobs_of(stranger, f" {DAG_ID} / ") == []
    assert finished not in stranger.page_source


def test_result_page_itself_holds_no_data(guarded: LocalAirflow, finished: str) -> None:
    static = REPOSITORY / "airflow_provider_luma" / "receiver" / "pages"
    page = requests.get(address(guarded.url, finished), timeout=30)
    assert page.text == (static / "result.html").read_text()
    assert "set-cookie" not in page.headers
    for file in [*static.glob("*.css"), *static.glob("*.js")]:
        assert requests.get(f"{guarded.url}/luma/static/{file.name}", timeout=30).text == file.read_text()

    credentials = {"username": "guest", "password": "guest's password"}
    token = requests.post(f"{guarded.url}/auth/token", json=credentials, timeout=30).json()["access_token"]
    xcom = f"{guarded.url}/api/v2/dags/{DAG_ID}/dagRuns/{finished}/taskInstances/modify/xcomEntries/return_value"
    assert requests.get(xcom, timeout=30).status_code == 401
    assert requests.get(xcom, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 403

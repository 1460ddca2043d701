# SPDX-License-Identifier: Apache-2.0
"""The gallery of a mapped task, in a real browser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.browsers import barriers, click, complaints, find, press, text, until, wait_for_text, wait_for_videos
from tests.e2e.conftest import REPOSITORY
from tests.e2e.runs import finish

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])
MARKUP = "<img src=x onerror=\"window.hit='markup'\"><script>window.hit='script'</script>"
ERROR = {"type": "LumaGenerationError", "code": 501, "msg": "GENERATE_FAILED: The model gave up.", "remedy": ""}

#: Lets a test know whether the page will ask again, and pretend that nobody looks at it.
SPY = """
    window.timers = new Set(); window.isHidden = false;
    const set = window.setTimeout;
    window.setTimeout = (work, ms, ...more) => {
        const timer = set(() => { timers.delete(timer); work(...more); }, ms);
        if (ms >= 1000) timers.add(timer);
        return timer;
    };
    Object.defineProperty(document, "hidden", { get: () => window.isHidden });"""

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("pages")]


@pytest.fixture(scope="module")
def luma(lumas: dict[str, Simulator]) -> Simulator:
    """Return the Luma of the example DAGs; it keeps its videos, because several tests use them."""
    lumas["default"].reset()
    return lumas["default"]


@pytest.fixture(scope="module")
def batch(airflow: LocalAirflow, luma: Simulator) -> str:
    """Return a run that has really made three videos of three clips."""
    luma.configure(processing_seconds=0.5)
    run_id = airflow.trigger("luma_batch")
    assert finish(airflow, "luma_batch", run_id) == "success", airflow.story("luma_batch", run_id)
    return run_id


@pytest.fixture(scope="module")
def of_200(airflow: LocalAirflow, luma: Simulator, batch: str) -> Iterator[str]:
    """Return the gallery of 200 jobs: every tenth has failed, every tenth is at Luma, the others are finished."""
    results = [airflow.xcom("luma_batch", batch, "clip.modify", map_index=index) for index in range(3)]
    rows = {}
    for number in range(200):
        xcoms: dict[str, Any] = {"luma_request": {"prompt": f"version {number}", "video_url": luma.sample_url}}
        state = {5: "failed", 7: "deferred"}.get(number % 10, "success")
        xcoms |= {"failed": {"luma_error": ERROR}, "deferred": {"luma_task_id": "running"}}.get(
            state, {"return_value": results[number % 3]}
        )
        rows[str(number)] = {"state": state, "label": f"clip-{number}.mp4", "xcoms": xcoms}
    run_id = airflow.trigger("gallery_of_200")
    run = {"dag_id": "gallery_of_200", "run_id": run_id, "task_id": "modify", "rows": rows}
    script = str(Path(__file__).parent / "gallery_rows.py")
    subprocess.run(
        [sys.executable, script], input=json.dumps(run), text=True, env=airflow.environment, cwd=REPOSITORY, check=True
    )
    yield address(airflow, "gallery_of_200", run_id)
    # Tasks that wait for nothing would take slots of the pool for ever.
    airflow.call("DELETE", f"/dags/gallery_of_200/dagRuns/{run_id}")


def address(airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str = "modify") -> str:
    return f"{airflow.url}/luma/gallery?{urlencode({'dag_id': dag_id, 'run_id': run_id, 'task_id': task_id})}"


def end(airflow: LocalAirflow, run_id: str, index: int, state: str, **xcoms: Any) -> None:
    """Say how an instance of ``gallery_of_3`` has ended."""
    task = f"/dags/gallery_of_3/dagRuns/{run_id}/taskInstances/modify"
    for key, value in xcoms.items():
        airflow.call("POST", f"{task}/xcomEntries", json={"key": key, "value": value, "map_index": index})
    airflow.call("PATCH", f"{task}/{index}", json={"new_state": state})


def card(browser: Chrome, index: int) -> WebElement:
    return until(
        browser, lambda: browser.find_element(By.CSS_SELECTOR, f"#grid > :nth-child({index + 1})"), f"card {index}"
    )


def cards(browser: Chrome) -> list[WebElement]:
    return [element for element in browser.find_elements(By.CLASS_NAME, "card") if element.is_displayed()]


def wait_for_picture(browser: Chrome, index: int) -> None:
    """Wait until a card shows its result and its original."""
    script = "return [...arguments[0].querySelectorAll('video')].every(video => video.readyState >= 2)"
    until(browser, lambda: browser.execute_script(script, card(browser, index)), f"the pictures of card {index}")


def is_playing(browser: Chrome, index: int) -> list[bool]:
    script = "return [...arguments[0].querySelectorAll('video')].map(video => !video.paused && video.currentTime > 0.1)"
    return list(browser.execute_script(script, card(browser, index)))


def requests_sent(browser: Chrome, part: str = "/api/v2/") -> int:
    script = "return performance.getEntriesByType('resource').filter(entry => entry.name.includes(arguments[0])).length"
    return int(browser.execute_script(script, part))


def loaded_videos(browser: Chrome) -> int:
    return int(browser.execute_script("return document.querySelectorAll('video[src]').length"))


# -- many ------------------------------------------------------------------------------------------------------------


def test_gallery_of_200_loads_only_what_is_in_view(browser: Chrome, of_200: str) -> None:
    browser.get(of_200)
    wait_for_text(browser, "state", "160 of 200 finished, 20 failed")
    wait_for_picture(browser, 0)
    assert len(browser.find_elements(By.CLASS_NAME, "card")) == 200
    assert requests_sent(browser) < 60, "two for all states, and two or three for each card in view"
    assert 2 <= loaded_videos(browser) < 50

    browser.execute_script("scrollTo(0, 1e6)")
    wait_for_picture(browser, 199)
    until(browser, lambda: loaded_videos(browser) < 50, "what has left the view to be unloaded")
    assert not card(browser, 0).find_element(By.CLASS_NAME, "modified").get_attribute("src")
    browser.execute_script("scrollTo(0, 0)")
    wait_for_picture(browser, 0)
    assert complaints(browser) == []
    assert barriers(browser) == []


def test_gallery_shows_each_result_with_its_original_and_prompt(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, batch: str, of_200: str
) -> None:
    browser.get(of_200)
    wait_for_picture(browser, 4)
    for name in ("4 · clip-4.mp4", "finished", "version 4"):
        assert name in card(browser, 4).text
    [url] = airflow.xcom("luma_batch", batch, "clip.modify", map_index=1)["result_urls"]
    sources = [
        element.get_attribute("src").partition("#")[0]
        for element in card(browser, 4).find_elements(By.TAG_NAME, "video")
    ]
    assert sources == [url, luma.sample_url]
    until(browser, lambda: "Luma is processing the video" in card(browser, 7).text, "the card of a job that is running")


@pytest.mark.long
def test_gallery_plays_under_the_mouse(browser: Chrome, of_200: str) -> None:
    browser.get(of_200)
    wait_for_picture(browser, 1)
    assert is_playing(browser, 1) == [False, False]
    ActionChains(browser).move_to_element(card(browser, 1).find_element(By.CLASS_NAME, "screen")).perform()
    until(browser, lambda: is_playing(browser, 1) == [True, True], "result and original to play")
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    until(browser, lambda: is_playing(browser, 1) == [False, False], "both to pause")


def test_gallery_shows_only_those_that_failed_and_leads_to_page_and_log(browser: Chrome, of_200: str) -> None:
    browser.get(of_200)
    click(browser, "//button[normalize-space()='Failed 20']")
    until(browser, lambda: len(cards(browser)) == 20, "only those that failed")
    until(browser, lambda: "GENERATE_FAILED: The model gave up. (code 501)" in card(browser, 5).text, "Luma's words")
    assert browser.current_url.endswith("#bad")
    browser.refresh()
    until(browser, lambda: len(cards(browser)) == 20, "the filter to outlive a reload")

    assert "/tasks/modify/mapped/5" in card(browser, 5).find_element(By.LINK_TEXT, "Log").get_attribute("href")
    card(browser, 5).find_element(By.CLASS_NAME, "screen").click()
    wait_for_text(browser, "problem-words", "GENERATE_FAILED: The model gave up. (code 501)")
    assert text(browser, "task-link").endswith("/ modify [5]")
    wait_for_text(browser, "gallery-link", "All 200 of this task")


@pytest.mark.long
def test_keyboard_moves_among_cards_plays_and_opens(browser: Chrome, of_200: str) -> None:
    browser.get(of_200)
    wait_for_text(browser, "state", "160 of 200 finished")
    wait_for_picture(browser, 0)
    click(browser, "//button[normalize-space()='All 200']")
    buttons = len(
        [button for button in browser.find_elements(By.CSS_SELECTOR, "#filters button") if button.is_displayed()]
    )
    press(browser, Keys.TAB * buttons)
    reached = []
    for key in ("", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.END, Keys.ARROW_RIGHT, Keys.HOME):
        press(browser, key)
        reached.append(browser.switch_to.active_element.text.partition(" ")[0])
    assert reached == ["0", "1", "2", "1", "199", "199", "0"]
    until(browser, lambda: is_playing(browser, 0) == [True, True], "the focused result to play")

    press(browser, Keys.ARROW_DOWN)
    below = int(browser.switch_to.active_element.text.partition(" ")[0])
    assert card(browser, below).location["x"] == card(browser, 0).location["x"]
    assert card(browser, below).location["y"] > card(browser, 0).location["y"]
    press(browser, Keys.ARROW_UP, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("aria-label") == "Log of 0"
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert browser.switch_to.active_element.text.startswith("0 ")
    press(browser, Keys.ENTER)
    wait_for_text(browser, "task-link", "/ modify [0]")


# -- a run that goes on ----------------------------------------------------------------------------------------------


def test_gallery_follows_the_run_pauses_out_of_sight_and_stops_at_its_end(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator
) -> None:
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SPY})
    run_id = airflow.trigger("gallery_of_3")
    browser.get(address(airflow, "gallery_of_3", run_id))
    wait_for_text(browser, "state", "0 of 3 finished")
    request = {"prompt": "make it snow", "video_url": luma.sample_url}
    end(airflow, run_id, 0, "success", luma_request=request, return_value={"result_urls": [luma.sample_url]})
    wait_for_text(browser, "state", "1 of 3 finished")
    wait_for_picture(browser, 0)

    browser.execute_script("window.isHidden = true")
    until(browser, lambda: browser.execute_script("return timers.size") == 0, "the page to pause")
    end(airflow, run_id, 1, "failed", luma_request=request, luma_error=ERROR)
    end(airflow, run_id, 2, "skipped")
    assert text(browser, "state") == "1 of 3 finished"
    browser.execute_script("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    wait_for_text(browser, "state", "1 of 3 finished, 1 failed")
    until(browser, lambda: "The model gave up" in card(browser, 1).text, "Luma's words")
    assert browser.execute_script("return timers.size") == 0, "the page asks no more"
    assert complaints(browser) == []


def test_result_page_of_one_of_many_leads_to_all_and_back(browser: Chrome, airflow: LocalAirflow, batch: str) -> None:
    link = airflow.xcom("luma_batch", batch, "clip.modify", "_link_LumaResultLink", map_index=1)
    browser.get(airflow.url + link)
    click(browser, "//a[normalize-space()='All 3 of this task']")
    wait_for_text(browser, "state", "3 of 3 finished")
    wait_for_picture(browser, 2)
    click(browser, "//a[normalize-space()='2 · sample-3.mp4']")
    wait_for_text(browser, "task-link", "/ clip.modify [2]")

    gallery = address(airflow, "luma_batch", batch, "clip.modify")
    browser.get(gallery.replace("/gallery?", "/result?"))  # of no instance in particular
    wait_for_text(browser, "state", "3 of 3 finished")


def test_result_page_of_a_mapped_task_shows_its_own_video(
    browser: Chrome, airflow: LocalAirflow, luma: Simulator, batch: str
) -> None:
    link = airflow.xcom("luma_batch", batch, "clip.modify", "_link_LumaResultLink", map_index=1)

    browser.get(airflow.url + link)
    wait_for_videos(browser)

    result = airflow.xcom("luma_batch", batch, "clip.modify", map_index=1)
    assert browser.find_element(By.ID, "modified").get_attribute("src") == result["result_urls"][0]
    assert browser.find_element(By.ID, "original").get_attribute("src") == luma.sample_url.replace("sample", "sample-2")
    assert "1 · sample-2.mp4" in text(browser, "facts")
    assert text(browser, "task-link").endswith("/ clip.modify [1]")


def test_gallery_says_that_there_is_nothing_yet_or_no_such_run(browser: Chrome, airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("gallery_to_come")
    browser.get(address(airflow, "gallery_to_come", run_id))
    wait_for_text(browser, "empty", "The run has not reached this task yet.")
    browser.get(address(airflow, "gallery_to_come", "no_such_run"))
    wait_for_text(browser, "problem-title", "There is no such task")


# -- what is expired, and what means harm ----------------------------------------------------------------------------


@pytest.mark.long
def test_gallery_says_that_a_video_has_expired(browser: Chrome, airflow: LocalAirflow, luma: Simulator) -> None:
    run_id = airflow.trigger("gallery_of_3")
    gone = {"result_urls": [f"{luma.base_url}/files/gone.mp4"], "completed_at": "2020-01-01T00:00:00+00:00"}
    private = {"prompt": "make it snow", "video_url": "s3://user:secret@bucket/Take #1?.mp4"}
    end(airflow, run_id, 0, "success", luma_request=private, return_value=gone)
    end(airflow, run_id, 1, "success", luma_request={**private, "prompt": ""})
    browser.get(address(airflow, "gallery_of_3", run_id))
    until(browser, lambda: "This video has expired" in card(browser, 0).text, "the words")
    until(browser, lambda: "s3://bucket/Take #1?.mp4" in card(browser, 1).text, "where the original is")
    assert "The task returned no video" in card(browser, 1).text
    assert "secret" not in browser.page_source


def test_gallery_shows_markup_as_text_and_ignores_script_addresses(browser: Chrome, airflow: LocalAirflow) -> None:
    script = "javascript:window.hit='address'//.mp4"
    run_id = airflow.trigger("gallery_of_3")
    result = {"result_urls": [script, "data:text/html,hit"], "completed_at": MARKUP}
    end(airflow, run_id, 0, "success", luma_request={"prompt": MARKUP, "video_url": script}, return_value=result)
    error = {"msg": MARKUP, "code": MARKUP, "remedy": MARKUP}
    long = "x" * 5000
    end(airflow, run_id, 1, "failed", luma_request={"prompt": long, "video_url": [MARKUP]}, luma_error=error)
    end(airflow, run_id, 2, "success", luma_request=[MARKUP], return_value=MARKUP)
    browser.get(address(airflow, "gallery_of_3", run_id))
    until(browser, lambda: MARKUP in card(browser, 0).text and MARKUP in card(browser, 1).text, "prompt and error")

    assert not browser.find_elements(By.CSS_SELECTOR, "img, iframe, body script")
    used = [
        element.get_attribute(name)
        for element in browser.find_elements(By.CSS_SELECTOR, "[href], [src]")
        for name in ("href", "src")
        if element.get_attribute(name)
    ]
    assert [value for value in used if not value.startswith((airflow.url, "data:,"))] == []
    assert card(browser, 1).size["height"] == card(browser, 0).size["height"], "a long prompt takes no more room"
    assert browser.execute_script("return window.hit") is None


# -- in a tab of Airflow's UI ----------------------------------------------------------------------------------------


@pytest.mark.skipif(AIRFLOW < (3, 4), reason="needs Airflow 3.4, which shows a tab on some tasks only")
def test_tab_on_our_tasks_alone_shows_the_result_page_and_the_gallery(
    browser: Chrome, airflow: LocalAirflow, batch: str
) -> None:
    run = f"{airflow.url}/dags/luma_batch/runs/{batch}/tasks"
    browser.get(f"{run}/clips")
    find(browser, "//a[normalize-space()='Details']")
    assert not browser.find_elements(By.XPATH, "//a[normalize-space()='Luma']")

    browser.get(f"{run}/clip.modify/mapped/1")
    click(browser, "//a[normalize-space()='Luma']")
    browser.switch_to.frame(find(browser, "//iframe[@title='Luma']"))
    click(browser, "//a[normalize-space()='All 3 of this task']")
    wait_for_picture(browser, 2)
    card(browser, 2).find_element(By.LINK_TEXT, "Log").click()
    browser.switch_to.default_content()
    until(browser, lambda: browser.current_url.endswith("/clip.modify/mapped/2"), "the log to open outside of the tab")

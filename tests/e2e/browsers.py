# SPDX-License-Identifier: Apache-2.0
"""A real browser, and how a user finds, clicks and reads in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from selenium_axe_python import Axe

from harness.chromium import chromium, programs
from harness.local_airflow import LocalAirflow

T = TypeVar("T")


def skip_without_chromium() -> None:
    """Skip a test on a machine that has no Chromium, unless it has to have one."""
    if programs() is None:
        assert not os.environ.get("CI"), "Chromium and its driver are needed here; they are not on this machine"
        pytest.skip("needs Chromium and its driver")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Chrome]:
    """Return a browser that has never been anywhere. One that all tests shared hung at times."""
    skip_without_chromium()
    with chromium(tmp_path, "--window-size=1280,1000") as browser:
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def browser(stranger: Chrome, airflow: LocalAirflow) -> Chrome:
    """Return a browser that is signed in to Airflow."""
    stranger.get(f"{airflow.url}/auth/token/login?next={airflow.url}/luma/static/common.css")
    complaints(stranger)
    return stranger


def until(browser: Chrome, condition: Callable[[], T], what: str, seconds: float = 180) -> T:
    """Wait until a condition is true, and return what it returned; elements may come and go meanwhile."""
    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: _tried(condition), what)


def _tried(condition: Callable[[], T]) -> T | None:
    try:
        return condition()
    except WebDriverException:
        return None


def find(browser: Chrome, xpath: str) -> WebElement:
    """Return an element, once a user can see it."""

    def visible() -> WebElement | None:
        return next((element for element in browser.find_elements(By.XPATH, xpath) if element.is_displayed()), None)

    return until(browser, visible, xpath)


def click(browser: Chrome, xpath: str) -> None:
    """Click on an element, once that is possible."""
    until(browser, lambda: find(browser, xpath).click() or True, f"a click on {xpath}")


def text(browser: Chrome, element_id: str) -> str:
    return browser.find_element(By.ID, element_id).text


def wait_for_text(browser: Chrome, element_id: str, words: str, seconds: float = 180) -> None:
    until(browser, lambda: words in text(browser, element_id), f"{words!r} in #{element_id}", seconds)


def press(browser: Chrome, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def complaints(browser: Chrome) -> list[str]:
    """Return what the browser complains of: errors, and violations of the page's policy."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def barriers(browser: Chrome) -> list[str]:
    """Return what axe-core finds that keeps people from using the page."""
    axe = Axe(browser)
    axe.inject()
    found = axe.run()
    assert found["passes"], "axe-core has looked at nothing"
    return [f"{rule['id']}: {node['html']}" for rule in found["violations"] for node in rule["nodes"]]


def wait_for_videos(browser: Chrome, count: int = 2) -> None:
    """Wait until that many videos can be played."""
    script = "return [...document.querySelectorAll('video')].filter(video => video.readyState >= 3).length"
    until(browser, lambda: browser.execute_script(script) == count, f"{count} videos to be ready")

# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, from Debian's packages ``chromium`` and ``chromium-driver``, or from the ``PATH``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


def programs() -> tuple[str, str] | None:
    """Return Chromium and its driver; None if one of them is not on this machine."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (program, driver) if program and driver else None


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Chrome]:
    """
    Run Chromium with an empty profile.

    :param folder: where the profile goes
    :param flags: further flags
    :raises SystemExit: it is not on this machine
    """
    found = programs()
    if found is None:
        sys.exit("Chromium and its driver are needed: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location, driver = found
    for flag in (*_FLAGS.split(), f"--user-data-dir={folder / 'chromium'}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()

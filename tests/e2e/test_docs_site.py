# SPDX-License-Identifier: Apache-2.0
"""The documentation site: it is built without a warning, every link in it leads somewhere, and it fits every screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from selenium.webdriver import Chrome

from harness.chromium import chromium
from tests.e2e.browsers import skip_without_chromium
from tests.e2e.conftest import REPOSITORY

pytestmark = pytest.mark.xdist_group("docs")


class Page(HTMLParser):
    """
    What a page of HTML refers to.

    :ivar ids: what links can lead to
    :ivar links: where its links lead
    :ivar loads: what the browser loads to show it
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += [given[name] for name in ("src", "srcset") if name in given]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    said = subprocess.run(
        ["make", "--dry-run", "--silent", "docs", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.docs"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [command] = [line for line in said.splitlines() if "sphinx" in line]
    assert {"--nitpicky", "--fail-on-warning"} <= set(command.split())
    done = subprocess.run(
        command.replace("docs/_build", str(folder)).split(), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return every page of the site."""
    # What lies in _static are the theme's templates.
    pages = {file: Page(file) for file in site.rglob("*.html") if "_static" not in file.parts}
    assert {"index.html", "tutorial.html", "how-to.html", "api.html"} <= {file.name for file in pages}
    return pages


def test_every_link_leads_to_a_place_that_exists(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            is_there = target.is_file() and target.is_relative_to(site)
            if not is_there or (target in pages and parts.fragment and parts.fragment not in pages[target].ids):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []


def test_site_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for address in page.loads:
            parts = urlsplit(address)
            assert (parts.scheme, parts.netloc) in (("", ""), ("data", "")), f"{file.name}: {address}"
            assert parts.scheme or (file.parent / unquote(parts.path)).is_file(), f"{file.name}: {address}"


def test_every_page_can_be_reached_from_every_page(pages: dict[Path, Page]) -> None:
    named = {file.name for file in pages} - {"genindex.html", "search.html", "py-modindex.html"}
    for file, page in pages.items():
        linked = {unquote(urlsplit(link).path).rpartition("/")[2] for link in page.links} | {file.name, "index.html"}
        assert named <= linked, file.name


def test_every_public_name_has_its_place_in_the_api(pages: dict[Path, Page], site: Path) -> None:
    ids = pages[site / "api.html"].ids
    for name in """
        operators.luma.LumaModifyOperator operators.luma.LumaUploadOperator operators.luma.LumaDownloadOperator
        operators.video.VideoSplitOperator operators.video.VideoJoinOperator sensors.luma.LumaTaskSensor
        triggers.luma.LumaTaskTrigger task_groups.video.modify_long_video hooks.luma.LumaHook.modify_video
        hooks.luma.LumaHook.get_task hooks.luma.LumaHook.get_credits hooks.luma.LumaHook.wait_for_completion
        hooks.luma.LumaHook.get_download_url hooks.luma.LumaHook.download hooks.luma.LumaHook.upload
        hooks.luma.LumaHook.test_connection hooks.luma.LumaAsyncHook.get_task core.job.LumaTask
        core.job.LumaTaskStatus core.job.LumaUpload exceptions.LumaError exceptions.LumaSubmissionUnknownError
        simulator.Simulator
    """.split():
        assert f"airflow_provider_luma.{name}" in ids


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    skip_without_chromium()
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (390, "dark"),
        *(pytest.param(*one, marks=pytest.mark.long) for one in ((1280, "light"), (1280, "dark"), (390, "light"))),
    ],
)
def test_every_page_fits_the_screen_in_both_themes(
    browser: Chrome, pages: dict[Path, Page], width: int, theme: str
) -> None:
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for file in pages:
        browser.get(file.as_uri())
        wide, visible = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= visible == width, file.name
        assert browser.execute_script("return document.documentElement.dataset.theme") == theme
        complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert complaints == [], file.name

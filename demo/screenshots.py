# SPDX-License-Identifier: Apache-2.0
"""
Take the screenshots for the documentation: ``make screenshots``.

Airflow runs the example DAGs against a simulator, and Chromium (Debian's ``chromium`` and ``chromium-driver``) opens
the pages. The screenshots are written to ``docs/images``.
"""

from __future__ import annotations

import base64
import json
import signal
import tempfile
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlretrieve

import av
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from airflow_provider_luma.simulator import Settings, Simulator
from harness.chromium import chromium
from harness.local_airflow import LocalAirflow

REPOSITORY = Path(__file__).parent.parent
IMAGES = REPOSITORY / "docs" / "images"
PROMPT = "Make it a rainy night with neon lights"
STILL = """
    return document.getAnimations().every(
        moving => moving.playState !== 'running' || moving.effect.getComputedTiming().iterations === Infinity)
        && !document.querySelector('[data-testid=skeleton]')"""  # Airflow's placeholder for rows that are still loading
FILM_SECONDS, FILM_SIZE = 25.0, (640, 360)


def main() -> None:
    """Take all screenshots."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Airflow and the browser are stopped
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Simulator(Settings(processing_seconds=4)) as luma:
        home = Path(folder)
        film = make_film(luma, home)
        connection = {"conn_type": "luma", "host": luma.base_url, "password": "simulator-key"}
        environment = {
            "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection),
            "LUMA_VIDEO_URL": luma.sample_url,
            "LUMA_VIDEO": str(film),
            "LUMA_DESTINATION": f"file://{home}/videos",
        }
        with (
            LocalAirflow(home / "airflow", REPOSITORY / "dags", environment) as airflow,
            chromium(home, "--hide-scrollbars") as browser,
        ):
            airflow.run("pools", "set", "--include-deferred", "luma", "20", "Jobs running at Luma")
            take_all(Camera(browser, airflow), luma)


def make_film(luma: Simulator, folder: Path) -> Path:
    """Return a film that is too long for Luma, made from the simulator's clips."""
    film = folder / "film.mp4"
    clips = [folder / f"{name}.mp4" for name in ("sample", "sample-2", "sample-3")]
    for clip in clips:
        urlretrieve(luma.sample_url.replace("sample.mp4", clip.name), clip)  # noqa: S310  (our own simulator)
    with av.open(str(film), "w") as written:
        stream = written.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *FILM_SIZE, "yuv420p"
        count = 0
        while count < FILM_SECONDS * 24:
            with av.open(str(clips[count // 72 % 3])) as clip:
                for picture in clip.decode(video=0):
                    frame = picture.reformat(*FILM_SIZE, "yuv420p")
                    frame.pts, frame.time_base = count, Fraction(1, 24)
                    written.mux(stream.encode(frame))
                    count += 1
        written.mux(stream.encode(None))
    return film


class Camera:
    """
    A browser that is signed in to an Airflow.

    :param browser: the browser; opening the first page signs it in
    :param airflow: a running Airflow
    """

    def __init__(self, browser: Chrome, airflow: LocalAirflow) -> None:
        self.browser = browser
        self.airflow = airflow
        browser.get(f"{airflow.url}/auth/token/login?next={airflow.url}/luma/static/result.css")
        browser.execute_script("localStorage.setItem('theme', 'light')")

    def finish(self, dag_id: str, **params: str) -> str:
        """Run a DAG until it has ended; return the run's id."""
        run_id = self.airflow.trigger(dag_id, **params)
        ended = ("success", "failed")
        self.airflow.wait_until(lambda: self.airflow.run_state(dag_id, run_id) in ended, dag_id, seconds=300)
        return run_id

    def open(self, path: str, size: tuple[int, int] = (1280, 760)) -> None:
        """Open a page of Airflow."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.browser.get(f"{self.airflow.url}{path}")

    def until(self, script: str) -> None:
        """Wait until a script returns something true."""
        WebDriverWait(self.browser, 90, poll_frequency=0.2).until(lambda shown: shown.execute_script(script), script)

    def act(self, xpath: str, text: str | None = None) -> None:
        """Click the first visible element, or type into it."""

        def acted(browser: Chrome) -> bool:
            try:
                element = next(found for found in browser.find_elements(By.XPATH, xpath) if found.is_displayed())
                element.click() if text is None else element.send_keys(text)
            except (StopIteration, WebDriverException):
                return False
            return True

        WebDriverWait(self.browser, 60, poll_frequency=0.2).until(acted, xpath)

    def take(self, name: str) -> None:
        """Save a screenshot once all finite animations have ended."""
        self.until(STILL)
        shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 80})
        file = IMAGES / f"{name}.webp"
        file.write_bytes(base64.b64decode(shot["data"]))
        print(f"{file.relative_to(REPOSITORY)}: {file.stat().st_size / 1000:.0f} kB", flush=True)


def take_all(camera: Camera, luma: Simulator) -> None:
    """
    Take one screenshot after the other.

    :param luma: the service of the DAGs
    """
    run_id = camera.finish("luma_modify", prompt=PROMPT)
    camera.open(
        f"/luma/result?{urlencode({'dag_id': 'luma_modify', 'run_id': run_id, 'task_id': 'modify'})}", (1280, 960)
    )
    camera.until("return [...document.querySelectorAll('video')].filter(video => video.readyState >= 3).length === 2")
    camera.take("result")

    camera.open(f"/dags/luma_modify/runs/{run_id}")
    for task_id in ("modify", "download"):  # the square in the grid, and the row of the table
        camera.until(f'return document.querySelectorAll(\'a[href*="/runs/"][href*="/tasks/{task_id}"]\').length >= 2')
    camera.take("run")

    run_id = camera.finish("luma_long_video", prompt=PROMPT)
    camera.open(f"/dags/luma_long_video/runs/{run_id}")
    camera.act("//button[contains(@aria-label, 'Show Graph')]")
    camera.until("return document.querySelectorAll('.react-flow__node').length > 0")
    camera.act("//button[@aria-label='Expand all task groups']")
    states = "[...document.querySelectorAll('.react-flow__node')].filter(node => node.innerText.includes('success'))"
    camera.until(f"return {states}.length === 6")  # the group, and its five tasks
    camera.until("return document.body.innerText.includes('9 Task Instances')")
    camera.take("film")

    run_id = camera.finish("luma_batch", prompt=PROMPT)
    camera.open(
        f"/luma/gallery?{urlencode({'dag_id': 'luma_batch', 'run_id': run_id, 'task_id': 'clip.modify'})}", (1280, 540)
    )
    camera.until("return [...document.querySelectorAll('video')].filter(video => video.readyState >= 2).length === 6")
    camera.until("return document.body.innerText.includes('3 of 3 finished')")
    camera.take("gallery")

    luma.configure(faults=["submit:cut,after_accept=true,times=1"])
    camera.finish("luma_modify", prompt=PROMPT)
    camera.open("/luma/overview", (1280, 860))
    camera.until("return document.querySelectorAll('#hands tbody tr').length === 1")
    rows = (
        "[...document.querySelectorAll('#jobs tbody tr')].filter(row => row.getBoundingClientRect().top < innerHeight)"
    )
    camera.until(
        f"return {rows}.length > 3 && {rows}.slice(1).every(row => row.lastElementChild.textContent === 'yes')"
    )
    camera.take("overview")

    camera.open("/connections", (1280, 1000))
    camera.act("//button[normalize-space()='Add Connection']")
    camera.act("//*[@role='dialog']//*[@name='connection_id']", "luma_default")
    camera.act("//*[@role='dialog']//input[@role='combobox']", "luma")
    camera.act("//*[@role='option'][normalize-space()='Luma']")
    camera.act("//*[@role='dialog']//*[@name='password']", "the key of the account")
    camera.act("//*[@role='dialog']//button[normalize-space()='Extra Fields']")
    camera.until("return document.body.innerText.includes('Callback base URL')")
    camera.take("connection")


if __name__ == "__main__":
    main()

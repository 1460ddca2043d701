# SPDX-License-Identifier: Apache-2.0
"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import requests

from airflow_provider_luma.simulator import Settings, Simulator
from demo.__main__ import prepare
from tests.e2e.conftest import REPOSITORY
from tests.e2e.videos import assert_modified

pytestmark = pytest.mark.xdist_group("demo")


def demo(home: Path, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LUMA", "DEMO"))}
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=REPOSITORY,
        env={**kept, "DEMO_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(home: Path) -> list[str]:
    """Return the processes that belong to a demo."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRFLOW_HOME", "").startswith(str(home)):
                left.append(" ".join(process.cmdline()))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return left


def test_demo_ends_with_a_video_and_says_what_to_do_next(tmp_path: Path) -> None:
    process = demo(tmp_path, DEMO_ONCE="1")
    said, _ = process.communicate(timeout=400)

    assert process.returncode == 0, said
    [file] = re.findall(r"The modified video: (.+\.mp4)", said)
    with Simulator(Settings()) as luma:
        assert_modified(file, luma.sample_url)
    for hint in ("The Airflow UI: http://127.0.0.1:", "LUMA_API_KEY=... LUMA_VIDEO=/path/to/clip.mp4 make demo"):
        assert hint in said
    assert left_behind(tmp_path) == []


def test_interruption_is_answered_at_once_although_airflow_takes_seconds_to_stop() -> None:
    waiting = (
        "import signal, threading; from demo.__main__ import _interrupt; signal.signal(signal.SIGINT, _interrupt); "
        "print('up', flush=True); threading.Event().wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\nStopping ...\n"


@pytest.mark.long
def test_demo_runs_twice_in_the_same_folder_and_ends_when_interrupted(tmp_path: Path) -> None:
    demo(tmp_path, DEMO_ONCE="1").communicate(timeout=400)

    process = demo(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "deferred" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) == 130, rest
    assert rest.index("Stopping ...") < rest.index("Stopped.")
    assert left_behind(tmp_path) == []


def test_each_airflow_has_a_database_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    databases = set()
    for airflow in ("3.3", "3.4"):
        monkeypatch.setattr("demo.__main__.AIRFLOW", airflow)
        with ExitStack() as running:
            local = prepare(tmp_path, {}, running, cluster=False)
        databases.add(local.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    assert len(databases) == 2


def test_demo_with_a_key_but_no_clip_says_what_is_missing(tmp_path: Path) -> None:
    process = demo(tmp_path, LUMA_API_KEY="sk-secret")
    said, _ = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "set LUMA_VIDEO to a file, or LUMA_VIDEO_URL to a public address" in said
    assert "sk-secret" not in said


@pytest.mark.long
def test_demo_takes_a_clip_of_ones_own(tmp_path: Path) -> None:
    with Simulator(Settings()) as luma:
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(requests.get(luma.sample_url, timeout=30).content)
        process = demo(tmp_path / "home", DEMO_ONCE="1", LUMA_VIDEO=str(clip))
        said, _ = process.communicate(timeout=400)

        assert process.returncode == 0, said
        [file] = re.findall(r"The modified video: (.+\.mp4)", said)
        assert_modified(file, luma.sample_url)


def test_demo_with_a_clip_that_is_not_there_says_so(tmp_path: Path) -> None:
    process = demo(tmp_path, LUMA_VIDEO="/nowhere/clip.mp4")
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, "LUMA_VIDEO is /nowhere/clip.mp4, but there is no such file." in said) == (2, True)

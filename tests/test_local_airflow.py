# SPDX-License-Identifier: Apache-2.0
"""The end of a local Airflow: whatever signals come while it stops, no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

#: In place of ``airflow``: the triggerer does not end when asked to, as with a trigger that holds it up.
COMPONENT = f"""#!{sys.executable}
import pathlib, signal, sys
name = sys.argv[1]
def end(*_):
    pathlib.Path(f"{{name}}.asked").touch()
    if name != "triggerer":
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(f"{{name}}.running").touch()
while True:
    signal.pause()
"""

#: Runs components as the demo does, and says when all of them are up.
RUN = """
import signal, sys, threading, time
from pathlib import Path
from demo.__main__ import _interrupt
from harness.local_airflow import ENDING, LocalAirflow

home, handling = Path(sys.argv[1]), sys.argv[2]
for number in ENDING:
    signal.signal(number, _interrupt if handling == "demo" else signal.default_int_handler)
local = LocalAirflow(home, home, {})
local.environment["PATH"] = f"{home}/bin:" + local.environment["PATH"]
try:
    for component in local.components:
        local.start(component)
    while not all((home / f"{component}.running").exists() for component in local.components):
        time.sleep(0.02)
    print("up", flush=True)
    threading.Event().wait()
finally:
    local.stop_all()
"""


def end_what_is_left(home: Path) -> list[str]:
    """End the processes that belong to an Airflow; return which these were."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRFLOW_HOME") == str(home):
                found.append(" ".join(process.cmdline()))
                process.kill()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for(process: subprocess.Popen[str], file: Path) -> None:
    while not file.exists():
        assert process.poll() is None, f"ended before {file.name}"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)


@pytest.mark.parametrize(
    ("handling", "second"),
    [("demo", signal.SIGINT), ("demo", signal.SIGHUP), ("python", signal.SIGINT)],
    ids=["Ctrl-C twice", "closed terminal", "another program"],
)
def test_second_signal_leaves_no_process(tmp_path: Path, handling: str, second: signal.Signals) -> None:
    program = tmp_path / "bin" / "airflow"
    program.parent.mkdir()
    program.write_text(COMPONENT)
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path), handling],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGINT)
    wait_for(process, tmp_path / "triggerer.asked")
    process.send_signal(second)

    assert process.wait(timeout=60) != 0, "the interrupt is raised once all is stopped"
    assert end_what_is_left(tmp_path) == []

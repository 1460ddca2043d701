# SPDX-License-Identifier: Apache-2.0
"""How much more memory a process takes at most while it does something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_MEASURE = """
import json, sys, threading, time
import psutil
def measured(work):
    me, peak, done = psutil.Process(), 0, threading.Event()
    def sample():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, me.memory_info().rss)
    baseline = me.memory_info().rss
    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    size = work()
    seconds = time.monotonic() - started
    done.set()
    sampler.join()
    print(json.dumps({"growth": peak - baseline, "seconds": seconds, "size": size}))
"""


def measure(script: str, *arguments: str) -> dict[str, Any]:
    """
    Run a script in a process of its own.

    :param script: calls ``measured(work)`` once, with what is measured, and after all that belongs to the baseline
    :returns: ``growth`` in bytes, ``seconds``, and ``size``, what the work has returned
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE + script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
        env=dict(os.environ),
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    megabytes = measured["size"] / 1e6
    print(f"{measured['growth'] / 1e6:.0f} MB more, {megabytes / measured['seconds']:.0f} MB/s")
    return measured

# SPDX-License-Identifier: Apache-2.0
"""How much more memory a process takes at most while it does something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_MEASURE = """
import json, sys
from pathlib import Path
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0])
def measured(work):
    Path("/proc/self/clear_refs").write_text("5")  # lets VmHWM, the most memory so far, begin anew
    baseline = kilobytes("VmRSS:")
    size = work()
    print(json.dumps({"growth": 1024 * (kilobytes("VmHWM:") - baseline), "size": size}))
"""


def measure(script: str, *arguments: str) -> list[dict[str, Any]]:
    """
    Run a script in a separate process.

    :param script: calls ``measured(work)`` with each work that is measured, after all that belongs to the baseline
    :returns: of each work, ``growth`` in bytes, and ``size``, what it has returned
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE + script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    measured: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for one in measured:
        print(f"{one['growth'] / 1e6:.1f} MB more for {one['size'] / 1e6:.0f} MB")
    return measured

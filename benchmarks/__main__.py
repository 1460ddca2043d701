# SPDX-License-Identifier: Apache-2.0
"""
Run every benchmark but :mod:`benchmarks.triggerer`, which alone takes half an hour.

What a user feels comes first.
"""

from __future__ import annotations

import time
from importlib import import_module

BENCHMARKS = """
    overhead finish films transfers gallery overview import_cost submissions waiting sharing callbacks order
""".split()


def main() -> None:
    """Run them one after the other, and say how long each took."""
    began = time.monotonic()
    for name in BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        start = time.monotonic()
        import_module(f"benchmarks.{name}").main()
        print(f"\n{time.monotonic() - start:.0f} s", flush=True)
    print(f"\nWhole: {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()

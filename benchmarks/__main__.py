# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark."""

from __future__ import annotations

from importlib import import_module

BENCHMARKS = """
    import_cost order overhead finish callbacks submissions waiting sharing poll_cost triggerer overview
""".split()

if __name__ == "__main__":
    for name in BENCHMARKS:
        print(f"\n## {name}\n")
        import_module(f"benchmarks.{name}").main()

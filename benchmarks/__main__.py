# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark."""

from __future__ import annotations

from benchmarks import callbacks, finish, import_cost, order, overhead, poll_cost, sharing, submissions, triggerer, waiting

BENCHMARKS = import_cost, order, overhead, finish, callbacks, submissions, waiting, sharing, poll_cost, triggerer

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        print(f"\n## {benchmark.__name__.removeprefix('benchmarks.')}\n")
        benchmark.main()

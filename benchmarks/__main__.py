# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark."""

from __future__ import annotations

from benchmarks import callbacks, finish, import_cost, order, overhead, poll_cost, submissions, triggerer, waiting

if __name__ == "__main__":
    for benchmark in (import_cost, order, overhead, finish, callbacks, submissions, waiting, poll_cost, triggerer):
        print(f"\n## {benchmark.__name__.removeprefix('benchmarks.')}\n")
        benchmark.main()

# SPDX-License-Identifier: Apache-2.0
"""
What a DAG file pays at every parse for importing an operator: milliseconds and modules on top of ``airflow.sdk``.

Each figure is the median over fresh interpreters. The candidates alternate, so that a machine that gets slower or
faster meanwhile does so for all of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 11

CANDIDATES = {
    "ours: operators and sensor": "airflow_provider_luma.operators.luma, airflow_provider_luma.sensors.luma",
    "http: operator": "airflow.providers.http.operators.http",
    "http: operator and sensor": "airflow.providers.http.operators.http, airflow.providers.http.sensors.http",
    "standard: trigger_dagrun": "airflow.providers.standard.operators.trigger_dagrun",
    "amazon: batch": "airflow.providers.amazon.aws.operators.batch",
}

PROBE = """
import sys, time
import airflow.sdk
from airflow.sdk import BaseOperator, BaseSensorOperator, DAG, Param
before, start = set(sys.modules), time.perf_counter()
import {modules}
milliseconds = 1000 * (time.perf_counter() - start)
print(milliseconds, len(set(sys.modules) - before), "requests" in sys.modules, "aiohttp" in sys.modules)
"""


def probe(modules: str) -> tuple[float, int, bool, bool]:
    """Import in a fresh interpreter; return milliseconds, new modules, and whether an HTTP library came along."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(modules=modules)], capture_output=True, text=True, check=True
    )
    milliseconds, count, requests, aiohttp = done.stdout.split()[-4:]
    return float(milliseconds), int(count), requests == "True", aiohttp == "True"


def main() -> None:
    """Measure, and print a table."""
    figures: dict[str, list[tuple[float, int, bool, bool]]] = {name: [] for name in CANDIDATES}
    for _ in range(ROUNDS):
        for name, modules in CANDIDATES.items():
            figures[name].append(probe(modules))
    ours = statistics.median(figure[0] for figure in next(iter(figures.values())))
    print("Import cost at DAG parse, on top of airflow.sdk\n")
    print("| imported | median ms | min to max ms | new modules | requests, aiohttp | times ours |")
    print("|---|---:|---:|---:|---|---:|")
    for name, rows in figures.items():
        times = [row[0] for row in rows]
        median = statistics.median(times)
        libraries = ", ".join(
            library for library, there in zip(("requests", "aiohttp"), rows[0][2:], strict=True) if there
        )
        print(
            f"| {name} | {median:.1f} | {min(times):.1f} to {max(times):.1f} | {rows[0][1]} | {libraries or 'neither'} "
            f"| {median / ours:.1f} |"
        )


if __name__ == "__main__":
    main()

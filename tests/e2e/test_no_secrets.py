# SPDX-License-Identifier: Apache-2.0
"""The API key is nowhere that Airflow writes to, at DEBUG."""

from __future__ import annotations

from pathlib import Path

from conftest import API_KEY

from airflow_provider_luma.simulator import Simulator
from demo.local_airflow import LocalAirflow


def test_the_key_is_in_no_file(airflow: LocalAirflow, airflow_home: Path, luma: Simulator) -> None:
    luma.configure(processing_seconds=3, outcome="generate_failed")
    failed = airflow.trigger("luma_modify")
    airflow.wait_until(lambda: airflow.run_state("luma_modify", failed) == "failed", "the run to fail", seconds=120)

    written = [file for file in airflow_home.rglob("*") if file.is_file() and "secrets" not in file.parts]

    assert any(file.suffix == ".db" for file in written)
    assert any("task_id=modify" in str(file) for file in written)
    assert [str(file) for file in written if API_KEY.encode() in file.read_bytes()] == []

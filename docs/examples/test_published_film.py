# SPDX-License-Identifier: Apache-2.0
"""The DAG of the tutorial, rehearsed with the simulator: no account, no credits."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlretrieve

import pytest
from published_film import dag

from airflow_provider_luma.simulator import Fault, Settings, Simulator


def test_film_is_published_and_paid_for_once_although_luma_stumbles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Simulator(Settings(processing_seconds=0)) as luma:
        address = luma.base_url.removeprefix("http://")
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", f"luma://:simulator-key@{address}/http")
        urlretrieve(luma.sample_url, tmp_path / "film.mp4")
        luma.configure(faults=[Fault(on="status", kind="html", times=1), "submit:refuse,code=429,times=1"])

        run = dag.test(run_conf={"source": str(tmp_path / "film.mp4"), "folder": f"file://{tmp_path}"})

        assert run.state == "success"
        assert (tmp_path / "published" / "film.mp4").stat().st_size > 0
        assert luma.accepted == 1  # of two submissions, and the second was accepted

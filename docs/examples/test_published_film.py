# SPDX-License-Identifier: Apache-2.0
"""The DAG of the tutorial, rehearsed with the simulator: no account, no credits."""

pytest_plugins = ["airflow_provider_luma.testing"]


def test_film_is_published_and_paid_for_once_although_luma_stumbles(luma_simulator, luma_clip, run_dag, tmp_path):
    luma_simulator.configure(faults=["status:html,times=1", "submit:refuse,code=429,times=1"])
    run = run_dag("published_film", {"source": luma_clip, "folder": f"file://{tmp_path}"})
    assert run.state == "success"
    assert run.xcom("publish") == f"file://{tmp_path}/published/film.mp4"
    assert (tmp_path / "published" / "film.mp4").stat().st_size > 0
    assert len(run.submissions) == 1  # of two attempts, of which the first was refused

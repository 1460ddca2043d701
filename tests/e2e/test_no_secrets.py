# SPDX-License-Identifier: Apache-2.0
"""No secret is anywhere that Airflow writes to, at DEBUG: in no log, no XCom, no rendered field, no trigger row."""

from __future__ import annotations

from pathlib import Path

from conftest import API_KEY, WEBHOOK_SECRET, enable_callbacks
from sqlalchemy import MetaData, create_engine, text

from airflow_provider_luma.callbacks.token import token_of
from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow

DAGS = (
    "luma_submit_and_wait",
    "signed_clip",
    "rehearse_generate_failed",
    "rehearse_lost_answer",
    "rehearse_refused_401",
    "rehearse_status_html_500",
    "rehearse_synchronous",
    "rehearse_timed_out",
)


def test_secrets_are_in_no_file_and_no_table(
    dags: Path, environment: dict[str, str], lumas: dict[str, Simulator], tmp_path: Path
) -> None:
    for luma in lumas.values():
        luma.reset()
    address = f"sqlite:///{tmp_path}/airflow.db?timeout=60"
    settings = {"AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
    local = LocalAirflow(tmp_path, dags, {**environment, **settings})
    enable_callbacks(local, lumas)
    with local as airflow:
        runs = {dag_id: airflow.trigger(dag_id) for dag_id in DAGS}
        for dag_id, run_id in runs.items():
            airflow.wait_until(
                lambda dag_id=dag_id, run_id=run_id: airflow.run_state(dag_id, run_id) in ("success", "failed"),
                f"{dag_id} to end",
                seconds=300,
            )

    written = [file for file in tmp_path.rglob("*") if file.is_file() and "secrets" not in file.parts]
    assert any("task_id=modify" in str(file) for file in written)
    tokens = [token_of(job.callback_url) for luma in lumas.values() for job in luma.jobs if job.callback_url]
    assert tokens, "Luma was given addresses to call"
    [signed] = lumas["input_signed"].jobs
    assert lumas["input_signed"].uploads == []
    signature = signed.video_url.partition("Signature=")[2].partition("&")[0]
    assert len(signature) > 20
    secrets = {
        "API key": API_KEY,
        "webhook secret": WEBHOOK_SECRET,
        "signature": signature,
        **{f"token {number}": token for number, token in enumerate(tokens)},
    }
    engine, tables = create_engine(address), MetaData()
    tables.reflect(engine)
    for kind in ("task_instance", "xcom", ("rendered_task_instance_fields", "rtif"), "trigger"):
        assert any(name.startswith(kind) for name in tables.tables), kind
    with engine.connect() as connection:
        for table in tables.tables.values():
            rows = str(connection.execute(text(f'select * from "{table.name}"')).all())
            assert [name for name, secret in secrets.items() if secret in rows] == [], table.name
    for file in written:
        content = file.read_bytes()
        assert [name for name, secret in secrets.items() if secret.encode() in content] == [], file

# SPDX-License-Identifier: Apache-2.0
"""No secret is anywhere that Airflow writes to, at DEBUG: in no log, no XCom, no rendered field, no trigger row."""

from __future__ import annotations

from airflow_provider_luma.core.callback_token import token_of
from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import API_KEY, WEBHOOK_SECRET
from tests.e2e.runs import finish
from tests.e2e.written import written


def test_secrets_are_in_no_file_and_no_table(
    airflow: LocalAirflow, rehearsals: dict[str, str], lumas: dict[str, Simulator], luma: Simulator
) -> None:
    """After all that the tests have run so far: at least a rehearsal of each kind, a sensor and a signed clip."""
    assert {"generate_failed", "lost_answer", "refused_401", "synchronous", "timed_out"} <= rehearsals.keys()
    for name in ("input_signed", "input_uploaded"):
        lumas[name].reset()
    for dag_id in ("luma_submit_and_wait", "signed_clip", "uploaded_clip_luma"):
        run_id = airflow.trigger(dag_id)
        assert finish(airflow, dag_id, run_id) == "success", airflow.story(dag_id, run_id)

    tokens = [token_of(job.callback_url) for luma in lumas.values() for job in luma.jobs if job.callback_url]
    assert tokens, "Luma was given addresses to call"
    [signed] = lumas["input_signed"].jobs
    assert lumas["input_signed"].uploads == []
    signature = signed.video_url.partition("Signature=")[2].partition("&")[0]
    assert len(signature) > 20
    assert (lumas["input_uploaded"].accepted, len(lumas["input_uploaded"].uploads)) == (1, 1)
    [upload] = [call for call in lumas["input_uploaded"].calls if call.on == "upload"]
    secrets = {
        "API key": API_KEY,
        "webhook secret": WEBHOOK_SECRET,
        "signature": signature,
        "signature of an upload": upload.query["X-Amz-Signature"],
        **{f"token {number}": token for number, token in enumerate(tokens)},
    }
    places = []
    for place, content in written(airflow):
        assert [name for name, secret in secrets.items() if secret.encode() in content] == [], place
        places.append(place)
    for kinds in (("task_instance",), ("xcom",), ("rendered_task_instance_fields", "rtif"), ("trigger",)):
        assert any(place.startswith(f"table {kind}") for place in places for kind in kinds), kinds
    assert any("task_id=modify" in place for place in places)

# SPDX-License-Identifier: Apache-2.0
"""
Version 1.1.0 and this one side by side: what one of them has stored or sent, the other one understands.

The values of 1.1.0 below were written by 1.1.0.
"""

from __future__ import annotations

import importlib
import json
from urllib.parse import urlsplit

import pytest

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import CallbackProof
from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.core.job import ModifyRequest
from airflow_provider_luma.triggers import luma as triggers
from tests.support.operator_fixtures import RESULT_KEYS, context, modify

__all__ = ["context", "modify"]

PACKAGE = "airflow_provider_luma"

#: The public names of 1.1.0, by the modules that had them.
PUBLIC_NAMES = {
    "operators.luma": ["LumaModifyOperator", "LumaUploadOperator", "LumaDownloadOperator"],
    "operators.video": ["VideoSplitOperator", "VideoJoinOperator"],
    "sensors.luma": ["LumaTaskSensor"],
    "task_groups.video": ["modify_long_video"],
    "triggers.luma": ["LumaTaskTrigger", "LumaSubmissionTrigger", "LumaCallbackTrigger"],
    "links.luma": ["LumaResultLink"],
    "hooks.luma": ["LumaHook", "LumaAsyncHook"],
    "protocol": ["LumaTask", "LumaTaskStatus"],
    "protocol_files": ["LumaUpload"],
    "exceptions": ["LumaError", "LumaSubmissionUnknownError", "LumaGenerationError", "LumaTimeoutError"],
    "plugins.luma": ["entry_point"],
    "simulator": ["Simulator", "Settings", "Fault", "Job", "Upload", "Call"],
}

#: Triggers that 1.1.0 has stored, each with all the arguments that 1.1.0 takes.
TRIGGERS = {
    "LumaTaskTrigger": {
        "luma_task_id": "abc",
        "luma_conn_id": "luma_default",
        "poll_interval": 30.0,
        "end_time": 1795900000.0,
        "created_at": 1795800000.0,
    },
    "LumaSubmissionTrigger": {
        "luma_conn_id": "luma_default",
        "state": {"first_attempt_at": 1.0},
        "until": 2.0,
        "permitted_at": None,
        "not_before": 0.0,
    },
    "LumaCallbackTrigger": {"state": {"reference": "r"}, "until": 2.0},
}

RECORD = {
    "reference": "f" * 32,
    "fingerprint": "f6c45601af14d511d4beec436b795131beef91e049aebf9818660ba370cf91de",
    "luma_task_id": "abc",
    "max_tries": 2,
    "try_number": 1,
    "expects_callback": True,
    "submitted_at": 1795800000.0,
    "delivered": False,
    "reported": False,
}

DEFERRAL = {
    "luma_task_id": "abc",
    "reference": "r",
    "end_time": 1.0,
    "execution_deadline": 2.0,
    "upload": {"file": "f", "url": "u", "size": 1, "expires_at": "2026-11-28T00:00:00+00:00"},
    "luma_conn_id": "luma_default",
}

CALLBACK_URL = (
    "https://airflow.example.com/luma/callback?conn_id=luma_default&reference=00000000000000000000000000000000"
    "&token=0fd4a600fd309cf212ec8decf5ed69b8de92b3182ed7144beddf75690b415ac7"
)

EVENT = {
    "task": {
        "luma_task_id": "abc",
        "status": "SUCCESS",
        "result_urls": ["https://e.com/r.mp4"],
        "origin_urls": [],
        "created_at": None,
        "completed_at": None,
    }
}


@pytest.mark.parametrize("module", PUBLIC_NAMES)
def test_public_name_is_imported_from_where_it_was(module):
    found = importlib.import_module(f"{PACKAGE}.{module}")
    assert [name for name in PUBLIC_NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("name", TRIGGERS)
def test_stored_trigger_is_the_same_in_both_versions(name):
    """Airflow stores a trigger as its class and arguments; a triggerer of either version creates it from those."""
    path, arguments = getattr(triggers, name)(**TRIGGERS[name]).serialize()
    assert (path, arguments) == (f"{PACKAGE}.triggers.luma.{name}", TRIGGERS[name])


def test_fingerprint_is_the_same_so_that_no_job_is_paid_for_again():
    assert ModifyRequest("make it snow", "https://e.com/v.mp4").fingerprint("luma_default") == RECORD["fingerprint"]
    other = ModifyRequest("Make it rain", "s3://b/c.mp4", "mine", "https://x/y", {}).fingerprint("luma_eu")
    assert other == "99486887be13dc3ee73477a7f558dff292816c1e3090da7b7f28a4a80321548a"


def test_stored_record_is_read():
    record = SubmissionRecord.load(RECORD)
    assert record is not None
    assert (record.luma_task_id, record.delivered, record.reported) == ("abc", None, False)


def test_record_has_all_that_version_1_1_0_reads():
    record = SubmissionRecord.load(RECORD)
    assert record is not None
    assert json.loads(json.dumps(record.as_dict())).keys() >= RECORD.keys()


def test_stored_deferral_is_read_and_written_with_the_same_names():
    assert DeferralState.read(DEFERRAL).as_kwargs() == DEFERRAL


def test_deferral_and_event_of_version_1_1_0_end_as_a_result(luma, modify, context):
    result = modify().execute_complete(context, EVENT, **DEFERRAL)
    assert list(result) == RESULT_KEYS
    assert result["result_urls"] == ["https://e.com/r.mp4"]


def test_retry_of_a_task_whose_record_version_1_1_0_has_written_continues_its_job(luma, modify, context, submit):
    luma_task_id = submit(processing_seconds=0)
    operator = modify(prompt="make it snow", deferrable=False)
    fingerprint = ModifyRequest("make it snow", luma.sample_url).fingerprint("luma_default")
    stored = {**RECORD, "luma_task_id": luma_task_id, "fingerprint": fingerprint}
    stored["max_tries"] = context["ti"].max_tries
    context["task_state_store"].set("luma_submission", stored)
    accepted = luma.accepted
    assert operator.execute(context)["luma_task_id"] == luma_task_id
    assert luma.accepted == accepted


def test_callback_address_is_valid():
    proof = CallbackProof.read(urlsplit(CALLBACK_URL).query)
    connection = LumaConnection("https://api.kie.ai", "a-long-api-key", callback_base_url="https://airflow.example.com")
    assert proof is not None and proof.is_valid_for(connection)

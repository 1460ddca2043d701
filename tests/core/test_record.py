# SPDX-License-Identifier: Apache-2.0
"""The record of a submission: it survives the store, tells requests apart by a fingerprint, and quotes none of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.core.decision import Outcome, SubmissionRecord, new_reference
from airflow_provider_luma.core.job import ModifyRequest

REQUEST = {"prompt": "make it snow", "video_url": "https://e.com/v.mp4", "watermark": None, "luma_conn_id": "luma"}


def fingerprint(*, luma_conn_id: str, **request: Any) -> str:
    return ModifyRequest(**request).fingerprint(luma_conn_id)


WANTED = fingerprint(**REQUEST)
INTENT = SubmissionRecord("a-reference", WANTED, None, max_tries=3, try_number=7)

texts = st.text(max_size=20)
requests = st.fixed_dictionaries(
    {
        "prompt": texts,
        "video_url": texts,
        "watermark": st.none() | st.text(min_size=1, max_size=20),
        "luma_conn_id": texts,
    }
)


def intent(fingerprint: str = WANTED) -> SubmissionRecord:
    return SubmissionRecord(new_reference(), fingerprint, None, max_tries=3, try_number=2)


class TestFingerprint:
    @pytest.mark.parametrize("changed", REQUEST)
    def test_request_with_one_changed_part_has_another_fingerprint(self, changed):
        assert fingerprint(**{**REQUEST, changed: "another"}) != WANTED

    def test_fingerprint_is_the_same_in_every_process_and_version(self):
        assert fingerprint(prompt="p", video_url="v", watermark=None, luma_conn_id="c") == (
            "e4210ec87120fb7fbb878f4d7360261043ab0ec120b5025303e1ca4e5beaff26"
        )

    def test_callback_address_does_not_change_the_fingerprint(self):
        request = ModifyRequest("make it snow", "https://e.com/v.mp4")
        other = replace(request, callback_url="https://airflow.example.com/luma/callback?token=1")
        assert other.fingerprint("luma") == request.fingerprint("luma")

    def test_empty_watermark_counts_as_none_and_a_blank_one_does_not(self):
        assert fingerprint(**REQUEST) == WANTED
        assert fingerprint(**{**REQUEST, "watermark": ""}) == WANTED
        assert fingerprint(**{**REQUEST, "watermark": " "}) != WANTED

    @given(requests, requests)
    @example(
        {"prompt": "ab", "video_url": "c", "watermark": None, "luma_conn_id": "d"},
        {"prompt": "a", "video_url": "bc", "watermark": None, "luma_conn_id": "d"},
    )
    @example(
        {"prompt": 'a", "b', "video_url": "c", "watermark": None, "luma_conn_id": "d"},
        {"prompt": "a", "video_url": 'b", "c', "watermark": None, "luma_conn_id": "d"},
    )
    @example(
        {"prompt": "a", "video_url": "b", "watermark": "null", "luma_conn_id": "d"},
        {"prompt": "a", "video_url": "b", "watermark": None, "luma_conn_id": "d"},
    )
    def test_no_two_requests_share_a_fingerprint(self, one, other):
        assert (fingerprint(**one) == fingerprint(**other)) == (one == other)

    @given(requests)
    def test_fingerprint_is_a_hash_that_quotes_nothing_of_the_request(self, request_):
        hashed = fingerprint(**request_)
        assert len(hashed) == 64
        assert set(hashed) <= set("0123456789abcdef")
        assert hashed not in request_.values()


RECORD = {
    "reference": texts,
    "fingerprint": texts,
    "luma_task_id": st.none() | texts,
    "max_tries": st.integers(0, 50),
    "try_number": st.integers(1, 50),
    "expects_callback": st.booleans(),
    "submitted_at": st.none() | st.floats(0, 2e9),
    "delivered": st.none() | st.sampled_from(Outcome),
    "reported": st.booleans(),
    "clear_number": st.none() | st.integers(0, 50),
}
replaced = st.none() | st.builds(SubmissionRecord, **RECORD)


class TestRecord:
    @given(st.builds(SubmissionRecord, **RECORD, replaced=replaced))
    def test_record_survives_the_store(self, record):
        assert SubmissionRecord.load(json.loads(json.dumps(record.as_dict()))) == record

    def test_stored_fields_are_the_documented_ones(self):
        assert set(INTENT.as_dict()) == {
            "reference",
            "fingerprint",
            "luma_task_id",
            "max_tries",
            "try_number",
            "expects_callback",
            "submitted_at",
            "delivered",
            "reported",
            "clear_number",
            "replaced",
            "service",
        }

    def test_fields_that_another_version_has_added_are_ignored(self):
        assert SubmissionRecord.load({**INTENT.as_dict(), "added": 1}) == INTENT

    def test_record_of_version_1_0_0_tells_of_nothing_that_a_person_knows(self):
        old = {name: INTENT.as_dict()[name] for name in list(INTENT.as_dict())[:6]}
        assert SubmissionRecord.load(old) == INTENT
        assert (INTENT.submitted_at, INTENT.delivered, INTENT.reported) == (None, None, False)

    @pytest.mark.parametrize(
        ("stored", "delivered"), [(True, Outcome.EITHER), (False, None), ("later", Outcome.EITHER)]
    )
    def test_record_of_another_version_tells_that_something_was_delivered_but_not_what(self, stored, delivered):
        assert SubmissionRecord.load({**INTENT.as_dict(), "delivered": stored}) == replace(INTENT, delivered=delivered)

    @pytest.mark.parametrize("outcome", Outcome)
    def test_version_1_1_0_reads_each_outcome_as_delivered(self, outcome):
        assert replace(INTENT, delivered=outcome).as_dict()["delivered"]
        assert not INTENT.as_dict()["delivered"]

    def test_nothing_stored_is_no_record(self):
        assert SubmissionRecord.load(None) is None

    def test_each_intent_has_a_reference_of_its_own(self):
        one, other = (intent() for _ in range(2))
        assert (one.fingerprint, one.luma_task_id, one.max_tries, one.try_number) == (WANTED, None, 3, 2)
        assert one.reference != other.reference

    @given(requests)
    def test_record_has_no_value_of_the_request(self, request_):
        record = intent(fingerprint(**request_))
        written = {value for value in record.as_dict().values() if isinstance(value, str)}
        assert not written & {text for text in request_.values() if text}

    def test_record_contains_no_part_of_the_request(self):
        written = json.dumps(intent().as_dict())
        assert [text for text in (REQUEST["prompt"], REQUEST["video_url"], "snow", "e.com") if text in written] == []

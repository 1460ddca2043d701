# SPDX-License-Identifier: Apache-2.0
"""Submit once, as a table: what a try does, given what an earlier one has left."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.submission import (
    STORE_KEY,
    TABLE,
    Decision,
    LumaSays,
    Record,
    Step,
    decide,
    fingerprint,
    must_ask,
    new_reference,
)

REQUEST = {"prompt": "make it snow", "video_url": "https://e.com/v.mp4", "watermark": None, "luma_conn_id": "luma"}
WANTED = fingerprint(**REQUEST)
JOB = "0123456789abcdef0123456789abcdef"
INTENT = Record("a-reference", WANTED, None, max_tries=3, try_number=7)
RECORDS = {
    "none": None,
    "intent": INTENT,
    "called": replace(INTENT, calls_back=True),
    "id": replace(INTENT, luma_task_id=JOB),
}
CHANGED = fingerprint(**{**REQUEST, "prompt": "make it rain"})
ASKED_FOR = {"same": WANTED, "changed": CHANGED}
MAX_TRIES = {"retry": 3, "clear": 8}


def decision(
    record: str, request: str, by: str, says: LumaSays | None = None, *, resubmit_on_unknown: bool = False
) -> Decision:
    return decide(
        RECORDS[record],
        fingerprint=ASKED_FOR[request],
        max_tries=MAX_TRIES[by],
        says=says,
        can_await_callback=True,
        resubmit_on_unknown=resubmit_on_unknown,
    )


def intent(fingerprint: str = WANTED) -> Record:
    return Record.intent(new_reference(), fingerprint, max_tries=3, try_number=2, calls_back=False)


def situations() -> list[tuple[str, str, str, LumaSays | None]]:
    """Everything that a try may find, with Luma's word exactly where it is asked for."""
    return [
        (record, request, by, says)
        for record, request, by, says in itertools.product(RECORDS, ASKED_FOR, MAX_TRIES, [None, *LumaSays])
        if (says is not None) == must_ask(RECORDS[record], ASKED_FOR[request])
    ]


class TestTable:
    def test_nothing_was_sent(self):
        assert {decision("none", request, by).step for request in ASKED_FOR for by in MAX_TRIES} == {Step.SUBMIT}

    def test_a_retry_waits_for_a_running_job(self):
        assert decision("id", "same", "retry", LumaSays.RUNNING).step is Step.WAIT

    def test_a_retry_takes_the_result_of_a_job_that_succeeded(self):
        assert decision("id", "same", "retry", LumaSays.SUCCEEDED).step is Step.TAKE

    def test_a_retry_replaces_a_job_that_failed(self):
        assert decision("id", "same", "retry", LumaSays.FAILED).step is Step.SUBMIT

    def test_a_retry_replaces_a_job_that_is_no_longer_known(self):
        assert decision("id", "same", "retry", LumaSays.UNKNOWN).step is Step.SUBMIT

    def test_a_retry_with_a_changed_request_submits(self):
        assert decision("id", "changed", "retry").step is Step.SUBMIT

    def test_a_cleared_task_waits_for_its_running_job(self):
        assert decision("id", "same", "clear", LumaSays.RUNNING).step is Step.WAIT

    @pytest.mark.parametrize("says", [LumaSays.SUCCEEDED, LumaSays.FAILED, LumaSays.UNKNOWN])
    def test_a_cleared_task_submits_when_its_job_has_ended(self, says):
        assert decision("id", "same", "clear", says).step is Step.SUBMIT

    def test_a_cleared_task_with_a_changed_request_submits(self):
        assert decision("id", "changed", "clear").step is Step.SUBMIT

    @pytest.mark.parametrize("request_", ASKED_FOR)
    def test_a_retry_does_not_repeat_what_may_have_been_accepted(self, request_):
        assert decision("intent", request_, "retry").step is Step.FAIL

    @pytest.mark.parametrize("request_", ASKED_FOR)
    def test_unless_the_user_would_rather_pay_twice(self, request_):
        chosen = decision("intent", request_, "retry", resubmit_on_unknown=True)
        assert chosen.step is Step.SUBMIT
        assert "resubmit_on_unknown" in chosen.why

    @pytest.mark.parametrize("request_", ASKED_FOR)
    def test_a_cleared_task_submits_as_a_person_has_looked(self, request_):
        assert decision("intent", request_, "clear").step is Step.SUBMIT

    def test_a_retry_waits_for_the_callback_that_tells_what_was_accepted(self):
        assert decision("called", "same", "retry").step is Step.AWAIT_CALLBACK
        assert decision("called", "same", "retry", resubmit_on_unknown=True).step is Step.AWAIT_CALLBACK

    def test_unless_it_cannot_wait_for_it(self):
        chosen = decide(RECORDS["called"], fingerprint=WANTED, max_tries=MAX_TRIES["retry"], can_await_callback=False)
        assert chosen == decision("intent", "same", "retry")

    @pytest.mark.parametrize(("request_", "by"), [("changed", "retry"), ("same", "clear"), ("changed", "clear")])
    def test_otherwise_it_is_an_intent_like_any(self, request_, by):
        assert decision("called", request_, by) == decision("intent", request_, by)

    def test_a_retry_that_cannot_ask_waits(self):
        assert decision("id", "same", "retry", LumaSays.NOTHING).step is Step.WAIT

    def test_a_cleared_task_that_cannot_ask_submits_nothing_yet(self):
        assert decision("id", "same", "clear", LumaSays.NOTHING).step is Step.ASK_LATER

    def test_every_row_is_in_use(self):
        chosen = {decision(*situation).why for situation in situations()}
        assert chosen == {row.why.format(id=JOB, number=7) for row in TABLE}

    def test_there_are_no_two_rows_for_one_situation(self):
        rows = [(row.record, row.request, row.by, row.says) for row in TABLE]
        assert len(set(rows)) == len(rows) == 14


@pytest.mark.parametrize("resubmit_on_unknown", [False, True])
@pytest.mark.parametrize(("record", "request_", "by", "says"), situations())
def test_every_situation_is_decided(record, request_, by, says, resubmit_on_unknown):
    chosen = decision(record, request_, by, says, resubmit_on_unknown=resubmit_on_unknown)
    assert chosen == decision(record, request_, by, says, resubmit_on_unknown=resubmit_on_unknown)
    assert isinstance(chosen.step, Step)
    assert chosen.why
    assert "{" not in chosen.why
    if record == "none":
        assert chosen.step is Step.SUBMIT
        return
    assert "try 7" in chosen.why.lower()
    assert (JOB in chosen.why) == (record == "id")
    assert chosen.step is not Step.FAIL or record in ("intent", "called")
    assert chosen.step is not Step.AWAIT_CALLBACK or record == "called"
    assert chosen.step not in (Step.WAIT, Step.TAKE) or record == "id"


def test_resubmit_on_unknown_matters_only_where_it_is_unknown():
    differing = {
        situation
        for situation in situations()
        if decision(*situation) != decision(*situation, resubmit_on_unknown=True)
    }
    assert differing == {
        ("intent", "same", "retry", None),
        ("intent", "changed", "retry", None),
        ("called", "changed", "retry", None),
    }


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_clear_that_lowers_max_tries_is_a_clear_too(retries):
    """A retry leaves max_tries alone; Clear sets it to try_number + retries, and ``retries`` may have been lowered."""
    first = replace(INTENT, try_number=1, max_tries=5)
    assert decide(first, fingerprint=WANTED, max_tries=first.try_number + retries).step is Step.SUBMIT


class TestMustAsk:
    def test_only_about_a_recorded_job_of_the_same_request(self):
        asked = [(kind, of) for kind in RECORDS for of in ASKED_FOR if must_ask(RECORDS[kind], ASKED_FOR[of])]
        assert asked == [("id", "same")]


words = st.text(max_size=20)
requests = st.fixed_dictionaries(
    {"prompt": words, "video_url": words, "watermark": st.none() | words, "luma_conn_id": words}
)
records = st.builds(
    Record,
    reference=words,
    fingerprint=st.sampled_from([WANTED, CHANGED]) | words,
    luma_task_id=st.none() | words,
    max_tries=st.integers(0, 50),
    try_number=st.integers(1, 50),
    calls_back=st.booleans(),
)


class TestMoney:
    @given(records, st.sampled_from([LumaSays.RUNNING, LumaSays.SUCCEEDED]), st.booleans())
    def test_a_retry_never_pays_again_for_what_runs_or_is_there(self, record, says, resubmit_on_unknown):
        record = replace(record, luma_task_id=record.luma_task_id or JOB)
        chosen = decide(
            record,
            fingerprint=record.fingerprint,
            max_tries=record.max_tries,
            says=says,
            resubmit_on_unknown=resubmit_on_unknown,
        )
        assert chosen.step is (Step.WAIT if says is LumaSays.RUNNING else Step.TAKE)

    @given(records, words)
    def test_a_retry_never_repeats_an_intent(self, record, wanted):
        record = replace(record, luma_task_id=None)
        chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries)
        assert chosen.step is Step.FAIL
        chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries, can_await_callback=True)
        assert chosen.step in (Step.FAIL, Step.AWAIT_CALLBACK)

    @given(records, words, st.integers(0, 50), st.booleans())
    def test_nobody_ever_pays_again_for_a_job_that_runs(self, record, wanted, max_tries, resubmit_on_unknown):
        record = replace(record, luma_task_id=record.luma_task_id or JOB)
        chosen = decide(
            record,
            fingerprint=wanted,
            max_tries=max_tries,
            says=LumaSays.RUNNING if must_ask(record, wanted) else None,
            resubmit_on_unknown=resubmit_on_unknown,
        )
        assert chosen.step is (Step.WAIT if record.fingerprint == wanted else Step.SUBMIT)

    @given(records, words)
    def test_no_record_is_as_good_as_another_for_a_retry(self, record, wanted):
        """A job is paid for without a record of an earlier one, or for a reason that the record gives."""
        assert decide(None, fingerprint=wanted, max_tries=record.max_tries).step is Step.SUBMIT
        if not must_ask(record, wanted):
            is_intent = record.luma_task_id is None
            chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries)
            assert chosen.step is (Step.FAIL if is_intent else Step.SUBMIT)


class TestFingerprint:
    @pytest.mark.parametrize("changed", REQUEST)
    def test_it_tells_requests_apart(self, changed):
        assert fingerprint(**{**REQUEST, changed: "another"}) != WANTED

    def test_it_is_the_same_in_every_process(self):
        assert fingerprint(prompt="p", video_url="v", watermark=None, luma_conn_id="c") == (
            "e4210ec87120fb7fbb878f4d7360261043ab0ec120b5025303e1ca4e5beaff26"
        )

    def test_no_watermark_is_no_watermark(self):
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
    def test_no_two_requests_share_one(self, one, other):
        def sent(request: dict[str, Any]) -> dict[str, Any]:
            return {**request, "watermark": request["watermark"] or None}

        assert (fingerprint(**one) == fingerprint(**other)) == (sent(one) == sent(other))

    @given(requests)
    def test_it_gives_nothing_away(self, request_):
        hashed = fingerprint(**request_)
        assert len(hashed) == 64
        assert set(hashed) <= set("0123456789abcdef")
        assert hashed not in request_.values()


class TestRecord:
    @given(records)
    def test_it_survives_the_store(self, record):
        assert Record.load(json.loads(json.dumps(record.as_dict()))) == record

    def test_what_is_kept(self):
        assert set(INTENT.as_dict()) == {
            "reference",
            "fingerprint",
            "luma_task_id",
            "max_tries",
            "try_number",
            "calls_back",
        }
        assert isinstance(STORE_KEY, str)
        assert STORE_KEY

    def test_what_another_version_has_added_is_passed_over(self):
        assert Record.load({**INTENT.as_dict(), "more": 1}) == INTENT

    def test_nothing_is_stored(self):
        assert Record.load(None) is None

    def test_an_intent_is_one_of_its_kind(self):
        one, other = (intent() for _ in range(2))
        assert (one.fingerprint, one.luma_task_id, one.max_tries, one.try_number) == (WANTED, None, 3, 2)
        assert one.reference != other.reference

    @given(requests)
    def test_it_quotes_nothing_of_the_request(self, request_):
        record = intent(fingerprint(**request_))
        written = {value for value in record.as_dict().values() if isinstance(value, str)}
        assert not written & {word for word in request_.values() if word}

    def test_it_does_not_even_contain_it(self):
        written = json.dumps(intent().as_dict())
        assert [word for word in (REQUEST["prompt"], REQUEST["video_url"], "snow", "e.com") if word in written] == []

# SPDX-License-Identifier: Apache-2.0
"""The decision table of submit-once: what a try does, given what an earlier one has recorded."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.decision import (
    TABLE,
    Callback,
    Decision,
    Intent,
    Job,
    JobOfAnotherRequest,
    JobOfAnotherService,
    JobStatus,
    NoRecord,
    Outcome,
    Resubmit,
    Seen,
    Situation,
    Step,
    SubmissionRecord,
    Try,
    decide,
    is_for_replaced,
    must_ask,
    refusal_of_service,
)
from airflow_provider_luma.core.job import ModifyRequest

REQUEST = ModifyRequest("make it snow", "https://e.com/v.mp4")
WANTED = REQUEST.fingerprint("luma")
CHANGED = replace(REQUEST, prompt="make it rain").fingerprint("luma")
JOB = "0123456789abcdef0123456789abcdef"
INTENT = SubmissionRecord("a-reference", WANTED, None, max_tries=3, try_number=7)
RECORDS = {
    "none": None,
    "intent": INTENT,
    "callback": replace(INTENT, expects_callback=True),
    "id": replace(INTENT, luma_task_id=JOB),
    "id, result": replace(INTENT, luma_task_id=JOB, delivered=Outcome.RESULT),
    "id, failure": replace(INTENT, luma_task_id=JOB, delivered=Outcome.FAILURE),
    "id, either": replace(INTENT, luma_task_id=JOB, delivered=Outcome.EITHER),
    "id, reported": replace(INTENT, luma_task_id=JOB, reported=True),
    "intent, reported": replace(INTENT, reported=True),
    "callback, reported": replace(INTENT, expects_callback=True, reported=True),
}
REQUESTS = {"same": WANTED, "changed": CHANGED}
MAX_TRIES = {"retry": 3, "clear": 8}


def decision(record: str, request: str, by: str, status: JobStatus | None = None, **options: bool) -> Decision:
    return decide(
        RECORDS[record],
        fingerprint=REQUESTS[request],
        max_tries=MAX_TRIES[by],
        status=status,
        can_await_callback=True,
        **options,
    )


def situations() -> list[tuple[str, str, str, JobStatus | None]]:
    """Return everything that a try may find, with a job's status exactly where Luma is asked for it."""
    return [
        (record, request, by, status)
        for record, request, by, status in itertools.product(RECORDS, REQUESTS, MAX_TRIES, [None, *JobStatus])
        if (status is not None) == must_ask(RECORDS[record], REQUESTS[request])
    ]


def columns_of_situations() -> list[Situation]:
    """Return every combination of values that the columns of the table can have."""
    return [
        NoRecord(),
        *itertools.starmap(Job, itertools.product(Try, JobStatus, Seen, Resubmit)),
        *map(JobOfAnotherRequest, Try),
        *itertools.starmap(Intent, itertools.product(Try, Seen, Callback, Resubmit)),
        JobOfAnotherService(),
    ]


class TestNoRecord:
    def test_try_without_a_record_submits(self):
        assert {decision("none", request, by).step for request in REQUESTS for by in MAX_TRIES} == {Step.SUBMIT}


class TestId:
    def test_retry_waits_for_a_running_job(self):
        assert decision("id", "same", "retry", JobStatus.RUNNING).step is Step.WAIT

    def test_retry_takes_the_result_of_a_job_that_has_succeeded(self):
        assert decision("id", "same", "retry", JobStatus.SUCCEEDED).step is Step.TAKE_RESULT

    def test_retry_waits_for_the_video_that_luma_does_not_list(self):
        assert decision("id", "same", "retry", JobStatus.RESULT_MISSING).step is Step.WAIT

    def test_cleared_task_waits_for_a_missing_video_unless_a_person_was_told(self):
        assert decision("id", "same", "clear", JobStatus.RESULT_MISSING).step is Step.WAIT
        assert decision("id, reported", "same", "clear", JobStatus.RESULT_MISSING).step is Step.SUBMIT
        assert decision("id, reported", "same", "clear", JobStatus.SUCCEEDED).step is Step.TAKE_RESULT

    def test_retry_replaces_a_job_that_has_failed(self):
        assert decision("id", "same", "retry", JobStatus.FAILED).step is Step.SUBMIT

    def test_retry_replaces_a_job_that_is_no_longer_known(self):
        assert decision("id", "same", "retry", JobStatus.FORGOTTEN).step is Step.SUBMIT

    def test_retry_waits_for_a_job_about_which_luma_cannot_be_asked(self):
        assert decision("id", "same", "retry", JobStatus.UNAVAILABLE).step is Step.WAIT

    def test_retry_with_a_changed_request_submits(self):
        assert decision("id", "changed", "retry").step is Step.SUBMIT

    def test_cleared_task_waits_for_its_running_job(self):
        assert decision("id", "same", "clear", JobStatus.RUNNING).step is Step.WAIT

    @pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.FORGOTTEN])
    def test_cleared_task_submits_when_the_result_of_its_job_was_delivered(self, status):
        assert decision("id, result", "same", "clear", status).step is Step.SUBMIT

    @pytest.mark.parametrize("record", ["id", "id, failure", "id, either"])
    def test_cleared_task_takes_a_result_that_nobody_is_known_to_have_got(self, record):
        """Luma may have said that the job had failed, and taken it back; version 1.1.0 did not record which it was."""
        assert decision(record, "same", "clear", JobStatus.SUCCEEDED).step is Step.TAKE_RESULT
        assert decision(record, "same", "clear", JobStatus.RESULT_MISSING).step is Step.WAIT

    @pytest.mark.parametrize("record", ["id", "id, result"])
    @pytest.mark.parametrize("by", MAX_TRIES)
    def test_no_try_pays_for_a_job_that_luma_does_not_find_within_two_months(self, record, by):
        assert decision(record, "same", by, JobStatus.NOT_FOUND).step is Step.NOT_FOUND

    @pytest.mark.parametrize(("record", "by"), [("id", "retry"), ("id", "clear"), ("id, failure", "retry")])
    def test_failed_job_is_not_replaced_if_resubmit_on_failure_is_off(self, record, by):
        chosen = decision(record, "same", by, JobStatus.FAILED, resubmit_on_failure=False)
        assert chosen.step is Step.RAISE_FAILURE
        assert "resubmit_on_failure is off" in chosen.reason

    @pytest.mark.parametrize("record", ["id, failure", "id, either"])
    def test_person_who_has_seen_the_failure_gets_a_new_job_although_resubmit_on_failure_is_off(self, record):
        chosen = decision(record, "same", "clear", JobStatus.FAILED, resubmit_on_failure=False)
        assert chosen.step is Step.SUBMIT

    def test_cleared_task_fails_until_luma_can_be_asked_about_its_job(self):
        assert decision("id", "same", "clear", JobStatus.UNAVAILABLE).step is Step.ASK_LATER

    def test_cleared_task_with_a_changed_request_submits(self):
        assert decision("id", "changed", "clear").step is Step.SUBMIT

    def test_luma_is_asked_only_about_a_recorded_job_of_the_same_request(self):
        asked = [(kind, of) for kind in RECORDS for of in REQUESTS if must_ask(RECORDS[kind], REQUESTS[of])]
        assert asked == [(kind, "same") for kind in RECORDS if kind.startswith("id")]


class TestIntent:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_retry_does_not_repeat_what_may_have_been_accepted(self, request_):
        assert decision("intent", request_, "retry").step is Step.FAIL

    @pytest.mark.parametrize("request_", REQUESTS)
    def test_retry_with_resubmit_on_unknown_repeats_what_may_have_been_accepted(self, request_):
        chosen = decision("intent", request_, "retry", resubmit_on_unknown=True)
        assert chosen.step is Step.SUBMIT
        assert "resubmit_on_unknown" in chosen.reason

    @pytest.mark.parametrize("request_", REQUESTS)
    def test_cleared_task_submits_as_a_person_has_decided(self, request_):
        assert decision("intent, reported", request_, "clear").step is Step.SUBMIT

    @pytest.mark.parametrize("request_", REQUESTS)
    def test_cleared_task_does_not_submit_if_nobody_was_told_that_the_outcome_is_unknown(self, request_):
        assert decision("intent", request_, "clear").step is Step.FAIL
        assert decision("callback", request_, "clear").step is (
            Step.AWAIT_CALLBACK if request_ == "same" else Step.FAIL
        )

    def test_retry_waits_for_the_callback_that_tells_what_was_accepted(self):
        assert decision("callback", "same", "retry").step is Step.AWAIT_CALLBACK
        assert decision("callback", "same", "retry", resubmit_on_unknown=True).step is Step.AWAIT_CALLBACK

    def test_retry_that_cannot_wait_for_the_callback_takes_the_record_for_an_ordinary_intent(self):
        chosen = decide(RECORDS["callback"], fingerprint=WANTED, max_tries=MAX_TRIES["retry"], can_await_callback=False)
        assert chosen == decision("intent", "same", "retry")

    @pytest.mark.parametrize(("request_", "by"), [("changed", "retry"), ("same", "clear"), ("changed", "clear")])
    def test_changed_or_cleared_task_takes_a_record_with_a_callback_for_an_ordinary_intent(self, request_, by):
        assert decision("callback, reported", request_, by) == decision("intent, reported", request_, by)


class TestClear:
    @pytest.mark.parametrize("retries", [0, 1, 3])
    def test_max_tries_that_differ_mean_that_the_task_was_cleared_even_if_they_are_lower(self, retries):
        """A retry leaves max_tries unchanged; Clear sets it to try_number + retries, which may have been lowered."""
        first = replace(INTENT, try_number=1, max_tries=5, reported=True)
        assert decide(first, fingerprint=WANTED, max_tries=first.try_number + retries).step is Step.SUBMIT

    @pytest.mark.parametrize(
        "mark", [{"luma_task_id": JOB, "delivered": Outcome.RESULT}, {"reported": True}], ids=["delivered", "reported"]
    )
    def test_clear_with_fewer_retries_that_leaves_max_tries_as_it_was_counts_in_the_dag_run(self, mark):
        """Two retries, cleared after the first try with one retry: max_tries is 2 before and after."""
        ended = replace(INTENT, try_number=1, max_tries=2, clear_number=0, **mark)
        status = JobStatus.SUCCEEDED if ended.luma_task_id else None
        cleared = decide(ended, fingerprint=WANTED, max_tries=2, clear_number=1, status=status)
        assert cleared.step is Step.SUBMIT
        retried = decide(ended, fingerprint=WANTED, max_tries=2, clear_number=0, status=status)
        assert retried.step is (Step.TAKE_RESULT if status else Step.FAIL)

    @pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.UNAVAILABLE, JobStatus.RESULT_MISSING])
    @pytest.mark.parametrize("told", [{}, {"reported": True}, {"delivered": Outcome.FAILURE}], ids=str)
    def test_clear_of_another_task_of_the_run_makes_no_retry_a_clear(self, status, told):
        """A failed job, and a missing video, leave the task its retries."""
        record = replace(INTENT, luma_task_id=JOB, clear_number=0, **told)
        chosen = decide(record, fingerprint=WANTED, max_tries=record.max_tries, clear_number=1, status=status)
        assert chosen.step is Step.WAIT

    def test_clear_with_fewer_retries_after_a_failure_that_spends_none_is_a_clear(self):
        failed = replace(INTENT, luma_task_id=JOB, clear_number=0, delivered=Outcome.FAILURE)
        chosen = decide(
            failed,
            fingerprint=WANTED,
            max_tries=failed.max_tries,
            clear_number=1,
            status=JobStatus.FAILED,
            resubmit_on_failure=False,
        )
        assert chosen.step is Step.SUBMIT

    def test_worker_that_is_not_told_the_number_of_clears_tells_a_clear_by_max_tries_alone(self):
        ended = replace(INTENT, luma_task_id=JOB, clear_number=3, delivered=Outcome.RESULT)
        chosen = decide(ended, fingerprint=WANTED, max_tries=3, clear_number=None, status=JobStatus.SUCCEEDED)
        assert chosen.step is Step.TAKE_RESULT

    def test_record_without_the_number_of_clears_tells_a_clear_by_max_tries_alone(self):
        ended = replace(INTENT, luma_task_id=JOB, delivered=Outcome.RESULT)
        for number in (None, 0, 1):
            chosen = decide(ended, fingerprint=WANTED, max_tries=3, clear_number=number, status=JobStatus.SUCCEEDED)
            assert chosen.step is Step.TAKE_RESULT


class TestReplacedRecord:
    JOB_RECORD = replace(INTENT, luma_task_id=JOB)
    LATER = replace(INTENT, fingerprint=CHANGED, replaced=JOB_RECORD)

    def test_intent_of_another_request_is_no_reason_to_pay_again_for_the_job_that_it_has_replaced(self):
        assert is_for_replaced(self.LATER, WANTED)
        assert not is_for_replaced(self.LATER, CHANGED)
        assert not is_for_replaced(replace(self.LATER, fingerprint=WANTED), WANTED)

    def test_intent_is_asked_about_if_the_job_before_it_has_been_delivered(self):
        delivered = replace(self.JOB_RECORD, delivered=Outcome.RESULT)
        assert not is_for_replaced(replace(self.LATER, replaced=delivered), WANTED)

    def test_accepted_job_takes_the_place_of_the_one_before_for_good(self):
        accepted = replace(self.LATER, luma_task_id="another")
        assert not is_for_replaced(accepted, WANTED)
        assert accepted.job == accepted

    def test_intent_leads_to_the_job_before_it(self):
        assert self.LATER.job == self.JOB_RECORD
        assert INTENT.job is None


class TestTable:
    @pytest.mark.parametrize("situation", columns_of_situations(), ids=repr)
    def test_exactly_one_row_covers_each_situation(self, situation):
        assert len([row for row in TABLE if row.covers(situation)]) == 1

    def test_every_row_is_in_use(self):
        chosen = {
            decision(*situation, resubmit_on_unknown=unknown, resubmit_on_failure=failure).reason
            for situation in situations()
            for unknown, failure in itertools.product([True, False], repeat=2)
        }
        rows = [row for row in TABLE if not isinstance(row.situation, JobOfAnotherService)]
        assert chosen == {row.reason.format(id=JOB, number=7) for row in rows}

    @pytest.mark.parametrize("record", [record for record in RECORDS if record != "none"])
    def test_record_of_another_service_is_refused_whatever_else_it_says(self, record):
        reason = refusal_of_service(RECORDS[record], "luma")
        assert reason is not None
        assert all(name in reason for name in ("'kie'", "'luma'", "Try 7"))

    def test_record_of_the_same_service_or_none_is_not_refused(self):
        assert [refusal_of_service(record, "kie") for record in RECORDS.values()] == [None] * len(RECORDS)
        assert refusal_of_service(None, "luma") is None

    @pytest.mark.parametrize("resubmit_on_unknown", [False, True])
    @pytest.mark.parametrize(("record", "request_", "by", "status"), situations())
    def test_every_situation_has_a_decision_whose_reason_names_the_earlier_try_and_its_job(
        self, record, request_, by, status, resubmit_on_unknown
    ):
        chosen = decision(record, request_, by, status, resubmit_on_unknown=resubmit_on_unknown)
        assert chosen == decision(record, request_, by, status, resubmit_on_unknown=resubmit_on_unknown)
        assert isinstance(chosen.step, Step)
        assert chosen.reason
        assert "{" not in chosen.reason
        if record == "none":
            assert chosen.step is Step.SUBMIT
            return
        assert "try 7" in chosen.reason.lower()
        kind = record.partition(",")[0]
        assert (JOB in chosen.reason) == (kind == "id")
        assert chosen.step is not Step.FAIL or kind in ("intent", "callback")
        assert chosen.step is not Step.AWAIT_CALLBACK or kind == "callback"
        assert chosen.step not in (Step.WAIT, Step.TAKE_RESULT) or kind == "id"

    def test_resubmit_on_unknown_matters_only_where_the_outcome_is_unknown(self):
        differing = {
            situation
            for situation in situations()
            if decision(*situation) != decision(*situation, resubmit_on_unknown=True)
        }
        assert differing == {
            ("intent", "same", "retry", None),
            ("intent", "changed", "retry", None),
            ("intent", "same", "clear", None),
            ("intent", "changed", "clear", None),
            ("intent, reported", "same", "retry", None),
            ("intent, reported", "changed", "retry", None),
            ("callback", "changed", "retry", None),
            ("callback", "changed", "clear", None),
            ("callback, reported", "changed", "retry", None),
        }


texts = st.text(max_size=20)
records = st.builds(
    SubmissionRecord,
    reference=texts,
    fingerprint=st.sampled_from([WANTED, CHANGED]) | texts,
    luma_task_id=st.none() | texts,
    max_tries=st.integers(0, 50),
    try_number=st.integers(1, 50),
    expects_callback=st.booleans(),
    delivered=st.none() | st.sampled_from(Outcome),
    reported=st.booleans(),
)


class TestNothingIsPaidForTwice:
    @given(records, st.sampled_from([JobStatus.RUNNING, JobStatus.SUCCEEDED]), st.booleans())
    def test_retry_never_replaces_a_job_that_is_running_or_has_succeeded(self, record, status, resubmit_on_unknown):
        record = replace(record, luma_task_id=record.luma_task_id or JOB)
        chosen = decide(
            record,
            fingerprint=record.fingerprint,
            max_tries=record.max_tries,
            status=status,
            resubmit_on_unknown=resubmit_on_unknown,
        )
        assert chosen.step is (Step.WAIT if status is JobStatus.RUNNING else Step.TAKE_RESULT)

    @given(records, texts)
    def test_retry_never_repeats_an_intent(self, record, wanted):
        record = replace(record, luma_task_id=None)
        chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries)
        assert chosen.step is Step.FAIL
        chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries, can_await_callback=True)
        assert chosen.step in (Step.FAIL, Step.AWAIT_CALLBACK)

    @given(records, texts, st.integers(0, 50), st.booleans())
    def test_no_try_ever_replaces_a_running_job_of_the_same_request(
        self, record, wanted, max_tries, resubmit_on_unknown
    ):
        record = replace(record, luma_task_id=record.luma_task_id or JOB)
        chosen = decide(
            record,
            fingerprint=wanted,
            max_tries=max_tries,
            status=JobStatus.RUNNING if must_ask(record, wanted) else None,
            resubmit_on_unknown=resubmit_on_unknown,
        )
        assert chosen.step is (Step.WAIT if record.fingerprint == wanted else Step.SUBMIT)

    @given(records, texts)
    def test_retry_submits_only_without_a_record_or_for_a_reason_that_the_record_gives(self, record, wanted):
        assert decide(None, fingerprint=wanted, max_tries=record.max_tries).step is Step.SUBMIT
        if not must_ask(record, wanted):
            is_intent = record.luma_task_id is None
            chosen = decide(record, fingerprint=wanted, max_tries=record.max_tries)
            assert chosen.step is (Step.FAIL if is_intent else Step.SUBMIT)

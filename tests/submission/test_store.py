# SPDX-License-Identifier: Apache-2.0
"""SubmissionStore: the next try reads what a try writes, if Airflow has a task state store; if not, nothing is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.submission import open_store
from airflow_provider_luma.submission.store import CALLBACK_KEY, STORE_KEY, SubmissionStore
from tests.support.task_instance import TaskInstance, TaskStateStore

JOB = "0123456789abcdef0123456789abcdef"
INTENT = SubmissionRecord("a-reference", "a-fingerprint", None, max_tries=2, try_number=1, expects_callback=True)


class TestWithTaskStateStore:
    @pytest.fixture
    def state(self) -> TaskStateStore:
        return TaskStateStore()

    @pytest.fixture
    def store(self, state) -> SubmissionStore:
        return open_store({"ti": TaskInstance(), "task_state_store": state}, None)

    def test_record_is_durable_with_a_task_state_store(self, store):
        assert store.is_durable

    def test_load_finds_no_record_before_one_is_saved(self, store):
        assert store.load() is None

    def test_next_try_loads_what_was_saved_last(self, store, state):
        store.save(INTENT)
        store.save(replace(INTENT, luma_task_id=JOB))
        next_try = open_store({"ti": TaskInstance(2), "task_state_store": state}, None)
        assert next_try.load() == replace(INTENT, luma_task_id=JOB)

    def test_record_is_stored_as_a_dict_under_a_key_of_its_own(self, store, state):
        store.save(INTENT)
        assert state.get(STORE_KEY) == INTENT.as_dict()
        assert STORE_KEY != CALLBACK_KEY

    def test_forgotten_record_is_gone(self, store):
        store.save(INTENT)
        store.forget(INTENT)
        assert store.load() is None

    def test_forgetting_without_a_record_does_nothing(self, store):
        store.forget(INTENT)
        assert store.load() is None

    def test_forgetting_keeps_the_callback(self, store, state):
        store.save(INTENT)
        state.record_callback(JOB)
        store.forget(INTENT)
        assert store.callback_task_id(INTENT.reference) == JOB

    def test_update_puts_the_id_and_max_tries_into_the_record_of_the_submission(self, store):
        store.save(INTENT)
        completed = store.update(INTENT.reference, luma_task_id=JOB, max_tries=5)
        assert completed == store.load() == replace(INTENT, luma_task_id=JOB, max_tries=5)

    def test_update_leaves_the_record_of_a_later_submission_unchanged(self, store, state):
        store.save(INTENT)
        assert store.update("an-earlier-reference", luma_task_id=JOB, max_tries=5) == INTENT
        assert store.load() == INTENT
        assert state.operations == [("set", None)]

    @pytest.mark.parametrize("outcome", ["accepted", "refused"])
    def test_late_answer_to_an_earlier_submission_does_not_change_the_later_one(self, store, outcome):
        later = replace(INTENT, reference="a-later-reference")
        store.begin(INTENT)
        store.begin(later)
        if outcome == "accepted":
            store.save(replace(INTENT, luma_task_id=JOB))
        else:
            store.forget(INTENT)
        assert store.load() == later

    def test_update_writes_no_record_where_there_is_none(self, store, state):
        assert store.update(INTENT.reference, luma_task_id=JOB, max_tries=5) is None
        assert state.operations == []

    def test_callback_names_the_job_of_its_submission(self, store, state):
        state.record_callback(JOB, INTENT.reference)
        assert store.callback_task_id(INTENT.reference) == JOB

    def test_callback_of_another_submission_names_no_job(self, store, state):
        state.record_callback(JOB, "another-reference")
        assert store.callback_task_id(INTENT.reference) is None

    def test_submission_without_a_callback_has_no_named_job(self, store, state):
        assert state.get(CALLBACK_KEY) is None
        assert store.callback_task_id(INTENT.reference) is None


@pytest.mark.parametrize("context", [{}, {"task_state_store": None}], ids=["no key", "None"])
class TestWithoutTaskStateStore:
    """Airflow below 3.3."""

    def test_record_is_not_durable_without_a_task_state_store(self, context):
        assert not open_store(context, None).is_durable

    def test_saved_record_is_not_kept_without_a_task_state_store(self, context):
        store = open_store(context, None)
        store.save(INTENT)
        assert store.load() is None

    def test_forgetting_does_nothing_without_a_task_state_store(self, context):
        store = open_store(context, None)
        store.forget(INTENT)
        assert store.load() is None

    def test_update_finds_no_record_without_a_task_state_store(self, context):
        assert open_store(context, None).update(INTENT.reference, luma_task_id=JOB, max_tries=5) is None

    def test_no_callback_is_found_without_a_task_state_store(self, context):
        assert open_store(context, None).callback_task_id(INTENT.reference) is None

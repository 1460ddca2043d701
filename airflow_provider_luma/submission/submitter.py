# SPDX-License-Identifier: Apache-2.0
"""
Submit-once workflow of one try: decide by the record, ask Luma about it, submit, and recover a lost answer.

:class:`Submitter` returns what the task has to do next and leaves the doing to the operator. An intent is recorded
before each request, and the id after its answer, so that the next try can take over from anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, Stats
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_luma import backoff
from airflow_provider_luma.deferral import DeferralState
from airflow_provider_luma.exceptions import (
    PERMANENT,
    TRANSIENT,
    LumaError,
    LumaGenerationError,
    LumaNotFoundError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
)
from airflow_provider_luma.polling.state import INTERVALS_WITH_CALLBACK
from airflow_provider_luma.submission.decision import (
    JobStatus,
    Step,
    SubmissionRecord,
    decide,
    must_ask,
    new_reference,
)
from airflow_provider_luma.submission.store import SubmissionStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from airflow_provider_luma.hooks.luma import LumaHook
    from airflow_provider_luma.protocol import LumaTask, ModifyRequest


class WaitForJob(NamedTuple):
    """
    Wait for a job, or return its result.

    :param luma_task_id: the job's id at Luma
    :param state: for a deferral
    :param created_at: when it was accepted, in seconds since the epoch, if this try has submitted it
    :param finished: the job, if it has ended well already
    """

    luma_task_id: str
    state: DeferralState
    created_at: float | None = None
    finished: LumaTask | None = None


class AwaitCallback(NamedTuple):
    """
    Defer until the callback of a submission whose answer was lost, or until a time in seconds since the epoch.

    A callback that came just before the deferral would be missed without checking the store from time to time.
    """

    state: DeferralState
    until: float


class Enqueue(NamedTuple):
    """
    Defer until it is possible to submit again, as Luma has refused for now. Times are in seconds since the epoch.

    :param state: with the time of the first attempt, and the beginning of an outage
    :param until: when to try for the last time
    :param not_before: until when the service wants no submissions
    """

    state: DeferralState
    until: float
    not_before: float


NextStep = WaitForJob | AwaitCallback | Enqueue


@dataclass
class Submitter:
    """
    One try's part in submitting a job once.

    :param client: the service
    :param store: where the record of the task's submission lives
    :param try_number: the number of this try
    :param max_tries: the task's ``max_tries``, which tells a Clear from a retry
    :param can_defer: whether the task may wait in the triggerer
    :param resubmit_on_unknown: submit again when it is unknown whether an earlier submission was accepted
    :param timeout: seconds to wait for the video, and before that for Luma to accept the job
    :param poll_interval: seconds between two status checks
    :param log: the task's log
    :param on_job_known: is told the job's id as soon as there is one
    """

    client: LumaHook
    store: SubmissionStore
    try_number: int
    max_tries: int
    can_defer: bool
    resubmit_on_unknown: bool
    timeout: float
    poll_interval: float
    log: Logger
    on_job_known: Callable[[str], None]

    def submit(self, request: ModifyRequest, deferral: DeferralState) -> NextStep:
        """
        Submit a job, or continue what an earlier try has submitted.

        :param request: what is wanted
        :param deferral: the state of the deferral that this process has resumed; an empty one at the start of a try
        :raises AirflowFailException: a retry cannot help
        :raises LumaError: a retry may help
        """
        record = self._load_record()
        fingerprint = request.fingerprint(self.client.luma_conn_id)
        status, finished = self._ask(record) if must_ask(record, fingerprint) else (None, None)
        decision = decide(
            record,
            fingerprint=fingerprint,
            max_tries=self.max_tries,
            status=status,
            can_await_callback=self.can_defer,
            resubmit_on_unknown=self.resubmit_on_unknown,
        )
        if self.store.is_durable:
            self.log.info(decision.reason)
        else:
            self.log.info("Airflow keeps no task state below 3.3: every try submits a job of its own")
        if decision.step is Step.ASK_LATER:
            raise LumaUnavailableError(None, decision.reason)
        if decision.step is Step.FAIL:
            _fail(LumaSubmissionUnknownError(None, decision.reason))
        if decision.step is Step.SUBMIT:
            return self._submit(request, fingerprint, deferral)
        assert record is not None, "only a recorded submission can be continued"
        if decision.step is Step.AWAIT_CALLBACK:
            return self._await_callback(record.reference, deferral)
        return self._continue(record, finished, deferral)

    def recover(self, deferral: DeferralState, luma_task_id: str | None, *, needs_result: bool) -> NextStep:
        """
        Find out what has become of a submission whose answer was lost.

        :param deferral: the state of the deferral in which the task has waited for the callback
        :param luma_task_id: the job that a callback has named, if one has come
        :param needs_result: whether to ask for the job's result, too
        :raises AirflowFailException: it stays unknown
        """
        reference = deferral.reference
        assert reference is not None, "only a recorded submission is waited for"
        named = luma_task_id or deferral.callback_task_id or self.store.callback_task_id(reference)
        try:
            is_ours = named is not None and self._is_our_job(named, reference)
        except TRANSIENT as error:
            self.log.warning("A callback named Luma task %s, but its status check failed: %s", named, error)
            if _is_over(deferral):
                raise  # the next try finds the id beside the intent, and asks again
            return self._await_callback(reference, deferral, named)
        if named is None or not is_ours:
            if _is_over(deferral):
                self._give_up(reference)
            return self._await_callback(reference, deferral)
        finished: LumaTask | None = None
        if needs_result:
            with suppress(*TRANSIENT):  # the wait for the job polls it again
                finished = self.client.check(named)
        self.store.complete(reference, named, max_tries=self.max_tries)
        return self._wait_for(named, deferral, finished=finished)

    # -- what an earlier try has left -------------------------------------------------------------------------------

    def _load_record(self) -> SubmissionRecord | None:
        """Return the record; with the job's id, if a callback has told that in the meantime."""
        record = self.store.load()
        if record is None or record.luma_task_id is not None:
            return record
        named = self.store.callback_task_id(record.reference)
        if named is None or not self._is_our_job(named, record.reference):
            return record
        # A person who has cleared the task since has not seen this job: it counts as one that a retry has found.
        return self.store.complete(record.reference, named, max_tries=self.max_tries)

    def _is_our_job(self, luma_task_id: str, reference: str) -> bool:
        """Ask Luma whether a job that a callback has named comes from a submission of this task."""
        try:
            task = self.client.get_task(luma_task_id)
        except LumaNotFoundError:
            task = None
        if task is not None and self.client.is_job_of(task, reference):
            self.log.info("Recovered task id %s of the lost submission from a callback", luma_task_id)
            return True
        self.log.warning("A callback named Luma task %s, which this task did not submit: ignored", luma_task_id)
        return False

    def _ask(self, record: SubmissionRecord | None) -> tuple[JobStatus, LumaTask | None]:
        """Ask Luma about the recorded job."""
        assert record is not None and record.luma_task_id is not None, "only a job with an id can be asked about"
        self.on_job_known(record.luma_task_id)
        try:
            finished = self.client.check(record.luma_task_id, retry_timeout=backoff.READ_RETRY_TIMEOUT)
        except TRANSIENT:
            return JobStatus.UNAVAILABLE, None
        except LumaGenerationError:
            return JobStatus.FAILED, None
        except LumaNotFoundError:
            return JobStatus.FORGOTTEN, None
        return (JobStatus.SUCCEEDED if finished else JobStatus.RUNNING), finished

    def _continue(self, record: SubmissionRecord, finished: LumaTask | None, deferral: DeferralState) -> WaitForJob:
        assert record.luma_task_id is not None, "only a job with an id can be waited for"
        if record.max_tries != self.max_tries:
            # From here on a new try is a retry of this one, and no longer the one that a person cleared.
            self.store.save(replace(record, max_tries=self.max_tries))
        return self._wait_for(record.luma_task_id, deferral, finished=finished)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_for(
        self,
        luma_task_id: str,
        deferral: DeferralState,
        *,
        created_at: float | None = None,
        finished: LumaTask | None = None,
    ) -> WaitForJob:
        self.on_job_known(luma_task_id)
        end_time = time.time() + self.timeout
        state = DeferralState(luma_task_id, end_time=end_time, execution_deadline=deferral.execution_deadline)
        return WaitForJob(luma_task_id, state, created_at, finished)

    def _await_callback(self, reference: str, deferral: DeferralState, named: str | None = None) -> AwaitCallback:
        now = time.time()
        end_time = deferral.end_time or now + self.timeout
        state = DeferralState(None, reference, named, end_time, deferral.execution_deadline)
        return AwaitCallback(state, min(end_time, now + INTERVALS_WITH_CALLBACK * self.poll_interval))

    # -- submitting -------------------------------------------------------------------------------------------------

    def _submit(self, request: ModifyRequest, fingerprint: str, deferral: DeferralState) -> NextStep:
        request, intent = self._prepare(request, fingerprint)
        self.log.info("Submitting %s to Luma with the prompt %r", request.video_url, request.prompt)
        attempt = _Attempt(self, request, intent)
        try:
            luma_task_id = attempt() if self.can_defer else self.client.retry_submission(attempt, self.timeout)
        except PERMANENT as error:
            _fail(error)
        except TRANSIENT as error:
            if not (self.can_defer and attempt.is_forgotten):
                raise
            self.log.warning("The submission was not accepted: %s. Nothing was billed", error)
            return self._enqueue(error, deferral)
        except LumaSubmissionUnknownError as error:
            if intent.expects_callback and self.can_defer:
                self.log.warning("%s. If it was accepted, its callback tells: waiting for that", error.msg)
                return self._await_callback(intent.reference, deferral)
            if self.resubmit_on_unknown:
                raise
            _fail(error)
        return self._wait_for(luma_task_id, deferral, created_at=time.time())

    def _prepare(self, request: ModifyRequest, fingerprint: str) -> tuple[ModifyRequest, SubmissionRecord]:
        """Return the request with its callback address, and the intent to record."""
        reference, expects_callback = new_reference(), False
        if not request.callback_url:
            request = replace(request, callback_url=self.client.get_callback_url(reference))
            expects_callback = request.callback_url is not None
        return request, SubmissionRecord(
            reference, fingerprint, None, self.max_tries, self.try_number, expects_callback
        )

    def _enqueue(self, error: LumaError, deferral: DeferralState) -> Enqueue:
        """Wait to submit again; rate limits for ``timeout`` seconds at most, an outage for two minutes."""
        Stats.incr("luma.submission.refused")
        now = time.time()
        first_attempt_at = deferral.first_attempt_at or now
        until, outage_since = first_attempt_at + self.timeout, None
        if isinstance(error, LumaUnavailableError):
            outage_since = deferral.outage_since or now
            until = min(until, outage_since + backoff.OUTAGE_TIMEOUT)
        if now >= until:
            raise error
        self.log.info("%s; queued in the triggerer", "Luma is unavailable" if outage_since else "Rate limited by Luma")
        state = deferral._replace(first_attempt_at=first_attempt_at, outage_since=outage_since)
        return Enqueue(state, until, now + (error.retry_after or 0.0))

    def _give_up(self, reference: str) -> NoReturn:
        """Fail, as no callback has told what became of a submission."""
        error = LumaSubmissionUnknownError(
            None,
            f"no answer to the submission is known, and no callback has come within {self.timeout:g} s. "
            "It may have been accepted all the same",
        )
        if not self.resubmit_on_unknown:
            _fail(error)
        record = self.store.load()
        if record is not None and record.reference == reference:
            self.store.forget()  # so that the next try submits again
        raise error


class _Attempt:
    """
    One attempt to submit, with the intent in the store before the request, and the id after its answer.

    :ivar is_forgotten: whether the store holds no intent of an attempt that was refused
    """

    def __init__(self, submitter: Submitter, request: ModifyRequest, intent: SubmissionRecord) -> None:
        self._client, self._store, self._log = submitter.client, submitter.store, submitter.log
        self._request = request
        self._intent = intent
        self.is_forgotten = True

    def __call__(self) -> str:
        self._store.save(self._intent)
        try:
            luma_task_id = self._client.submit(self._request)
        except LumaSubmissionUnknownError:
            raise  # the intent stays, for the next try to find
        except (LumaError, AirflowException, AirflowRuntimeError):
            # Refused, never sent, or the connection could not be read: surely nothing was accepted.
            self.is_forgotten = self._try_store(self._store.forget)
            raise
        self._log.info("Luma accepted the job as Luma task %s", luma_task_id)
        self._try_store(self._store.save, replace(self._intent, luma_task_id=luma_task_id))
        return luma_task_id

    def _try_store(self, change: Callable[..., None], *arguments: Any) -> bool:
        """Change the store; if that fails, log it and return False, because what Luma has answered matters more."""
        try:
            change(*arguments)
        except Exception:
            self._log.exception(
                "The submission store could not be changed and holds an intent now: should this try not end well, "
                "the next one fails and asks a person to check the Luma account"
            )
            return False
        return True


def _is_over(deferral: DeferralState) -> bool:
    return deferral.end_time is None or time.time() >= deferral.end_time


def _fail(error: LumaError) -> NoReturn:
    """Fail without using the task's retries."""
    raise AirflowFailException(str(error)) from error

# SPDX-License-Identifier: Apache-2.0
"""
One try's part in submitting a job only once: check the record and the job, decide, submit, recover a lost response.

:class:`Submitter` returns the task's next step, and the operator carries it out. An intent is recorded before each
request and the id after its response, so that the next try can take over at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import tenacity
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_luma import metrics
from airflow_provider_luma.client import retry_read, retry_submission
from airflow_provider_luma.compat import AirflowException, AirflowFailException
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.callback_token import reference_of
from airflow_provider_luma.core.decision import (
    Decision,
    JobStatus,
    Step,
    SubmissionRecord,
    decide,
    is_for_replaced,
    must_ask,
    new_reference,
    refusal_of_service,
)
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.core.job import DEFAULT_SERVICE
from airflow_provider_luma.core.poll_state import INTERVALS_WITH_CALLBACK
from airflow_provider_luma.exceptions import (
    PERMANENT,
    TRANSIENT,
    LumaAuthError,
    LumaError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaJobLimitError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaRequestFailedError,
    LumaResultMissingError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.submission.store import SubmissionStore, try_store

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from airflow.sdk.types import Logger

    from airflow_provider_luma.client import LumaClient
    from airflow_provider_luma.core.job import LumaTask, ModifyRequest
    from airflow_provider_luma.files.input_video import InputVideo
    from airflow_provider_luma.services.base import Service
    from airflow_provider_luma.submission.budget import Claim, RunBudget


class WaitForJob(NamedTuple):
    """
    Wait for a job, or return its result.

    :param state: the state for a deferral; it names the job
    :param finished: the job, if it has already succeeded
    """

    state: DeferralState
    finished: LumaTask | None = None

    @property
    def luma_task_id(self) -> str:
        """The job's id at Luma."""
        assert self.state.luma_task_id is not None, "only a job with an id can be waited for"
        return self.state.luma_task_id


class AwaitCallback(NamedTuple):
    """
    Defer until the callback of a submission whose response was lost, or until a time in seconds since the epoch.

    The store has to be checked from time to time, or a callback that came just before the deferral would be missed.
    """

    state: DeferralState
    until: float


class Enqueue(NamedTuple):
    """
    Defer until the task may submit again, because Luma has refused for now. Times are in seconds since the epoch.

    :param state: the state of the deferral, with the time of the first attempt and the start of any outage
    :param until: when to try for the last time
    :param not_before: the earliest time at which the service accepts another submission
    :param has_too_many_jobs: whether it refused because too many jobs are running
    :param requests_per_minute: how many requests a minute it allows, if it stated the limit
    """

    state: DeferralState
    until: float
    not_before: float
    has_too_many_jobs: bool = False
    requests_per_minute: int | None = None


NextStep = WaitForJob | AwaitCallback | Enqueue


@dataclass(frozen=True)
class Submission:
    """
    What a try may submit.

    :param request: the request; once published, with the video's public address
    :param video: the input video of the request
    :param deferral: the state of the deferral from which this process resumed; empty at the start of a try
    """

    request: ModifyRequest
    video: InputVideo
    deferral: DeferralState

    def fingerprint(self, conn_id: str, record: SubmissionRecord | None = None) -> str:
        """
        Return the hash that distinguishes this submission from others.

        :param record: the record of an earlier submission, whose input may no longer be readable
        """
        recorded = [one.fingerprint for one in (record, record and record.replaced) if one is not None]
        try:
            return self.video.fingerprint(self.request.fingerprint(conn_id), recorded)
        except PERMANENT as error:
            _fail(error)

    def price(self, service: Service) -> float | None:
        """Estimate what the job costs, in US dollars; None if the price or the video's length is unknown."""
        if self.video.seconds is None:
            return None
        # A clip is often a frame longer than the limit.
        return service.price(min(self.video.seconds, service.limits.seconds), self.request.options)

    def published(self, client: LumaClient) -> Submission:
        """Return the submission with its video's public address, and with the details of any upload."""
        published = self.video.publish(client, self.deferral.upload)
        request = replace(self.request, video_url=published.url)
        client.connection.service.check(request, is_public=client.connection.is_public)
        return replace(self, request=request, deferral=self.deferral._replace(upload=published.upload))


@dataclass
class Submitter:
    """
    One try's part in submitting a job only once.

    :param client: a client for the connection with which the request was checked
    :param new_client: reads the connection again after a refused attempt, and returns a new client
    :param store: the store with the record of the task's submission
    :param try_number: the number of this try
    :param max_tries: the task's ``max_tries``, which distinguishes a Clear from a retry
    :param clear_number: how often the DAG run was cleared, for the same purpose
    :param can_defer: whether the task may wait in the triggerer
    :param needs_result: whether the task waits for the video at all
    :param resubmit_on_unknown: submit again when it is unknown whether an earlier submission was accepted
    :param resubmit_on_failure: submit again when the job of an earlier try failed at Luma
    :param timeout: seconds to wait for the video
    :param queue_timeout: seconds to wait, before that, for Luma to accept the job
    :param poll_interval: seconds between two status checks
    :param log: the task's log
    :param on_job_known: called with the job's id as soon as it is known
    :param fail_if_killed: called just before anything is sent; raises if the task was killed
    :param task_instance_id: Airflow's id of this try, by which the receiver of callbacks finds the record
    :param max_jobs_per_run: the most jobs that the DAG run may submit; None for any number
    """

    client: LumaClient
    new_client: Callable[[], LumaClient]
    store: SubmissionStore
    try_number: int
    max_tries: int
    clear_number: int | None
    can_defer: bool
    needs_result: bool
    resubmit_on_unknown: bool
    resubmit_on_failure: bool
    timeout: float
    queue_timeout: float
    poll_interval: float
    log: Logger
    on_job_known: Callable[[str], None]
    fail_if_killed: Callable[[], None]
    task_instance_id: UUID | None = None
    max_jobs_per_run: int | None = None

    def submit(self, submission: Submission) -> NextStep:
        """
        Submit a job, or continue what an earlier try has submitted.

        :raises AirflowFailException: a retry cannot help
        :raises LumaError: a retry may help
        """
        deferral = submission.deferral
        if deferral.first_attempt_at is not None and (problem := self._service_problem(deferral)):
            _fail(LumaValidationError(None, f"{problem}. Nothing was submitted"))
        deferral = deferral._replace(service=self._stored_service)
        record = self._load_record()
        fingerprint = submission.fingerprint(self._conn_id, record)
        record = self._put_back(record, fingerprint)
        status, answer = self._ask(record) if must_ask(record, fingerprint) else (None, None)
        decision = self._decide(record, fingerprint, status, answer)
        if decision.step is Step.SUBMIT:
            if record is None and deferral.upload is None:  # after a failed job, the clip is uploaded again
                deferral = deferral._replace(upload=try_store(self.log, self.store.load_upload))
            return self._submit(replace(submission, deferral=deferral), self._intent(submission, record))
        assert record is not None, "only a recorded submission can be continued"
        if not submission.video.is_public:  # Airflow has discarded the XComs of the earlier try
            submission.video.show_upload(try_store(self.log, self.store.load_upload))
        if decision.step is Step.AWAIT_CALLBACK:
            return self._await_callback(record.reference, deferral)
        if decision.step in (Step.WAIT, Step.TAKE_RESULT):
            return self._continue(record, None if isinstance(answer, LumaError) else answer, deferral)
        raise self._refusal(decision, record, answer)

    def _decide(
        self,
        record: SubmissionRecord | None,
        fingerprint: str,
        status: JobStatus | None,
        answer: LumaTask | LumaError | None,
    ) -> Decision:
        """Return what to do, and log why."""
        decision = decide(
            record,
            fingerprint=fingerprint,
            max_tries=self.max_tries,
            clear_number=self.clear_number,
            status=status,
            can_await_callback=self.can_defer,
            resubmit_on_unknown=self.resubmit_on_unknown,
            resubmit_on_failure=self.resubmit_on_failure and not isinstance(answer, LumaRequestFailedError),
        )
        if self.store.is_durable:
            self.log.info(decision.reason)
        else:
            self.log.info(
                "This try knows nothing of earlier ones: Airflow before 3.3 keeps no task state, and the connection's "
                "extra does not set submission_store"
            )
        return decision

    def _refusal(
        self, decision: Decision, record: SubmissionRecord, answer: LumaTask | LumaError | None
    ) -> LumaError | AirflowFailException:
        """Return the error to raise if the decision is neither to submit nor to wait."""
        if decision.step is Step.ASK_LATER:
            return LumaUnavailableError(None, f"{decision.reason} ({answer})", luma_task_id=record.luma_task_id)
        if decision.step is Step.NOT_FOUND:
            advice = "If this is the right account, delete the task's submission record; the next try submits a new job"
            return LumaNotFoundError(None, f"{decision.reason}. {advice}", luma_task_id=record.luma_task_id)
        if decision.step is Step.RAISE_FAILURE and isinstance(answer, LumaError):
            return answer
        unknown = LumaSubmissionUnknownError(None, decision.reason)
        unknown.remedy = self._service.unknown_outcome_remedy(record.reference, record.submitted_at)
        return self._reported(unknown, record.reference)

    def recover(self, deferral: DeferralState, luma_task_id: str | None) -> NextStep:
        """
        Find out what became of a submission whose response was lost.

        :param deferral: the state of the deferral in which the task waited for the callback
        :param luma_task_id: the job that a callback has named, if one has arrived
        :raises AirflowFailException: the outcome remains unknown
        """
        reference = deferral.reference
        assert reference is not None, "only a recorded submission is waited for"
        named = luma_task_id or self.store.callback_task_id(reference) or deferral.callback_task_id
        try:
            if problem := self._service_problem(deferral):
                raise LumaUnavailableError(None, f"{problem}. No request was sent")
            is_ours = self._is_our_job(named, reference) if named is not None else False
        except (*TRANSIENT, LumaAuthError) as error:
            self.log.warning("Could not check which job the lost submission created: %s. Still waiting", error)
            if _is_over(deferral):
                raise  # the next try finds the id beside the intent, and checks again
            return self._await_callback(reference, deferral, named)
        if named is None or not is_ours:
            if _is_over(deferral):
                self._give_up(reference)
            return self._await_callback(reference, deferral, named if is_ours is None else None)
        self._take_over(reference, named)
        job: LumaTask | None = None
        if self.needs_result:
            with suppress(*TRANSIENT, LumaAuthError):  # the wait for the job polls it again
                job = self.client.check_job(named)
        return self._wait_for(named, deferral, reference, time.time(), job)

    # -- what an earlier try has left -------------------------------------------------------------------------------

    @property
    def _conn_id(self) -> str:
        return self.client.connection.conn_id

    @property
    def _service(self) -> Service:
        return self.client.connection.service

    @property
    def _stored_service(self) -> str | None:
        return None if self._service.name == DEFAULT_SERVICE else self._service.name

    def _service_problem(self, deferral: DeferralState) -> str | None:
        """Return what to tell a user whose connection was switched to another service during a deferral."""
        return self.client.connection.service_problem(deferral.service or DEFAULT_SERVICE)

    def _refuse_another_service(self, record: SubmissionRecord | None) -> None:
        """Fail if the record names a different service from the connection's: neither knows the other's jobs."""
        if refusal := refusal_of_service(record, self._service.name):
            _fail(LumaValidationError(None, refusal))

    @property
    def _this_run(self) -> dict[str, Any]:
        """The counters by which a later try distinguishes a retry from a Clear."""
        return {"max_tries": self.max_tries, "clear_number": self.clear_number}

    def _put_back(self, record: SubmissionRecord | None, fingerprint: str) -> SubmissionRecord | None:
        """
        Return the record to base the decision on: the one that an intent replaced, if its job is requested again.

        That drops the intent, so it only happens once the intent's unknown outcome has been reported to a person.
        """
        while record is not None and is_for_replaced(record, fingerprint):
            if not (record.reported or self.resubmit_on_unknown):
                break
            self.log.warning(
                "Try %s ended just before or after submitting a different request, which Luma may have accepted. %s. "
                "The current request was submitted earlier; continuing with that job",
                record.try_number,
                self._service.unknown_outcome_remedy(record.reference, record.submitted_at),
            )
            self.store.forget(record, may_be_paid=True)
            forgotten, record = record, self.store.load()
            if record is not None and record.reference == forgotten.reference:
                break
        self._refuse_another_service(record)
        return record

    def _load_record(self) -> SubmissionRecord | None:
        """Return the record, with the job's id if a callback has named it in the meantime."""
        record = self.store.load()
        self._refuse_another_service(record)
        if record is None or record.luma_task_id is not None:
            return record
        named = self.store.callback_task_id(record.reference)
        if named is None or not self._is_our_job(named, record.reference):
            return record
        return self._take_over(record.reference, named)

    def _take_over(self, reference: str, luma_task_id: str) -> SubmissionRecord | None:
        """Record the job that a submission turned out to have created; return the record that is now stored."""
        # A person who has since cleared the task has not seen this job, so treat it as found by a retry.
        job = {"luma_task_id": luma_task_id, "reported": False, "replaced": None}
        return self.store.update(reference, **job, **self._this_run)

    def _is_our_job(self, luma_task_id: str, reference: str) -> bool | None:
        """Ask Luma whether the job named by a callback comes from this submission; None if Luma does not know it."""
        try:
            task = retry_read(partial(self.client.get_status, luma_task_id))
        except LumaNotFoundError:
            self.log.warning("A callback named Luma task %s, which Luma does not know (yet)", luma_task_id)
            return None
        # No need to check the token: the address comes from Luma itself, and the API key may have been replaced since.
        if reference_of(task.callback_url) == reference:
            self.log.info(
                "Recovered Luma task %s from a callback; the response to its submission was lost", luma_task_id
            )
            return True
        self.log.warning("Ignored a callback for Luma task %s, which this task did not submit", luma_task_id)
        return False

    def _ask(self, record: SubmissionRecord | None) -> tuple[JobStatus, LumaTask | LumaError | None]:
        """Check the recorded job; return its status, with the job itself or the error of the check."""
        assert record is not None and record.luma_task_id is not None, "only a job with an id can be asked about"
        self.on_job_known(record.luma_task_id)
        try:
            task = self.client.check_job(
                record.luma_task_id, retry_timeout=backoff.READ_RETRY_TIMEOUT, sends_metrics=False
            )
        except (*TRANSIENT, LumaAuthError) as error:  # a key may be refused while it is being replaced
            return JobStatus.UNAVAILABLE, error
        except LumaGenerationError as error:
            return JobStatus.FAILED, error
        except LumaResultMissingError as error:
            return JobStatus.RESULT_MISSING, error
        except LumaNotFoundError as error:
            kept = self._service.records_kept
            is_old = kept and record.submitted_at is not None and time.time() - record.submitted_at > kept
            return (JobStatus.FORGOTTEN if is_old else JobStatus.NOT_FOUND), error
        return (JobStatus.SUCCEEDED if task.is_finished else JobStatus.RUNNING), task

    def _continue(self, record: SubmissionRecord, job: LumaTask | None, deferral: DeferralState) -> WaitForJob:
        assert record.luma_task_id is not None, "only a job with an id can be waited for"
        # From here on, the next try is a retry of this one: forget any earlier Clear and delivery.
        self.store.update(record.reference, delivered=None, **self._this_run)
        created_at = record.submitted_at or time.time()
        return self._wait_for(record.luma_task_id, deferral, record.reference, created_at, job)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_for(
        self,
        luma_task_id: str,
        deferral: DeferralState,
        reference: str,
        created_at: float,
        job: LumaTask | None = None,
    ) -> WaitForJob:
        self.on_job_known(luma_task_id)
        state = DeferralState(
            luma_task_id,
            reference,
            end_time=time.time() + self.timeout,
            execution_deadline=deferral.execution_deadline,
            created_at=created_at,
            service=self._stored_service,
        )
        return WaitForJob(state, job if job is not None and job.is_finished else None)

    def _await_callback(self, reference: str, deferral: DeferralState, named: str | None = None) -> AwaitCallback:
        now = time.time()
        end_time = deferral.end_time or now + self.timeout
        # Even if the connection leads to another service now, the deferral names the one that was submitted to.
        state = DeferralState(None, reference, named, end_time, deferral.execution_deadline, service=deferral.service)
        return AwaitCallback(state, min(end_time, now + INTERVALS_WITH_CALLBACK * self.poll_interval))

    # -- submitting -------------------------------------------------------------------------------------------------

    def _submit(self, submission: Submission, intent: SubmissionRecord, *, may_renew: bool = True) -> NextStep:
        attempt = SubmissionAttempt(self, submission, intent)
        try:
            self._check_before_paying(submission)
            attempt.submission = self._publish(submission)
            luma_task_id = attempt() if self.can_defer else retry_submission(attempt, self.queue_timeout, self.log)
        except PERMANENT as error:
            may_renew = may_renew and isinstance(error, (LumaAuthError, LumaNotFoundError)) and attempt.is_forgotten
            if may_renew and self._finds_another_connection(submission.request):
                again = replace(submission, deferral=attempt.submission.deferral)
                return self._submit(again, intent, may_renew=False)  # only once: each read may find another key
            if attempt.submission.deferral.upload is not None:
                try_store(self.log, self.store.save_upload, {})  # a Clear of this task needs a new upload
            _fail(error)
        except LumaJobLimitError as error:
            _fail(error)  # an upload is kept: after a Clear with a higher limit, the request is the same
        except TRANSIENT as error:
            if not self.can_defer or not attempt.is_forgotten:
                raise
            self.log.warning("The submission was not accepted: %s. Nothing was billed", error)
            return self._enqueue(error, attempt.submission.deferral)
        except LumaSubmissionUnknownError as error:
            if attempt.intent.expects_callback and self.can_defer:
                self.log.warning("%s. Waiting for Luma's callback to confirm it", error.msg)
                return self._await_callback(intent.reference, attempt.submission.deferral)
            if self.resubmit_on_unknown:
                raise
            raise self._reported(error, intent.reference) from error
        job = self._wait_for(luma_task_id, attempt.submission.deferral, intent.reference, time.time())
        metrics.Stats.incr("luma.submission.accepted")
        if (remaining := self.client.credits_left()) is not None:
            metrics.credits_left(self._conn_id, remaining)
            self.log.info("The Luma account has %g credits left", remaining)
        self._report_usage(attempt)
        return job

    @cached_property
    def budget(self) -> RunBudget | None:
        """
        The budget of the DAG run; None if it has no limit.

        :raises LumaValidationError: the store cannot keep one
        """
        if self.max_jobs_per_run is None:
            return None
        return self.store.run_budget(self.max_jobs_per_run, self._conn_id, is_first_try=self.try_number == 1)

    def _report_usage(self, attempt: SubmissionAttempt) -> None:
        """Report what the run has submitted. The job is paid for, so no failure here may fail the task."""
        if self.budget is None:
            return
        try:
            usage = self.budget.usage(with_price=attempt.us_dollars is not None)
        except Exception:
            self.log.warning("Could not count the jobs of this DAG run; its metrics are not sent", exc_info=True)
            return
        metrics.run_usage(self.budget.dag_id, usage.jobs, usage.us_dollars)
        self.log.info("This DAG run has submitted %d of at most %s jobs", usage.jobs, self.max_jobs_per_run)

    def renew_client(self, request: ModifyRequest) -> None:
        """
        Read the connection again, and check the request against it.

        :raises LumaError: the request no longer passes
        :raises AirflowException: ``submission_store`` has changed; the next try must use the records in the new one
        """
        client = self.new_client()
        client.check_request(request, expects_callback=not request.callback_url)
        if client.connection.submission_store != self.client.connection.submission_store:
            raise AirflowException(
                f"submission_store of connection {self._conn_id!r} was changed while this try was submitting. Nothing "
                "was submitted; the next try uses the new one"
            )
        if problem := client.connection.service_problem(self._service.name):
            raise LumaValidationError(None, f"{problem}. Nothing was submitted")
        self.client = client

    def _finds_another_connection(self, request: ModifyRequest) -> bool:
        """Read the connection again and use it; return whether it has changed, e.g. because a key was replaced."""
        refused = self.client.connection
        try:
            self.renew_client(request)
        except PERMANENT:
            return False
        return self.client.connection != refused

    def _check_before_paying(self, submission: Submission) -> None:
        """Refuse to submit beyond a limit, if the triggerer could not poll, or if the video is unusable."""
        if self.budget is not None:
            self.budget.check()
        if self.can_defer and self.needs_result:
            self.client.check_wait_in_triggerer()
        if submission.deferral.first_attempt_at is None:
            submission.video.check_public(self.client)
        self.check_reserve()

    def check_reserve(self) -> None:
        """
        Check that the account has at least the connection's ``min_credits``.

        :raises LumaInsufficientCreditsError: it has fewer
        """
        reserve = self.client.connection.min_credits
        if reserve is None:
            return
        remaining = retry_read(self.client.get_credits)
        metrics.credits_left(self._conn_id, remaining)
        if remaining < reserve:
            raise LumaInsufficientCreditsError(
                None,
                f"the account has {remaining:g} credits left, fewer than the connection's min_credits ({reserve:g}); "
                "nothing was submitted",
            )

    def _publish(self, submission: Submission) -> Submission:
        """Return the submission with the video's public address; keep an upload for a later attempt."""
        published = submission.published(self.client)
        upload = published.deferral.upload
        if upload is not None and upload != submission.deferral.upload:
            try_store(self.log, self.store.save_upload, upload)
        self.log.info("Submitting %s to Luma with the prompt %r", submission.video.shown, submission.request.prompt)
        return published

    def _intent(self, submission: Submission, record: SubmissionRecord | None) -> SubmissionRecord:
        return SubmissionRecord(
            new_reference(),
            # A file that could not be found before may exist now, and differ from the recorded one.
            submission.fingerprint(self._conn_id),
            None,
            try_number=self.try_number,
            replaced=record and record.job,
            service=self._service.name,
            **self._this_run,
        )

    def _enqueue(self, error: LumaError, deferral: DeferralState) -> Enqueue:
        """Wait to submit again: for at most ``queue_timeout`` seconds if rate limited, or two minutes in an outage."""
        metrics.Stats.incr("luma.submission.refused")
        now = time.time()
        first_attempt_at = deferral.first_attempt_at or now
        until, outage_since = first_attempt_at + self.queue_timeout, None
        if isinstance(error, LumaUnavailableError):
            outage_since = deferral.outage_since or now
            until = min(until, outage_since + backoff.OUTAGE_TIMEOUT)
        if now >= until:
            raise error
        has_too_many_jobs, requests_per_minute = False, None
        if isinstance(error, LumaRateLimitError):
            has_too_many_jobs, requests_per_minute = error.has_too_many_jobs, error.requests_per_minute
        limited = "Too many jobs are running at Luma" if has_too_many_jobs else "Rate limited by Luma"
        self.log.info("%s; queued in the triggerer", "Luma is unavailable" if outage_since else limited)
        state = deferral._replace(first_attempt_at=first_attempt_at, outage_since=outage_since)
        return Enqueue(state, until, now + (error.retry_after or 0.0), has_too_many_jobs, requests_per_minute)

    def _give_up(self, reference: str) -> NoReturn:
        """Fail, because no callback has shown what became of a submission."""
        error = LumaSubmissionUnknownError(
            None,
            f"no response to the submission was recorded, and no callback arrived within {self.timeout:g} s. "
            "A job may have been accepted",
        )
        if not self.resubmit_on_unknown:
            raise self._reported(error, reference)
        record = self.store.load()
        if record is not None and record.reference == reference:
            self.store.forget(record, may_be_paid=True)  # so that the next try submits again
        raise error

    def _reported(self, error: LumaSubmissionUnknownError, reference: str) -> AirflowFailException:
        """Record that the unknown outcome is reported, so that a Clear submits; return an error that skips retries."""
        self.log.error("%s", error)
        try_store(self.log, self.store.update, reference, reported=True, **self._this_run)
        failure = AirflowFailException(str(error))
        failure.__cause__ = error
        return failure


def execution_timeout_error(
    store: SubmissionStore | None, execution_timeout: timedelta | None, luma_task_id: str | None
) -> LumaTimeoutError:
    """
    Return the error of a task whose ``execution_timeout`` ended the wait; it says whether a job was billed.

    :param store: the store with the record of the task's submission; None if the job's id is known
    """
    if luma_task_id:
        consequence = "Luma cannot cancel a job: this one is still running there under this id, and is billed"
    elif store and store.is_durable and ((record := store.load()) is None or record.luma_task_id is not None):
        consequence = "Luma had not accepted a job from this try; nothing was billed"
    else:
        consequence = "No response to a submission was recorded; a job may have been accepted, and may be running"
    return LumaTimeoutError(
        None,
        f"not finished within execution_timeout ({execution_timeout}). {consequence}",
        luma_task_id=luma_task_id,
    )


def _is_over(deferral: DeferralState) -> bool:
    return deferral.end_time is None or time.time() >= deferral.end_time


def _fail(error: LumaError) -> NoReturn:
    """Fail without using the task's retries."""
    raise AirflowFailException(str(error)) from error


#: Seconds until writing the job's id is retried: without the id, a person has to look for the job.
SAVE_RETRY_DELAY = 1.0


class SubmissionAttempt:
    """
    A submission, which each call sends once.

    :param submitter: the try that it belongs to
    :param submission: the published submission to send
    :param intent: the record to write before sending
    :ivar is_forgotten: whether the store is free of the intents of refused attempts
    :ivar us_dollars: the estimated price of the job, if known
    """

    def __init__(self, submitter: Submitter, submission: Submission, intent: SubmissionRecord) -> None:
        self._submitter, self._store, self._log = submitter, submitter.store, submitter.log
        self.submission = submission
        self.intent = intent
        self.is_forgotten = True
        self.us_dollars: float | None = None
        self._is_first = True
        self._claim: Claim | None = None

    def __call__(self) -> str:
        """
        Submit.

        :returns: the job's id at Luma
        :raises LumaSubmissionUnknownError: sent, but the response was lost: the job may run, and be billed
        :raises AirflowException: signing the input or recording the intent failed, another try has taken over, or
            the task was killed; nothing was sent
        :raises LumaError: certainly nothing was accepted
        :raises LumaJobLimitError: the DAG run may submit no more; nothing was sent
        """
        self._submitter.fail_if_killed()
        if not self.is_forgotten:
            self._try_to_forget()
        if not self.is_forgotten:
            raise AirflowException(
                "Could not remove a refused attempt from the submission store, so this try submits nothing more"
            )
        request = self._prepare()
        self._claim_slot()
        self._begin()
        try:
            luma_task_id = self._submitter.client.submit(
                request, self.intent.reference, before_send=self._fail_if_overtaken
            )
        except LumaSubmissionUnknownError:
            raise  # the intent stays, for the next try to find
        except (LumaError, AirflowException, AirflowRuntimeError):
            # Refused, or never sent: certainly nothing was accepted.
            self._try_to_forget()
            raise
        self._log.info("Luma accepted the job as Luma task %s", luma_task_id)
        try_store(self._log, self._save, replace(self.intent, luma_task_id=luma_task_id, replaced=None))
        self._keep_slot(luma_task_id)
        return luma_task_id

    def _claim_slot(self) -> None:
        self.us_dollars = self.submission.price(self._submitter.client.connection.service)
        if self._submitter.budget is not None:
            self._claim = self._submitter.budget.claim(self.intent.reference, self.us_dollars)

    def _keep_slot(self, luma_task_id: str) -> None:
        """Record the job in its slot. The job is paid for, so no failure here may fail the task."""
        budget, claim = self._submitter.budget, self._claim
        if budget is None or claim is None:
            return
        try:
            budget.keep(claim, self.intent.reference, luma_task_id)
        except Exception:
            self._log.warning(
                "Could not record Luma task %s in its slot of max_jobs_per_run. If you remove the task's submission "
                "record, the job no longer counts towards the limit",
                luma_task_id,
                exc_info=True,
            )

    def _has_slot(self) -> bool:
        """Return whether this submission still holds its slot; true without max_jobs_per_run."""
        budget, claim = self._submitter.budget, self._claim
        if budget is None or claim is None:
            return True
        return budget.is_held(claim, self.intent.reference)

    def _begin(self) -> None:
        try:
            self._store.begin(self.intent)
        except Exception:
            self._log.warning("Could not record the submission, so nothing was submitted")
            if self._claim is not None and self._claim.took_over:
                # Another try may be submitting with this slot. The next try decides by the record whether it is free.
                self._claim = None
            self._try_to_forget()  # the write may have succeeded, with only its response lost
            raise

    def _prepare(self) -> ModifyRequest:
        """Return what to send over the current connection; note in the intent whether a callback is expected."""
        wanted = self.submission.request
        if not self._is_first:
            self._submitter.renew_client(wanted)
            self._submitter.check_reserve()
        self._is_first = False
        callback_url = wanted.callback_url or self._submitter.client.callback_url(
            self.intent.reference, self._submitter.task_instance_id
        )
        expects_callback = callback_url is not None and not wanted.callback_url
        self.intent = replace(self.intent, expects_callback=expects_callback, submitted_at=time.time())
        return replace(
            wanted, video_url=self.submission.video.renewed(wanted.video_url), callback_url=callback_url or None
        )

    def _fail_if_overtaken(self) -> None:
        """
        Raise if this process must no longer send anything.

        Its machine may have been frozen since it wrote the intent. Meanwhile, the next try may have reported the
        outcome as unknown, and a person may have cleared the task.
        """
        self._submitter.fail_if_killed()
        try:
            is_current, has_slot = self._store.is_current(self.intent), self._has_slot()
        except Exception as error:
            raise AirflowException(
                f"Could not check whether another try or run has taken over: {error}. Nothing was sent"
            ) from error
        if not (is_current and has_slot):
            raise AirflowException(
                "The submission record changed while this try was about to submit: another try, or another run of the "
                "batch, has taken over, or the task was cleared. Nothing was sent"
            )

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(SAVE_RETRY_DELAY), reraise=True)
    def _save(self, record: SubmissionRecord) -> None:
        self._store.save(record)

    def _try_to_forget(self) -> None:
        self.is_forgotten = try_store(self._log, self._forget) is True

    def _forget(self) -> bool:
        """Drop the intent, then give the slot back. If the process is killed in between, the next try takes it over."""
        self._store.forget(self.intent)
        if self._submitter.budget is not None and self._claim is not None:
            self._submitter.budget.release(self._claim, self.intent.reference)
            self._claim = None
        return True

# SPDX-License-Identifier: Apache-2.0
"""
The poll state of one job: what each status check means, and when to check again. No I/O, no wall clock.

A :class:`PollState` takes the result of each status check and returns one of three outcomes: :class:`PollAgain`,
:class:`Finished` or :class:`Failed`. A worker's loop, a trigger and a sensor's poke all wait by these rules:

* A running job, or one with an undocumented status, is checked again after the poll interval. If a callback is
  expected, the interval is ten times as long: polling is then needed only if the callback is lost.
* A job that is reported as a success without a video is checked a few more times before the wait ends.
* An id that the service does not know may be too new. It counts as unknown only after a grace period, and never once
  the service has returned the job.
* A refused API key ends the wait only if the job is not known to exist. A known job keeps running, and is paid for,
  while the key is being replaced.
* Any other error (429, 455, 5xx, a broken network, an error on our side) says nothing about the job. The check is
  repeated with exponential backoff, or after the service's Retry-After.
* At the deadline there is one last check, even if the wait starts after it: the job may have ended while nobody polled.
  If the rate limit holds that check back for too long, the wait ends without it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from airflow_provider_luma.core.backoff import backoff_delay
from airflow_provider_luma.core.job import LumaTask, LumaTaskStatus
from airflow_provider_luma.exceptions import (
    TRANSIENT,
    LumaAuthError,
    LumaError,
    LumaNotFoundError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaUnavailableError,
)

#: Seconds for which "no such task" may just mean that the job is too new.
NOT_FOUND_GRACE = 30.0

#: How many times a success that lists no video yet is checked again.
POLLS_FOR_MISSING_URLS = 3

#: How many poll intervals pass between two status checks of a job whose callback is expected.
INTERVALS_WITH_CALLBACK = 10

#: Time between two log lines about a job with an unchanged status: in seconds, or as a fraction of its age if longer.
PROGRESS_INTERVAL, PROGRESS_PART_OF_AGE = 60.0, 1 / 3


@dataclass(frozen=True)
class PollAgain:
    """
    The job is not known to have ended.

    :param delay: seconds until the next status check
    :param task: the job, if this check returned it
    :param error: the transient error of this check, if any
    """

    delay: float
    task: LumaTask | None = None
    error: LumaError | None = None

    @property
    def is_running(self) -> bool:
        """Whether the service has just reported the job as running."""
        return self.task is not None and not self.task.is_finished


@dataclass(frozen=True)
class Finished:
    """
    The job has succeeded.

    :param task: the job, with at least one result URL
    """

    task: LumaTask


@dataclass(frozen=True)
class Failed:
    """
    The job has failed, or waiting any longer cannot help.

    :param reason: why
    :param task: the job, if this check returned it
    :param error: the transient error of this check, if any
    """

    reason: LumaError
    task: LumaTask | None = None
    error: LumaError | None = None


PollOutcome = PollAgain | Finished | Failed


class PollState:
    """
    What is known about a job during the wait for it.

    :param luma_task_id: the job's id at Luma
    :param poll_interval: seconds between two status checks of a running job
    :param end_time: when to stop waiting, in seconds since the epoch; None to wait indefinitely
    :param created_at: when the job was created, in seconds since the epoch, if known before the first check
    :param service: the name of the job's service; None for the connection's, whichever that is
    """

    def __init__(
        self,
        luma_task_id: str,
        *,
        poll_interval: float,
        end_time: float | None = None,
        created_at: float | None = None,
        service: str | None = None,
    ) -> None:
        self.luma_task_id = luma_task_id
        self.service = service
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.created_at = created_at
        #: Whether any status check has returned the job.
        self.is_known = False
        #: Whether the connection was read again after a refusal, with no successful status check since.
        self.is_replacement_refused = False
        self._status_text = "has not been checked yet"
        self._log_level = logging.INFO
        self._failures = 0
        self._not_found_since: float | None = None
        self._polls_without_urls = 0
        self._first_poll_at: float | None = None
        self._logged: tuple[float, str] | None = None
        self._undocumented: set[str] = set()
        self._ended_at: float | None = None

    def on_status(self, task: LumaTask, now: float, *, expects_callback: bool = False) -> PollOutcome:
        """
        Handle a successful status check.

        :param now: seconds since the epoch
        :param expects_callback: whether a callback from Luma resumes this wait when the job ends
        """
        self.is_known, self.is_replacement_refused = True, False
        self._failures, self._not_found_since = 0, None
        self.created_at = task.created_at.timestamp() if task.created_at else self.created_at or now
        self._status_text, self._log_level = f"is {task.status.name}", logging.INFO
        if not task.is_finished:
            return self._on_running(task, now, expects_callback=expects_callback)
        self._ended_at = self._ended_at or now
        if task.completed_at is None:
            task = replace(task, completed_at=datetime.fromtimestamp(self._ended_at, UTC))
        if expects_callback and task.status is LumaTaskStatus.CALLBACK_FAILED:
            self._status_text += ": the callback could not be delivered; check callback_base_url in the connection"
            self._log_level = logging.WARNING
        if not task.is_successful:
            return Failed(task.failure(), task)
        return Finished(task) if task.result_urls else self._on_missing_urls(task, now)

    def on_error(self, error: LumaError, now: float) -> PollOutcome:
        """
        Handle a failed status check.

        :param now: seconds since the epoch
        """
        error.luma_task_id = self.luma_task_id
        self._failures += 1
        self._first_poll_at = self._first_poll_at or now
        self._status_text, self._log_level = f"could not be checked: {error.msg}", logging.WARNING
        if isinstance(error, LumaAuthError):
            return self._on_refused_key(error, now)
        if isinstance(error, LumaNotFoundError) and not self.is_known:
            return self._on_not_found(error, now)
        if not isinstance(error, TRANSIENT):
            error = LumaUnavailableError(error.code, error.msg, luma_task_id=self.luma_task_id)
        return self._again(backoff_delay(self._failures, error.retry_after), now, error=error)

    def on_unsent(self, now: float) -> PollOutcome:
        """
        Handle a status check at the deadline that was not sent because of the rate limit.

        :param now: seconds since the epoch
        """
        self._status_text += "; the rate limit delayed the last status check past the deadline"
        return self._again(0.0, now)

    def progress(self, now: float) -> tuple[int, str] | None:
        """
        Return the level and text to log, if any: after the first check, after every change, and at growing intervals.

        :param now: seconds since the epoch
        """
        age = max(0.0, now - (self.created_at or self._first_poll_at or now))
        if self._logged is not None:
            logged_at, logged = self._logged
            interval = max(PROGRESS_INTERVAL, age * PROGRESS_PART_OF_AGE)
            if logged == self._status_text and now - logged_at < interval:
                return None
        self._logged = (now, self._status_text)
        shown_age = timedelta(seconds=round(age))
        return self._log_level, f"Luma task {self.luma_task_id} {self._status_text} (age {shown_age})"

    def _on_running(self, task: LumaTask, now: float, *, expects_callback: bool) -> PollOutcome:
        if not task.status.is_documented:
            self._status_text += ", an undocumented status that counts as running"
            if task.status.name not in self._undocumented:
                self._log_level = logging.WARNING
                self._undocumented.add(task.status.name)
        if expects_callback:
            self._status_text += "; a callback is expected when it ends"
        return self._again(self.poll_interval * (INTERVALS_WITH_CALLBACK if expects_callback else 1), now, task=task)

    def _on_missing_urls(self, task: LumaTask, now: float) -> PollOutcome:
        self._polls_without_urls += 1
        self._status_text += " but lists no video yet"
        is_too_late = self.end_time is not None and now >= self.end_time
        if self._polls_without_urls > POLLS_FOR_MISSING_URLS or is_too_late:
            error = LumaResultMissingError(
                None,
                f"reported as {task.status.name}, but no video is listed after {self._polls_without_urls} checks",
                luma_task_id=self.luma_task_id,
            )
            return Failed(error, task)
        return self._again(backoff_delay(self._polls_without_urls + 1), now, task=task)

    def _on_refused_key(self, error: LumaAuthError, now: float) -> PollOutcome:
        if not self.is_known and self.created_at is None:
            return Failed(error)
        self._logged = None  # log every one of these checks: a person has to act
        self._status_text += ". The job is paid for: put a valid API key into the connection"
        waited_out = LumaUnavailableError(error.code, error.msg, luma_task_id=self.luma_task_id)
        return self._again(max(self.poll_interval, backoff_delay(self._failures)), now, error=waited_out)

    def _on_not_found(self, error: LumaNotFoundError, now: float) -> PollOutcome:
        self._not_found_since = self._not_found_since or now
        remaining = self._not_found_since + NOT_FOUND_GRACE - now
        if remaining > 0:
            return self._again(min(backoff_delay(self._failures, error.retry_after), remaining), now)
        unknown = LumaNotFoundError(
            error.code,
            f"Luma does not know this task ({error.msg}). Check luma_task_id, and that luma_conn_id is for the right "
            "account; the service forgets old jobs",
            luma_task_id=self.luma_task_id,
        )
        return Failed(unknown)

    def _again(
        self, delay: float, now: float, *, task: LumaTask | None = None, error: LumaError | None = None
    ) -> PollOutcome:
        """Check again after a delay, or at the deadline if that is sooner; fail if the deadline has passed."""
        if self.end_time is None:
            return PollAgain(delay, task, error)
        if now < self.end_time:
            return PollAgain(min(delay, self.end_time - now), task, error)
        deadline = datetime.fromtimestamp(self.end_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        timeout = LumaTimeoutError(
            None,
            f"not finished at the deadline ({deadline}): it {self._status_text}. Luma cannot cancel a job: this one "
            "is still running there under this id, and is billed. A LumaTaskSensor with this luma_task_id fetches its "
            "result",
            luma_task_id=self.luma_task_id,
        )
        return Failed(timeout, task, error)

# SPDX-License-Identifier: Apache-2.0
"""
How to wait for a job: what each look at it means, and when to look again. No I/O, no clock of its own.

A :class:`Watch` accompanies one job. Whoever looks (a worker's loop, a trigger, a sensor's poke) tells it what
came of the look, and is told how many seconds to wait before the next one, or that the job is finished, or is
given the error to end with. The rules:

* a running job, and one with a flag nobody knows yet, is looked at again after the poll interval; ten times as
  late if Luma calls back when it has ended, since then a look is only for a callback that was lost;
* a job reported as a success without a video is looked at a few more times, then it is a failure;
* an id that the service does not know may be too new: that is believed only after a grace period, and never of a
  job that it has shown before;
* an answer that could not be had (429, 455, 5xx, a broken network) says nothing about the job. It is waited out,
  with growing, jittered pauses, or as long as the service asks;
* at the deadline there is one last look, also for a watch that starts after it: the job may have ended while
  nobody was looking.
"""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import tenacity

from airflow_provider_luma.exceptions import (
    TRANSIENT,
    LumaError,
    LumaGenerationError,
    LumaNotFoundError,
    LumaTimeoutError,
)
from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus

#: Seconds for which "no such task" may only mean that the job is too new.
NOT_FOUND_GRACE = 30.0

#: Further looks at a success that has no video yet.
LOOKS_FOR_MISSING_URLS = 3

#: Poll intervals between two looks at a job for which a callback is expected.
INTERVALS_WITH_CALLBACK = 10

#: Seconds between two lines in the log while nothing changes.
PROGRESS_INTERVAL = 60.0

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
#: Seconds that a wish of the service for a pause is honoured at most.
LONGEST_RETRY_AFTER = 300.0


def pause(failures: int, retry_after: float | None = None) -> float:
    """
    Return the seconds to wait after so many failed calls in a row.

    Doubles from one second to a minute, less up to half of it by chance, so that many clients do not come back
    together. A wish of the service for a longer pause is honoured, up to five minutes.

    :param failures: failed calls in a row, the last one included
    :param retry_after: the seconds that the service asked for, if it did
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    asked_for = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
    return max(asked_for, longest * random.uniform(0.5, 1.0))


def patience(seconds: float) -> dict[str, Any]:
    """
    Return tenacity's options for repeating a call that fails for a passing reason.

    :param seconds: for how long at most
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return pause(state.attempt_number, getattr(error, "retry_after", None))

    return {
        "retry": tenacity.retry_if_exception_type(TRANSIENT),
        "wait": wait,
        "stop": tenacity.stop_before_delay(seconds),
        "reraise": True,
    }


class Watch:
    """
    The wait for one job.

    :param luma_task_id: the job's id at Luma
    :param poll_interval: seconds between two looks at a running job
    :param end_time: when to stop waiting, in seconds since the epoch, or None to wait for ever
    :param made: when the job was made, in seconds since the epoch, if that is known before the first look
    """

    def __init__(
        self, luma_task_id: str, *, poll_interval: float, end_time: float | None = None, made: float | None = None
    ) -> None:
        self.luma_task_id = luma_task_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.made = made
        #: Whether Luma calls back, and somebody is there to be woken, when the job has ended.
        self.is_called_back = False
        #: The job, as the last look that succeeded saw it.
        self.task: LumaTask | None = None
        #: Why the last look failed for a passing reason, if it did.
        self.trouble: LumaError | None = None
        self._news = "has not been looked at yet"
        self._is_bad_news = False
        self._is_settled = True
        self._failures = 0
        self._not_found_since: float | None = None
        self._looks_without_urls = 0
        self._first_look: float | None = None
        self._told: tuple[float, str] | None = None
        self._undocumented: set[str] = set()

    @property
    def is_settled(self) -> bool:
        """Whether the last look left no doubt about the id or the result that the next seconds will resolve."""
        return self._is_settled

    def saw(self, task: LumaTask, now: float) -> float | None:
        """
        Take in a look that succeeded.

        :param now: seconds since the epoch
        :returns: seconds to wait before the next look, or None if the job is finished
        :raises LumaGenerationError: the job failed, or succeeded without a video
        :raises LumaTimeoutError: it is still running at the deadline
        """
        self.task = task
        self.trouble = None
        self._failures = 0
        self._not_found_since = None
        self._is_settled = True
        self.made = task.created_at.timestamp() if task.created_at else self.made or now
        self._news, self._is_bad_news = f"is {task.status.name}", False
        if not task.is_finished:
            if not task.status.is_documented:
                self._news += ", which Luma's pages do not list; it counts as running"
                self._is_bad_news = task.status.name not in self._undocumented
                self._undocumented.add(task.status.name)
            if self.is_called_back:
                self._news += "; Luma calls back when it has ended"
            return self._until_next(self.poll_interval * (INTERVALS_WITH_CALLBACK if self.is_called_back else 1), now)
        if self.is_called_back and task.status is LumaTaskStatus.CALLBACK_FAILED:
            self._news += ": the callback could not be delivered; check callback_base_url in the connection's extra"
            self._is_bad_news = True
        if not task.is_successful:
            raise task.failure()
        if task.result_urls:
            return None
        self._looks_without_urls += 1
        self._is_settled = False
        self._news += " but lists no video yet"
        is_too_late = self.end_time is not None and now >= self.end_time
        if self._looks_without_urls > LOOKS_FOR_MISSING_URLS or is_too_late:
            raise LumaGenerationError(
                None,
                f"reported as {task.status.name}, but no video is listed after {self._looks_without_urls} looks. "
                "Ask the support of the service for it, naming the task id",
                luma_task_id=self.luma_task_id,
            )
        return self._until_next(pause(self._looks_without_urls + 1), now)

    def stumbled(self, error: LumaError, now: float) -> float:
        """
        Take in a look that failed.

        :param error: what came instead of an answer
        :param now: seconds since the epoch
        :returns: seconds to wait before the next look
        :raises LumaError: the error itself, if waiting cannot mend it
        :raises LumaTimeoutError: the deadline has passed
        """
        error.luma_task_id = self.luma_task_id
        self._failures += 1
        self._first_look = self._first_look or now
        self._news, self._is_bad_news = f"could not be looked at: {error.msg}", True
        is_unknown_id = isinstance(error, LumaNotFoundError) and self.task is None
        self._is_settled = not is_unknown_id
        if is_unknown_id:
            self._not_found_since = self._not_found_since or now
            if now - self._not_found_since >= NOT_FOUND_GRACE:
                raise LumaNotFoundError(
                    error.code,
                    f"Luma does not know this task ({error.msg}). Check luma_task_id and the account behind "
                    "luma_conn_id; Luma forgets tasks after two months",
                    luma_task_id=self.luma_task_id,
                ) from error
        elif not isinstance(error, (*TRANSIENT, LumaNotFoundError)):
            raise error
        self.trouble = None if is_unknown_id else error
        return self._until_next(pause(self._failures, error.retry_after), now)

    def progress(self, now: float) -> tuple[int, str] | None:
        """
        Return the line that a task's log should get now, and its level, at a human pace.

        That is: after the first look, after every change, and about once a minute.

        :param now: seconds since the epoch
        """
        if self._told is not None:
            told_at, told = self._told
            if told == self._news and now - told_at < PROGRESS_INTERVAL:
                return None
        self._told = (now, self._news)
        elapsed = timedelta(seconds=max(0, round(now - (self.made or self._first_look or now))))
        level = logging.WARNING if self._is_bad_news else logging.INFO
        return level, f"Luma task {self.luma_task_id} {self._news} ({elapsed} since it was made)"

    def _until_next(self, seconds: float, now: float) -> float:
        if self.end_time is None:
            return seconds
        if now >= self.end_time:
            deadline = datetime.fromtimestamp(self.end_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            raise LumaTimeoutError(
                None,
                f"not finished at the deadline ({deadline}); at the last look it {self._news}. It was not cancelled, "
                "since Luma cannot cancel: it is still running there under this id, and paid for. "
                "A LumaTaskSensor with this luma_task_id fetches its result",
                luma_task_id=self.luma_task_id,
            )
        return min(seconds, self.end_time - now)

# SPDX-License-Identifier: Apache-2.0
"""In-memory account shared by all services, without HTTP or video: balance, jobs, stored files and settings."""

from __future__ import annotations

import json
import math
import random
import threading
import uuid
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .clock import Clock
from .faults import Fault, FaultSchedule
from .journal import Journal
from .service import Refusal
from .settings import Settings

if TYPE_CHECKING:
    from .service import Service
    from .uploads import Upload

GENERATING, SUCCESS, CREATE_TASK_FAILED, GENERATE_FAILED, CALLBACK_FAILED = range(5)


@dataclass(frozen=True)
class Submission:
    """
    A valid submission.

    :param service: the name of the service
    :param request: the body as it was received
    :param input_digest: SHA-256 hex digest of the input video
    :param is_silent: whether the result has no sound
    :param time_limit: seconds after which the service gives up a running job
    """

    service: str
    prompt: str
    video_url: str
    callback_url: str | None
    request: dict[str, Any]
    input_digest: str
    is_silent: bool = False
    time_limit: float = math.inf


@dataclass
class Job:
    """
    An accepted submission and its progress.

    :param request: the body of the submission
    :param create_time: when it was accepted, in milliseconds since the Unix epoch
    :param outcome: the ``outcome`` setting when it was accepted, unless a fault has changed it
    :param seconds: the processing time
    :param input_digest: SHA-256 hex digest of the input video
    :param service: the service that accepted it, ``kie`` or ``luma``
    :param cost: the credits that it costs
    :param is_silent: whether the result has no sound
    :param time_limit: seconds after which the service gives it up
    :param flag: kie.ai's successFlag, used for all services
    :param complete_time: when it ended, in milliseconds since the Unix epoch; None while it runs
    :param error_code: kie.ai's code for a failed job
    :param failure_code: the code of Luma's own API for a failed job
    :param callback_tries: attempts to deliver its callback
    :param is_ended_early: whether it ends as soon as its result is rendered
    """

    task_id: str
    prompt: str
    video_url: str
    callback_url: str | None
    request: dict[str, Any]
    create_time: int
    outcome: str
    seconds: float
    input_digest: str
    service: str = "kie"
    cost: float = 0.0
    is_silent: bool = False
    time_limit: float = math.inf
    flag: int = GENERATING
    complete_time: int | None = None
    origin_urls: list[str] = field(default_factory=list)
    result_urls: list[str] = field(default_factory=list)
    error_code: int | None = None
    failure_code: str | None = None
    error_message: str | None = None
    callback_tries: int = 0
    is_ended_early: bool = False

    @property
    def file_name(self) -> str:
        """The name of the result file."""
        return f"modified-{self.task_id[:12]}.mp4"

    @property
    def param_json(self) -> str:
        """The request as kie.ai's record-info returns it, in JSON, with ``watermark`` spelled ``waterMark``."""
        renamed = {("waterMark" if key == "watermark" else key): value for key, value in self.request.items()}
        return json.dumps(renamed, ensure_ascii=False)

    @property
    def has_succeeded(self) -> bool:
        """Whether the job has ended with a video."""
        return self.flag in (SUCCESS, CALLBACK_FAILED)

    @property
    def end_time(self) -> float:
        """When the job's time is over, in seconds of the Unix epoch; it ends then, or once its result is rendered."""
        return self.create_time / 1000 + min(self.seconds, self.time_limit)

    @property
    def exceeds_time_limit(self) -> bool:
        """Whether the service gives the job up before its processing time is over."""
        return self.seconds > self.time_limit

    def as_dict(self) -> dict[str, Any]:
        """Return the job as JSON values, so without an infinite time limit."""
        return {**asdict(self), "time_limit": self.time_limit if math.isfinite(self.time_limit) else None}


class SlidingWindow:
    """Sliding window log rate limiter: counts the events of the last ``seconds`` seconds."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._times: deque[float] = deque()

    def allows(self, limit: int) -> bool:
        """Whether another event would stay within the limit."""
        now = self._clock.time()
        while self._times and now - self._times[0] >= self._seconds:
            self._times.popleft()
        return len(self._times) < limit

    def record(self) -> None:
        """Record an event."""
        self._times.append(self._clock.time())

    def seconds_until_allowed(self, limit: int) -> float:
        """Return the seconds until allows(limit) is true again."""
        if not limit or len(self._times) < limit:
            return self._seconds
        return max(0.0, self._times[-limit] + self._seconds - self._clock.time())


class Account:
    """
    The account that all simulated services work on. Its public methods are thread-safe.

    ``lock`` protects a check followed by a change; ``services`` holds the services by name.
    """

    def __init__(self, settings: Settings) -> None:
        self.base_url = ""
        self.clock = Clock()
        self.journal = Journal()
        self.renders = 0
        self.lock = threading.RLock()
        self.services: dict[str, Service] = {}
        self._initial = settings
        self.reset()

    def reset(self) -> None:
        """Restore the initial settings, credits and time, and delete all jobs, uploads and calls."""
        with self.lock:
            self.clock.reset()
            self._settings = self._initial
            self._random = random.Random(self._initial.seed)
            self._jobs: dict[str, Job] = {}
            self._job_faults: dict[str, Fault] = {}
            self._uploads: list[Upload] = []
            self._faults = FaultSchedule(self._settings.faults)
            self.credits = self._settings.credits
            self.journal.clear()
            for service in self.services.values():
                service.reset()

    # -- settings and faults

    @property
    def settings(self) -> Settings:
        """The current settings."""
        with self.lock:
            return self._settings

    def configure(self, changes: dict[str, Any]) -> Settings:
        """
        Change settings and return all of them.

        Changing ``credits`` replaces the balance, ``seed`` restarts the random numbers, and ``faults`` restarts their
        counting.

        :raises pydantic.ValidationError: if a change is invalid; nothing is changed then
        """
        with self.lock:
            self._settings = self._settings.changed(changes)
            if "credits" in changes:
                self.credits = self._settings.credits
            if "seed" in changes:
                self._random = random.Random(self._settings.seed)
            if "faults" in changes:
                self._faults = FaultSchedule(self._settings.faults)
            return self._settings

    def next_fault(self, on: str) -> Fault | None:
        """Count a call of an operation and return the fault that hits it, None for no fault."""
        with self.lock:
            return self._faults.next(on)

    @property
    def url(self) -> str:
        """The base of every URL in a response, without a trailing slash."""
        return (self.settings.public_url or self.base_url).rstrip("/")

    def new_id(self) -> uuid.UUID:
        """Return a random id, repeatable with a seed."""
        with self.lock:
            return uuid.UUID(int=self._random.getrandbits(128), version=4)

    # -- jobs

    def check_credits(self) -> None:
        """Raise Refusal 402 if the balance does not cover a job."""
        cost = self.settings.cost
        if self.credits < cost:
            raise Refusal(402, f"Credits insufficient: the balance is {self.credits:g}, a job costs {cost:g}.")

    def accept(self, submission: Submission, task_id: str, *, dry_run: bool = False) -> Job:
        """
        Accept and bill a submission that the service has checked.

        :param dry_run: charge and store nothing
        """
        with self.lock:
            settings = self._settings
            job = Job(
                task_id=task_id,
                prompt=submission.prompt,
                video_url=submission.video_url,
                callback_url=submission.callback_url,
                request=submission.request,
                create_time=self._milliseconds(),
                outcome=settings.outcome,
                seconds=settings.processing_seconds + self._random.uniform(0, settings.processing_jitter),
                input_digest=submission.input_digest,
                service=submission.service,
                cost=settings.cost,
                is_silent=submission.is_silent,
                time_limit=submission.time_limit,
            )
            if not dry_run:
                self.credits -= job.cost
                self._jobs[job.task_id] = job
                if fault := self._faults.next("job"):
                    job.outcome = fault.kind
                    self._job_faults[job.task_id] = fault
            return job

    @property
    def jobs(self) -> list[Job]:
        """Copies of the accepted jobs, oldest first."""
        with self.lock:
            return [replace(job) for job in self._jobs.values()]

    def count_running(self, service: str) -> int:
        """Count a service's jobs that have not ended."""
        with self.lock:
            return sum(job.service == service and job.flag == GENERATING for job in self._jobs.values())

    def find_job(self, service: str, task_id: str) -> Job | None:
        """Return a copy of a job; None if the service does not know it, or has forgotten it."""
        with self.lock:
            job = self._jobs.get(task_id)
            if job is None or job.service != service:
                return None
            return None if self.clock.time() > job.create_time / 1000 + self._settings.record_ttl else replace(job)

    def find_result(self, service: str, task_id: str) -> Job | None:
        """Return a copy of a job; None if it is unknown, has no result file, or the file has expired."""
        with self.lock:
            job = self._jobs.get(task_id)
            if job is None or job.service != service or job.complete_time is None or not job.result_urls:
                return None
            expired = self.clock.time() > job.complete_time / 1000 + self._settings.result_ttl
            return None if expired else replace(job)

    def end_jobs(self) -> None:
        """End all running jobs as soon as their results are rendered, whatever their processing time."""
        with self.lock:
            for job in self._jobs.values():
                job.is_ended_early = job.flag == GENERATING
        self.clock.wake()

    def has_due_jobs(self) -> bool:
        """Whether a running job is about to end, because its time is over."""
        with self.lock:
            now = self.clock.time()
            return any(job.flag == GENERATING and job.end_time <= now for job in self._jobs.values())

    def finish(self, job: Job, failure: str | None = None) -> bool:
        """
        End a job with its configured outcome.

        :param failure: the reason if rendering failed or took too long, which fails the job whatever its outcome
        :return: False if a reset has deleted the job meanwhile
        """
        with self.lock:
            if self._jobs.get(job.task_id) is not job:
                return False
            settings = self._settings_of_failure(job)
            service = self.services[job.service]
            if failure is None and job.outcome in ("success", "callback_failed", "no_urls"):
                job.flag = CALLBACK_FAILED if job.outcome == "callback_failed" else SUCCESS
                if job.outcome != "no_urls":
                    job.origin_urls = [job.video_url]
                    job.result_urls = [service.result_url(job)]
            else:
                job.flag = CREATE_TASK_FAILED if job.outcome == "create_failed" else GENERATE_FAILED
                job.error_message = failure or settings.error_message
                service.record_failure(job, failure, settings)
            job.complete_time = self._milliseconds()
            return True

    def _settings_of_failure(self, job: Job) -> Settings:
        """Return the settings; what a fault that hit the job says about its failure takes precedence."""
        fault = self._job_faults.pop(job.task_id, None)
        if fault is None:
            return self._settings
        said = {"error_code": fault.code, "failure_code": fault.failure_code, "error_message": fault.message}
        return self._settings.changed({name: value for name, value in said.items() if value is not None})

    def expire_urls(self) -> None:
        """Expire all presigned URLs issued so far."""
        for service in self.services.values():
            service.expire_urls()

    def record_callback_attempt(self, job: Job) -> None:
        """Count an attempt to deliver a job's callback."""
        with self.lock:
            job.callback_tries += 1

    def record_callback_failure(self, job: Job) -> None:
        """Change the flag of a succeeded job to CALLBACK_FAILED; a failed job keeps its flag."""
        with self.lock:
            if job.flag == SUCCESS:
                job.flag = CALLBACK_FAILED

    # -- files

    def record_upload(self, upload: Upload) -> None:
        """Append a file that was stored."""
        with self.lock:
            self._uploads.append(upload)

    @property
    def uploads(self) -> list[Upload]:
        """The stored files, including those replaced since, oldest first."""
        with self.lock:
            return list(self._uploads)

    def _milliseconds(self) -> int:
        return int(self.clock.time() * 1000)

# SPDX-License-Identifier: Apache-2.0
"""In-memory model of the service, without HTTP or video: account, rate limits, jobs and their records."""

from __future__ import annotations

import hmac
import json
import random
import threading
import time
import unicodedata
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .faults import Fault, FaultSchedule
from .journal import Journal
from .settings import Settings

if TYPE_CHECKING:
    from .uploads import Upload

MAX_VIDEO_SECONDS = 10.0
MAX_VIDEO_BYTES = 500 * 1024 * 1024

GENERATING, SUCCESS, CREATE_TASK_FAILED, GENERATE_FAILED, CALLBACK_FAILED = range(5)


class Refusal(Exception):
    """
    A call is refused with one of the service's documented codes.

    :param style: ``status`` or ``body``; None for the style in the settings
    :param retry_after: seconds for a Retry-After header; None for the setting
    """

    def __init__(self, code: int, msg: str, *, style: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(code, msg)
        self.code = code
        self.msg = msg
        self.style = style
        self.retry_after = retry_after


@dataclass(frozen=True)
class SubmissionRequest:
    """The validated body of a submission; ``request`` is the body as it was received."""

    prompt: str
    video_url: str
    callback_url: str | None
    request: dict[str, Any]


@dataclass
class Job:
    """
    An accepted submission and its progress.

    ``create_time`` and ``complete_time`` are milliseconds of the Unix epoch, ``seconds`` is the processing time,
    ``flag`` is the successFlag, and ``outcome`` is the setting that held when the job was accepted.
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
    flag: int = GENERATING
    complete_time: int | None = None
    origin_urls: list[str] = field(default_factory=list)
    result_urls: list[str] = field(default_factory=list)
    error_code: int | None = None
    error_message: str | None = None
    callback_tries: int = 0
    is_ended_early: bool = False

    @property
    def file_name(self) -> str:
        """The name of the result file."""
        return f"modified-{self.task_id[:12]}.mp4"

    @property
    def param_json(self) -> str:
        """The request as record-info returns it, in JSON, with the key of the watermark spelled ``waterMark``."""
        renamed = {("waterMark" if key == "watermark" else key): value for key, value in self.request.items()}
        return json.dumps(renamed, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the job as plain values."""
        return asdict(self)


class SlidingWindow:
    """Sliding window log rate limiter: counts the events of the last ``seconds`` seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()

    def allows(self, limit: int) -> bool:
        """Whether another event would stay within the limit."""
        now = time.monotonic()
        while self._times and now - self._times[0] >= self._seconds:
            self._times.popleft()
        return len(self._times) < limit

    def record(self) -> None:
        """Record an event."""
        self._times.append(time.monotonic())


class Service:
    """One account of the simulated service. Its public methods are thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.base_url = ""
        self.journal = Journal()
        self.renders = 0
        self._initial = settings
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Restore the initial settings and credits, and delete all jobs, uploads and calls."""
        with self._lock:
            self._settings = self._initial
            self._random = random.Random(self._initial.seed)
            self._jobs: dict[str, Job] = {}
            self._enders: dict[str, Callable[[], object]] = {}
            self._uploads: list[Upload] = []
            self._temporary_urls: dict[str, tuple[str, float]] = {}
            self._faults = FaultSchedule(self._settings.faults)
            self._refusals = 0
            self._submissions = SlidingWindow(10)
            self._status_calls = SlidingWindow(1)
            self.credits = self._settings.credits
            self.journal.clear()

    # -- settings and faults

    @property
    def settings(self) -> Settings:
        """The current settings."""
        with self._lock:
            return self._settings

    def configure(self, changes: dict[str, Any]) -> Settings:
        """
        Change settings and return all of them.

        A change of ``credits`` replaces the balance, of ``seed`` restarts the random numbers, and of ``faults``
        restarts their counting.

        :raises pydantic.ValidationError: if a change is invalid; nothing is changed then
        """
        with self._lock:
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
        with self._lock:
            return self._faults.next(on)

    def next_refusal_style(self) -> str:
        """Return the style of the next refusal, ``status`` or ``body``."""
        with self._lock:
            style = self._settings.refusal_style
            if style != "alternate":
                return style
            self._refusals += 1
            return "status" if self._refusals % 2 else "body"

    @property
    def url(self) -> str:
        """The base of every URL in a response, without a trailing slash."""
        return (self.settings.public_url or self.base_url).rstrip("/")

    # -- API calls

    def check_api_key(self, authorization: str | None) -> None:
        """Raise Refusal 401 unless the Authorization header carries the API key."""
        expected = f"Bearer {self.settings.api_key}"
        if not hmac.compare_digest((authorization or "").encode(), expected.encode()):
            raise Refusal(401, "You do not have access permissions: the API key is missing or wrong.")

    def validate_submission(self, body: Any) -> SubmissionRequest:
        """Validate the decoded body of a submission; Refusal 422 with the reason if it is invalid."""
        if not isinstance(body, dict):
            raise Refusal(422, "The body must be a JSON object.")
        for key in ("prompt", "videoUrl"):
            if not isinstance(body.get(key), str) or not body[key].strip():
                raise Refusal(422, f"{key} is required and must be a text that is not blank.")
        for key in ("callBackUrl", "watermark"):
            if key in body and not isinstance(body[key], str):
                raise Refusal(422, f"{key} must be a text; omit it when there is none.")
        if letter := next((letter for letter in body["prompt"] if not _is_english(letter)), None):
            raise Refusal(422, f"prompt must be English; it holds the letter {letter!r}.")
        for key in ("videoUrl", "callBackUrl"):
            if key in body and not is_http_url(body[key]):
                raise Refusal(422, f"{key} must be an http or https URL.")
        return SubmissionRequest(body["prompt"], body["videoUrl"], body.get("callBackUrl"), body)

    def accept(self, submission: SubmissionRequest, input_digest: str, *, dry_run: bool = False) -> Job:
        """
        Accept and bill a submission.

        :param input_digest: SHA-256 hex digest of the input video
        :param dry_run: make the same checks, but charge and store nothing
        :raises Refusal: 402 for a low balance, 429 above a rate limit
        """
        with self._lock:
            settings = self._settings
            if self.credits < settings.cost:
                raise Refusal(
                    402, f"Credits insufficient: the balance is {self.credits:g}, a job costs {settings.cost:g}."
                )
            if not self._submissions.allows(settings.submissions_per_10_seconds):
                raise Refusal(429, "Too many submissions in 10 seconds. The request was not queued.")
            if sum(job.flag == GENERATING for job in self._jobs.values()) >= settings.max_running:
                raise Refusal(429, "Too many jobs are running. The request was not queued.")
            job = Job(
                task_id=self._new_id(),
                prompt=submission.prompt,
                video_url=submission.video_url,
                callback_url=submission.callback_url,
                request=submission.request,
                create_time=_milliseconds(),
                outcome=settings.outcome,
                seconds=settings.processing_seconds + self._random.uniform(0, settings.processing_jitter),
                input_digest=input_digest,
            )
            if not dry_run:
                self.credits -= settings.cost
                self._submissions.record()
                self._jobs[job.task_id] = job
            return job

    def record_info(self, task_id: str) -> dict[str, Any]:
        """
        Return the current ``data`` of record-info for a task.

        :raises Refusal: 404 for an unknown or expired task, 422 without a task id, 429 above the rate limit
        """
        with self._lock:
            if not self._status_calls.allows(self._settings.status_calls_per_second):
                raise Refusal(429, "Too many status calls in a second.")
            self._status_calls.record()
            if not task_id:
                raise Refusal(422, "taskId is required.")
            job = self._jobs.get(task_id)
            if job is None or time.time() > job.create_time / 1000 + self._settings.record_ttl:
                raise Refusal(404, "No such task.")
            has_video = job.flag in (SUCCESS, CALLBACK_FAILED)
            return {
                "taskId": job.task_id,
                "paramJson": job.param_json,
                "createTime": job.create_time,
                "completeTime": job.complete_time,
                "response": self._response(job) if has_video else None,
                "successFlag": job.flag,
                "errorCode": job.error_code,
                "errorMessage": job.error_message,
            }

    @staticmethod
    def _response(job: Job) -> dict[str, Any]:
        return {
            "taskId": job.task_id,
            "originUrls": list(job.origin_urls),
            "resultUrls": list(job.result_urls),
        }

    # -- progress of a job

    def register_ender(self, job: Job, end: Callable[[], object]) -> None:
        """Register a callback, safe to call from any thread, that ends a job before its processing time is over."""
        with self._lock:
            self._enders[job.task_id] = end
            if job.is_ended_early:
                end()

    def end_jobs(self) -> None:
        """End all running jobs as soon as their results are rendered, whatever their processing time."""
        with self._lock:
            for job in self._jobs.values():
                job.is_ended_early = job.flag == GENERATING
            for end in self._enders.values():
                end()

    def finish(self, job: Job, failure: str | None = None) -> bool:
        """
        End a job with its configured outcome.

        :param failure: the reason if rendering failed, which ends the job as failed whatever its outcome
        :return: False if a reset has deleted the job meanwhile
        """
        with self._lock:
            if self._jobs.get(job.task_id) is not job:
                return False
            self._enders.pop(job.task_id, None)
            settings = self._settings
            if failure is None and job.outcome in ("success", "callback_failed", "no_urls"):
                job.flag = CALLBACK_FAILED if job.outcome == "callback_failed" else SUCCESS
                if job.outcome != "no_urls":
                    job.origin_urls = [job.video_url]
                    job.result_urls = [f"{self.url}/files/results/{job.task_id}/{job.file_name}"]
            else:
                job.flag = CREATE_TASK_FAILED if job.outcome == "create_failed" else GENERATE_FAILED
                default_code = 500 if job.flag == CREATE_TASK_FAILED else 501
                job.error_code = settings.error_code if settings.error_code is not None else default_code
                job.error_message = failure or settings.error_message
            job.complete_time = _milliseconds()
            return True

    def record_callback_attempt(self, job: Job) -> None:
        """Count an attempt to deliver a job's callback."""
        with self._lock:
            job.callback_tries += 1

    def record_callback_failure(self, job: Job) -> None:
        """Change the flag of a succeeded job to CALLBACK_FAILED; a failed job keeps its flag."""
        with self._lock:
            if job.flag == SUCCESS:
                job.flag = CALLBACK_FAILED

    @property
    def jobs(self) -> list[Job]:
        """Copies of the accepted jobs, oldest first."""
        with self._lock:
            return [replace(job) for job in self._jobs.values()]

    # -- files

    def record_upload(self, upload: Upload) -> None:
        """Append a file that was stored."""
        with self._lock:
            self._uploads.append(upload)

    @property
    def uploads(self) -> list[Upload]:
        """The stored files, also those that were replaced since, oldest first."""
        with self._lock:
            return list(self._uploads)

    def find_result(self, task_id: str, name: str) -> Job | None:
        """Return the job that a result file belongs to; None if there is none or the file has expired."""
        with self._lock:
            job = self._jobs.get(task_id)
            if job is None or job.complete_time is None or not job.result_urls or job.file_name != name:
                return None
            expired = time.time() > job.complete_time / 1000 + self._settings.result_ttl
            return None if expired else job

    def create_temporary_url(self, url: Any) -> str:
        """Return a new temporary download URL for a result file; Refusal 422 for any other URL."""
        with self._lock:
            job = next((job for job in self._jobs.values() if url in job.result_urls), None)
            if job is None or self.find_result(job.task_id, job.file_name) is None:
                raise Refusal(422, "url must be a result file of this service that has not expired.")
            token = uuid.uuid4().hex
            self._temporary_urls[token] = job.task_id, time.time() + self._settings.download_url_ttl
            return f"{self.url}/files/temporary/{token}/{job.file_name}"

    def find_temporary(self, token: str, name: str) -> Job | None:
        """Return the job that a temporary download URL belongs to; None if the URL is unknown or has expired."""
        with self._lock:
            task_id, expires_at = self._temporary_urls.get(token, ("", 0.0))
            return self.find_result(task_id, name) if time.time() <= expires_at else None

    def _new_id(self) -> str:
        return uuid.UUID(int=self._random.getrandbits(128), version=4).hex


def _is_english(letter: str) -> bool:
    return not letter.isalpha() or letter < "\u0250" or unicodedata.name(letter, "").startswith("LATIN")


def is_http_url(url: str) -> bool:
    """Whether a text is a valid http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _milliseconds() -> int:
    return int(time.time() * 1000)

# SPDX-License-Identifier: Apache-2.0
"""Runner of accepted jobs: one asyncio task for each renders the result, ends the job and delivers its callback."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from . import callbacks, media
from .account import Account, Job
from .inputs import InputStore

log = logging.getLogger(__name__)

#: Outcomes that need no result file.
OUTCOMES_WITHOUT_RENDER = ("create_failed", "generate_failed")


class JobRunner:
    """
    Runs jobs in the event loop and renders in a worker thread, so that the server responds during a render.

    :param folder: where inputs, results and sample clips are stored
    :param client: for fetching inputs and delivering callbacks
    """

    def __init__(self, account: Account, folder: Path, client: httpx.AsyncClient) -> None:
        self._account = account
        self.folder = folder
        self.client = client
        self._stopping = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="luma-render")
        self._renders: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.inputs = InputStore(folder, client)

    def start(self, job: Job) -> asyncio.Event:
        """Start a job; the event is set after the first attempt at its callback, or when there will be none."""
        callback_attempted = asyncio.Event()
        task = asyncio.create_task(self._run(job, callback_attempted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return callback_attempted

    async def close(self) -> None:
        """Cancel all jobs and renders, and wait until they have ended."""
        self._stopping = True
        tasks = [*self._tasks, *self._renders.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def result_path(self, job: Job) -> Path:
        """Return the path of the job's result, which all jobs with the same input, prompt and sound share."""
        digest = hashlib.sha256(f"{job.input_digest} {job.is_silent} {job.prompt}".encode()).hexdigest()
        return self.folder / f"{digest}.mp4"

    async def sample(self, name: str) -> Path:
        """Return the path of a sample clip, drawn on first request."""
        path = self.folder / name
        if not path.exists():
            clip = await asyncio.to_thread(media.sample, name)
            # Checked again, because a concurrent request may have written the file and may be serving it now.
            if not path.exists():
                path.write_bytes(clip)
        return path

    async def _run(self, job: Job, callback_attempted: asyncio.Event) -> None:
        try:
            failure = None if job.outcome in OUTCOMES_WITHOUT_RENDER else await self._render(job)
            await self._account.clock.sleep_until(job.end_time, lambda: job.is_ended_early)
            if job.exceeds_time_limit and not job.is_ended_early:
                failure = f"The job did not end within {job.time_limit:g} seconds."
            if self._account.finish(job, failure):
                await self._deliver_callback(job, callback_attempted)
        finally:
            callback_attempted.set()

    async def _render(self, job: Job) -> str | None:
        """Wait for the render shared by all jobs with this result; return the reason if it failed."""
        target = self.result_path(job)
        if target.name not in self._renders:
            self._account.renders += 1
            source = self.inputs.path(job.input_digest)
            loop = asyncio.get_running_loop()
            self._renders[target.name] = loop.run_in_executor(
                self._executor, self._render_in_thread, source, target, job
            )
        try:
            # Shielded, because cancelling this job must not cancel a render that other jobs wait for.
            await asyncio.shield(self._renders[target.name])
        except Exception as error:
            # Any error must end the job as failed; otherwise its clients would never stop polling.
            log.exception("Rendering the result of task %s failed", job.task_id)
            return f"The video could not be rendered ({error})."
        return None

    def _render_in_thread(self, source: Path, target: Path, job: Job) -> None:
        scratch = target.with_suffix(".part")
        media.render(source, scratch, job.prompt, lambda: self._stopping, is_silent=job.is_silent)
        scratch.replace(target)

    async def _deliver_callback(self, job: Job, callback_attempted: asyncio.Event) -> None:
        settings, clock = self._account.settings, self._account.clock
        # The outcome callback_failed has already set flag 4: the callback could not be delivered.
        if not job.callback_url or not settings.callback_copies or job.outcome == "callback_failed":
            return
        await clock.sleep(settings.callback_delay)

        def on_attempt() -> None:
            self._account.record_callback_attempt(job)
            callback_attempted.set()

        for _ in range(settings.callback_copies):
            if not await callbacks.deliver(self.client, job, settings, clock, on_attempt):
                self._account.record_callback_failure(job)
                return


@asynccontextmanager
async def open_job_runner(account: Account, internal_user_agent: str) -> AsyncIterator[JobRunner]:
    """Open a job runner with its own temporary folder and HTTP client; close all three on exit."""
    client = httpx.AsyncClient(
        headers={"User-Agent": internal_user_agent},
        follow_redirects=True,
        timeout=httpx.Timeout(15.0, connect=5.0),
        limits=httpx.Limits(max_connections=None),
        # A configured web proxy could not reach this machine's loopback addresses.
        mounts={"all://127.0.0.1": None, "all://localhost": None},
    )
    with TemporaryDirectory(prefix="luma-simulator-") as folder:
        async with client:
            runner = JobRunner(account, Path(folder), client)
            try:
                yield runner
            finally:
                await runner.close()


def create_internal_user_agent() -> str:
    """Return a unique User-Agent that marks the requests a simulator sends to itself."""
    return f"luma-simulator/{uuid.uuid4().hex}"

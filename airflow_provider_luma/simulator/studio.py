# SPDX-License-Identifier: Apache-2.0
"""The studio: what happens to an accepted job, from its input to its result file and its callback."""

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
from .inputs import Inputs
from .service import Job, Service

log = logging.getLogger(__name__)

#: Jobs that have no video to render.
TOLD_TO_FAIL = ("create_failed", "generate_failed")


class Studio:
    """Works in the event loop; the rendering itself is done in a thread, so that calls are answered meanwhile."""

    def __init__(self, service: Service, folder: Path, client: httpx.AsyncClient) -> None:
        self._service = service
        self.folder = folder
        self.client = client
        self._stopping = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="luma-render")
        self._renders: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.inputs = Inputs(folder, client)

    def start(self, job: Job) -> asyncio.Event:
        """Begin work on a job; the event is set once its callback was tried, or there is none to try."""
        called_back = asyncio.Event()
        task = asyncio.create_task(self._work(job, called_back))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return called_back

    async def close(self) -> None:
        """Drop all work and wait until none is left."""
        self._stopping = True
        tasks = [*self._tasks, *self._renders.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def result_path(self, job: Job) -> Path:
        """Where the job's result is; the same for all jobs with the same input and the same look."""
        look = hashlib.sha256(f"{job.input_digest} {job.prompt}".encode()).hexdigest()
        return self.folder / f"{look}.mp4"

    async def sample(self, name: str) -> Path:
        """Where a sample clip is, drawn when it is first asked for."""
        path = self.folder / name
        if not path.exists():
            clip = await asyncio.to_thread(media.sample, name)
            if not path.exists():  # another request may have written it meanwhile, and be serving it
                path.write_bytes(clip)
        return path

    async def _work(self, job: Job, called_back: asyncio.Event) -> None:
        try:
            due = asyncio.get_running_loop().time() + job.seconds
            failure = None if job.outcome in TOLD_TO_FAIL else await self._render(job)
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if self._service.finish(job, failure):
                await self._call_back(job, called_back)
        finally:
            called_back.set()

    async def _render(self, job: Job) -> str | None:
        """Wait for the job's render, shared with all jobs that want the same; return why it failed, if it did."""
        target = self.result_path(job)
        if target.name not in self._renders:
            self._service.renders += 1
            source = self.inputs.path(job.input_digest)
            loop = asyncio.get_running_loop()
            self._renders[target.name] = loop.run_in_executor(
                self._executor, self._render_now, source, target, job.prompt
            )
        try:
            # Shielded: the other jobs still want it when this one is dropped.
            await asyncio.shield(self._renders[target.name])
        except Exception as error:
            # Whatever it is, the job must end, and badly.
            log.exception("Rendering the result of task %s failed", job.task_id)
            return f"The video could not be rendered ({error})."
        return None

    def _render_now(self, source: Path, target: Path, look: str) -> None:
        scratch = target.with_suffix(".part")
        media.render(source, scratch, look, lambda: self._stopping)
        scratch.replace(target)

    async def _call_back(self, job: Job, called_back: asyncio.Event) -> None:
        settings = self._service.settings
        # A job that was told to end with flag 4 is one whose callback never arrives.
        if not job.callback_url or not settings.callback_copies or job.outcome == "callback_failed":
            return
        await asyncio.sleep(settings.callback_delay)

        def tried() -> None:
            self._service.note_callback_try(job)
            called_back.set()

        for _ in range(settings.callback_copies):
            if not await callbacks.deliver(self.client, job, settings, tried):
                self._service.note_callback_failure(job)
                return


@asynccontextmanager
async def open_studio(service: Service, own_agent: str) -> AsyncIterator[Studio]:
    """Furnish a studio with a folder and a client of its own, and clear it away afterwards."""
    client = httpx.AsyncClient(
        headers={"User-Agent": own_agent},
        follow_redirects=True,
        timeout=httpx.Timeout(15.0, connect=5.0),
        limits=httpx.Limits(max_connections=None),
        # A proxy for the web is of no use on the way to this machine.
        mounts={"all://127.0.0.1": None, "all://localhost": None},
    )
    with TemporaryDirectory(prefix="luma-simulator-") as folder:
        async with client:
            studio = Studio(service, Path(folder), client)
            try:
                yield studio
            finally:
                await studio.close()


def new_agent() -> str:
    """Return a User-Agent by which a simulator knows the requests it makes to itself."""
    return f"luma-simulator/{uuid.uuid4().hex}"

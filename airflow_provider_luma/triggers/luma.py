# SPDX-License-Identifier: Apache-2.0
"""
Triggers that wait in the triggerer for a job, for permission to submit, or for a callback.

The triggerer imports this module in its event loop. The HTTP libraries are slow to import, so the first trigger that
runs imports them in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.core.deferral import SHORTEST_DEFERRAL, DeferralExpired, JobFinished, WaitFailed
from airflow_provider_luma.core.job import DEFAULT_SERVICE
from airflow_provider_luma.core.poll_state import PROGRESS_INTERVAL, Finished, PollState
from airflow_provider_luma.core.redaction import without_queries
from airflow_provider_luma.exceptions import LumaError

if TYPE_CHECKING:
    from airflow_provider_luma.submission.queue import SubmissionQueue


class _JobEvent(TriggerEvent):
    """An event with result addresses. Their queries may grant access, so they are left out when the event is logged."""

    def __repr__(self) -> str:
        return without_queries(super().__repr__())


class _LumaTrigger(BaseTrigger):
    """A trigger that is serialized as its constructor arguments, under the same names."""

    arguments: ClassVar[tuple[str, ...]]

    #: Those that are left out if unset: earlier versions do not accept them.
    newer_arguments: ClassVar[tuple[str, ...]] = ()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and arguments that recreate this trigger."""
        arguments = {name: getattr(self, name) for name in self.arguments}
        newer = {name: value for name in self.newer_arguments if (value := getattr(self, name))}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**arguments, **newer}


class LumaTaskTrigger(_LumaTrigger):
    """
    Fire when a Luma job has ended, or when waiting any longer cannot help.

    The event is ``{"task": ..., "request": ...}``, with the finished job from :meth:`.LumaTask.as_dict` and its request
    from ``LumaTask.request()``; or ``{"error": ...}`` from :meth:`.LumaError.as_dict`. If a callback comes first,
    its receiver resumes the task with ``{"callback": ...}``. The trigger can be stopped at any time and restarted, even
    on another triggerer, because its arguments are its only state.

    :param luma_task_id: the job's id at Luma
    :param luma_conn_id: the connection that holds the API key
    :param poll_interval: seconds between two status checks
    :param end_time: when to stop waiting, in seconds since the epoch, or None to wait indefinitely
    :param created_at: when the job was created, in seconds since the epoch, if known
    :param service: the name of the job's service: ``luma`` for Luma's own API; None for kie.ai
    """

    arguments = ("luma_task_id", "luma_conn_id", "poll_interval", "end_time")
    newer_arguments = ("created_at", "service")

    def __init__(
        self,
        luma_task_id: str,
        luma_conn_id: str = "luma_default",
        poll_interval: float = 30.0,
        end_time: float | None = None,
        created_at: float | None = None,
        service: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_task_id = luma_task_id
        self.luma_conn_id = luma_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.created_at = created_at
        self.service = service

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll the job until the wait has ended; then yield one event."""
        started = time.monotonic()
        event = await self._wait()
        await asyncio.sleep(max(0.0, SHORTEST_DEFERRAL - (time.monotonic() - started)))
        yield _JobEvent(event)  # type: ignore[call-arg]  # mypy does not see the constructor of the class above

    async def _wait(self) -> JobFinished | WaitFailed:
        state = PollState(
            self.luma_task_id,
            poll_interval=self.poll_interval,
            end_time=self.end_time,
            created_at=self.created_at,
            service=self.service or DEFAULT_SERVICE,
        )
        await _import_hooks()
        from airflow_provider_luma.hooks.luma import LumaAsyncHook
        from airflow_provider_luma.waiting.per_loop import shared
        from airflow_provider_luma.waiting.poller import WAITING_GAUGE, Poller

        try:
            async with shared(
                lambda: Poller(LumaAsyncHook(self.luma_conn_id).client), WAITING_GAUGE, self.luma_conn_id
            ) as poller:
                outcome = await poller.wait_for(state)
        except LumaError as error:
            return WaitFailed(error=error.as_dict())
        if isinstance(outcome, Finished):
            return JobFinished(task=outcome.task.as_dict(), request=outcome.task.request())
        return WaitFailed(error=outcome.reason.as_dict())

    async def on_kill(self) -> None:
        """
        Log that the job continues.

        Airflow calls this whenever something else, such as a callback or a person, resumes or ends the task.
        """
        self.log.info(
            "Trigger ended (callback received, or task cleared). Luma task %s is unaffected", self.luma_task_id
        )


class LumaSubmissionTrigger(_LumaTrigger):
    """
    Fire when a task may submit again, after Luma has refused its submission for now.

    Nothing has been accepted or billed yet.

    :param luma_conn_id: the connection that holds the API key
    :param state: the deferral's :class:`~airflow_provider_luma.core.deferral.DeferralState`, with ``first_attempt_at``
    :param until: when to fire regardless, in seconds since the epoch
    :param permitted_at: when an earlier trigger permitted the refused submission, in seconds since the epoch; None if
        the submission did not wait in a trigger
    :param not_before: the earliest time at which Luma accepts another submission, in seconds since the epoch
    :param has_too_many_jobs: whether Luma refused because too many jobs are running
    :param requests_per_minute: how many requests a minute the account is allowed, if Luma stated the limit
    """

    arguments = ("luma_conn_id", "state", "until", "permitted_at", "not_before")
    newer_arguments = ("has_too_many_jobs", "requests_per_minute")

    def __init__(
        self,
        luma_conn_id: str,
        state: Mapping[str, Any],
        until: float,
        permitted_at: float | None = None,
        not_before: float = 0.0,
        has_too_many_jobs: bool = False,
        requests_per_minute: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_conn_id = luma_conn_id
        self.state = dict(state)
        self.until = until
        self.permitted_at = permitted_at
        self.not_before = not_before
        self.has_too_many_jobs = has_too_many_jobs
        self.requests_per_minute = requests_per_minute

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait in the queue; then yield one event."""
        from airflow_provider_luma.submission.queue import WAITING_GAUGE, SubmissionQueue
        from airflow_provider_luma.waiting.per_loop import shared

        service = self.state.get("service") or DEFAULT_SERVICE
        async with shared(lambda: SubmissionQueue(service), WAITING_GAUGE, self.luma_conn_id) as queue:
            queue.on_refused(
                self.not_before,
                permitted_at=self.permitted_at,
                has_too_many_jobs=self.has_too_many_jobs,
                requests_per_minute=self.requests_per_minute,
            )
            await asyncio.sleep(SHORTEST_DEFERRAL)
            try:
                async with asyncio.timeout(max(0.0, self.until - time.time())):
                    await self._wait(queue)
            except TimeoutError:
                self.log.info("Submission time limit reached; trying one last time")
        yield TriggerEvent(DeferralExpired(state=self.state, at=time.time()))

    async def _wait(self, queue: SubmissionQueue) -> None:
        first_attempt_at = self.state.get("first_attempt_at", time.time())
        permitted = asyncio.create_task(queue.wait(first_attempt_at))
        try:
            while not (await asyncio.wait([permitted], timeout=PROGRESS_INTERVAL))[0]:
                elapsed = timedelta(seconds=round(time.time() - first_attempt_at))
                self.log.info("Queued for submission for %s; tasks in this queue: %d", elapsed, queue.length)
            await permitted
        finally:
            permitted.cancel()


class LumaCallbackTrigger(_LumaTrigger):
    """
    Keep a task deferred while it waits for the callback of a submission whose response was lost.

    The receiver of callbacks resumes the task. This trigger only fires to let the task check for a missed callback.

    :param state: the deferral's :class:`~airflow_provider_luma.core.deferral.DeferralState`, with ``reference``
    :param until: when to fire, in seconds since the epoch
    """

    arguments = ("state", "until")

    def __init__(self, state: Mapping[str, Any], until: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = dict(state)
        self.until = until

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until it is time to fire; then yield one event."""
        await asyncio.sleep(max(SHORTEST_DEFERRAL, self.until - time.time()))
        yield TriggerEvent(DeferralExpired(state=self.state, at=time.time()))


_imports: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}


def _import_in_thread() -> None:
    for module in ("async_client", "hooks.luma"):
        importlib.import_module(f"airflow_provider_luma.{module}")


async def _import_hooks() -> None:
    """Import the HTTP libraries in a thread, once for all triggers that start together: there may be a thousand."""
    loop = asyncio.get_running_loop()
    if loop not in _imports:
        _imports[loop] = loop.create_task(asyncio.to_thread(_import_in_thread))
        _imports[loop].add_done_callback(lambda _: _imports.pop(loop))
    await asyncio.shield(_imports[loop])

# SPDX-License-Identifier: Apache-2.0
"""
Waiting in the triggerer: for a turn to submit, and for the job, so that no worker slot is held meanwhile.

The triggerer imports this module in its event loop, so what takes long to import, the HTTP libraries, is imported in a
thread by the first trigger that runs.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.exceptions import LumaError
from airflow_provider_luma.waiting import PROGRESS_INTERVAL, Watch

if TYPE_CHECKING:
    from airflow_provider_luma.poller import SubmissionLine

#: Seconds for which a task stays deferred at least. Airflow fails a task that is resumed and queued before the
#: scheduler has taken note that its worker ended ("executor reported success, but the task instance's state is
#: queued"); up to 5 seconds pass until the worker's supervisor notices that, and then a turn of the scheduler's loop.
SHORTEST_WAIT = 8.0


class LumaTaskTrigger(BaseTrigger):
    """
    Fire when a Luma job has ended, or when waiting for it makes no more sense.

    The event is ``{"task": ...}`` with the finished job as :meth:`LumaTask.as_dict` gives it, and ``"request"`` with
    what was asked for; or ``{"error": ...}`` as :meth:`LumaError.as_dict` gives it. Where Luma calls back, the
    receiver may resume the task in the meantime, with ``{"callback": ...}``. The trigger can be stopped and started
    again, on another triggerer too, at any time: it keeps nothing but what it was given.

    :param luma_task_id: the job's id at Luma
    :param luma_conn_id: the connection that holds the API key
    :param poll_interval: seconds between two looks at the job
    :param end_time: when to stop waiting, in seconds since the epoch, or None to wait for ever
    :param made: when the job was made, in seconds since the epoch, if that is known
    """

    def __init__(
        self,
        luma_task_id: str,
        luma_conn_id: str = "luma_default",
        poll_interval: float = 30.0,
        end_time: float | None = None,
        made: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_task_id = luma_task_id
        self.luma_conn_id = luma_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.made = made

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger anew."""
        arguments = {
            "luma_task_id": self.luma_task_id,
            "luma_conn_id": self.luma_conn_id,
            "poll_interval": self.poll_interval,
            "end_time": self.end_time,
        }
        if self.made is not None:
            arguments["made"] = self.made
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the job until it has ended; yield one event."""
        started = time.monotonic()
        event = await self._wait()
        await asyncio.sleep(max(0.0, SHORTEST_WAIT - (time.monotonic() - started)))
        yield event

    async def _wait(self) -> TriggerEvent:
        watch = Watch(self.luma_task_id, poll_interval=self.poll_interval, end_time=self.end_time, made=self.made)
        await _import_poller()
        from airflow_provider_luma.poller import Poller, shared

        try:
            async with shared(Poller, self.luma_conn_id) as poller:
                task = await poller.wait_for(watch)
        except LumaError as error:
            return TriggerEvent({"error": error.as_dict()})
        return TriggerEvent({"task": task.as_dict(), "request": task.request()})

    async def on_kill(self) -> None:
        """
        Say that the job goes on.

        Airflow also calls this when a callback resumes the task, so it must not claim that anything was lost.
        """
        self.log.info(
            "No longer waiting here for Luma task %s: its callback came, or a person ended the wait. Luma cannot "
            "cancel a job: unless it has ended already, it goes on there under this id, and is billed",
            self.luma_task_id,
        )


class LumaSubmissionTrigger(BaseTrigger):
    """
    Fire when it is a task's turn to submit, after Luma has refused it for being one too many, or being unavailable.

    The event is ``{"turn": ...}``, the time in seconds since the epoch. Nothing was submitted so far, and nothing
    billed.

    :param luma_conn_id: the connection that holds the API key
    :param since: when the task first wanted to submit, in seconds since the epoch: who waits longest is first
    :param until: when to fire in any case, in seconds since the epoch
    :param turn: when the task was given the turn that was refused, in seconds since the epoch; None if it had tried
        without one
    :param not_before: until when Luma wants no submission, in seconds since the epoch
    """

    def __init__(
        self,
        luma_conn_id: str,
        since: float,
        until: float,
        turn: float | None = None,
        not_before: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_conn_id = luma_conn_id
        self.since = since
        self.until = until
        self.turn = turn
        self.not_before = not_before

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "luma_conn_id": self.luma_conn_id,
                "since": self.since,
                "until": self.until,
                "turn": self.turn,
                "not_before": self.not_before,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Line up; yield one event."""
        await _import_poller()
        from airflow_provider_luma.poller import SubmissionLine, shared

        async with shared(SubmissionLine, self.luma_conn_id) as line:
            line.refused(self.not_before, turn=self.turn)
            await asyncio.sleep(SHORTEST_WAIT)
            try:
                async with asyncio.timeout(max(0.0, self.until - time.time())):
                    await self._wait(line)
            except TimeoutError:
                self.log.info("The time to wait for a turn is over: trying once more")
        yield TriggerEvent({"turn": time.time()})

    async def _wait(self, line: SubmissionLine) -> None:
        waiting = asyncio.create_task(line.wait(self.since))
        try:
            while not (await asyncio.wait([waiting], timeout=PROGRESS_INTERVAL))[0]:
                elapsed = timedelta(seconds=round(time.time() - self.since))
                self.log.info("Waiting for %s for a turn to submit; %d tasks wait here", elapsed, line.length)
            await waiting
        finally:
            waiting.cancel()


class LumaCallbackTrigger(BaseTrigger):
    """
    Keep a task deferred that waits for the callback of a submission whose answer was lost.

    It is the receiver of callbacks that resumes the task. This trigger fires, with an empty event, only to have the
    task see whether it was missed.

    :param reference: the submission
    :param until: when to fire, in seconds since the epoch
    """

    def __init__(self, reference: str, until: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reference = reference
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"reference": self.reference, "until": self.until},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until then; yield one event."""
        await asyncio.sleep(max(SHORTEST_WAIT, self.until - time.time()))
        yield TriggerEvent({})


_imports: dict[asyncio.AbstractEventLoop, asyncio.Task[ModuleType]] = {}


async def _import_poller() -> None:
    """Import the HTTP libraries in a thread: once for all triggers that start together, which may be a thousand."""
    loop = asyncio.get_running_loop()
    if loop not in _imports:
        _imports[loop] = loop.create_task(asyncio.to_thread(importlib.import_module, "airflow_provider_luma.poller"))
        _imports[loop].add_done_callback(lambda _: _imports.pop(loop))
    await asyncio.shield(_imports[loop])

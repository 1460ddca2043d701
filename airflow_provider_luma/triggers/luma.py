# SPDX-License-Identifier: Apache-2.0
"""Waiting for a Luma job in the triggerer, so that no worker slot is held while a video is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_luma.exceptions import LumaError
from airflow_provider_luma.hooks.luma import LumaAsyncHook
from airflow_provider_luma.protocol import LumaTask
from airflow_provider_luma.waiting import Watch

#: Seconds for which a task stays deferred at least. A task that is resumed before the scheduler has taken note of its
#: deferral is failed by Airflow ("executor reported success, but the task instance's state is queued").
SHORTEST_WAIT = 5.0


class LumaTaskTrigger(BaseTrigger):
    """
    Fire when a Luma job has ended, or when waiting for it makes no more sense.

    The event is ``{"task": ...}`` with the finished job as :meth:`LumaTask.as_dict` gives it, or
    ``{"error": ...}`` as :meth:`LumaError.as_dict` gives it. The trigger can be stopped and started again, on
    another triggerer too, at any time: it keeps nothing but what it was given.

    :param luma_task_id: the job's id at Luma
    :param luma_conn_id: the connection that holds the API key
    :param poll_interval: seconds between two looks at the job
    :param end_time: when to stop waiting, in seconds since the epoch, or None to wait for ever
    """

    def __init__(
        self,
        luma_task_id: str,
        luma_conn_id: str = "luma_default",
        poll_interval: float = 30.0,
        end_time: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.luma_task_id = luma_task_id
        self.luma_conn_id = luma_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger anew."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "luma_task_id": self.luma_task_id,
                "luma_conn_id": self.luma_conn_id,
                "poll_interval": self.poll_interval,
                "end_time": self.end_time,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the job until it has ended; yield one event."""
        started = time.monotonic()
        event = await self._wait()
        await asyncio.sleep(max(0.0, SHORTEST_WAIT - (time.monotonic() - started)))
        yield event

    async def _wait(self) -> TriggerEvent:
        watch = Watch(self.luma_task_id, poll_interval=self.poll_interval, end_time=self.end_time)
        try:
            async with LumaAsyncHook(self.luma_conn_id) as hook:
                outcome = await hook.look(watch)
                while not isinstance(outcome, LumaTask):
                    await asyncio.sleep(outcome)
                    outcome = await hook.look(watch)
        except LumaError as error:
            return TriggerEvent({"error": error.as_dict()})
        return TriggerEvent({"task": outcome.as_dict()})

    async def on_kill(self) -> None:
        """
        Say that the job goes on.

        Airflow also calls this when something other than the trigger resumes the task, so it must not claim that
        anything was lost.
        """
        self.log.warning(
            "No longer waiting here for Luma task %s. Luma cannot cancel a job: unless it has ended already, it "
            "goes on there under this id, and is billed",
            self.luma_task_id,
        )

# SPDX-License-Identifier: Apache-2.0
"""
What operator and sensor share: waiting for a job in the triggerer, and what it means to be woken.

A task can be woken by its trigger, which has seen the job end or gives up, or by a callback. A callback is only a
doorbell: the woken task asks Luma, and if the job is still running it lies down again, with the deadlines it had.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator

from airflow_provider_luma.exceptions import TRANSIENT, LumaError

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


class LumaDeferral(BaseOperator):
    """
    An operator's part: being deferred until a Luma job has ended.

    What is passed on from one deferral to the next is also what the receiver of callbacks knows a waiting task by.
    """

    luma_conn_id: str

    def _defer_for_job(
        self,
        luma_task_id: str,
        *,
        poll_interval: float,
        end_time: float,
        execution_deadline: float | None = None,
        made: float | None = None,
    ) -> NoReturn:
        """
        Wait for a job in the triggerer.

        :param end_time: when to stop waiting, in seconds since the epoch
        :param execution_deadline: when ``execution_timeout`` ends an earlier deferral of this try; None if this is
            the first
        :param made: when the job was made, in seconds since the epoch, if that is known
        """
        from airflow_provider_luma.triggers.luma import LumaTaskTrigger

        self._defer_with_deadline(
            LumaTaskTrigger(luma_task_id, self.luma_conn_id, poll_interval, end_time, made),
            "execute_complete",
            execution_deadline,
            luma_task_id=luma_task_id,
            end_time=end_time,
        )

    def _defer_with_deadline(
        self, trigger: BaseTrigger, method_name: str, execution_deadline: float | None, **kwargs: Any
    ) -> NoReturn:
        timeout = self.execution_timeout
        if timeout is not None and execution_deadline is not None:
            timeout = timedelta(seconds=max(0.0, execution_deadline - time.time()))
        elif timeout is not None:
            execution_deadline = time.time() + timeout.total_seconds()
        kwargs["execution_deadline"] = execution_deadline
        self.defer(trigger=trigger, method_name=method_name, kwargs=kwargs, timeout=timeout)

    def _ended(
        self,
        event: dict[str, Any],
        *,
        luma_task_id: str | None,
        poll_interval: float,
        end_time: float | None,
        execution_deadline: float | None,
    ) -> dict[str, Any]:
        """
        Return the ``task`` and ``request`` of the job that has ended well; wait on if a callback came too soon.

        :raises LumaError: what ended the wait
        """
        if "error" in event:
            raise LumaError.from_dict(event["error"])
        if "callback" not in event:
            return event
        assert luma_task_id is not None and end_time is not None, "only who waits for a job is called"
        from airflow_provider_luma.hooks.luma import LumaHook
        from airflow_provider_luma.waiting import INTERVALS_WITH_CALLBACK

        try:
            task = LumaHook(self.luma_conn_id).check(luma_task_id, patiently=True)
        except TRANSIENT as error:
            self.log.warning("Luma called back, but cannot be asked: %s", error)
            task = None
        if task is None:
            self.log.info("There was a callback for Luma task %s, but it has not ended: waiting on", luma_task_id)
            self._defer_for_job(
                luma_task_id,
                # Should Luma's records only be behind its callback: there will be no other, so look as often as ever.
                poll_interval=poll_interval / INTERVALS_WITH_CALLBACK,
                end_time=end_time,
                execution_deadline=execution_deadline,
            )
        return {"task": task.as_dict(), "request": task.request()}

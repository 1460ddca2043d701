# SPDX-License-Identifier: Apache-2.0
"""
The sensor that waits for a Luma job somebody else submitted.

A DAG file is parsed every half a minute, so this module imports the hook, and with it the HTTP libraries, only
when a task runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_luma import protocol
from airflow_provider_luma.exceptions import TRANSIENT, LumaError, LumaTimeoutError

if TYPE_CHECKING:
    from airflow.sdk import Context


class LumaTaskSensor(BaseSensorOperator):
    """
    Wait until a Luma job has ended well; fail if it has failed, or if Luma does not know it.

    Returns, and pushes key by key, what :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator` does.

    By default the wait is deferred to the triggerer. With ``deferrable=False`` the modes ``poke`` and
    ``reschedule`` are those of every sensor; keep ``poke_interval`` at a minute or more in ``reschedule`` mode.

    :param luma_task_id: the job's id at Luma, e.g. ``submit.output["luma_task_id"]`` (templated)
    :param luma_conn_id: the connection, of type Luma, of the account it belongs to (templated)
    :param deferrable: wait in the triggerer
    :param poke_interval: seconds, or a timedelta, between two looks at the job; the service recommends 30
    """

    template_fields: Sequence[str] = ("luma_task_id", "luma_conn_id")
    ui_color = "#f0e6fa"

    def __init__(
        self,
        *,
        luma_task_id: str,
        luma_conn_id: str = "luma_default",
        deferrable: bool = True,
        poke_interval: timedelta | float = 30,
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, multiple_outputs=multiple_outputs, **kwargs)
        self.luma_task_id = luma_task_id
        self.luma_conn_id = luma_conn_id
        self.deferrable = deferrable
        protocol.check_positive("poke_interval", self.poke_interval)
        protocol.check_positive("timeout", self.timeout)
        if isinstance(luma_task_id, str):
            protocol.check_luma_task_id(luma_task_id)

    def execute(self, context: Context) -> Any:
        """Wait for the job in the triggerer, or as any other sensor does."""
        from airflow_provider_luma.hooks.luma import LumaHook

        try:
            protocol.check_luma_task_id(self.luma_task_id)
            LumaHook(self.luma_conn_id).get_luma_connection()  # what is wrong with it had better be said now
            if self.deferrable:
                self._defer()
            return super().execute(context)
        except LumaError as error:
            raise self._ending(error) from error

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the job; a doubt that the next seconds will resolve is waited out here."""
        from airflow_provider_luma.hooks.luma import LumaHook

        try:
            task = LumaHook(self.luma_conn_id).check(self.luma_task_id)
        except TRANSIENT:
            task = None  # told in the log already; the next poke asks again
        except LumaError as error:
            raise self._ending(error) from error
        return PokeReturnValue(is_done=task is not None, xcom_value=task and task.as_dict())

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take up the trigger's event: return the result, or raise what ended the wait."""
        if "error" in event:
            error = LumaError.from_dict(event["error"])
            raise self._ending(error) from error
        result: dict[str, Any] = event["task"]
        self.log.info("Luma task %s is done: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        return result

    def _defer(self) -> None:
        from airflow_provider_luma.triggers.luma import LumaTaskTrigger

        self.log.info("Waiting for Luma task %s in the triggerer", self.luma_task_id)
        self.defer(
            trigger=LumaTaskTrigger(
                self.luma_task_id, self.luma_conn_id, self.poke_interval, time.time() + self.timeout
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )

    def _ending(self, error: LumaError) -> Exception:
        """Return what a sensor raises: a retry cannot change how a job has ended, and soft_fail means skip."""
        if self.soft_fail or self.never_fail:
            return AirflowSkipException(str(error))
        kind = AirflowSensorTimeout if isinstance(error, LumaTimeoutError) else AirflowFailException
        return kind(str(error))

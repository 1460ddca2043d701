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
from airflow_provider_luma.deferral import LumaDeferral
from airflow_provider_luma.exceptions import TRANSIENT, LumaError, LumaTimeoutError
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure

if TYPE_CHECKING:
    from airflow.sdk import Context


class LumaTaskSensor(LumaDeferral, BaseSensorOperator):
    """
    Wait until a Luma job has ended well; fail if it has failed, or if Luma does not know it.

    Returns, and pushes key by key, what :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator` does.

    By default the wait is deferred to the triggerer. With ``deferrable=False`` the modes ``poke`` and
    ``reschedule`` are those of every sensor; keep ``poke_interval`` at a minute or more in ``reschedule`` mode.

    :param luma_task_id: the job's id at Luma, e.g. ``submit.output["luma_task_id"]`` (templated)
    :param luma_conn_id: the connection, of type Luma, of the account it belongs to (templated)
    :param deferrable: wait in the triggerer
    :param poke_interval: seconds, or a timedelta, between two looks at the job; the service recommends 30. If
        deferrable, and Luma calls Airflow back about the job, ten times as long
    """

    template_fields: Sequence[str] = ("luma_task_id", "luma_conn_id")
    operator_extra_links = (LumaResultLink(),)
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

        with pushed_failure(context):
            try:
                protocol.check_luma_task_id(self.luma_task_id)
                LumaHook(self.luma_conn_id).get_luma_connection()  # what is wrong with it had better be said now
            except LumaError as error:
                raise self._ending(error) from error
            self._show(context)
            if self.deferrable:
                self.log.info("Waiting for Luma task %s in the triggerer", self.luma_task_id)
                self._defer_for_job(
                    self.luma_task_id, poll_interval=self.poke_interval, end_time=time.time() + self.timeout
                )
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the job; a doubt that the next seconds will resolve is waited out here."""
        from airflow_provider_luma.hooks.luma import LumaHook

        try:
            task = LumaHook(self.luma_conn_id).check(self.luma_task_id)
        except TRANSIENT:
            task = None  # told in the log already; the next poke asks again
        except LumaError as error:
            raise self._ending(error) from error
        if task is not None:
            push_request(context, **task.request())
        return PokeReturnValue(is_done=task is not None, xcom_value=task and task.as_dict())

    def execute_complete(
        self,
        context: Context,
        event: dict[str, Any],
        luma_task_id: str | None = None,
        end_time: float | None = None,
        execution_deadline: float | None = None,
    ) -> dict[str, Any]:
        """Take up the trigger's event, or a callback: return the result, raise what ended the wait, or wait on."""
        with pushed_failure(context):
            try:
                ended = self._ended(
                    event,
                    luma_task_id=luma_task_id,
                    poll_interval=self.poke_interval,
                    end_time=end_time,
                    execution_deadline=execution_deadline,
                )
            except LumaError as error:
                raise self._ending(error) from error
        push_request(context, **ended["request"])
        result: dict[str, Any] = ended["task"]
        self.log.info("Luma task %s is done: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        return result

    def _show(self, context: Context) -> None:
        """Let the result page find the job while it runs."""
        LumaResultLink().push(self, context)
        context["ti"].xcom_push(key="luma_task_id", value=self.luma_task_id)

    def _ending(self, error: LumaError) -> Exception:
        """Return what a sensor raises: a retry cannot change how a job has ended, and soft_fail means skip."""
        if self.soft_fail or self.never_fail:
            return AirflowSkipException(str(error))
        kind = AirflowSensorTimeout if isinstance(error, LumaTimeoutError) else AirflowFailException
        return kind(str(error))

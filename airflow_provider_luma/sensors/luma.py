# SPDX-License-Identifier: Apache-2.0
"""
The sensor that waits for a Luma job submitted elsewhere.

DAG files are parsed every 30 seconds, so this module imports the hook, and with it the HTTP libraries, only when a task
runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_luma.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_luma.core.deferral import DeferralState, JobFinished
from airflow_provider_luma.core.validation import check_luma_task_id, check_positive
from airflow_provider_luma.exceptions import TRANSIENT, LumaAuthError, LumaError, LumaNotFoundError, LumaTimeoutError
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator, shown_results

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_luma.core.deferral import Event


class LumaTaskSensor(LumaBaseOperator, BaseSensorOperator):
    """
    Wait until a Luma job has succeeded; fail if the job fails or Luma does not know it.

    Returns and pushes the same as :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator`.

    By default the task waits in the triggerer. With ``deferrable=False``, the modes ``poke`` and ``reschedule`` work as
    for every sensor; use a ``poke_interval`` of a minute or more in ``reschedule`` mode.

    :param luma_task_id: the job's id at Luma, e.g. ``submit.output["luma_task_id"]`` (templated)
    :param luma_conn_id: the connection of type Luma, of the account that submitted the job (templated)
    :param deferrable: wait in the triggerer. If False, ``mode`` says whether the task holds a worker slot
    :param poke_interval: seconds (or a timedelta) between two status checks; kie.ai recommends 30. Ten times as long if
        the task is deferrable and kie.ai calls Airflow when the job ends
    :raises LumaValidationError: a parameter is invalid
    """

    template_fields: Sequence[str] = ("luma_task_id", "luma_conn_id")
    operator_extra_links = (LumaResultLink(),)
    ui_color = "#f0e6fa"

    #: The video that was modified, once the job has ended.
    video_url: str | None = None

    #: Whether a status check in this process has found the job.
    _is_known = False

    #: The service that the connection led to when this process began to wait.
    _service: str | None = None

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
        check_positive("poke_interval", self.poke_interval)
        check_positive("timeout", self.timeout)
        if isinstance(luma_task_id, str):
            check_luma_task_id(luma_task_id)

    def execute(self, context: Context) -> Any:
        """Wait for the job in the triggerer or, if not deferrable, like any other sensor."""
        from airflow_provider_luma.submission.store import SubmissionStore

        with pushed_failure(context):
            try:
                check_luma_task_id(self.luma_task_id)
                client = self.hook.get_checked_client()  # raise its errors now rather than wait them out
                self._service = client.connection.service_name
                if self.deferrable:
                    client.check_wait_in_triggerer()
            except LumaError as error:
                raise self._ending(error) from error
            LumaResultLink().push(self, context)
            # For the result page, while the task runs or if it fails; prompt and video come with the finished job.
            context["ti"].xcom_push(key="luma_task_id", value=self.luma_task_id)
            push_request(context, prompt=None, video_url=None, recovery=SubmissionStore.recovery_hint)
            if self.deferrable:
                self.log.info("Waiting for Luma task %s in the triggerer", self.luma_task_id)
                from airflow_provider_luma.core.job import DEFAULT_SERVICE

                service = None if self._service == DEFAULT_SERVICE else self._service
                state = DeferralState(self.luma_task_id, end_time=time.time() + self.timeout, service=service)
                self.defer_for_job(state, poll_interval=self.poke_interval)
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Check the job's status; briefly repeat a check whose result may still change."""
        try:
            task = self.hook.check_job(self.luma_task_id, service=self._service)
        except TRANSIENT:
            return PokeReturnValue(is_done=False)  # already logged; the next poke checks again
        except (LumaAuthError, LumaNotFoundError) as error:
            if not self._is_known and not context.get("task_reschedule_count"):
                raise self._ending(error) from error
            self.log.warning("%s. Still waiting: the job keeps running at Luma", error)
            return PokeReturnValue(is_done=False)
        except LumaError as error:
            raise self._ending(error) from error
        self._is_known = True
        if not task.is_finished:
            return PokeReturnValue(is_done=False)
        job = JobFinished(task=task.as_dict(), request=task.request())
        return PokeReturnValue(is_done=True, xcom_value=self._finished(job, context))

    def execute_complete(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Return the job's result, raise the error that ended the wait, or defer again after a premature callback."""
        with pushed_failure(context):
            try:
                finished = self.resume_wait(event, DeferralState.read(state, event), poll_interval=self.poke_interval)
            except LumaError as error:
                raise self._ending(error) from error
        task = finished["task"]
        self.log.info("Luma task %s is finished: %s", task["luma_task_id"], shown_results(task))
        return self._finished(finished, context)

    def _finished(self, job: JobFinished, context: Context) -> dict[str, Any]:
        """Return the job's result, and show the job on the result page, in asset events and for lineage."""
        result, request = job["task"], job["request"]
        push_request(context, **request)
        self.report_job(result, context, prompt=request["prompt"], source=request["video_url"])
        self.video_url = request["video_url"]
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the source video if the service records it, the result and the job for OpenLineage."""
        from airflow_provider_luma.lineage import job_lineage

        return job_lineage(self.video_url, self.result)

    def _ending(self, error: LumaError) -> Exception:
        """Return the exception to raise: a retry cannot change how the job ended, and soft_fail means skip."""
        if self.soft_fail or self.never_fail:
            return AirflowSkipException(str(error))
        kind = AirflowSensorTimeout if isinstance(error, LumaTimeoutError) else AirflowFailException
        return kind(str(error))

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

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_luma.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_luma.core.deferral import DeferralState, JobFinished
from airflow_provider_luma.core.validation import check_luma_task_id, check_positive
from airflow_provider_luma.exceptions import TRANSIENT, LumaAuthError, LumaError, LumaTimeoutError
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator, shown_results

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_luma.core.deferral import Event


class LumaTaskSensor(LumaBaseOperator, BaseSensorOperator):
    """
    Wait until a Luma job has ended well; fail if it has failed, or if Luma does not know it.

    Returns, and pushes key by key, what :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator` does.

    By default the wait is deferred to the triggerer. With ``deferrable=False`` the modes ``poke`` and
    ``reschedule`` are those of every sensor; keep ``poke_interval`` at a minute or more in ``reschedule`` mode.

    :param luma_task_id: the job's id at Luma, e.g. ``submit.output["luma_task_id"]`` (templated)
    :param luma_conn_id: the connection, of type Luma, of the account it belongs to (templated)
    :param deferrable: wait in the triggerer
    :param poke_interval: seconds, or a timedelta, between two status checks; the service recommends 30. If
        deferrable, and Luma calls Airflow when the job ends, ten times as long
    """

    template_fields: Sequence[str] = ("luma_task_id", "luma_conn_id")
    operator_extra_links = (LumaResultLink(),)
    ui_color = "#f0e6fa"

    #: What was modified, once the job has ended.
    video_url: str | None = None

    #: Whether this process has seen the job.
    _is_known = False

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
        """Wait for the job in the triggerer, or as any other sensor does."""
        from airflow_provider_luma.submission.store import SubmissionStore

        with pushed_failure(context):
            try:
                check_luma_task_id(self.luma_task_id)
                client = self.hook.get_checked_client()  # an error in it is better raised now than waited out
                if self.deferrable:
                    client.check_wait_in_triggerer()
            except LumaError as error:
                raise self._ending(error) from error
            LumaResultLink().push(self, context)
            # For the result page, while it runs or should it fail; prompt and video come with the job.
            context["ti"].xcom_push(key="luma_task_id", value=self.luma_task_id)
            push_request(context, prompt=None, video_url=None, recovery=SubmissionStore.recovery_hint)
            if self.deferrable:
                self.log.info("Waiting for Luma task %s in the triggerer", self.luma_task_id)
                from airflow_provider_luma.core.job import DEFAULT_SERVICE

                name = client.connection.service_name
                service = None if name == DEFAULT_SERVICE else name
                state = DeferralState(self.luma_task_id, end_time=time.time() + self.timeout, service=service)
                self.defer_for_job(state, poll_interval=self.poke_interval)
            return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Check the job's status; a doubt that the next seconds will resolve is waited out here."""
        try:
            task = self.hook.check_job(self.luma_task_id)
        except TRANSIENT:
            return PokeReturnValue(is_done=False)  # logged already; the next poke asks again
        except LumaAuthError as error:
            if not self._is_known and not context.get("task_reschedule_count"):
                raise self._ending(error) from error
            self.log.warning("%s. The job runs on, and is still waited for", error)
            return PokeReturnValue(is_done=False)
        except LumaError as error:
            raise self._ending(error) from error
        self._is_known = True
        if not task.is_finished:
            return PokeReturnValue(is_done=False)
        job = JobFinished(task=task.as_dict(), request=task.request())
        return PokeReturnValue(is_done=True, xcom_value=self._finished(job, context))

    def execute_complete(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Return the job's result, raise what ended the wait, or keep waiting after a callback that came too early."""
        with pushed_failure(context):
            try:
                finished = self.resume_wait(event, DeferralState.read(state, event), poll_interval=self.poke_interval)
            except LumaError as error:
                raise self._ending(error) from error
        task = finished["task"]
        self.log.info("Luma task %s is finished: %s", task["luma_task_id"], shown_results(task))
        return self._finished(finished, context)

    def _finished(self, job: JobFinished, context: Context) -> dict[str, Any]:
        """Return the job's result, and name the job on the result page, in asset events and for lineage."""
        result, asked = job["task"], job["request"]
        push_request(context, **asked)
        self.report_job(result, context, prompt=asked["prompt"], source=asked["video_url"])
        self.video_url = asked["video_url"]
        return result

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Name the source video, as Luma has recorded it, the result and the job, for OpenLineage."""
        from airflow_provider_luma.lineage import job_lineage

        return job_lineage(self.video_url, self.result)

    def _ending(self, error: LumaError) -> Exception:
        """Return what a sensor raises: a retry cannot change how a job has ended, and soft_fail means skip."""
        if self.soft_fail or self.never_fail:
            return AirflowSkipException(str(error))
        kind = AirflowSensorTimeout if isinstance(error, LumaTimeoutError) else AirflowFailException
        return kind(str(error))

# SPDX-License-Identifier: Apache-2.0
"""What operators and sensors share: a cached hook, and deferring until a job has ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator

from airflow_provider_luma.compat import AirflowException, literal
from airflow_provider_luma.core.deferral import JobFinished
from airflow_provider_luma.core.redaction import without_secrets
from airflow_provider_luma.exceptions import TRANSIENT, LumaAuthError, LumaError

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_luma.core.deferral import DeferralState, Event
    from airflow_provider_luma.hooks.luma import LumaHook


def is_literal(value: object) -> bool:
    """Return whether a value is final when the DAG is parsed: neither a template nor another task's output."""
    return value is None or (isinstance(value, str) and "{{" not in value and "{%" not in value)


def items_of(values: Iterable[Any]) -> list[Any]:
    """Return the items as a list. Iterating over Airflow's XCom sequence reads one item too many, and logs an error."""
    return [values[index] for index in range(len(values))] if isinstance(values, Sequence) else list(values)


def shown_results(result: Mapping[str, Any]) -> str:
    """Return the addresses of a job's results, fit for a log."""
    return ", ".join(map(without_secrets, result["result_urls"]))


#: The type that :func:`airflow.sdk.literal` returns; Airflow has no public name for it.
LiteralValue = type(literal(""))


class TemplatedOperator(BaseOperator):
    """An operator whose template fields accept literals, including those from ``expand_kwargs``."""

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a template, or resolve a literal, which Airflow leaves unresolved after ``expand_kwargs``."""
        if isinstance(content, LiteralValue):
            return content.resolve(context)
        return super().render_template(content, context, jinja_env, seen_oids)


class MaskingOperator(BaseOperator):
    """
    An operator whose rendered fields may hold signed addresses, which Airflow stores and shows.

    List it first among the base classes, so that it masks what the others render.
    """

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a template, and mask the signatures of addresses in the result."""
        from airflow_provider_luma.files.masking import mask_queries

        rendered = super().render_template(content, context, jinja_env, seen_oids)
        mask_queries(rendered)
        return rendered


class LumaBaseOperator(TemplatedOperator):
    """An operator that waits for Luma jobs in the triggerer."""

    luma_conn_id: str

    #: The result that the task returned, for lineage; empty until it has succeeded.
    result: Mapping[str, Any] = MappingProxyType({})

    #: Set when Airflow calls ``on_kill``.
    is_killed = False

    @cached_property
    def hook(self) -> LumaHook:
        """The hook for this task's connection."""
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id)

    def report_job(self, result: dict[str, Any], context: Context, *, prompt: object, source: object) -> None:
        """
        Add the job to the asset events of the task's outlets, and keep its result for lineage.

        :param result: what the task returns
        :param prompt: the job's prompt
        :param source: the video that was modified
        """
        from airflow_provider_luma.files.masking import mask_queries

        mask_queries(result.get("result_urls"))
        if self.outlets:
            from airflow_provider_luma.asset_events import update_outlets_of_job

            update_outlets_of_job(self, context, result, prompt=prompt, source=source, facts=self.facts_of_run)
        self.result = result

    def facts_of_run(self, context: Context) -> dict[str, Any]:
        """Return what the asset events say about the DAG run."""
        return {}

    def on_kill(self) -> None:
        """Stop the task from sending anything else."""
        self.is_killed = True

    def fail_if_killed(self) -> None:
        """
        Stop a killed task just before it sends anything.

        :raises AirflowException: the task was killed
        """
        if self.is_killed:
            raise AirflowException("The task was killed before its submission was sent; nothing was submitted")

    def defer_with(self, trigger: BaseTrigger, method_name: str, state: DeferralState) -> NoReturn:
        """
        Defer the task. ``execution_timeout`` counts from the first deferral of this try.

        :param trigger: the trigger that resumes the task
        :param method_name: the method with which the task resumes
        :param state: what that method receives
        """
        state = state._replace(luma_conn_id=self.luma_conn_id)
        timeout = self.execution_timeout
        if timeout is not None and state.execution_deadline is not None:
            timeout = timedelta(seconds=max(0.0, state.execution_deadline - time.time()))
        elif timeout is not None:
            state = state._replace(execution_deadline=time.time() + timeout.total_seconds())
        self.defer(trigger=trigger, method_name=method_name, kwargs=state.as_kwargs(), timeout=timeout)

    def defer_for_job(self, state: DeferralState, *, poll_interval: float) -> NoReturn:
        """
        Defer the task until a job has ended.

        :param state: the job, and when the wait ends
        :param poll_interval: seconds between two status checks
        """
        from airflow_provider_luma.triggers.luma import LumaTaskTrigger

        assert state.luma_task_id is not None, "only a job with an id can be waited for"
        trigger = LumaTaskTrigger(
            state.luma_task_id, self.luma_conn_id, poll_interval, state.end_time, state.created_at, state.service
        )
        self.defer_with(trigger, "execute_complete", state)

    def resume_wait(self, event: Event, state: DeferralState, *, poll_interval: float) -> JobFinished:
        """
        Return the finished job, or defer again if a callback came too early.

        :param event: what resumed the task: a trigger's event or a callback
        :param state: the state of the deferral that has ended
        :param poll_interval: seconds between two status checks
        :raises LumaError: the job failed, or the wait ended for another reason
        """
        from airflow_provider_luma.core.backoff import READ_RETRY_TIMEOUT
        from airflow_provider_luma.core.callback_token import is_ours, reference_of
        from airflow_provider_luma.core.decision import new_reference
        from airflow_provider_luma.core.job import DEFAULT_SERVICE
        from airflow_provider_luma.core.poll_state import INTERVALS_WITH_CALLBACK

        if "task" in event:
            return event
        if "error" in event:
            raise LumaError.from_dict(event["error"])
        assert state.luma_task_id is not None, "only a task that waits for a job is resumed by its callback"
        task, polls_rarely = None, True
        try:
            service = state.service or DEFAULT_SERVICE
            task = self.hook.check_job(state.luma_task_id, retry_timeout=READ_RETRY_TIMEOUT, service=service)
        except (*TRANSIENT, LumaAuthError) as error:
            self.log.warning("Received a callback, but the status check failed: %s", error)
            if isinstance(error, LumaAuthError):  # does not end the wait for a job that is known to exist
                state = state._replace(created_at=state.created_at or time.time())
        if task is None or not task.is_finished:
            if task is not None:
                self.log.info("Received a callback for Luma task %s, but the job is still running", state.luma_task_id)
                created_at = task.created_at.timestamp() if task.created_at else time.time()
                polls_rarely = is_ours(task.callback_url, self.hook.get_luma_connection(), conn_id=self.luma_conn_id)
                # A job whose callbacks go elsewhere gets a new reference, which no token contains.
                reference = state.reference or reference_of(task.callback_url) or new_reference()
                state = state._replace(reference=reference, created_at=state.created_at or created_at)
            # Luma's records may merely lag behind, and no second callback will come: poll at the usual interval.
            self.defer_for_job(state, poll_interval=poll_interval / (INTERVALS_WITH_CALLBACK if polls_rarely else 1))
        return JobFinished(task=task.as_dict(), request=task.request())

# SPDX-License-Identifier: Apache-2.0
"""The task decorator ``@task.luma_modify``: a function returns the prompt for a video."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION, SetDuringExecution

from airflow_provider_luma.compat import AirflowFailException, determine_kwargs
from airflow_provider_luma.core.deferral import DeferralState
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.links.luma import pushed_failure
from airflow_provider_luma.operators.base import LiteralValue
from airflow_provider_luma.operators.luma import LumaModifyOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_provider_luma.submission.workflow import NextStep

#: XCom with the connection that the function chose, for a process that resumes without the deferral's state.
CONN_ID_KEY = "luma_conn_id"


class _LumaModifyDecoratedOperator(DecoratedOperator, LumaModifyOperator):
    """
    Wraps a Python callable and modifies a video with the parameters that it returns.

    The callable is called once per try: a deferral keeps what it returned.

    :param python_callable: a function that returns the prompt, or a dict of the operator's templated parameters. What
        it returns overrides the decorator's own parameters, and is rendered as a template. A template can read
        connections: return text from anyone but the DAG author as ``airflow.sdk.literal``
    :param op_args: positional arguments for the function (templated)
    :param op_kwargs: keyword arguments for the function (templated)
    :param prompt: see :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator`; required unless the function
        returns it (templated)
    :param video_url: likewise
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *LumaModifyOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **LumaModifyOperator.template_fields_renderers,
    }

    custom_operator_name: str = "@task.luma_modify"
    overwrite_rtif_after_execution: bool = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        prompt: Any = SET_DURING_EXECUTION,
        video_url: Any = SET_DURING_EXECUTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt=prompt,
            video_url=video_url,
            **kwargs,
        )
        self._returned: dict[str, Any] = {}

    def execute(self, context: Context) -> Any:
        """Call the function, and submit a job with the parameters that it returns."""
        with pushed_failure(context):
            try:
                self._call_function(context)
            except LumaValidationError as error:
                raise AirflowFailException(str(error)) from error
        return super().execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Restore the parameters that the function returned before the deferral: it is not called again."""
        kwargs = dict(next_kwargs or {})
        state = DeferralState.read(kwargs, kwargs.pop("event", None))
        self._take_over(state.parameters or {})
        if state.luma_conn_id is None:
            # There is no state after execution_timeout, or in dag.test() on Airflow 3.1 to 3.3.
            ti = context["ti"]
            chosen = ti.xcom_pull(task_ids=ti.task_id, key=CONN_ID_KEY, map_indexes=ti.map_index)
            self.luma_conn_id = chosen or self.luma_conn_id
        return super().resume_execution(next_method, next_kwargs, context)

    @property
    def _source(self) -> str | None:
        """The video that the function returned; None if the function failed, or if this process has no state."""
        return None if isinstance(self.video_url, SetDuringExecution) else super()._source

    def _call_function(self, context: Context) -> None:
        merged: Any = {**context, **self.op_kwargs}
        returned = self.python_callable(*self.op_args, **determine_kwargs(self.python_callable, self.op_args, merged))
        env = self.get_template_env()
        for name, value in self._parameters_of(returned).items():
            setattr(self, name, value)  # render_template recognises the prompt by its identity
            rendered = self.render_template(value, merged, env)
            # A deferral cannot carry an ObjectStoragePath.
            self._returned[name] = str(rendered) if hasattr(rendered, "as_uri") else rendered
            setattr(self, name, self._returned[name])  # before the next, which may be the same string object
        for name in ("prompt", "video_url"):
            if isinstance(getattr(self, name), SetDuringExecution):
                raise LumaValidationError(
                    None, f"{self._function} returned no {name}: return one, or pass it to @task.luma_modify"
                )
        if not isinstance(self.luma_conn_id, str):
            raise LumaValidationError(None, f"luma_conn_id is {self.luma_conn_id!r}: use the id of a connection")
        context["ti"].xcom_push(key=CONN_ID_KEY, value=self.luma_conn_id)  # always: Airflow logs a missing XCom

    def _parameters_of(self, returned: Any) -> dict[str, Any]:
        """
        Return the parameters that the function returned.

        :raises LumaValidationError: it returned something else
        """
        if isinstance(returned, (str, LiteralValue)):
            return {"prompt": returned}
        allowed = LumaModifyOperator.template_fields
        if not isinstance(returned, Mapping):
            raise LumaValidationError(
                None,
                f"{self._function} returned {type(returned).__name__}: return the prompt as a str, or a dict "
                f"with any of {', '.join(allowed)}",
            )
        unknown = [key for key in returned if key not in allowed]
        if unknown:
            raise LumaValidationError(
                None,
                f"{self._function} returned a dict with {', '.join(map(repr, unknown))}: "
                f"it can only return {', '.join(allowed)}",
            )
        return dict(returned)

    @property
    def _function(self) -> str:
        return f"The function {getattr(self.python_callable, '__name__', self.task_id)}"

    def _take_over(self, parameters: Mapping[str, Any]) -> None:
        self._returned = dict(parameters)
        for name, value in parameters.items():
            setattr(self, name, value)

    def _take(self, step: NextStep, context: Context, permitted_at: float | None = None) -> dict[str, Any]:
        """Keep the parameters that the function returned in the state of the deferral."""
        state = step.state._replace(parameters=self._returned or None)
        return super()._take(step._replace(state=state), context, permitted_at)


def luma_modify_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool = True,
    **kwargs: Any,
) -> TaskDecorator:
    """
    Wrap a function into a LumaModifyOperator.

    Accepts the parameters of the operator. Can be reused in a single DAG.

    :param python_callable: a function that returns the prompt, or a dict of the operator's templated parameters
    :param multiple_outputs: also push each key of the result as an XCom

    :meta private:
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=multiple_outputs,
        decorated_operator_class=_LumaModifyDecoratedOperator,
        **kwargs,
    )

# SPDX-License-Identifier: Apache-2.0
"""
Operators: have Luma modify a video, and download the result.

A DAG file is parsed every half a minute, so this module imports the hook, and with it the HTTP libraries, only
when a task runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.deferral import DeferralState
from airflow_provider_luma.exceptions import (
    PERMANENT,
    LumaGenerationError,
    LumaResultMissingError,
    LumaValidationError,
)
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator
from airflow_provider_luma.validation import check_callback_url, check_positive, check_prompt, check_video_url

try:
    from airflow.sdk.exceptions import TaskDeferralTimeout
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferralTimeout  # type: ignore[no-redef]

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_luma.deferral import DeferralExpired, Event
    from airflow_provider_luma.protocol import ModifyRequest
    from airflow_provider_luma.submission.store import SubmissionStore
    from airflow_provider_luma.submission.submitter import NextStep, Submitter, WaitForJob


class LumaModifyOperator(LumaBaseOperator):
    """
    Have Luma modify a video as an English prompt says, and wait for the result.

    Returns, and pushes key by key, ``{"luma_task_id", "status", "result_urls", "origin_urls", "created_at",
    "completed_at"}``, so that ``modify.output["result_urls"]`` feeds the next task. The id is pushed as soon as
    Luma has given it.

    A job costs credits, takes minutes, and cannot be cancelled. By default the wait is deferred to the triggerer
    and holds no worker slot.

    :param prompt: how to change the video, in English (templated)
    :param video_url: public http(s) address of an MP4, MOV or AVI of at most 10 seconds and 500 MB (templated)
    :param watermark: text to put into the video; empty for none (templated)
    :param callback_url: a webhook of your own that Luma calls when the job ends; the task then waits by polling.
        If empty, and the connection holds a ``callback_base_url``, Luma calls Airflow, and there is next to no
        polling (templated)
    :param luma_conn_id: the connection, of type Luma, that holds the API key (templated)
    :param wait_for_completion: wait for the video. If False the task ends once Luma has accepted the job, with
        status ``GENERATING`` and no URLs, and a :class:`LumaTaskSensor` can wait for it
    :param deferrable: wait in the triggerer. If False the wait holds a worker slot
    :param poll_interval: seconds between two status checks; the service recommends 30. If deferrable, and Luma
        calls Airflow, ten times as long
    :param timeout: seconds that a try waits for the video at most, and before that for Luma to accept the job while
        it is over its limits or unavailable. The job itself keeps running at Luma
    :param resubmit_on_unknown: submit again when it is unknown whether an earlier submission was accepted, at
        the risk of paying twice. By default such a task fails without using its retries. If a callback is expected,
        and the task is deferrable, it waits for the callback first, which tells
    :param resubmit_on_failure: let Airflow's retries submit a new, separately billed, job when one has failed at Luma.
        If False such a task fails without using its retries: a prompt or a video that Luma's moderation refuses is
        refused again, minutes after each submission
    """

    template_fields: Sequence[str] = ("prompt", "video_url", "watermark", "callback_url", "luma_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md"}
    operator_extra_links = (LumaResultLink(),)
    ui_color = "#e4d7f5"

    def __init__(
        self,
        *,
        prompt: str,
        video_url: str,
        watermark: str | None = None,
        callback_url: str | None = None,
        luma_conn_id: str = "luma_default",
        wait_for_completion: bool = True,
        deferrable: bool = True,
        poll_interval: float = 30,
        timeout: float = 1800,
        resubmit_on_unknown: bool = False,
        resubmit_on_failure: bool = True,
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=multiple_outputs, **kwargs)
        self.prompt = prompt
        self.video_url = video_url
        self.watermark = watermark
        self.callback_url = callback_url
        self.luma_conn_id = luma_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.resubmit_on_unknown = resubmit_on_unknown
        self.resubmit_on_failure = resubmit_on_failure
        self._luma_task_id: str | None = None
        self._is_killed = False
        #: The job whose result this process has returned to Airflow.
        self.returned_luma_task_id: str | None = None
        self.on_success_callback = [*self.on_success_callback, _record_delivery]

        self._check_parameters()

    def _check_parameters(self) -> None:
        """Refuse in the DAG file what cannot work; what templates give is checked when the task runs."""
        check_positive("poll_interval", self.poll_interval)
        check_positive("timeout", self.timeout)
        if _is_literal(self.prompt):
            check_prompt(self.prompt)
        if _is_literal(self.video_url):
            check_video_url(self.video_url)
        if self.callback_url and _is_literal(self.callback_url):
            check_callback_url(self.callback_url)

    # -- Airflow's entry points -------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job and, unless told otherwise, wait for it."""
        with self._delivered_failure(context):
            return self._submit(context, DeferralState())

    def execute_from_queue(self, context: Context, event: DeferralExpired, **state: Any) -> dict[str, Any]:
        """Submit the job again, after Luma has refused it for a while."""
        with self._delivered_failure(context):
            return self._submit(context, DeferralState.read(state, event), permitted_at=event["at"])

    def execute_with_callback(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Continue a submission whose answer was lost, with the job that its callback has named, if one has come."""
        deferral = DeferralState.read(state, event)
        named = event["callback"]["luma_task_id"] if "callback" in event else None
        with self._delivered_failure(context):
            step = self._submitter(context).recover(deferral, named, needs_result=self.wait_for_completion)
            return self._take(step, context)

    def execute_complete(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Return the job's result, raise what ended the wait, or keep waiting after a callback that came too early."""
        deferral = DeferralState.read(state, event)
        self._luma_task_id = deferral.luma_task_id
        with self._delivered_failure(context):
            finished = self.resume_wait(event, deferral, poll_interval=self.poll_interval)
            return self._result(finished["task"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Name the job when ``execution_timeout`` has ended the wait for it."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            from airflow_provider_luma.submission.submitter import execution_timeout_error

            ti = context["ti"]
            luma_task_id = ti.xcom_pull(task_ids=ti.task_id, key="luma_task_id", map_indexes=ti.map_index)
            with pushed_failure(context):
                store = self._open_store(context)
                raise execution_timeout_error(store, self.execution_timeout, luma_task_id) from error

    def on_kill(self) -> None:
        """Send no submission from now on; log that the job is not cancelled, and its id."""
        self._is_killed = True
        if self._luma_task_id is None:
            self.log.warning("Killed before Luma had given a task id; check the Luma account for the job")
        else:
            self.log.warning(
                "Luma cannot cancel a job: Luma task %s is still running there under this id, and is billed. "
                "A LumaTaskSensor with this luma_task_id fetches its result",
                self._luma_task_id,
            )

    # -- one try ----------------------------------------------------------------------------------------------------

    def _submit(self, context: Context, deferral: DeferralState, permitted_at: float | None = None) -> dict[str, Any]:
        request = self._checked_request()
        LumaResultLink().push(self, context)
        push_request(context, prompt=request.prompt, video_url=request.video_url)
        return self._take(self._submitter(context).submit(request, deferral), context, permitted_at)

    def _checked_request(self) -> ModifyRequest:
        """Check what templates have rendered, before anything is sent or recorded."""
        from airflow_provider_luma.protocol import ModifyRequest

        request = ModifyRequest(self.prompt, self.video_url, self.watermark, self.callback_url)
        try:
            self.hook.check_request(request, expects_callback=not self.callback_url)
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        return request

    def _submitter(self, context: Context) -> Submitter:
        from airflow_provider_luma.submission.submitter import Submitter

        return Submitter(
            client=self.hook,
            store=self._open_store(context),
            try_number=context["ti"].try_number,
            max_tries=context["ti"].max_tries,
            can_defer=self.deferrable,
            resubmit_on_unknown=self.resubmit_on_unknown,
            resubmit_on_failure=self.resubmit_on_failure,
            timeout=self.timeout,
            poll_interval=self.poll_interval,
            log=self.log,
            on_job_known=self._on_job_known,
            is_killed=lambda: self._is_killed,
        )

    def _open_store(self, context: Context) -> SubmissionStore:
        from airflow_provider_luma.submission.stores import open_store

        return open_store(context, self.hook.luma_connection.submission_store)

    def _on_job_known(self, luma_task_id: str) -> None:
        self._luma_task_id = luma_task_id

    def _take(self, step: NextStep, context: Context, permitted_at: float | None = None) -> dict[str, Any]:
        """Wait for a permission to submit, for a callback, or for the job."""
        from airflow_provider_luma.submission.submitter import AwaitCallback, Enqueue
        from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger

        if isinstance(step, Enqueue):
            state = step.state.as_kwargs()
            trigger = LumaSubmissionTrigger(self.luma_conn_id, state, step.until, permitted_at, step.not_before)
            self.defer_with(trigger, "execute_from_queue", step.state)
        if isinstance(step, AwaitCallback):
            self.defer_with(
                LumaCallbackTrigger(step.state.as_kwargs(), step.until), "execute_with_callback", step.state
            )
        return self._wait_for_job(step, context)

    def _wait_for_job(self, job: WaitForJob, context: Context) -> dict[str, Any]:
        from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus

        context["ti"].xcom_push(key="luma_task_id", value=job.luma_task_id)
        if not self.wait_for_completion:
            self.log.info("Not waiting for it, as wait_for_completion is off")
            return self._returned(LumaTask(job.luma_task_id, LumaTaskStatus.GENERATING).as_dict())
        if job.finished is None and self.deferrable:
            self.log.info("Waiting for it in the triggerer")
            self.defer_for_job(job.state, poll_interval=self.poll_interval, created_at=job.created_at)
        finished = job.finished or self.hook.wait_for_completion(
            job.luma_task_id, timeout=self.timeout, poll_interval=self.poll_interval
        )
        return self._result(finished.as_dict())

    # -- the outcome ------------------------------------------------------------------------------------------------

    def _result(self, result: dict[str, Any]) -> dict[str, Any]:
        self.log.info("Luma task %s is finished: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        return self._returned(result)

    def _returned(self, result: dict[str, Any]) -> dict[str, Any]:
        self.returned_luma_task_id = result["luma_task_id"]
        return result

    @contextmanager
    def _delivered_failure(self, context: Context) -> Iterator[None]:
        """Let a person know how the job has failed, and record that; spend no retries if a new job is not wanted."""
        with pushed_failure(context):
            try:
                yield
            except (LumaGenerationError, LumaResultMissingError) as failure:
                self.mark_delivered(failure.luma_task_id, context)
                if self.resubmit_on_failure or isinstance(failure, LumaResultMissingError):
                    raise
                raise AirflowFailException(str(failure)) from failure

    def mark_delivered(self, luma_task_id: str | None, context: Context) -> None:
        """Record that the outcome of a job is known: whoever clears the task from now on wants a new video."""
        from airflow_provider_luma.submission.store import mark_delivered, try_store

        store = try_store(self.log, self._open_store, context)
        if store is not None and luma_task_id is not None:
            mark_delivered(store, self.log, luma_task_id)


class LumaDownloadOperator(LumaBaseOperator):
    """
    Stream results, or any files from the web, to a storage that Airflow knows: a disk, S3, GCS, Azure …

    Results stay at Luma for 14 days. Until a file is whole it has another name; a broken connection is resumed;
    a file that is there already, and is the same one, is not fetched again.

    Returns the list of the files written.

    :param urls: one address or several, e.g. ``modify.output["result_urls"]`` (templated)
    :param destination: where to: a folder, or, for a single address, a file, recognised by its extension. A path
        or an address such as ``s3://my_conn@bucket/videos`` (templated)
    :param luma_conn_id: the connection, of type Luma, of the account that made the videos (templated)
    :param overwrite: fetch, and replace, files that are there already
    """

    template_fields: Sequence[str] = ("urls", "destination", "luma_conn_id")
    ui_color = "#d7e9f5"

    def __init__(
        self,
        *,
        urls: str | Sequence[str],
        destination: str,
        luma_conn_id: str = "luma_default",
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.urls = urls
        self.destination = destination
        self.luma_conn_id = luma_conn_id
        self.overwrite = overwrite

    def execute(self, context: Context) -> list[str]:
        """Fetch one file after the other."""
        try:
            destination = str(self.destination or "").strip()
            return [
                str(self.hook.download(url, destination, name=name, overwrite=self.overwrite))
                for url, name in self._plan(destination).items()
            ]
        except (*PERMANENT, FileExistsError) as error:
            raise AirflowFailException(str(error)) from error

    def _plan(self, destination: str) -> dict[str, str | None]:
        """Return each address's file name in the destination, the same one at every try; None if that is the file."""
        from airflow_provider_luma.transfers.download import names_a_file, safe_name

        urls = [self.urls] if isinstance(self.urls, str) else list(dict.fromkeys(self.urls or ()))
        if not urls:
            raise LumaValidationError(None, "urls is empty: there is nothing to download")
        if not destination:
            raise LumaValidationError(None, "destination is empty: give a folder, or a file for a single address")
        if names_a_file(destination):
            if len(urls) > 1:
                raise LumaValidationError(
                    None, f"destination {destination!r} is one file, but urls holds {len(urls)}: give a folder"
                )
            return {urls[0]: None}
        plan: dict[str, str | None] = {}
        for url in urls:
            name = safe_name(url)
            names = (name, *(f"{number}-{name}" for number in range(2, len(urls) + 1)))
            plan[url] = next(free for free in names if free not in plan.values())
        return plan


def _record_delivery(context: Context) -> None:
    """Record that a result was delivered, once Airflow has it: a worker may be lost just before."""
    task: Any = context["task"]
    task.mark_delivered(task.returned_luma_task_id, context)


def _is_literal(value: object) -> bool:
    """Tell whether a value is final when the DAG is parsed: neither a template nor another task's output."""
    return value is None or (isinstance(value, str) and "{{" not in value and "{%" not in value)

# SPDX-License-Identifier: Apache-2.0
"""
The operator that has Luma modify a video; those that move files are beside it, in :mod:`.transfers`.

A DAG file is parsed every half a minute, so this module imports the hook, and with it the HTTP libraries, only
when a task runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_provider_luma.compat import AirflowFailException, TaskDeferralTimeout
from airflow_provider_luma.core.deferral import DeferralState, JobFinished
from airflow_provider_luma.core.validation import (
    PROMPT_FILE_EXTENSIONS,
    check_callback_url,
    check_positive,
    check_prompt,
    check_video_address,
)
from airflow_provider_luma.exceptions import (
    PERMANENT,
    LumaGenerationError,
    LumaRequestFailedError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaValidationError,
)
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator, is_literal, shown_results

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_luma.client import LumaClient
    from airflow_provider_luma.connection import LumaConnection
    from airflow_provider_luma.core.decision import Outcome
    from airflow_provider_luma.core.deferral import DeferralExpired, Event, JobFinished
    from airflow_provider_luma.core.job import ModifyRequest
    from airflow_provider_luma.files.input_video import InputVideo
    from airflow_provider_luma.operators.transfers import LumaDownloadOperator, LumaUploadOperator
    from airflow_provider_luma.submission.store import SubmissionStore
    from airflow_provider_luma.submission.workflow import NextStep, Submitter, WaitForJob


__all__ = ["LumaDownloadOperator", "LumaModifyOperator", "LumaUploadOperator"]


def __getattr__(name: str) -> Any:
    """Import the operators that move files at their first use: a DAG file pays for each class that it imports."""
    if name in ("LumaDownloadOperator", "LumaUploadOperator"):
        from airflow_provider_luma.operators import transfers

        return getattr(transfers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LumaJobOperator(LumaBaseOperator):
    """An operator that has submitted a job, and delivers its outcome."""

    resubmit_on_failure: bool

    def open_store(self, context: Context, connection: LumaConnection | None = None) -> SubmissionStore:
        """
        Return where the record of this task's submission lives.

        :param connection: the task's, if it was read already
        """
        from airflow_provider_luma.submission import open_store

        try:
            return open_store(context, (connection or self.hook.get_luma_connection()).submission_store)
        except LumaValidationError as error:
            raise AirflowFailException(str(error)) from error

    def finished(self, job: JobFinished, context: Context, *, source: object = None) -> dict[str, Any]:
        """
        Return the result of a job that has ended well.

        :param source: the video that was modified, if Luma knows only a copy of it
        """
        result, asked = job["task"], job.get("request") or {}
        self.log.info("Luma task %s is finished: %s", result["luma_task_id"], shown_results(result))
        # Luma's own API repeats neither.
        prompt = asked.get("prompt") or getattr(self, "prompt", None)
        self.report_job(result, context, prompt=prompt, source=source or asked.get("video_url"))
        return result

    def on_result_stored(self, context: Context) -> None:
        """
        Record that Airflow has the result: whoever clears the task from now on wants a new video.

        Called after the task has succeeded. Before that its ``post_execute`` or the XCom backend may still fail it.
        """
        from airflow_provider_luma.core.decision import Outcome

        if self._mark(self.result.get("luma_task_id"), Outcome.RESULT, context):
            self.log.info("Airflow has stored the result: a Clear of this task makes a new video")

    @contextmanager
    def delivered_failure(self, context: Context) -> Iterator[None]:
        """Let a person know how the job has failed, and record that; spend no retries if a new job is not wanted."""
        from airflow_provider_luma.core.decision import Outcome

        with pushed_failure(context):
            try:
                yield
            except LumaResultMissingError as failure:
                self._mark(failure.luma_task_id, None, context)
                raise
            except LumaGenerationError as failure:
                self._mark(failure.luma_task_id, Outcome.FAILURE, context)
                if self.resubmit_on_failure and not isinstance(failure, LumaRequestFailedError):
                    raise
                raise AirflowFailException(str(failure)) from failure
            except LumaTimeoutError as failure:
                failure.remedy = self.recovery_hint(context)
                raise

    def recovery_hint(self, context: Context) -> str:
        """Return what a person can do about a task that has failed while its job is running, without paying again."""
        from airflow_provider_luma.submission.store import NoStore, try_store

        return (try_store(self.log, self.open_store, context) or NoStore()).recovery_hint

    def _mark(self, luma_task_id: str | None, outcome: Outcome | None, context: Context) -> bool:
        from airflow_provider_luma.submission.store import mark_delivered, try_store

        store = try_store(self.log, self.open_store, context)
        if store is None or luma_task_id is None:
            return False
        return mark_delivered(store, self.log, luma_task_id, outcome)


class PromptOperator(BaseOperator):
    """
    An operator whose prompt may be in a file.

    Airflow takes every templated field that ends in one of ``template_ext`` for a file's name, and so would a watermark
    or an argument of a decorated function be. Here the prompt alone is.
    """

    template_ext: Sequence[str] = PROMPT_FILE_EXTENSIONS

    prompt: str

    def names_file(self, value: object) -> bool:
        """Tell whether a field is what Airflow takes for a file's name."""
        return isinstance(value, str) and value.endswith(tuple(self.template_ext))

    def check_literal_prompt(self) -> None:
        """
        Refuse in the DAG file a prompt that cannot work; one in a file is checked once it is read.

        :raises LumaValidationError: see :func:`~airflow_provider_luma.core.validation.check_prompt`
        """
        if is_literal(self.prompt) and not self.names_file(self.prompt):
            check_prompt(self.prompt)

    def resolve_template_files(self) -> None:
        """Read the prompt's file when the DAG is parsed."""
        if self.names_file(self.prompt):
            self.prompt = _read(self.prompt, self.get_template_env())
            self.check_literal_prompt()
        self.prepare_template()

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a template; read the prompt's file, where that was not done when the DAG was parsed."""
        if not isinstance(content, str) or id(content) in (seen_oids or ()):
            return super().render_template(content, context, jinja_env, seen_oids)
        names_file = self.names_file(content)
        if names_file and content is self.prompt:
            try:
                content = _read(content, jinja_env or self.get_template_env())
            except LumaValidationError as error:
                raise AirflowFailException(str(error)) from error
        elif names_file:
            content = _as_text(content)
        # Of a member of an enumeration of texts, Jinja would render the name.
        rendered = super().render_template(str.__str__(content), context, jinja_env, seen_oids)
        # The newline of _as_text, which the Jinja environment of a DAG may keep.
        return rendered.removesuffix("\n") if names_file and isinstance(rendered, str) else rendered


def _as_text(text: str) -> str:
    """Return a template that Airflow does not take for a file's name, whatever it ends in."""
    return f"{text}\n"


def _read(name: str, env: jinja2.Environment) -> str:
    """
    Return what a prompt's file holds, as a template.

    :raises LumaValidationError: there is no such file, or it cannot be read, or is empty
    """
    import jinja2

    try:
        if env.loader is None:
            raise jinja2.TemplateNotFound(name)
        text = env.loader.get_source(env, name)[0].removeprefix("\ufeff").strip()
    except jinja2.TemplateNotFound as error:
        folders = ", ".join(map(str, getattr(env.loader, "searchpath", ()))) or "no folder, as there is no DAG"
        raise LumaValidationError(
            None,
            f"prompt is {name!r}, and so names a file, which was not found. Searched in {folders} (the folder of the "
            "DAG file and the DAG's template_searchpath). If it is the text itself, end it with a blank or a full stop",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LumaValidationError(None, f"prompt is {name!r}, a file that cannot be read: {error}") from error
    if not text:
        raise LumaValidationError(None, f"prompt is {name!r}, a file that is empty")
    return _as_text(text)


class LumaModifyOperator(PromptOperator, LumaJobOperator):
    """
    Have Luma modify a video as an English prompt says, and wait for the result.

    Returns, and pushes key by key, ``{"luma_task_id", "status", "result_urls", "origin_urls", "created_at",
    "completed_at"}``, and with Luma's own API also ``"service"``. ``urls=modify.output`` of a
    :class:`~airflow_provider_luma.operators.luma.LumaDownloadOperator` fetches the video. The id is pushed as soon as
    Luma has given it.

    A job costs credits, takes minutes, and cannot be cancelled. By default the wait is deferred to the triggerer
    and holds no worker slot.

    :param prompt: how to change the video, in English; or the name of a ``.txt`` or ``.md`` file that says so, beside
        the DAG file or in the DAG's ``template_searchpath`` (templated)
    :param video_url: an MP4, MOV or AVI of at most 10 seconds and 500 MB: a public http(s) address, or a file in any
        storage that Airflow knows, such as ``/data/clip.mp4`` or ``s3://my_aws@bucket/clip.mp4``, which is uploaded to
        Luma, or, with ``sign_inputs`` in the connection's extra, given a signed address (templated)
    :param watermark: text to put into the video; empty for none (templated)
    :param callback_url: a webhook of your own that Luma calls when the job ends; the task then waits by polling.
        If empty, and the connection holds a ``callback_base_url``, Luma calls Airflow, and there is next to no
        polling (templated)
    :param options: further fields of the service's own request, as its documentation has them, such as
        ``{"video": {"resolution": "1080p", "edit": {"strength": "flex_2"}}}`` for Luma's own API (templated)
    :param luma_conn_id: the connection, of type Luma, that holds the API key (templated)
    :param wait_for_completion: wait for the video. If False the task ends once Luma has accepted the job, with
        status ``GENERATING`` and no URLs, and a :class:`.LumaTaskSensor` can wait for it
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
    :param check_video: look into the video before the submission, and refuse what Luma would. Of a file in a storage,
        format and length are read, which needs the extra ``media`` of this package; of a public address, its beginning
    """

    template_fields: Sequence[str] = (
        "prompt",
        "video_url",
        "watermark",
        "callback_url",
        "options",
        "luma_conn_id",
    )
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
        options: dict[str, Any] | None = None,
        luma_conn_id: str = "luma_default",
        wait_for_completion: bool = True,
        deferrable: bool = True,
        poll_interval: float = 30,
        timeout: float = 1800,
        resubmit_on_unknown: bool = False,
        resubmit_on_failure: bool = True,
        check_video: bool = True,
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=multiple_outputs, **kwargs)
        self.prompt = prompt
        self.video_url = video_url
        self.watermark = watermark
        self.callback_url = callback_url
        self.options = options
        self.luma_conn_id = luma_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.resubmit_on_unknown = resubmit_on_unknown
        self.resubmit_on_failure = resubmit_on_failure
        self.check_video = check_video
        self._luma_task_id: str | None = None

        self._check_parameters()

    def _check_parameters(self) -> None:
        """Refuse in the DAG file what cannot work; what templates give is checked when the task runs."""
        check_positive("poll_interval", self.poll_interval)
        check_positive("timeout", self.timeout)
        self.check_literal_prompt()
        if is_literal(self.video_url):
            check_video_address(self.video_url)
        if self.callback_url and is_literal(self.callback_url):
            check_callback_url(self.callback_url)

    # -- Airflow's entry points -------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job and, unless told otherwise, wait for it."""
        with self.delivered_failure(context):
            return self._submit(context, DeferralState())

    def execute_from_queue(self, context: Context, event: DeferralExpired, **state: Any) -> dict[str, Any]:
        """Submit the job again, after Luma has refused it for a while."""
        with self.delivered_failure(context):
            return self._submit(context, DeferralState.read(state, event), permitted_at=event["at"])

    def execute_with_callback(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Continue a submission whose answer was lost, with the job that its callback has named, if one has come."""
        deferral = DeferralState.read(state, event)
        named = event["callback"]["luma_task_id"] if "callback" in event else None
        with self.delivered_failure(context):
            step = self._submitter(context, self.hook.get_client()).recover(deferral, named)
            return self._take(step, context)

    def execute_complete(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Return the job's result, raise what ended the wait, or keep waiting after a callback that came too early."""
        deferral = DeferralState.read(state, event)
        self._luma_task_id = deferral.luma_task_id
        with self.delivered_failure(context):
            job = self.resume_wait(event, deferral, poll_interval=self.poll_interval)
            return self.finished(job, context, source=self._source)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Name the job when ``execution_timeout`` has ended the wait for it."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            from airflow_provider_luma.submission.workflow import execution_timeout_error

            ti = context["ti"]
            luma_task_id = ti.xcom_pull(task_ids=ti.task_id, key="luma_task_id", map_indexes=ti.map_index)
            with pushed_failure(context):
                # With an id no record is needed, and what keeps it may be what the task has waited for.
                store = None if luma_task_id else self.open_store(context)
                failure = execution_timeout_error(store, self.execution_timeout, luma_task_id)
                failure.remedy = self.recovery_hint(context) if luma_task_id else ""
                raise failure from error

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Name the source video, the result and the job, for OpenLineage."""
        from airflow_provider_luma.lineage import job_lineage

        return job_lineage(self._source, self.result)

    @property
    def _source(self) -> str | None:
        """The video as the DAG names it; None where this process does not know it."""
        return str(self.video_url)

    def on_kill(self) -> None:
        """Send no submission from now on; log that the job is not cancelled, and its id."""
        super().on_kill()
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
        from airflow_provider_luma.submission.workflow import Submission

        client, request = self._checked_request()
        LumaResultLink().push(self, context)
        submitter = self._submitter(context, client)
        push = partial(push_request, context, prompt=request.prompt, recovery=submitter.store.recovery_hint)
        push(video_url=request.video_url)
        video = self._input_video(request, lambda url: push(video_url=url, source=request.video_url))
        step = submitter.submit(Submission(request, video, deferral))
        return self._take(step, context, permitted_at)

    def _checked_request(self) -> tuple[LumaClient, ModifyRequest]:
        """Check what templates have rendered, before anything is sent or recorded; return with whom it was checked."""
        from airflow_provider_luma.core.job import ModifyRequest

        # A task before this one may return a path of Airflow's object storage.
        address = str(self.video_url) if hasattr(self.video_url, "as_uri") else self.video_url
        request = ModifyRequest(self.prompt, address, self.watermark, self.callback_url, self.options)
        try:
            client = self.hook.get_client()
            client.check_request(request, expects_callback=not self.callback_url)
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        return client, request

    def _input_video(self, request: ModifyRequest, on_upload: Callable[[str], None]) -> InputVideo:
        from airflow_provider_luma.files.input_video import InputVideo

        return InputVideo(
            address=request.video_url,
            is_checked=self.check_video,
            log=self.log,
            fail_if_killed=self.fail_if_killed,
            on_upload=on_upload,
        )

    def _submitter(self, context: Context, client: LumaClient) -> Submitter:
        from airflow_provider_luma.submission.workflow import Submitter

        return Submitter(
            client=client,
            new_client=self.hook.get_client,
            store=self.open_store(context, client.connection),
            try_number=context["ti"].try_number,
            max_tries=context["ti"].max_tries,
            clear_number=getattr(context.get("dag_run"), "clear_number", None),
            can_defer=self.deferrable,
            needs_result=self.wait_for_completion,
            resubmit_on_unknown=self.resubmit_on_unknown,
            resubmit_on_failure=self.resubmit_on_failure,
            timeout=self.timeout,
            poll_interval=self.poll_interval,
            log=self.log,
            on_job_known=self._on_job_known,
            fail_if_killed=self.fail_if_killed,
            task_instance_id=getattr(context["ti"], "id", None),
        )

    def _on_job_known(self, luma_task_id: str) -> None:
        self._luma_task_id = luma_task_id

    def _take(self, step: NextStep, context: Context, permitted_at: float | None = None) -> dict[str, Any]:
        """Wait for a permission to submit, for a callback, or for the job."""
        from airflow_provider_luma.submission.workflow import AwaitCallback, Enqueue
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
        from airflow_provider_luma.core.job import DEFAULT_SERVICE, LumaTask, LumaTaskStatus

        context["ti"].xcom_push(key="luma_task_id", value=job.luma_task_id)
        if not self.wait_for_completion:
            self.log.info("Not waiting for it, as wait_for_completion is off")
            service = job.state.service or DEFAULT_SERVICE
            result = LumaTask(job.luma_task_id, LumaTaskStatus.GENERATING, service=service).as_dict()
            self.report_job(result, context, prompt=self.prompt, source=self._source)
            return dict(result)
        if job.finished is None and self.deferrable:
            self.log.info("Waiting for it in the triggerer")
            self.defer_for_job(job.state, poll_interval=self.poll_interval)
        finished = job.finished or self.hook.wait_for_completion(
            job.luma_task_id,
            timeout=self.timeout,
            poll_interval=self.poll_interval,
            created_at=job.state.created_at,
            service=job.state.service or DEFAULT_SERVICE,
        )
        ended = JobFinished(task=finished.as_dict(), request=finished.request())
        return self.finished(ended, context, source=self._source)

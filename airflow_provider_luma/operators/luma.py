# SPDX-License-Identifier: Apache-2.0
"""
The operator that modifies a video. The operators that move files are in :mod:`.transfers`.

DAG files are parsed every 30 seconds, so this module imports the hook, and with it the HTTP libraries, only when a task
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    NO_RECORD_HINT,
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
    from airflow_provider_luma.core.deferral import DeferralExpired, Event
    from airflow_provider_luma.core.job import ModifyRequest
    from airflow_provider_luma.files.input_video import InputVideo
    from airflow_provider_luma.operators.transfers import LumaDownloadOperator, LumaUploadOperator
    from airflow_provider_luma.submission.store import SubmissionStore
    from airflow_provider_luma.submission.workflow import NextStep, Submitter, WaitForJob


__all__ = ["LumaDownloadOperator", "LumaModifyOperator", "LumaUploadOperator"]


def __getattr__(name: str) -> Any:
    """Import the operators that move files on first use: every class that a DAG file imports slows its parsing down."""
    if name in ("LumaDownloadOperator", "LumaUploadOperator"):
        from airflow_provider_luma.operators import transfers

        return getattr(transfers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LumaJobOperator(LumaBaseOperator):
    """An operator that delivers the outcome of a job that it submitted."""

    resubmit_on_failure: bool

    #: What a Clear does once Airflow has stored the result.
    after_result = "clearing this task submits a new job"

    def open_store(self, context: Context, connection: LumaConnection | None = None) -> SubmissionStore:
        """
        Return the store that keeps the record of this task's submission.

        :param connection: the task's connection, if it has been read already
        :raises AirflowFailException: the connection's ``submission_store`` is invalid
        """
        from airflow_provider_luma.submission import open_store

        try:
            return open_store(context, (connection or self.hook.get_luma_connection()).submission_store)
        except LumaValidationError as error:
            raise AirflowFailException(str(error)) from error

    def finished(self, job: JobFinished, context: Context, *, source: object = None) -> dict[str, Any]:
        """
        Return the result of a job that succeeded.

        :param job: the finished job
        :param source: the video that was modified, if Luma only has a copy of it
        """
        result, request = job["task"], job.get("request") or {}
        self.log.info("Luma task %s is finished: %s", result["luma_task_id"], shown_results(result))
        # Luma's own API returns neither the prompt nor the input video.
        prompt = request.get("prompt") or getattr(self, "prompt", None)
        self.report_job(result, context, prompt=prompt, source=source or request.get("video_url"))
        return result

    def on_result_stored(self, context: Context) -> None:
        """
        Record that Airflow has stored the result, so that a Clear from now on submits a new job.

        Called after the task has succeeded: until then, its ``post_execute`` or the XCom backend may still fail it.
        """
        from airflow_provider_luma.core.decision import Outcome

        if self._mark(self.result.get("luma_task_id"), Outcome.RESULT, context):
            self.log.info("Airflow has stored the result; %s", self.after_result)

    @contextmanager
    def delivered_failure(self, context: Context) -> Iterator[None]:
        """Show why the job failed, and record that; without ``resubmit_on_failure``, fail without using retries."""
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
        """Return how to get the video without paying again, if the task has failed while its job was running."""
        from airflow_provider_luma.submission.store import try_store

        store = try_store(self.log, self.open_store, context)
        return store.recovery_hint if store is not None else NO_RECORD_HINT

    def _mark(self, luma_task_id: str | None, outcome: Outcome | None, context: Context) -> bool:
        """
        Record which outcome of a job has been delivered.

        :param outcome: the outcome; None if the missing video was reported to a person
        :returns: whether it was recorded
        """
        from airflow_provider_luma.submission.store import try_store

        store = try_store(self.log, self.open_store, context)
        if store is None or luma_task_id is None:
            return False
        record = try_store(self.log, store.load)
        if record is None or record.luma_task_id != luma_task_id:
            return False
        changes = {"reported": True} if outcome is None else {"delivered": outcome}
        return try_store(self.log, store.update, record.reference, **changes) is not None


class PromptOperator(BaseOperator):
    """
    An operator whose prompt may be in a file.

    Airflow treats every template field that ends in one of ``template_ext`` as a file name, even a watermark or an
    argument of a decorated function. Here only the prompt can name a file.
    """

    template_ext: Sequence[str] = PROMPT_FILE_EXTENSIONS

    prompt: str

    def names_file(self, value: object) -> bool:
        """Return whether Airflow would treat a template field as a file name."""
        return isinstance(value, str) and value.endswith(tuple(self.template_ext))

    def check_literal_prompt(self) -> None:
        """
        Check a literal prompt when the DAG is parsed. A prompt in a file is checked once it has been read.

        :raises LumaValidationError: the prompt is invalid, see
            :func:`~airflow_provider_luma.core.validation.check_prompt`
        """
        if is_literal(self.prompt) and not self.names_file(self.prompt):
            check_prompt(self.prompt)

    def resolve_template_files(self) -> None:
        """Read the prompt file when the DAG is parsed."""
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
        """Render a template; first read the prompt file if that was not done when the DAG was parsed."""
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
        # str.__str__: Jinja would render a member of a string enum as its name.
        rendered = super().render_template(str.__str__(content), context, jinja_env, seen_oids)
        # Jinja keeps the newline of _as_text if the DAG says so.
        return rendered.removesuffix("\n") if names_file and isinstance(rendered, str) else rendered


def _as_text(text: str) -> str:
    """Return a template that Airflow does not treat as a file name, whatever it ends in."""
    return f"{text}\n"


def _read(name: str, env: jinja2.Environment) -> str:
    """
    Return the content of a prompt file as a template.

    :raises LumaValidationError: the file is missing, empty or unreadable
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
            f"prompt names the file {name!r}, which was not found. Searched in {folders} (the folder of the DAG file "
            "and the DAG's template_searchpath). If this is the prompt itself, end it with a space or a full stop",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LumaValidationError(None, f"prompt names the file {name!r}, which cannot be read: {error}") from error
    if not text:
        raise LumaValidationError(None, f"prompt names the file {name!r}, which is empty")
    return _as_text(text)


def _check_job_limit(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise LumaValidationError(None, f"max_jobs_per_run must be a whole number above 0, not {limit!r}")


class LumaModifyOperator(PromptOperator, LumaJobOperator):
    """
    Modify a video with Luma according to a prompt, and wait for the result.

    Returns ``{"luma_task_id", "status", "result_urls", "origin_urls", "created_at", "completed_at"}``, with Luma's own
    API also ``"service"``, and pushes each key as an XCom too. To fetch the video, pass all of it to a
    :class:`~airflow_provider_luma.operators.luma.LumaDownloadOperator`: ``urls=modify.output``. The id is pushed as
    soon as Luma has accepted the job.

    A job costs money, takes minutes, and cannot be cancelled. By default the task waits in the triggerer and holds no
    worker slot.

    :param prompt: how to change the video (kie.ai accepts English only), or the name of a ``.txt`` or ``.md`` file with
        the prompt, in the folder of the DAG file or in the DAG's ``template_searchpath`` (templated)
    :param video_url: a clip within the service's limits, such as an MP4 of at most 10 s and 500 MB at kie.ai: a public
        http(s) address, or a file in any storage that Airflow supports, such as ``/data/clip.mp4`` or
        ``s3://my_aws@bucket/clip.mp4``. A file is uploaded to Luma or, with ``sign_inputs`` in the connection's extra,
        passed as a signed address. With Luma's own API also ``luma-file:<id>``, which :class:`.LumaUploadOperator`
        returns, or ``luma-job:<id>`` for the result of another job (templated)
    :param watermark: text to put into the video, kie.ai only; empty for none (templated)
    :param callback_url: a webhook of your own that kie.ai calls when the job ends; the task itself then polls. If empty
        and the connection has a ``callback_base_url``, kie.ai calls Airflow, and the task polls ten times less often.
        Luma's own API has no callbacks (templated)
    :param options: further fields of the service's own request, as its documentation describes them, such as
        ``{"video": {"resolution": "1080p", "edit": {"strength": "flex_2"}}}`` for Luma's own API (templated)
    :param luma_conn_id: the connection of type Luma with the API key (templated)
    :param wait_for_completion: wait for the video. If False, the task ends once Luma has accepted the job, with status
        ``GENERATING`` and no URLs; a :class:`.LumaTaskSensor` can wait for the job
    :param deferrable: wait in the triggerer. If False, the task holds a worker slot while it waits
    :param poll_interval: seconds between two status checks; kie.ai recommends 30. Ten times as long if the task is
        deferrable and kie.ai calls Airflow when the job ends; with Luma's own API, less when the job has likely ended
    :param timeout: maximum seconds that a try waits for the video. The job itself keeps running at Luma
    :param queue_timeout: maximum seconds that a try waits before that, while Luma is over its limits or unavailable and
        does not accept the job; ``timeout`` if None
    :param resubmit_on_unknown: submit again if it is unknown whether an earlier submission was accepted, at the risk of
        paying twice. By default such a task fails without using its retries. A deferrable task that expects a callback
        waits for the callback first, which settles the question
    :param resubmit_on_failure: let Airflow's retries submit a new, separately billed job after one has failed at Luma.
        If False, such a task fails without using its retries: a prompt or a video that Luma's moderation refuses will
        be refused again, minutes after each submission
    :param check_video: validate the video before submitting it, and refuse what Luma would refuse. For a file in a
        storage, this reads its format and length, which needs the extra ``media`` of this package; for a public
        address, it reads the first bytes
    :param max_jobs_per_run: the most jobs that the DAG run may submit, over all tasks that set this. Beyond it, a task
        fails without using its retries. Needs a ``submission_store`` in the connection
    :raises LumaValidationError: a parameter is invalid
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
        queue_timeout: float | None = None,
        max_jobs_per_run: int | None = None,
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
        self.queue_timeout = queue_timeout
        self.max_jobs_per_run = max_jobs_per_run
        self._luma_task_id: str | None = None

        self._check_parameters()

    def _check_parameters(self) -> None:
        """Refuse invalid literals; what templates render to is checked when the task runs."""
        check_positive("poll_interval", self.poll_interval)
        check_positive("timeout", self.timeout)
        if self.queue_timeout is not None:
            check_positive("queue_timeout", self.queue_timeout)
        if self.max_jobs_per_run is not None:
            _check_job_limit(self.max_jobs_per_run)
        self.check_literal_prompt()
        if is_literal(self.video_url):
            check_video_address(self.video_url)
        if self.callback_url and is_literal(self.callback_url):
            check_callback_url(self.callback_url)

    # -- Airflow's entry points -------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job and, unless ``wait_for_completion`` is off, wait for it."""
        with self.delivered_failure(context):
            return self._submit(context, DeferralState())

    def execute_from_queue(self, context: Context, event: DeferralExpired, **state: Any) -> dict[str, Any]:
        """Try again to submit a job that Luma has temporarily refused."""
        with self.delivered_failure(context):
            return self._submit(context, DeferralState.read(state, event), permitted_at=event["at"])

    def execute_with_callback(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Continue a submission whose response was lost, with the job that its callback named, if one was received."""
        deferral = DeferralState.read(state, event)
        named = event["callback"]["luma_task_id"] if "callback" in event else None
        with self.delivered_failure(context):
            step = self._submitter(context, self.hook.get_client()).recover(deferral, named)
            return self._take(step, context)

    def execute_complete(self, context: Context, event: Event, **state: Any) -> dict[str, Any]:
        """Return the job's result, raise the error that ended the wait, or defer again after a premature callback."""
        deferral = DeferralState.read(state, event)
        self._luma_task_id = deferral.luma_task_id
        with self.delivered_failure(context):
            job = self.resume_wait(event, deferral, poll_interval=self.poll_interval)
            return self.finished(job, context, source=self._source)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task; if ``execution_timeout`` ended its wait, raise an error that names the job."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            from airflow_provider_luma.submission.workflow import execution_timeout_error

            ti = context["ti"]
            luma_task_id = ti.xcom_pull(task_ids=ti.task_id, key="luma_task_id", map_indexes=ti.map_index)
            with pushed_failure(context):
                # With an id, no record is needed, and the store may be what kept the task waiting.
                store = None if luma_task_id else self.open_store(context)
                failure = execution_timeout_error(store, self.execution_timeout, luma_task_id)
                failure.remedy = self.recovery_hint(context) if luma_task_id else ""
                raise failure from error

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the source video, the result and the job for OpenLineage."""
        from airflow_provider_luma.lineage import job_lineage

        return job_lineage(self._source, self.result)

    @property
    def _source(self) -> str | None:
        """The video as the DAG names it; None if this process does not know it."""
        return str(self.video_url)

    def facts_of_run(self, context: Context) -> dict[str, Any]:
        """If the DAG run has a limit, return how many jobs it has submitted, and their price if that is known."""
        if self.max_jobs_per_run is None:
            return {}
        usage = self.open_store(context).run_budget(self.max_jobs_per_run, self.luma_conn_id).usage()
        facts = {"jobs_in_run": usage.jobs, "run_us_dollars": usage.us_dollars}
        return {name: value for name, value in facts.items() if value is not None}

    def on_kill(self) -> None:
        """Send no submission after this; log the job's id, and that the job is not cancelled."""
        super().on_kill()
        if self._luma_task_id is None:
            self.log.warning(
                "Killed before Luma returned a task id; a job may have been accepted. At kie.ai, check the log page of "
                "the account; for Luma's own API, ask Luma's support"
            )
        else:
            self.log.warning(
                "Luma cannot cancel a job: Luma task %s is still running there and will be billed. "
                "A LumaTaskSensor with this luma_task_id fetches its result",
                self._luma_task_id,
            )

    # -- one try ----------------------------------------------------------------------------------------------------

    def _submit(self, context: Context, deferral: DeferralState, permitted_at: float | None = None) -> dict[str, Any]:
        from airflow_provider_luma.submission.workflow import Submission

        client, request = self._checked_request()
        LumaResultLink().push(self, context)
        submitter = self._submitter(context, client)
        facts: dict[str, Any] = {"video_url": request.video_url, "recovery": submitter.store.recovery_hint}

        def show(**more: Any) -> None:
            facts.update(more)
            push_request(context, prompt=request.prompt, **facts)

        def on_upload(url: str) -> None:
            price = submission.price(client.connection.service)
            show(video_url=url, source=request.video_url, price=price)

        show()
        submission = Submission(request, self._input_video(request, on_upload), deferral)
        step = submitter.submit(submission)
        return self._take(step, context, permitted_at)

    def _checked_request(self) -> tuple[LumaClient, ModifyRequest]:
        """Check the rendered parameters before anything is sent or recorded; return the client, and the request."""
        from airflow_provider_luma.core.job import ModifyRequest

        # An upstream task may return an ObjectStoragePath.
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
            queue_timeout=self.timeout if self.queue_timeout is None else self.queue_timeout,
            poll_interval=self.poll_interval,
            log=self.log,
            on_job_known=self._on_job_known,
            fail_if_killed=self.fail_if_killed,
            task_instance_id=getattr(context["ti"], "id", None),
            max_jobs_per_run=self.max_jobs_per_run,
        )

    def _on_job_known(self, luma_task_id: str) -> None:
        self._luma_task_id = luma_task_id

    def _take(self, step: NextStep, context: Context, permitted_at: float | None = None) -> dict[str, Any]:
        """Wait for a turn to submit, for a callback, or for the job."""
        from airflow_provider_luma.submission.workflow import AwaitCallback, Enqueue
        from airflow_provider_luma.triggers.luma import LumaCallbackTrigger, LumaSubmissionTrigger

        if isinstance(step, Enqueue):
            trigger = LumaSubmissionTrigger(
                self.luma_conn_id,
                step.state.as_kwargs(),
                step.until,
                permitted_at,
                step.not_before,
                step.has_too_many_jobs,
                step.requests_per_minute,
            )
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
            self.log.info("Not waiting for the job: wait_for_completion is False")
            service = job.state.service or DEFAULT_SERVICE
            result = LumaTask(job.luma_task_id, LumaTaskStatus.GENERATING, service=service).as_dict()
            self.report_job(result, context, prompt=self.prompt, source=self._source)
            return dict(result)
        if job.finished is None and self.deferrable:
            self.log.info("Waiting for the job in the triggerer")
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

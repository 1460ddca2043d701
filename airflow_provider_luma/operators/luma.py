# SPDX-License-Identifier: Apache-2.0
"""
The steps of a pipeline: have Luma modify a video, fetch the result.

A DAG file is parsed every half a minute, so this module imports the hook, and with it the HTTP libraries, only
when a task runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, Stats
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_provider_luma import protocol, submission
from airflow_provider_luma.deferral import LumaDeferral
from airflow_provider_luma.exceptions import (
    PERMANENT,
    TRANSIENT,
    LumaError,
    LumaGenerationError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.links.luma import LumaResultLink, push_request, pushed_failure
from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus

try:
    from airflow.sdk.exceptions import TaskDeferralTimeout
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferralTimeout  # type: ignore[no-redef]

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor

    from airflow_provider_luma.hooks.luma import LumaHook


#: Where a task that Luma has refused says so, and when, to the others of its mapped run.
REFUSED_KEY = "luma_refused_at"

#: Seconds for which a refusal of one task tells the others of its mapped run to line up.
REFUSAL_IS_NEWS = 30.0


@dataclass(frozen=True)
class _InLine:
    """
    A task that waits for its turn to submit.

    :param since: when it first wanted to, in seconds since the epoch
    :param away_since: since when Luma has been unavailable rather than busy, in seconds since the epoch
    :param turn: when it was given its last turn, in seconds since the epoch
    :param execution_deadline: see :class:`~airflow_provider_luma.deferral.LumaDeferral`
    """

    since: float
    away_since: float | None = None
    turn: float | None = None
    execution_deadline: float | None = None


class LumaModifyOperator(LumaDeferral):
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
    :param poll_interval: seconds between two looks at the job; the service recommends 30. If deferrable, and Luma
        calls Airflow back, ten times as long
    :param timeout: seconds that a try waits for the video at most, and before that for Luma to accept the job while
        it is over its limits or unavailable. The job itself goes on at Luma
    :param resubmit_on_unknown: submit again when it is unknown whether an earlier submission was accepted, at
        the risk of paying twice. By default such a task fails without using its retries. If Luma calls back, and the
        task is deferrable, it waits for the callback first, which tells
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
        self._luma_task_id: str | None = None
        self._made: float | None = None

        protocol.check_positive("poll_interval", poll_interval)
        protocol.check_positive("timeout", timeout)
        if _is_literal(prompt):
            protocol.check_prompt(prompt)
        if _is_literal(video_url):
            protocol.check_video_url(video_url)
        if callback_url and _is_literal(callback_url):
            protocol.check_callback_url(callback_url)

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job and, unless told otherwise, wait for it."""
        return self._run(context, None)

    def execute_in_turn(
        self,
        context: Context,
        event: dict[str, Any],
        since: float,
        away_since: float | None = None,
        execution_deadline: float | None = None,
    ) -> dict[str, Any]:
        """Submit the job, which Luma had refused, or would have, now that it is its turn; and go on as ever."""
        return self._run(context, _InLine(since, away_since, event["turn"], execution_deadline))

    def _run(self, context: Context, in_line: _InLine | None) -> dict[str, Any]:
        from airflow_provider_luma.hooks.luma import LumaHook

        with pushed_failure(context):
            hook = LumaHook(self.luma_conn_id)
            self._check(hook)
            LumaResultLink().push(self, context)
            push_request(context, prompt=self.prompt, video_url=self.video_url)
            luma_task_id, finished = self._job(hook, context, in_line)
            return self._go_on(hook, context, luma_task_id, finished, _deadline(in_line))

    def execute_complete(
        self,
        context: Context,
        event: dict[str, Any],
        luma_task_id: str | None = None,
        end_time: float | None = None,
        execution_deadline: float | None = None,
    ) -> dict[str, Any]:
        """Take up the trigger's event, or a callback: return the result, raise what ended the wait, or wait on."""
        self._luma_task_id = luma_task_id
        with pushed_failure(context):
            ended = self._ended(
                event,
                luma_task_id=luma_task_id,
                poll_interval=self.poll_interval,
                end_time=end_time,
                execution_deadline=execution_deadline,
            )
        return self._result(ended["task"])

    def execute_called_back(
        self,
        context: Context,
        event: dict[str, Any],
        reference: str,
        end_time: float,
        execution_deadline: float | None = None,
        called: str | None = None,
    ) -> dict[str, Any]:
        """
        Take up the callback of a submission whose answer was lost: go on with its job, or wait on.

        :param called: the job named by a callback that could not be verified yet
        """
        from airflow_provider_luma.hooks.luma import LumaHook

        hook = LumaHook(self.luma_conn_id)
        store = context.get("task_state_store")
        called = event.get("callback", {}).get("luma_task_id") or called or _remembered(store, reference)
        with pushed_failure(context):
            is_our_job, finished = False, None
            trouble: LumaError | None = None
            try:
                if called is not None and (is_our_job := self._is_our_job(hook, called, reference)):
                    finished = hook.check(called) if self.wait_for_completion else None
                else:
                    called = None
            except TRANSIENT as error:
                self.log.warning("Luma task %s called back, but Luma cannot be asked about it: %s", called, error)
                trouble = error
            if called is None or not is_our_job:
                if time.time() < end_time:
                    self._await_callback(reference, end_time, execution_deadline, called)
                if trouble is not None:
                    raise trouble  # the next try finds the id beside the intent, and asks again
                self._give_up(store, reference)
            self._complete(store, reference, called, max_tries=context["ti"].max_tries)
            return self._go_on(hook, context, called, finished, execution_deadline)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Name the job when ``execution_timeout`` ended the wait for it."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            ti = context["ti"]
            luma_task_id = ti.xcom_pull(task_ids=ti.task_id, key="luma_task_id", map_indexes=ti.map_index)
            store = context.get("task_state_store")
            record = submission.Record.load(store.get(submission.STORE_KEY)) if store is not None else None
            if luma_task_id:
                what_is_left = (
                    "It was not cancelled, since Luma cannot cancel: it is still running there under this id, and "
                    "paid for"
                )
            elif store is not None and (record is None or record.luma_task_id is not None):
                what_is_left = "Luma had accepted no job of this try; nothing was billed"
            else:
                what_is_left = "No answer to a submission is known; a job may have been accepted, and be running"
            with pushed_failure(context):
                raise LumaTimeoutError(
                    None,
                    f"not finished within execution_timeout ({self.execution_timeout}). {what_is_left}",
                    luma_task_id=luma_task_id,
                ) from error

    def on_kill(self) -> None:
        """Say that the job goes on, and under which id."""
        if self._luma_task_id is None:
            self.log.warning("Killed before Luma had given a task id; look at the Luma account for the job")
        else:
            self.log.warning(
                "Luma cannot cancel a job: Luma task %s goes on there under this id, and is billed. "
                "A LumaTaskSensor with this luma_task_id fetches its result",
                self._luma_task_id,
            )

    def _check(self, hook: LumaHook) -> None:
        """Refuse, before anything is sent or remembered, what templates have made of the parameters."""
        try:
            service_is_public = hook.get_luma_connection().is_public
            protocol.check_prompt(self.prompt)
            protocol.check_video_url(self.video_url, service_is_public=service_is_public)
            protocol.check_watermark(self.watermark)
            if self.callback_url:
                protocol.check_callback_url(self.callback_url, service_is_public=service_is_public)
            else:
                hook.get_callback_url(submission.new_reference())  # to see whether there can be one
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error

    def _go_on(
        self,
        hook: LumaHook,
        context: Context,
        luma_task_id: str,
        finished: LumaTask | None,
        execution_deadline: float | None = None,
    ) -> dict[str, Any]:
        """Tell the job's id, and wait for it as this task is to wait."""
        self._luma_task_id = luma_task_id
        context["ti"].xcom_push(key="luma_task_id", value=luma_task_id)
        if not self.wait_for_completion:
            self.log.info("Not waiting for it, as wait_for_completion is off")
            return LumaTask(luma_task_id, LumaTaskStatus.GENERATING).as_dict()
        end_time = time.time() + self.timeout
        if finished is None and self.deferrable:
            self.log.info("Waiting for it in the triggerer")
            self._defer_for_job(
                luma_task_id,
                poll_interval=self.poll_interval,
                end_time=end_time,
                execution_deadline=execution_deadline,
                made=self._made,
            )
        task = finished or hook.wait_for_completion(
            luma_task_id, timeout=self.timeout, poll_interval=self.poll_interval
        )
        return self._result(task.as_dict())

    def _job(self, hook: LumaHook, context: Context, in_line: _InLine | None) -> tuple[str, LumaTask | None]:
        """Return the id of this task's job, submitted now or by an earlier try; and the job, if it has ended well."""
        store, ti = context.get("task_state_store"), context["ti"]
        wanted = submission.fingerprint(
            prompt=self.prompt, video_url=self.video_url, watermark=self.watermark, luma_conn_id=self.luma_conn_id
        )
        record = self._recorded(hook, store, max_tries=ti.max_tries)
        says, finished = self._ask(hook, record) if submission.must_ask(record, wanted) else (None, None)
        decision = submission.decide(
            record,
            fingerprint=wanted,
            max_tries=ti.max_tries,
            says=says,
            can_await_callback=self.deferrable,
            resubmit_on_unknown=self.resubmit_on_unknown,
        )
        if store is None:
            self.log.info("Airflow keeps no task state below 3.3: every try submits a job of its own")
        else:
            self.log.info(decision.why)
        if decision.step is submission.Step.ASK_LATER:
            raise LumaUnavailableError(None, decision.why)
        if decision.step is submission.Step.FAIL:
            self._fail(LumaSubmissionUnknownError(None, decision.why))
        if decision.step is submission.Step.AWAIT_CALLBACK:
            assert record is not None, "only a recorded submission can be called back about"
            self._await_callback(record.reference, time.time() + self.timeout, _deadline(in_line))
        if decision.step is submission.Step.SUBMIT:
            reference = submission.new_reference()
            callback_url = self.callback_url or hook.get_callback_url(reference)
            intent = submission.Record.intent(
                reference,
                wanted,
                max_tries=ti.max_tries,
                try_number=ti.try_number,
                calls_back=callback_url is not None and not self.callback_url,
            )
            return self._submit(hook, context, intent, callback_url, in_line), None
        assert record is not None and record.luma_task_id is not None, "only a recorded job can be continued"
        if store is not None and record.max_tries != ti.max_tries:
            # From here on a new try is a retry of this one, and no longer the one that a person cleared.
            store.set(submission.STORE_KEY, replace(record, max_tries=ti.max_tries).as_dict())
        return record.luma_task_id, finished

    def _recorded(
        self, hook: LumaHook, store: TaskStateStoreAccessor | None, *, max_tries: int
    ) -> submission.Record | None:
        """Return what an earlier try has left; with its id, if a callback has told that in the meantime."""
        record = submission.Record.load(store.get(submission.STORE_KEY)) if store is not None else None
        if record is None or record.luma_task_id is not None:
            return record
        called = _remembered(store, record.reference)
        if called is None or not self._is_our_job(hook, called, record.reference):
            return record
        # Whoever has cleared the task since has not seen this job: it counts as one that a retry has found.
        return self._complete(store, record.reference, called, max_tries=max_tries)

    def _is_our_job(self, hook: LumaHook, luma_task_id: str, reference: str) -> bool:
        """Ask Luma whether a job that a callback has named was made by a submission of this task."""
        try:
            task = hook.get_task(luma_task_id)
        except LumaNotFoundError:
            task = None
        if task is not None and hook.is_job_of(task, reference):
            self.log.info("A callback has told that the lost submission became Luma task %s", luma_task_id)
            return True
        self.log.warning("A callback named Luma task %s, which this task did not submit: ignored", luma_task_id)
        return False

    def _complete(
        self, store: TaskStateStoreAccessor | None, reference: str, luma_task_id: str, *, max_tries: int
    ) -> submission.Record | None:
        """Put a job's id into the record of its submission."""
        record = submission.Record.load(store.get(submission.STORE_KEY)) if store is not None else None
        if store is None or record is None or record.reference != reference:
            return record
        record = replace(record, luma_task_id=luma_task_id, max_tries=max_tries)
        store.set(submission.STORE_KEY, record.as_dict())
        return record

    def _await_callback(
        self, reference: str, end_time: float, execution_deadline: float | None = None, called: str | None = None
    ) -> NoReturn:
        """Be deferred until a callback tells what has become of a submission."""
        from airflow_provider_luma.triggers.luma import LumaCallbackTrigger
        from airflow_provider_luma.waiting import INTERVALS_WITH_CALLBACK

        # A callback between the last look into the store and the deferral would be missed without a look now and then.
        until = min(end_time, time.time() + INTERVALS_WITH_CALLBACK * self.poll_interval)
        self._defer_with_deadline(
            LumaCallbackTrigger(reference, until),
            "execute_called_back",
            execution_deadline,
            reference=reference,
            end_time=end_time,
            called=called,
        )

    def _give_up(self, store: TaskStateStoreAccessor | None, reference: str) -> NoReturn:
        """Fail, as no callback has told what became of a submission."""
        error = LumaSubmissionUnknownError(
            None,
            f"no answer to the submission is known, and Luma has not called back within {self.timeout:g} s. "
            "It may have been accepted all the same",
        )
        if not self.resubmit_on_unknown:
            self._fail(error)
        record = submission.Record.load(store.get(submission.STORE_KEY)) if store is not None else None
        if store is not None and record is not None and record.reference == reference:
            store.delete(submission.STORE_KEY)  # for the next try to submit again
        raise error

    @staticmethod
    def _fail(error: LumaError) -> NoReturn:
        """Fail without using the task's retries."""
        raise AirflowFailException(str(error)) from error

    def _ask(self, hook: LumaHook, record: submission.Record | None) -> tuple[submission.LumaSays, LumaTask | None]:
        assert record is not None and record.luma_task_id is not None, "there is only an id to ask about"
        self._luma_task_id = record.luma_task_id
        try:
            finished = hook.check(record.luma_task_id, patiently=True)
        except TRANSIENT:
            return submission.LumaSays.NOTHING, None
        except LumaGenerationError:
            return submission.LumaSays.FAILED, None
        except LumaNotFoundError:
            return submission.LumaSays.UNKNOWN, None
        return (submission.LumaSays.SUCCEEDED if finished else submission.LumaSays.RUNNING), finished

    def _submit(
        self,
        hook: LumaHook,
        context: Context,
        intent: submission.Record,
        callback_url: str | None,
        in_line: _InLine | None,
    ) -> str:
        """Submit, with the intent in the store before each attempt, and the id after it."""
        store = context.get("task_state_store")
        is_forgotten = True

        def attempt() -> str:
            nonlocal is_forgotten
            if store is not None:
                store.set(submission.STORE_KEY, intent.as_dict())
            try:
                luma_task_id = hook.submit(
                    self.prompt,
                    self.video_url,
                    callback_url=callback_url,
                    watermark=self.watermark or None,
                )
            except LumaSubmissionUnknownError:
                raise  # the intent stays, for the next try to see
            except (LumaError, AirflowException, AirflowRuntimeError):
                # Refused, never sent, or the connection could not be read: surely nothing was accepted.
                if store is not None:
                    is_forgotten = self._in_spite_of_the_store(store.delete, submission.STORE_KEY)
                raise
            self._made = time.time()
            self.log.info("Luma accepted the job as Luma task %s", luma_task_id)
            if store is not None:
                completed = replace(intent, luma_task_id=luma_task_id).as_dict()
                self._in_spite_of_the_store(store.set, submission.STORE_KEY, completed)
            return luma_task_id

        if self.deferrable and in_line is None and self._a_sibling_was_refused(context):
            self.log.info("Luma has just refused others of this mapped task, for being too many")
            self._line_up(context, None, None)
        self.log.info("Submitting %s to Luma with the prompt %r", self.video_url, self.prompt)
        try:
            return attempt() if self.deferrable else hook.patiently(attempt, self.timeout)
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        except TRANSIENT as error:
            if not (self.deferrable and is_forgotten):
                raise
            self.log.warning("The submission was not accepted: %s. Nothing was billed", error)
            self._line_up(context, in_line, error)
        except LumaSubmissionUnknownError as error:
            if intent.calls_back and self.deferrable:
                self.log.warning("%s. If it was, Luma calls back when the job has ended: waiting for that", error.msg)
                self._await_callback(intent.reference, time.time() + self.timeout, _deadline(in_line))
            if self.resubmit_on_unknown:
                raise
            raise AirflowFailException(str(error)) from error

    def _line_up(self, context: Context, in_line: _InLine | None, error: LumaError | None) -> NoReturn:
        """
        Be deferred until it is this task's turn to submit.

        :param error: why the submission was refused; None if it was not tried
        :raises LumaError: that, if the task has waited long enough
        """
        from airflow_provider_luma.hooks.luma import SUBMIT_PATIENCE
        from airflow_provider_luma.triggers.luma import LumaSubmissionTrigger

        now = time.time()
        in_line = in_line or _InLine(since=now)
        until, away_since = in_line.since + self.timeout, None
        if isinstance(error, LumaUnavailableError):
            away_since = in_line.away_since or now
            until = min(until, away_since + SUBMIT_PATIENCE)
        if error is not None:
            Stats.incr("luma.submission.refused")
            if now >= until:
                raise error
        if isinstance(error, LumaRateLimitError):
            self._tell_siblings(context, now)
        self.log.info("Waiting in the triggerer for a turn to submit")
        self._defer_with_deadline(
            LumaSubmissionTrigger(
                self.luma_conn_id,
                since=in_line.since,
                until=until,
                turn=in_line.turn,
                not_before=now + (error.retry_after or 0.0) if error is not None else 0.0,
            ),
            "execute_in_turn",
            in_line.execution_deadline,
            since=in_line.since,
            away_since=away_since,
        )

    def _tell_siblings(self, context: Context, now: float) -> None:
        """Tell the other tasks of a mapped run that Luma accepts no more for now; no harm is done if that fails."""
        if not _is_mapped(context):
            return
        try:
            context["ti"].xcom_push(key=REFUSED_KEY, value=now)
        except Exception:
            self.log.warning("The other tasks of this mapped run could not be told of the refusal", exc_info=True)

    def _a_sibling_was_refused(self, context: Context) -> bool:
        """Tell whether Luma has lately refused another task of the same mapped run: then this one need not try."""
        if not _is_mapped(context):
            return False
        ti = context["ti"]
        try:
            refused_at = ti.xcom_pull(task_ids=[ti.task_id], key=REFUSED_KEY)
        except Exception:
            self.log.warning("It could not be asked whether Luma has refused others of this mapped run", exc_info=True)
            return False
        return any(at is not None and time.time() - at < REFUSAL_IS_NEWS for at in refused_at)

    def _in_spite_of_the_store(self, change: Callable[..., None], *arguments: Any) -> bool:
        """Change the store; if it fails, say so and go on: what Luma has answered matters more."""
        try:
            change(*arguments)
        except Exception:
            self.log.exception(
                "The task state store could not be changed, and holds an intent now: should this try not end well, "
                "the next one fails, and asks for a person to look at the Luma account"
            )
            return False
        return True

    def _result(self, result: dict[str, Any]) -> dict[str, Any]:
        self.log.info("Luma task %s is done: %s", result["luma_task_id"], ", ".join(result["result_urls"]))
        return result


class LumaDownloadOperator(BaseOperator):
    """
    Stream results, or any files from the web, to a storage that Airflow knows: a disk, S3, GCS, Azure …

    Results stay at Luma for 14 days. Until a file is whole it has another name; a broken connection is resumed;
    a file that is there already, and whole, is not fetched again.

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
        from airflow_provider_luma.hooks.luma import LumaHook

        try:
            hook, destination = LumaHook(self.luma_conn_id), str(self.destination or "").strip()
            return [
                str(hook.download(url, destination, name=name, overwrite=self.overwrite))
                for url, name in self._plan(destination).items()
            ]
        except (*PERMANENT, FileExistsError) as error:
            raise AirflowFailException(str(error)) from error

    def _plan(self, destination: str) -> dict[str, str | None]:
        """Return each address's file name in the destination, the same one at every try; None if that is the file."""
        from airflow_provider_luma.hooks.download import names_a_file, safe_name

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


def _deadline(in_line: _InLine | None) -> float | None:
    return in_line.execution_deadline if in_line is not None else None


def _is_mapped(context: Context) -> bool:
    map_index = context["ti"].map_index
    return map_index is not None and map_index >= 0


def _remembered(store: TaskStateStoreAccessor | None, reference: str) -> str | None:
    """Return the job that the receiver of callbacks has written down for a submission."""
    callback: Any = store.get(submission.CALLBACK_KEY) if store is not None else None
    return callback["luma_task_id"] if callback and callback["reference"] == reference else None


def _is_literal(value: object) -> bool:
    """Tell whether a value is final when the DAG is parsed: neither a template nor another task's output."""
    return value is None or (isinstance(value, str) and "{{" not in value and "{%" not in value)

# SPDX-License-Identifier: Apache-2.0
"""
The operators of a batch: plan it, modify and download each clip, and collect the outcome.

:func:`~airflow_provider_luma.task_groups.batch.modify_videos` combines them. DAG files are parsed every 30 seconds, so
this module imports what reads and writes files only when a task runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.sdk import BaseOperator

from airflow_provider_luma.compat import AirflowFailException, AirflowSkipException, conf
from airflow_provider_luma.core.addresses import is_luma_file, is_web_address
from airflow_provider_luma.core.redaction import shown_address
from airflow_provider_luma.core.validation import check_no_outer_blanks, check_prompt, is_absolute
from airflow_provider_luma.core.wire import plain_text, read_object, read_text
from airflow_provider_luma.exceptions import CLAIMED_HINTS, PERMANENT, LumaValidationError
from airflow_provider_luma.files.destination_names import check_destination, names_a_file
from airflow_provider_luma.links.luma import ERROR_KEY, pushed_failure
from airflow_provider_luma.operators.base import LiteralValue, MaskingOperator, TemplatedOperator, is_literal, items_of
from airflow_provider_luma.operators.luma import LumaModifyOperator, PromptOperator
from airflow_provider_luma.operators.transfers import LumaDownloadOperator

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_luma.client import LumaClient
    from airflow_provider_luma.connection import LumaConnection
    from airflow_provider_luma.core.decision import Outcome
    from airflow_provider_luma.core.deferral import JobFinished
    from airflow_provider_luma.core.job import ModifyRequest
    from airflow_provider_luma.files.batch_video import BatchVideo, Found, VideoClaim
    from airflow_provider_luma.files.clip_list import Clip
    from airflow_provider_luma.files.input_video import InputVideo
    from airflow_provider_luma.submission.store import SubmissionStore

#: XCom of the plan with the one prompt for all clips.
PROMPT_KEY = "prompt"

#: XCom of the plan with the rows of the table; those of clips that are modified have a map index.
TABLE_KEY = "luma_table"

#: XCom of a task ``modify`` with the job whose result it has returned.
JOB_KEY = "luma_job"

#: XCom of a download with the video that it has written.
VIDEO_KEY = "luma_video"

#: A public clip that any service accepts, for checks of the other parameters.
_ANY_CLIP = "https://example.com/clip.mp4"

#: How many clips an error lists at most, and how many characters of each clip's reason are kept.
_MAX_LISTED, _MAX_REASON = 20, 1200

#: What to do about clips that this run no longer has a task for.
_NEW_RUN = "start a new run, which does not pay again for videos that are already there"


def check_folder(destination: object) -> None:
    """
    Check the folder for the videos of a batch.

    :raises LumaValidationError: it cannot be one
    """
    text, remedy = str(destination or ""), "give a folder, such as s3://my_aws@bucket/videos"
    check_no_outer_blanks("destination", text)
    if not text or is_web_address(text) or not is_absolute(text):
        raise LumaValidationError(None, f"destination is {text!r}: {remedy}, or an absolute path")
    if names_a_file(text):
        raise LumaValidationError(None, f"destination is a file, {text!r}: {remedy}")
    check_destination(text)


def check_allowed_failures(allowed: object) -> None:
    """
    Check how many clips may fail.

    :raises LumaValidationError: it is neither a number of clips nor a share of them
    """
    is_number = isinstance(allowed, (int, float)) and not isinstance(allowed, bool)
    if not is_number or allowed < 0 or (isinstance(allowed, float) and not allowed <= 1):  # type: ignore[operator]
        raise LumaValidationError(
            None,
            f"allowed_failures is {allowed!r}: give a number of clips, such as 3, or a share of them, such as 0.05",
        )


class BatchPlanOperator(MaskingOperator, PromptOperator, TemplatedOperator):
    """
    Find the clips of a batch, and decide which of them to modify.

    Returns a dict for each clip to modify. If the clips, the prompts or the destination cannot work, the task fails
    before anything is paid for.

    :param clips: a folder, or the addresses of clips (templated)
    :param prompt: one prompt or the name of a file with it; a list with a prompt for each clip; or a dict of prompts by
        clip name (templated)
    :param destination: the folder for the videos (templated)
    :param modify_task_id: the task that modifies the clips
    :param pattern: which files of a folder are clips (templated)
    :param watermark: the jobs' watermark (templated)
    :param options: the jobs' options (templated)
    :param keep_sound: put the sound of each clip under its video
    :param retry_failed: also submit clips for which another run may have a job (templated)
    :param luma_conn_id: the connection of the jobs (templated)
    :raises LumaValidationError: a parameter cannot work
    """

    template_fields: Sequence[str] = (
        *("clips", "prompt", "destination", "pattern", "watermark", "options", "retry_failed", "luma_conn_id"),
    )
    ui_color = "#f5ead7"

    def __init__(
        self,
        *,
        clips: Any,
        prompt: Any,
        destination: str,
        modify_task_id: str,
        pattern: str | None = None,
        watermark: str | None = None,
        options: dict[str, Any] | None = None,
        keep_sound: bool = False,
        retry_failed: bool | str = False,
        luma_conn_id: str = "luma_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clips = clips
        self.prompt = prompt
        self.destination = destination
        self.modify_task_id = modify_task_id
        self.pattern = pattern
        self.watermark = watermark
        self.options = options
        self.keep_sound = keep_sound
        self.retry_failed = retry_failed
        self.luma_conn_id = luma_conn_id
        self.has_one_prompt = isinstance(prompt, (str, LiteralValue))
        self.check_literal_prompt()
        if is_literal(destination):
            check_folder(destination)
        if not isinstance(keep_sound, bool):
            raise LumaValidationError(None, f"keep_sound is {keep_sound!r}: give True or False")
        if not isinstance(retry_failed, str) or is_literal(retry_failed):
            _is_true("retry_failed", retry_failed)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Return the clips to modify."""
        with pushed_failure(context):
            try:
                return self._plan(context)
            except PERMANENT as error:
                raise AirflowFailException(str(error)) from error

    def _plan(self, context: Context) -> list[dict[str, Any]]:
        from airflow_provider_luma.files.batch_video import BatchVideo
        from airflow_provider_luma.files.clip_list import find_clips
        from airflow_provider_luma.files.destinations import folder_to_write, refuse_missing_parent
        from airflow_provider_luma.files.storage import make_folder

        ti: Any = context["ti"]
        run = run_of(ti, self.modify_task_id)
        check_folder(self.destination)
        folder = folder_to_write("destination", self.destination, self.log)
        refuse_missing_parent("destination", folder)
        clips = find_clips(self._given_clips(), self.pattern, folder, self.log)
        prompts = self._prompts(clips)
        self._check(clips, prompts)
        was_cleared = ti.max_tries > self.retries
        planned = self._look_up(clips, prompts, folder, partial(BatchVideo, run=run, is_new=not was_cleared))
        todo = sorted((one for one in planned if one.map_index is not None), key=lambda one: one.map_index or 0)
        _check_map_length(len(todo))
        for one in todo:
            make_folder(one.clip.video)
        ti.xcom_push(key=TABLE_KEY, value=[one.as_row() for one in planned])
        if self.has_one_prompt:
            ti.xcom_push(key=PROMPT_KEY, value=self.prompt)
        left, replaced = sum(one.left is not None for one in planned), sum(one.found.has_video for one in todo)
        self.log.info(
            "%d clips: %d to modify, each with a job at Luma; %d have their video; %d are left to another run",
            *(len(planned), len(todo), len(planned) - len(todo) - left, left),
        )
        if replaced:
            self.log.warning("%d videos will be replaced", replaced)
        return [self._parameters(one) for one in todo]

    def _parameters(self, one: _Planned) -> dict[str, Any]:
        """Return the parameters of one clip's tasks. They are short, because each task reads those of all clips."""
        address = one.clip.address
        prompt = {} if self.has_one_prompt else {"prompt": one.prompt}
        return {
            "clip": address,
            "video": str(one.clip.video),
            "sound_from": address if self.keep_sound else None,
            "replaces": one.replaces_claim,
            **prompt,
        }

    def _given_clips(self) -> object:
        is_list = isinstance(self.clips, Iterable) and not isinstance(self.clips, (str, bytes, Mapping))
        return items_of(self.clips) if is_list else self.clips

    def _prompts(self, clips: Sequence[Clip]) -> list[str]:
        """
        Return the prompt of each clip.

        :raises LumaValidationError: not every clip has one
        """
        given = self.prompt
        if isinstance(given, str):
            return [given] * len(clips)
        if isinstance(given, Mapping) and not self.has_one_prompt:
            missing = [clip.name for clip in clips if clip.name not in given]
            if missing:
                raise LumaValidationError(None, f"prompt has no prompt for {_listed(missing)}: add each as a key")
            return [given[clip.name] for clip in clips]
        if self.has_one_prompt or not isinstance(given, Iterable) or isinstance(given, bytes):
            raise LumaValidationError(None, f"prompt is {given!r}: give one prompt, or one for each clip")
        prompts = items_of(given)
        if isinstance(self.clips, str):
            raise LumaValidationError(
                None,
                "prompt is a list, but the clips of a folder have no order: give a dict, with names of clips as keys",
            )
        if len(prompts) != len(clips):
            raise LumaValidationError(
                None, f"prompt contains {len(prompts)} prompts for {len(clips)} clips: give one for each clip"
            )
        return prompts

    def _check(self, clips: Sequence[Clip], prompts: Sequence[str]) -> None:
        """
        Refuse what would make every job fail, or a download after its job.

        The clips themselves are checked later, each by the task that modifies it.

        :raises LumaError: a parameter or the connection cannot work
        """
        from airflow_provider_luma.core.job import ModifyRequest
        from airflow_provider_luma.hooks.luma import LumaHook

        for prompt in prompts:
            check_prompt(prompt)
        client = LumaHook(self.luma_conn_id).get_client()
        for prompt in dict.fromkeys(prompts):
            client.check_request(ModifyRequest(prompt, _ANY_CLIP, self.watermark, options=self.options))
        for clip in clips:
            if self.keep_sound and is_luma_file(clip.address):
                raise LumaValidationError(
                    None, f"keep_sound is on, but the sound of {clip.address} cannot be read: turn keep_sound off"
                )

    def _look_up(
        self,
        clips: Sequence[Clip],
        prompts: Sequence[str],
        folder: ObjectStoragePath,
        video_at: Callable[[ObjectStoragePath], BatchVideo],
    ) -> list[_Planned]:
        """
        Return what is to be done for each clip.

        :raises LumaValidationError: a file that is not from this batch would be replaced, or a folder is in the way
        """
        from airflow_provider_luma.files.storage import file_in, files_in, folders_in

        takes_over = _is_true("retry_failed", self.retry_failed)
        deep = any("/" in clip.name for clip in clips)
        existing = {str(file_in(folder, name)) for name in files_in(folder, deep=deep)}
        _refuse_folders(clips, {str(file_in(folder, name)) for name in folders_in(folder, deep=deep)})
        planned = []
        for clip, prompt in zip(clips, prompts, strict=True):
            video = video_at(clip.video)
            check_destination(str(video.claim.path))
            found = video.look_up(clip.address, partial(self._request, clip, prompt), existing)
            replaces = read_text((found.claim or {}).get("reference")) if takes_over else None
            left = None if found.is_made or replaces else video.refusal(found.claim)
            planned.append(_Planned(clip, prompt, found, left, replaces))
        _refuse_replacing(planned)
        return _with_map_indexes(planned)

    def _request(self, clip: Clip, prompt: str) -> str:
        from airflow_provider_luma.files.batch_video import request_hash
        from airflow_provider_luma.files.clip_list import version_of

        return request_hash(version_of(clip.address), prompt, self.watermark, self.options, sound=self.keep_sound)


class _Planned(NamedTuple):
    """
    What is to be done for a clip.

    :param found: what exists at the place for its video
    :param left: what a person can do, if another run may have a job for it
    :param replaces_claim: the submission whose claim is taken over, if any
    :param map_index: the map index of the clip's tasks; None if the clip is not modified
    """

    clip: Clip
    prompt: str
    found: Found
    left: str | None
    replaces_claim: str | None
    map_index: int | None = None

    def as_row(self) -> dict[str, Any]:
        """Return its row of the table."""
        return {
            "clip": self.clip.shown,
            "video": None if self.left else str(self.clip.video),
            "luma_task_id": self.found.luma_task_id,
            "error": self.left,
            "map_index": self.map_index,
        }


def _with_map_indexes(planned: Sequence[_Planned]) -> list[_Planned]:
    """
    Assign a map index to each clip that is to be modified.

    After a Clear, a clip keeps its index if possible, because its record is found by it. If it gets another index,
    because there are fewer clips now, its task refuses it if there may already be a job for it.
    """
    todo = [number for number, one in enumerate(planned) if not (one.found.is_made or one.left)]
    earlier = {planned[number].found.map_index: number for number in todo}
    indexes = {number: index for index, number in earlier.items() if index is not None and index < len(todo)}
    free = iter(sorted(set(range(len(todo))) - set(indexes.values())))
    indexes |= {number: next(free) for number in todo if number not in indexes}
    return [one._replace(map_index=indexes.get(number)) for number, one in enumerate(planned)]


def _refuse_replacing(planned: Sequence[_Planned]) -> None:
    """
    Refuse to replace what this batch has not made.

    :raises LumaValidationError: it would be replaced
    """
    if foreign := [one.clip.video.name for one in planned if one.found.is_foreign]:
        raise LumaValidationError(
            None,
            "destination has files that would be replaced, but that no batch has written, or that were changed since: "
            f"{_listed(foreign)}. Remove them, or choose another folder",
        )
    others = [f"{one.clip.video.name} of {one.found.of_another}" for one in planned if one.found.of_another]
    if others:
        raise LumaValidationError(
            None,
            f"destination has videos of other clips or batches, which would be replaced: {_listed(others)}. Choose "
            "another folder, such as a new subfolder, or delete these videos if nobody needs them",
        )


def _refuse_folders(clips: Sequence[Clip], existing: Collection[str]) -> None:
    """
    Refuse videos whose names are those of folders.

    :param existing: the addresses of folders in the destination
    :raises LumaValidationError: there are such videos
    """
    videos = [str(clip.video) for clip in clips]
    folders = {*existing, *(video[:end] for video in videos for end, letter in enumerate(video) if letter == "/")}
    if blocked := [clip.video.name for clip in clips if str(clip.video) in folders]:
        raise LumaValidationError(
            None,
            f"destination has folders where videos are to be written: {_listed(blocked)}. Rename or remove them, or "
            "choose another folder",
        )


def _is_true(parameter: str, value: object) -> bool:
    """
    Return the value of a boolean parameter, which may be a string rendered from a template.

    :raises LumaValidationError: it is neither true nor false
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise LumaValidationError(None, f"{parameter} is {value!r}: give True or False")


def _check_map_length(clips: int) -> None:
    """
    Check that Airflow can map a task over this many clips.

    :raises LumaValidationError: it cannot
    """
    longest = conf.getint("core", "max_map_length", fallback=1024)
    if clips > longest:
        raise LumaValidationError(
            None,
            f"clips: {clips} are to be modified, but [core] max_map_length lets Airflow map a task over at most "
            f"{longest}: raise it, or take fewer clips at a time, for example with pattern",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{', '.join(map(repr, names[:_MAX_LISTED]))}{more}"


def run_of(ti: Any, modify_task_id: str) -> dict[str, Any]:
    """Return what identifies a run of a batch, for its claims and manifests."""
    return {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": modify_task_id}


class BatchModifyOperator(LumaModifyOperator):
    """
    Modify one clip of a batch, unless another run of the batch may have a job for it.

    :param video: where the video will be (templated)
    :param keep_sound: whether it gets the clip's sound
    :param replaces: the submission of another run whose claim is to be taken over (templated)
    """

    template_fields: Sequence[str] = (*LumaModifyOperator.template_fields, "video", "replaces")
    custom_operator_name = "LumaModifyOperator"

    after_result = "once the video is downloaded, clearing this task submits a new job"

    #: Whether no earlier try can have left a claim. False if the task resumes from the queue: it may find its own.
    _is_new = False

    def __init__(self, *, video: str, keep_sound: bool = False, replaces: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.video = video
        self.keep_sound = keep_sound
        self.replaces = replaces

    def open_store(self, context: Context, connection: LumaConnection | None = None) -> SubmissionStore:
        """Return a store that claims the video before anything is submitted."""
        from airflow_provider_luma.submission.claimed_store import ClaimedStore

        store = super().open_store(context, connection)
        recovery = CLAIMED_HINTS.get(store.recovery_hint, store.recovery_hint)
        return ClaimedStore(store, self._claim(context, recovery), recovery)

    def _claim(self, context: Context, recovery: str = "") -> VideoClaim:
        from airflow_provider_luma.files.batch_video import VideoClaim

        ti: Any = context["ti"]
        run = {**run_of(ti, ti.task_id), "map_index": ti.map_index}
        return VideoClaim(self.video, run, recovery, self._description, is_new=self._is_new, replaces=self.replaces)

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job, and wait for it."""
        self._is_new = context["ti"].try_number == 1
        return super().execute(context)

    def finished(self, job: JobFinished, context: Context, *, source: object = None) -> dict[str, Any]:
        """Return the result, with what its download needs to know: where the video goes, and how it was made."""
        from airflow_provider_luma.files.batch_video import BatchVideo
        from airflow_provider_luma.files.storage import as_path

        ti: Any = context["ti"]
        result = super().finished(job, context, source=source)
        ti.xcom_push(key=JOB_KEY, value={"map_index": ti.map_index, "luma_task_id": result["luma_task_id"]})
        run = {**run_of(ti, ti.task_id), "map_index": ti.map_index}
        try:
            made = BatchVideo(as_path(self.video), run).description(result["luma_task_id"])
        except Exception:  # the job is paid for, and its result matters more
            self.log.warning("Could not read how the video is made; a later run may not recognise it", exc_info=True)
            made = {}
        return {**result, "batch": {"video": self.video, **made}}

    def _mark(self, luma_task_id: str | None, outcome: Outcome | None, context: Context) -> bool:
        """Write a failure into the claim, too: then this task may submit again even where nothing keeps its record."""
        from airflow_provider_luma.core.decision import Outcome
        from airflow_provider_luma.submission.store import try_store

        if luma_task_id is not None and outcome is Outcome.FAILURE:
            try_store(self.log, self._claim(context).note_failure, luma_task_id)
        return super()._mark(luma_task_id, outcome, context)

    def _checked_request(self) -> tuple[LumaClient, ModifyRequest]:
        """Let the request ignore queries, as the plan does: a clip whose address was signed anew is still the same."""
        client, request = super()._checked_request()
        return client, replace(request, ignores_queries=True)

    def _input_video(self, request: ModifyRequest, on_upload: Callable[[str], None]) -> InputVideo:
        self._input = super()._input_video(request, on_upload)
        return self._input

    def _description(self) -> dict[str, Any]:
        """Describe what is submitted: the content that this try read, even if the clip has been replaced since."""
        from airflow_provider_luma.files.batch_video import description_of

        clip = self._input
        if self.keep_sound:
            with self.hook.open_sound(clip.address):
                pass  # a sound that cannot be read would fail the download of the paid video
        return description_of(
            clip.address, clip.version, self.prompt, self.watermark, self.options, sound=self.keep_sound
        )


class BatchDownloadOperator(LumaDownloadOperator):
    """
    Download the video of one clip of a batch, and describe it for later runs.

    :param modify_task_id: the task that modified the clip
    """

    custom_operator_name = "LumaDownloadOperator"

    def __init__(self, *, modify_task_id: str, **kwargs: Any) -> None:
        super().__init__(overwrite=True, **kwargs)  # a cleared clip comes back as another video
        self.modify_task_id = modify_task_id

    def _download(self, context: Context) -> list[str]:
        """Download the video; write its manifest."""
        from airflow_provider_luma.core.job import DEFAULT_SERVICE
        from airflow_provider_luma.files.batch_video import BatchVideo
        from airflow_provider_luma.files.storage import as_path

        ti: Any = context["ti"]
        result = read_object(self.urls)
        self.urls = {**result, "result_urls": list(result.get("result_urls") or ())[:1]}  # a job may have made more
        run = {**run_of(ti, self.modify_task_id), "map_index": ti.map_index}
        self._job = read_object(result.get("batch"))
        try:
            _check_video(self._job, self.destination, result.get("luma_task_id"))
            self._video = BatchVideo(as_path(self.destination), run)
            self._claim = self._video.own_claim(self._job)
            if self.sound_from:
                self._video.check_sound(str(self.sound_from), self._job)
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        files = super()._download(context)
        job = {"luma_task_id": result.get("luma_task_id"), "service": result.get("service", DEFAULT_SERVICE)}
        self._video.finish(self._held, job)
        made = {"map_index": ti.map_index, "video": self.destination, "luma_task_id": result.get("luma_task_id")}
        ti.xcom_push(key=VIDEO_KEY, value={**made, "prompt": self._held.get("prompt")})
        return files

    def before_writing(self) -> None:
        """
        Refuse to overwrite the video if another run took over during the download.

        :raises LumaValidationError: another run took over
        """
        self._held = self._video.hold(self._claim, self._job)


def _check_video(job: Mapping[str, Any], destination: str, luma_task_id: object) -> None:
    """
    Check that a job is for the video of a download. After a Clear of the plan alone, it may be for another clip.

    :raises LumaValidationError: it is not
    """
    if job.get("video", destination) != destination:
        raise LumaValidationError(
            None,
            f"destination: Luma task {luma_task_id} is for {shown_address(job['video'])}, and not for "
            f"{shown_address(destination)}: the list of clips has changed since it was submitted. A LumaTaskSensor "
            "with this luma_task_id fetches its video. Start a new run for the clips that have none",
        )


class BatchCollectOperator(BaseOperator):
    """
    Return what has become of each clip of a batch.

    :param plan_task_id: the task that has found the clips
    :param modify_task_id: the task that modified them
    :param download_task_id: the task that downloaded the videos
    :param allowed_failures: the number or share of clips that may be without a video
    :raises LumaValidationError: ``allowed_failures`` is neither a number nor a share
    """

    ui_color = "#f5ead7"

    def __init__(
        self,
        *,
        plan_task_id: str,
        modify_task_id: str,
        download_task_id: str,
        allowed_failures: float = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id
        self.modify_task_id = modify_task_id
        self.download_task_id = download_task_id
        self.allowed_failures = allowed_failures
        check_allowed_failures(allowed_failures)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Return the table; fail if too many clips have no video."""
        rows = self._rows(context["ti"])
        failed = [row for row in rows if row["error"] is not None]
        self.log.info("%d clips: %d have their video", len(rows), len(rows) - len(failed))
        for row in failed:
            self.log.warning("No video for %s: %s", row["clip"], row["error"])
        made = [row for row in rows if row["error"] is None and row["map_index"] is not None]
        table = [{name: row[name] for name in ("clip", "video", "luma_task_id", "error")} for row in rows]
        if self._are_too_many(len(failed), len(rows)):
            context["ti"].xcom_push(key="return_value", value=table)
            raise AirflowFailException(_failure(failed, len(rows)))
        if self.outlets:
            from airflow_provider_luma.asset_events import update_outlets

            update_outlets(self, context, [row["video"] for row in made], map(_job, made))
        return table

    def _rows(self, ti: Any) -> list[dict[str, Any]]:
        """
        Return the rows of the plan, with what has become of the clips that were to be modified.

        This takes four requests to Airflow for all clips, and two XComs for each clip that has no video.
        """
        steps = [self.modify_task_id, self.download_task_id]
        states = self._states(ti, [self.plan_task_id, *steps])
        rows: list[dict[str, Any]] | None = ti.xcom_pull(task_ids=self.plan_task_id, key=TABLE_KEY)
        if rows is None:  # a person may have marked the plan as a success
            raise AirflowFailException(f"{self.plan_task_id} has returned no table: clear it")
        videos, jobs = _pushed(ti, self.download_task_id, VIDEO_KEY), _pushed(ti, self.modify_task_id, JOB_KEY)
        without: dict[int, str] = {}
        mapped = {row["map_index"]: row for row in rows if row["map_index"] is not None}
        for index, row in mapped.items():
            failed = next((step for step in steps if states.get(f"{step}_{index}") != "success"), None)
            if failed is not None:
                without[index] = failed
                row |= {"video": None, "error": f"{failed} [{index}] is {states.get(f'{failed}_{index}')}: see its log"}
            elif problem := self._mismatch(row, videos.get(index), jobs.get(index, {})):
                row |= {"video": None, "error": problem}
            else:
                row |= videos.get(index, {})  # a person may have marked the task as a success
        self._explain(ti, mapped, without)
        return rows

    def _mismatch(self, row: Mapping[str, Any], video: Mapping[str, Any] | None, job: Mapping[str, Any]) -> str | None:
        """Return why a download does not match its row, after a Clear of the plan or of ``modify`` alone."""
        index = row["map_index"]
        if video is None:
            return None
        if video["video"] != row["video"]:
            return f"{self.download_task_id} [{index}] was for another clip: {_NEW_RUN}"
        if job.get("luma_task_id", video["luma_task_id"]) != video["luma_task_id"]:
            return (
                f"{self.modify_task_id} [{index}] has made another video since, Luma task {job['luma_task_id']}: clear "
                f"{self.download_task_id} [{index}], which costs nothing"
            )
        return None

    def _states(self, ti: Any, task_ids: list[str]) -> Mapping[str, str]:
        """
        Return the states of the group's tasks.

        :raises AirflowSkipException: the plan was skipped
        :raises AirflowFailException: the plan has failed
        """
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, run_ids=[ti.run_id]).get(ti.run_id, {})
        state = states.get(self.plan_task_id)
        if state == "skipped":
            raise AirflowSkipException(f"{self.plan_task_id} was skipped")
        if state != "success":
            raise AirflowFailException(f"{self.plan_task_id} is {state}: see its log")
        return states  # type: ignore[no-any-return]

    def _explain(self, ti: Any, rows: Mapping[int, dict[str, Any]], failed: Mapping[int, str]) -> None:
        """
        Add to rows why there is no video, and the job if there is one.

        :param rows: by map index
        :param failed: the task that failed, by map index
        """
        for step in set(failed.values()):
            indexes = [index for index, task_id in failed.items() if task_id == step]
            errors = ti.xcom_pull(task_ids=step, key=ERROR_KEY, map_indexes=indexes)
            for index, error in zip(indexes, errors, strict=True):
                if isinstance(error, Mapping) and error.get("msg"):
                    rows[index]["error"] = plain_text(str(error["msg"]))[:_MAX_REASON]
        if failed:
            jobs = ti.xcom_pull(task_ids=self.modify_task_id, key="luma_task_id", map_indexes=list(failed))
            for index, luma_task_id in zip(failed, jobs, strict=True):
                rows[index]["luma_task_id"] = read_text(luma_task_id)

    def _are_too_many(self, failed: int, clips: int) -> bool:
        if isinstance(self.allowed_failures, float):
            return failed > 0 and failed / clips > self.allowed_failures
        return failed > self.allowed_failures


def _pushed(ti: Any, task_id: str, key: str) -> dict[int, Mapping[str, Any]]:
    """Return what the instances of a mapped task have pushed, by map index."""
    found = [read_object(value) for value in ti.xcom_pull(task_ids=[task_id], key=key) or ()]
    return {value["map_index"]: value for value in found if value}


def _job(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what asset events say about the job of a clip."""
    known = {"luma_task_id": row["luma_task_id"], "prompt": row.get("prompt"), "source": row["clip"]}
    return {**known, "expires_at": None, "files": [row["video"]]}


def _failure(failed: Sequence[Mapping[str, Any]], clips: int) -> str:
    lines = [f"{row['clip']}: {row['error']}" for row in failed[:_MAX_LISTED]]
    if len(failed) > _MAX_LISTED:
        lines.append(f"and {len(failed) - _MAX_LISTED} more: see the log, or the XCom return_value")
    advice = "Correct what is wrong and clear the failed tasks: no other clip is paid for again"
    if any(row["map_index"] is None for row in failed):
        advice += (
            f". For clips that are left to another run, follow the advice for each, then {_NEW_RUN}. Clearing this "
            "run's plan with its downstream tasks pays for its clips again"
        )
    return "\n  ".join([f"No video for {len(failed)} of {clips} clips. {advice}", *lines])

# SPDX-License-Identifier: Apache-2.0
"""
Operators that cut a film into clips that Luma takes, and join the modified clips to a film again.

They need the extra ``media`` of this package, and are used together in
:func:`~airflow_provider_luma.task_groups.video.modify_long_video`. Films are read from, and written to, any storage
that Airflow knows. A DAG file is parsed every half a minute, so this module imports what reads videos only when a task
runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.core.validation import (
    check_destination,
    check_file_address,
    check_film_destination,
    check_no_outer_blanks,
    check_positive,
)
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.links.luma import LumaResultLink, push_film, pushed_failure
from airflow_provider_luma.operators.base import TemplatedOperator, is_literal, items_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_luma.files.stored_file import StoredFile
    from airflow_provider_luma.media.split_plan import SplitPlan

#: The XCom with what a join needs to know of a split.
PLAN_KEY = "luma_split"

#: The XCom with the file that the film will be written to, as the split has checked it.
FILM_KEY = "luma_film_destination"

#: Seconds that a clip lasts at most, if nothing else is said: every service takes so many.
CLIP_SECONDS = 10.0

#: Clips from which on the log warns if nothing limits them: ten minutes of film.
MANY_CLIPS = 60

#: Seconds by which a clip differs from its piece of the film before the log says so.
WORTH_A_LINE = 0.1


class _FilmOperator(TemplatedOperator):
    """Films are decoded in another process."""

    def on_kill(self) -> None:
        """End the process that decodes."""
        from airflow_provider_luma.media.child_process import end_all

        end_all()


class VideoSplitOperator(_FilmOperator):
    """
    Cut a film into clips of equal length, none longer than Luma takes, exact to the frame and without sound.

    Returns the clips' addresses in order. How many there are, and so how many submissions they cost, is in the log
    before the first is made, and in the XCom ``clip_count``.

    :param source: the film, a file in any storage that Airflow knows: MP4, MOV, AVI, MKV, WebM, TS, MXF and others
        (templated)
    :param destination: the folder for the clips; those of an earlier try are replaced (templated)
    :param clip_seconds: seconds that a clip lasts at most
    :param detect_scenes: move the cuts to changes of scene, where that leaves no clip too long
    :param max_clips: fail, before anything is written, if there would be more. Without it, the log warns if there are
        more than 60
    :param film_destination: the file that the film will be written to once the clips are modified. It is checked, and
        so is whether the film's sound can be joined to it, before anything is written or paid for. The XCom
        ``luma_film_destination`` holds it for the task that joins the clips (templated)
    :param work_dir: a folder that will be removed once the film is made, in which neither the source nor the film may
        be (templated)
    """

    template_fields: Sequence[str] = ("source", "destination", "film_destination", "work_dir")
    ui_color = "#f5ead7"

    #: What was written, for lineage.
    files: Sequence[str] = ()

    def __init__(
        self,
        *,
        source: str,
        destination: str,
        clip_seconds: float = CLIP_SECONDS,
        detect_scenes: bool = False,
        max_clips: int | None = None,
        film_destination: str | None = None,
        work_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.destination = destination
        self.film_destination = film_destination
        self.work_dir = work_dir
        self.clip_seconds = clip_seconds
        self.detect_scenes = detect_scenes
        self.max_clips = max_clips
        check_positive("clip_seconds", clip_seconds)
        if clip_seconds > CLIP_SECONDS:
            _check_clip_seconds(clip_seconds)
        if is_literal(source):
            check_file_address("source", source)
        if is_literal(destination):
            check_destination(destination)
            check_no_outer_blanks("destination", destination)
        if film_destination is not None and is_literal(film_destination):
            check_film_destination("film_destination", film_destination)

    def execute(self, context: Context) -> list[str]:
        """Cut the film."""
        from airflow_provider_luma.files.destinations import refuse_overwriting
        from airflow_provider_luma.files.storage import file_in, written
        from airflow_provider_luma.files.stored_file import StoredFile
        from airflow_provider_luma.media.film_work import FilmProgress, move_cuts_to_scenes, plan_split, split

        try:
            film = StoredFile.find(str(self.source), "source")
            folder, kept = self._checked_places(film.path, context)
            with film.open() as file:
                checks_sound = self.film_destination is not None
                plan = plan_split(file, self.clip_seconds, checks_sound=checks_sound, shown=film.shown)
                clips = [file_in(folder, f"clip-{number:04}.mp4") for number in range(plan.clips)]
                refuse_overwriting("destination", clips, **kept)
                self._announce(plan, film.shown, context)
                if self.detect_scenes:
                    plan = move_cuts_to_scenes(file, plan, self.clip_seconds, shown=film.shown)
                context["ti"].xcom_push(key=PLAN_KEY, value={**plan.as_dict(), "source": film.version})
                progress = FilmProgress("Split", plan.seconds, self.log)
                warnings = split(file, plan, lambda number: written(clips[number]), progress, shown=film.shown)
            film.check_unchanged()
        except LumaValidationError as error:
            raise AirflowFailException(str(error)) from error
        for warning in warnings:
            self.log.warning("%s: %s", film.shown, warning)
        self.files = [str(clip) for clip in clips]
        return list(self.files)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Name the film and its clips, for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.source], self.files)

    def _checked_places(
        self, source: ObjectStoragePath, context: Context
    ) -> tuple[ObjectStoragePath, dict[str, list[ObjectStoragePath]]]:
        """Return the folder for the clips, and the files that they must not replace. Hand on where the film goes."""
        from airflow_provider_luma.files import destinations

        folder, kept = destinations.folder_to_write("destination", self.destination, self.log), {"source": [source]}
        destinations.refuse_inside("source", source, self.work_dir)
        if self.film_destination is not None:
            name = "film_destination"
            film = destinations.film_to_write(name, self.film_destination, self.log, folder=self.work_dir)
            destinations.refuse_overwriting(name, [film], source=[source])
            context["ti"].xcom_push(key=FILM_KEY, value=str(self.film_destination))
            kept[name] = [film]
        return folder, kept

    def _announce(self, plan: SplitPlan, shown: str, context: Context) -> None:
        """Tell what the clips will cost, before they cost anything."""
        count = plan.clips
        self.log.info("%s lasts %.1f s. Clips, each a submission to Luma: %d", shown, plan.seconds, count)
        context["ti"].xcom_push(key="clip_count", value=count)
        if self.max_clips is None and count > MANY_CLIPS:
            self.log.warning(
                "%s makes %d clips. Modifying them takes %d submissions, and Luma charges for each. Set max_clips to "
                "fail instead when a film makes more clips than you want to pay for",
                *(shown, count, count),
            )
        if self.max_clips is not None and count > self.max_clips:
            raise LumaValidationError(
                None,
                f"source: {shown} makes {count} clips, and max_clips is {self.max_clips}: raise it to pay for so many "
                "submissions, or cut the film",
            )


class VideoJoinOperator(_FilmOperator):
    """
    Join modified clips to a film, with the source's own sound.

    Each clip is fitted to the time of the piece that it was made of, whatever frame rate, size and exact length it came
    back with. Returns the film's address.

    The asset events of its ``outlets`` tell the film's address, length in seconds and source and, where the tasks
    directly before have downloaded the clips, which jobs have made them, with which prompts, and when Luma deletes the
    results.

    :param clips: the clips in order, files in any storage that Airflow knows (templated)
    :param source: the film that they were cut from (templated)
    :param destination: the file to write, which ends in ``.mp4`` or ``.m4v``; it replaces one that is there (templated)
    :param plan: where the film was cut: the XCom ``luma_split`` of the task that did it. Without it, the film is taken
        to have been cut into pieces of equal length (templated)
    """

    template_fields: Sequence[str] = ("clips", "source", "destination", "plan")
    operator_extra_links = (LumaResultLink(),)
    ui_color = "#f5ead7"

    #: What was written, for lineage.
    files: Sequence[str] = ()

    def __init__(
        self,
        *,
        clips: Iterable[str | Iterable[str]],
        source: str,
        destination: str,
        plan: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clips = clips
        self.source = source
        self.destination = destination
        self.plan = plan
        if is_literal(source):
            check_file_address("source", source)
        if is_literal(destination):
            check_film_destination("destination", destination, relative=True)

    def execute(self, context: Context) -> str:
        """Join the clips."""
        from airflow_provider_luma.core.redaction import shown_address

        LumaResultLink().push(self, context)
        push_film(context, source=shown_address(self.source), modify_task_ids=self._modify_task_ids())
        with pushed_failure(context):
            return self._join(context)

    def _modify_task_ids(self) -> list[str]:
        """Return the tasks before this one that have modified videos."""
        from airflow_provider_luma.operators.luma import LumaModifyOperator

        tasks = self.get_flat_relatives(upstream=True)
        return sorted(task.task_id for task in tasks if issubclass(task.operator_class, LumaModifyOperator))

    def _join(self, context: Context) -> str:
        from airflow_provider_luma.files.destinations import film_to_write, refuse_overwriting
        from airflow_provider_luma.files.storage import written
        from airflow_provider_luma.files.stored_file import StoredFile
        from airflow_provider_luma.media.film_work import FilmProgress, join

        try:
            target = film_to_write("destination", self.destination, self.log, relative=True)
            film = StoredFile.find(str(self.source), "source")
            clips = [StoredFile.find(clip, "clips") for clip in _flat(self.clips)]
            if not clips:
                raise LumaValidationError(None, "clips is empty: there is nothing to join")
            refuse_overwriting("destination", [target], source=[film.path], clips=[clip.path for clip in clips])
            with film.open() as file, written(target) as output:
                plan = self._load_plan(file, film, len(clips))
                progress = FilmProgress("Joined", plan.seconds, self.log)
                names = [clip.shown for clip in clips]
                film_made = join(
                    [clip.open for clip in clips], file, plan, output, progress, names=names, shown=film.shown
                )
        except LumaValidationError as error:
            raise AirflowFailException(str(error)) from error
        self._log_misfits(names, film_made.lacking)
        for warning in film_made.warnings:
            self.log.warning("%s: %s", film.shown, warning)
        self.log.info("Wrote %s: %.1f s, sound %s", target, film_made.seconds, film_made.sound)
        self._tell_outlets(context, str(target), film_made.seconds)
        self.files = [str(target)]
        return str(target)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Name the film, the clips and the film that they were joined to, for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.source, *_flat(self.clips)], self.files)

    def _tell_outlets(self, context: Context, film: str, seconds: float) -> None:
        if self.outlets:
            from airflow_provider_luma.asset_events import jobs_of_clips, tell_outlets
            from airflow_provider_luma.lineage import asset_uri

            jobs = jobs_of_clips(self, context, _flat(self.clips))
            tell_outlets(self, context, [film], jobs, sources=[asset_uri(str(self.source))], seconds=round(seconds, 3))

    def _log_misfits(self, clips: list[str], lacking: Sequence[float]) -> None:
        for clip, seconds in zip(clips, lacking, strict=True):
            if abs(seconds) >= WORTH_A_LINE:
                kind = "shorter" if seconds > 0 else "longer"
                self.log.info("%s was %.2f s %s than its piece of the film", clip, abs(seconds), kind)

    def _load_plan(self, file: IO[bytes], film: StoredFile, clips: int) -> SplitPlan:
        from airflow_provider_luma.media.film_work import plan_split
        from airflow_provider_luma.media.split_plan import SplitPlan
        from airflow_provider_luma.services import kie

        if self.plan is None:
            return plan_split(file, kie.limits.seconds, shown=film.shown).evenly(clips)
        try:
            plan = SplitPlan.load(self.plan)
        except ValueError as error:
            raise LumaValidationError(
                None, f"plan is no plan of a split ({error}): give its XCom luma_split"
            ) from error
        if self.plan.get("source", film.version) != film.version:
            raise LumaValidationError(None, f"source: {film.shown} was changed since it was split: split it again")
        if plan.clips != clips:
            raise LumaValidationError(None, _wrong_number(clips, plan.clips))
        return plan


def _check_clip_seconds(seconds: float) -> None:
    """Check that the service takes clips of that length, which those of the default length need not be asked for."""
    from airflow_provider_luma.services import kie

    if seconds > kie.limits.seconds:
        raise LumaValidationError(
            None, f"clip_seconds is {seconds:g}, and Luma takes clips of at most {kie.limits.seconds:g} s"
        )


def _wrong_number(clips: int, planned: int) -> str:
    if clips < planned:
        return f"clips holds {clips} of the {planned} clips in plan: give all"
    # Of a mapped task that is cleared and then expanded over less, Airflow keeps the old XComs behind the new ones.
    return (
        f"clips holds {clips} clips, and plan {planned}. If an earlier split of this run made more, delete the XComs "
        f"return_value of the task that downloads the clips from map index {planned} on, and clear this task: nothing "
        "is billed. Otherwise give the clips of this plan alone"
    )


def _flat(clips: Iterable[Any]) -> list[str]:
    """Return addresses in order; a mapped download returns a list for each of its clips."""
    return [address for clip in items_of(clips) for address in (_flat(clip) if not isinstance(clip, str) else [clip])]

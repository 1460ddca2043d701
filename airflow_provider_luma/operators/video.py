# SPDX-License-Identifier: Apache-2.0
"""
Operators that split a film into clips short enough for Luma, and join the modified clips into a film.

They need the extra ``media`` of this package.
:func:`~airflow_provider_luma.task_groups.video.modify_long_video` combines them. Films are read from and written to any
storage that Airflow supports. DAG files are parsed every 30 seconds, so this module imports the media code only when a
task runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.core.validation import check_file_address, check_no_outer_blanks, check_positive
from airflow_provider_luma.exceptions import PERMANENT, LumaValidationError
from airflow_provider_luma.files.destination_names import check_destination, check_film_destination
from airflow_provider_luma.links.luma import LumaResultLink, push_film, pushed_failure
from airflow_provider_luma.operators.base import TemplatedOperator, is_literal, items_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_luma.files.stored_file import StoredFile
    from airflow_provider_luma.media.split_plan import SplitPlan
    from airflow_provider_luma.services.base import Service

#: XCom with the plan of a split, which the join needs.
PLAN_KEY = "luma_split"

#: XCom with the file that the film will be written to, as checked by the split.
FILM_KEY = "luma_film_destination"

#: The longest clip, in seconds, without ``clip_seconds`` and a connection; every service accepts it.
CLIP_SECONDS = 10.0

#: Without max_clips, more clips than this cause a warning: ten minutes of film in clips of 10 s.
MANY_CLIPS = 60

#: A clip is logged if its length differs from that of its segment of the film by this many seconds.
WORTH_A_LINE = 0.1


class _FilmOperator(TemplatedOperator):
    """An operator that decodes films in a child process."""

    def on_kill(self) -> None:
        """End the child process."""
        from airflow_provider_luma.media.child_process import end_all

        end_all()


class VideoSplitOperator(_FilmOperator):
    """
    Split a film into clips of equal length that Luma accepts, frame-accurate and without sound.

    Returns the addresses of the clips in order. Before the first clip is written, the number of clips, and so of paid
    submissions, is logged, and pushed as the XCom ``clip_count``. With ``luma_conn_id``, the estimated price is logged
    as well, if the service's prices are known.

    :param source: the film, a file in any storage that Airflow supports: MP4, MOV, AVI, MKV, WebM, TS, MXF and others
        (templated)
    :param destination: the folder for the clips; those of an earlier try are replaced (templated)
    :param clip_seconds: maximum length of a clip, in seconds. By default, as long as the service accepts; 10 seconds
        without ``luma_conn_id``
    :param detect_scenes: move the cuts to scene changes where that makes no clip too long
    :param luma_conn_id: the connection of type Luma with which the clips will be modified; only its service matters
        here (templated)
    :param options: the ``options`` with which the clips will be modified, which the price depends on (templated)
    :param max_clips: fail before anything is written if the film makes more clips. Without it, more than 60 clips cause
        a warning in the log
    :param film_destination: the file to which the film will be written once its clips are modified. Before anything is
        written or paid for, the task checks this file, and whether the film's sound fits into it. The XCom
        ``luma_film_destination`` passes it to the task that joins the clips (templated)
    :param work_dir: the folder that is removed once the film is finished; it must contain neither the source nor the
        film (templated)
    :raises LumaValidationError: a parameter is invalid
    """

    template_fields: Sequence[str] = (
        *("source", "destination", "film_destination", "work_dir", "luma_conn_id", "options"),
    )
    ui_color = "#f5ead7"

    #: The files written, for lineage.
    files: Sequence[str] = ()

    def __init__(
        self,
        *,
        source: str,
        destination: str,
        clip_seconds: float | None = None,
        detect_scenes: bool = False,
        luma_conn_id: str | None = None,
        options: dict[str, Any] | None = None,
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
        self.luma_conn_id = luma_conn_id
        self.options = options
        self.max_clips = max_clips
        if clip_seconds is not None:
            _check_clip_seconds(clip_seconds)
        if is_literal(source):
            check_file_address("source", source)
        if is_literal(destination):
            check_destination(destination)
            check_no_outer_blanks("destination", destination)
        if film_destination is not None and is_literal(film_destination):
            check_film_destination("film_destination", film_destination)

    def execute(self, context: Context) -> list[str]:
        """Split the film."""
        from airflow_provider_luma.files.destinations import refuse_overwriting
        from airflow_provider_luma.files.storage import file_in, written
        from airflow_provider_luma.files.stored_file import StoredFile
        from airflow_provider_luma.media.film_work import FilmProgress, move_cuts_to_scenes, plan_split, split

        try:
            service = self._service()
            clip_seconds = self._clip_seconds(service)
            film = StoredFile.find(str(self.source), "source")
            folder, kept = self._checked_places(film.path, context)
            with film.open() as file:
                checks_sound = self.film_destination is not None
                plan = plan_split(file, clip_seconds, checks_sound=checks_sound, shown=film.shown)
                clips = [file_in(folder, f"clip-{number:04}.mp4") for number in range(plan.clips)]
                refuse_overwriting("destination", clips, **kept)
                self._announce(plan, film.shown, context)
                if self.detect_scenes:
                    plan = move_cuts_to_scenes(file, plan, clip_seconds, shown=film.shown)
                known = {"source": film.version, "clips": plan.clips, **self._priced(plan, service)}
                context["ti"].xcom_push(key=PLAN_KEY, value={**plan.as_dict(), **known})
                progress = FilmProgress("Split", plan.seconds, self.log)
                warnings = split(file, plan, lambda number: written(clips[number]), progress, shown=film.shown)
            film.check_unchanged()
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        for warning in warnings:
            self.log.warning("%s: %s", film.shown, warning)
        self.files = [str(clip) for clip in clips]
        return list(self.files)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the film and its clips for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.source], self.files)

    def _service(self) -> Service | None:
        """Return the service that the clips are for; None without a connection."""
        if not self.luma_conn_id:
            return None
        from airflow_provider_luma.hooks.luma import LumaHook

        return LumaHook(self.luma_conn_id).get_luma_connection().service

    def _clip_seconds(self, service: Service | None) -> float:
        """
        Return the maximum length of a clip.

        :raises LumaValidationError: the service does not accept clips of ``clip_seconds``
        """
        if service is None:
            return self.clip_seconds or CLIP_SECONDS
        most = service.limits.seconds
        if self.clip_seconds is not None and self.clip_seconds > most:
            raise LumaValidationError(
                None,
                f"clip_seconds is {self.clip_seconds:g}, but the service {service.name!r} of connection "
                f"{self.luma_conn_id!r} accepts clips of at most {most:g} s",
            )
        return self.clip_seconds or most

    def _priced(self, plan: SplitPlan, service: Service | None) -> dict[str, float]:
        """Log the estimated price of the clips, and return it; empty if unknown."""
        if service is None:
            return {}
        lengths = (float(plan.start(index + 1) - plan.start(index)) for index in range(plan.clips))
        prices = [service.price(seconds, self.options) for seconds in lengths]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return {}
        dollars = round(sum(known), 2)
        self.log.info("Estimated price of %d clips: %.2f US dollars, if prices have not changed", plan.clips, dollars)
        return {"us_dollars": dollars}

    def _checked_places(
        self, source: ObjectStoragePath, context: Context
    ) -> tuple[ObjectStoragePath, dict[str, list[ObjectStoragePath]]]:
        """Return the folder for the clips, and the files that they must not replace; push the film's destination."""
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
        """
        Log how many submissions the film takes, before any of them.

        :raises LumaValidationError: there are more clips than ``max_clips``
        """
        count = plan.clips
        self.log.info("%s lasts %.1f s. Clips to submit to Luma: %d", shown, plan.seconds, count)
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
                f"source: {shown} makes {count} clips, but max_clips is {self.max_clips}: raise it to pay for "
                "all of them, or shorten the film",
            )


class VideoJoinOperator(_FilmOperator):
    """
    Join modified clips into a film, with the sound of the source.

    Each clip is fitted into the time of the segment it was made from, whatever frame rate, size and exact length Luma
    returned. Returns the film's address.

    The asset events of its ``outlets`` contain the film's address, its length in seconds and its source. If the clips
    were downloaded by tasks directly upstream, the events also contain the jobs that made them, their prompts, and when
    the results expire.

    :param clips: the clips in order, files in any storage that Airflow supports (templated)
    :param source: the film that was split into these clips (templated)
    :param destination: the ``.mp4`` or ``.m4v`` file to write; an existing file is replaced (templated)
    :param plan: where the film was cut: the XCom ``luma_split`` of the split task. Without it, all segments are assumed
        to be equally long (templated)
    :raises LumaValidationError: a parameter is invalid
    """

    template_fields: Sequence[str] = ("clips", "source", "destination", "plan")
    operator_extra_links = (LumaResultLink(),)
    ui_color = "#f5ead7"

    #: The files written, for lineage.
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
        """Return the upstream tasks that modify videos."""
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
        self._update_outlets(context, str(target), film_made.seconds)
        self.files = [str(target)]
        return str(target)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the source, the clips and the new film for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.source, *_flat(self.clips)], self.files)

    def _update_outlets(self, context: Context, film: str, seconds: float) -> None:
        if self.outlets:
            from airflow_provider_luma.asset_events import jobs_of_clips, update_outlets
            from airflow_provider_luma.lineage import asset_uri

            jobs = jobs_of_clips(self, context, _flat(self.clips))
            update_outlets(
                self, context, [film], jobs, sources=[asset_uri(str(self.source))], seconds=round(seconds, 3)
            )

    def _log_misfits(self, clips: list[str], lacking: Sequence[float]) -> None:
        for clip, seconds in zip(clips, lacking, strict=True):
            if abs(seconds) >= WORTH_A_LINE:
                kind = "shorter" if seconds > 0 else "longer"
                self.log.info("%s was %.2f s %s than its segment of the film", clip, abs(seconds), kind)

    def _load_plan(self, file: IO[bytes], film: StoredFile, clips: int) -> SplitPlan:
        from airflow_provider_luma.media.film_work import plan_split
        from airflow_provider_luma.media.split_plan import SplitPlan

        if self.plan is None:
            return plan_split(file, CLIP_SECONDS, shown=film.shown).evenly(clips)
        try:
            plan = SplitPlan.load(self.plan)
        except ValueError as error:
            raise LumaValidationError(
                None, f"plan is invalid ({error}): pass the XCom luma_split of the split task"
            ) from error
        if self.plan.get("source", film.version) != film.version:
            raise LumaValidationError(None, f"source: {film.shown} has changed since it was split; split it again")
        if plan.clips != clips:
            raise LumaValidationError(None, _wrong_number(clips, plan.clips))
        return plan


def _check_clip_seconds(seconds: float) -> None:
    """
    Refuse a length of clips that no service accepts.

    :raises LumaValidationError: no service accepts it
    """
    check_positive("clip_seconds", seconds)
    if seconds <= CLIP_SECONDS:  # every service accepts it, so a DAG file need not import them
        return
    from airflow_provider_luma.services import SERVICES

    most = max(service.limits.seconds for service in SERVICES.values())
    if seconds > most:
        raise LumaValidationError(None, f"clip_seconds is {seconds:g}, but no service accepts clips over {most:g} s")


def _wrong_number(clips: int, planned: int) -> str:
    if clips < planned:
        return f"clips contains {clips} of the {planned} clips in plan: pass all of them"
    # When a mapped task is cleared and then expands to fewer instances, Airflow keeps the XComs of the others.
    return (
        f"clips contains {clips} clips, but plan only {planned}. If an earlier split of this run made more, delete the "
        f"return_value XComs of the download task from map index {planned} on, and clear this task: nothing is billed. "
        "Otherwise pass only the clips of this plan"
    )


def _flat(clips: Iterable[Any]) -> list[str]:
    """Return the addresses in order; a mapped download returns a list per clip."""
    return [address for clip in items_of(clips) for address in (_flat(clip) if not isinstance(clip, str) else [clip])]

# SPDX-License-Identifier: Apache-2.0
"""
Plans, splits and joins films, and adds sound to videos, in a child process; logs the progress.

The functions are those of :mod:`.split`, :mod:`.join` and :mod:`.added_sound`, which document the parameters. Each
raises :class:`.LumaValidationError` for a film or clip that cannot be used, crashes FFmpeg, or takes too much memory,
and :class:`ChildProcessError` if the process was killed. Errors of a storage pass unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from airflow_provider_luma.core.wire import plain_text
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.child_process import ChildFailed, ChildProcess
from airflow_provider_luma.media.film_types import AddedSound, ClipFile, ClipOpener, JoinedFilm, OnProgress
from airflow_provider_luma.media.opening import TOO_MUCH_MEMORY_REMEDY
from airflow_provider_luma.media.split_plan import SplitPlan

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

T = TypeVar("T")

#: Seconds between two log lines about the progress of a film.
PROGRESS_INTERVAL = 10.0

_REMEDY = "the file is damaged or malicious. Convert it first, e.g. with ffmpeg -i INPUT OUTPUT.mp4, or make it again"


def plan_split(source: IO[bytes], clip_seconds: float, *, checks_sound: bool = False, shown: str = "") -> SplitPlan:
    """
    Plan how to split a film.

    :param checks_sound: refuse a film whose sound cannot be joined to it later: see :func:`.sound.check_sound`
    """
    files = [_film(source, shown)]
    return _run("plan_split", SplitPlan.load, files, clip_seconds=clip_seconds, checks_sound=checks_sound, shown=shown)


def move_cuts_to_scenes(
    source: IO[bytes],
    plan: SplitPlan,
    clip_seconds: float,
    on_progress: OnProgress | None = None,
    *,
    shown: str = "",
) -> SplitPlan:
    """Move the cuts to where the scene changes."""
    arguments = {"plan": plan.as_dict(), "clip_seconds": clip_seconds, "shown": shown}
    return _run("move_cuts_to_scenes", SplitPlan.load, [_film(source, shown)], None, on_progress, **arguments)


def split(
    source: IO[bytes], plan: SplitPlan, clip_file: ClipFile, on_progress: OnProgress | None = None, *, shown: str = ""
) -> tuple[str, ...]:
    """Write a film's clips. Return lines for the log."""
    files = [_film(source, shown)]
    return _run("split", _texts, files, clip_file, on_progress, plan=plan.as_dict(), shown=shown)


def join(
    clips: Sequence[ClipOpener],
    source: IO[bytes],
    plan: SplitPlan,
    output: Path,
    on_progress: OnProgress | None = None,
    *,
    names: Sequence[str] = (),
    shown: str = "",
) -> JoinedFilm:
    """Write the film that the clips make up."""
    shown_clips = names or [""] * len(clips)
    files = [(_name(f"clips[{index}]", name), clips[index]) for index, name in enumerate(shown_clips)]
    arguments = {"plan": plan.as_dict(), "output": str(output), "clips": len(clips), "names": list(names)}
    return _run("join", _joined, [_film(source, shown), *files], None, on_progress, **arguments, shown=shown)


def find_sound(source: ClipOpener, *, shown: str = "") -> bool:
    """Return whether a video has sound."""
    return _run("find_sound", bool, [(_name("sound_from", shown), source)], shown=shown)


def add_sound(
    video: ClipOpener, source: ClipOpener, output: Path, mark: str, *, names: tuple[str, str] = ("", "")
) -> AddedSound:
    """Write an MP4 with the pictures of one video and the sound of another."""
    files = [(_name("urls", names[0]), video), (_name("sound_from", names[1]), source)]
    return _run("add_sound", _added, files, output=str(output), mark=mark, names=list(names))


def read_mark(video: ClipOpener) -> str:
    """Return the mark of a video that :func:`add_sound` has written; empty if there is none."""
    return _run("read_mark", plain_text, [("destination", video)])


class FilmProgress:
    """
    Logs the progress of work on a film every few seconds.

    :param done: what the work has done, for the log: "Split", "Joined"
    :param seconds: the length of the film
    :param log: where progress is logged
    """

    def __init__(self, done: str, seconds: float, log: Logger) -> None:
        self._done, self._seconds, self._log = done, seconds, log
        self._started_at = self._logged_at = time.monotonic()

    def __call__(self, frames: int, of_frames: int) -> None:
        """Log how many frames are done, if a line is due."""
        now = time.monotonic()
        if now - self._logged_at < PROGRESS_INTERVAL:
            return
        self._logged_at = now
        share = frames / of_frames
        speed = share * self._seconds / (now - self._started_at)
        self._log.info("%s %.0f %% of the film, at %.1f times playback speed", self._done, 100 * share, speed)


def _run(
    job: str,
    load: Callable[[Any], T],
    files: Sequence[tuple[str, ClipOpener]],
    clip_file: ClipFile | None = None,
    on_progress: OnProgress | None = None,
    **arguments: Any,
) -> T:
    """
    Do a job of :mod:`.child_jobs`.

    :param load: reads its result
    :param files: the film and its clips, each as its name for messages and the function that opens it
    """
    child = ChildProcess([opener for _, opener in files], clip_file, on_progress)
    try:
        with child.running(job, arguments):
            result = child.serve("done")
    except ChildFailed as failure:
        # Any of the open files may be the cause; the last one opened is named first.
        names = " or ".join(files[index][0] for index in reversed(child.open_files))
        raise _error(names or files[0][0], failure) from failure
    try:
        return load(result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _error(files[0][0], ChildFailed("nonsense")) from error


def _error(names: str, failure: ChildFailed) -> Exception:
    """
    Return the error for a job that failed.

    :param names: what to call the files that may have caused it
    """
    match failure.args:
        case "refused", message:
            text = message
        case "missing", reason:  # or it is too old, or does not work on this worker
            text = (
                f"Videos cannot be processed here ({reason}): install the extra media of airflow-provider-luma "
                "on the workers"
            )
        case ("memory",):
            text = f"{names} needs more memory than a film of its size is allowed: {TOO_MUCH_MEMORY_REMEDY}"
        case "crashed", name:
            text = f"{names} crashes FFmpeg ({name}): {_REMEDY}"
        case "killed", name:
            return ChildProcessError(
                f"{names}: the process that decodes it was killed ({name}). Either the task was ended, or the system "
                "ran out of memory; if so, give the worker more memory, or run fewer tasks at a time"
            )
        case "ended", status:
            return ChildProcessError(f"{names}: the process that decodes it ended without a result ({status})")
        case "failed", name, number, message, _:
            text = f"{names} could not be processed: {name}: {message}"
            return OSError(number, text) if isinstance(number, int) else RuntimeError(text)
        case _:
            text = f"{names} breaks the process that decodes it: {_REMEDY}"
    return LumaValidationError(None, text)


def _joined(made: Any) -> JoinedFilm:
    lacking = tuple(map(float, made["lacking"]))
    return JoinedFilm(float(made["seconds"]), plain_text(made["sound"]), lacking, _texts(made["warnings"]))


def _added(added: Any) -> AddedSound:
    return AddedSound(plain_text(added["sound"]), _texts(added["warnings"]))


def _texts(lines: Any) -> tuple[str, ...]:
    return tuple(map(plain_text, lines))


def _film(source: IO[bytes], shown: str) -> tuple[str, ClipOpener]:
    return _name("source", shown), lambda: nullcontext(source)


def _name(parameter: str, shown: str) -> str:
    return f"{parameter} ({shown})" if shown else parameter

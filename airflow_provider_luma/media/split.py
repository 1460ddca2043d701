# SPDX-License-Identifier: Apache-2.0
"""
Splits a film into clips: plans where to cut it, moves the cuts to changes of scene, and writes the clips.

The clips are re-encoded, since a copy could only be cut at key frames.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import IO, TYPE_CHECKING

import av
import av.error
import av.filter

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.film_reader import Repairs, decoded, opened, refusing
from airflow_provider_luma.media.film_types import ClipFile, OnProgress
from airflow_provider_luma.media.memory import THREADS
from airflow_provider_luma.media.pictures import MP4_OPTIONS, Pictures, VideoEncoder, deinterlaced
from airflow_provider_luma.media.sound import decodable
from airflow_provider_luma.media.split_plan import SplitPlan, count_clips, cuts_at_scenes, frames_per_clip, plan_uncut
from airflow_provider_luma.media.time_stamps import check_gaps, film_times, shown_at

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

#: The maximum number of clips of a film, since time stamps in a file can be nonsense.
MAX_CLIPS = 10_000

#: Seconds of the shortest clip, if the film is not shorter.
_MIN_CLIP_SECONDS = 1.0

#: Width and height, in pixels, of the pictures that are searched for changes of scene.
_SCENE_WIDTH = 160


def plan_split(source: IO[bytes], clip_seconds: float, *, shown: str = "") -> SplitPlan:
    """
    Plan how to split a film. All of it is read, but nothing is decoded.

    :param source: can be read at any position
    :param clip_seconds: the longest that a clip may be, within what the service takes
    :param shown: its address as messages may show it
    :raises LumaValidationError: it is not a film that can be decoded, or too long, or most of it is a gap, or
        ``clip_seconds`` is too small
    """
    if not _MIN_CLIP_SECONDS <= clip_seconds < math.inf:
        raise LumaValidationError(None, f"clip_seconds is {clip_seconds!r}: give at least {_MIN_CLIP_SECONDS:g}")
    with refusing("source", shown), opened(source) as (container, video):
        times, heard = film_times(container, video, decodable(container))
        check_gaps(times, heard)
    plan = plan_uncut(times, heard.span)
    if (clips := count_clips(plan.frames, frames_per_clip(plan.rate, clip_seconds))) > MAX_CLIPS:
        name = f"source ({shown})" if shown else "source"
        raise LumaValidationError(
            None,
            f"{name} lasts {plan.seconds:.1f} s, which makes {clips} clips of {clip_seconds:g} s, "
            f"more than {MAX_CLIPS}: cut it first",
        )
    return plan.evenly(clips)


def move_cuts_to_scenes(
    source: IO[bytes],
    plan: SplitPlan,
    clip_seconds: float,
    on_progress: OnProgress | None = None,
    *,
    shown: str = "",
) -> SplitPlan:
    """
    Move the cuts to changes of scene, without adding clips. All of the film is decoded.

    :param clip_seconds: as for :func:`plan_split`
    :raises LumaValidationError: the film cannot be decoded
    """
    if plan.clips == 1:
        return plan
    with refusing("source", shown), opened(source) as film:
        changes = [round((at - plan.origin) * plan.rate) for at in _scene_changes(*film, plan, on_progress)]
    limit, shortest = frames_per_clip(plan.rate, clip_seconds), frames_per_clip(plan.rate, _MIN_CLIP_SECONDS)
    return replace(plan, cuts=cuts_at_scenes(plan.frames, limit, shortest, changes))


def _scene_changes(
    container: InputContainer, video: VideoStream, plan: SplitPlan, on_progress: OnProgress | None
) -> Iterator[Fraction]:
    """Yield the time, in seconds, of each frame that begins a scene."""
    pictures = Pictures((_SCENE_WIDTH, _SCENE_WIDTH))
    graph = av.filter.Graph()
    graph.threads = THREADS
    square = f"video_size={_SCENE_WIDTH}x{_SCENE_WIDTH}:pix_fmt=yuv420p:time_base={video.time_base}:range=1"
    nodes = [graph.add("buffer", square), graph.add("scdet", "sc_pass=1"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    for at, frame in decoded(container, video, Repairs()):
        graph.vpush(pictures.make(frame, video))
        try:
            graph.vpull()
            yield at
        except av.error.BlockingIOError:
            pass
        if on_progress:
            on_progress(min(plan.frames, max(0, round((at - plan.origin) * plan.rate))), plan.frames)


def split(
    source: IO[bytes],
    plan: SplitPlan,
    clip_file: ClipFile,
    on_progress: OnProgress | None = None,
    *,
    shown: str = "",
) -> tuple[str, ...]:
    """
    Write a film's clips, as MP4 without sound. Each is complete before the next begins.

    Return lines for the log: how many frames had to be repaired.

    :param source: the film that was planned; can be read at any position
    :param clip_file: makes a clip's file
    :param on_progress: may raise to end the work
    :raises LumaValidationError: the film cannot be decoded
    """
    with refusing("source", shown), opened(source) as (container, video):
        pictures, repairs = Pictures(), Repairs()
        times = (plan.origin + index / plan.rate for index in range(plan.frames))
        whole = deinterlaced(decoded(container, video, repairs), repairs)
        frames = shown_at(whole, times, 1 / plan.rate)
        film = _reported((pictures.make(frame, video) for frame in frames), plan.frames, on_progress)
        for index in range(plan.clips):
            _write_clip(index, plan, film, clip_file)
        # Decode the rest as well, to find errors after the last picture that is used.
        deque(whole, maxlen=0)
        return tuple(repairs.warnings())


def _reported(film: Iterator[av.VideoFrame], frames: int, on_progress: OnProgress | None) -> Iterator[av.VideoFrame]:
    for done, picture in enumerate(film, 1):
        if on_progress:
            on_progress(done, frames)
        yield picture


def _write_clip(index: int, plan: SplitPlan, film: Iterator[av.VideoFrame], clip_file: ClipFile) -> None:
    """Take a clip's pictures from the film, and write the clip."""
    frames = plan.cuts[index + 1] - plan.cuts[index]
    first = next(film)
    with clip_file(index) as path, av.open(str(path), "w", format="mp4", options=MP4_OPTIONS) as out:
        encoder = VideoEncoder(out, plan.rate, first)
        out.mux(encoder.encode(first))
        for picture in islice(film, frames - 1):
            out.mux(encoder.encode(picture))
        out.mux(encoder.finish())

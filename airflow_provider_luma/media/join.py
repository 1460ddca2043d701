# SPDX-License-Identifier: Apache-2.0
"""
Joins the modified clips of a film, with the film's own sound.

The service may change the rate, size and length of clips. Each clip is fitted to the time of its piece in the film, so
that deviations do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor
from pathlib import Path
from typing import IO, TYPE_CHECKING

import av

from airflow_provider_luma.media.film_reader import Repairs, decoded, opened, refusing
from airflow_provider_luma.media.film_types import ClipOpener, JoinedFilm, OnProgress
from airflow_provider_luma.media.memory import MAX_PIXELS
from airflow_provider_luma.media.opening import Unusable
from airflow_provider_luma.media.pictures import MP4_OPTIONS, Pictures, VideoEncoder, deinterlaced
from airflow_provider_luma.media.sound import Sound, losses
from airflow_provider_luma.media.split_plan import MAX_HOLD_SECONDS, SplitPlan
from airflow_provider_luma.media.time_stamps import film_times, shown_at

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

#: Pixels that a clip may have, unless its film has more: those of 4K.
MAX_CLIP_PIXELS = 4096 * 2160


@dataclass(frozen=True)
class _Clip:
    """
    A clip, and its piece of the film.

    :param name: the parameter's name, and the clip's address as messages may show it
    :param origin: time of its first frame, in seconds, by its own clock
    :param start: when its piece begins in the film, in seconds
    :param lacking: seconds by which it is shorter than its piece
    """

    name: tuple[str, str]
    open: ClipOpener
    origin: Fraction
    rate: Fraction
    is_constant: bool
    start: Fraction
    lacking: Fraction


def _max_pixels(film: VideoStream) -> int:
    """Return how many pixels the clips of a film may have."""
    aspect = max(Fraction(1), Fraction(film.sample_aspect_ratio or 1))
    return max(MAX_CLIP_PIXELS, min(MAX_PIXELS, round(film.width * film.height * aspect)))


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
    """
    Join the clips into an MP4. Its video and its container are as long as the film.

    :param clips: one per piece of the film, in order
    :param source: the film that was split; can be read at any position
    :param output: a local file
    :param on_progress: may raise to end the work
    :param names: the clips' addresses as messages may show them
    :param shown: the address of the film as messages may show it
    :raises LumaValidationError: a clip cannot be decoded or is too short, or the film cannot be read
    """
    shown_clips = names or [""] * len(clips)
    with refusing("source", shown), opened(source) as (film, video):
        max_pixels = _max_pixels(video)
        scanned = [
            _scan(clip, (f"clips[{index}]", name), plan, index, max_pixels)
            for index, clip, name in zip(range(plan.clips), clips, shown_clips, strict=True)
        ]
        with av.open(str(output), "w", format="mp4", options=MP4_OPTIONS) as out:
            return _write(scanned, (film, video), plan, out, on_progress)


def _scan(clip: ClipOpener, name: tuple[str, str], plan: SplitPlan, index: int, max_pixels: int) -> _Clip:
    with refusing(*name), clip() as file, opened(file, max_pixels) as film:
        times, _ = film_times(*film)
        rate, is_constant = times.rate()
        start, end = plan.start(index), plan.start(index + 1)
        lacking = end - start - times.seconds(rate)
        if lacking > MAX_HOLD_SECONDS:
            raise Unusable(
                f"lasts {float(times.seconds(rate)):.2f} seconds, but its piece of the film lasts "
                f"{float(end - start):.2f}",
                "check that the clips belong to this film and are in order, or make this one again",
            )
    return _Clip(name, clip, times.origin, rate, is_constant, start, lacking)


def _write(
    clips: list[_Clip],
    source: tuple[InputContainer, VideoStream],
    plan: SplitPlan,
    out: OutputContainer,
    on_progress: OnProgress | None,
) -> JoinedFilm:
    rates = {clip.rate if clip.is_constant else None for clip in clips}
    # At any other rate than the clips' own, some pictures would be shown longer than others.
    rate = (rates.pop() if len(rates) == 1 else None) or plan.rate
    frames = max(1, round(plan.exact_seconds * rate))
    warnings: list[str] = []
    film = _film(clips, rate, frames, _max_pixels(source[1]), warnings)
    first = next(film)
    encoder = VideoEncoder(out, rate, first)
    sound = Sound(source[0], out, plan.origin, frames / rate)
    for done, picture in enumerate(chain((first,), film), 1):
        _mux(out, encoder.encode(picture), sound)
        if on_progress:
            on_progress(done, frames)
    _mux(out, encoder.finish(), sound)
    for packet in sound.until(None):
        out.mux(packet)
    lacking = tuple(float(clip.lacking) for clip in clips)
    warnings += losses(*source)
    return JoinedFilm(float(frames / rate), sound.kind, lacking, tuple(warnings))


def _film(
    clips: list[_Clip], rate: Fraction, frames: int, max_pixels: int, warnings: list[str]
) -> Iterator[av.VideoFrame]:
    """Yield ``frames`` pictures, all of the size of the first, and add to the warnings."""
    pictures = Pictures(max_pixels=max_pixels)
    # A picture on a cut belongs to the piece that contains more of it, so a clip of rounded length is hardly too short.
    firsts = [floor(clip.start * rate + Fraction(1, 2)) for clip in clips] + [frames]
    for clip, first, end in zip(clips, firsts, firsts[1:], strict=False):
        with refusing(*clip.name), clip.open() as file, opened(file, max_pixels) as (container, video):
            repairs = Repairs()
            whole = deinterlaced(decoded(container, video, repairs), repairs)
            own = ((at - clip.origin, frame) for at, frame in whole)
            times = (index / rate - clip.start for index in range(first, end))
            for frame in shown_at(own, times, 1 / min(rate, clip.rate)):
                yield pictures.make(frame, video)
            warnings += [f"{clip.name[1] or clip.name[0]}: {line}" for line in repairs.warnings()]


def _mux(out: OutputContainer, packets: list[Packet[VideoStream]], sound: Sound) -> None:
    """Write the video's packets, and the sound's beside them."""
    for packet in packets:
        for heard in sound.until((packet.dts or 0) * packet.time_base):
            out.mux(heard)
        out.mux(packet)

# SPDX-License-Identifier: Apache-2.0
"""
The plan of a split: where a film is cut into clips, in exact fractions. It needs neither the video nor PyAV.

The film gets a grid of frames at a constant rate, and its cuts lie on that grid, so the clips together are as long as
the film, whatever the times of its own frames. An XCom passes the plan from the split to the join.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_luma.media.time_stamps import FrameTimes

#: The most frames per second of the grid: of a faster film, only every second or third frame is used.
_MAX_RATE = 60

#: Seconds of sound before the first picture or after the last that count as an encoder's padding, and are cut off.
PADDING_SECONDS = Fraction(1, 10)

#: Seconds by which a clip may be too short; its last picture is held for that long.
MAX_HOLD_SECONDS = Fraction(1, 2)

#: Other positions that a cut may move to, to let another cut move to a change of scene.
_FREE_POSITIONS = 8


@dataclass(frozen=True)
class SplitPlan:
    """
    How a film is split, and joined again. Small enough for an XCom: see :meth:`as_dict`.

    :param origin: time of the film's first frame, in seconds, by the film's own clock
    :param rate: frames per second of the grid
    :param cuts: the first frame of each clip in the grid, and at the end the number of all frames
    :param length: seconds of the film; if it is longer than all clips together, the last picture is held. None in
        plans of version 1.1.0, where a film is as long as its clips
    """

    origin: Fraction
    rate: Fraction
    cuts: tuple[int, ...]
    length: Fraction | None = None

    @property
    def frames(self) -> int:
        """The number of frames of the grid."""
        return self.cuts[-1]

    @property
    def clips(self) -> int:
        """The number of clips."""
        return len(self.cuts) - 1

    @property
    def exact_seconds(self) -> Fraction:
        """The length of the film."""
        return self.cuts[-1] / self.rate if self.length is None else self.length

    @property
    def seconds(self) -> float:
        """The length of the film."""
        return float(self.exact_seconds)

    def start(self, index: int) -> Fraction:
        """Return when a clip begins, in seconds; for the index after the last clip, when the film ends."""
        return self.cuts[index] / self.rate

    def evenly(self, clips: int) -> SplitPlan:
        """Return a plan that divides the same film into this many clips of equal length."""
        return replace(self, cuts=_even_cuts(self.frames, clips))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        values: dict[str, Any] = {"origin": str(self.origin), "rate": str(self.rate), "cuts": list(self.cuts)}
        return values if self.length is None else {**values, "length": str(self.length)}

    @classmethod
    def load(cls, values: dict[str, Any]) -> SplitPlan:
        """
        Return the plan that :meth:`as_dict` has described.

        :raises ValueError: the values are not a valid plan
        """
        try:
            length = values.get("length")
            plan = cls(
                _fraction(values["origin"]),
                _fraction(values["rate"]),
                tuple(map(int, values["cuts"])),
                None if length is None else _fraction(length),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"not the plan of a split: {error!r}") from error
        if plan.rate <= 0 or plan.cuts[:1] != (0,) or any(a >= b for a, b in pairwise(plan.cuts)) or plan.clips < 1:
            raise ValueError("not the plan of a split: its cuts do not ascend from 0")
        if abs(plan.exact_seconds - plan.frames / plan.rate) > 1:
            raise ValueError("not the plan of a split: its clips are not as long as the film")
        return plan


def _fraction(value: Any) -> Fraction:
    if isinstance(value, str) and "e" in value.lower():
        raise ValueError("a number with an exponent")  # "1e999999999" would take all memory
    return Fraction(value)


def plan_uncut(times: FrameTimes, heard: tuple[Fraction, Fraction] | None) -> SplitPlan:
    """
    Return the plan of a film that is not cut yet. Its rate is constant, from 5 to 60.

    If the sound begins before the pictures or ends after them, so does the film: the first or the last picture is held.
    Up to half a second at the end does not make another clip.

    :param heard: when the sound begins and ends, in seconds by the film's own clock; None without sound
    """
    rate, _ = times.rate()
    rate /= math.ceil(rate / _MAX_RATE)
    origin, end = times.origin, times.origin + times.seconds(rate)
    length_end = end
    if heard and heard[1] - heard[0] > 0:
        if heard[0] < origin - PADDING_SECONDS:
            origin -= round((origin - heard[0]) * rate) / rate  # whole frames, so that pictures stay on the grid
        if heard[1] > end + PADDING_SECONDS:
            length_end = heard[1]
    clips_end = length_end if length_end - end > MAX_HOLD_SECONDS else end
    frames = max(1, round((clips_end - origin) * rate))
    return SplitPlan(origin, rate, (0, frames), length_end - origin)


def frames_per_clip(rate: Fraction, clip_seconds: float) -> int:
    """Return how many frames a clip may have."""
    return max(1, math.floor(Fraction(clip_seconds).limit_denominator(1000) * rate))


def count_clips(frames: int, limit: int) -> int:
    """Return how many clips of at most ``limit`` frames are needed."""
    return math.ceil(frames / limit)


def even_cuts(frames: int, limit: int) -> tuple[int, ...]:
    """Return the cuts for clips of at most ``limit`` frames, as few and as equal as possible."""
    return _even_cuts(frames, count_clips(frames, limit))


def _even_cuts(frames: int, clips: int) -> tuple[int, ...]:
    return tuple((2 * index * frames + clips) // (2 * clips) for index in range(clips + 1))


def cuts_at_scenes(frames: int, limit: int, shortest: int, scene_changes: Iterable[int]) -> tuple[int, ...]:
    """
    Return as many cuts as :func:`even_cuts` does, with as many of them as possible where a scene changes.

    :param limit: frames of the longest clip
    :param shortest: frames of the shortest clip, where the film is long enough for that
    :param scene_changes: frames that begin a scene
    """
    even, changes = even_cuts(frames, limit), sorted(set(scene_changes))
    clips = len(even) - 1
    shortest = max(1, min(shortest, frames // clips))
    # For each position of the last cut: how good the best cuts up to it are, and what they are.
    best: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = {0: ((0, 0), (0,))}
    for index in range(1, clips):
        low = max(index * shortest, frames - (clips - index) * limit)
        high = min(index * limit, frames - (clips - index) * shortest)
        here = {position for position in changes if low <= position <= high}
        free = {low + (high - low) * step // _FREE_POSITIONS for step in range(_FREE_POSITIONS + 1)} | {even[index]}
        best = {
            position: max(reached)
            for position in sorted(here | free)
            if (
                reached := [
                    ((hits + (position in here), cost - (position - even[index]) ** 2), (*cuts, position))
                    for before, ((hits, cost), cuts) in best.items()
                    if shortest <= position - before <= limit
                ]
            )
        }
    ends = [(worth, cuts) for before, (worth, cuts) in best.items() if shortest <= frames - before <= limit]
    return (*max(ends)[1], frames)

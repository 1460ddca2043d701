# SPDX-License-Identifier: Apache-2.0
"""
Gaps in a film's time stamps: whether pictures and sound fill the time that the film claims to last.

Every ten seconds of a film are a job that costs money, and one wrong time stamp can turn seconds into hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from airflow_provider_luma.media.inspector import Unusable
from airflow_provider_luma.media.timeline import FrameTimes

#: Seconds that a picture counts for at most while no other follows and no sound is heard, and that a packet of sound
#: counts for at most.
#:
#: A film is refused if what counts is less than half of its length. So films whose pictures change at least every ten
#: minutes always pass, whatever else they are: time lapses, slide shows, screen recordings that store no frame while
#: nothing moves, streams with seconds or minutes missing. So do talks whose sound goes on over the last slide.
MAX_STILL_SECONDS = 300
MAX_PACKET_SECONDS = 10
_MIN_FILLED = Fraction(1, 2)

#: Seconds by which a packet may come too late: files are not always written in exact order.
_MAX_STEP_BACK = 1

_REMEDY = (
    "write it again with continuous time stamps, e.g. with "
    "ffmpeg -i INPUT -vf setpts=N/FRAME_RATE/TB -af asetpts=N/SR/TB OUTPUT.mp4"
)


@dataclass
class Heard:
    """
    The seconds in which a film's sound is heard, by the film's own clock.

    :param span: beginning and end; None without sound
    :param runs: of each track, the times that its packets fill without interruption
    """

    span: tuple[Fraction, Fraction] | None = None
    runs: dict[int, list[tuple[Fraction, Fraction]]] = field(default_factory=dict)

    def add(self, track: int, begin: Fraction, end: Fraction) -> None:
        """Add a packet of a track."""
        first, last = self.span or (begin, end)
        self.span = min(first, begin), max(last, end)
        runs = self.runs.setdefault(track, [])
        counted = min(end, begin + MAX_PACKET_SECONDS)
        if runs and runs[-1][0] <= begin <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], max(runs[-1][1], counted)
        else:
            runs.append((begin, counted))


class Order:
    """Checks that the packets of each track are in order of time."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}

    def check(self, track: int, dts: int | None, time_base: Fraction) -> None:
        """
        Check the next packet of a track.

        :param dts: its decoding time stamp
        :raises Unusable: the time jumps back
        """
        if dts is None:
            return
        newest = self._newest.setdefault(track, dts)
        if (back := newest - dts) > 0 and (seconds := back * time_base) > _MAX_STEP_BACK:
            raise Unusable(
                f"has time stamps that jump back by {float(seconds):.1f} seconds, from {float(newest * time_base):.1f} "
                f"to {float(dts * time_base):.1f} (track {track})",
                _REMEDY,
            )
        self._newest[track] = max(newest, dts)


def check_gaps(times: FrameTimes, heard: Heard) -> None:
    """
    Check that pictures and sound fill enough of a film.

    :raises Unusable: they do not
    """
    end = times.ticks[-1] * times.time_base + times.last * times.time_base
    end = max(end, heard.span[1]) if heard.span else end
    spans = [(begin, until, until) for runs in heard.runs.values() for begin, until in runs]
    spans = sorted([*spans, *_shown(times), (end, end, end)])
    reached = last = spans[0][0]
    gaps, missing = [], Fraction(0)
    for begin, filled, until in spans:
        if begin > reached:
            gaps.append((begin - last, last))
            missing += begin - reached
        reached, last = max(reached, filled), max(last, until)
    seconds = end - spans[0][0]
    if missing <= seconds * (1 - _MIN_FILLED):
        return
    length, begin = max(gaps)
    raise Unusable(
        f"lasts {float(seconds):.1f} seconds by its time stamps, but has no picture and no sound for "
        f"{float(length):.1f} seconds ({float(length / 3600):.1f} hours), from second "
        f"{float(begin - spans[0][0]):.1f} on",
        f"{_REMEDY}; if a picture is meant to stay that long, store it all the time, e.g. with "
        "ffmpeg -i INPUT -vf fps=25 OUTPUT.mp4",
    )


def _shown(times: FrameTimes) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Return the beginning of each run of pictures, the end of the time that it counts for, and its last picture."""
    clock, still = times.time_base, math.ceil(MAX_STILL_SECONDS / times.time_base)
    ends = [(before, after) for before, after in pairwise(times.ticks) if after - before > still]
    firsts = [times.ticks[0], *(after for _, after in ends)]
    lasts = [*(before for before, _ in ends), times.ticks[-1]]
    return [(first * clock, (last + still) * clock, last * clock) for first, last in zip(firsts, lasts, strict=True)]

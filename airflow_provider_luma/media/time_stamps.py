# SPDX-License-Identifier: Apache-2.0
"""
When a film's frames are shown and its sound is heard, by the time stamps of its packets, and whether that is plausible.

Each clip of a film is a job that costs money, and one wrong time stamp can turn seconds into hours. Times are exact
fractions of a second, and nothing is decoded here.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby, pairwise
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import av.error

from airflow_provider_luma.media.opening import Unusable, cut_off, undecodable

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

T = TypeVar("T")

#: Frames per second.
_RATES = (
    *(Fraction(rate) for rate in (10, 12, 15, 20)),
    *(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60)),
    *(Fraction(rate) for rate in (24, 25, 30, 48, 50, 60)),
)
_MIN_RATE, _MIN_VARIABLE_RATE = 5, 23

#: Maximum seconds that count as filled after a picture, while no other follows and no sound is heard; and for a packet
#: of sound.
#:
#: A film is refused if less than half of its length counts as filled. So films whose pictures change at least every ten
#: minutes always pass: time lapses, slide shows, screen recordings that store no frame while nothing moves, streams
#: with seconds or minutes missing. So do talks whose sound continues over the last slide.
MAX_STILL_SECONDS = 300
MAX_PACKET_SECONDS = 10
_MIN_FILLED = Fraction(1, 2)

#: Seconds by which a packet may be late: files are not always written in exact order.
_MAX_STEP_BACK = 1

_REMEDY = (
    "write it again with continuous time stamps, e.g. with "
    "ffmpeg -i INPUT -vf setpts=N/FRAME_RATE/TB -af asetpts=N/SR/TB OUTPUT.mp4"
)


@dataclass(frozen=True)
class FrameTimes:
    """
    When the frames of a film are shown.

    :param ticks: in the order of showing, in units of ``time_base``
    :param time_base: seconds
    :param last: ticks for which the last frame is shown; 0 if unknown
    """

    ticks: Sequence[int]
    time_base: Fraction
    last: int = 0

    @property
    def origin(self) -> Fraction:
        """Time of the first frame, in seconds."""
        return self.ticks[0] * self.time_base

    def rate(self) -> tuple[Fraction, bool]:
        """Return the frames per second, and whether the rate is constant; with long still pictures it never is."""
        gaps = [later - earlier for earlier, later in pairwise(self.ticks) if later > earlier]
        if not gaps:
            return Fraction(25), False
        mean = len(gaps) / ((self.ticks[-1] - self.ticks[0]) * self.time_base)
        usual = 1 / (Fraction(median(gaps)) * self.time_base)
        nearest = min(((self._deviation(rate), rate) for rate in _rates_near(mean)), default=None)
        if nearest and nearest[0] <= 1.01 * float(self.time_base):
            return nearest[1], True
        return min((rate for rate in _RATES if rate > _MIN_VARIABLE_RATE), key=lambda rate: abs(rate - usual)), False

    def seconds(self, rate: Fraction) -> Fraction:
        """Return the time from the beginning of the first frame to the end of the last."""
        return (self.ticks[-1] - self.ticks[0]) * self.time_base + max(self.last * self.time_base, 1 / rate)

    def _deviation(self, rate: Fraction) -> float:
        """Return by how many seconds, at most, a frame deviates from a constant rate."""
        tick, step, first = float(self.time_base), float(1 / rate), self.ticks[0]
        return max(abs((at - first) * tick - index * step) for index, at in enumerate(self.ticks))


def _rates_near(mean: Fraction) -> list[Fraction]:
    usual = (rate for rate in _RATES if abs(rate - mean) * 50 < mean)
    return [rate for rate in (*usual, mean.limit_denominator(1001)) if rate >= _MIN_RATE]


@dataclass
class Heard:
    """
    When a film's sound is heard, in seconds by the film's own clock.

    :param span: beginning and end; None without sound
    :param runs: for each track, the times that its packets fill without interruption
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
    """Checks that the packets of each track are in chronological order."""

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


def film_times(
    container: InputContainer, video: VideoStream, sounds: Sequence[AudioStream] = ()
) -> tuple[FrameTimes, Heard]:
    """
    Return when the frames are shown, and when the sound is heard. Nothing is decoded.

    :raises Unusable: there are no frames, or the file is cut off, or its time stamps jump back
    """
    # An array: ten hours have two million frames, and a dict or a set of them takes ten times as much memory.
    shown, last, heard, order = array("q"), (0, 0), Heard(), Order()
    try:
        for packet in container.demux(video, *sounds):
            is_picture = packet.stream is video
            # A packet lost in a transport stream leaves one broken picture, which the decoder reports.
            if packet.is_corrupt and is_picture and container.format.name != "mpegts":
                raise cut_off()
            at = packet.dts if lacks_pts(container) or packet.pts is None else packet.pts
            if not packet.size or at is None or packet.is_discard:  # an edit list can hide some
                continue
            clock = exact(packet.time_base)
            order.check(packet.stream.index, packet.dts, clock)
            if is_picture:
                last = (at, packet.duration or 0) if not shown or at >= last[0] else last
                shown.append(at)
            else:
                heard.add(packet.stream.index, at * clock, (at + (packet.duration or 0)) * clock)
    except (av.error.FFmpegError, MemoryError) as error:
        raise undecodable(error) from error
    if not shown or not video.time_base:
        raise undecodable("it holds no frame")
    ticks = array("q", (at for at, _ in groupby(sorted(shown))))
    return FrameTimes(ticks, exact(video.time_base), last[1]), heard


def exact(value: Fraction) -> Fraction:
    """Convert a fraction from PyAV, which has had its own type since version 19, to Python's type."""
    return Fraction(value.numerator, value.denominator)


def lacks_pts(container: InputContainer) -> bool:
    """Return whether a file has no presentation times: then the frames are shown at their decoding times, in order."""
    return container.format.name in ("avi", "asf")


def check_gaps(times: FrameTimes, heard: Heard) -> None:
    """
    Check that pictures and sound fill enough of a film.

    :raises Unusable: most of the film is a gap
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
        f"{_REMEDY}; if a picture is meant to stay that long, repeat it in the file, e.g. with "
        "ffmpeg -i INPUT -vf fps=25 OUTPUT.mp4",
    )


def _shown(times: FrameTimes) -> list[tuple[Fraction, Fraction, Fraction]]:
    """Return for each run of pictures when it begins, until when it counts, and the time of its last picture."""
    clock, still = times.time_base, math.ceil(MAX_STILL_SECONDS / times.time_base)
    ends = [(before, after) for before, after in pairwise(times.ticks) if after - before > still]
    firsts = [times.ticks[0], *(after for _, after in ends)]
    lasts = [*(before for before, _ in ends), times.ticks[-1]]
    return [(first * clock, (last + still) * clock, last * clock) for first, last in zip(firsts, lasts, strict=True)]


def shown_at(frames: Iterable[tuple[Fraction, T]], times: Iterable[Fraction], reach: Fraction) -> Iterator[T]:
    """
    Yield the frame that is shown at each time: the nearest one or, in a long gap, the last one.

    Frames are taken as needed, one ahead. The first frame also covers the time before it, and the last the time after.

    :param frames: each with its time in seconds, in order
    :param times: seconds, in order
    :param reach: seconds; in a gap longer than this, a frame stays beyond the middle of the gap
    """
    upcoming = iter(frames)
    shown = next(upcoming, None)
    following = next(upcoming, None)
    for time in times:
        while shown and following and time >= following[0] - min(following[0] - shown[0], reach) / 2:
            shown, following = following, next(upcoming, None)
        if shown:
            yield shown[1]

# SPDX-License-Identifier: Apache-2.0
"""A film whose time stamps are nonsense is refused, an unusual one is not, and each frame is shown at its time."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import count, islice

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.opening import Unusable
from airflow_provider_luma.media.split import plan_split
from airflow_provider_luma.media.time_stamps import FrameTimes, Heard, check_gaps, shown_at
from tests.support.clips import with_fields
from tests.support.films import film

HOUR = 3600
SECOND_OF_FILM = tuple(range(0, 1000, 40))


def times(*seconds: float, last: float = 0.04) -> FrameTimes:
    return FrameTimes([round(1000 * at) for at in seconds], Fraction(1, 1000), round(1000 * last))


def moving(begin: float, end: float) -> list[float]:
    return [begin + index / 25 for index in range(int((end - begin) * 25))]


def heard(*spans: tuple[float, float]) -> Heard:
    """Return sound in packets of a second."""
    sound = Heard()
    for begin, end in spans:
        for second in islice(count(begin), int(end - begin)):
            sound.add(1, Fraction(second), Fraction(second + 1))
    return sound


def one_packet(begin: float, end: float) -> Heard:
    sound = Heard()
    sound.add(1, Fraction(begin), Fraction(end))
    return sound


@pytest.mark.parametrize(
    ("pictures", "sound"),
    [
        (times(*moving(0, 5), *moving(9 * HOUR, 9 * HOUR + 5)), Heard()),
        (times(*moving(0, 5), 9 * HOUR), Heard()),
        (times(0, *moving(9 * HOUR, 9 * HOUR + 5)), Heard()),
        (times(*moving(0, 5), last=9 * HOUR), Heard()),
        (times(0, 9 * HOUR), Heard()),
        (times(-9 * HOUR, *moving(0, 5)), Heard()),
        (times(*moving(0, 60), *moving(HOUR, HOUR + 60), *moving(2 * HOUR, 2 * HOUR + 60)), Heard()),
        (times(*moving(0, 5), 20 * 60), Heard()),
        (times(*moving(0, 5)), heard((0, 5), (9 * HOUR, 9 * HOUR + 5))),
        (times(*moving(0, 5)), heard((9 * HOUR, 9 * HOUR + 5))),
        (times(*moving(9 * HOUR, 9 * HOUR + 5)), heard((0, 5))),
        (times(*moving(0, 5), 9 * HOUR), heard((0, 5))),
        (times(*moving(0, 5)), one_packet(0, 9 * HOUR)),
    ],
)
def test_film_that_is_mostly_a_gap_is_refused(pictures, sound):
    with pytest.raises(Unusable, match=r"lasts \d+\.\d seconds by its time stamps.*from second \d+\.\d on"):
        check_gaps(pictures, sound)


@pytest.mark.parametrize(
    ("pictures", "sound"),
    [
        (times(0), Heard()),
        (times(*moving(0, 5)), Heard()),
        (times(*range(0, 12 * HOUR, 600), last=600), Heard()),
        (times(0, 30, 600, 1190, *moving(1200, 1210)), Heard()),
        (times(*moving(0, 5), *moving(15, 20), *moving(200, 205)), Heard()),
        (times(*moving(0, 600), *moving(1200, 1800)), heard((0, 600), (1200, 1800))),
        (times(*moving(0, 60)), heard((0, 3 * HOUR))),
        (times(0), heard((0, HOUR))),
        (times(*moving(HOUR, HOUR + 60)), heard((0, HOUR))),
        (times(*moving(9 * HOUR, 9 * HOUR + 5)), heard((9 * HOUR, 9 * HOUR + 5))),
        (times(*moving(-9 * HOUR, -9 * HOUR + 5)), Heard()),
        (times(*moving(0, 5)), one_packet(0, 5)),
    ],
    ids=[
        *(
            "one picture",
            "video",
            "time lapse",
            "silent slides",
            "stream with gaps",
            "pause of ten minutes",
            "last slide",
        ),
        *("one slide", "late pictures", "late start", "negative start", "sound in one packet"),
    ],
)
def test_unusual_film_passes(pictures, sound):
    check_gaps(pictures, sound)


def refusal(source: bytes) -> str:
    with pytest.raises(LumaValidationError) as refused:
        plan_split(io.BytesIO(source), 10, shown="/f.mp4")
    return str(refused.value)


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv"])
def test_gap_of_nine_hours_is_named_with_its_place_and_a_remedy(kind):
    message = refusal(film(kind, ticks=(*SECOND_OF_FILM, 32_400_960, 32_401_000)))
    assert message.startswith(
        "source (/f.mp4) lasts 32401.0 seconds by its time stamps, but has no picture and no sound for 32400.0 seconds "
        "(9.0 hours), from second 1.0 on: write it again with continuous time stamps"
    )


def with_late_sound(source: bytes, seconds: int, kind: str = "mkv") -> bytes:
    """Return a film whose sound, from its middle on, comes later by so many seconds, or earlier."""
    target = io.BytesIO()
    with av.open(io.BytesIO(source)) as film, av.open(target, "w", format=kind) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio" and packet.dts * packet.time_base > 1:
                packet.pts = packet.dts = packet.dts + round(seconds / packet.time_base)
            packet.stream = streams[packet.stream.index]
            out.mux_one(packet)
    return target.getvalue()


def test_sound_that_goes_on_hours_later_is_refused():
    assert "no sound for" in refusal(with_late_sound(film(frames=60, sound="aac"), 9 * HOUR, "matroska"))


def test_last_picture_of_many_hours_is_refused():
    source = film(ticks=(*SECOND_OF_FILM, 1003, 1043), options=(("bf", "0"),))
    table = source.index(b"stts") + 8
    entries = int.from_bytes(source[table : table + 4])
    last = table + 4 + 8 * (entries - 1)
    assert source[last : last + 4] == (1).to_bytes(4), "the entry is about one frame"
    source = source[: last + 4] + (0x7FFFFFFF).to_bytes(4) + source[last + 8 :]
    assert "no picture and no sound for 134217.7 seconds (37.3 hours), from second 1.0 on" in refusal(source)


@pytest.mark.parametrize("kind", ["ts", "flv"])
def test_time_stamps_that_jump_back_are_refused(kind):
    source = film(kind, frames=100, rate=25, sound="aac")
    again = source if kind == "ts" else source[13:]
    message = refusal(source + again)
    assert "has time stamps that jump back by " in message
    assert "setpts=" in message


@pytest.mark.parametrize("box", [b"mvhd", b"mdhd"])
@pytest.mark.parametrize("duration", [1, 2**31])
def test_duration_in_the_header_does_not_count(box, duration):
    plan = plan_split(io.BytesIO(with_fields(film(frames=60, rate=25), box, 16, duration)), 10)
    assert (plan.clips, plan.seconds) == (1, pytest.approx(2.4))


def test_film_that_begins_hours_late_is_as_long_as_its_pictures():
    plan = plan_split(io.BytesIO(film("mkv", ticks=(*SECOND_OF_FILM, 1000), first=9 * HOUR * 1000)), 10)
    assert (plan.clips, plan.seconds) == (1, pytest.approx(1))


RATES = [
    Fraction(24000, 1001),
    Fraction(24),
    Fraction(25),
    Fraction(30000, 1001),
    Fraction(30),
    Fraction(50),
    Fraction(60),
]


def on_grid(frames: list[int], count: int, rate: int, reach: Fraction) -> list[int]:
    """Return the frames, given and named by their milliseconds, that a grid shows."""
    timed = [(Fraction(frame, 1000), frame) for frame in frames]
    return list(shown_at(timed, (Fraction(index, rate) for index in range(count)), reach))


def test_nearest_frame_is_shown():
    assert on_grid([0, 42, 83, 125], 5, 30, Fraction(1, 24)) == [0, 42, 83, 83, 125]


def test_frame_stays_through_a_long_gap():
    assert on_grid([0, 1000], 12, 10, Fraction(1, 10)) == [0] * 10 + [1000] * 2


def test_first_and_last_frame_are_shown_where_there_are_no_others():
    assert on_grid([200], 3, 10, Fraction(1, 10)) == [200] * 3
    assert on_grid([200, 100, 300], 5, 10, Fraction(1, 10)) == [200, 200, 100, 300, 300]
    assert on_grid([], 3, 10, Fraction(1, 10)) == []


@given(st.sampled_from(RATES), st.sampled_from(RATES), st.integers(1, 200))
def test_any_two_constant_rates_meet_within_half_a_frame(own, grid, count):
    frames = [(index / own, index / own) for index in range(count)]
    times = [time for index in range(400) if (time := index / grid) <= frames[-1][0]]
    for time, shown in zip(times, shown_at(frames, times, 1 / min(own, grid)), strict=True):
        assert abs(shown - time) <= 1 / own / 2

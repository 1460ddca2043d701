# SPDX-License-Identifier: Apache-2.0
"""A film's pictures look as intended; interlaced, broken and missing ones are repaired."""

from __future__ import annotations

import gc
import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby, islice
from typing import Any

import av
import numpy as np
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.split import plan_split, split
from tests.support.clips import with_fields
from tests.support.films import (
    broken,
    film,
    kept_file,
    number_of,
    pictures,
    pixels_of,
    rejoined,
    size_of,
    stream_seconds,
)


def split_all(source: bytes, clip_seconds: float = 10) -> tuple[tuple[str, ...], list[bytes]]:
    """Return lines for the log, and clips."""
    plan, clips = plan_split(io.BytesIO(source), clip_seconds), list[bytes]()
    return split(io.BytesIO(source), plan, lambda _: kept_file(clips)), clips


def numbers(clips: list[bytes]) -> list[int]:
    return [number for content in clips for _, number in pictures(content)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_turned_and_mirrored_as_players_show_them(rotation, mirrored):
    _, clips = split_all(film(frames=10, size=(54, 96), rotation=rotation, mirrored=mirrored))
    assert size_of(clips[0]) == (54, 96)
    assert numbers(clips) == list(range(10))


def test_frames_are_freed_at_once_and_not_when_python_collects_garbage():
    source = film(frames=90, rotation=90, size=(54, 96))
    plan = plan_split(io.BytesIO(source), 10)
    gc.collect()
    before = frames_in_memory()
    gc.disable()
    try:
        split(io.BytesIO(source), plan, lambda _: kept_file([]))
        left = frames_in_memory() - before
    finally:
        gc.enable()
    assert left <= 5


def frames_in_memory() -> int:
    # To ask a lazy object for its class, as isinstance does, makes it load what it stands for.
    return sum(type(each) is av.VideoFrame for each in gc.get_objects())


def with_aspect_of_container(source: bytes, across: int, down: int) -> bytes:
    """Give a film's pixels an aspect ratio that only the container states."""
    with av.open(io.BytesIO(source)) as container:
        assert container.streams.video[0].codec_context.sample_aspect_ratio in (None, 1)
    return with_fields(source, b"pasp", 0, across, down)


@pytest.mark.parametrize(
    ("rotation", "mirrored", "size"),
    [(0, False, (128, 54)), (90, False, (96, 72)), (270, True, (96, 72)), (180, True, (128, 54))],
)
def test_pixel_aspect_ratio_may_be_given_by_the_container_alone(rotation, mirrored, size):
    source = film(frames=10, size=(96, 54), rotation=rotation, mirrored=mirrored)
    _, clips = split_all(with_aspect_of_container(source, 4, 3))
    assert size_of(clips[0]) == size
    assert numbers(clips) == list(range(10))


def test_aspect_that_makes_pictures_too_large_is_refused():
    source = with_aspect_of_container(film(frames=10), 1000, 1)
    with pytest.raises(LumaValidationError, match="^source needs pictures of 96000 by 54 pixels: scale it first"):
        split_all(source)


def spliced(*parts: tuple[str, Sequence[np.ndarray]], aspects: Sequence[int] = ()) -> bytes:
    """
    Return a film whose parts were encoded each by itself, at 25 frames a second.

    :param parts: options of x264, and luma of each frame
    :param aspects: of each part's pixels
    """
    target, count = io.BytesIO(), 0
    with av.open(target, "w", format="mp4") as out:
        stream: Any = None
        for index, (options, lumas) in enumerate(parts):
            encoder: Any = av.CodecContext.create("libx264", "w")
            encoder.options = {"preset": "ultrafast", "bf": "0", "threads": "1", "x264-params": options}
            height, encoder.width = lumas[0].shape
            encoder.height, encoder.pix_fmt, encoder.time_base = height, "yuv420p", Fraction(1, 25)
            encoder.sample_aspect_ratio = Fraction(aspects[index] if aspects else 1)
            if stream is None:
                stream = out.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = encoder.width, encoder.height, "yuv420p"
            for luma in (*lumas, None):
                frame = luma if luma is None else av.VideoFrame.from_ndarray(luma, format="gray")
                if frame:
                    frame.pts, frame.time_base = count, Fraction(1, 25)
                    count += 1
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    out.mux(packet)
    return target.getvalue()


def numbered(numbers: Sequence[int], size: tuple[int, int]) -> list[np.ndarray]:
    return [pixels_of(number, size) for number in numbers]


def woven(fields: Sequence[int]) -> list[np.ndarray]:
    """
    Return frames of two fields, each of another time, as a camera for television writes them.

    :param fields: where a bar stands in each field; where it moves, a frame has combs
    """
    frames = []
    for first in range(0, len(fields), 2):
        pixels = np.full((96, 128), 16, np.uint8)
        for parity, at in enumerate(fields[first : first + 2]):
            pixels[parity::2, at : at + 40] = 235
        frames.append(pixels)
    return frames


def combs(content: bytes) -> list[float]:
    """Return how much the lines of each picture differ from those two above less than from those one above."""
    with av.open(io.BytesIO(content)) as container:
        lumas = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    return [float(np.abs(luma[1:-1] - luma[2:]).mean() - np.abs(luma[:-2] - luma[2:]).mean()) for luma in lumas]


@pytest.mark.parametrize("order", ["tff=1", "bff=1"])
def test_interlaced_film_loses_its_combs_but_no_frame(order):
    source = spliced((order, woven([4 * index for index in range(20)])))
    assert min(combs(source)[1:]) > 5
    warnings, (content,) = split_all(source)
    assert len(combs(content)) == 10
    assert max(combs(content)[1:-1]) < 1
    assert warnings == ("interlaced frames, deinterlaced: 10",)


def test_film_of_whole_frames_passes_as_it_is():
    warnings, clips = split_all(film(frames=20))
    assert numbers(clips) == list(range(20))
    assert warnings == ()


def test_frames_that_are_not_interlaced_keep_every_line():
    """A film of cinema for television (telecine) has single interlaced frames among whole ones."""
    lines = np.repeat(np.arange(96, dtype=np.uint8)[:, None] % 2 * 200 + 16, 128, axis=1)
    pair = ("tff=1", woven([0, 20, 40, 60]))
    source = spliced(("", [lines] * 5), pair, ("", [lines] * 5), pair, ("", [lines] * 5))
    warnings, (content,) = split_all(source)
    assert warnings == ("interlaced frames, deinterlaced: 4",)
    with av.open(io.BytesIO(content)) as container:
        lumas = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    contrast = [np.abs(np.diff(luma, axis=0)).mean() > 100 for luma in lumas]
    assert contrast == [True] * 5 + [False] * 2 + [True] * 5 + [False] * 2 + [True] * 5
    assert max(combs(content)[5:7]) < 1


@pytest.mark.parametrize(
    ("size", "shown_in"),
    [
        ((192, 108), (0, 96, 0, 54)),
        ((54, 54), (20, 74, 0, 54)),
        ((96, 24), (0, 96, 15, 39)),
        ((98, 54), (0, 96, 0, 54)),
    ],
)
def test_film_that_changes_its_size_keeps_the_first_and_the_aspect_of_each_picture(size, shown_in):
    source = spliced(("", numbered(range(10), (96, 54))), ("", numbered(range(10, 20), size)))
    _, (content,) = split_all(source)
    assert size_of(content) == (96, 54)
    left, right, top, bottom = shown_in
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == 20
    for number, luma in enumerate(frames):
        inner = luma if number < 10 else luma[top:bottom, left:right]
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(inner), format="gray").reformat(192, 108)
        assert number_of(picture) == number
        if number >= 10:
            bars = luma.astype(int)
            bars[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = 0
            assert bars.max() <= 40, "the rest is black"


def test_film_that_changes_the_aspect_of_its_pixels_with_its_size_goes_by_both():
    source = spliced(("", numbered(range(5), (48, 54))), ("", numbered(range(5, 10), (192, 108))), aspects=(2, 1))
    _, clips = split_all(source)
    assert size_of(clips[0]) == (96, 54)
    assert numbers(clips) == list(range(10))


#: A key frame every half a second, and none that refers to a later one.
CODECS = {
    "libx264": (("preset", "ultrafast"), ("bf", "0"), ("g", "15"), ("threads", "1")),
    "libx265": (
        ("preset", "ultrafast"),
        ("x265-params", "keyint=15:bframes=0:log-level=none:pools=none:frame-threads=1"),
    ),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("which", "lost"),
    [
        ([0], range(15)),
        ([14], [14]),
        ([15], range(15, 30)),
        ([89], [89]),
        ([14, 44, 74], [14, 44, 74]),
        ([14, 15], range(14, 30)),
    ],
)
def test_broken_frames_are_replaced_by_the_ones_before_them(codec, which, lost):
    """With a key frame those are lost that refer to it; of the film's first, the next one stands in for them."""
    source = broken(film(frames=90, codec=codec, options=CODECS[codec]), *which)
    warnings, clips = split_all(source, 2)
    expected = [max((good for good in range(number + 1) if good not in lost), default=15) for number in range(90)]
    assert numbers(clips) == expected
    assert warnings == (f"broken frames, replaced by the frame before: {len(lost)}",)


@pytest.mark.parametrize("codec", CODECS)
def test_single_broken_frame_that_others_refer_to_does_not_end_the_film(codec):
    """H.264 shows those that refer to it, more or less damaged, up to the next key frame; HEVC leaves them out."""
    warnings, clips = split_all(broken(film(frames=90, codec=codec, options=CODECS[codec]), 20), 2)
    assert sum(round(30 * stream_seconds(content)[0]) for content in clips) == 90
    assert "broken frames, replaced" in warnings[0]
    assert number_at(clips[0], 19) == number_at(clips[0], 20) == 19
    assert number_at(clips[0], 30) == 30


def number_at(content: bytes, index: int) -> int:
    with av.open(io.BytesIO(content)) as container:
        return number_of(next(islice(container.decode(video=0), index, None)))


def test_broken_frame_of_an_avi_is_replaced():
    source = broken(film("avi", frames=60, codec="mjpeg", pix_fmt="yuvj420p"), 20)
    warnings, clips = split_all(source)
    shown = numbers(clips)
    assert len(shown) == 60
    assert [number for number, _ in groupby(shown)] == [number for number in range(60) if number != 20]
    assert warnings == ("broken frames, replaced by the frame before: 1",)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("which", [range(20, 55), range(40), range(55, 90)])
def test_more_than_a_second_of_broken_frames_is_refused(codec, which):
    source = broken(film(frames=90, codec=codec, options=CODECS[codec]), *which)
    with pytest.raises(
        LumaValidationError,
        match=r"^source has no picture that can be decoded for 1\.\d seconds, from second \d.*: copy",
    ):
        split_all(source)


def test_broken_frame_of_a_modified_clip_is_replaced_and_its_clip_named():
    content, info = rejoined(film(frames=60), change=lambda clip: broken(clip, 59))
    assert len(pictures(content)) == 60
    assert info.warnings == ("clips[0]: broken frames, replaced by the frame before: 1",)

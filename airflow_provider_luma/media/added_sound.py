# SPDX-License-Identifier: Apache-2.0
"""Adds the sound of one video to the pictures of another, which are copied unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

import av
import av.error

from airflow_provider_luma.media.film_reader import opened, refusing
from airflow_provider_luma.media.film_types import AddedSound, ClipOpener
from airflow_provider_luma.media.opening import Unusable
from airflow_provider_luma.media.pictures import MP4_OPTIONS
from airflow_provider_luma.media.sound import Sound, check_sound, decodable, losses
from airflow_provider_luma.media.time_stamps import film_times

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

#: The tag of an MP4 that holds the mark.
_TAG = "comment"


def find_sound(source: IO[bytes], *, shown: str = "") -> bool:
    """
    Return whether a video has sound.

    :param source: can be read at any position
    :param shown: its address as messages may show it
    :raises LumaValidationError: it cannot be read, or an MP4 cannot hold its sound
    """
    with refusing("sound_from", shown), opened(source) as (container, video):
        if not decodable(container):
            return False
        times, _ = film_times(container, video)
    check_sound(source, times.origin, Fraction(1), parameter="sound_from", shown=shown)
    return True


def add_sound(
    video: ClipOpener, source: ClipOpener, output: Path, mark: str, *, names: tuple[str, str] = ("", "")
) -> AddedSound:
    """
    Write an MP4 with the pictures of one video and the sound of another. The sound is cut where the pictures end.

    Both are aligned at their first pictures, so sound before the source's first picture is left out.

    :param video: its pictures are copied, and its own sound is left out
    :param source: its sound is copied if an MP4 can hold it, and otherwise encoded
    :param output: a local file
    :param mark: written into the file, for :func:`read_mark`
    :param names: the addresses of both as messages may show them
    :raises LumaValidationError: one of them cannot be used
    """
    of_video, of_source = ("urls", names[0]), ("sound_from", names[1])
    origin, _ = _span(source, of_source)
    start, seconds = _span(video, of_video)
    with (
        refusing(*of_source),
        source() as heard_file,
        opened(heard_file) as heard,
        refusing(*of_video),
        video() as file,
        opened(file) as (container, pictures),
        av.open(str(output), "w", format="mp4", options=MP4_OPTIONS) as out,
    ):
        out.metadata.update({**container.metadata, _TAG: mark})
        copied = _copied(container, pictures, out, start)
        with refusing(*of_source):
            sound = Sound(heard[0], out, origin, seconds)
        _start(out)
        for packet in copied:
            for beside in _heard(sound, (packet.dts or 0) * packet.time_base, of_source):
                out.mux(beside)
            out.mux(packet)
        for beside in _heard(sound, None, of_source):
            out.mux(beside)
        return AddedSound(sound.kind, tuple(losses(*heard)))


def read_mark(video: IO[bytes]) -> str:
    """Return the mark of a video that :func:`add_sound` has written; empty if there is none."""
    with suppress(Unusable), opened(video) as (container, _):
        return container.metadata.get(_TAG, "")
    return ""


def _span(video: ClipOpener, name: tuple[str, str]) -> tuple[Fraction, Fraction]:
    """Return when a video's first picture is shown by its own clock, and how long the video is, in seconds."""
    with refusing(*name), video() as file, opened(file) as film:
        times, _ = film_times(*film)
        return times.origin, times.seconds(times.rate()[0])


def _copied(
    container: InputContainer, pictures: VideoStream, out: OutputContainer, start: Fraction
) -> Iterator[Packet[VideoStream]]:
    """Add a video's track to the MP4; return its packets, the first of which is shown at 0."""
    track = out.add_stream_from_template(pictures, opaque=True)
    track.time_base = pictures.time_base
    return _moved(container, pictures, track, start)


def _moved(
    container: InputContainer, pictures: VideoStream, track: VideoStream, start: Fraction
) -> Iterator[Packet[VideoStream]]:
    for packet in container.demux(pictures):
        if packet.size and packet.dts is not None:
            shift = round(start / packet.time_base)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            packet.stream = track
            yield packet


def _start(out: OutputContainer) -> None:
    """
    Write the header.

    :raises Unusable: an MP4 cannot hold the pictures
    """
    try:
        out.start_encoding()
    except (av.error.ArgumentError, ValueError) as error:
        raise Unusable(f"cannot be put into an MP4 ({error})", "leave sound_from out") from error


def _heard(sound: Sound, seconds: Fraction | None, name: tuple[str, str]) -> Iterator[Packet[AudioStream]]:
    with refusing(*name):
        yield from sound.until(seconds)

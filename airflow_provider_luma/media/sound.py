# SPDX-License-Identifier: Apache-2.0
"""A film's own sound, for an MP4 that begins and ends with the film: copied if it can be, else encoded as AAC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import av.error
import av.filter

from airflow_provider_luma.media.inspector import undecodable

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

#: What players of MP4 understand, by the canonical names: decoders have others, as mp3float.
_COPIED = frozenset(("aac", "ac3", "alac", "eac3", "mp3"))

#: Seconds of sound before the film that are copied, and hidden by an edit list: a decoder needs them to start up.
_PRIMING = Fraction(1, 20)

_AAC_RATES = frozenset((96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000))
_AAC_BIT_RATE = 96_000
_AAC_FRAME = 1024


def _shorten(packet: Packet[AudioStream], duration: int) -> None:
    """End a packet early, in the two ways in which an encoder says that the last of it is no sound."""
    before = packet.duration or 1
    packet.duration = min(before, duration)
    if packet.duration < before and packet.has_sidedata("skip_samples"):
        # From FFmpeg 9 on, the packet's duration alone does not count.
        skipped = packet.get_sidedata("skip_samples")
        start, end, rest = struct.unpack("<II2s", bytes(skipped))
        heard = round(packet.duration * packet.time_base * packet.stream.rate)
        end = max(end, packet.stream.codec_context.frame_size - heard)
        skipped.update(struct.pack("<II2s", start, end, rest))
        packet.set_sidedata(skipped)


class Sound:
    """
    The sound of a film, packet by packet. The MP4 gets a stream for it at once, if there is any.

    :param source: the film
    :param origin: seconds of the film's first picture, by the film's clock
    :param seconds: the length of the film
    :raises Unusable: it cannot be read
    """

    def __init__(self, source: InputContainer, out: OutputContainer, origin: Fraction, seconds: Fraction) -> None:
        #: What was done: "copied", "encoded", or "none" if the film has no sound.
        self.kind = "none"
        self._out, self._origin, self._seconds = out, origin, seconds
        self._packets: Iterator[Packet[AudioStream]] = iter(())
        stream = cast("AudioStream | None", source.streams.best("audio"))
        if stream is not None and stream.codec_context is not None:
            copied = stream.codec_context.codec.canonical_name in _COPIED
            self._packets = self._copy(source, stream) if copied else self._encode(source, stream)
        self._upcoming = self._next()

    def until(self, seconds: Fraction | None) -> Iterator[Packet[AudioStream]]:
        """
        Yield the packets up to a time of the film; all of the rest without one.

        :raises Unusable: they cannot be read
        """
        while (packet := self._upcoming) is not None:
            if seconds is not None and (packet.dts or 0) * packet.time_base > seconds:
                return
            yield packet
            self._upcoming = self._next()

    def _next(self) -> Packet[AudioStream] | None:
        try:
            return next(self._packets, None)
        except (av.error.FFmpegError, MemoryError) as error:
            raise undecodable(error) from error

    def _copy(self, source: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
        out_stream, last = None, None
        for packet in source.demux(stream):
            if not packet.size or packet.dts is None or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            packet.pts = packet.dts = last - round(self._origin / packet.time_base)
            begin, left = packet.pts * packet.time_base, int(self._seconds / packet.time_base) - packet.pts
            if left <= 0:
                return
            if begin < -_PRIMING:
                continue
            _shorten(packet, left)
            if out_stream is None:
                self.kind, out_stream = "copied", self._out.add_stream_from_template(stream)
            packet.stream = out_stream
            yield packet

    def _encode(self, source: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
        graph, encoder = None, None
        for frame in _decoded(source, stream):
            if (frame.time or 0.0) >= self._origin + self._seconds:
                break
            if graph is None or encoder is None:
                rate = stream.rate if stream.rate in _AAC_RATES else 48_000
                layout = "mono" if stream.channels == 1 else "stereo"
                graph = self._graph(frame, rate, layout)
                self.kind, encoder = "encoded", self._out.add_stream("aac", rate=rate, layout=layout)
                encoder.bit_rate = _AAC_BIT_RATE * encoder.channels
            for piece in _filtered(graph, frame):
                yield from encoder.encode(piece)
        if graph is not None and encoder is not None:
            for piece in _filtered(graph, None):
                yield from encoder.encode(piece)
            yield from encoder.encode(None)

    def _graph(self, frame: AudioFrame, rate: int, layout: str) -> av.filter.Graph:
        """Return what moves sound to the film's beginning, fills gaps with silence, and ends it with the film."""
        graph = av.filter.Graph()
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
        )
        filters = [
            ("asetpts", f"PTS-({float(self._origin):.9f})/TB"),
            ("aresample", f"{rate}:async=1:first_pts=0"),
            ("atrim", f"end={float(self._seconds):.9f}"),
            ("aformat", f"sample_fmts=fltp:channel_layouts={layout}"),
            ("asetnsamples", f"n={_AAC_FRAME}:p=0"),
            ("abuffersink", ""),
        ]
        graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in filters)).configure()
        return graph


def _decoded(source: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Yield what can be decoded; the rest becomes silence."""
    for packet in source.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (frame for frame in frames if frame.pts is not None)


def _filtered(graph: av.filter.Graph, frame: AudioFrame | None) -> Iterator[AudioFrame]:
    try:
        graph.push(frame)
        while True:
            yield graph.pull()  # type: ignore[misc]
    except (av.error.BlockingIOError, av.error.EOFError):
        return  # it needs more, or has had all that belongs to the film

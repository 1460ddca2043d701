# SPDX-License-Identifier: Apache-2.0
"""A film's own sound tracks, for an MP4 that begins and ends with the film: copied, or else encoded as AAC."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Protocol, cast

import av
import av.error
import av.filter

from airflow_provider_luma.media.film_reader import opened, refusing
from airflow_provider_luma.media.opening import Unusable, undecodable

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

#: Codecs that players of MP4 understand, by their canonical names; decoders have others, such as mp3float.
_COPIED = frozenset(("aac", "ac3", "alac", "eac3", "mp3"))

#: Seconds of sound before the film that are copied, and hidden by an edit list: a decoder needs them to start.
_PRIMING = Fraction(1, 20)

#: Seconds by which encoded sound may drift before silence fills the gap. FFmpeg's default is a tenth of a second: after
#: a few lost packets, lips would no longer match.
_MAX_SHIFT = 0.04

_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_BIT_RATE = 96_000

#: Layouts to encode AAC with, by number of channels. Of more than eight channels, the first two are kept.
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "5.1", 8: "7.1"}

#: The channels that these layouts are mixed from.
_CHANNELS = frozenset(("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"))

_KEPT_METADATA = ("language", "title", "handler_name")


def decodable(container: InputContainer) -> list[AudioStream]:
    """Return the sound tracks that can be decoded."""
    return [stream for stream in container.streams.audio if stream.codec_context and stream.codec_context.sample_rate]


def losses(container: InputContainer, video: VideoStream) -> list[str]:
    """Return a line for each part of a film that is not kept."""
    sounds = decodable(container)
    lost = [_loss(stream) for stream in container.streams if stream is not video and stream not in sounds]
    if chapters := container.chapters():
        lost.append(f"{len(chapters)} chapter marks are not kept")
    return lost


def _loss(stream: Stream) -> str:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context else ""
    reason = ": FFmpeg has no decoder for it" if stream.type == "audio" else ""
    described = ", ".join(filter(None, (stream.language, codec)))
    return f"{stream.type} track {stream.index}{f' ({described})' if described else ''} is not kept{reason}"


def _shorten(packet: Packet[AudioStream], duration: int) -> None:
    """Shorten a packet, in both ways in which an encoder marks the rest as padding."""
    before = packet.duration or 1
    packet.duration = min(before, duration)
    if packet.duration < before and packet.has_sidedata("skip_samples"):
        # From FFmpeg 9 on, the packet's duration alone is not enough.
        skipped = packet.get_sidedata("skip_samples")
        start, end, rest = struct.unpack("<II2s", bytes(skipped))
        heard = round(packet.duration * packet.time_base * packet.stream.rate)
        end = max(end, packet.stream.codec_context.frame_size - heard)
        skipped.update(struct.pack("<II2s", start, end, rest))
        packet.set_sidedata(skipped)


class _Track(Protocol):
    """A sound track of the film, as it is written."""

    kind: str

    def take(self, packet: Packet[AudioStream]) -> Iterator[Packet[AudioStream]]:
        """Take the source's next packet, or an empty one at the end, and yield what is to be written."""


class Sound:
    """
    The sound of a film, packet by packet. The MP4 gets a stream for each track right away.

    :param source: the film
    :param origin: when the film begins, in seconds by the film's clock
    :param seconds: the length of the film
    :raises Unusable: it cannot be read
    """

    def __init__(self, source: InputContainer, out: OutputContainer, origin: Fraction, seconds: Fraction) -> None:
        self._tracks: dict[int, _Track] = {}
        for stream in (streams := decodable(source)):
            kind = _Copied if _is_copied(stream) else _Encoded
            self._tracks[stream.index] = kind(stream, out, origin, seconds)
        self._packets = self._written(source, streams)
        self._upcoming = self._next()

    @property
    def kind(self) -> str:
        """What was done with each track: "copied" or "encoded"; "none" if the film has no sound."""
        return ", ".join(track.kind for track in self._tracks.values()) or "none"

    def until(self, seconds: Fraction | None) -> Iterator[Packet[AudioStream]]:
        """
        Yield the packets up to a time of the film; without one, all that are left.

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

    def _written(self, source: InputContainer, streams: list[AudioStream]) -> Iterator[Packet[AudioStream]]:
        if streams:
            for packet in source.demux(*streams):
                yield from self._tracks[packet.stream.index].take(cast("Packet[AudioStream]", packet))


def check_sound(
    source: IO[bytes], origin: Fraction, seconds: Fraction, *, parameter: str = "source", shown: str = ""
) -> None:
    """
    Check that an MP4 can hold a film's sound: prepare it as a join does, and write its first second to memory.

    :param source: can be read at any position
    :param origin: when the film begins, in seconds by the film's clock
    :param seconds: the length of the film
    :param parameter: the parameter that names the film
    :param shown: its address as messages may show it
    :raises LumaValidationError: an MP4 cannot take the sound
    """
    with refusing(parameter, shown), opened(source) as (container, _):
        try:
            with av.open(io.BytesIO(), "w", format="mp4") as out:
                for packet in Sound(container, out, origin, seconds).until(Fraction(1)):
                    out.mux(packet)
        except (Unusable, av.error.FFmpegError, ValueError) as error:
            raise Unusable(
                f"has sound that cannot be put into an MP4 ({error.__cause__ or error})",
                "convert the sound first, e.g. with ffmpeg -i INPUT -c:v copy -c:a aac OUTPUT.mp4, or drop it (-an)",
            ) from error


def _is_copied(stream: AudioStream) -> bool:
    """Return whether players support a track's codec and the MP4 muxer accepts it (it refuses MP3 below 16 kHz)."""
    if stream.codec_context.codec.canonical_name not in _COPIED:
        return False
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _describe_alike(stream: AudioStream, source: AudioStream) -> None:
    """Give a track of the MP4 the language, name and flags of the source's."""
    stream.metadata.update({key: value for key, value in source.metadata.items() if key in _KEPT_METADATA})
    stream.disposition = source.disposition


class _Copied:
    """A track whose packets are copied."""

    kind = "copied"

    def __init__(self, stream: AudioStream, out: OutputContainer, origin: Fraction, seconds: Fraction) -> None:
        self._origin, self._seconds = origin, seconds
        self._stream: AudioStream = out.add_stream_from_template(stream)
        self._last: int | None = None
        _describe_alike(self._stream, stream)

    def take(self, packet: Packet[AudioStream]) -> Iterator[Packet[AudioStream]]:
        if not packet.size or packet.dts is None or (self._last is not None and packet.dts <= self._last):
            return
        self._last = packet.dts
        packet.pts = packet.dts = packet.dts - round(self._origin / packet.time_base)
        left = int(self._seconds / packet.time_base) - packet.pts
        if left > 0 and packet.pts * packet.time_base >= -_PRIMING:
            _shorten(packet, left)
            packet.stream = self._stream
            yield packet


class _Encoded:
    """A track that is encoded as AAC. Parts that cannot be decoded become silence."""

    kind = "encoded"

    def __init__(self, stream: AudioStream, out: OutputContainer, origin: Fraction, seconds: Fraction) -> None:
        # A decoder that cannot start would otherwise fail at each packet, as if all of them were damaged.
        try:
            stream.codec_context.open(strict=False)
        except av.error.FFmpegError as error:
            raise undecodable(error) from error
        self._origin, self._seconds = origin, seconds
        self._channels, self._map = _channels(stream)
        self._rate = next((rate for rate in _AAC_RATES if rate >= stream.rate), 48_000)
        layout = _AAC_LAYOUTS.get(self._channels, "stereo")
        self._encoder = out.add_stream("aac", rate=self._rate, layout=layout)
        self._encoder.bit_rate = _AAC_BIT_RATE * self._encoder.layout.nb_channels
        _describe_alike(self._encoder, stream)
        self._graph: av.filter.Graph | None = None
        self._format: tuple[object, ...] = ()
        self._samples = 0
        self._next_pts = round(origin / (stream.time_base or 1))

    def take(self, packet: Packet[AudioStream]) -> Iterator[Packet[AudioStream]]:
        for frame in self._decoded(packet):
            form = (frame.sample_rate, frame.format.name, frame.layout.name, frame.time_base)
            if self._graph is None or form != self._format:
                yield from self._encode(None)
                self._graph, self._format = self._new_graph(frame), form
            yield from self._encode(frame)
        if not packet.size:
            yield from self._encode(None)
            if self._samples:
                yield from self._encoder.encode(None)

    def _decoded(self, packet: Packet[AudioStream]) -> list[AudioFrame]:
        """Return a packet's frames. Only the first has a time stamp; the others continue from it."""
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:  # decoders raise different errors for a damaged packet
            return []
        for frame in frames:
            frame.pts = self._next_pts if frame.pts is None else frame.pts
            time_base = frame.time_base or packet.time_base
            self._next_pts = (frame.pts or 0) + round(Fraction(frame.samples, frame.sample_rate) / time_base)
        return frames

    def _encode(self, frame: AudioFrame | None) -> Iterator[Packet[AudioStream]]:
        """Encode a frame, or what the graph still holds."""
        if self._graph is not None:
            for piece in _filtered(self._graph, frame):
                self._samples += piece.samples
                yield from self._encoder.encode(piece)

    def _new_graph(self, frame: AudioFrame) -> av.filter.Graph:
        """Return a graph that moves sound to the film's start, fills gaps with silence, and ends it with the film."""
        graph = av.filter.Graph()
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
        )
        filters = [
            *([("channelmap", self._map)] if frame.layout.nb_channels == self._channels and self._map else []),
            ("asetpts", f"PTS-({float(self._origin):.9f})/TB"),
            ("aresample", f"{self._rate}:async=1:min_hard_comp={_MAX_SHIFT}:first_pts={self._samples}"),
            ("atrim", f"end={float(self._seconds):.9f}"),
            ("aformat", f"sample_fmts=fltp:channel_layouts={self._encoder.layout.name}"),
            ("abuffersink", ""),
        ]
        graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in filters)).configure()
        return graph


def _channels(stream: AudioStream) -> tuple[int, str]:
    """
    Return the number of channels, and a map of them where FFmpeg needs one.

    PyAV 18 frees a layout of a custom order twice, so such a layout is read here and replaced before anything is
    decoded.
    """
    layout = stream.codec_context.layout
    count, names = layout.nb_channels, layout.name.partition("(")[2].rstrip(")").split("+")
    if " channels (" in layout.name:
        stream.codec_context.layout = f"{count} channels"
    elif count <= max(_AAC_LAYOUTS):
        return count, ""
    if count == 1:
        names = ["FC"]
    elif count > max(_AAC_LAYOUTS) or not _CHANNELS.issuperset(names):
        names = ["FL", "FR"]
    return count, "|".join(f"{index}-{name}" for index, name in enumerate(names))


def _filtered(graph: av.filter.Graph, frame: AudioFrame | None) -> Iterator[AudioFrame]:
    try:
        graph.push(frame)
        while True:
            yield graph.pull()  # type: ignore[misc]
    except (av.error.BlockingIOError, av.error.EOFError):
        return  # it needs more frames, or has reached the end of the film

# SPDX-License-Identifier: Apache-2.0
"""Small videos of every kind, and the parts of an MP4 to tamper with."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

MOOV_IN_FRONT = "+faststart"
FRAGMENTED = "+frag_keyframe+empty_moov"


@cache
def clip(
    kind: str = "mp4",
    *,
    seconds: float = 1.0,
    size: tuple[int, int] = (64, 36),
    rate: int = 10,
    codec: str | None = "libx264",
    sound: str | None = None,
    sound_seconds: float | None = None,
    movflags: str = "",
    noise: bool = False,
    container: str | None = None,
) -> bytes:
    """
    Encode a clip.

    :param kind: the file's ending, which names the container unless ``container`` does
    :param codec: of the video; None for sound alone
    :param sound_seconds: of the sound, if that lasts longer
    :param noise: pictures that do not compress: about 1.5 MB each at 1280x720
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{kind}"
        options = {"movflags": movflags} if movflags else {}
        with av.open(str(path), "w", format=container, options=options) as out:
            audio = out.add_stream(sound, rate=48000, layout="stereo") if sound else None
            video: Any = out.add_stream(codec, rate=rate, options=_codec_options(codec, noise)) if codec else None
            if video:
                video.width, video.height, video.pix_fmt = *size, "rgb24" if codec == "png" else "yuv420p"
            for index in range(int((sound_seconds or seconds) * rate)):
                if video and index < int(seconds * rate):
                    out.mux(video.encode(_picture(index, size, rate, noise)))
                if audio:
                    out.mux(audio.encode(_silence(index, 48000 // rate)))
            for stream in filter(None, (video, audio)):
                out.mux(stream.encode(None))
        return path.read_bytes()


def with_broken_sound(video: bytes) -> bytes:
    """Return a video whose pictures can be decoded, and whose sound cannot."""
    broken = bytearray(video)
    with av.open(io.BytesIO(video)) as container:
        for packet in container.demux(audio=0):
            if packet.pos is not None and packet.size:
                broken[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    return bytes(broken)


def _codec_options(codec: str | None, noise: bool) -> dict[str, str]:
    if codec not in ("libx264", "libx265"):
        return {}
    return {"preset": "ultrafast", **({"crf": "1", "g": "10"} if noise else {})}


def _picture(index: int, size: tuple[int, int], rate: int, noise: bool) -> av.VideoFrame:
    if noise:
        pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    else:
        pixels = np.full((size[1], size[0], 3), index * 20 % 256, dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts, frame.time_base = index, Fraction(1, rate)
    return frame


def _silence(index: int, length: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((2, length), dtype=np.float32), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, index * length, Fraction(1, 48000)
    return frame


def with_fields(video: bytes, box: bytes, offset: int, *numbers: int) -> bytes:
    """Overwrite 32-bit numbers at an offset behind the type of each box of that type."""
    parts = video.split(box)
    fields = struct.pack(f">{len(numbers)}I", *numbers)
    rest = [part[:offset] + fields + part[offset + len(fields) :] for part in parts[1:]]
    return box.join([parts[0], *rest])


def encrypted(video: bytes, kind: str = "mp4", movflags: str = "") -> bytes:
    """Return an MP4 or MOV whose first track is encrypted."""
    scheme = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    options = {**scheme, **({"movflags": movflags} if movflags else {})}
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{kind}"
        with av.open(io.BytesIO(video)) as source, av.open(str(path), "w", options=options) as out:
            streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
        return path.read_bytes()


def without_samples(video: bytes, handler: bytes) -> bytes:
    """Empty the tables of an MP4's track of such a handler ("soun", "vide"): it is there, and holds nothing."""
    tracks = video.split(b"trak")
    return b"trak".join(_emptied(track) if handler in track else track for track in tracks)


def _emptied(track: bytes) -> bytes:
    for table, offset in ((b"stts", 4), (b"stsz", 8), (b"stsc", 4), (b"stco", 4)):
        track = with_fields(track, table, offset, 0)
    return track


def lengthened(video: bytes, count: int, *boxes: bytes) -> bytes:
    """Add to the length of these boxes."""
    for kind in boxes:
        at = video.index(kind) - 4
        length = int.from_bytes(video[at : at + 4]) + count
        video = video[:at] + struct.pack(">I", length) + video[at + 4 :]
    return video


def with_empty_video_in_front(video: bytes) -> bytes:
    """Return an MP4 or MOV with an empty video track before its others."""
    begin = video.index(b"trak") - 4
    track = video[begin : begin + int.from_bytes(video[begin : begin + 4])]
    video = video[:begin] + without_samples(track, b"vide") + video[begin:]
    return lengthened(video, len(track), b"moov")

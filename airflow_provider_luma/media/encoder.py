# SPDX-License-Identifier: Apache-2.0
"""Writing the H.264 video of an MP4 that any service and player reads alike."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
from av.video.frame import PictureType

from airflow_provider_luma.media.memory import THREADS

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

#: The index comes first, for who reads the file over a network.
MP4_OPTIONS = {"movflags": "+faststart"}

#: Without frames that refer to later ones, the video begins at 0 and needs no edit list, which not everybody heeds.
_OPTIONS = {"preset": "veryfast", "crf": "18", "bf": "0", "threads": str(THREADS)}


class VideoEncoder:
    """
    Encodes pictures at a constant rate.

    :param rate: frames per second
    :param picture: one of them; the others are alike
    """

    def __init__(self, out: OutputContainer, rate: Fraction, picture: av.VideoFrame) -> None:
        self._stream = out.add_stream("libx264", rate=rate, options=_OPTIONS)
        self._stream.width, self._stream.height = picture.width, picture.height
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.color_range, context.colorspace = picture.color_range, picture.colorspace
        context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
        self._time_base = 1 / rate
        self.frames = 0

    def encode(self, picture: av.VideoFrame) -> list[Packet[VideoStream]]:
        """Encode the next picture."""
        picture.pts, picture.time_base, picture.pict_type = self.frames, self._time_base, PictureType.NONE
        self.frames += 1
        return self._stream.encode(picture)

    def finish(self) -> list[Packet[VideoStream]]:
        """Return what is still to be written."""
        return self._stream.encode(None)

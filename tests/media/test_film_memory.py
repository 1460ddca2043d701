# SPDX-License-Identifier: Apache-2.0
"""The memory that splitting and joining takes: it does not grow with a film's length."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.films import film, pictures

MAX_MEMORY = 250_000_000
MAX_MEMORY_IN_4K = 1_000_000_000

SCRIPT = """
import sys
from contextlib import nullcontext
from pathlib import Path
from airflow_provider_luma.media import child_process
from airflow_provider_luma.media.film_work import join, plan_split, split
most = 0
def measure(done, frames):
    global most
    (process,) = child_process._running
    status = Path(f"/proc/{process.pid}/status").read_text()
    most = max(most, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
folder = Path(sys.argv[1])
source = (folder / "film.mp4").open("rb")
plan = plan_split(source, float(sys.argv[3]))
clips = [folder / f"{index}.mp4" for index in range(plan.clips)]
if sys.argv[2] == "split":
    split(source, plan, lambda index: nullcontext(clips[index]), measure)
else:
    join([lambda clip=clip: clip.open("rb") for clip in clips], source, plan, folder / "joined.mp4", measure)
print(most)
"""


def ten_seconds() -> bytes:
    """Return ten seconds of noise that moves, with noise to hear."""
    random, target = np.random.default_rng(1), io.BytesIO()
    still = random.integers(0, 255, (45, 80, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(target, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "0"})
        video.width, video.height, video.pix_fmt = 1280, 720, "yuv420p"
        audio = out.add_stream("aac", rate=48000, layout="stereo")
        for index in range(300):
            pixels = np.ascontiguousarray(np.roll(still, index * 4, axis=1))
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            wave = random.normal(0, 0.1, (2, 1600)).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = 48000, index * 1600, Fraction(1, 48000)
            out.mux(audio.encode(heard))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return target.getvalue()


def write_ten_minutes(path: Path) -> None:
    piece = ten_seconds()
    with av.open(str(path), "w") as out:
        for repeat in range(60):
            with av.open(io.BytesIO(piece)) as container:
                if not repeat:
                    streams = [out.add_stream_from_template(stream) for stream in container.streams]
                for packet in container.demux():
                    if packet.dts is None or packet.pts is None or packet.dts < 0:
                        continue
                    packet.pts += round(repeat * 10 / packet.time_base)
                    packet.dts += round(repeat * 10 / packet.time_base)
                    packet.stream = streams[packet.stream_index]
                    out.mux(packet)


def most_memory(folder: Path, step: str, clip_seconds: float = 10) -> int:
    """Return the bytes that the process takes at most that splits, or joins, the film in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), step, str(clip_seconds)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1500,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_minutes_in_720p_are_split_and_joined_in_little_memory(tmp_path):
    write_ten_minutes(tmp_path / "film.mp4")
    for step in ("split", "join"):
        assert most_memory(tmp_path, step) < MAX_MEMORY, step
    assert len(list(tmp_path.glob("[0-9]*.mp4"))) == 60
    with av.open(str(tmp_path / "joined.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(600, abs=0.05)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264", "yuv420p"), ("libx265", "yuv420p"), ("libx265", "yuv420p10le")]
)
def test_film_in_4k_is_split_and_joined_within_a_gigabyte(codec, pix_fmt, tmp_path):
    options = (("x265-params", "log-level=none"),) if codec == "libx265" else ()
    options = (("preset", "ultrafast"), *options)
    size = (3840, 2160)
    (tmp_path / "film.mp4").write_bytes(film(frames=60, size=size, codec=codec, options=options, pix_fmt=pix_fmt))
    for step in ("split", "join"):
        taken = most_memory(tmp_path, step, clip_seconds=1)
        print(f"{step}: {taken / 1e6:.0f} MB")
        assert taken < MAX_MEMORY_IN_4K, step
    assert len(pictures((tmp_path / "joined.mp4").read_bytes())) == 60

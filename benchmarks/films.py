# SPDX-License-Identifier: Apache-2.0
"""
How fast a film is split into clips and joined again, against the time that it plays.

The film is 1080p, 30 frames a second, H.264 and AAC, with noise that does not compress well. Each step runs in a
process of its own, whose child processes do the work. ``FILM_SECONDS=60`` sets how long the film is.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from airflow_provider_luma.media.film_work import join, plan_split, split
from airflow_provider_luma.media.split_plan import SplitPlan

SECONDS = int(os.environ.get("FILM_SECONDS", "60"))
CLIP_SECONDS = 10
WIDTH, HEIGHT, RATE = 1920, 1080, 30
SAMPLE_RATE, SAMPLES = 48000, 1024


def main() -> None:
    """Measure, and print a table."""
    with TemporaryDirectory() as folder:
        _make_film(Path(folder, "film.mp4"))
        megabytes = Path(folder, "film.mp4").stat().st_size / 1e6
        print(f"A film of {SECONDS} s, {WIDTH}x{HEIGHT}, {RATE} frames a second, {megabytes:.0f} MB:\n")
        print("| | seconds | times playback speed | CPU seconds | MB of memory |")
        print("|---|---:|---:|---:|---:|")
        for step in ("split", "join"):
            command = [sys.executable, "-m", "benchmarks.films", step, folder]
            measured = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            print(
                f"| {step} | {measured['seconds']:.1f} | {SECONDS / measured['seconds']:.1f} "
                f"| {measured['cpu']:.1f} | {measured['memory']:.0f} |",
                flush=True,
            )


def one(step: str, folder: Path) -> None:
    """Do a step, and print what it took."""
    began = time.monotonic()
    {"split": _split, "join": _join}[step](folder)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": cpu, "memory": memory}))


def _split(folder: Path) -> None:
    @contextmanager
    def clip(index: int) -> Iterator[Path]:
        yield folder / f"{index:03}.mp4"

    with Path(folder, "film.mp4").open("rb") as film:
        plan = plan_split(film, CLIP_SECONDS)
        split(film, plan, clip)
    Path(folder, "plan.json").write_text(json.dumps(plan.as_dict()))


def _join(folder: Path) -> None:
    plan = SplitPlan.load(json.loads(Path(folder, "plan.json").read_text()))
    clips = [partial(path.open, "rb") for path in sorted(folder.glob("[0-9]*.mp4"))]
    with Path(folder, "film.mp4").open("rb") as film:
        join(clips, film, plan, folder / "joined.mp4")


def _make_film(path: Path) -> None:
    random = np.random.default_rng(7)
    noise = random.integers(0, 64, (HEIGHT, 2 * WIDTH), dtype=np.uint8)
    brightness = np.linspace(0, 160, WIDTH, dtype=np.uint8)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "28"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio: Any = out.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for number in range(SECONDS * RATE):
            at = 8 * number % WIDTH
            frame = av.VideoFrame.from_ndarray(noise[:, at : at + WIDTH] + np.roll(brightness, at), format="gray")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for number in range(SECONDS * SAMPLE_RATE // SAMPLES):
            sound = av.AudioFrame.from_ndarray(
                random.uniform(-0.1, 0.1, (2, SAMPLES)).astype(np.float32), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, number * SAMPLES, Fraction(1, SAMPLE_RATE)
            out.mux(audio.encode(sound))
        out.mux(audio.encode(None))


if __name__ == "__main__":
    one(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()

# SPDX-License-Identifier: Apache-2.0
"""
How fast a film is split into clips of 10 seconds and joined again, compared with playing it.

The film is 1080p at 30 frames a second with sound, a moving gradient under noise that is new in each picture, so that
neither decoding nor encoding is cheap. The clips are joined unmodified. Each step runs in a separate process and, as in
a task, does its work in a child process, whose memory is shown. The plan reads the film's time stamps.
``FILM_SECONDS=30`` sets the film's length.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.media.film_types import ClipOpener
from airflow_provider_luma.media.film_work import join, plan_split, split
from airflow_provider_luma.media.split_plan import SplitPlan

if TYPE_CHECKING:
    import av

SECONDS = int(os.environ.get("FILM_SECONDS", "30"))
CLIP_SECONDS = 10
WIDTH, HEIGHT, RATE, SAMPLE_RATE = 1920, 1080, 30, 48000

#: How far the noise changes a pixel's brightness, and how many pixels the gradient moves from picture to picture.
NOISE, STEP = 6, 4


def main() -> None:
    """Make the film, measure, and print a table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _in_a_process("make", folder)
        size = (folder / "film.mp4").stat().st_size
        print(f"A film of {SECONDS} s, {HEIGHT}p at {RATE} frames/s, {8 * size / 1e6 / SECONDS:.0f} Mbit/s:\n")
        print("| | seconds | times playback speed | CPU seconds | MB of memory |")
        print("|---|---:|---:|---:|---:|")
        for step in ("plan", "split", "join"):
            took = _in_a_process(step, folder)
            print(
                f"| {step} | {took['seconds']:.1f} | {SECONDS / took['seconds']:.2f} | {took['cpu']:.1f} "
                f"| {took['megabytes']:.0f} |",
                flush=True,
            )


def _in_a_process(step: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.films", step, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return took


# -- the steps ------------------------------------------------------------------------------------------------------


def one(step: str, folder: Path) -> None:
    """Take a step, and print what it took."""
    steps: dict[str, Callable[[Path], None]] = {"make": _make, "plan": _plan, "split": _split, "join": _join}
    started_at, cpu = time.perf_counter(), _cpu()
    steps[step](folder)
    seconds, cpu = time.perf_counter() - started_at, _cpu() - cpu
    # A child's figure begins with what this process holds, which is much less than what PyAV needs.
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": megabytes}))


def _cpu() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _plan(folder: Path) -> None:
    with (folder / "film.mp4").open("rb") as film:
        plan = plan_split(film, CLIP_SECONDS)
    assert plan.clips == math.ceil(SECONDS / CLIP_SECONDS), plan
    (folder / "plan.json").write_text(json.dumps(plan.as_dict()))


def _split(folder: Path) -> None:
    @contextmanager
    def clip_file(number: int) -> Iterator[Path]:
        yield _clip(folder, number)

    with (folder / "film.mp4").open("rb") as film:
        warnings = split(film, _planned(folder), clip_file)
    assert not warnings, warnings


def _join(folder: Path) -> None:
    plan = _planned(folder)
    openers = [_opener(_clip(folder, number)) for number in range(plan.clips)]
    with (folder / "film.mp4").open("rb") as film:
        joined = join(openers, film, plan, folder / "joined.mp4")
    assert (round(joined.seconds), joined.sound) == (SECONDS, "copied"), joined


def _opener(clip: Path) -> ClipOpener:
    return lambda: clip.open("rb")


def _planned(folder: Path) -> SplitPlan:
    return SplitPlan.load(json.loads((folder / "plan.json").read_text()))


def _clip(folder: Path, number: int) -> Path:
    return folder / f"clip-{number:04}.mp4"


# -- the film -------------------------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    import av

    with av.open(str(folder / "film.mp4"), "w") as out:
        video: Any = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio: Any = out.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        sounds = _sounds()
        for second, pictures in enumerate(_seconds_of_pictures(), 1):
            for picture in pictures:
                out.mux(video.encode(picture))
            for sound in sounds:
                out.mux(audio.encode(sound))
                if sound.pts >= second * SAMPLE_RATE:
                    break
        for stream in (video, audio):
            out.mux(stream.encode(None))


def _seconds_of_pictures() -> Iterator[list[av.VideoFrame]]:
    pictures = _pictures()
    for _ in range(SECONDS):
        yield [next(pictures) for _ in range(RATE)]


def _pictures() -> Iterator[av.VideoFrame]:
    """Yield pictures in YUV 4:2:0: a moving gradient, and grain from a different part of a larger pattern each time."""
    import av
    import numpy as np

    random = np.random.default_rng(7)
    rows, columns = HEIGHT * 3 // 2, WIDTH
    grain = random.integers(0, NOISE + 1, (rows + 256, columns + 256), dtype=np.uint8)
    across = 100 + 80 * np.sin(np.arange(2 * columns) * 2 * np.pi * 5 / columns)
    down = 30 * np.cos(np.arange(rows) * 2 * np.pi * 3 / rows)
    canvas = (across[None, :] + down[:, None]).astype(np.uint8)
    for number in range(SECONDS * RATE):
        left = number * STEP % columns
        top, side = random.integers(0, 256, 2)
        pixels = canvas[:, left : left + columns] + grain[top : top + rows, side : side + columns]
        picture = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
        picture.pts = number
        yield picture


def _sounds() -> Iterator[Any]:
    """Yield a tone under noise."""
    import av
    import numpy as np

    random = np.random.default_rng(11)
    for first in range(0, SECONDS * SAMPLE_RATE, 1024):
        at = np.arange(first, min(first + 1024, SECONDS * SAMPLE_RATE))
        tone = 0.3 * np.sin(2 * np.pi * 440 / SAMPLE_RATE * at) + random.normal(0, 0.02, (2, len(at)))
        sound = av.AudioFrame.from_ndarray(tone.astype(np.float32), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts = SAMPLE_RATE, first
        yield sound


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        main()

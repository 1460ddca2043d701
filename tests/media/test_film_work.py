# SPDX-License-Identifier: Apache-2.0
"""Films are decoded in a process with limits: whatever happens to it, the caller survives and learns the cause."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media import child_process
from airflow_provider_luma.media.child_process import end_all
from airflow_provider_luma.media.film_types import JoinedFilm
from airflow_provider_luma.media.film_work import join, move_cuts_to_scenes, plan_split, split
from airflow_provider_luma.media.split_plan import SplitPlan
from tests.support.clips import clip
from tests.support.films import film, openers, pictures

pytestmark = pytest.mark.slow

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")

#: Frames of a film that is split into two clips of a second.
FRAMES = 60


@contextmanager
def written(folder: Path, index: int) -> Iterator[Path]:
    """Make a clip as an operator does: under its name only when it is whole."""
    part = folder / f"{index}.part"
    try:
        yield part
        part.rename(folder / f"{index}.mp4")
    finally:
        part.unlink(missing_ok=True)


def split_into(
    folder: Path, source: io.BytesIO, on_progress: Callable[[int, int], None] | None = None, **options: Any
) -> tuple[str, ...]:
    plan = plan_split(source, 1)
    return split(source, plan, lambda index: written(folder, index), on_progress, **options)


def child() -> psutil.Process:
    """Return the process that decodes."""
    (process,) = child_process._running
    return psutil.Process(process.pid)


def when_begun(act: Callable[[], Any]) -> Callable[[int, int], None]:
    """Return what does something once, at the third frame."""
    return lambda done, _: act() if done == 3 else None


def join_to(output: Path, clips: list[bytes], source: bytes, plan: SplitPlan | None = None) -> JoinedFilm:
    plan = plan or plan_split(io.BytesIO(source), 10).evenly(len(clips))
    names = [f"s3://b/{index}.mp4" for index in range(len(clips))]
    return join(openers(clips), io.BytesIO(source), plan, output, names=names, shown="film.mp4")


def test_film_is_split_and_joined_with_its_progress_in_order(tmp_path):
    source, reports = io.BytesIO(film(frames=FRAMES, sound="aac")), []
    assert split_into(tmp_path, source, lambda *report: reports.append(report)) == ()
    assert reports == [(done, FRAMES) for done in range(1, FRAMES + 1)]
    clips = [(tmp_path / f"{index}.mp4").read_bytes() for index in range(2)]
    assert [number for piece in clips for _, number in pictures(piece)] == list(range(FRAMES))
    made = join_to(tmp_path / "joined.mp4", clips, source.getvalue())
    assert (made.seconds, made.sound, made.warnings) == (2.0, "copied", ())
    assert made.lacking == pytest.approx((0, 0), abs=0.001)
    assert [number for _, number in pictures((tmp_path / "joined.mp4").read_bytes())] == list(range(FRAMES))
    assert child_process._running == set()


def test_cuts_move_to_scenes(tmp_path):
    source = io.BytesIO(film(frames=FRAMES))
    plan = plan_split(source, 1.5)
    assert move_cuts_to_scenes(source, plan, 1.5).frames == plan.frames


def test_progress_that_raises_ends_the_process_and_writes_nothing(tmp_path):
    seen: list[psutil.Process] = []

    def fail() -> None:
        seen.append(child())
        raise TimeoutError("the task takes too long")

    with pytest.raises(TimeoutError, match="the task takes too long"):
        split_into(tmp_path, io.BytesIO(film(frames=FRAMES)), when_begun(fail))
    assert not seen[0].is_running()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE])
def test_crash_is_a_refusal_that_names_the_film(number, tmp_path):
    with pytest.raises(LumaValidationError, match=rf"^source \(film.mp4\) crashes FFmpeg \({number.name}\): .*ffmpeg"):
        split_into(
            tmp_path, io.BytesIO(film(frames=FRAMES)), when_begun(lambda: child().send_signal(number)), shown="film.mp4"
        )
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_that_is_killed_from_outside_leaves_a_retry(number, tmp_path):
    with pytest.raises(ChildProcessError, match=rf"source \(film.mp4\).*killed \({number.name}\).*memory"):
        split_into(
            tmp_path, io.BytesIO(film(frames=FRAMES)), when_begun(lambda: child().send_signal(number)), shown="film.mp4"
        )
    assert list(tmp_path.glob("*.part")) == []


class CrashingClip(io.BytesIO):
    """A clip that ends the process which reads it."""

    def read(self, size: int | None = -1) -> bytes:
        child().send_signal(signal.SIGABRT)
        return super().read(size)


def test_crash_at_the_join_names_the_clip(tmp_path):
    source = io.BytesIO(film(frames=FRAMES))
    plan = plan_split(source, 10).evenly(1)
    with pytest.raises(
        LumaValidationError, match=r"^clips\[0\] \(s3://b/0.mp4\) or source \(film.mp4\) crashes FFmpeg"
    ):
        join([CrashingClip], source, plan, tmp_path / "out.mp4", names=["s3://b/0.mp4"], shown="film.mp4")


def test_task_that_is_killed_ends_its_process(tmp_path):
    with pytest.raises(ChildProcessError, match="Either the task was ended"):
        split_into(tmp_path, io.BytesIO(film(frames=FRAMES)), when_begun(end_all))
    assert list(tmp_path.glob("*.part")) == []


class BrokenStorage(io.BytesIO):
    """A file that cannot be read beyond its first bytes, once it is told so."""

    is_broken = False

    def read(self, size: int | None = -1) -> bytes:
        if self.is_broken and self.tell():
            raise PermissionError("the token has expired")
        return super().read(size)


def test_error_of_the_storage_is_raised_unchanged(tmp_path):
    source = BrokenStorage(film(frames=FRAMES))
    plan = plan_split(source, 1)
    source.is_broken = True
    with pytest.raises(PermissionError, match="^the token has expired$"):
        split(source, plan, lambda index: written(tmp_path, index))


def test_error_of_an_upload_is_raised_unchanged(tmp_path):
    @contextmanager
    def not_stored(index: int) -> Iterator[Path]:
        yield tmp_path / "clip.mp4"
        raise ConnectionError("the bucket is gone")

    source = io.BytesIO(film(frames=FRAMES))
    with pytest.raises(ConnectionError, match="^the bucket is gone$"):
        split(source, plan_split(source, 1), not_stored)


def test_error_of_the_disk_is_one_that_a_retry_can_mend(tmp_path):
    source = io.BytesIO(film(frames=FRAMES))
    with pytest.raises(FileNotFoundError, match=r"source \(film.mp4\) could not be processed: FileNotFoundError"):
        split_into(tmp_path / "missing", source, shown="film.mp4")


@LINUX
def test_process_gets_no_secret_and_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://:secret@")
    seen: dict[str, Any] = {}

    def look() -> None:
        process = child()
        seen["environment"], seen["core"] = process.environ(), process.rlimit(psutil.RLIMIT_CORE)
        seen["data"] = process.rlimit(psutil.RLIMIT_DATA)[0]
        seen["oom"] = Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip()

    split_into(tmp_path, io.BytesIO(film(frames=FRAMES)), when_begun(look))
    assert "secret" not in str(seen["environment"])
    assert [name for name in seen["environment"] if name.startswith("AIRFLOW")] == []
    assert seen["core"][0] == 0
    assert seen["data"] == 800_000_000
    assert seen["oom"] == "1000"


HOSTILE = """
import os, pathlib
from multiprocessing.connection import Connection
channel = Connection(os.dup(0))
channel.recv_bytes()
for message in pathlib.Path(__file__).with_name("messages").read_bytes().split(b"\\n"):
    channel.send_bytes(message)
channel.recv_bytes()
"""


@pytest.mark.parametrize(
    "messages",
    [
        b"\xff\xfe{",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"[[]]",
        b'["open"]',
        b'["open", -1]',
        b'["open", 7]',
        b'["open", "/etc/passwd"]',
        b'["read", 0, 0, 10]',
        b'["open", 0]\n["read", 0, -5, 10]',
        b'["open", 0]\n["read", 0, 0, null]',
        b'["begin", 0]',
        b'["progress", 1, 0]',
        b'["progress", NaN, 3]',
        b'["refused", null]',
        b'["failed", "OSError"]',
        b'["done"]',
        b'["done", null]',
        b'["done", {"origin": "0", "rate": "0/0", "cuts": [0, 1]}]',
        b'["done", {"origin": "0", "rate": "1e999999999", "cuts": [0, 1]}]',
        b'["done", {"origin": "0", "rate": "25", "cuts": [0, -1]}]',
    ],
)
def test_process_that_says_nonsense_is_a_refusal(messages, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    (tmp_path / "messages").write_bytes(messages)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(child_process, "_MODULE", "hostile")
    with pytest.raises(LumaValidationError, match=r"^source \(film.mp4\) breaks the process that decodes it: "):
        plan_split(io.BytesIO(b"a film"), 10, shown="film.mp4")


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from airflow_provider_luma.media import child_process, film_work
@contextmanager
def written(index):
    with TemporaryDirectory() as folder:
        yield Path(folder) / "clip.mp4"
def progress(done, frames):
    if done == 3:
        (process,) = child_process._running
        print(process.pid, flush=True)
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
source = Path(sys.argv[1]).open("rb")
film_work.split(source, film_work.plan_split(source, 10), written, progress)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_process_ends_with_its_parent_and_leaves_no_half_file(name, tmp_path, until):
    (tmp_path / "film.mp4").write_bytes(film(frames=FRAMES))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "film.mp4"), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    until(lambda: not psutil.pid_exists(int(done.stdout)))
    assert list(temporary.iterdir()) == []


@cache
def plain(size: tuple[int, int], frames: int = 2, codec: str = "libx264") -> bytes:
    """Return a film of one colour, two frames a second: large, and a few kilobytes."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        video: Any = out.add_stream(codec, rate=2, options={"preset": "ultrafast", "threads": "1"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        frame = av.VideoFrame(*size, "yuv420p")
        for index, plane in enumerate(frame.planes):
            plane.update(bytes([90 + index]) * plane.buffer_size)
        for index in range(frames):
            frame.pts = index
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return target.getvalue()


@contextmanager
def most_memory() -> Iterator[Callable[[], int]]:
    """Measure the most resident memory of the processes that decode meanwhile, and of this one."""
    found, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            for process in tuple(child_process._running):
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    found.append(1024 * int(status.partition("VmHWM:")[2].split()[0]))
                except (OSError, IndexError):
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(found)
    finally:
        is_over.set()
        watcher.join()


def test_clip_that_is_far_larger_than_its_film_is_refused_before_it_is_decoded(tmp_path):
    hostile = plain((8192, 8192), frames=1)
    assert len(hostile) < 300_000
    with most_memory() as memory, pytest.raises(LumaValidationError) as refused:
        join_to(tmp_path / "out.mp4", [hostile], plain((1280, 720)))
    assert str(refused.value).startswith(
        "clips[0] (s3://b/0.mp4) has pictures of 8192 by 8192 pixels, more than its film, or one in 4K, has: scale"
    )
    assert memory() < 700_000_000


def test_clip_whose_pixels_are_wide_is_refused_as_well(tmp_path):
    wide = film(frames=30, size=(256, 2160), aspect=20)
    with pytest.raises(LumaValidationError, match=r"^clips\[0\] .* pictures of 5120 by 2160 pixels"):
        join_to(tmp_path / "out.mp4", [wide], film(frames=30))


def test_film_beyond_8k_is_refused():
    with pytest.raises(
        LumaValidationError, match=r"film.mp4\) has pictures of 8192 by 8192 pixels, more than an 8K film"
    ):
        plan_split(io.BytesIO(plain((8192, 8192), frames=1)), 10, shown="film.mp4")


def deflated(head: bytes, zeros: int) -> bytes:
    """Return bytes and megabytes of zeros behind them, compressed by zlib: the zeros as one block, again and again."""
    packer, block = zlib.compressobj(wbits=-zlib.MAX_WBITS), bytes(1 << 20)
    begin, check = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH), zlib.adler32(head)
    repeated = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(zeros):
        check = zlib.adler32(block, check)
    return b"\x78\x9c" + begin + zeros * repeated + packer.flush() + struct.pack(">I", check)


def compressed_header(video: bytes, megabytes: int) -> bytes:
    """Return a MOV whose index is compressed, and inflates to so many megabytes more, all of them padding."""
    begin = video.index(b"moov") - 4
    moov = video[begin : begin + int.from_bytes(video[begin : begin + 4])]
    padding = 8 + (megabytes << 20)
    head = struct.pack(">I4s", len(moov) + padding, b"moov") + moov[8:] + struct.pack(">I4s", padding, b"free")
    content = deflated(head, megabytes)
    inner = struct.pack(">I4s4sI4sI", 12, b"dcom", b"zlib", 12 + len(content), b"cmvd", len(moov) + padding) + content
    cmov = struct.pack(">I4s", 8 + len(inner), b"cmov") + inner
    return video[:begin] + struct.pack(">I4s", 8 + len(cmov), b"moov") + cmov + video[begin + len(moov) :]


@LINUX
def test_header_that_inflates_to_gigabytes_is_refused(tmp_path):
    good = clip("mov", seconds=1)
    assert plan_split(io.BytesIO(compressed_header(good, 1)), 10).clips == 1, "FFmpeg reads compressed headers"
    bomb = compressed_header(good, 1900)
    assert len(bomb) < 2_500_000
    with most_memory() as memory, pytest.raises(LumaValidationError, match="film.mp4.*needs more memory"):
        plan_split(io.BytesIO(bomb), 10, shown="film.mp4")
    with most_memory() as memory_of_join, pytest.raises(LumaValidationError, match=r"^clips\[0\].*needs more memory"):
        join_to(tmp_path / "out.mp4", [bomb], good)
    assert max(memory(), memory_of_join()) < 900_000_000

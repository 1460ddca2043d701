# SPDX-License-Identifier: Apache-2.0
"""An input video is checked before it costs anything: what the service would refuse is refused here, and says why."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import psutil
import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media import child_process, input_check
from airflow_provider_luma.media.input_check import SECONDS_TOLERANCE, check_video_file, check_video_head
from airflow_provider_luma.media.signatures import HEAD_LENGTH
from airflow_provider_luma.services import kie
from airflow_provider_luma.services.base import Limits
from airflow_provider_luma.simulator import media
from airflow_provider_luma.simulator.services import kie as kie_simulator
from tests.support.clips import (
    FRAGMENTED,
    MOOV_IN_FRONT,
    clip,
    encrypted,
    lengthened,
    with_empty_video_in_front,
    with_fields,
    without_samples,
)
from tests.support.storages import BUCKET

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LOG = logging.getLogger(__name__)


class CountingFile(io.BytesIO):
    """A file that counts the bytes read of it, and can fail."""

    def __init__(self, content: bytes, fail_at: int | None = None) -> None:
        super().__init__(content)
        self.count = self.reads = 0
        self.fail_at = fail_at
        self.error = OSError("the storage is away")

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads == self.fail_at:
            raise self.error
        content = super().read(size)
        self.count += len(content)
        return content


def check(video: bytes | io.BytesIO, limits: Limits = kie.limits) -> float | None:
    file = io.BytesIO(video) if isinstance(video, bytes) else video
    size = file.getbuffer().nbytes
    return check_video_file(file, limits, parameter="source", shown="file:///in/film.mp4", size=size, log=LOG)


def cpu_seconds() -> float:
    """Return the computing time of this process and its children, which does not depend on what else runs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def refusal(video: bytes | io.BytesIO) -> str:
    """Check a video that is refused, and return the message; every refusal is quick, and complete."""
    before = cpu_seconds()
    with pytest.raises(LumaValidationError) as refused:
        check(video)
    assert cpu_seconds() - before < 5
    assert refused.value.code is None
    message = str(refused.value)
    assert message.startswith("source (file:///in/film.mp4) ")
    assert "; the service takes MP4, MOV and AVI videos of at most 10 s and 500 MB: " in message
    return message


@pytest.fixture(scope="module")
def big_clip() -> bytes:
    """A clip of some 30 MB, whose index is at its end."""
    return clip(seconds=2, size=(1280, 720), noise=True, sound="aac")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mp4", {"sound": "aac"}),
        ("mp4", {"sound": "aac", "movflags": MOOV_IN_FRONT}),
        ("mp4", {"sound": "aac", "movflags": FRAGMENTED}),
        ("mp4", {"codec": "libx265"}),
        ("mp4", {"codec": "mpeg4", "sound": "mp3"}),
        ("mp4", {"seconds": 0.1}),
        ("mov", {"sound": "pcm_s16le"}),
        ("mov", {"codec": "png"}),
        ("avi", {"codec": "mpeg4", "sound": "mp3"}),
        ("avi", {"codec": "libx264"}),
    ],
)
def test_mp4_mov_and_avi_videos_pass(kind, options):
    seconds = check(clip(kind, **options))
    assert seconds is not None and seconds > 0


@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_length_of_a_video_that_passes_is_returned(kind):
    assert check(clip(kind, seconds=3, rate=24)) == pytest.approx(3, abs=0.05)


def test_rotated_video_passes():
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    rotated = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    check(clip().replace(identity, rotated))


def test_limits_are_those_of_the_simulated_service():
    assert kie.limits.bytes_by_url == kie.limits.bytes_as_file == kie_simulator.MAX_VIDEO_BYTES
    assert kie.limits.seconds == kie_simulator.MAX_VIDEO_SECONDS
    assert SECONDS_TOLERANCE == media.DURATION_TOLERANCE


#: What another service might take.
OTHER = Limits(seconds=3.5, bytes_by_url=2 << 20, bytes_as_file=3 << 20, containers=("mp4",), prompt_characters=None)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {"seconds": 5},
            "lasts 5.0 s; the service takes MP4 videos of at most 3.5 s and 3 MB: cut it to at most 3.5 s",
        ),
        ({"kind": "avi", "codec": "mpeg4"}, "is an AVI file; the service takes MP4 videos"),
        ({"kind": "ts"}, "is not an MP4 (unknown signature); "),
    ],
)
def test_limits_are_those_of_the_service_that_gets_the_video(options, found):
    with pytest.raises(LumaValidationError, match=re.escape(found)):
        check(clip(**options), OTHER)


def test_video_within_the_limits_of_another_service_passes():
    check(clip(seconds=3), OTHER)
    check(clip(seconds=12), replace(OTHER, seconds=18))


def test_size_limit_differs_between_an_address_and_a_file():
    options = {"content_type": None, "parameter": "video_url", "shown": "http://x/y"}
    check_video_head(b"", OTHER, size=2 << 20, **options)
    with pytest.raises(LumaValidationError, match=r"has 2\.5 MB; the service takes MP4 videos .* and 2 MB: "):
        check_video_head(b"", OTHER, size=5 << 19, **options)
    with pytest.raises(LumaValidationError, match=r"has 3\.5 MB; the service takes .* and 3 MB: "):
        check_video_file(io.BytesIO(), OTHER, parameter="source", shown="/f.mp4", size=7 << 19, log=LOG)


@pytest.mark.parametrize("kind", ["mp4", "mov", "avi"])
@pytest.mark.parametrize(
    "seconds", [10.4, 10.8, *(pytest.param(seconds, marks=pytest.mark.long) for seconds in (9.9, 10.0, 11.0))]
)
def test_videos_are_too_long_for_the_check_where_they_are_for_the_simulated_service(kind, seconds, tmp_path):
    video = clip(kind, seconds=seconds, sound="mp3" if kind == "avi" else "aac")
    (tmp_path / "clip").write_bytes(video)
    try:
        media.probe(tmp_path / "clip", kie_simulator.MAX_VIDEO_SECONDS)
    except media.UnusableVideo:
        assert "ffmpeg -i INPUT -t 10 OUTPUT.mp4" in refusal(video)
        assert seconds > 10.4
    else:
        check(video)
        assert seconds < 10.8


def test_length_that_the_index_hides_is_found_by_the_last_frame():
    video = with_fields(clip(seconds=12), b"mvhd", 16, 5000)
    assert "lasts 12.0 s" in refusal(with_fields(video, b"mdhd", 16, 5 * 10240))


def test_frames_that_an_edit_list_hides_do_not_count():
    def cut(seconds: int) -> bytes:
        video = with_fields(clip(seconds=12), b"mvhd", 16, seconds * 1000)
        return with_fields(with_fields(video, b"tkhd", 20, seconds * 1000), b"elst", 8, seconds * 1000)

    check(cut(9))
    assert "lasts 11" in refusal(cut(11))


def test_sound_that_is_too_long_is_refused():
    assert "lasts 12.0 s" in refusal(clip(seconds=3, sound="aac", sound_seconds=12))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"not a video", "is a text"),
        (b"x,y\n1,2\n" * 1000, "is a text"),
        (b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1/secret\n", "is a text"),
        (b"\n<!DOCTYPE html><p>\0", "is an HTML page"),
        (random.Random(1).randbytes(300_000), "is not an MP4, MOV or AVI (unknown signature)"),
        (b"\0\0\0\x18ftypisom" + bytes(300_000), "is cut off, or not a video"),
        (b"\0\0\0\x18ftyp", "is cut off: "),
        (b"\0\0", "is cut off, or not a video"),
    ],
)
def test_file_that_is_not_a_video_is_refused(content, found):
    assert found in refusal(content)


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("mkv", {}, "is a Matroska or WebM file"),
        ("ts", {}, "is not an MP4, MOV or AVI (unknown signature)"),
        ("ogg", {"codec": None, "sound": "libopus"}, "is an Ogg file"),
        ("m4a", {"codec": None, "sound": "aac"}, "is sound without a video"),
        ("mp3", {"codec": None, "sound": "mp3"}, "is sound without a video"),
        ("wav", {"codec": None, "sound": "pcm_s16le"}, "is sound without a video"),
        ("mp4", {"codec": None, "sound": "aac"}, "contains sound but no video"),
    ],
)
def test_other_containers_and_sound_are_refused(kind, options, found):
    assert found in refusal(clip(kind, **options))


def test_cover_picture_of_a_sound_file_is_not_a_video():
    sound = clip("mp4", codec=None, sound="aac")
    data = clip("png", codec="png", seconds=0.1, container="image2")
    cover = box(b"udta", box(b"meta", bytes(4), META_HANDLER, box(b"ilst", box(b"covr", box(b"data", PNG, data)))))
    begin = sound.index(b"moov") - 4
    with_cover = sound[:begin] + box(b"moov", sound[begin + 8 :], cover)
    assert "contains sound but no video" in refusal(with_cover)


META_HANDLER = struct.pack(">I4sII4s12sx", 33, b"hdlr", 0, 0, b"mdir", b"")
PNG = struct.pack(">II", 14, 0)


def box(kind: bytes, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_size_above_the_limit_is_refused_without_a_look_at_the_file(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(clip())
    os.truncate(path, 501 * 1024**2)
    with path.open("rb") as file, pytest.raises(LumaValidationError, match=r"has 501.0 MB; .* 500 MB: compress it"):
        check_video_file(file, kie.limits, parameter="source", shown=str(path), size=path.stat().st_size, log=LOG)


@pytest.mark.parametrize("movflags", ["", MOOV_IN_FRONT])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.97, 0.999])
def test_truncated_mp4_is_refused(movflags, share):
    video = clip(seconds=3, sound="aac", movflags=movflags)
    assert "is cut off" in refusal(video[: int(len(video) * share)])


@pytest.mark.parametrize("movflags", ["", MOOV_IN_FRONT])
def test_mp4_that_lacks_its_last_byte_is_refused(movflags):
    assert "is cut off" in refusal(clip(seconds=3, movflags=movflags)[:-1])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_truncated_avi_is_refused(share):
    video = clip("avi", codec="mpeg4", seconds=3)
    assert "is cut off" in refusal(video[: int(len(video) * share)])


def test_avi_without_an_index_passes():
    video = clip("avi", codec="mpeg4", seconds=3)
    end = video.rindex(b"idx1")
    check(video[:4] + struct.pack("<I", end - 8) + video[8:end])


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("movflags", ["", MOOV_IN_FRONT, FRAGMENTED])
def test_encrypted_video_is_refused_as_such(kind, movflags):
    message = refusal(encrypted(clip(kind, sound="aac"), kind, movflags))
    assert "is encrypted (DRM); " in message
    assert message.endswith(": give a copy without copy protection")


@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_empty_sound_track_passes(kind):
    """Some cameras write one although they have no microphone."""
    check(without_samples(clip(kind, seconds=2, sound="aac"), b"soun"))


def test_empty_track_of_subtitles_passes():
    video = without_samples(clip(seconds=2, sound="aac"), b"soun")
    check(video.replace(b"soun", b"text").replace(b"mp4a", b"tx3g"))


def test_video_without_pictures_is_refused():
    assert "holds no frame" in refusal(without_samples(clip(seconds=2, sound="aac"), b"vide"))


def test_empty_track_in_front_of_the_video_is_passed_over():
    check(with_empty_video_in_front(clip(seconds=2)))


@pytest.mark.parametrize("brand", [b"avis", b"avcs", b"hevc", b"hevx", b"msf1"])
def test_animated_picture_is_refused(brand):
    """It is an MP4 except for its brand."""
    video = clip(seconds=2).replace(b"ftypisom", b"ftyp" + brand)
    assert "is an animated picture (AVIF or HEIF)" in refusal(video)


def png_of(side: int, *, named: int) -> bytes:
    """Return a video whose picture has that many pixels a side, where the index names another number of them."""
    video = bytearray(clip("mov", codec="png", seconds=0.1))
    entry = video.index(b"png ", video.index(b"stsd"))
    video[entry + 28 : entry + 32] = struct.pack(">HH", named, named)
    header = video.index(b"IHDR")
    video[header + 4 : header + 12] = struct.pack(">II", side, side)
    video[header + 17 : header + 21] = struct.pack(">I", zlib.crc32(video[header : header + 17]))
    return bytes(video)


def test_picture_that_is_too_large_is_not_decoded():
    assert "has more than 8192 pixels per side" in refusal(png_of(20_000, named=20_000))
    assert "cannot be decoded" in refusal(png_of(20_000, named=64))


def test_little_is_read_of_a_large_video(big_clip):
    assert len(big_clip) > 30_000_000
    begin = big_clip.index(b"moov") - 4
    for video in (big_clip, clip(seconds=2, size=(1280, 720), noise=True, sound="aac", movflags=MOOV_IN_FRONT)):
        file = CountingFile(video)
        before = cpu_seconds()
        check(file)
        assert cpu_seconds() - before < 5
        assert file.count < 8_000_000
    assert "is cut off" in refusal(big_clip[: begin // 2])


def bomb(**tables: bytes) -> bytes:
    """Return a video of a few hundred bytes with such tables."""
    handler = box(b"hdlr", struct.pack(">II4s13x", 0, 0, b"vide"))
    clock = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 1000, 1000, 0))
    entry = box(b"avc1", struct.pack(">6xH16xHH50x", 1, 64, 36))
    table = box(
        b"stbl", box(b"stsd", struct.pack(">II", 0, 1), entry), *(box(k.encode(), v) for k, v in tables.items())
    )
    track = box(b"trak", box(b"mdia", clock, handler, box(b"minf", table)))
    return box(b"ftyp", b"isom\0\0\0\0isom") + box(b"moov", box(b"mvhd", bytes(100)), track)


# A fresh process: a child starts with the memory of its parent, and that of a test run may be large.
PEAK_MEMORY = """
import io, logging, resource, sys
sys.path[:0] = {path!r}
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.media.input_check import check_video_file
from airflow_provider_luma.services import kie
video = sys.stdin.buffer.read()
try:
    size, log = len(video), logging.getLogger()
    check_video_file(io.BytesIO(video), kie.limits, parameter="source", shown="", size=size, log=log)
except LumaValidationError:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(video: bytes) -> int:
    """Return the most memory, in bytes, that it takes to refuse a video."""
    command = [sys.executable, "-c", PEAK_MEMORY.format(path=[str(ROOT), *sys.path])]
    done = subprocess.run(command, input=video, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.parametrize("samples", [1 << 24, 1 << 27, (1 << 31) - 1])
def test_index_that_would_fill_the_memory_is_refused(samples):
    video = bomb(
        stts=struct.pack(">IIII", 0, 1, samples, 1),
        stsc=struct.pack(">IIIII", 0, 1, 1, samples, 1),
        stsz=struct.pack(">III", 0, 1, samples),
        stco=struct.pack(">III", 0, 1, 0),
    )
    refusal(video)
    assert peak_memory(video) < 1e9


def test_endless_index_is_refused():
    content = bomb(stsz=struct.pack(">III", 0, 0, 25_000_000))
    grown = lengthened(content, 100_000_000, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz")
    file = CountingFile(grown + bytes(100_000_000))
    refusal(file)
    assert file.count <= input_check.MAX_BYTES_READ + HEAD_LENGTH


def test_no_other_file_that_the_video_refers_to_is_opened(tmp_path):
    video = clip(movflags=MOOV_IN_FRONT)
    other = tmp_path / "other.mp4"
    other.write_bytes(video)
    path = str(other).encode()
    reference = box(b"alis", bytes(154), struct.pack(">HH", 2, len(path)), path + bytes(len(path) % 2))
    begin = video.index(b"dref") + 12
    end = begin + 12
    video = video[:begin] + reference + video[end:]
    video = lengthened(video, len(reference) - 12, b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    video = video[: video.index(b"mdat") + 4] + bytes(len(video) - video.index(b"mdat") - 4)

    with av.open(io.BytesIO(video), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert next(container.decode(video=0))
    assert "is cut off" in refusal(video)


def test_endless_work_is_ended(monkeypatch):
    monkeypatch.setattr(input_check, "MAX_SECONDS", 0.0)
    assert "makes FFmpeg fail, or run without end" in refusal(clip())


CHILD = """
import json, os, signal
from multiprocessing.connection import Connection
channel = Connection(os.dup(0))
channel.recv_bytes()
def tell(*message): channel.send_bytes(json.dumps(message).encode())
tell("ready")
"""


@pytest.fixture
def run_in_child(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Replace what the child process does once it is ready."""

    def replace_program(program: str) -> None:
        (tmp_path / "other_jobs.py").write_text(CHILD + program)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(child_process, "_MODULE", "other_jobs")

    return replace_program


@pytest.mark.parametrize(
    "program",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.kill(os.getpid(), signal.SIGKILL)",  # as the limit of computing time does
        "tell('nonsense')",
        "tell('open', 1)",
        "tell('open', 0); channel.recv_bytes(); tell('read', 0, -1, 5)",
        "tell('begin', 0)",
        "tell('unusable', 'is', None)",
    ],
)
def test_crash_or_nonsense_of_ffmpeg_is_a_refusal(program, run_in_child):
    run_in_child(program)
    assert "makes FFmpeg fail, or run without end" in refusal(clip())


def test_error_of_pyav_itself_is_a_refusal(run_in_child):
    run_in_child("tell('failed', 'KeyError', None, 'no such key', 'Traceback')")
    assert "cannot be decoded (KeyError)" in refusal(clip())


def test_child_process_gets_no_secret(monkeypatch, run_in_child):
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://:secret@")
    run_in_child("tell('unusable', str(dict(os.environ)), 'none')")
    message = refusal(clip())
    assert "PYTHONPATH" in message
    assert "secret" not in message


@pytest.mark.parametrize("fail_at", [1, 2])
def test_error_of_the_storage_is_raised_unchanged(fail_at):
    file = CountingFile(clip(seconds=3), fail_at)
    with pytest.raises(OSError, match="the storage is away") as raised:
        check(file)
    assert raised.value is file.error


def test_late_error_of_the_storage_is_raised_unchanged(big_clip):
    file = CountingFile(big_clip)
    check(file)
    failing = CountingFile(big_clip, fail_at=file.reads)
    with pytest.raises(OSError, match="the storage is away") as raised:
        check(failing)
    assert raised.value is failing.error


def test_video_on_s3_is_read_in_part_and_its_absence_is_an_error_of_the_storage(bucket, big_clip):
    bucket.put("film.mp4", big_clip)
    path = ObjectStoragePath(f"{bucket.destination}/film.mp4")
    with path.open("rb") as file:
        check_video_file(file, kie.limits, parameter="source", shown=str(path), size=path.stat().st_size, log=LOG)
    with path.open("rb") as file:
        bucket.s3.delete_object(Bucket=BUCKET, Key="videos/film.mp4")
        with pytest.raises(FileNotFoundError):
            check_video_file(file, kie.limits, parameter="source", shown=str(path), size=len(big_clip), log=LOG)


def mutations(count: int) -> Iterator[bytes]:
    chance = random.Random(5)
    originals = [
        clip(seconds=1, sound="aac"),
        clip(seconds=1, sound="aac", movflags=MOOV_IN_FRONT),
        clip(seconds=1, sound="aac", movflags=FRAGMENTED),
        clip("mov", codec="mpeg4", sound="pcm_s16le"),
        clip("avi", codec="mpeg4", sound="mp3"),
    ]
    for number in range(count):
        video = bytearray(originals[number % len(originals)])
        index = max(video.find(b"moov"), 0) if chance.random() < 0.7 else 0
        for _ in range(chance.choice((1, 2, 5, 20, 100))):
            at = chance.randrange(index, len(video) - 4)
            number32 = chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
            video[at : at + 4] = struct.pack(">I", number32)
        yield bytes(video[: chance.choice((len(video), chance.randrange(len(video)))) or 1])


PROBE = """
import io, sys, struct
sys.path[:0] = {path!r}
from airflow_provider_luma.media.child_jobs import limit_probe
from airflow_provider_luma.media.opening import Unusable
from airflow_provider_luma.media.probe import probe
limit_probe()
refused = 0
while head := sys.stdin.buffer.read(4):
    content = sys.stdin.buffer.read(struct.unpack(">I", head)[0])
    try:
        probe(io.BytesIO(content), "mov,mp4,m4a,3gp,3g2,mj2,avi", 10.0, 0.5)
    except Unusable:
        refused += 1
print(refused)
"""


def test_hundreds_of_mutated_videos_neither_crash_nor_hang_ffmpeg():
    """All in one process, under the limits of the process for one."""
    videos = list(mutations(600))
    stream = b"".join(struct.pack(">I", len(video)) + video for video in videos)
    command = [sys.executable, "-c", PROBE.format(path=[str(ROOT), *sys.path])]
    done = subprocess.run(command, input=stream, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) <= len(videos)


def test_mutated_video_is_refused_or_passes():
    for video in mutations(10):
        with suppress(LumaValidationError):
            check(video)


@pytest.fixture
def without_pyav(monkeypatch) -> None:
    for options in ({}, {"seconds": 11}, {"kind": "mkv"}):
        clip(**options)  # made while there is PyAV, and kept
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(input_check, "_absence_logged", False)


@pytest.mark.usefixtures("without_pyav")
def test_without_pyav_size_and_first_bytes_are_checked_and_the_log_says_so_once(caplog):
    caplog.set_level(logging.INFO)
    check(clip())
    check(clip(seconds=11))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "install the extra media of airflow-provider-luma" in caplog.text
    assert "Matroska" in refusal(clip(kind="mkv"))
    assert "is empty" in refusal(b"")


#: A PyAV whose ``open`` takes no options.
OTHER_API = """
import sys
error = sys.modules["av.error"] = sys.modules["av"]
__version__ = "99.0.0"
class FFmpegError(Exception): ...
def open(file): ...
"""


@pytest.mark.parametrize(
    "failure",
    ["raise ImportError('no libavcodec')", "import os; os.abort()", OTHER_API],
    ids=["missing library", "abort", "other API"],
)
def test_no_video_is_refused_if_pyav_does_not_work(failure, tmp_path, monkeypatch, caplog):
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text(failure)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(input_check, "_absence_logged", False)
    caplog.set_level(logging.INFO)
    check(clip())
    assert "does not work here" in caplog.text


def test_child_process_ends_with_its_parent():
    """Killed while it waits for an answer that never comes."""
    parent = """
import io, os, psutil, time
from airflow_provider_luma.media.input_check import check_video_file
from airflow_provider_luma.services import kie
class Hanging(io.BytesIO):
    def seek(self, *arguments):
        if self.tell():
            print(psutil.Process().children()[0].pid, flush=True)
            time.sleep(600)
        return super().seek(*arguments)
video = Hanging(bytes([0, 0, 0, 32]) + b"ftypisom" + bytes(5000))
check_video_file(video, kie.limits, parameter="p", shown="s", size=5012, log=None)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=ROOT)
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    with suppress(psutil.NoSuchProcess):
        child.wait(60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\x18ftypmp42",
        b"\0\0\0\x14ftypqt  ",
        b"\0\0\x10\0moov\0\0\0\x6cmvhd",
        b"\0\0\0\x01mdat\0\0\0\0\x10\0\0\0",
        b"\0\0\0\x08wide\0\0\0\x10mdat",
        b"\0\0\0\x08free\0\0\0\x10mdat",
        b"\0\0\0\x08skip\0\0\0\x10mdat",
        b"\0\0\0\x14pnot\0\0\0\x10mdat",
        b"RIFF\x10\0\0\0AVI LIST",
    ],
)
@pytest.mark.parametrize("content_type", [None, "video/mp4", "application/octet-stream", "text/plain"])
def test_address_of_something_that_may_be_a_video_passes(head, content_type):
    for size in (None, 1, kie.limits.bytes_by_url):
        check_video_head(
            head, kie.limits, content_type=content_type, size=size, parameter="video_url", shown="http://x/y"
        )


@pytest.mark.parametrize(
    ("head", "content_type", "size", "found"),
    [
        (b"", None, 0, "is empty"),
        (b"", None, kie.limits.bytes_by_url + 1024**2, "has 501.0 MB"),
        (b"", "text/html; charset=utf-8", None, "is of content type 'text/html; charset=utf-8'"),
        (b"", "Application/JSON", None, "is of content type 'Application/JSON'"),
        (b"", "audio/mp4", None, "is of content type 'audio/mp4'"),
        (b"", "image/png", None, "is of content type 'image/png'"),
        (b" \n<!DOCTYPE html><html>", "video/mp4", None, "is an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", None, None, "is a text"),
        (b'{"error": "expired"}', None, None, "is a text"),
        ("Zugriff für Gäste gesperrt".encode(), None, None, "is a text"),
        ("no".encode("utf-16") * 10, None, None, "is not an MP4, MOV or AVI (unknown signature)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None, None, "is a picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", None, None, "is a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", None, None, "is a picture"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "video/mp4", None, "is a picture"),
        (b"\0\0\0\x18ftypavis\0\0\0\0", "video/mp4", None, "is an animated picture (AVIF or HEIF)"),
        (b"ID3\x04\0\0\0\0\0\0\0\0", None, None, "is sound without a video"),
        (b"\xff\xfb\x90\x64\0\0\0\0\0\0\0\0", None, None, "is sound without a video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", None, None, "is sound without a video"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", None, None, "is sound without a video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81", None, None, "is a Matroska or WebM file"),
        (b"PK\x03\x04\x14\0\0\0\x08\0\0\0", None, None, "is a document or an archive"),
        (b"G@\x11\x10\0B\xf0%\0\x01\xc1\0\0", None, None, "is not an MP4, MOV or AVI (unknown signature)"),
    ],
)
def test_address_of_something_that_is_certainly_not_a_video_is_refused(head, content_type, size, found):
    with pytest.raises(LumaValidationError) as refused:
        check_video_head(
            head, kie.limits, content_type=content_type, size=size, parameter="video_url", shown="http://x/y"
        )
    assert str(refused.value).startswith(f"video_url (http://x/y) {found}")

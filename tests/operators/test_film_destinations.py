# SPDX-License-Identifier: Apache-2.0
"""Where a film goes is checked before anything is paid for, and nothing that is read is ever overwritten."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.io import store
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.transfers import LumaUploadOperator
from airflow_provider_luma.operators.video import FILM_KEY, PLAN_KEY, VideoJoinOperator, VideoSplitOperator
from tests.support.clips import clip as make_clip
from tests.support.films import film as make_film
from tests.support.operator_fixtures import new_context
from tests.support.storages import BUCKET, Bucket, aws_connection
from tests.support.task_logs import messages

pytestmark = pytest.mark.slow

CONTENT = make_clip()

#: Addresses to which no film can be written, and what the error says.
NOWHERE = {
    " /data/film.mp4": "starts or ends with whitespace",
    "s3://b/film.mp4\n": "starts or ends with whitespace",
    "s3://b/films/": "is a folder or a bucket",
    "s3://film.mp4": "is a folder or a bucket",
    "s3://b/film.avi": r"does not end in \.mp4 or \.m4v",
    "/data/film": r"does not end in \.mp4 or \.m4v",
    "https://example.com/film.mp4": "is a web address",
    "": "give a file in storage",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "films" / "film.mp4"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def split(source: Path, tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    """Split a film, with parameters as templates give them: the constructor does not see them."""

    def _split(**rendered: Any) -> tuple[list[str], dict[str, Any]]:
        context = new_context()
        operator = VideoSplitOperator(task_id="split", source=str(source), destination=str(tmp_path / "clips"))
        for name, value in rendered.items():
            setattr(operator, name, value)
        return operator.execute(context), context["ti"].pushed

    return _split


def join(**rendered: Any) -> str:
    operator = VideoJoinOperator(task_id="join", clips=[], source="/film.mp4", destination="{{ template }}")
    for name, value in rendered.items():
        setattr(operator, name, value)
    return operator.execute(new_context())


@pytest.mark.parametrize(("destination", "says"), NOWHERE.items())
class TestAddressThatNamesNoFilm:
    def test_is_refused_when_the_dag_is_parsed(self, destination, says):
        with pytest.raises(LumaValidationError, match=f"film_destination .*{says}"):
            VideoSplitOperator(task_id="s", source="/f.mp4", destination="/c", film_destination=destination)
        with pytest.raises(LumaValidationError, match=f"destination .*{says}"):
            VideoJoinOperator(task_id="j", clips=[], source="/f.mp4", destination=destination)

    def test_is_refused_before_a_clip_is_written(self, split, tmp_path, destination, says):
        with pytest.raises(AirflowFailException, match=f"film_destination .*{says}"):
            split(film_destination=destination)
        assert not (tmp_path / "clips").exists()

    def test_is_refused_before_a_join_reads_anything(self, destination, says):
        with pytest.raises(AirflowFailException, match=f"destination .*{says}"):
            join(source="/nowhere/film.mp4", destination=destination)


@pytest.mark.parametrize("destination", ["film.mp4", "~/film.mp4", "file://film.mp4"])
def test_relative_destination_is_one_of_the_worker_alone(split, destination):
    with pytest.raises(AirflowFailException, match="film_destination must be absolute"):
        split(film_destination=destination)


def test_join_used_alone_takes_a_relative_destination(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    join(source=str(source), clips=[str(source)], destination="made.mp4")
    assert (tmp_path / "made.mp4").exists()


@pytest.mark.parametrize("ending", ["mp4", "MP4", "m4v"])
def test_destination_is_handed_on(split, tmp_path, ending):
    clips, pushed = split(film_destination=f"{tmp_path}/film.{ending}")
    assert pushed[FILM_KEY] == f"{tmp_path}/film.{ending}"
    assert len(clips) == 1


def test_split_alone_needs_no_film(split):
    clips, pushed = split()
    assert len(clips) == 1
    assert FILM_KEY not in pushed


class TestStorage:
    def test_unknown_one_is_refused(self, split, tmp_path):
        for name in ("film_destination", "destination"):
            with pytest.raises(AirflowFailException, match=f"{name}: foo.*: foo:// cannot be used here"):
                split(**{name: "foo://b/film.mp4"})
        assert not (tmp_path / "clips").exists()
        with pytest.raises(AirflowFailException, match="destination: foo.*: foo:// cannot be used here"):
            split(work_dir="foo://b/run", destination="foo://b/run/clips")
        with pytest.raises(AirflowFailException, match="destination: foo.*: foo:// cannot be used here"):
            join(source="/nowhere/film.mp4", destination="foo://b/film.mp4")

    def test_missing_bucket_is_refused(self, split, tmp_path, bucket):
        for name in ("film_destination", "destination"):
            with pytest.raises(AirflowFailException, match=f"{name}: .*there is no bucket 'nowhere'"):
                split(**{name: "s3://my_s3@nowhere/film.mp4"})
        assert not (tmp_path / "clips").exists()
        with pytest.raises(AirflowFailException, match="destination: .*there is no bucket 'nowhere'"):
            join(source="/nowhere/film.mp4", destination="s3://my_s3@nowhere/film.mp4")

    def test_bucket_that_may_not_be_asked_about_passes(self, split, secretive_s3, task_log):
        _, pushed = split(film_destination="s3://secretive@films/film.mp4")
        assert pushed[FILM_KEY] == "s3://secretive@films/film.mp4"
        assert secretive_s3 == ["HEAD /films"]
        assert len(messages(task_log, "film_destination", "could not be checked in advance")) == 1

    @pytest.mark.parametrize("refusal", [PermissionError("Forbidden"), FileNotFoundError("there is none")])
    def test_bucket_of_google_is_missing_only_if_no_answer_was_refused(self, split, monkeypatch, refusal):
        class GoogleFileSystem(MemoryFileSystem):
            """Looks for a bucket, and if that fails in the list of its files, as gcsfs does."""

            def info(self, path: str, **_: Any) -> Any:
                try:
                    raise refusal
                except OSError:
                    raise FileNotFoundError(path)  # noqa: B904  (as there)

        google = store.ObjectStore("gs", "my_google", fs=GoogleFileSystem(skip_instance_cache=True))
        monkeypatch.setitem(store._STORE_CACHE, "gs-my_google", google)
        if isinstance(refusal, FileNotFoundError):
            with pytest.raises(AirflowFailException, match="there is no bucket 'films'"):
                split(film_destination="gs://my_google@films/film.mp4")
        else:
            assert split(film_destination="gs://my_google@films/film.mp4")

    def test_folder_is_refused(self, split, tmp_path):
        (tmp_path / "out.mp4").mkdir()
        with pytest.raises(AirflowFailException, match=r"film_destination: .*/out\.mp4 is a folder"):
            split(film_destination=f"{tmp_path}/out.mp4")
        with pytest.raises(AirflowFailException, match=r"destination: .*/out\.mp4 is a folder"):
            join(source="/nowhere/film.mp4", destination=f"{tmp_path}/out.mp4")

    @pytest.fixture
    def secretive_s3(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """An S3 server that refuses to tell whether a bucket is there, and the requests that it gets."""
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                asked.append(f"{self.command} {self.path.rstrip('/')}")
                self.send_response(403)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AIRFLOW_CONN_SECRETIVE", aws_connection(f"http://127.0.0.1:{server.server_port}"))
        yield asked
        server.shutdown()
        thread.join()
        server.server_close()


def symlink(link: Path, file: Path) -> str:
    link.symlink_to(file)
    return str(link)


def hard_link(link: Path, file: Path) -> str:
    link.hardlink_to(file)
    return str(link)


#: The same file by another name.
SAME = {
    "its path": lambda file, _: str(file),
    "its address": lambda file, _: f"file://{file}",
    "a path with dots": lambda file, _: f"{file.parent}/../{file.parent.name}/{file.name}",
    "a link": lambda file, folder: symlink(folder / "link.mp4", file),
    "a hard link": lambda file, folder: hard_link(folder / "hard.mp4", file),
    "a linked folder": lambda file, folder: f"{symlink(folder / 'linked', file.parent)}/{file.name}",
}


@pytest.mark.parametrize("spelled", SAME.values(), ids=SAME)
class TestFileThatIsRead:
    def test_source_is_not_overwritten_by_the_film(self, split, source, tmp_path, spelled):
        same = spelled(source, tmp_path)
        with pytest.raises(AirflowFailException, match="film_destination: .* is the file that source names"):
            split(film_destination=same)
        with pytest.raises(AirflowFailException, match="destination: .* is the file that source names"):
            join(source=str(source), clips=[str(source)], destination=same)
        assert source.read_bytes() == CONTENT

    def test_clip_is_not_overwritten_by_the_film(self, source, tmp_path, spelled):
        clip = source.with_name("clip.mp4")
        clip.write_bytes(CONTENT)
        with pytest.raises(AirflowFailException, match="destination: .* is the file that clips names"):
            join(source=str(source), clips=[str(clip)], destination=spelled(clip, tmp_path))
        assert clip.read_bytes() == CONTENT

    def test_source_is_not_overwritten_by_a_clip(self, split, source, tmp_path, spelled):
        first = tmp_path / "made" / "clip-0000.mp4"
        first.parent.mkdir()
        source = source.rename(first)
        with pytest.raises(AirflowFailException, match=r"destination: .*/clip-0000\.mp4 is the file that source names"):
            split(source=spelled(source, tmp_path), destination=str(first.parent))
        assert source.read_bytes() == CONTENT


class TestFileInABucketThatIsRead:
    @pytest.fixture(autouse=True)
    def other_connection(self, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", aws_connection(s3_endpoint, verify=False))

    @pytest.fixture
    def source(self, bucket: Bucket) -> str:
        bucket.put("clip-0000.mp4", CONTENT)
        return f"{bucket.destination}/clip-0000.mp4"

    @pytest.mark.parametrize("conn", ["my_s3", "other"])
    def test_is_not_overwritten(self, split, source, bucket, conn):
        same = source.replace("my_s3", conn)
        with pytest.raises(AirflowFailException, match="film_destination: .* is the file that source names"):
            split(film_destination=same)
        with pytest.raises(AirflowFailException, match="destination: .* is the file that source names"):
            split(destination=same.rpartition("/")[0])
        with pytest.raises(AirflowFailException, match="destination: .* is the file that source names"):
            join(source=source, clips=[source], destination=same)
        assert bucket.files() == {"clip-0000.mp4": CONTENT}

    def test_namesake_elsewhere_is_no_obstacle(self, split, source, tmp_path):
        clips, _ = split(source=source, film_destination=f"s3://my_s3@{BUCKET}/clip-0000.mp4")
        assert clips == [f"{tmp_path}/clips/clip-0000.mp4"]


def test_film_does_not_take_the_place_of_a_clip(split, tmp_path):
    film = f"{tmp_path}/clips/clip-0000.mp4"
    with pytest.raises(AirflowFailException, match="destination: .* is the file that film_destination names"):
        split(film_destination=film)


class TestFolderThatIsRemovedAtTheEnd:
    def test_holds_no_film(self, split, tmp_path):
        (tmp_path / "linked").symlink_to(tmp_path)
        for film in (f"{tmp_path}/gone/film.mp4", f"file://{tmp_path}/linked/gone/x/film.mp4"):
            with pytest.raises(AirflowFailException, match=r"film_destination: .*film\.mp4 is in the folder .*/gone"):
                split(film_destination=film, work_dir=f"{tmp_path}/gone")

    def test_holds_no_source(self, split, source):
        with pytest.raises(AirflowFailException, match=r"source: .*film\.mp4 is in the folder .*/films"):
            split(work_dir=str(source.parent))

    def test_holds_no_film_in_a_bucket(self, split, bucket):
        film = f"s3://my_s3@{BUCKET}/gone/run/film.mp4"
        with pytest.raises(
            AirflowFailException, match=r"film_destination: .*film\.mp4 is in the folder s3://films/gone"
        ):
            split(film_destination=film, work_dir=f"s3://my_s3@{BUCKET}/gone")

    def test_neighbour_of_it_is_fine(self, split, tmp_path):
        _, pushed = split(film_destination=f"{tmp_path}/gone-1/film.mp4", work_dir=f"{tmp_path}/gone")
        assert pushed[FILM_KEY] == f"{tmp_path}/gone-1/film.mp4"


class TestSound:
    @pytest.fixture
    def unjoinable(self, source: Path) -> None:
        """Give the film sound in a format of two channels at most, with six."""
        content = bytearray(make_film("mov", frames=60, sound="adpcm_ima_qt"))
        channels = content.index(b"ima4") + 4 + 16
        content[channels : channels + 2] = struct.pack(">H", 6)
        source.write_bytes(content)

    @pytest.mark.usefixtures("unjoinable")
    def test_that_no_film_can_have_is_found_before_a_clip_is_written(self, split, source, tmp_path):
        with pytest.raises(AirflowFailException, match="source .* has sound that cannot be put into an MP4"):
            split(film_destination=f"{tmp_path}/made.mp4")
        assert not (tmp_path / "clips").exists()

    @pytest.mark.usefixtures("unjoinable")
    def test_does_not_matter_to_clips_alone(self, split, source, tmp_path):
        clips, pushed = split()
        with pytest.raises(AirflowFailException):
            join(source=str(source), clips=clips, destination=f"{tmp_path}/made.mp4", plan=pushed[PLAN_KEY])

    @pytest.mark.parametrize("codec", ["aac", "mp3", "pcm_s16le", "ac3"])
    def test_that_can_be_joined_passes(self, split, source, tmp_path, codec):
        source.write_bytes(make_clip(sound=codec))
        assert split(film_destination=f"{tmp_path}/made.mp4")


@pytest.mark.parametrize("blank", [" {}", "{} ", "\t{}", "{}\n"])
def test_blanks_around_other_addresses_are_refused(split, source, blank):
    with pytest.raises(LumaValidationError, match="destination starts or ends with whitespace"):
        VideoSplitOperator(task_id="s", source="/f.mp4", destination=blank.format("/clips"))
    with pytest.raises(LumaValidationError, match="source .*whitespace"):
        LumaUploadOperator(task_id="u", source=blank.format("/f.mp4"))
    with pytest.raises(AirflowFailException, match="destination starts or ends with whitespace"):
        split(destination=blank.format(source.parent))

# SPDX-License-Identifier: Apache-2.0
"""Where a download is written: a file or a folder, and a harmless name made of the URL."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.download import destination_file, safe_name
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from tests.support.file_server import FILM, FileServer, Reply
from tests.support.storages import BUCKET, Bucket, Disk

FOLDERS = [
    "/data/videos",
    "/data/videos/",
    "/data/v1.mp4/",
    "/data/v1.2",
    "/data/.hidden",
    "file:///data/videos",
    f"s3://my_s3@{BUCKET}",
    f"s3://my_s3@{BUCKET}/",
    f"s3://my_s3@{BUCKET}/videos",
    "s3://my_s3@media.example.com",
    "s3://films.com",
    "relative/videos",
]

FILES = ["/data/mine.mp4", "/data/mine.MOV", "/data/mine.webm", "mine.avi", "file:///data/mine.m4v", "/data/mine.3gp"]


def absolute(destination: str) -> str:
    return destination if "://" in destination else str(Path(destination).absolute())


@pytest.mark.parametrize("destination", FOLDERS)
def test_destination_without_an_extension_is_a_folder(destination: str) -> None:
    assert str(destination_file("https://x.example/a/film.mp4", destination)) == (
        absolute(destination).removesuffix("/") + "/film.mp4"
    )


@pytest.mark.parametrize("destination", FILES)
def test_destination_with_an_extension_is_the_file(destination: str) -> None:
    assert str(destination_file("https://x.example/a/film.mp4", destination)) == absolute(destination)
    path = ObjectStoragePath(absolute(destination))
    assert destination_file("https://x.example/a/film.mp4", path) is path


NAMES = {
    "film.mp4": "film.mp4",
    "a%20film.mp4": "a_film.mp4",
    "film.mp4?sig=../../x#../y": "film.mp4",
    "../../etc/passwd": "passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd": "passwd",
    "..%5c..%5cwindows%5cwin.ini": "win.ini",
    "..\\..\\win.ini": "win.ini",
    "fi%00lm.mp4": "fi_lm.mp4",
    "": "video.mp4",
    "folder/": "folder",
    "..": "video.mp4",
    "%2e": "video.mp4",
    ".bashrc": "bashrc",
    "-rf": "rf",
    "%F0%9F%8E%AC": "video.mp4",
}


@pytest.mark.parametrize(("last", "name"), NAMES.items())
def test_file_name_is_made_of_the_harmless_characters_of_the_urls_last_part(last: str, name: str) -> None:
    assert safe_name(f"https://x.example/{last}") == name


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("mine.mp4", "mine.mp4"),
        ("2-film.mp4", "2-film.mp4"),
        ("../../escaped.mp4", "escaped.mp4"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\win.ini", "win.ini"),
        (".bashrc", "bashrc"),
        ("..", "video.mp4"),
        ("", "video.mp4"),
        ("a\0b\nc.mp4", "a_b_c.mp4"),
        ("100%25?.mp4", "100_25.mp4"),
    ],
)
def test_name_that_is_given_is_made_harmless_too(
    name: str, written: str, tmp_path: Path, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, str(tmp_path / "videos"), name=name)
    assert Disk(tmp_path, "").files() == {f"videos/{written}": FILM}


def test_number_before_a_long_name_does_not_make_two_names_one() -> None:
    long = safe_name("https://x.example/" + "x" * 500 + ".mp4")
    assert destination_file("https://x.example/", "/data", f"12-{long}").name == f"12-{long}"


@pytest.mark.parametrize("last", ["видео.mp4", "%E8%A7%86%E9%A2%91.mp4", "x" * 500 + ".mp4", "-_.mp4"])
def test_file_name_keeps_the_extension_of_the_url(last: str) -> None:
    assert safe_name(f"https://x.example/{last}").endswith(".mp4")


def is_harmless(name: str) -> bool:
    return 0 < len(name) <= 200 and name[0] not in ".-" and not set(name) & set("/\\\0:*?[]{}$~ \n") and name.isascii()


@pytest.mark.parametrize("last", ["x" * 5000, "a" * 30 + "." + "b" * 119, "a" * 30 + "-" + "b" * 119])
def test_very_long_file_name_is_cut_to_a_harmless_one(last: str) -> None:
    assert is_harmless(safe_name(f"https://x.example/{last}"))


any_url_path = st.text(max_size=300) | st.text(st.sampled_from("./\\%2eE5cfF0 -_~\0é"), max_size=300)


@given(any_url_path)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_file_name_is_harmless_whatever_the_url_is(last: str) -> None:
    assert is_harmless(safe_name(f"https://x.example/{last}"))


@pytest.mark.parametrize("folder", ["/data/videos", f"s3://{BUCKET}/videos"])
@given(any_url_path)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_no_url_leads_out_of_the_destination_folder(folder: str, last: str) -> None:
    url = f"https://x.example/{last}"
    assert str(destination_file(url, folder)) == f"{folder}/{safe_name(url)}"


@pytest.mark.parametrize("last", ["/..%2f..%2fescaped.mp4", "/..%5c..%5cescaped.mp4", "/%2e%2e/%2e%2e/escaped.mp4"])
def test_url_with_an_encoded_path_traversal_is_written_inside_the_folder(
    last: str, tmp_path: Path, server: FileServer, hook: LumaHook
) -> None:
    # Clients write such paths in their own ways.
    server.serve("*", Reply(FILM))
    hook.download(server.url(last), str(tmp_path / "a" / "videos"))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found == [tmp_path / "a" / "videos" / "escaped.mp4"]


@pytest.mark.parametrize("folder", ["season [1]", "what?now", "all*", "50% off", "a#b"])
def test_folder_on_a_disk_may_have_special_characters_in_its_name(
    folder: str, tmp_path: Path, server: FileServer, hook: LumaHook
) -> None:
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, str(tmp_path / folder))
    assert Disk(tmp_path, "").files() == {f"{folder}/film.mp4": FILM}


@pytest.mark.parametrize("folder", ["season [1]", "all*", "a{b}"])
def test_folder_in_a_bucket_may_have_special_characters_in_its_name(
    folder: str, bucket: Bucket, server: FileServer, hook: LumaHook
) -> None:
    bucket.put("season 1/film.mp4", b"another")
    url = server.serve("/film.mp4", Reply(FILM))
    hook.download(url, f"{bucket.destination}/{folder}")
    assert bucket.files() == {f"{folder}/film.mp4": FILM, "season 1/film.mp4": b"another"}


def test_existing_folder_with_the_name_of_the_file_is_an_error(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    # By its extension the destination is a file, but there is a folder of that name.
    disk.put("kept.txt", b"kept")
    target = disk.folder / "run.v2"
    target.mkdir()
    url = server.serve("/film.mp4", Reply(FILM, announced=-1))
    for overwrite in (False, True):
        with pytest.raises(LumaValidationError, match=r"run\.v2 is a folder"):
            hook.download(url, str(target), overwrite=overwrite)
    assert disk.files() == {"kept.txt": b"kept"}


@pytest.mark.parametrize("blank", [" {}", "{} ", "{}\n"])
def test_blanks_around_a_destination_lead_nowhere_else(
    blank: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url, destination = server.serve("/film.mp4", Reply(FILM)), blank.format(disk.destination)
    with pytest.raises(LumaValidationError, match="destination starts or ends with whitespace"):
        hook.download(url, destination)
    download = LumaDownloadOperator(task_id="download", urls=url, destination=destination)
    assert download.execute({}) == [f"{disk.destination}/film.mp4"], "the operator removes them"


def test_bucket_may_have_dots_in_its_name(bucket: Bucket, server: FileServer, hook: LumaHook) -> None:
    bucket.s3.create_bucket(Bucket="media.example.com")
    url = server.serve("/film.mp4", Reply(FILM))
    assert str(hook.download(url, "s3://my_s3@media.example.com")) == "s3://my_s3@media.example.com/film.mp4"
    assert bucket.s3.get_object(Bucket="media.example.com", Key="film.mp4")["Body"].read() == FILM

# SPDX-License-Identifier: Apache-2.0
"""LumaDownloadOperator: where each file goes; how its bytes get there is specified in the tests of transfers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator

from airflow_provider_luma.links.luma import ERROR_KEY
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from tests.support.task_instance import XComSequence


@pytest.fixture
def download(wires, set_connection, context, tmp_path) -> Callable[[Any, str], list[str]]:
    """Downloads paths of a web server to a place in a new folder, and returns what was written, relative to it."""
    wire = wires.start(wires.answer(body=b"a video"))
    set_connection(wire.base_url)

    def _download(paths: Any, destination: str) -> list[str]:
        is_one = isinstance(paths, str)
        urls = wire.base_url + paths if is_one else type(paths)(wire.base_url + path for path in paths)
        operator = LumaDownloadOperator(task_id="download", urls=urls, destination=f"{tmp_path}/{destination}")
        written = operator.execute(context)
        assert all(isinstance(path, str) for path in written)
        present = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        relative = [path.removeprefix("file://").removeprefix(f"{tmp_path}/") for path in written]
        assert set(relative) == present
        return relative

    return _download


class TestFileNames:
    @pytest.mark.parametrize(
        ("paths", "destination", "files"),
        [
            ("/a.mp4", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/", ["data/a.mp4"]),
            ("/a.mp4?signature=1", "data", ["data/a.mp4"]),
            ("/a.mp4", "data/b.mp4", ["data/b.mp4"]),
            (["/a.mp4"], "data/b.mp4", ["data/b.mp4"]),
            (("/a.mp4", "/b.mp4"), "data", ["data/a.mp4", "data/b.mp4"]),
            (["/1/a.mp4", "/2/a.mp4", "/3/a.mp4"], "data", ["data/a.mp4", "data/2-a.mp4", "data/3-a.mp4"]),
        ],
        ids=str,
    )
    def test_files_are_named_by_the_destination_or_by_their_addresses(self, download, paths, destination, files):
        assert download(paths, destination) == files

    def test_every_try_chooses_the_same_names(self, download):
        paths = [f"/{n}/v.mp4" for n in range(4)]
        assert download(paths, "data") == download(paths, "data")

    @pytest.mark.parametrize(
        "paths",
        [
            ["/2-a.mp4", "/a.mp4", "/x/a.mp4"],
            ["/a.mp4", "/x/a.mp4", "/2-a.mp4"],
            ["/1/a.mp4", "/2/a.mp4", "/1/a.mp4", "/2/a.mp4"],
            ["/", "/x/", "/video.mp4"],
        ],
        ids=["a name like ours first", "a name like ours last", "the same twice", "no names"],
    )
    def test_no_two_addresses_share_a_file(self, download, paths):
        assert len(set(download(paths, "data"))) == len(set(paths))


class TestParameters:
    def test_template_fields_are_the_documented_ones(self):
        assert set(LumaDownloadOperator.template_fields) == {"urls", "destination", "luma_conn_id", "sound_from"}

    @pytest.mark.parametrize(
        ("urls", "destination", "named"),
        [
            ([], "/data", "urls"),
            (None, "/data", "urls"),
            ("", "/data", "urls"),
            ("https://e.com/a.mp4", "", "destination"),
            ("https://e.com/a.mp4", "  ", "destination"),
            ("https://e.com/a.mp4", None, "destination"),
            (["https://e.com/a.mp4", "https://e.com/b.mp4"], "/data/one.mp4", "destination"),
            (["ftp://e.com/a.mp4"], "/data", "urls"),
            ([None], "/data", "urls"),
        ],
        ids=str,
    )
    def test_invalid_parameter_fails_the_task_without_using_its_retries(
        self, luma_conn, context, urls, destination, named, tmp_path
    ):
        if destination == "/data":
            destination = str(tmp_path)
        with pytest.raises(AirflowFailException, match=named):
            LumaDownloadOperator(task_id="download", urls=urls, destination=destination).execute(context)

    def test_operator_can_be_mapped(self):
        with DAG("d", schedule=None):
            partial = LumaDownloadOperator.partial(task_id="mapped", destination="/tmp/x")
            task = partial.expand(urls=[["https://e.com/1.mp4"]])
        assert isinstance(task, MappedOperator)


def test_result_of_a_modification_is_downloaded(luma, modify, context, tmp_path):
    urls = modify(deferrable=False).execute(context)["result_urls"]
    written = LumaDownloadOperator(task_id="download", urls=urls, destination=str(tmp_path)).execute(context)
    assert len(written) == 1
    assert all(isinstance(one, str) for one in written)
    assert [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize(
    ("folder", "reason"), [("videos", "HTTP 404"), ("", "destination is empty")], ids=["gone", "no destination"]
)
def test_reason_of_a_failure_can_be_pulled_by_the_tasks_after(wires, set_connection, context, tmp_path, folder, reason):
    wire = wires.start(wires.answer(status=404))
    set_connection(wire.base_url)
    destination = folder and f"{tmp_path}/{folder}"
    operator = LumaDownloadOperator(task_id="download", urls=f"{wire.base_url}/a.mp4", destination=destination)
    with pytest.raises(AirflowFailException):
        operator.execute(context)
    assert reason in context["ti"].pushed[ERROR_KEY]["msg"]


def test_xcoms_of_a_mapped_task_are_asked_for_no_more_than_there_are(wires, set_connection, context, tmp_path):
    wire = wires.start(wires.answer(body=b"a video"))
    set_connection(wire.base_url)
    urls = XComSequence([f"{wire.base_url}/a.mp4", f"{wire.base_url}/b.mp4"])
    operator = LumaDownloadOperator(task_id="download", urls=urls, destination=str(tmp_path))
    assert len(operator.execute(context)) == 2
    operator.get_openlineage_facets_on_complete(None)
    assert urls.not_found == 0

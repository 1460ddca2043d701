# SPDX-License-Identifier: Apache-2.0
"""Results of Luma's own API: their addresses expire after an hour, and their jobs give others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, Asset, BaseOperator
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_luma.files.masking import MAX_ADDRESSES, MAX_SECRETS, mask_queries
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator
from airflow_provider_luma.simulator import Simulator
from airflow_provider_luma.task_groups.video import _with_first_video
from airflow_provider_luma.triggers.luma import LumaTaskTrigger
from tests.support.downloads import new_download
from tests.support.file_server import CUT, FILM, FileServer, Reply
from tests.support.storages import Disk
from tests.support.task_instance import XComSequence


@pytest.fixture
def own(luma: Simulator, set_connection: Any) -> Simulator:
    """A simulator of which luma_default uses Luma's own API."""
    luma.configure(requests_per_minute=1000, jobs_at_a_time=1000, queued_seconds=0)
    set_connection(luma.base_url, service="luma", requests_per_second=1000)
    return luma


def modified(luma: Simulator) -> dict[str, Any]:
    """Return what a modify task returns."""
    hook = LumaHook()
    luma_task_id = hook.modify_video("Make it snow", luma.sample_url)
    return hook.wait_for_completion(luma_task_id, timeout=60, poll_interval=0.05).as_dict()


def run(urls: Any, destination: str, **arguments: Any) -> list[str]:
    return LumaDownloadOperator(task_id="download", urls=urls, destination=destination, **arguments).execute({})


def signature(result: dict[str, Any]) -> str:
    """Return the secret in the address of a result."""
    return parse_qs(urlsplit(result["result_urls"][0]).query)["X-Amz-Signature"][0]


class TestExpiredAddress:
    def test_result_is_fetched_at_the_address_that_its_job_gives(self, own, disk):
        result = modified(own)
        own.expire_urls()
        (written,) = run(result, disk.destination)
        assert Path(written).name == f"{result['luma_task_id']}.mp4"
        assert Path(written).stat().st_size > 1000
        assert [call.on for call in own.calls][-3:] == ["file", "status", "file"]
        assert not any(call.carried_authorization for call in own.calls if call.on == "file")

    def test_result_is_fetched_61_minutes_after_its_job(self, own, disk):
        result = modified(own)
        own.move_time(61 * 60)
        (written,) = run(result, disk.destination)
        assert Path(written).stat().st_size > 1000
        assert [call.on for call in own.calls][-3:] == ["file", "status", "file"]

    def test_result_is_fetched_59_minutes_after_its_job_without_a_status_check(self, own, disk):
        result = modified(own)
        own.move_time(59 * 60)
        run(result, disk.destination)
        assert [call.on for call in own.calls][-1:] == ["file"]
        assert [call.http_status for call in own.calls if call.on == "file"] == [200]

    def test_address_that_still_works_costs_no_status_check(self, own, disk):
        result = modified(own)
        before = len(own.calls)
        run(result, disk.destination)
        assert [call.on for call in own.calls[before:]] == ["file"]

    def test_results_of_a_mapped_task_are_renewed_one_by_one(self, own, disk):
        results = [modified(own) for _ in range(3)]
        own.expire_urls()
        written = run(XComSequence(results), disk.destination)
        assert [Path(path).stem for path in written] == [result["luma_task_id"] for result in results]
        assert len(disk.files()) == 3

    def test_fetched_results_are_recorded_by_their_jobs(self, own, disk, context):
        several, one = modified(own), modified(own)
        several["result_urls"] *= 2
        LumaDownloadOperator(
            task_id="download", urls=[several, one, own.sample_url], destination=disk.destination
        ).execute(context)
        pushed = context["ti"].pushed
        assert pushed == {
            f"luma_fetched_{several['luma_task_id']}": [
                f"{disk.destination}/{several['luma_task_id']}{suffix}.mp4" for suffix in ("", "-2")
            ],
            f"luma_fetched_{one['luma_task_id']}": [f"{disk.destination}/{one['luma_task_id']}.mp4"],
        }

    def test_results_before_one_that_cannot_be_fetched_are_recorded(self, own, disk, context):
        result = modified(own)
        operator = LumaDownloadOperator(
            task_id="download", urls=[result, f"{own.base_url}/files/none.mp4"], destination=disk.destination
        )
        with pytest.raises(AirflowFailException):
            operator.execute(context)
        assert f"luma_fetched_{result['luma_task_id']}" in context["ti"].pushed

    def test_job_of_which_a_result_is_missing_is_not_recorded(self, own, disk, context):
        result = modified(own)
        result["result_urls"] *= 2
        own.configure(faults=["file:refuse,code=404,skip=1"])
        operator = LumaDownloadOperator(task_id="download", urls=result, destination=disk.destination)
        with pytest.raises(AirflowFailException):
            operator.execute(context)
        assert len(disk.files()) == 1
        assert f"luma_fetched_{result['luma_task_id']}" not in context["ti"].pushed

    def test_clip_of_a_film_is_renewed(self, own, tmp_path):
        result = modified(own)
        own.expire_urls()
        clip = f"{tmp_path}/modified/clip-0.mp4"
        result["result_urls"] *= 2
        assert run(_with_first_video(result), clip, overwrite=True) == [clip]

    def test_file_of_an_earlier_run_is_recognised_although_its_address_has_expired(self, own, disk):
        result = modified(own)
        for destination in (disk.destination, f"{disk.destination}/mine.mp4"):
            (written,) = run(result, destination)
            before = Path(written).stat().st_mtime_ns
            own.expire_urls()
            assert run(result, destination) == [written]
            assert Path(written).stat().st_mtime_ns == before

    def test_file_named_by_its_job_is_kept_even_if_luma_has_forgotten_the_job(self, own, disk):
        result = modified(own)
        (written,) = run(result, disk.destination)
        own.reset()
        assert run(result, disk.destination) == [written]

    def test_job_that_luma_does_not_know_fails_the_task_and_says_why(self, own, disk):
        result = {**modified(own), "luma_task_id": "0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11"}
        own.expire_urls()
        with pytest.raises(AirflowFailException, match=r"expires after 60 minutes.*Generation not found"):
            run(result, disk.destination)

    def test_address_alone_cannot_be_renewed_and_the_error_says_what_to_pass(self, own, disk):
        result = modified(own)
        own.expire_urls()
        with pytest.raises(AirflowFailException, match=r"urls=modify\.output") as raised:
            run(result["result_urls"], disk.destination)
        assert signature(result) not in str(raised.value)

    def test_address_that_expires_on_the_way_is_renewed_and_the_download_resumed(self, server: FileServer, disk: Disk):
        url = server.serve("/o.mp4", Reply(FILM, stop_after=CUT), Reply(status=403))
        fresh = server.serve("/fresh/o.mp4", Reply(FILM))
        download, _ = new_download(renew=lambda _: fresh, luma_task_id="job-1")
        download.run(url, disk.destination)
        assert disk.files() == {"job-1.mp4": FILM}
        assert [(request.path, request.range) for request in server.requests][-1] == ("/fresh/o.mp4", f"bytes={CUT}-")

    def test_other_file_at_the_new_address_is_fetched_from_its_beginning(self, server: FileServer, disk: Disk):
        url = server.serve("/o.mp4", Reply(FILM, stop_after=CUT), Reply(status=403))
        fresh = server.serve("/fresh/o.mp4", Reply(FILM[::-1], etag='"two"'))
        download, _ = new_download(renew=lambda _: fresh, luma_task_id="job-1")
        download.run(url, disk.destination)
        assert disk.files() == {"job-1.mp4": FILM[::-1]}


class TestAnotherService:
    def test_result_is_not_asked_for_at_the_service_of_the_connection(self, own, disk):
        result = modified(own)
        own.expire_urls()
        before = len(own.calls)
        del result["service"]
        with pytest.raises(AirflowFailException, match="'luma_default' leads to the service 'luma'.* belongs to 'kie'"):
            run(result, disk.destination)
        assert [call.on for call in own.calls[before:]] == ["file"]

    def test_result_is_fetched_as_long_as_its_address_works(self, own, disk):
        result = {**modified(own), "service": "another"}
        (written,) = run(result, disk.destination)
        assert Path(written).stat().st_size > 1000


class TestNames:
    @pytest.mark.parametrize(
        ("urls", "names"),
        [
            (["/o.mp4?X-Amz-Signature=1"], ["o.mp4"]),
            ([{"luma_task_id": "a", "result_urls": ["/o.mp4?s=1"]}], ["a.mp4"]),
            ([{"luma_task_id": "a", "result_urls": ["/1/o.mov", "/2/o.mov"]}], ["a.mov", "a-2.mov"]),
            ([{"luma_task_id": i, "result_urls": ["/o.mp4"]} for i in "ab"], ["a.mp4", "b.mp4"]),
            (["/a.mp4", {"luma_task_id": "a", "result_urls": ["/o.mp4"]}, "/o.mp4"], ["a.mp4", "2-a.mp4", "o.mp4"]),
            ([{"luma_task_id": "../../etc/a b", "result_urls": ["/o"]}], ["etc_a_b.mp4"]),
            ([{"luma_task_id": "...", "result_urls": ["/o.sh"]}], ["video.mp4"]),
        ],
        ids=str,
    )
    def test_results_are_named_by_their_jobs_and_addresses_by_themselves(self, urls, names, server, hook, disk):
        server.serve("*", Reply(FILM))

        def located(value: Any) -> Any:
            if isinstance(value, str):
                return server.url(value)
            return {**value, "result_urls": [server.url(path) for path in value["result_urls"]]}

        for _ in range(2):  # a retry
            written = run([located(value) for value in urls], disk.destination)
            assert [Path(path).name for path in written] == names
        assert sorted(disk.files()) == sorted(names)


class TestSecrets:
    """The query of an address grants access for an hour."""

    def test_query_is_in_no_log_line_exception_lineage_or_asset_event(self, own, disk, task_log, caplog):
        video, result = Asset("video"), modified(own)
        own.expire_urls()
        with caplog.at_level(logging.INFO), DAG("d", schedule=None):
            modify = BaseOperator(task_id="modify")
            download = LumaDownloadOperator(
                task_id="download", urls=[result], destination=disk.destination, outlets=[video]
            )
            modify >> download
            events = OutletEventAccessors()
            ti = XComs({"luma_request": {"prompt": "x", "video_url": "https://e.com/in.mp4"}, "return_value": result})
            download.execute({"ti": ti, "outlet_events": events})  # type: ignore[typeddict-item]
            lineage = download.get_openlineage_facets_on_complete(None)
        assert events[video].extra["luma_task_ids"] == [result["luma_task_id"]]
        own_lines = [record.getMessage() for record in caplog.records if record.name != "uvicorn.access"]
        texts = [repr(task_log), repr(own_lines), repr(events[video].extra), repr(lineage)]
        assert [text for text in texts if "X-Amz" in text] == []
        assert "a new one from Luma" in texts[0] + texts[1]

    def test_long_values_of_queries_are_masked_where_they_are_rendered_read_or_renewed(self, own, disk, monkeypatch):
        masked: list[str] = []
        monkeypatch.setattr("airflow_provider_luma.files.masking.mask_secret", masked.append)
        result = modified(own)
        operator = LumaDownloadOperator(task_id="download", urls=result, destination=disk.destination)
        operator.render_template_fields({})
        assert signature(result) in masked
        masked.clear()
        run(XComSequence([result]), disk.destination)
        assert signature(result) in masked
        masked.clear()
        LumaHook().get_download_url(result["result_urls"][0], luma_task_id=result["luma_task_id"])
        assert [len(secret) for secret in masked].count(len(signature(result))) == 1

    def test_no_more_is_masked_of_a_long_list_than_the_masker_takes_in_a_second(self, monkeypatch):
        masked: list[str] = []
        monkeypatch.setattr("airflow_provider_luma.files.masking.mask_secret", masked.append)
        mask_queries([{"result_urls": [f"https://e.com/o.mp4?sig={number:064}"]} for number in range(1000)])
        assert len(masked) == 2 * MAX_ADDRESSES, "of each the query, and the value"

    def test_address_with_thousands_of_values_does_not_hold_up_the_task(self, monkeypatch):
        masked: list[str] = []
        monkeypatch.setattr("airflow_provider_luma.files.masking.mask_secret", masked.append)
        query = "&".join(f"a{number}={number:040}" for number in range(5000))
        mask_queries(f"https://e.com/o.mp4?{query}")
        assert len(masked) == MAX_SECRETS
        assert query in masked

    async def test_triggerer_logs_an_event_without_queries(self, own):
        result = modified(own)
        trigger = LumaTaskTrigger(result["luma_task_id"], poll_interval=0.05, service="luma")
        (event,) = [event async for event in trigger.run()]
        assert "X-Amz" in event.payload["task"]["result_urls"][0]
        assert "X-Amz" not in repr(event)
        assert result["luma_task_id"] in repr(event)


class XComs:
    """A task instance that pulls what the task ``modify`` has pushed."""

    map_index = -1

    def __init__(self, pushed: dict[str, Any]) -> None:
        self._pushed = pushed

    def xcom_push(self, key: str, value: Any) -> None: ...

    def xcom_pull(self, *, task_ids: list[str], key: str, map_indexes: int | None = None) -> Any:
        return [self._pushed.get(key)]

# SPDX-License-Identifier: Apache-2.0
"""The link to the result page, and the XComs in which the page finds the request and the error of a task."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import BaseOperator
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaSubmissionUnknownError,
)
from airflow_provider_luma.links.luma import (
    ERROR_KEY,
    REQUEST_KEY,
    LumaResultLink,
    push_fetched,
    push_film,
    push_request,
    pushed_failure,
)
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.operators.video import VideoJoinOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor


class Key(NamedTuple):
    """The part of Airflow's task instance key that a link uses."""

    dag_id: str = "films"
    task_id: str = "modify"
    run_id: str = "manual__1"
    map_index: int | None = -1


class TaskInstance:
    """The part of Airflow's task instance that the links use."""

    dag_id = "films"
    run_id = "manual__1"
    task_id = "modify"
    map_index = 3

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        assert key not in self.pushed
        self.pushed[key] = value


class LoopKey(NamedTuple):
    """The same of Airflow 3.4."""

    region_id: UUID
    region_index: int
    dag_id: str = "films"
    task_id: str = "version.modify"
    run_id: str = "manual__1"
    map_index: int = -1


@pytest.fixture
def ti() -> TaskInstance:
    return TaskInstance()


@pytest.fixture
def context(ti) -> Any:
    return {"ti": ti}


@pytest.fixture(autouse=True)
def _base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)


def link_of(**changes: Any) -> str:
    return LumaResultLink().get_link(BaseOperator(task_id="modify"), ti_key=Key(**changes))


def fields_of(link: str) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(urlsplit(link).query, strict_parsing=True).items()}


class TestLink:
    def test_the_link_names_the_task_instance(self):
        assert link_of() == "/luma/result?dag_id=films&run_id=manual__1&task_id=modify&map_index=-1"

    @pytest.mark.parametrize(("map_index", "shown"), [(-1, "-1"), (0, "0"), (17, "17"), (None, "-1")])
    def test_the_link_names_the_map_index_or_minus_one(self, map_index, shown):
        assert fields_of(link_of(map_index=map_index))["map_index"] == shown

    def test_the_link_names_the_iteration_of_a_loop(self):
        region, operator = UUID("01a210e7-5484-7589-b5c9-8aa83b435849"), BaseOperator(task_id="modify")
        inside: Any = LoopKey(region, 2)
        fields = fields_of(LumaResultLink().get_link(operator, ti_key=inside))
        assert (fields["region_id"], fields["region_index"]) == (str(region), "2")
        outside: Any = LoopKey(UUID(int=0), -1)
        assert "region" not in LumaResultLink().get_link(operator, ti_key=outside)

    def test_a_run_id_with_reserved_characters_is_quoted(self):
        run_id = "scheduled__2026-01-01T00:00:00+00:00"
        link = link_of(run_id=run_id)
        assert "2026-01-01T00%3A00%3A00%2B00%3A00" in link
        assert fields_of(link)["run_id"] == run_id

    @given(st.text(min_size=1, alphabet=st.characters(codec="utf-8")), st.text(min_size=1, alphabet="&=?#/ %+\"'<>ü雨"))
    def test_no_dag_or_run_id_changes_the_rest_of_the_link(self, dag_id, run_id):
        link = link_of(dag_id=dag_id, run_id=run_id)
        assert fields_of(link) == {"dag_id": dag_id, "run_id": run_id, "task_id": "modify", "map_index": "-1"}
        assert urlsplit(link).path == "/luma/result"
        assert not urlsplit(link).fragment
        assert link.isascii() and not set(link) & set(" \"'<>")

    @pytest.mark.parametrize(
        ("base_url", "prefix"),
        [
            ("", ""),
            ("/", ""),
            ("http://localhost:8080", ""),
            ("http://localhost:8080/", ""),
            ("https://example.com/airflow", "/airflow"),
            ("https://example.com/team/airflow/", "/team/airflow"),
            ("https://example.com/airflow?x=1#y", "/airflow"),
        ],
    )
    def test_the_link_begins_with_the_path_of_the_api_server(self, monkeypatch, base_url, prefix):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
        assert link_of().startswith(f"{prefix}/luma/result?")

    def test_the_link_names_no_host(self, monkeypatch):
        """The user may have opened Airflow under another host than Airflow knows."""
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://inside.example.com/airflow")
        assert urlsplit(link_of()).netloc == ""

    @pytest.mark.parametrize("kind", [LumaModifyOperator, LumaTaskSensor, VideoJoinOperator])
    def test_what_makes_a_video_has_the_link(self, kind):
        assert [link.name for link in kind.operator_extra_links] == ["Luma result"]

    def test_push_shows_the_link_while_the_task_runs(self, context, ti):
        link = LumaResultLink()
        link.push(BaseOperator(task_id="modify"), context)
        assert ti.pushed == {link.xcom_key: "/luma/result?dag_id=films&run_id=manual__1&task_id=modify&map_index=3"}


class TestPushRequest:
    @pytest.mark.parametrize(("prompt", "video_url"), [("make it snow", "https://e.com/v.mp4"), (None, None)])
    def test_prompt_and_input_are_pushed(self, context, ti, prompt, video_url):
        push_request(context, prompt=prompt, video_url=video_url)
        assert ti.pushed == {REQUEST_KEY: {"kind": "clip", "prompt": prompt, "video_url": video_url}}

    def test_file_that_was_uploaded_and_the_way_to_a_paid_result_are_pushed(self, context, ti):
        optional = {"source": "/data/clip.mp4", "recovery": "Clear this task"}
        push_request(context, prompt="make it snow", video_url="https://e.com/upload.mp4", **optional)
        assert ti.pushed[REQUEST_KEY].items() >= {"kind": "clip", **optional}.items()

    @pytest.mark.parametrize(("price", "shown"), [(1.08, {"price": 1.08}), (None, {})])
    def test_price_is_pushed_if_it_is_known(self, context, ti, price, shown):
        push_request(context, prompt="make it snow", video_url="/data/clip.mp4", price=price)
        expected = {"kind": "clip", "prompt": "make it snow", "video_url": "/data/clip.mp4", **shown}
        assert ti.pushed == {REQUEST_KEY: expected}

    def test_source_of_a_film_and_the_tasks_of_its_clips_are_pushed(self, context, ti):
        push_film(context, source="s3://films/street.mov", modify_task_ids=["film.modify"])
        film = {"kind": "film", "source": "s3://films/street.mov", "modify_task_ids": ["film.modify"]}
        assert ti.pushed == {REQUEST_KEY: film}


class TestPushFetched:
    @pytest.mark.parametrize(
        "luma_task_id", ["6b7e5e3f2a1d4c0b9a8f7e6d5c4b3a29", "0b8f6a52-4c1d-4e9a-9a77-2f0d5c3e1a11"]
    )
    def test_key_names_the_job(self, context, ti, luma_task_id):
        push_fetched(context, luma_task_id, ["/videos/a.mp4"])
        assert ti.pushed == {f"luma_fetched_{luma_task_id}": ["/videos/a.mp4"]}

    @pytest.mark.parametrize("luma_task_id", ["", "a/b", "a?b", "a#b", "..%2f", "a b", "a\n", "ü", "x" * 257])
    def test_id_that_would_break_the_address_of_the_key_is_not_recorded(self, context, ti, luma_task_id):
        push_fetched(context, luma_task_id, ["/videos/a.mp4"])
        assert ti.pushed == {}

    def test_a_failed_push_does_not_fail_the_download(self, context, ti, monkeypatch, caplog):
        def fail(key: str, value: Any) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(ti, "xcom_push", fail)
        push_fetched(context, "abc", ["/videos/a.mp4"])
        assert "The overview will not show that the result of Luma task abc was fetched" in caplog.text


class TestPushedFailure:
    def test_lumas_code_and_message_and_the_remedy_are_pushed(self, context, ti):
        error = LumaInsufficientCreditsError(402, "not enough credits")
        with pytest.raises(LumaInsufficientCreditsError) as caught, pushed_failure(context):
            raise error
        assert caught.value is error
        assert ti.pushed == {
            ERROR_KEY: {
                "type": "LumaInsufficientCreditsError",
                "code": 402,
                "msg": "not enough credits",
                "luma_task_id": None,
                "remedy": LumaInsufficientCreditsError.remedy,
            }
        }

    def test_the_error_of_a_job_is_pushed_with_its_id(self, context, ti):
        with pytest.raises(LumaGenerationError), pushed_failure(context):
            raise LumaGenerationError(501, "no people, please", luma_task_id="abc")
        pushed = ti.pushed[ERROR_KEY]
        assert (pushed["code"], pushed["msg"], pushed["luma_task_id"], pushed["remedy"]) == (
            501,
            "no people, please",
            "abc",
            LumaGenerationError.remedy,
        )

    def test_an_error_that_is_the_cause_of_another_exception_is_pushed(self, context, ti):
        """As when a task fails without using its retries."""
        error = AirflowFailException("check the log page")
        error.__cause__ = LumaSubmissionUnknownError(None, "no response arrived")
        with pytest.raises(AirflowFailException) as caught, pushed_failure(context):
            raise error
        assert caught.value is error
        pushed = ti.pushed[ERROR_KEY]
        assert (pushed["type"], pushed["msg"]) == ("LumaSubmissionUnknownError", "no response arrived")
        assert pushed["remedy"] == LumaSubmissionUnknownError.remedy

    @pytest.mark.parametrize("error", [AirflowFailException("other"), ValueError("other"), KeyError("x")], ids=repr)
    def test_an_exception_that_is_not_of_luma_is_not_pushed(self, context, ti, error):
        with pytest.raises(type(error)) as caught, pushed_failure(context):
            raise error
        assert caught.value is error
        assert ti.pushed == {}

    def test_an_error_that_is_only_the_context_of_another_exception_is_not_pushed(self, context, ti):
        error = ValueError("other")
        error.__context__ = LumaAuthError(401, "wrong key")
        with pytest.raises(ValueError, match="other"), pushed_failure(context):
            raise error
        assert ti.pushed == {}

    def test_nothing_is_pushed_when_a_task_is_killed_or_deferred(self, context, ti):
        class Ended(BaseException):
            pass

        with pytest.raises(Ended), pushed_failure(context):
            raise Ended
        assert ti.pushed == {}

    def test_nothing_is_pushed_without_a_failure(self, context, ti):
        with pushed_failure(context):
            pass
        assert ti.pushed == {}

    def test_a_failed_push_does_not_change_how_the_task_ends(self, context, ti, monkeypatch, caplog):
        def fail(key: str, value: Any) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(ti, "xcom_push", fail)
        with pytest.raises(LumaGenerationError), pushed_failure(context):
            raise LumaGenerationError(501, "The model gave up.")
        assert "The result page will not show" in caplog.text

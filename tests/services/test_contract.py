# SPDX-License-Identifier: Apache-2.0
"""What every service promises, the two of the package and a made-up third one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.job import LumaTask, ModifyRequest, Response
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaFeatureDisabledError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.services import SERVICES
from airflow_provider_luma.services.base import Service
from tests.support import third_service
from tests.support.hostile_answers import responses
from tests.support.operator_fixtures import VALID_PARAMETERS
from tests.support.wire import Answer

THIRD: Service = third_service

every_service = pytest.mark.parametrize("service", [*SERVICES.values(), THIRD], ids=[*SERVICES, THIRD.name])


def request(**changes: object) -> ModifyRequest:
    return ModifyRequest(**{**VALID_PARAMETERS, **changes})


@every_service
class TestContract:
    def test_limits_are_those_of_a_clip(self, service):
        assert service.limits.seconds > 0
        assert service.limits.bytes_by_url > 0
        assert service.limits.bytes_as_file > 0
        assert "mp4" in service.limits.containers
        assert service.requests_per_second > 0
        assert service.results_kept > 0
        assert service.records_kept is None or service.records_kept > 0

    def test_host_is_an_https_address_without_its_base_path(self, service):
        assert service.host.startswith("https://")
        assert not service.host.endswith("/")
        assert service.status("abc").path.startswith(f"{service.base_path}/")

    def test_valid_request_passes_and_holds_no_null(self, service):
        service.check(request(), is_public=True)
        sent = service.submission(request(), "our-name")
        assert sent.method == "POST"
        assert "null" not in json.dumps(sent.json)
        assert VALID_PARAMETERS["prompt"] in json.dumps(sent.json)
        assert VALID_PARAMETERS["video_url"] in json.dumps(sent.json)

    def test_options_reach_the_request(self, service):
        assert (service.submission(request(options={"user_id": "af"}), "our-name").json or {})["user_id"] == "af"

    @pytest.mark.parametrize("changes", [{"prompt": " "}, {"video_url": "https://127.0.0.1/v.mp4"}], ids=str)
    def test_what_cannot_work_is_refused_with_the_parameter(self, service, changes):
        with pytest.raises(LumaValidationError, match=next(iter(changes))):
            service.check(request(**changes), is_public=True)

    @pytest.mark.parametrize("http_status", [200, 201, 302, 408, 500, 502, 504])
    @pytest.mark.parametrize("body", [b"", b"<html></html>", b"{", b"[]"])
    def test_response_that_names_no_job_leaves_the_outcome_unknown(self, service, http_status, body):
        with pytest.raises(LumaSubmissionUnknownError):
            service.read_submission(Response(http_status, body))

    @pytest.mark.parametrize("http_status", [200, 404, 500])
    @pytest.mark.parametrize("body", [b"", b"<html></html>", b"{", b"[]"])
    def test_page_of_an_edge_says_nothing_about_a_job(self, service, http_status, body):
        with pytest.raises(LumaUnavailableError):
            service.read_status(Response(http_status, body), "abc")

    @given(answer=responses, luma_task_id=st.sampled_from(["abc", "0" * 32]))
    def test_any_response_becomes_a_value_or_a_typed_error(self, service, answer, luma_task_id):
        for read in (
            service.read_submission,
            lambda got: service.read_status(got, luma_task_id),
            lambda got: service.read_renewal(got, "https://example.com/r.mp4", luma_task_id),
            service.read_liveness,
        ):
            try:
                value = read(answer)
            except LumaError as error:
                json.dumps(error.as_dict())
            else:
                assert not isinstance(value, LumaTask) or value.service == service.name

    def test_unknown_outcome_has_a_remedy(self, service):
        assert service.unknown_outcome_remedy("our-name", None)

    def test_balance_is_refused_where_there_is_none(self, service):
        if service.has_balance:
            assert service.balance().method == "GET"
            return
        with pytest.raises(LumaFeatureDisabledError):
            service.balance()


class TestThirdService:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(SERVICES, THIRD.name, THIRD)

    def test_connection_leads_to_it(self, set_connection):
        from airflow_provider_luma.hooks.luma import LumaHook

        set_connection("http://127.0.0.1:9", service="paint")
        connection = LumaHook().get_luma_connection()
        assert isinstance(connection, LumaConnection)
        assert (connection.service.name, connection.requests_per_second) == ("paint", 5.0)

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_its_job_ends_as_a_result(self, wires, set_connection, deferrable):
        """Nothing else in the package knows of it."""
        from tests.support.task_instance import TaskRun, TaskStateStore

        def job(state: str, **more: str) -> Answer:
            return Answer(200, json.dumps({"job": "p1", "state": state, **more}).encode())

        video = "https://paint.example.com/p1.mp4"
        wire = wires.start(job("busy"), job("busy"), job("done", video=video))
        set_connection(wire.base_url, service="paint", requests_per_second=1000)

        def modify(**changes: object) -> LumaModifyOperator:
            parameters = {**VALID_PARAMETERS, "check_video": False, "poll_interval": 0.02, "deferrable": deferrable}
            return LumaModifyOperator(task_id="modify", **{**parameters, **changes})

        result = TaskRun(modify, TaskStateStore()).run_try()
        assert [got.path.partition("?")[0] for got in wire.received] == ["/jobs"] * 3
        assert [got.method for got in wire.received] == ["POST", "GET", "GET"]
        assert (result["status"], result["service"], result["result_urls"]) == ("SUCCESS", "paint", [video])

# SPDX-License-Identifier: Apache-2.0
"""Which Airflow connection the hooks use, how often they read it, and what they say of one that does not work."""

from __future__ import annotations

import json
import traceback
from functools import partial
from urllib.parse import quote

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from structlog.tracebacks import ExceptionDictTransformer

from airflow_provider_luma.core.poll_state import PollState
from airflow_provider_luma.exceptions import LumaAuthError
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from tests.support.calls import status_checks, submissions

PROMPT = "make it a rainy night"
VIDEO = "http://127.0.0.1/v.mp4"


class TestForms:
    @pytest.mark.parametrize(
        ("uri", "base_url"),
        [
            ("luma://:some-long-key@", "https://api.kie.ai"),
            ("luma://:some-long-key@luma.example.com", "https://luma.example.com"),
            ("luma://:some-long-key@luma.example.com:8443/http", "http://luma.example.com:8443"),
            ("luma://:some-long-key@https%3A%2F%2Fluma.example.com%2Fbase", "https://luma.example.com/base"),
            ('{"conn_type": "luma", "password": "some-long-key"}', "https://api.kie.ai"),
        ],
    )
    async def test_both_hooks_take_every_form_of_a_connection(self, monkeypatch, uri, base_url):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", uri)
        assert LumaHook().get_luma_connection().base_url == base_url
        assert (await LumaAsyncHook().get_luma_connection()).base_url == base_url

    @pytest.mark.parametrize("form", ["parts", "full URL in the host"])
    def test_service_is_called_at_the_address_of_the_connection(self, luma, monkeypatch, set_connection, api_key, form):
        if form == "parts":
            set_connection(luma.base_url)
        else:
            uri = f"luma://:{api_key}@{requests.utils.quote(luma.base_url, safe='')}"
            monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", uri)
        assert LumaHook().get_credits() == 1000.0

    def test_connection_id_may_be_another_than_luma_default(self, luma, luma_conn, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", LumaHook.get_connection(luma_conn).get_uri())
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        assert LumaHook("other").get_credits() == 1000.0
        assert LumaHook(luma_conn_id="other").luma_conn_id == "other"


class TestReads:
    """The connection is read afresh for every attempt, so that a new API key is used as soon as there is one."""

    def test_submission_reads_the_connection_once_for_its_check_and_its_attempt(
        self, luma, luma_conn, connection_reads
    ):
        LumaHook().modify_video(PROMPT, luma.sample_url)
        assert connection_reads == ["luma_default"]
        assert len(submissions(luma)) == 1

    def test_submission_that_is_retried_reads_the_connection_once_for_every_attempt(
        self, luma, luma_conn, connection_reads, short_backoff
    ):
        luma.configure(faults=["submit:refuse,code=429,times=2"])
        LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 3
        assert connection_reads == ["luma_default"] * 3

    def test_wait_in_the_worker_reads_the_connection_afresh_for_every_status_check(
        self, luma, submit, connection_reads
    ):
        luma_task_id = submit(faults=["status:unknown_flag,flag=0,times=4"])
        connection_reads.clear()
        LumaHook().wait_for_completion(luma_task_id, timeout=120, poll_interval=0.02)
        count = len(status_checks(luma))
        assert count >= 3
        # One read before the first status check, so that an error in the connection is raised at once.
        assert count <= len(connection_reads) <= count + 1
        assert set(connection_reads) == {"luma_default"}

    def test_get_task_reads_the_connection_afresh_for_every_attempt(
        self, luma, submit, connection_reads, short_backoff
    ):
        luma_task_id = submit(faults=["status:html,times=2"])
        connection_reads.clear()
        hook = LumaHook()
        hook.get_task(luma_task_id)
        assert len(connection_reads) == len(status_checks(luma)) == 3
        hook.get_task(luma_task_id)
        assert len(connection_reads) == len(status_checks(luma)) == 4

    def test_api_key_that_is_replaced_between_two_status_checks_is_used_at_once(self, luma, submit, set_connection):
        luma_task_id, hook = submit(processing_seconds=60), LumaHook()
        hook.get_task(luma_task_id)
        set_connection(luma.base_url, key="the-next-key")
        luma.configure(api_key="the-next-key")
        hook.get_task(luma_task_id)
        assert [call.code for call in status_checks(luma)] == [200, 200]


class TestUnusableConnections:
    @pytest.mark.parametrize(
        "call",
        [
            lambda hook: hook.get_credits(),
            lambda hook: hook.get_task("abc"),
            lambda hook: hook.modify_video(PROMPT, VIDEO),
        ],
        ids=["credits", "task", "modify"],
    )
    def test_missing_connection_is_explained(self, call):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'") as caught:
            call(LumaHook("nowhere"))
        assert "AIRFLOW_CONN_NOWHERE" in str(caught.value)

    async def test_missing_connection_is_explained_in_the_triggerer(self):
        async with LumaAsyncHook("nowhere") as hook:
            with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
                await hook.get_task("abc")

    def test_missing_api_key_is_explained(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://")
        with pytest.raises(LumaAuthError, match="luma_default") as caught:
            LumaHook().get_credits()
        assert "API key" in str(caught.value)

    async def test_api_key_with_a_line_break_is_refused_without_being_quoted(self, luma, set_connection):
        set_connection(luma.base_url, key="sk-distinct\r\nive-0123")
        with pytest.raises(LumaAuthError) as in_worker:
            LumaHook().get_credits()
        with pytest.raises(LumaAuthError) as in_triggerer:
            await LumaAsyncHook().get_task("abc")
        for error in (in_worker.value, in_triggerer.value):
            assert "sk-distinct" not in str(error)
            assert "ive-0123" not in str(error)
        assert luma.calls == []


#: URIs into which a key was pasted as it is, and the parts of it that Airflow could quote.
PASTED = pytest.mark.parametrize(
    "uri",
    [
        *[f"luma://:s3cret{delimiter}k9y{host}" for delimiter in "/#?[" for host in ("@", "@luma.example.com")],
        *[f"luma://:4711{delimiter}k9y@" for delimiter in "/#?"],  # Airflow takes the beginning for a port
        *[f"luma://:{delimiter}s3cret-k9y@" for delimiter in "/#?"],
        *[f"luma://:s3cret@z{delimiter}k9y@luma.example.com" for delimiter in "/?"],  # and this one's for a host
        "luma://:99999/k9y@",
        "luma://:s3cret://k9y@",
        "luma://:s3cret\u2100k9y@",
        "luma://s3cret/k9y@",
        "luma://:s3cret-k9y",
        '{"conn_type": "luma", "password": "s3cret-k9y"',
    ],
)


class TestKeysThatAreNotPercentEncoded:
    """Airflow reads such a URI wrongly, or calls the connection missing; nothing is sent to anybody."""

    @pytest.fixture(autouse=True)
    def connection(self, monkeypatch, uri):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", uri)

    @classmethod
    def assert_explained(cls, text):
        assert "luma_default" in text
        assert "percent-encode" in text
        assert "%2F" in text
        assert '{"conn_type": "luma"' in text
        cls.assert_keeps_the_key(text)

    @staticmethod
    def assert_keeps_the_key(text):
        assert [part for part in ("s3cret", "k9y", "4711", "99999") if part in text] == []

    @PASTED
    def test_error_of_a_worker_says_how_to_write_the_key(self, caplog, task_log):
        for call in (LumaHook().get_credits, partial(LumaHook().modify_video, PROMPT, VIDEO)):
            with pytest.raises((AirflowNotFoundException, LumaAuthError)) as caught:
                call()
            self.assert_explained(str(caught.value))
            self.assert_keeps_the_key("".join(traceback.format_exception_only(caught.value)))
            self.assert_keeps_the_key("".join(traceback.format_exception(caught.value)))
            as_airflow_logs_it = ExceptionDictTransformer(show_locals=False)
            error = caught.value
            self.assert_keeps_the_key(str(as_airflow_logs_it((type(error), error, error.__traceback__))))
        # Airflow's own lines are not ours to keep clean: that of 3.1 names each parameter of a URI.
        events = [entry["event"] for entry in task_log]
        own = [event for event in events if not str(event).startswith("Failed parsing the json for key ")]
        own += [record.getMessage() for record in caplog.records if record.name.startswith("airflow_provider_luma")]
        self.assert_keeps_the_key(str(own))

    @PASTED
    async def test_status_check_of_the_triggerer_says_how_to_write_the_key(self):
        async with LumaAsyncHook() as hook:
            outcome = await hook.client.poll(PollState("abc", poll_interval=1))
        self.assert_explained(str(outcome.error))

    @PASTED
    def test_connection_test_says_how_to_write_the_key(self):
        ok, message = LumaHook().test_connection()
        assert not ok
        self.assert_explained(message)


@pytest.mark.parametrize("key", ["ab/cd#ef?gh", "a%2Fb", "a%zzb", "a+b=", "a:b@c", "[x]", "a://b"])
@pytest.mark.parametrize("form", ["uri", "json"])
def test_key_with_special_characters_works_percent_encoded_and_in_the_json_form(monkeypatch, key, form):
    json_form = json.dumps({"conn_type": "luma", "password": key})
    monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", json_form if form == "json" else f"luma://:{quote(key, safe='')}@")
    assert LumaHook().get_luma_connection().api_key == key


class TestTestConnection:
    """What the button "Test" in Airflow's connection form shows."""

    def test_remaining_credits_are_shown(self, luma, luma_conn):
        luma.configure(credits=12.5)
        assert LumaHook().test_connection() == (True, f"Connected to {luma.base_url}: 12.5 credits left")

    def test_endpoint_that_is_gone_fails_the_test_although_the_key_works(self, luma, luma_conn):
        luma.configure(credits=12.5, faults=["status:html,code=404"])
        ok, message = LumaHook().test_connection()
        assert not ok
        assert "12.5 credits left. There is no Luma endpoint" in message

    @pytest.mark.parametrize("fault", ["refuse,code=429", "refuse,code=455", "html,code=502", "cut"])
    def test_endpoint_that_could_not_be_checked_leaves_a_doubt(self, luma, luma_conn, fault):
        luma.configure(faults=[f"status:{fault}"])
        ok, message = LumaHook().test_connection()
        assert ok
        assert "Could not check whether the Luma endpoint exists" in message

    @pytest.mark.parametrize("code", [404, 422])
    def test_endpoint_that_does_not_know_the_job_is_there(self, luma, luma_conn, code):
        luma.configure(credits=12.5, faults=[f"status:refuse,code={code}"])
        assert LumaHook().test_connection() == (True, f"Connected to {luma.base_url}: 12.5 credits left")

    @pytest.mark.parametrize("style", ["status", "body"])
    def test_wrong_api_key_is_explained_without_being_quoted(self, luma, set_connection, style):
        luma.configure(refusal_style=style)
        set_connection(luma.base_url, key="another-key")
        ok, message = LumaHook().test_connection()
        assert not ok
        assert "401" in message
        assert "API key" in message
        assert "another-key" not in message

    def test_missing_connection_fails_the_test_with_an_explanation(self):
        ok, message = LumaHook("nowhere").test_connection()
        assert not ok
        assert "AIRFLOW_CONN_NOWHERE" in message

    def test_address_at_which_nothing_listens_is_named(self, free_port, set_connection):
        set_connection(f"http://127.0.0.1:{free_port}")
        ok, message = LumaHook().test_connection()
        assert not ok
        assert f"127.0.0.1:{free_port}" in message

    @pytest.mark.parametrize("kind", ["html", "empty", "truncated", "cut", "null_data", "wrong_data"])
    def test_broken_answer_of_the_service_is_reported(self, luma, luma_conn, kind):
        luma.configure(faults=[f"credit:{kind}"])
        ok, message = LumaHook().test_connection()
        assert not ok
        assert message

    def test_ca_bundle_that_does_not_exist_is_named(self, set_connection):
        set_connection("https://127.0.0.1:9", verify="/nowhere/ca.pem")
        ok, message = LumaHook().test_connection()
        assert not ok
        assert "/nowhere/ca.pem" in message

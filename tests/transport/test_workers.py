# SPDX-License-Identifier: Apache-2.0
"""What the hooks send over the wire, and that worker and triggerer follow the connection's transport options alike."""

from __future__ import annotations

import asyncio
import json
import traceback
import urllib.request

import pytest
import requests

from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.job import LumaTask, ModifyRequest
from airflow_provider_luma.core.poll_state import Failed, PollAgain, PollOutcome, PollState
from airflow_provider_luma.exceptions import (
    LumaError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.transport import workers
from tests.support.tls import server_context, strict_client_context

PROMPT = "make it a rainy night"
VIDEO = "http://127.0.0.1/v.mp4"

SECRET_EXTRA = {
    "webhook_secret": "hidden-1",
    "callback_base_url": "https://hidden-2.example.com",
    "requests_per_second": 3,
    "upload_host": "hidden-3",
    "X-Custom": "hidden-4",
    "anything": {"deep": "hidden-5"},
}


async def check_once_in_triggerer(luma_task_id: str = "abc") -> LumaTask:
    """Make one single status check, as the triggerer does; return the job, or raise why it could not be had."""
    async with LumaAsyncHook() as hook:
        outcome = await hook.client.poll(PollState(luma_task_id, poll_interval=1))
    if isinstance(outcome, Failed):
        raise outcome.reason
    if outcome.task is None:
        raise outcome.error
    return outcome.task


class TestRequests:
    """The API key is sent, and nothing of the connection's extra, whichever way the hooks are used."""

    @staticmethod
    def assert_only_the_key_is_sent(received, api_key):
        assert received
        for request in received:
            headers = json.dumps(request.headers).lower()
            assert "hidden" not in headers
            assert request.headers["Authorization"] == f"Bearer {api_key}"
            for name in SECRET_EXTRA:
                assert name.lower() not in {header.lower() for header in request.headers}
            assert b"hidden" not in request.body
            assert "hidden" not in request.path

    def test_calls_of_the_hook_carry_the_key_and_nothing_of_extra(self, wires, set_connection, api_key):
        wire = wires.start(wires.envelope(200, 5), wires.running_job(), wires.envelope(200, {"taskId": "abc"}))
        set_connection(wire.base_url, **SECRET_EXTRA)
        hook = LumaHook()
        hook.get_credits()
        hook.get_task("abc")
        hook.modify_video(PROMPT, VIDEO)
        self.assert_only_the_key_is_sent(wire.received, api_key)
        assert len(wire.received) == 3

    def test_session_of_the_hook_carries_the_key_and_nothing_of_extra(self, wires, set_connection, api_key):
        wire = wires.start()
        set_connection(wire.base_url, **SECRET_EXTRA)
        with LumaHook().get_conn() as session:
            assert session.get(f"{wire.base_url}/api/v1/chat/credit", timeout=60).json()["code"] == 200
        self.assert_only_the_key_is_sent(wire.received, api_key)

    async def test_calls_of_the_async_hook_carry_the_key_and_nothing_of_extra(self, wires, set_connection, api_key):
        wire = wires.start(wires.running_job())
        set_connection(wire.base_url, **SECRET_EXTRA)
        await check_once_in_triggerer()
        self.assert_only_the_key_is_sent(wire.received, api_key)

    def test_submission_is_json_without_unset_keys(self, wires, set_connection):
        wire = wires.start(wires.envelope(200, {"taskId": "abc"}))
        set_connection(wire.base_url)
        assert LumaHook().modify_video(PROMPT, VIDEO) == "abc"
        (sent,) = wire.received
        assert (sent.method, sent.path) == ("POST", "/api/v1/modify/generate")
        assert sent.headers["Content-Type"].startswith("application/json")
        assert json.loads(sent.body) == {"prompt": PROMPT, "videoUrl": VIDEO}

    def test_task_id_is_percent_encoded_in_the_query(self, wires, set_connection):
        wire = wires.start(wires.running_job())
        set_connection(wire.base_url)
        LumaHook().get_task("a/b&c=d ü")
        assert "a%2Fb%26c%3Dd" in wire.received[0].path

    @pytest.mark.parametrize("machine", ["machine 127.0.0.1", "default"])
    async def test_netrc_does_not_replace_the_api_key(
        self, wires, set_connection, monkeypatch, tmp_path, api_key, machine
    ):
        netrc = tmp_path / "netrc"
        netrc.write_text(f"{machine} login someone password something\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        wire = wires.start(wires.running_job())
        set_connection(wire.base_url)
        LumaHook().get_task("abc")
        await check_once_in_triggerer()
        assert [request.headers["Authorization"] for request in wire.received] == [f"Bearer {api_key}"] * 2


class TestTimeout:
    async def test_call_is_given_up_after_the_timeout(self, wires, set_connection):
        wire = wires.start(wires.answer(hang=True))
        set_connection(wire.base_url, timeout=0.2)
        ok, message = LumaHook().test_connection()
        assert not ok
        assert "0.2" in message or "timed out" in message
        with pytest.raises(LumaUnavailableError):
            await check_once_in_triggerer()
        assert len(wire.received) == 2


class TestReasons:
    """Why a call failed is said without the names of the HTTP library's objects."""

    @pytest.mark.parametrize(("hang", "reason"), [(True, "timed out"), (False, "Connection refused")])
    def test_reason_begins_with_what_happened(self, wires, set_connection, hang, reason):
        wire = wires.start(wires.answer(hang=True))
        set_connection(wire.base_url if hang else "http://127.0.0.1:1", timeout=0.2)
        ok, message = LumaHook().test_connection()
        assert not ok
        assert reason in message
        assert "Connection(" not in message
        assert "ConnectionPool(" not in message


class TestServerThatDrips:
    """One that is always about to answer. Each byte is in time, so no timeout of a read ends that."""

    HEAD = b"HTTP/1.1 200 OK\r\n"
    ANSWERS = pytest.mark.parametrize(
        ("before", "drip"),
        [(HEAD + b"X-Long: ", b"x"), (HEAD + b"Content-Length: 100000\r\n\r\n", b" "), (HEAD + b"\r\n", b" ")],
        ids=["head", "body", "body without a length"],
    )

    @pytest.fixture(params=["direct", "through a proxy"])
    def connected(self, request, wires, set_connection, monkeypatch, before, drip):
        """Connects to such a server."""
        monkeypatch.setattr(workers, "ANSWER_TIMEOUT", 0.3)
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.01)
        url = wires.start(wires.answer(raw=before, drip=drip)).base_url
        set_connection(url, **({"proxies": url} if request.param != "direct" else {}))

    @ANSWERS
    @pytest.mark.usefixtures("connected")
    def test_status_check_of_a_worker_is_given_up(self):
        with pytest.raises(LumaUnavailableError, match="response incomplete after|timed out"):
            LumaHook().get_task("abc")

    @ANSWERS
    @pytest.mark.usefixtures("connected")
    def test_outcome_of_a_submission_is_unknown(self):
        with pytest.raises(LumaSubmissionUnknownError, match="response incomplete after|timed out"):
            LumaHook().get_client().submit(ModifyRequest(PROMPT, VIDEO), "a-reference")


class TestUnusableAddresses:
    """An address that no client takes, of a connection that is being edited or in a redirect, ends no wait."""

    @pytest.fixture
    def outcomes(self):
        """Checks a job's status once in a worker and once in the triggerer; returns the outcomes."""

        async def _outcomes() -> list[PollOutcome]:
            async with LumaAsyncHook() as hook:
                in_triggerer = await hook.client.poll(PollState("abc", poll_interval=1))
            return [in_triggerer, await asyncio.to_thread(LumaHook().poll, PollState("abc", poll_interval=1))]

        return _outcomes

    @pytest.mark.parametrize("host", ["luma..example.com", f"{'x' * 64}.example.com"])
    async def test_host_that_is_no_name_is_waited_out(self, set_connection, outcomes, host):
        set_connection(f"http://{host}:80")
        assert all(isinstance(outcome, PollAgain) and outcome.error for outcome in await outcomes())

    @pytest.mark.parametrize("target", ["http://[::1", "http://[bad]/", "http://\xff/", "http://.../"])
    async def test_redirect_to_no_address_is_waited_out(self, wires, set_connection, outcomes, target):
        wire = wires.start(wires.answer(302, headers={"Location": target}))
        set_connection(wire.base_url, allow_redirects=True)
        assert all(isinstance(outcome, PollAgain) and outcome.error for outcome in await outcomes())


class TestRedirects:
    @pytest.mark.parametrize("allowed", [True, False])
    async def test_api_key_goes_to_no_other_host(self, wires, set_connection, monkeypatch, allowed):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        other = wires.start(wires.running_job())
        wire = wires.start(wires.answer(302, headers={"Location": other.base_url.replace("127.0.0.1", "localhost")}))
        set_connection(wire.base_url, allow_redirects=allowed)
        for check in (lambda: asyncio.to_thread(LumaHook().get_task, "abc"), check_once_in_triggerer):
            try:
                await check()
            except LumaUnavailableError:
                assert not allowed
            else:
                assert allowed
        assert len(other.received) == (2 if allowed else 0)
        assert all("Authorization" not in request.headers for request in other.received)

    def test_redirect_that_is_not_followed_is_reported_with_its_target(self, wires, set_connection, monkeypatch):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        wire = wires.start(wires.answer(301, headers={"Location": "https://luma.example.com/api"}))
        set_connection(wire.base_url)
        ok, message = LumaHook().test_connection()
        assert not ok
        assert "301" in message
        assert "luma.example.com" in message


class TestProxies:
    @pytest.mark.parametrize("form", ["by scheme", "for all", "text"])
    async def test_proxies_of_the_connection_are_used(self, wires, set_connection, form):
        proxy = wires.start(wires.running_job())
        proxies = {"by scheme": {"http": proxy.base_url}, "for all": {"all": proxy.base_url}, "text": proxy.base_url}
        set_connection("http://luma.example.com:80", proxies=proxies[form])
        LumaHook().get_task("abc")
        assert len(proxy.received) == 1
        await check_once_in_triggerer()
        assert len(proxy.received) == 2
        for request in proxy.received:
            assert request.path.startswith("http://luma.example.com")

    async def test_proxy_of_the_connection_takes_precedence_over_the_environments(
        self, wires, set_connection, monkeypatch, free_port
    ):
        proxy = wires.start(wires.running_job())
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        set_connection("http://luma.example.com:80", proxies={"http": proxy.base_url})
        await check_once_in_triggerer()
        LumaHook().get_task("abc")
        assert len(proxy.received) == 2

    @pytest.mark.parametrize("trusted", [True, False])
    async def test_proxy_of_the_environment_is_used_only_with_trust_env(
        self, wires, set_connection, monkeypatch, trusted
    ):
        proxy, wire = wires.start(wires.running_job()), wires.start(wires.running_job())
        monkeypatch.setenv("http_proxy", proxy.base_url)
        set_connection(wire.base_url, trust_env=trusted)
        LumaHook().get_task("abc")
        await check_once_in_triggerer()
        assert (len(proxy.received), len(wire.received)) == ((2, 0) if trusted else (0, 2))

    async def test_proxy_of_the_environment_needs_no_scheme(self, wires, set_connection, monkeypatch):
        proxy = wires.start(wires.running_job())
        monkeypatch.setenv("http_proxy", proxy.base_url.removeprefix("http://"))
        set_connection("http://luma.example.com:80")
        LumaHook().get_task("abc")
        await check_once_in_triggerer()
        assert len(proxy.received) == 2

    @pytest.mark.parametrize("gap", ["/", "?", "#", "\\", "[", " "])
    async def test_password_of_a_malformed_proxy_is_in_no_error(self, set_connection, monkeypatch, gap):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        monkeypatch.setenv("http_proxy", f"http://user:s3cr{gap}3t9z@127.0.0.1:9")
        set_connection("http://luma.example.com:80")
        for check in (lambda: asyncio.to_thread(LumaHook().get_task, "abc"), check_once_in_triggerer):
            with pytest.raises(LumaError, match="percent") as caught:
                await check()
            told = "".join(traceback.format_exception(caught.value))
            assert [part for part in ("s3cr", "3t9z") if part in told] == []

    def test_socks_proxy_that_cannot_be_reached_is_no_unknown_outcome(self, set_connection, monkeypatch, free_port):
        monkeypatch.setenv("http_proxy", f"socks5://127.0.0.1:{free_port}")
        set_connection("http://luma.example.com:80")
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            LumaHook().get_client().submit(ModifyRequest("make it snow", "https://e.com/v.mp4"), "a-reference")


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
class TestCertificates:
    def test_certificates_of_these_tests_pass_the_strict_checks_of_python_3_13(self, wires, certificates):
        context = server_context(certificates, requires_client_certificate=True)
        wire = wires.start(wires.answer(body=b"a video"), tls=context)
        with urllib.request.urlopen(wire.base_url, context=strict_client_context(certificates)) as answer:
            assert answer.read() == b"a video"

    async def test_certificate_of_an_unknown_authority_is_refused(
        self, wires, set_connection, certificates, monkeypatch
    ):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        wire = wires.start(wires.running_job(), tls=server_context(certificates))
        set_connection(wire.base_url)
        with pytest.raises(LumaUnavailableError, match="(?i)certificate"):
            LumaHook().get_task("abc")
        with pytest.raises(LumaUnavailableError, match="(?i)certificate"):
            await check_once_in_triggerer()
        assert wire.received == []

    @pytest.mark.parametrize("verify", ["off", "bundle"])
    async def test_certificate_is_accepted_with_verify_off_or_by_the_bundle(
        self, wires, set_connection, certificates, verify
    ):
        wire = wires.start(wires.running_job(), tls=server_context(certificates))
        set_connection(wire.base_url, verify=False if verify == "off" else str(certificates / "authority.crt"))
        LumaHook().get_task("abc")
        await check_once_in_triggerer()
        assert len(wire.received) == 2

    @pytest.mark.parametrize("verify", ["off", "bundle", "unknown"])
    def test_download_checks_the_certificate_as_calls_do(
        self, wires, set_connection, certificates, tmp_path, monkeypatch, verify
    ):
        monkeypatch.setattr(backoff, "FIRST_DELAY", 0.01)
        wire = wires.start(wires.answer(body=b"a video"), tls=server_context(certificates))
        bundle = certificates / "authority.crt"
        set_connection(wire.base_url, verify={"off": False, "bundle": str(bundle), "unknown": True}[verify])
        if verify == "unknown":
            with pytest.raises(LumaUnavailableError, match="SSLError"):
                LumaHook().download(f"{wire.base_url}/v.mp4", str(tmp_path))
            assert wire.received == []
        else:
            LumaHook().download(f"{wire.base_url}/v.mp4", str(tmp_path))
            assert (tmp_path / "v.mp4").read_bytes() == b"a video"

    @pytest.mark.parametrize("verify", ["off", "bundle"])
    def test_verify_takes_precedence_over_the_environments_bundle(
        self, wires, set_connection, certificates, monkeypatch, verify
    ):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        wire = wires.start(wires.running_job(), tls=server_context(certificates))
        set_connection(wire.base_url, verify=False if verify == "off" else str(certificates / "authority.crt"))
        LumaHook().get_task("abc")
        assert len(wire.received) == 1

    @pytest.mark.parametrize("form", ["one file", "two files"])
    @pytest.mark.parametrize("verify", ["off", "bundle"])
    async def test_client_certificate_is_presented(self, wires, set_connection, certificates, form, verify):
        context = server_context(certificates, requires_client_certificate=True)
        wire = wires.start(wires.running_job(), tls=context)
        pair = [str(certificates / "client.crt"), str(certificates / "client.key")]
        set_connection(
            wire.base_url,
            verify=False if verify == "off" else str(certificates / "authority.crt"),
            cert=str(certificates / "client.pem") if form == "one file" else pair,
        )
        LumaHook().get_task("abc")
        await check_once_in_triggerer()
        assert len(wire.received) == 2

    @pytest.mark.parametrize("extra", [{"verify": "/nowhere/ca.pem"}, {"cert": "/nowhere/client.pem"}], ids=str)
    async def test_certificate_file_that_does_not_exist_is_named(
        self, wires, set_connection, certificates, extra, monkeypatch
    ):
        monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.1)
        wire = wires.start(wires.running_job(), tls=server_context(certificates))
        set_connection(wire.base_url, **extra)
        with pytest.raises((LumaValidationError, LumaUnavailableError), match="/nowhere/"):
            LumaHook().get_task("abc")
        with pytest.raises((LumaValidationError, LumaUnavailableError), match="/nowhere/"):
            await check_once_in_triggerer()

# SPDX-License-Identifier: Apache-2.0
"""The hooks on the wire: against the simulator, or, where it is too kind, a server that does as it is told."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
import threading
import time
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_luma import waiting
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.protocol import LumaTask, LumaTaskStatus
from airflow_provider_luma.waiting import Watch

PROMPT = "make it a rainy night"
VIDEO = "http://127.0.0.1/v.mp4"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """Take away proxies, bundles and passwords that the environment may have."""
    for name in (*PROXY_VARIABLES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def submissions(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "submit"]


def looks(luma) -> list[Any]:
    return [call for call in luma.calls if call.on == "status"]


async def look_once(luma_task_id: str = "abc") -> LumaTask:
    async with LumaAsyncHook() as hook:
        return await hook._look(luma_task_id)


async def wait_async(watch: Watch) -> LumaTask:
    async with LumaAsyncHook() as hook:
        while isinstance(outcome := await hook.look(watch), float):
            await asyncio.sleep(outcome)
    return outcome


def running(wires, **data: Any):
    return wires.envelope(200, {"taskId": "abc", "successFlag": 0, **data})


def finished(wires, flag: int = 1, **data: Any):
    response = {"taskId": "abc", "resultUrls": ["https://e.com/r.mp4"], "originUrls": []}
    return wires.envelope(200, {"taskId": "abc", "successFlag": flag, "response": response, **data})


class TestConnection:
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
    async def test_forms(self, monkeypatch, uri, base_url):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", uri)
        assert LumaHook().get_luma_connection().base_url == base_url
        assert (await LumaAsyncHook().get_luma_connection()).base_url == base_url
        assert (await LumaAsyncHook().config()).base_url == base_url

    @pytest.mark.parametrize("form", ["parts", "full URL in the host"])
    def test_the_simulator_answers(self, luma, monkeypatch, set_connection, api_key, form):
        if form == "parts":
            set_connection(luma.base_url)
        else:
            uri = f"luma://:{api_key}@{requests.utils.quote(luma.base_url, safe='')}"
            monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", uri)
        assert LumaHook().get_credits() == 1000.0

    def test_another_connection_id(self, luma, luma_conn, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", LumaHook.get_connection(luma_conn).get_uri())
        monkeypatch.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
        assert LumaHook("other").get_credits() == 1000.0
        assert LumaHook(luma_conn_id="other").luma_conn_id == "other"

    @pytest.mark.parametrize(
        "call",
        [
            lambda hook: hook.get_credits(),
            lambda hook: hook.get_task("abc"),
            lambda hook: hook.modify_video(PROMPT, VIDEO),
        ],
        ids=["credits", "task", "modify"],
    )
    def test_a_missing_connection_is_explained(self, call):
        with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'") as caught:
            call(LumaHook("nowhere"))
        assert "AIRFLOW_CONN_NOWHERE" in str(caught.value)

    async def test_also_in_the_triggerer(self):
        async with LumaAsyncHook("nowhere") as hook:
            with pytest.raises(AirflowNotFoundException, match="luma_conn_id='nowhere'"):
                await hook.get_task("abc")

    def test_a_missing_key_is_explained(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://")
        with pytest.raises(LumaAuthError, match="luma_default") as caught:
            LumaHook().get_credits()
        assert "Password" in str(caught.value)

    async def test_a_key_with_a_line_break_is_refused_without_being_quoted(self, luma, set_connection):
        set_connection(luma.base_url, key="sk-distinct\r\nive-0123")
        with pytest.raises(LumaAuthError) as caught:
            LumaHook().get_credits()
        with pytest.raises(LumaAuthError) as caught_too:
            await LumaAsyncHook().get_task("abc")
        for error in (caught.value, caught_too.value):
            assert "sk-distinct" not in str(error)
            assert "ive-0123" not in str(error)
        assert luma.calls == []


class TestTestConnection:
    def test_it_says_how_many_credits_are_left(self, luma, luma_conn):
        luma.configure(credits=12.5)
        assert LumaHook().test_connection() == (True, f"Connected to {luma.base_url}: 12.5 credits left")

    @pytest.mark.parametrize("style", ["status", "body"])
    def test_a_wrong_key(self, luma, set_connection, style):
        luma.configure(refusal_style=style)
        set_connection(luma.base_url, key="another-key")
        ok, said = LumaHook().test_connection()
        assert not ok
        assert "401" in said
        assert "Password" in said
        assert "another-key" not in said

    def test_a_missing_connection(self):
        ok, said = LumaHook("nowhere").test_connection()
        assert not ok
        assert "AIRFLOW_CONN_NOWHERE" in said

    def test_nobody_listens(self, free_port, set_connection):
        set_connection(f"http://127.0.0.1:{free_port}")
        ok, said = LumaHook().test_connection()
        assert not ok
        assert f"127.0.0.1:{free_port}" in said

    @pytest.mark.parametrize("kind", ["html", "empty", "truncated", "cut", "null_data", "wrong_data"])
    def test_a_broken_answer(self, luma, luma_conn, kind):
        luma.configure(faults=[f"credit:{kind}"])
        ok, said = LumaHook().test_connection()
        assert not ok
        assert said

    def test_a_bundle_that_is_not_there(self, set_connection):
        set_connection("https://127.0.0.1:9", verify="/nowhere/ca.pem")
        ok, said = LumaHook().test_connection()
        assert not ok
        assert "/nowhere/ca.pem" in said


SECRETS = {
    "webhook_secret": "hidden-1",
    "callback_base_url": "https://hidden-2.example.com",
    "requests_per_second": 3,
    "upload_host": "hidden-3",
    "X-Custom": "hidden-4",
    "anything": {"deep": "hidden-5"},
}


class TestHeaders:
    """Nothing of extra is ever sent, whichever way the hooks are used."""

    @staticmethod
    def check(received, api_key):
        assert received
        for one in received:
            sent = json.dumps(one.headers).lower()
            assert "hidden" not in sent
            assert one.headers["Authorization"] == f"Bearer {api_key}"
            for name in SECRETS:
                assert name.lower() not in {header.lower() for header in one.headers}
            assert b"hidden" not in one.body
            assert "hidden" not in one.path

    def test_calls(self, wires, set_connection, api_key):
        wire = wires.start(wires.envelope(200, 5), running(wires), wires.envelope(200, {"taskId": "abc"}))
        set_connection(wire.base_url, **SECRETS)
        hook = LumaHook()
        hook.get_credits()
        hook.get_task("abc")
        hook.modify_video(PROMPT, VIDEO)
        self.check(wire.received, api_key)
        assert len(wire.received) == 3

    def test_inherited_run(self, wires, set_connection, api_key):
        wire = wires.start()
        set_connection(wire.base_url, **SECRETS)
        hook = LumaHook()
        hook.method = "GET"
        assert hook.run("/api/v1/chat/credit", headers={"X-Mine": "1"}).json()["code"] == 200
        self.check(wire.received, api_key)
        assert wire.received[0].headers["X-Mine"] == "1"

    async def test_async_calls(self, wires, set_connection, api_key):
        wire = wires.start(running(wires))
        set_connection(wire.base_url, **SECRETS)
        await look_once()
        self.check(wire.received, api_key)

    async def test_inherited_async_run(self, wires, set_connection, api_key):
        wire = wires.start()
        set_connection(wire.base_url, **SECRETS)
        hook = LumaAsyncHook()
        response = await hook.run(endpoint="/api/v1/chat/credit")
        assert response.status == 200
        self.check(wire.received, api_key)

    def test_a_submission_is_json_without_unset_keys(self, wires, set_connection):
        wire = wires.start(wires.envelope(200, {"taskId": "abc"}))
        set_connection(wire.base_url)
        assert LumaHook().modify_video(PROMPT, VIDEO) == "abc"
        (sent,) = wire.received
        assert (sent.method, sent.path) == ("POST", "/api/v1/modify/generate")
        assert sent.headers["Content-Type"].startswith("application/json")
        assert json.loads(sent.body) == {"prompt": PROMPT, "videoUrl": VIDEO}

    def test_an_id_is_quoted(self, wires, set_connection):
        wire = wires.start(running(wires))
        set_connection(wire.base_url)
        LumaHook().get_task("a/b&c=d ü")
        assert "a%2Fb%26c%3Dd" in wire.received[0].path


class TestRedirects:
    @pytest.mark.parametrize("allowed", [True, False])
    async def test_the_key_goes_to_no_other_host(self, wires, set_connection, monkeypatch, allowed):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        other = wires.start(running(wires))
        wire = wires.start(wires.answer(302, headers={"Location": other.base_url.replace("127.0.0.1", "localhost")}))
        set_connection(wire.base_url, allow_redirects=allowed)
        for look in (lambda: asyncio.to_thread(LumaHook().get_task, "abc"), look_once):
            try:
                await look()
            except LumaUnavailableError:
                assert not allowed
            else:
                assert allowed
        assert len(other.received) == (2 if allowed else 0)
        assert all("Authorization" not in one.headers for one in other.received)

    def test_a_redirect_that_is_not_followed_says_where_to(self, wires, set_connection, monkeypatch):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        wire = wires.start(wires.answer(301, headers={"Location": "https://luma.example.com/api"}))
        set_connection(wire.base_url)
        ok, said = LumaHook().test_connection()
        assert not ok
        assert "301" in said
        assert "luma.example.com" in said


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate authority, and what it has signed: a server, a client, each a file with certificate and key."""
    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def _make(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer, signing_key = issuer or (None, key)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer.subject if signer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .sign(signing_key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(pem + secret)
        (folder / f"{name}.crt").write_bytes(pem)
        (folder / f"{name}.key").write_bytes(secret)
        return certificate, key

    authority = _make("authority", None)
    _make("server", authority)
    _make("client", authority)
    return folder


def server_context(certificates, *, asks_for_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if asks_for_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "authority.crt")
    return context


class TestTransport:
    """The connection's options do what they say, in the worker and in the triggerer alike."""

    async def test_timeout(self, wires, set_connection):
        wire = wires.start(wires.answer(hang=True))
        set_connection(wire.base_url, timeout=0.2)
        started = time.monotonic()
        ok, _ = LumaHook().test_connection()
        assert not ok
        with pytest.raises(LumaUnavailableError):
            await look_once()
        assert 0.4 <= time.monotonic() - started < 5

    @pytest.mark.parametrize("form", ["by scheme", "for all", "text"])
    async def test_proxies(self, wires, set_connection, form):
        proxy = wires.start(running(wires))
        proxies = {"by scheme": {"http": proxy.base_url}, "for all": {"all": proxy.base_url}, "text": proxy.base_url}
        set_connection("http://luma.example.com:80", proxies=proxies[form])
        LumaHook().get_task("abc")
        assert len(proxy.received) == 1
        await look_once()
        assert len(proxy.received) == 2
        for one in proxy.received:
            assert one.path.startswith("http://luma.example.com")

    async def test_the_connections_proxy_wins_over_the_environments(
        self, wires, set_connection, monkeypatch, free_port
    ):
        proxy = wires.start(running(wires))
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        set_connection("http://luma.example.com:80", proxies={"http": proxy.base_url})
        await look_once()
        LumaHook().get_task("abc")
        assert len(proxy.received) == 2

    @pytest.mark.parametrize("trusted", [True, False])
    async def test_trust_env(self, wires, set_connection, monkeypatch, trusted):
        proxy, wire = wires.start(running(wires)), wires.start(running(wires))
        monkeypatch.setenv("http_proxy", proxy.base_url)
        set_connection(wire.base_url, trust_env=trusted)
        LumaHook().get_task("abc")
        await look_once()
        assert (len(proxy.received), len(wire.received)) == ((2, 0) if trusted else (0, 2))

    @pytest.mark.parametrize("machine", ["machine 127.0.0.1", "default"])
    async def test_a_netrc_does_not_replace_the_key(
        self, wires, set_connection, monkeypatch, tmp_path, api_key, machine
    ):
        netrc = tmp_path / "netrc"
        netrc.write_text(f"{machine} login someone password something\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        wire = wires.start(running(wires))
        set_connection(wire.base_url)
        LumaHook().get_task("abc")
        await look_once()
        assert [one.headers["Authorization"] for one in wire.received] == [f"Bearer {api_key}"] * 2

    async def test_an_unknown_certificate_is_refused(self, wires, set_connection, certificates, monkeypatch):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        wire = wires.start(running(wires), tls=server_context(certificates))
        set_connection(wire.base_url)
        with pytest.raises(LumaUnavailableError, match="(?i)certificate"):
            LumaHook().get_task("abc")
        with pytest.raises(LumaUnavailableError, match="(?i)certificate"):
            await look_once()
        assert wire.received == []

    @pytest.mark.parametrize("verify", ["off", "bundle"])
    async def test_verify(self, wires, set_connection, certificates, verify):
        wire = wires.start(running(wires), tls=server_context(certificates))
        set_connection(wire.base_url, verify=False if verify == "off" else str(certificates / "authority.crt"))
        LumaHook().get_task("abc")
        await look_once()
        assert len(wire.received) == 2

    @pytest.mark.parametrize("verify", ["off", "bundle"])
    def test_verify_wins_over_the_environments_bundle(self, wires, set_connection, certificates, monkeypatch, verify):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        wire = wires.start(running(wires), tls=server_context(certificates))
        set_connection(wire.base_url, verify=False if verify == "off" else str(certificates / "authority.crt"))
        LumaHook().get_task("abc")
        assert len(wire.received) == 1

    @pytest.mark.parametrize("form", ["one file", "two files"])
    @pytest.mark.parametrize("verify", ["off", "bundle"])
    async def test_a_client_certificate(self, wires, set_connection, certificates, form, verify):
        wire = wires.start(running(wires), tls=server_context(certificates, asks_for_client=True))
        pair = [str(certificates / "client.crt"), str(certificates / "client.key")]
        set_connection(
            wire.base_url,
            verify=False if verify == "off" else str(certificates / "authority.crt"),
            cert=str(certificates / "client.pem") if form == "one file" else pair,
        )
        LumaHook().get_task("abc")
        await look_once()
        assert len(wire.received) == 2

    @pytest.mark.parametrize("extra", [{"verify": "/nowhere/ca.pem"}, {"cert": "/nowhere/client.pem"}], ids=str)
    async def test_files_that_are_not_there_are_named(self, wires, set_connection, certificates, extra, monkeypatch):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)
        wire = wires.start(running(wires), tls=server_context(certificates))
        set_connection(wire.base_url, **extra)
        with pytest.raises((LumaValidationError, LumaUnavailableError), match="/nowhere/"):
            LumaHook().get_task("abc")
        with pytest.raises((LumaValidationError, LumaUnavailableError), match="/nowhere/"):
            await look_once()


class TestModifyVideo:
    def test_an_accepted_job(self, luma, luma_conn):
        luma_task_id = LumaHook().modify_video(PROMPT, luma.sample_url, watermark="mine")
        (job,) = luma.jobs
        assert job.task_id == luma_task_id
        assert job.request == {"prompt": PROMPT, "videoUrl": luma.sample_url, "watermark": "mine"}
        assert len(submissions(luma)) == 1

    @pytest.mark.parametrize(
        ("arguments", "parameter"),
        [
            (("", VIDEO), "prompt"),
            (("сделай дождь", VIDEO), "prompt"),
            ((PROMPT, "ftp://example.com/v.mp4"), "video_url"),
            ((PROMPT, "https://example.com/v.webm"), "video_url"),
        ],
    )
    def test_what_can_only_be_refused_is_not_sent(self, luma, luma_conn, arguments, parameter):
        with pytest.raises(LumaValidationError, match=parameter):
            LumaHook().modify_video(*arguments)
        assert luma.calls == []

    def test_a_callback_url_is_checked_too(self, luma, luma_conn):
        with pytest.raises(LumaValidationError, match="callback_url"):
            LumaHook().modify_video(PROMPT, luma.sample_url, callback_url="example.com")
        assert luma.calls == []

    @pytest.mark.parametrize("parameter", ["video_url", "callback_url"])
    def test_the_service_itself_cannot_reach_private_addresses(self, monkeypatch, parameter):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://:some-long-key@")
        arguments = {"video_url": "https://example.com/v.mp4", parameter: "http://192.168.0.1/x"}
        with pytest.raises(LumaValidationError, match=parameter):
            LumaHook().modify_video(PROMPT, **arguments)

    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize("code", [429, 455, 500])
    def test_what_was_surely_not_accepted_is_sent_again(self, luma, luma_conn, short_pauses, task_log, code, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=2"])
        LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 3
        assert luma.accepted == 1
        warnings = [entry["event"] for entry in task_log if entry["log_level"] == "warning"]
        assert len(warnings) == 2
        assert all(str(code) in line for line in warnings)

    def test_retry_after_is_honoured(self, luma, luma_conn):
        luma.configure(faults=["submit:refuse,code=429,style=status,retry_after=1.3,times=1"])
        LumaHook().modify_video(PROMPT, luma.sample_url)
        first, second = submissions(luma)
        assert 1.3 <= second.at - first.at < 3

    def test_a_rate_limit_that_lasts_beyond_our_patience(self, luma, luma_conn):
        luma.configure(faults=["submit:refuse,code=429,style=status,retry_after=200"])
        with pytest.raises(LumaRateLimitError) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert caught.value.retry_after == 200
        assert len(submissions(luma)) == 1

    def test_a_connection_that_was_never_made_is_tried_again(self, wires, set_connection, free_port, short_pauses):
        set_connection(f"http://127.0.0.1:{free_port}")
        refused = threading.Event()

        def open_later() -> None:
            refused.wait(10)
            wires.start(wires.envelope(200, {"taskId": "abc"}), port=free_port)

        opener = threading.Thread(target=open_later)
        opener.start()
        hook = LumaHook()
        with structlog_event(hook, refused):
            assert hook.modify_video(PROMPT, VIDEO) == "abc"
        opener.join()
        assert len(wires.running[0].received) == 1

    @pytest.mark.parametrize("after_accept", [True, False], ids=["accepted", "not accepted"])
    @pytest.mark.parametrize("kind", ["cut", "html", "html,code=502", "html,code=504", "empty", "truncated"])
    def test_an_answer_that_is_lost_leaves_it_unknown(self, luma, luma_conn, kind, after_accept):
        luma.configure(faults=[f"submit:{kind}{',after_accept' if after_accept else ''}"])
        with pytest.raises(LumaSubmissionUnknownError) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1
        assert luma.accepted == int(after_accept)
        assert "log page" in str(caught.value)

    @pytest.mark.parametrize("kind", ["null_data", "wrong_data", "cut_body", "wrong_length"])
    def test_an_acceptance_that_cannot_be_read_leaves_it_unknown(self, luma, luma_conn, kind):
        luma.configure(faults=[f"submit:{kind},after_accept"])
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1

    @pytest.mark.parametrize("after_accept", [True, False], ids=["accepted", "not accepted"])
    def test_a_hanging_answer_leaves_it_unknown(self, luma, set_connection, after_accept):
        set_connection(luma.base_url, timeout=1)
        luma.configure(faults=[f"submit:hang,seconds=20{',after_accept' if after_accept else ''}"])
        requests.get(luma.sample_url, timeout=20)  # drawn when it is first asked for
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1

    def test_a_proxy_that_loses_the_answer_leaves_it_unknown(self, wires, set_connection, monkeypatch):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 3)
        proxy = wires.start(wires.answer(cut=True))
        set_connection("http://luma.example.com:80", proxies={"http": proxy.base_url})
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, "https://example.com/v.mp4")
        assert len(proxy.received) == 1

    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (401, LumaAuthError),
            (402, LumaInsufficientCreditsError),
            (404, LumaNotFoundError),
            (422, LumaValidationError),
            (501, LumaGenerationError),
            (505, LumaFeatureDisabledError),
        ],
    )
    def test_what_a_retry_cannot_help_is_sent_once(self, luma, luma_conn, code, kind, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style}"])
        with pytest.raises(kind) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert len(submissions(luma)) == 1

    def test_an_account_without_credits(self, luma, luma_conn):
        luma.configure(credits=5, cost=10)
        with pytest.raises(LumaInsufficientCreditsError, match="5 left"):
            LumaHook().modify_video(PROMPT, luma.sample_url)

    @pytest.mark.parametrize("kind", ["refused TLS", "plain HTTP"])
    def test_a_handshake_that_failed_sent_nothing(self, wires, set_connection, certificates, monkeypatch, kind):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.1)
        wire = wires.start(tls=server_context(certificates) if kind == "refused TLS" else None)
        set_connection(wire.base_url.replace("http://", "https://"))
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert wire.received == []

    @pytest.mark.parametrize("proxy", ["http://:-1", "nonsense://127.0.0.1:1", "socks5://127.0.0.1:1"])
    def test_a_proxy_that_cannot_be_used_sent_nothing(self, wires, set_connection, monkeypatch, proxy):
        monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.1)
        wire = wires.start()
        set_connection(wire.base_url, proxies={"http": proxy})
        with pytest.raises((LumaUnavailableError, LumaValidationError)):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert wire.received == []


class structlog_event:
    """Set an event at a hook's first warning."""

    def __init__(self, hook: LumaHook, event: threading.Event) -> None:
        self.hook, self.event = hook, event

    def __enter__(self) -> None:
        event, real = self.event, self.hook.log

        class Log:
            def __getattr__(self, name: str) -> Any:
                if name == "warning":
                    event.set()
                return getattr(real, name)

        self.hook._log = Log()

    def __exit__(self, *_: object) -> None:
        self.event.set()


class TestReading:
    def test_credits(self, luma, luma_conn):
        luma.configure(credits=42)
        assert LumaHook().get_credits() == 42.0

    def test_a_task(self, luma, luma_conn):
        luma.configure(processing_seconds=60)
        hook = LumaHook()
        task = hook.get_task(hook.modify_video(PROMPT, luma.sample_url))
        assert task.status is LumaTaskStatus.GENERATING
        assert task.created_at is not None
        assert (task.result_urls, task.completed_at) == ((), None)

    async def test_a_task_in_the_triggerer(self, luma, luma_conn):
        luma_task_id = LumaHook().modify_video(PROMPT, luma.sample_url)
        async with LumaAsyncHook("luma_default") as hook:
            assert (await hook.get_task(luma_task_id)).luma_task_id == luma_task_id

    def test_an_unknown_task(self, luma, luma_conn):
        with pytest.raises(LumaNotFoundError) as caught:
            LumaHook().get_task("nobody-knows")
        assert caught.value.luma_task_id == "nobody-knows"
        assert len(looks(luma)) == 1

    def test_a_download_url(self, luma, luma_conn):
        hook = LumaHook()
        task = hook.wait_for_completion(hook.modify_video(PROMPT, luma.sample_url), poll_interval=0.05)
        url = hook.get_download_url(task.result_urls[0])
        assert requests.get(url, timeout=10).status_code == 200

    def test_a_download_url_of_a_foreign_file(self, luma, luma_conn):
        with pytest.raises(LumaValidationError):
            LumaHook().get_download_url("https://example.com/r.mp4")

    @pytest.mark.parametrize("fault", ["refuse,code=429", "refuse,code=455", "html", "cut", "truncated", "null_data"])
    def test_passing_trouble_is_waited_out(self, luma, luma_conn, short_pauses, fault):
        luma.configure(faults=[f"credit:{fault},times=3"])
        assert LumaHook().get_credits() == 1000.0
        assert len(luma.calls) == 4

    def test_for_a_minute_at_most(self, luma, luma_conn, monkeypatch):
        monkeypatch.setattr(hooks, "READ_PATIENCE", 0.3)
        luma.configure(faults=["credit:html"])
        with pytest.raises(LumaUnavailableError):
            LumaHook().get_credits()


class TestWaitForCompletion:
    """The same wait in a worker and in the triggerer."""

    @pytest.fixture(params=["worker", "triggerer"])
    def wait(self, request, luma_conn):
        async def _wait(luma_task_id: str, *, timeout: float = 20, poll_interval: float = 0.05) -> LumaTask:
            if request.param == "worker":
                wait = LumaHook().wait_for_completion
                return await asyncio.to_thread(wait, luma_task_id, timeout=timeout, poll_interval=poll_interval)
            return await wait_async(Watch(luma_task_id, poll_interval=poll_interval, end_time=time.time() + timeout))

        return _wait

    async def test_a_success(self, luma, submit, wait):
        luma_task_id = submit()
        task = await wait(luma_task_id)
        assert task.luma_task_id == luma_task_id
        assert task.status is LumaTaskStatus.SUCCESS
        assert len(task.result_urls) == 1
        assert len(looks(luma)) > 1

    async def test_a_callback_that_failed_is_a_success(self, submit, wait):
        task = await wait(submit(outcome="callback_failed"))
        assert task.status is LumaTaskStatus.CALLBACK_FAILED
        assert task.as_dict()["status"] == "SUCCESS"

    @pytest.mark.parametrize(
        "faults",
        [
            ["status:html,every=5"],
            ["status:refuse,code=429,style=status,every=2", "status:refuse,code=455,style=body,every=3"],
            ["status:refuse,code=429,style=body,times=3"],
            ["status:refuse,code=500,times=2"],
            ["status:cut,every=3"],
            ["status:cut_body,every=3"],
            ["status:empty,every=3", "status:truncated,every=2"],
            ["status:null_data,every=2"],
            ["status:wrong_data,every=2"],
            ["status:response_string"],
            ["status:refuse,code=404,times=2"],
        ],
        ids=lambda faults: " ".join(faults),
    )
    async def test_no_blip_fails_a_job(self, luma, submit, wait, short_pauses, faults):
        luma_task_id = submit(faults=faults, processing_seconds=0.3)
        task = await wait(luma_task_id)
        assert task.is_successful
        assert task.result_urls

    async def test_an_unknown_flag_is_warned_about_once(self, submit, wait, task_log):
        task = await wait(submit(faults=["status:unknown_flag,times=4"]))
        assert task.is_successful
        warnings = [entry for entry in task_log if entry["log_level"] == "warning"]
        assert len(warnings) == 1
        assert "UNDOCUMENTED_9" in warnings[0]["event"]

    @pytest.mark.parametrize(
        ("outcome", "code", "name"),
        [("create_failed", 500, "CREATE_TASK_FAILED"), ("generate_failed", 501, "GENERATE_FAILED")],
    )
    async def test_a_failure(self, submit, wait, outcome, code, name):
        luma_task_id = submit(outcome=outcome, error_message="100 % no people")
        with pytest.raises(LumaGenerationError, match="100 % no people") as caught:
            await wait(luma_task_id)
        assert (caught.value.code, caught.value.luma_task_id) == (code, luma_task_id)
        assert name in str(caught.value)

    async def test_a_success_without_a_video(self, luma, submit, wait, short_pauses):
        luma_task_id = submit(outcome="no_urls", processing_seconds=0)
        with pytest.raises(LumaGenerationError, match="no video") as caught:
            await wait(luma_task_id)
        assert luma_task_id in str(caught.value)
        assert len(looks(luma)) >= 2

    async def test_an_unknown_id(self, luma, wait, monkeypatch, short_pauses):
        monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0.3)
        with pytest.raises(LumaNotFoundError, match="nobody-knows") as caught:
            await wait("nobody-knows")
        assert "luma_conn_id" in str(caught.value)
        assert len(looks(luma)) > 1

    @pytest.mark.parametrize("code", [401, 422, 505])
    async def test_a_refusal_for_good(self, luma, submit, wait, code):
        luma_task_id = submit(faults=[f"status:refuse,code={code},skip=1"], processing_seconds=60)
        with pytest.raises((LumaAuthError, LumaValidationError, LumaFeatureDisabledError)) as caught:
            await wait(luma_task_id)
        assert caught.value.code == code
        assert caught.value.luma_task_id == luma_task_id

    async def test_a_time_out(self, submit, wait):
        luma_task_id = submit(processing_seconds=60)
        with pytest.raises(LumaTimeoutError, match="still running") as caught:
            await wait(luma_task_id, timeout=0.3)
        assert luma_task_id in str(caught.value)

    async def test_the_wait_ends_in_time_however_long_the_interval(self, submit, wait):
        luma_task_id = submit(processing_seconds=0.3)
        started = time.monotonic()
        assert (await wait(luma_task_id, timeout=1, poll_interval=3600)).is_successful
        assert time.monotonic() - started < 5

    async def test_a_connection_that_cannot_be_read_for_a_while(
        self, luma, submit, wait, monkeypatch, request, task_log
    ):
        luma_task_id = submit(processing_seconds=0.5)
        waits = asyncio.create_task(wait(luma_task_id))
        while not looks(luma):
            await asyncio.sleep(0.01)
        uri = LumaHook.get_connection("luma_default").get_uri()
        if request.node.callspec.params["wait"] == "triggerer":  # which keeps it until the key is refused
            luma.configure(faults=["status:refuse,code=401,style=status,times=1"])
        with monkeypatch.context() as away:
            away.delenv("AIRFLOW_CONN_LUMA_DEFAULT")
            while not any("the connection could not be read" in entry["event"] for entry in task_log):
                await asyncio.sleep(0.01)
        assert LumaHook.get_connection("luma_default").get_uri() == uri
        assert (await waits).is_successful

    async def test_a_key_that_is_replaced_meanwhile(self, luma, submit, wait, set_connection):
        luma_task_id = submit(processing_seconds=0.5)
        waits = asyncio.create_task(wait(luma_task_id))
        while not looks(luma):
            await asyncio.sleep(0.01)
        set_connection(luma.base_url, key="the-next-key")
        luma.configure(api_key="the-next-key")
        try:
            assert (await waits).is_successful
        finally:
            luma.reset()

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"luma_task_id": ""}, "luma_task_id"),
            ({"luma_task_id": "x", "timeout": 0}, "timeout"),
            ({"luma_task_id": "x", "poll_interval": -1}, "poll_interval"),
        ],
    )
    def test_arguments_are_checked(self, luma, luma_conn, arguments, names):
        with pytest.raises(LumaValidationError, match=names):
            LumaHook().wait_for_completion(**arguments)
        assert luma.calls == []


class TestAsyncHook:
    async def test_all_looks_share_one_connection(self, luma, luma_conn):
        async with LumaAsyncHook() as hook:
            for _ in range(5):
                with pytest.raises(LumaNotFoundError):
                    await hook.get_task("nobody-knows")
        assert luma.connections == 1

    async def test_it_can_be_used_again_after_closing(self, luma, luma_conn):
        hook = LumaAsyncHook()
        for _ in range(2):
            with pytest.raises(LumaNotFoundError):
                await hook.get_task("nobody-knows")
            await hook.close()
        await hook.close()
        assert luma.connections == 2

    async def test_a_wrong_key_that_stays_wrong_ends_the_wait(self, luma, set_connection):
        set_connection(luma.base_url, key="another-key")
        async with LumaAsyncHook() as hook:
            with pytest.raises(LumaAuthError):
                await hook.look(Watch("abc", poll_interval=1))
        assert len(looks(luma)) == 1

    async def test_a_wrong_key_that_was_replaced_is_not_asked_about_again(self, luma, set_connection):
        set_connection(luma.base_url, key="another-key")
        async with LumaAsyncHook() as hook:
            with pytest.raises(LumaAuthError):
                await hook._look("abc")
            set_connection(luma.base_url)
            assert isinstance(await hook.look(Watch("abc", poll_interval=1)), float)
        assert [call.code for call in looks(luma)] == [401, 401, 404]

    async def test_a_connection_that_is_not_there_is_waited_for(self, luma, set_connection):
        watch = Watch("abc", poll_interval=1)
        async with LumaAsyncHook() as hook:
            assert isinstance(await hook.look(watch), float)
            assert watch.is_settled
            set_connection(luma.base_url)
            assert isinstance(await hook.look(watch), float)
        assert len(looks(luma)) == 1

# SPDX-License-Identifier: Apache-2.0
"""Certificates and proxies: what a worker uses, which submits and pays, the triggerer uses, which waits."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import ssl
from pathlib import Path

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from airflow_provider_luma import async_client
from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.poll_state import PollState
from airflow_provider_luma.exceptions import LumaError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.input_video import InputVideo
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.transport import options
from tests.support.operator_fixtures import VALID_PARAMETERS, modify, new_context
from tests.support.tls import make_certificates, server_context
from tests.support.tunnel_proxy import tunnel_proxy

__all__ = ["modify"]

BUNDLES = pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])


@pytest.fixture(autouse=True)
def no_retries(monkeypatch):
    monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.01)


@pytest.fixture
def authority(certificates):
    return str(certificates / "authority.crt")


@pytest.fixture
def https(wires, certificates):
    """A server whose certificate no public authority has signed."""
    return wires.start(wires.running_job(), tls=server_context(certificates))


@pytest.fixture
def folder(certificates, tmp_path):
    """A folder with the authority's certificate under the name by which OpenSSL looks for it."""
    certificate = (certificates / "authority.crt").read_bytes()
    subject = x509.load_pem_x509_certificate(certificate).subject.public_bytes()
    digest = hashlib.sha1(subject[2:]).digest()[:4][::-1].hex()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{digest}.0").write_bytes(certificate)
    return str(tmp_path / "folder")


async def errors() -> tuple[LumaError | None, LumaError | None]:
    """Check a job's status once in a worker, and once in the triggerer; return the errors."""
    async with LumaAsyncHook() as hook:
        outcome = await hook.client.poll(PollState("abc", poll_interval=1))
    in_worker = await asyncio.to_thread(LumaHook().poll, PollState("abc", poll_interval=1))
    return in_worker.error, outcome.error


async def assert_both_trust() -> None:
    assert await errors() == (None, None)


async def assert_neither_trusts(match: str = "certificate") -> None:
    for error in await errors():
        assert isinstance(error, LumaUnavailableError)
        assert match in error.msg.lower()


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
class TestAuthorities:
    @BUNDLES
    async def test_bundle_of_the_environment_is_used(self, https, set_connection, monkeypatch, authority, variable):
        monkeypatch.setenv(variable, authority)
        set_connection(https.base_url)
        await assert_both_trust()
        assert len(https.received) == 2

    @pytest.mark.parametrize("where", ["verify", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    async def test_bundle_may_be_a_folder(self, https, set_connection, monkeypatch, folder, where):
        if where == "verify":
            set_connection(https.base_url, verify=folder)
        else:
            monkeypatch.setenv(where, folder)
            set_connection(https.base_url)
        await assert_both_trust()

    @pytest.mark.parametrize(
        ("requests_bundle", "curl_bundle", "is_trusted"),
        [("own", "public", True), ("public", "own", False), ("", "own", True)],
    )
    async def test_requests_ca_bundle_counts_before_curl_ca_bundle(
        self, https, set_connection, monkeypatch, authority, requests_bundle, curl_bundle, is_trusted
    ):
        files = {"own": authority, "public": requests.certs.where(), "": ""}
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", files[requests_bundle])
        monkeypatch.setenv("CURL_CA_BUNDLE", files[curl_bundle])
        set_connection(https.base_url)
        await (assert_both_trust() if is_trusted else assert_neither_trusts())

    @pytest.mark.parametrize("verify", ["bundle", False])
    async def test_verify_counts_before_the_environment(self, https, set_connection, monkeypatch, authority, verify):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
        set_connection(https.base_url, verify=authority if verify == "bundle" else verify)
        await assert_both_trust()

    @pytest.mark.parametrize("verify", ["public", True])
    async def test_environment_changes_nothing_where_it_does_not_count(
        self, https, set_connection, monkeypatch, authority, verify
    ):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
        if verify is True:
            set_connection(https.base_url, verify=True, trust_env=False)
        else:
            set_connection(https.base_url, verify=requests.certs.where())
        await assert_neither_trusts()
        assert https.received == []

    @BUNDLES
    async def test_bundle_that_cannot_be_read_is_named(self, https, set_connection, monkeypatch, tmp_path, variable):
        for bundle in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
            monkeypatch.setenv(variable, str(bundle))
            set_connection(https.base_url)
            await assert_neither_trusts(f"{variable} in the environment cannot be read on this machine".lower())
            await assert_neither_trusts(str(bundle))
            (tmp_path / "empty.pem").touch()

    async def test_bundle_that_cannot_be_read_is_not_missed_without_tls(
        self, wires, set_connection, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        set_connection(wires.start(wires.running_job()).base_url)
        await assert_both_trust()

    @pytest.mark.parametrize(
        "made_by_urllib3",
        [object, ssl.create_default_context, ssl._create_unverified_context],
        ids=["pyOpenSSL's", "urllib3 2", "urllib3 1.26"],
    )
    async def test_server_is_checked_whatever_urllib3_makes(
        self, https, set_connection, monkeypatch, authority, made_by_urllib3
    ):
        """Libraries that share the triggerer's process may have changed urllib3."""
        options._load.cache_clear()
        monkeypatch.setattr(options, "create_urllib3_context", lambda **_: made_by_urllib3())
        set_connection(https.base_url, verify=authority)
        await assert_both_trust()
        context = options.triggerer_certificates(LumaHook().get_luma_connection())
        assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
        options._load.cache_clear()

    def test_nothing_is_submitted_over_a_bundle_that_cannot_be_read(self, https, set_connection, monkeypatch):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
        set_connection(https.base_url)
        operator = LumaModifyOperator(task_id="modify", **VALID_PARAMETERS)
        with pytest.raises(AirflowFailException, match=r"REQUESTS_CA_BUNDLE.*/nowhere/ca\.pem"):
            operator.execute(new_context())

    async def test_system_certificates_count_in_the_triggerer_beside_those_of_requests(
        self, https, set_connection, monkeypatch, authority
    ):
        options._load.cache_clear()
        monkeypatch.setenv("SSL_CERT_FILE", authority)
        set_connection(https.base_url)
        try:
            in_worker, in_triggerer = await errors()
        finally:
            options._load.cache_clear()
        assert "certificate" in in_worker.msg.lower()
        assert in_triggerer is None

    async def test_same_files_are_read_once(self, https, set_connection, monkeypatch, authority):
        options._load.cache_clear()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
        set_connection(https.base_url)
        for _ in range(3):
            await assert_both_trust()
        assert options._load.cache_info().misses == 1


class TestReplacedFiles:
    """A triggerer lives for weeks, client certificates of a service mesh for a day."""

    @pytest.fixture
    def mine(self, certificates, tmp_path) -> Path:
        return Path(shutil.copytree(certificates, tmp_path / "mine"))

    @pytest.mark.parametrize("name", ["authority.crt", "client.pem"])
    async def test_triggerer_takes_up_a_replaced_file_while_it_waits(
        self, wires, set_connection, monkeypatch, mine, tmp_path, name
    ):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        (tmp_path / "others").mkdir()
        others = make_certificates(tmp_path / "others")
        wire = wires.start(wires.running_job(), tls=server_context(mine, requires_client_certificate=True))
        right = (mine / name).read_bytes()
        (mine / name).write_bytes((others / name).read_bytes())
        set_connection(wire.base_url, verify=str(mine / "authority.crt"), cert=str(mine / "client.pem"))
        state = PollState("abc", poll_interval=1)
        async with LumaAsyncHook() as hook:
            assert (await hook.client.poll(state)).error is not None
            (tmp_path / "new").write_bytes(right)
            (tmp_path / "new").replace(mine / name)
            await hook.client._read_again()
            assert (await hook.client.poll(state)).error is None

    async def test_file_that_is_missing_for_a_moment_ends_neither_wait(self, https, set_connection, monkeypatch, mine):
        monkeypatch.setattr(async_client, "CONNECTION_TTL", 0.0)
        bundle = mine / "authority.crt"
        set_connection(https.base_url, verify=str(bundle))
        state, whole = PollState("abc", poll_interval=1), bundle.read_bytes()
        async with LumaAsyncHook() as hook:
            for is_there in (True, False, True):
                bundle.unlink(missing_ok=True)
                if is_there:
                    bundle.write_bytes(whole)
                in_triggerer = await hook.client.poll(state)
                in_worker = await asyncio.to_thread(LumaHook().poll, PollState("abc", poll_interval=1))
                assert in_triggerer.error is None  # it keeps what it has read
                assert (in_worker.error is None) == is_there

    def test_password_of_an_encrypted_client_key_is_not_asked_for(self, https, set_connection, certificates, mine):
        key = serialization.load_pem_private_key((mine / "client.key").read_bytes(), None)
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (mine / "client.key").write_bytes(key.private_bytes(*kinds, serialization.BestAvailableEncryption(b"secret")))
        set_connection(https.base_url, cert=[str(mine / "client.crt"), str(mine / "client.key")])
        with pytest.raises(LumaValidationError, match=r"client\.key"):
            LumaHook().get_credits()


class TestEveryCall:
    """Whatever a worker sends goes over the same certificates."""

    @pytest.fixture(autouse=True)
    def connection(self, set_connection, monkeypatch, wires, certificates, authority):
        tls = server_context(certificates)
        monkeypatch.setenv("CURL_CA_BUNDLE", authority)
        answer = wires.envelope(200, {"downloadUrl": "https://e.com/v.mp4", "fileSize": 3})
        self.wire = wires.start(answer, tls=tls)
        set_connection(self.wire.base_url)

    def test_download(self, tmp_path):
        LumaHook().download(f"{self.wire.base_url}/clip.txt", str(tmp_path))
        assert len(self.wire.received) == 1

    def test_upload(self, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(b"mp4")
        LumaHook().upload(str(tmp_path / "clip.mp4"))
        assert self.wire.received[0].method == "POST"

    def test_check_of_a_public_video(self, wires):
        self.wire.answers[:] = [wires.answer(404)]
        client = LumaHook().get_client()
        video = InputVideo(f"{self.wire.base_url}/clip.mp4", True, client.log, lambda: None, lambda _url: None)
        with pytest.raises(LumaValidationError, match="404"):
            video.check_public(client)

    def test_connection_test(self, wires, set_connection):
        self.wire.answers[:] = [wires.envelope(200, 1000)]
        set_connection(self.wire.base_url, callback_base_url=self.wire.base_url)
        _, message = LumaHook().test_connection()
        assert "1000 credits" in message
        assert "is not from the callback receiver" in message
        assert len(self.wire.received) == 3


class TestProxies:
    @pytest.mark.parametrize("form", ["text", "all", "scheme"])
    async def test_proxy_of_the_connection_counts_before_the_environment(
        self, wires, set_connection, monkeypatch, free_port, form
    ):
        proxy = wires.start(wires.running_job())
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
        url = proxy.base_url
        set_connection(
            "http://luma.example.com:80", proxies={"text": url, "all": {"all": url}, "scheme": {"http": url}}[form]
        )
        await assert_both_trust()
        assert len(proxy.received) == 2

    @pytest.mark.parametrize("where", ["environment", "extra"])
    async def test_no_proxy_counts(self, wires, set_connection, monkeypatch, free_port, where):
        wire = wires.start(wires.running_job())
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port}")
        if where == "environment":
            monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        set_connection(wire.base_url, **({"proxies": {"no_proxy": "127.0.0.1"}} if where == "extra" else {}))
        await assert_both_trust()

    @pytest.mark.parametrize("is_https", [True, False], ids=["https proxy", "http proxy"])
    async def test_tunnel_through_a_proxy_checks_certificates_alike(
        self, https, set_connection, monkeypatch, certificates, authority, is_https
    ):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
        with tunnel_proxy(server_context(certificates) if is_https else None) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"{'https' if is_https else 'http'}://127.0.0.1:{proxy.port}")
            set_connection(https.base_url)
            await assert_both_trust()
            assert proxy.targets == [f"127.0.0.1:{https.port}"] * 2
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
            await assert_neither_trusts()
        assert len(https.received) == 2


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
class TestSocksProxies:
    """requests can use them, with PySocks; aiohttp cannot."""

    @pytest.fixture(autouse=True)
    def proxy(self, monkeypatch, scheme, luma_conn):
        with tunnel_proxy() as proxy:
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:hunter2@127.0.0.1:{proxy.port}")
            yield proxy

    def test_nothing_is_paid_for_a_job_that_would_be_waited_for_in_the_triggerer(self, modify, luma, scheme):
        with pytest.raises(AirflowFailException, match=f"{scheme} proxy.*triggerer.*deferrable=False") as caught:
            modify().execute(new_context())
        assert "hunter2" not in str(caught.value)
        assert luma.jobs == []

    @pytest.mark.parametrize("parameters", [{"deferrable": False}, {"wait_for_completion": False}], ids=str)
    def test_job_that_is_not_waited_for_in_the_triggerer_is_submitted(self, modify, luma, proxy, parameters):
        modify(**parameters).execute(new_context())
        assert len(luma.jobs) == 1
        assert len(proxy.targets) >= 1

    def test_sensor_says_so_before_it_is_deferred(self, luma, scheme):
        with pytest.raises(AirflowFailException, match=f"{scheme} proxy"):
            LumaTaskSensor(task_id="wait", luma_task_id="abc").execute(new_context())

    def test_address_that_needs_no_proxy_is_not_refused(self, modify, luma, set_connection, proxy):
        set_connection(luma.base_url, proxies={"no_proxy": "127.0.0.1"})
        with pytest.raises(TaskDeferred):
            modify().execute(new_context())
        assert len(luma.jobs) == 1
        assert proxy.targets == []

    async def test_triggerer_names_the_remedy_and_waits_on(self, scheme):
        async with LumaAsyncHook() as hook:
            outcome = await hook.client.poll(PollState("abc", poll_interval=1))
        assert f"{scheme} proxy" in outcome.error.msg
        assert "hunter2" not in outcome.error.msg

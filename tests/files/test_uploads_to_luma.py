# SPDX-License-Identifier: Apache-2.0
"""Files for Luma's own API: put where the service says, without the key, and used once the service has checked them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.job import Response
from airflow_provider_luma.exceptions import LumaError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files.put import put
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.services import luma as service
from airflow_provider_luma.services.base import SendFile
from airflow_provider_luma.simulator import media
from tests.support.memory import measure
from tests.support.task_logs import messages
from tests.support.upload_server import DiscardingService

CONTENT = random.Random(8).randbytes(2_500_000)
FILE = "3f1c7a90-8d2b-4b7e-a5c1-6f0e9d8b7a65"


@pytest.fixture
def hook(luma, set_connection, monkeypatch) -> LumaHook:
    """A hook for Luma's own API, which looks at once whether a file is ready, and checks nothing of a video."""
    set_connection(luma.base_url, service="luma", requests_per_second=1000)
    luma.configure(ingest_seconds=0)
    monkeypatch.setattr(service, "FIRST_CHECK_DELAY", 0.01)
    return LumaHook()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "a clip.mp4"
    path.write_bytes(media.sample("sample.mp4"))
    return path


def made(luma) -> list[str]:
    """Return the calls of an upload, in order."""
    return [call.on for call in luma.calls if call.on.startswith(("file_", "upload"))]


def test_file_is_whole_and_named_by_its_id(luma, hook, file):
    uploaded = hook.upload(str(file))
    [stored] = luma.uploads
    assert uploaded.url == f"luma-file:{stored.key}"
    assert (uploaded.size, stored.sha256) == (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    assert made(luma) == ["file_create", "upload", "file_complete", "file_status"]


def test_key_goes_to_the_service_alone(luma, hook, file):
    hook.upload(str(file))
    authorized = {call.on: call.carried_authorization for call in luma.calls if call.on in made(luma)}
    assert authorized == {"file_create": True, "upload": False, "file_complete": True, "file_status": True}


def test_uploaded_file_can_be_modified(luma, hook, file):
    url = hook.upload(str(file)).url
    luma_task_id = hook.modify_video("make it snow", url)
    assert hook.wait_for_completion(luma_task_id, poll_interval=0.01).is_successful
    assert luma.jobs[0].request["source"] == {"file_id": url.removeprefix("luma-file:")}


def test_file_that_stays_pending_is_waited_for(luma, hook, file, task_log):
    luma.configure(ingest_seconds=0.3)
    hook.upload(str(file))
    assert made(luma).count("file_status") > 2
    assert len(messages(task_log, "Waiting until Luma has checked", "a clip.mp4")) == 1


def test_wait_for_a_file_is_bounded_and_uploads_nothing_again(luma, hook, file, monkeypatch):
    monkeypatch.setattr(service, "CHECK_TIMEOUT", 0.2)
    luma.configure(ingest_seconds=3600)
    with pytest.raises(LumaError, match="not ready after 0.2 s: its state is 'pending'"):
        hook.upload(str(file))
    assert made(luma).count("file_create") == 1


def test_task_that_is_killed_while_the_file_is_checked_ends(luma, hook, file, monkeypatch):
    def fail_if_killed() -> None:
        if "file_status" in made(luma):
            raise AirflowException("killed")

    luma.configure(ingest_seconds=3600)
    with pytest.raises(AirflowException, match="killed"):
        hook.upload(str(file), fail_if_killed=fail_if_killed)


def test_file_that_luma_refuses_is_a_permanent_error(luma, hook, file):
    luma.configure(ingest_failure="The input was refused by moderation.")
    with pytest.raises(LumaValidationError, match="The input was refused by moderation"):
        hook.upload(str(file))
    assert made(luma).count("file_create") == 1


@pytest.mark.parametrize(
    "fault",
    [
        "file_create:refuse,code=500",
        "file_create:cut",
        "upload:refuse,code=403",
        "upload:refuse,code=500",
        "upload:cut",
        "upload:cut,after_bytes=1000",
        "upload:cut,after_accept=true",
        "file_complete:cut,after_accept=true",
        "file_complete:refuse,code=503",
    ],
)
def test_passing_error_starts_the_upload_anew(luma, hook, file, fault, short_backoff):
    luma.configure(faults=[f"{fault},times=1"])
    uploaded = hook.upload(str(file))
    assert uploaded.url == f"luma-file:{luma.uploads[-1].key}"
    assert made(luma).count("file_create") == 2


@pytest.mark.parametrize("fault", ["refuse,code=500", "cut", "html", "refuse,code=404"])
def test_check_that_fails_does_not_start_the_upload_anew(luma, hook, file, fault):
    luma.configure(faults=[f"file_status:{fault},times=2"])
    hook.upload(str(file))
    assert made(luma).count("file_create") == 1


def test_error_that_stays_ends_the_upload_after_five_attempts(luma, hook, file, short_backoff):
    luma.configure(faults=["upload:refuse,code=403"])
    with pytest.raises(LumaUnavailableError, match="did not accept the file: HTTP 403"):
        hook.upload(str(file))
    assert made(luma).count("upload") == 5


def test_file_that_is_empty_is_put_with_its_length(wires, set_connection, tmp_path):
    storage = wires.start(wires.answer(200))
    announce(wires, set_connection, f"{storage.base_url}/f")
    (tmp_path / "empty.mp4").touch()
    LumaHook().upload(str(tmp_path / "empty.mp4"))
    assert storage.received[0].headers["Content-Length"] == "0"


def announce(wires, set_connection, url: str, **headers: str) -> None:
    """Start a service that wants a file at an address, and accepts what is put there."""
    upload = {"method": "PUT", "url": url, "headers": headers}
    answers = [{"id": FILE, "state": "pending", "upload": upload}, {}, {"id": FILE, "state": "ready"}]
    wire = wires.start(*(wires.answer(200, json.dumps(answer).encode()) for answer in answers))
    set_connection(wire.base_url, service="luma")


def test_put_has_the_bytes_and_the_headers_that_the_service_names(wires, set_connection, file, api_key, monkeypatch):
    netrc = file.with_name("netrc")
    netrc.write_text("machine 127.0.0.1 login someone password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    storage = wires.start(wires.answer(200))
    headers = {"Content-Type": "video/mp4", "x-amz-meta-a": "1", "Authorization": f"Bearer {api_key}", "Host": "other"}
    announce(wires, set_connection, f"{storage.base_url}/f?X-Amz-Signature=s%2F1", **headers)
    LumaHook().upload(str(file))
    [received] = storage.received
    assert (received.method, received.path) == ("PUT", "/f?X-Amz-Signature=s%2F1")
    assert received.body == file.read_bytes()
    sent = {name.lower(): value for name, value in received.headers.items()}
    assert sent.pop("user-agent").startswith("airflow-provider-luma/")
    assert sent == {
        "content-type": "video/mp4",
        "x-amz-meta-a": "1",
        "content-length": str(file.stat().st_size),
        "host": urlsplit(storage.base_url).netloc,
        "accept-encoding": "identity",
    }


def test_redirect_of_a_put_is_not_followed(wires, set_connection, file, short_backoff):
    target = wires.start(wires.answer(200))
    storage = wires.start(wires.answer(307, headers={"Location": f"{target.base_url}/f"}))
    announce(wires, set_connection, f"{storage.base_url}/f")
    with pytest.raises(LumaUnavailableError):
        LumaHook().upload(str(file))
    assert (len(storage.received), target.received) == (1, [])


class Body:
    """Some bytes, as a stream."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[bytes]:
        yield b"some bytes"


def put_to(url: str, base_url: str = "https://agents.lumalabs.ai") -> Response:
    """Put some bytes at an address, for a service at another."""
    return put(LumaConnection(base_url, "a-key-of-the-service", timeout=5), SendFile(url, {}), Body())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "localhost", "2130706433", "metadata.internal"]
)
def test_service_on_the_internet_cannot_send_a_file_into_a_private_network(wires, host):
    wire = wires.start()
    with pytest.raises(LumaValidationError, match="in a private network: nothing was sent there") as caught:
        put_to(f"http://{host}:{wire.port}/f?X-Amz-Signature=0123456789abcdef")
    assert wire.received == []
    assert "0123456789abcdef" not in str(caught.value)


def test_neither_can_it_by_a_name_that_resolves_there(wires, monkeypatch):
    wire = wires.start()
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", wire.port))],
    )
    with pytest.raises(LumaValidationError, match=r"files\.example\.com \(127\.0\.0\.1\), in a private network"):
        put_to("http://files.example.com/f")
    assert wire.received == []


@pytest.mark.parametrize("url", ["http://[::1/f", "http://", "http://a:99999999/f", "http://.../f", "https://x\\y/"])
def test_invalid_address_is_an_error_that_does_not_quote_it(url):
    with pytest.raises(LumaError) as caught:
        put_to(f"{url}?sig=0123456789abcdef", base_url="http://127.0.0.1:9")
    assert "0123456789abcdef" not in str(caught.value)


def test_response_without_end_is_not_read_to_its_end(wires):
    head, chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"400\r\n" + b"x" * 1024 + b"\r\n"
    wire = wires.start(wires.answer(raw=head, drip=chunk))
    assert len(put_to(wire.base_url, base_url="http://127.0.0.1:9").body) <= 4096


def test_signature_is_in_no_log_at_any_level_and_in_no_error(luma, hook, file, short_backoff):
    stream, root = io.StringIO(), logging.getLogger()
    handler, before = logging.StreamHandler(stream), root.level
    # The simulator logs in this process, too.
    handler.addFilter(lambda record: not record.name.startswith(("httpcore", "httpx", "uvicorn")))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    luma.configure(faults=["upload:cut,times=1", "upload:refuse,code=403,times=4"])
    try:
        with pytest.raises(LumaUnavailableError) as caught:
            hook.upload(str(file))
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert "/v1/files" in stream.getvalue(), "of the other calls"
    for text in (stream.getvalue(), str(caught.value), repr(caught.value.__context__)):
        assert "X-Amz-" not in text


@pytest.fixture
def discarding_service(set_connection) -> Iterator[DiscardingService]:
    server = DiscardingService()
    set_connection(server.url, service="luma")
    yield server
    server.close()


UPLOAD = """
from airflow_provider_luma.hooks.luma import LumaHook
hook = LumaHook()
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    # Clients, connections and import on first use belong to the baseline.
    hook.upload(small)
    measured(lambda: hook.upload(large).size)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [48_000_000, 3_000_000_000])
def test_upload_takes_little_more_memory_than_that_of_a_small_file(discarding_service, tmp_path, size):
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(CONTENT)
    with large.open("wb") as file:
        file.truncate(size)
    [measured] = measure(UPLOAD, str(small), str(large))
    assert measured["size"] == size
    assert discarding_service.sizes == [len(CONTENT), size]
    assert measured["growth"] < 24e6

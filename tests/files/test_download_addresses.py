# SPDX-License-Identifier: Apache-2.0
"""Which addresses a download follows, and that no credentials leak: to other hosts, into logs, or into errors."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_luma.core.addresses import is_private_host
from airflow_provider_luma.exceptions import LumaError, LumaUnavailableError, LumaValidationError
from airflow_provider_luma.files import source
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.downloads import new_download
from tests.support.file_server import CUT, FILM, FileServer, Reply
from tests.support.storages import Disk

PRIVATE = ["127.0.0.1", "localhost", "10.0.0.7", "169.254.169.254", "[::1]", "0x7f.1", "files.internal"]


@pytest.fixture
def public_hook(server: FileServer, set_connection: Callable[..., None]) -> LumaHook:
    """A hook whose service is on the Internet, for which the server stands in as the proxy."""
    set_connection("https://api.kie.ai:443", proxies={"http": server.url("")}, trust_env=False, timeout=60)
    return LumaHook()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example.com/film.mp4",
        "file:///etc/passwd",
        "data:video/mp4;base64,AAAA",
        "http:///film.mp4",
        "https://",
        "films/film.mp4",
        "//files.example.com/film.mp4",
        "",
        None,
        "http://[::1/film.mp4",
        "http://files.example.com:99999/film.mp4",
        "http://two words.example.com/film.mp4",
    ],
)
def test_url_that_is_not_http_is_refused(url: Any, disk: Disk, hook: LumaHook) -> None:
    with pytest.raises(LumaValidationError):
        hook.download(url, disk.destination)
    assert disk.files() == {}


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/film.mp4", "data:text/plain,hello", "http://[::1/film.mp4"]
)
def test_redirect_to_something_other_than_http_is_refused(
    location: str, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    with pytest.raises(LumaValidationError):
        hook.download(server.redirect("/film.mp4", location), disk.destination)
    assert len(server.requests) == 1
    assert disk.files() == {}


@pytest.mark.parametrize("host", PRIVATE)
def test_private_address_named_by_a_public_service_is_refused_also_as_a_redirect(
    host: str, disk: Disk, server: FileServer, public_hook: LumaHook
) -> None:
    private = server.serve(f"http://{host}/film.mp4", Reply(FILM)).removeprefix(server.url(""))
    server.redirect("http://files.example.com/film.mp4", private)
    with pytest.raises(LumaValidationError, match="private"):
        public_hook.download("http://files.example.com/film.mp4", disk.destination)
    with pytest.raises(LumaValidationError, match="private"):
        public_hook.download(private, disk.destination)
    assert [request.path for request in server.requests] == ["http://files.example.com/film.mp4"]
    assert disk.files() == {}


def test_public_file_is_downloaded_over_public_redirects(disk: Disk, server: FileServer, public_hook: LumaHook) -> None:
    server.redirect("http://files.example.com/film.mp4", "http://cdn.example.com/x")
    server.redirect("http://cdn.example.com/x", "/y")
    server.serve("http://cdn.example.com/y", Reply(FILM))
    public_hook.download("http://files.example.com/film.mp4", disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("trick", ["http://127.0.0.1:{port}\\@files.example.com/film.mp4"])
def test_url_that_two_parsers_read_differently_leads_to_no_private_address(
    trick: str, disk: Disk, server: FileServer, another_server: FileServer
) -> None:
    url = trick.format(port=another_server.port)
    download, _ = new_download(service_is_public=True)
    with pytest.raises(LumaError):
        download.run(url, disk.destination, overwrite=False)
    assert another_server.requests == []
    assert disk.files() == {}


def test_more_than_five_redirects_are_an_error(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    server.serve("/6", Reply(FILM))
    for number in range(6):
        server.redirect(f"/{number}", f"/{number + 1}")
    with pytest.raises(LumaUnavailableError, match="redirects"):
        hook.download(server.url("/0"), disk.destination)
    assert "/6" not in [request.path for request in server.requests]
    hook.download(server.url("/1"), f"{disk.destination}/mine.mp4")
    assert disk.files() == {"mine.mp4": FILM}


def test_redirect_with_non_ascii_characters_is_followed(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    server.serve("/vid%C3%A9o", Reply(FILM))
    # On the wire a Location may be UTF-8; http.server writes these bytes as they are.
    url = server.redirect("/film.mp4", "/vidéo".encode().decode("latin-1"))
    hook.download(url, disk.destination)
    assert disk.files() == {"film.mp4": FILM}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_host_carries_no_credentials(
    status: int, disk: Disk, server: FileServer, another_server: FileServer, hook: LumaHook
) -> None:
    target = another_server.serve("/real.mp4", Reply(FILM, stop_after=CUT), Reply(FILM))
    url = server.redirect("/film.mp4", target, status)
    hook.download(url.replace("http://", "http://user:hunter2@"), disk.destination)
    assert disk.files() == {"film.mp4": FILM}
    assert len(another_server.requests) == 2
    for request in another_server.requests:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers


def test_no_request_for_a_file_carries_the_api_key(disk: Disk, server: FileServer, hook: LumaHook) -> None:
    key = hook.get_luma_connection().api_key
    hook.download(server.serve("/film.mp4", Reply(FILM, stop_after=9), Reply(FILM)), disk.destination)
    assert len(server.requests) == 2
    assert not any(key in value for request in server.requests for value in request.headers.values())


@pytest.mark.parametrize("failure", ["refused", "redirected", "missing"])
def test_query_of_a_url_is_neither_logged_nor_part_of_an_error(
    failure: str, disk: Disk, server: FileServer, free_port: int
) -> None:
    download, messages = new_download()
    closed = f"http://127.0.0.1:{free_port}/film.mp4?signature=s3cr3t"
    url = {
        "refused": closed,
        "redirected": server.redirect("/film.mp4", closed),
        "missing": server.url("/nothing.mp4?signature=s3cr3t"),
    }[failure]
    with pytest.raises(LumaError) as raised:
        download.run(url, disk.destination, overwrite=False)
    assert "s3cr3t" not in str(raised.value)
    assert "s3cr3t" not in "".join(messages)


@pytest.mark.parametrize(
    "address",
    ["http://files.example.com:99999/film.mp4?s3cr3t", "http://user:s3cr3t@[::1/film.mp4", "http://[::1?s3cr3t"],
)
@pytest.mark.parametrize("as_redirect", [False, True])
def test_no_part_of_an_invalid_address_is_in_the_traceback(
    address: str, as_redirect: bool, disk: Disk, server: FileServer, hook: LumaHook
) -> None:
    url = server.redirect("/film.mp4", address) if as_redirect else address
    with pytest.raises(LumaError) as raised:
        hook.download(url, disk.destination)
    assert "s3cr3t" not in "".join(traceback.format_exception(raised.value))


def test_password_in_a_url_is_neither_logged_nor_part_of_an_error(disk: Disk, server: FileServer) -> None:
    download, messages = new_download()
    url = server.serve("/film.mp4", Reply(stop_after=-1)).replace("http://", "http://user:hunter2@")
    with pytest.raises(LumaError) as raised:
        download.run(url, disk.destination, overwrite=False)
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in "".join(messages)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives names of example.com addresses of this machine."""

    def _resolve(**addresses: str) -> None:
        known = {f"{name}.example.com": address for name, address in addresses.items()}
        lookup = socket.getaddrinfo
        monkeypatch.setattr("socket.getaddrinfo", lambda host, *args: lookup(known.get(host, host), *args))

    return _resolve


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_public_name_that_resolves_to_a_private_address_is_refused_before_anything_is_sent(
    scheme: str, disk: Disk, resolve: Callable[..., None]
) -> None:
    resolve(files="127.0.0.1")
    download, messages = new_download(service_is_public=True)
    with socket.create_server(("127.0.0.1", 0)) as internal:
        url = f"{scheme}://user:hunter2@files.example.com:{internal.getsockname()[1]}/film.mp4?signature=s3cr3t"
        with pytest.raises(LumaValidationError, match=r"urls: .*files\.example\.com.*127\.0\.0\.1") as raised:
            download.run(url, disk.destination)
        with internal.accept()[0] as connection:
            assert connection.recv(1) == b""
    assert "hunter2" not in str(raised.value) + "".join(messages)
    assert "s3cr3t" not in str(raised.value) + "".join(messages)
    assert disk.files() == {}


def test_private_address_behind_a_name_is_refused_at_each_step_of_a_redirect(
    disk: Disk, resolve: Callable[..., None], server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no public address here, so one of this machine counts as public.
    monkeypatch.setattr(source, "is_private_host", lambda host: host != "127.0.0.1" and is_private_host(host))
    resolve(public="127.0.0.1", internal="127.0.0.2")
    download, _ = new_download(service_is_public=True)
    internal = FileServer("127.0.0.2")
    try:
        internal.serve("/film.mp4", Reply(FILM))
        server.redirect("/1.mp4", f"http://internal.example.com:{internal.port}/film.mp4")
        server.redirect("/2.mp4", f"http://public.example.com:{server.port}/film.mp4")
        server.serve("/film.mp4", Reply(FILM))
        with pytest.raises(LumaValidationError, match=r"internal\.example\.com.*127\.0\.0\.2"):
            download.run(f"http://public.example.com:{server.port}/1.mp4", disk.destination)
    finally:
        internal.close()
    assert internal.requests == []
    download.run(f"http://public.example.com:{server.port}/2.mp4", disk.destination)
    assert disk.files() == {"2.mp4": FILM}


def test_name_that_resolves_to_a_private_address_is_downloaded_from_for_a_service_on_this_network(
    disk: Disk, resolve: Callable[..., None], server: FileServer, hook: LumaHook
) -> None:
    resolve(files="127.0.0.1")
    server.serve("/film.mp4", Reply(FILM))
    hook.download(f"http://files.example.com:{server.port}/film.mp4", disk.destination)
    assert disk.files() == {"film.mp4": FILM}

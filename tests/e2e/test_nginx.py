# SPDX-License-Identifier: Apache-2.0
"""The nginx configuration of the documentation, before a real API server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import callback_url, token_of
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.simulator.callbacks import signature
from harness.local_airflow import LocalAirflow, free_ports
from tests.e2e.conftest import API_KEY, REPOSITORY, WEBHOOK_SECRET

pytestmark = pytest.mark.xdist_group("pages")

LOCATION = REPOSITORY / "docs" / "examples" / "nginx.conf"

CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 404; }}
        {location}
    }}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def nginx(airflow: LocalAirflow, folder: Path) -> Iterator[str]:
    """Return the address of an nginx that passes callbacks on to Airflow."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "nginx is needed here; it is not on this machine"
        pytest.skip("needs nginx")
    [port] = free_ports(1)
    location = LOCATION.read_text()
    assert "http://airflow-api-server:8080" in location
    location = location.replace("http://airflow-api-server:8080", airflow.url)
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, location=location))
    process = subprocess.Popen([program, "-c", configuration, "-e", folder / "error.log"])
    try:
        airflow.wait_until(lambda: listens(port), "nginx to listen", every=0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_genuine_callback_passes_nginx_and_nothing_else_does(nginx: str, folder: Path) -> None:
    connection = LumaConnection("http://127.0.0.1:9", API_KEY, callback_base_url=nginx)
    url = callback_url(connection, "luma_default", new_reference())
    assert url is not None
    at = str(int(time.time()))
    signed = {"X-Webhook-Timestamp": at, "X-Webhook-Signature": signature("some-job", at, WEBHOOK_SECRET)}

    def status(method: str, url: str, body: bytes = b'{"data": {"taskId": "some-job"}}') -> int:
        return requests.request(method, url, data=body, headers=signed, timeout=30).status_code

    assert status("POST", url) == 200
    assert status("POST", url.replace(token_of(url), "0" * 64)) == 403
    assert status("GET", url) == 403
    assert status("POST", url, b"x" * 300_000) == 413
    for path in ("/", "/luma/result", "/luma/callback/", "/luma/callback/../result", "/api/v2/version"):
        assert status("POST", f"{nginx}{path}") == 404, path
    assert token_of(url) not in (folder / "access.log").read_text()

# SPDX-License-Identifier: Apache-2.0
"""What Airflow's own tests of a connection, in the UI's API and on the command line, say of callbacks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from airflow_provider_luma.simulator import Simulator
from harness.local_airflow import LocalAirflow
from tests.e2e.conftest import API_KEY, WEBHOOK_SECRET
from tests.support.reverse_proxy import reverse_proxy

pytestmark = pytest.mark.xdist_group("pages")


def connection(luma: Simulator, address: str, key: str = API_KEY) -> dict[str, str]:
    """Return a connection to a Luma whose account has this API key."""
    luma.configure(api_key=key)
    extra = {"callback_base_url": address, "webhook_secret": WEBHOOK_SECRET}
    return {"conn_type": "luma", "host": luma.base_url, "password": key, "extra": json.dumps(extra)}


def result_in_ui(airflow: LocalAirflow, connection: dict[str, str], conn_id: str = "luma_default") -> tuple[bool, str]:
    """Test a connection as the UI's form does."""
    answer = airflow.call("POST", "/connections/test", json={"connection_id": conn_id, **connection})
    assert API_KEY not in answer["message"]
    return answer["status"], answer["message"]


def result_on_command_line(airflow: LocalAirflow, connection: dict[str, str]) -> tuple[bool, str]:
    """Test a connection that the command line finds in its environment."""
    done = subprocess.run(
        ["airflow", "connections", "test", "luma_default"],
        env={**airflow.environment, "AIRFLOW_CONN_LUMA_DEFAULT": json.dumps(connection), "COLUMNS": "1000"},
        cwd=airflow.home,
        capture_output=True,
        text=True,
        check=False,
    )
    output = " ".join((done.stdout + done.stderr).split())  # it is wrapped to the width of a terminal
    assert API_KEY not in output
    # Airflow 3.1 and 3.2 exit with 0 in either case.
    return "Connection success!" in output, output


@pytest.fixture
def luma(luma: Simulator) -> Iterator[Simulator]:
    """The Luma of the example DAGs, which gets its own API key back."""
    yield luma
    luma.configure(api_key=API_KEY)


@pytest.mark.parametrize("key", [API_KEY, "the-key-of-a-new-account"], ids=["saved", "not saved yet"])
def test_ui_finds_that_callbacks_arrive_through_a_prefix(airflow: LocalAirflow, luma: Simulator, key: str) -> None:
    with reverse_proxy(airflow.url, prefix="/airflow") as address:
        is_ok, message = result_in_ui(airflow, connection(luma, address, key))
    assert is_ok, message
    assert message.endswith(f"credits left. Callbacks from this machine reach {address}/luma/callback")


def test_ui_says_that_a_proxy_must_pass_on_the_query(airflow: LocalAirflow, luma: Simulator) -> None:
    with reverse_proxy(airflow.url, lambda request: setattr(request, "query", "")) as address:
        is_ok, message = result_in_ui(airflow, connection(luma, address))
    assert not is_ok
    assert "proxies pass on the query" in message


@pytest.mark.parametrize("prefix", ["wrong", "luma/callback", "api/v2", "auth", "luma"])
def test_ui_says_that_a_prefix_is_wrong(airflow: LocalAirflow, luma: Simulator, prefix: str) -> None:
    is_ok, message = result_in_ui(airflow, connection(luma, f"{airflow.url}/{prefix}"))
    assert not is_ok
    assert ", application/json)" in message
    assert "callback_base_url is correct" in message


def test_command_line_finds_that_callbacks_arrive(airflow: LocalAirflow, luma: Simulator) -> None:
    with reverse_proxy(airflow.url, prefix="/airflow") as address:
        is_ok, output = result_on_command_line(airflow, connection(luma, address))
    assert is_ok, output


@pytest.mark.versions
def test_command_line_says_that_the_api_server_has_another_key(airflow: LocalAirflow, luma: Simulator) -> None:
    is_ok, output = result_on_command_line(airflow, connection(luma, airflow.url, "the-key-of-another-environment"))
    assert not is_ok
    assert (
        "refused the test callback (HTTP 403). Check that its API server can read this connection, with the same API"
        in output
    )

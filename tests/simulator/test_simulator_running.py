# SPDX-License-Identifier: Apache-2.0
"""Specification of a running simulator: settings, control endpoints, overview page, journal, command line options."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.simulator.__main__ import build_parser, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "airflow_provider_luma.simulator"]


def test_a_changed_processing_time_applies_to_later_submissions_only(client):
    client.luma.configure(processing_seconds=60)
    client.submit_and_get_id()
    client.luma.configure(processing_seconds=0)
    assert client.wait_for_end(client.submit_and_get_id())["successFlag"] == 1
    assert [job.flag for job in client.luma.jobs] == [0, 1]


@pytest.mark.parametrize("changes", [{"processing_seconds": -1}, {"nonsense": 1}, {"faults": ["status:nonsense"]}])
def test_invalid_settings_are_rejected_and_change_nothing(client, changes):
    before = client.luma.settings
    with pytest.raises(ValidationError):
        client.luma.configure(**changes)
    assert client.luma.settings == before
    response = client.patch("/simulator/settings", json=changes)
    assert response.status_code == 422
    assert next(iter(changes)) in response.json()["msg"]
    assert client.luma.settings == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/simulator/state"),
        ("PATCH", "/simulator/settings"),
        ("POST", "/simulator/reset"),
        ("POST", "/simulator/move-time"),
    ],
)
def test_control_endpoints_refuse_requests_without_the_api_key(client, method, path):
    client.submit_and_get_id()
    client.luma.configure(refusal_style="body")
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        response = client.anonymous.request(method, client.luma.base_url + path, headers=headers, json={"credits": 1})
        assert response.status_code == 401
        assert response.json()["data"] is None
    assert client.luma.accepted == 1
    assert client.luma.credits == 990


def test_control_endpoints_change_settings_show_the_state_and_reset(client):
    changed = client.patch("/simulator/settings", json={"credits": 40, "webhook_secret": "hush"})
    assert changed.json()["credits"] == 40
    task_id = client.submit_and_get_id()
    shown = client.get("/simulator/state")
    state = shown.json()
    assert (state["accepted"], state["calls_count"], state["credits"]) == (1, 1, 30)
    assert state["jobs"][0]["task_id"] == task_id
    assert state["calls"][0]["on"] == "submit"
    assert "hush" not in shown.text
    assert "simulator-key" not in shown.text
    client.post("/simulator/reset")
    state = client.get("/simulator/state").json()
    assert (state["accepted"], state["calls_count"], state["credits"]) == (0, 0, 1000)
    assert client.status(task_id).json()["code"] == 404


@pytest.mark.parametrize("service", ["kie", "luma"])
def test_the_connection_uri_leads_to_a_service(service):
    from airflow.sdk import Connection

    from airflow_provider_luma.connection import LumaConnection

    with Simulator(Settings(api_key="a-key/with?signs")) as luma:
        connection = Connection.from_uri(luma.connection_uri(service), conn_id="luma_default")
        read = LumaConnection.of(connection)
        assert (read.api_key, read.service_name) == ("a-key/with?signs", service)
        assert read.base_url == luma.base_url


def test_the_overview_page_escapes_prompts_and_has_no_scripts(client):
    client.result_url(prompt="<script>alert(1)</script>")
    page = client.anonymous.get(client.luma.base_url)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "&lt;script&gt;" in page.text
    assert "<script" not in page.text
    assert client.luma.jobs[0].result_urls[0] in page.text
    assert client.anonymous.get(f"{client.luma.base_url}/health").status_code == 200


def test_the_journal_records_every_call_with_its_request_and_response(client):
    task_id = client.submit_and_get_id()
    client.status(task_id)
    client.anonymous.get(client.luma.sample_url, headers={"X-Mine": "yes"})
    submit, status, clip = client.luma.calls
    assert [submit.order, status.order, clip.order] == [1, 2, 3]
    assert [submit.on, status.on, clip.on] == ["submit", "status", "clip"]
    assert submit.at <= status.at <= clip.at
    assert submit.task_id == status.task_id == task_id
    assert status.query == {"taskId": task_id}
    assert (status.method, status.path) == ("GET", "/api/v1/modify/record-info")
    assert (status.http_status, status.code) == (200, 200)
    assert submit.carried_authorization
    assert not clip.carried_authorization
    assert clip.headers["x-mine"] == "yes"
    assert submit.client_port == status.client_port != clip.client_port


def test_connections_counts_the_tcp_connections_that_carried_calls(client):
    for _ in range(3):
        client.get("/api/v1/chat/credit")
    assert client.luma.connections == 1
    for _ in range(2):
        with httpx.Client(verify=False) as other:
            other.get(client.luma.sample_url)
    assert client.luma.connections == 3


def test_several_simulators_run_at_once_and_one_can_be_started_again(make_client):
    one, other = make_client(), make_client()
    one.submit_and_get_id(videoUrl=other.luma.sample_url)
    assert (one.luma.accepted, other.luma.accepted) == (1, 0)
    assert [call.on for call in other.luma.calls] == ["clip"]
    again = Simulator(Settings(), port=0)
    for _ in range(2):
        with again as luma:
            assert httpx.get(f"{luma.base_url}/health").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{luma.base_url}/health")


def test_stopping_does_not_wait_for_requests_with_a_hang_fault(wait_until):
    with Simulator(Settings.model_validate({"faults": ["credit:hang,seconds=600"]})) as luma:
        headers = {"Authorization": "Bearer simulator-key"}
        call = threading.Thread(
            target=httpx.get, args=(f"{luma.base_url}/api/v1/chat/credit",), kwargs={"headers": headers, "timeout": 300}
        )
        call.start()
        wait_until(lambda: luma.calls)
    call.join(timeout=60)
    assert not call.is_alive()


def test_importing_the_package_imports_no_heavy_dependency():
    code = (
        "import sys, airflow_provider_luma.simulator\n"
        "sys.exit(' '.join({'av', 'fastapi', 'pydantic', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "\n"


@pytest.mark.parametrize(
    ("number", "key", "environment"),
    [
        (signal.SIGINT, ["--api-key", "mine"], {}),
        # A command line is seen by every user of the machine.
        (signal.SIGTERM, [], {"LUMA_SIMULATOR_API_KEY": "mine", "LUMA_SIMULATOR_WEBHOOK_SECRET": "hush"}),
    ],
    ids=["SIGINT, key of an option", "SIGTERM, key of the environment"],
)
def test_the_command_serves_with_its_key_until_a_signal_and_cleans_up(number, key, environment, tmp_path):
    arguments = ["--port", "0", "--processing-seconds", "0.5", "--fault", "credit:html", *key]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            ready, *hints = [process.stdout.readline() for _ in range(5)]
            url = re.fullmatch(r"Luma simulator ready at (http://127\.0\.0\.1:\d+)\n", ready)[1]
            headers = {"Authorization": "Bearer mine"}
            assert httpx.get(f"{url}/api/v1/chat/credit", headers=headers).status_code == 500
            state = httpx.get(f"{url}/simulator/state", headers=headers).json()
            assert state["settings"]["processing_seconds"] == 0.5
            assert httpx.get(f"{url}/simulator/state").status_code == 401
        finally:
            process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    assert f"{url}/files/sample.mp4" in "".join(hints)
    assert "AIRFLOW_CONN_LUMA_DEFAULT" in "".join(hints)
    assert "mine" not in "".join(hints)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--fault", "status"], "--fault: 'status' is not of the form ON:KIND"),
        (["--fault", "status:html,every=0"], "--fault every: Input should be greater than or equal to 1"),
        (["--fault", "submit:refuse"], "--fault: refuse needs code=N"),
        (["--processing-seconds", "soon"], "--processing-seconds: Input should be a valid number"),
        (["--outcome", "luck"], "--outcome"),
    ],
)
def test_the_command_rejects_invalid_options_with_an_explanation(arguments, problem, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_the_command_reports_a_port_that_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [*COMMAND, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_without_the_simulator_extra_says_what_to_install():
    code = (
        "import importlib.util, runpy; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'av' else find(name, *rest)\n"
        "runpy.run_module('airflow_provider_luma.simulator', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs av: install the extra simulator of airflow-provider-luma" in done.stderr


@pytest.mark.parametrize("missing", ["av", "numpy"])
def test_simulator_in_a_test_without_the_simulator_extra_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom airflow_provider_luma.simulator import Simulator"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ImportError: The simulator renders real videos and needs {missing}: install the extra simulator of" in (
        done.stderr
    )


def test_every_setting_is_a_command_line_option_with_a_description():
    options = set(re.findall(r"--[\w-]+", build_parser().format_help()))
    for name, field in Settings.model_fields.items():
        assert field.description
        assert ("--fault" if name == "faults" else f"--{name.replace('_', '-')}") in options

# SPDX-License-Identifier: Apache-2.0
"""What the API server serves below /luma besides the receiver: the pages with their styles and scripts, no more."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from airflow_provider_luma import receiver
from airflow_provider_luma.decorators.luma import _LumaModifyDecoratedOperator
from airflow_provider_luma.links.luma import FETCHED_KEY
from airflow_provider_luma.operators.batch import BatchModifyOperator
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.services import SERVICES
from harness.api_server import proof
from harness.metadata_db import operator_awaiting_job


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_receiver_answers_no_method_but_post(metadata_db, api_server, method):
    metadata_db.defer(operator_awaiting_job())
    answer = await api_server.request(method, f"/luma/callback?{proof()}")
    await api_server.tasks_resumed()
    assert answer.status_code == 405
    assert answer.content == b""
    assert metadata_db.resumed() == set()
    assert api_server.scopes[-1]["query_string"] == b"", "the token stays out of the access log here too"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/callback/", "/static", "/static/"],
)
async def test_nothing_else_is_served(api_server, path):
    answer = await api_server.request("GET", f"/luma{path}")
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/result?dag_id=films", "text/html"),
        ("/gallery?dag_id=films", "text/html"),
        ("/overview", "text/html"),
        *((f"/static/{page}.css", "text/css") for page in ("common", "result", "gallery", "overview")),
        *((f"/static/{page}.js", "text/javascript") for page in ("common", "result", "gallery", "overview")),
    ],
)
async def test_pages_styles_and_scripts_are_served_with_a_strict_security_policy(api_server, path, kind):
    answer = await api_server.request("GET", f"/luma{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert len(answer.content) > 500
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in str(policy) and "*" not in str(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_pages_know_for_how_long_each_service_keeps_the_address_of_a_result():
    script = (Path(receiver.__file__).parent / "pages" / "common.js").read_text()
    [kept] = re.findall(r"const KEPT_MS = \{(.*)\};", script)
    assert dict(re.findall(r"(\w+): ([\d* ]+)", kept)).keys() == SERVICES.keys()
    for name, product in re.findall(r"(\w+): ([\d* ]+)", kept):
        assert math.prod(map(int, product.split("*"))) == SERVICES[name].results_kept * 1000


def test_overview_looks_for_all_tasks_that_have_jobs_and_for_what_downloads_record():
    script = (Path(receiver.__file__).parent / "pages" / "overview.js").read_text()
    [operators] = re.findall(r"const OPERATORS = \[(.*)\];", script)
    kinds = (LumaModifyOperator, _LumaModifyDecoratedOperator, BatchModifyOperator, LumaTaskSensor)
    expected = [kind.__name__ for kind in kinds]
    assert re.findall(r'"(\w+)"', operators) == expected
    assert re.findall(r'const FETCHED = "(\w+)"', script) == [FETCHED_KEY]
    [days] = re.findall(r"const DAYS = (\d+);", script)
    assert int(days) * 86400 == SERVICES["kie"].results_kept, "candidates for expiry are found by it"


@pytest.mark.parametrize(
    "path", ["../routes.py", "%2e%2e/routes.py", "..%2froutes.py", "result.html", "gallery.html", "/etc/passwd"]
)
async def test_no_other_file_is_served_below_static(api_server, path):
    scope = {"method": "GET", "path": f"/luma/static/{path}", "query_string": b""}
    assert await api_server.raw_request(scope, [b""]) == 404

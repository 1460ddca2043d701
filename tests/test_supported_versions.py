# SPDX-License-Identifier: Apache-2.0
"""What README.md and the package's metadata say of supported versions: the same, and no more than is tested."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import airflow_provider_luma

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
SECTION = (REPOSITORY / "README.md").read_text().split("\n## Supported versions\n")[1].split("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if re.match(r"\| \d", line)
]


def pinned(airflow: str) -> str:
    pins = (REPOSITORY / "constraints" / f"airflow-{airflow}.txt").read_text()
    found = re.search(r"^apache-airflow==(\S+)", pins, re.MULTILINE)
    assert found, pins[:200]
    return found[1]


def lower_bounds() -> dict[str, str]:
    """Return what a user's installation requires at least, the extras for users included."""
    requirements = [*PROJECT["dependencies"]]
    for extra in ("media", "simulator", "s3", "gcs", "azure", "openlineage"):
        requirements += PROJECT["optional-dependencies"][extra]
    found = (re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)$", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match}


def test_each_lower_bound_is_the_version_that_make_smoke_runs_with():
    pins = (REPOSITORY / "constraints" / "airflow-lowest.txt").read_text()
    bounds = lower_bounds()
    assert {"apache-airflow", "requests", "av", "apache-airflow-providers-google"} <= set(bounds)
    pinned_to = {name: re.search(rf"^{name}==(\S+)$", pins, re.MULTILINE)[1] for name in bounds}
    assert {name: Version(pinned_to[name]) for name in bounds} == {name: Version(bounds[name]) for name in bounds}


def test_extras_for_users_leave_no_requirement_without_a_lower_bound():
    extras = {name: PROJECT["optional-dependencies"][name] for name in ("media", "simulator", "s3", "gcs", "azure")}
    unbounded = [one for ones in extras.values() for one in ones if ">=" not in one]
    assert unbounded == ["airflow-provider-luma[media]"]


def test_pip_need_not_try_every_aiobotocore_there_has_been_to_find_one_for_the_newest_boto3():
    assert "aiobotocore" in lower_bounds()


@pytest.mark.parametrize("airflow", ["3.1", "3.2", "3.3", "3.4"])
def test_official_providers_of_each_storage_go_together_with_what_is_pinned(airflow):
    """The Google provider takes no tenacity from 9.2 on."""
    pins = (REPOSITORY / "constraints" / f"airflow-{airflow}.txt").read_text()
    for provider in ("amazon", "google", "microsoft-azure", "openlineage"):
        assert f"\napache-airflow-providers-{provider}==" in pins
    assert re.search(r"^tenacity==(8|9\.[01])\.", pins, re.MULTILINE)


def test_each_airflow_of_the_table_is_one_that_make_test_matrix_runs_the_tests_on():
    matrix = re.findall(r"\$\(MAKE\) test AIRFLOW=(\S+)", (REPOSITORY / "Makefile").read_text())
    assert [airflow for airflow, *_ in ROWS] == matrix


def test_each_release_of_the_table_is_the_one_that_is_pinned():
    assert [tested.split(",")[0] for _, _, tested, _ in ROWS] == [pinned(airflow) for airflow, *_ in ROWS]


def test_metadata_claims_the_pythons_that_the_readme_says_were_tested_and_no_other():
    claimed = {match[1] for line in PROJECT["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", line))}
    sentence = SECTION.split("All tests run")[1].split("\n\n")[0]
    assert claimed == set(re.findall(r"\b3\.1[1-9]\b", sentence))


def test_oldest_airflow_and_python_of_the_table_are_those_that_the_package_requires():
    airflow, python = ROWS[0][0], ROWS[0][1].split()[0]
    assert f"apache-airflow>={airflow}" in PROJECT["dependencies"]
    assert PROJECT["requires-python"] == f">={python}"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], ".venv"),
        (["AIRFLOW=3.1"], ".venv-3.1"),
        (["PYTHON=python3.13"], ".venv-python3.13"),
        (["AIRFLOW=3.1", "PYTHON=/opt/bin/python3.12"], ".venv-3.1-python3.12"),
    ],
    ids=" ".join,
)
def test_make_uses_an_environment_of_its_own_for_each_airflow_and_python(arguments, environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("AIRFLOW", "PYTHON", "VENV", "MAKEFLAGS")}
    command = ["make", "--dry-run", "--always-make", "check", *arguments]
    plan = subprocess.run(command, cwd=REPOSITORY, env=kept, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^\s*{re.escape(environment)}/bin/python -m pytest ", plan, re.MULTILINE), plan


def test_changelog_and_security_policy_know_this_version():
    version = airflow_provider_luma.__version__
    assert f"\n## {version} - 20" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"| {version.rpartition('.')[0]} | yes |" in (REPOSITORY / "SECURITY.md").read_text()


def test_each_released_version_of_the_changelog_has_a_date_and_the_newest_comes_first():
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    if headings[0] == "Unreleased":
        del headings[0]
    dates = [datetime.date.fromisoformat(heading.partition(" - ")[2]) for heading in headings]
    assert dates == sorted(dates, reverse=True)

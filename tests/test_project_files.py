# SPDX-License-Identifier: Apache-2.0
"""What hosts the project and what edits it reads: workflows, templates, hooks, and addresses that agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.skipif(not (REPOSITORY / ".github").is_dir(), reason="an sdist holds no hidden files")


def test_workflow_runs_what_a_change_must_pass_and_installs_nothing_but_what_starts_it():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", sorted((REPOSITORY / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_file_of_the_host_is_yaml(file):
    assert isinstance(yaml.safe_load(file.read_text()), dict)


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_issue_form_has_what_the_host_requires_of_one(name):
    form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"].get("value" if field["type"] == "markdown" else "label")


def test_owner_of_the_code_is_the_one_in_the_addresses_of_the_project():
    owners = set(re.findall(r"@([\w-]+)", (REPOSITORY / ".github" / "CODEOWNERS").read_text()))
    assert owners == {address.split("/")[3] for address in PROJECT["urls"].values()}


def test_airflow_finds_the_documentation_among_the_addresses():
    assert {"Documentation", "Repository", "Issues", "Changelog"} == set(PROJECT["urls"])
    assert all(address.startswith(PROJECT["urls"]["Repository"]) for address in PROJECT["urls"].values())


def test_pre_commit_uses_the_tools_of_make_and_fetches_none():
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        subprocess.run([*hook["entry"].split(), "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def test_extra_of_the_demo_of_a_cluster_brings_both_drivers_of_its_database():
    """With Airflow 3.3 the asynchronous one too; the environment of the tests has whatever they need themselves."""
    assert {"asyncpg", "psycopg2-binary"} <= set(PROJECT["optional-dependencies"]["cluster"])

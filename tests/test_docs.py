# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows: every DAG can be read, and every command exists and is understood."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import airflow.sdk
import pytest
import yaml
from airflow.cli import cli_parser
from airflow.sdk import DAG, Connection

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.operators import luma as operators
from airflow_provider_luma.simulator import Settings, Simulator
from airflow_provider_luma.simulator.__main__ import build_parser
from harness import decision_table

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]

#: Where the simulator listens unless told otherwise.
SIMULATOR = "http://127.0.0.1:8765"


def blocks(*languages: str) -> list[object]:
    """Return the fenced blocks in these languages, each named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            if fence[2] in languages:
                line = text[: fence.start()].count("\n") + 1
                found.append(pytest.param(textwrap.dedent(fence[3]), id=f"{page.name}:{line}"))
    assert found
    return found


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command; one may go over several lines."""
    command = ""
    for line in block.splitlines():
        command += f"{line}\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quotation goes on
            continue
        if not line.endswith("\\"):
            command = ""
            if words:
                yield words
    assert not command


# -- the table of submit once ----------------------------------------------------------------------------------------


def test_decision_table_of_the_documentation_is_that_of_the_code() -> None:
    page = decision_table.PAGE.read_text()
    assert decision_table.replaced(page) == page, "run python -m harness.decision_table"


# -- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_documentation_runs(block: str) -> None:
    if "retry_policy" in block and not hasattr(airflow.sdk, "ExceptionRetryPolicy"):
        pytest.skip("the example is for Airflow 3.3 and newer")
    with DAG(dag_id="around_a_fragment") as dag:
        names = {"LumaModifyOperator": operators.LumaModifyOperator, "LumaUploadOperator": operators.LumaUploadOperator}
        exec(compile(block, "a page", "exec"), names)  # a literal that Luma would refuse is refused here
    if "dag_id" not in block and "Operator" in block:
        assert dag.tasks


# -- commands --------------------------------------------------------------------------------------------------------


def read_connection(text: str) -> None:
    """Read a connection as the operators do."""
    read = Connection.from_json if text.startswith("{") else Connection.from_uri
    connection = read(text, conn_id="luma_default")
    assert connection.conn_type == "luma"
    assert LumaConnection.of(connection).api_key


def check_make(words: list[str]) -> None:
    subprocess.run([*words, "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def check_pip(words: list[str]) -> None:
    assert words.pop(1) == "install"
    for word in words[1:]:
        if word.startswith("constraints/"):
            assert (REPOSITORY / word).is_file()
        elif word != "--constraint":
            wanted = re.fullmatch(
                r"(?:\.|airflow-provider-luma(?=.* @ git\+ADDRESS$))(?:\[([\w,]+)\])?(?: @ .*)?", word
            )
            assert wanted, word
            assert wanted[1] is None or set(wanted[1].split(",")) <= set(EXTRAS)


def test_pages_and_messages_name_no_distribution_that_no_index_has() -> None:
    files = [*PAGES, *(REPOSITORY / "airflow_provider_luma").rglob("*.py"), *(REPOSITORY / "docs/examples").rglob("*")]
    from_an_index = re.compile(r"install\s+(?:--\S+\s+)*['\"]?airflow-provider-luma(?!\S* @ )")
    assert [file.name for file in files if from_an_index.search(file.read_text())] == []


def test_page_about_installing_lists_each_extra_for_users_and_what_it_brings() -> None:
    page = (REPOSITORY / "docs" / "install.md").read_text()
    for_contributors = {"cluster", "docs", "dev", "bench"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(EXTRAS) - for_contributors


def check_export(words: list[str]) -> None:
    name, _, value = words[1].partition("=")
    if name == "AIRFLOW__OPENLINEAGE__TRANSPORT":
        assert json.loads(value)["type"] == "file"
    elif name == "AIRFLOW__CORE__TEST_CONNECTION":
        assert value == "Enabled"
    elif name == "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT":
        assert float(value) > 5, "Airflow's default"
    else:
        assert name == "AIRFLOW_CONN_LUMA_DEFAULT"
        read_connection(value)


def check_python(words: list[str]) -> None:
    if words[1:3] not in (["-m", "venv"], ["-m", "pytest"]):
        assert words[1:3] == ["-m", "airflow_provider_luma.simulator"]
        build_parser().parse_args(words[3:])


def check_airflow(words: list[str]) -> None:
    cli_parser.get_parser().parse_args(words[1:])


def check_kubectl(words: list[str]) -> None:
    read_connection(words[-1].partition("connection=")[2])


def check_copy(words: list[str]) -> None:
    assert (REPOSITORY / words[1]).is_file()


def check_nothing(words: list[str]) -> None:
    """What every shell has; calls of the simulator are made below."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "export": check_export,
    "python": check_python,
    "python3": check_python,
    "airflow": check_airflow,
    "kubectl": check_kubectl,
    ".": check_nothing,
    "cp": check_copy,
    "mkdir": check_nothing,
    "grep": check_nothing,
    "curl": check_nothing,
    "KEY=Authorization: Bearer simulator-key": check_nothing,
}


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_of_the_documentation_exist_and_are_understood(block: str) -> None:
    for words in commands(block):
        CHECKS[words[0]](words)


@pytest.mark.parametrize("block", [block for block in blocks("sh") if "curl" in str(block)])
def test_calls_of_the_simulator_are_answered(block: str, tmp_path: Path) -> None:
    with Simulator() as luma:
        calls = "".join(f"{line}\n" for line in block.splitlines() if not line.startswith(("export", "mkdir")))
        calls = calls.replace(SIMULATOR, luma.base_url).replace("/tmp/luma", str(tmp_path))
        script = f'set -e\ncurl() {{ command curl --fail "$@"; }}\n{calls}'
        subprocess.run(["bash", "-c", script], check=True, timeout=60, env={"PATH": os.environ["PATH"]})


def options() -> list[str]:
    """Return what the table of the simulator's options says to use."""
    rows = re.findall(r"^\|.*\|$", (REPOSITORY / "docs" / "simulator.md").read_text(), re.MULTILINE)
    return re.findall(r"`(--[^`]+)`", "".join(rows))


@pytest.mark.parametrize("option", options())
def test_option_of_the_simulator_is_understood(option: str) -> None:
    given = {name: value for name, value in vars(build_parser().parse_args(shlex.split(option))).items() if value}
    known = {name: value for name, value in given.items() if name in Settings.model_fields}
    Settings.model_validate(known)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_of_the_documentation_can_be_read(block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)


# -- links of what is no page of the site ----------------------------------------------------------------------------


def test_readme_links_lead_to_the_web_or_to_files_of_the_repository() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert len(links) > 15
    assert [link for link in links if not link.startswith("https://") and not (REPOSITORY / link).exists()] == []


def test_images_of_the_documentation_are_small() -> None:
    images = list((REPOSITORY / "docs" / "images").iterdir())
    assert images
    assert [image.name for image in images if image.stat().st_size > 150_000] == []
    shown = "".join(page.read_text() for page in PAGES)
    assert [image.name for image in images if f"images/{image.name}" not in shown] == []


def test_json_in_the_documentation_can_be_read() -> None:
    for page in PAGES:
        for inline in re.findall(r"`(\{\"[^`]*\})`", page.read_text()):
            json.loads(inline)


def texts_of_the_package() -> str:
    """Return the texts in the package's source, with an ellipsis for each value that is filled in."""
    texts = []
    for file in (REPOSITORY / "airflow_provider_luma").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%(?:\.\d)?[sdgfr]|\{\w+\}", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


def test_log_lines_of_the_runbook_are_those_of_the_package():
    texts = texts_of_the_package()
    lines = [line for block in blocks("text") if "runbook" in block.id for line in block.values[0].splitlines()]
    assert lines
    lumas_words = "The current credits are insufficient. Please top up. (code 402). "
    filled_in = r"…|https://\S+\w|[A-Z]+_[A-Z]+"
    parts = {
        part.strip(" .:()")
        for line in lines
        for part in re.split(rf"{filled_in}|[.:;(] ?", line.replace(lumas_words, ""))
    }
    assert sorted(part for part in parts if part not in texts) == []

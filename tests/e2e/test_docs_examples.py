# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation, run as a reader does: from a clean folder, by the commands of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import AIRFLOW, REPOSITORY

pytestmark = [
    pytest.mark.xdist_group("dag_test"),
    pytest.mark.skipif(AIRFLOW == (3, 2), reason="dag.test() of Airflow 3.2 asks its own API before that is ready"),
]

DOCS = REPOSITORY / "docs"


def shown(page: str, name: str) -> str:
    """Return what a page shows of a file."""
    text = (DOCS / page).read_text()
    [options] = re.findall(rf"^```{{literalinclude}} examples/{re.escape(name)}\n(.*?)^```$", text, re.M | re.S)
    [start] = re.findall(r"^:start-at: (.+)$", options, re.M)
    content = (DOCS / "examples" / name).read_text()
    return content[content.index(start) :]


def commands(page: str, word: str) -> str:
    """Return the block of commands of a page in which a word is."""
    [block] = [
        block for block in re.findall(r"^```sh\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S) if word in block
    ]
    return str(block)


def test_dag_of_the_tutorial_passes_the_test_of_the_how_to_by_its_commands(tmp_path: Path) -> None:
    folder, home = tmp_path / "films", tmp_path / "home"
    (folder / "dags").mkdir(parents=True)
    home.mkdir()
    (folder / "dags" / "published_film.py").write_text(shown("tutorial.md", "published_film.py"))
    (folder / "test_published_film.py").write_text(shown("how-to.md", "test_published_film.py"))
    typed = commands("how-to.md", "python -m pytest")

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LUMA", "PYTEST"))}
    activated = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", typed],
        env={**kept, "HOME": str(home), "PATH": activated},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b1 passed\b", done.stdout)
    assert not (home / "airflow").exists(), "the user's own Airflow is left alone"
